"""What libvirt says when it could not, as errors of ours."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Final

import libvirt

from ringway.errors import (
    BusyError,
    ConflictError,
    GuestError,
    NotFoundError,
    PermissionDeniedError,
    RingwayError,
    UnreachableError,
    UsageError,
)

_NOT_THERE: Final = (
    "systemctl start libvirtd (or virtqemud), or name another: uri below [guests] in ringway.toml"
)
#: In words of libvirt's, where a domain is defined, or of QEMU's, where it starts.
_NO_KVM: Final = re.compile(r"initialize kvm|KVM kernel module|type=kvm\b|virt type 'kvm'", re.IGNORECASE)
_EMULATE: Final = "see ringway doctor for KVM; ringway guest create --emulate makes a guest without it"
#: What libvirt says, and what mends it.
_HINTS: Final = (
    (_NO_KVM, _EMULATE),
    (
        re.compile("No more available PCI slots"),
        "give it <controller type='pci' model='pcie-root-port'/> and start it again",
    ),
)
_KINDS: Final[dict[int, type[RingwayError]]] = {
    libvirt.VIR_ERR_NO_DOMAIN: NotFoundError,
    libvirt.VIR_ERR_OPERATION_INVALID: ConflictError,
    libvirt.VIR_ERR_OPERATION_DENIED: PermissionDeniedError,
    libvirt.VIR_ERR_ACCESS_DENIED: PermissionDeniedError,
    libvirt.VIR_ERR_AUTH_FAILED: PermissionDeniedError,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: PermissionDeniedError,
    libvirt.VIR_ERR_AUTH_CANCELLED: PermissionDeniedError,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: BusyError,  # it does something else with the guest
    libvirt.VIR_ERR_XML_ERROR: UsageError,
    libvirt.VIR_ERR_XML_DETAIL: UsageError,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: UsageError,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: UsageError,
    libvirt.VIR_ERR_INVALID_ARG: UsageError,
}
#: A connection that broke says so in one of these ways.
_BROKEN: Final = (libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC)
_REMOTE: Final = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
_HUNG_UP: Final = (errno.EIO, errno.EPIPE, errno.ECONNRESET)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what libvirt raises in here as an error of ours. :param what: was tried, as a clause."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise error_of(what, error) from error


def error_of(what: str, error: libvirt.libvirtError) -> RingwayError:
    """Find the error of ours that says the same."""
    message = f"{what}: {error.get_error_message() or error}"
    if is_broken(error):
        return UnreachableError(message, hint=_NOT_THERE)
    hint = next((hint for pattern, hint in _HINTS if pattern.search(message)), None)
    return _KINDS.get(error.get_error_code(), GuestError)(message, hint=hint)


def is_broken(error: libvirt.libvirtError) -> bool:
    """Whether it is the connection that failed, and not what was asked."""
    code = error.get_error_code()
    hung_up = code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in _HUNG_UP
    lost = hung_up or code == libvirt.VIR_ERR_INTERNAL_ERROR
    return code in _BROKEN or (error.get_error_domain() in _REMOTE and lost)


def unreachable(uri: str, error: libvirt.libvirtError) -> RingwayError:
    """Say that a connection could not be made."""
    kind = _KINDS.get(error.get_error_code())
    message = f"libvirt does not answer at {uri}: {error.get_error_message() or error}"
    if kind is PermissionDeniedError:
        return PermissionDeniedError(message, hint="run as root, or as a member of the group libvirt")
    return UnreachableError(message, hint=_NOT_THERE)
