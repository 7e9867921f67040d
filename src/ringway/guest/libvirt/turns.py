"""Whose turn it is: libvirt answers no question about a guest while it does something else with it.

Questions wait half a minute for that, or for ever if QEMU hangs. A guest that starts is the usual case: QEMU
looks for the sockets of its devices first, and one that reconnects tries a socket for ever.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from typing import Final

import libvirt

from ringway.errors import BusyError
from ringway.guest.libvirt.failures import error_of, translated

PATIENCE_S: Final = 3.0
_EVERY_S: Final = 0.05
_BUSY: Final = (libvirt.VIR_DOMAIN_CONTROL_JOB, libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)
_MOVING: Final = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]
_STARTS: Final = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]


def wait_turn(domain: libvirt.virDomain) -> None:
    """Wait a moment until libvirt can be asked about a guest; it still may have to finish something short.

    :raises BusyError: it does something that has taken longer than :data:`PATIENCE_S`, or another host is
        just moving the guest here, which may take minutes.
    """
    _refuse_arriving(domain)
    deadline = time.monotonic() + PATIENCE_S
    while (busy_s := _busy_s(domain)) is not None:
        if busy_s > PATIENCE_S:
            raise _busy(domain, busy_s)
        if time.monotonic() > deadline:  # one short thing after another
            return
        time.sleep(_EVERY_S)


def _busy_s(domain: libvirt.virDomain) -> float | None:
    """How long libvirt has been busy with a guest; ``None``: it is not, or the guest does not run."""
    with contextlib.suppress(libvirt.libvirtError):
        state, _, since_ms = domain.controlInfo()
        return since_ms / 1000 if state in _BUSY else None
    return None


def _busy(domain: libvirt.virDomain, busy_s: float) -> BusyError:
    name = domain.name()
    with translated(f"guest '{name}'"):
        starts = domain.state() == _STARTS
    if starts:
        return BusyError(
            f"guest '{name}' has been starting for {busy_s:.0f} s",
            holder="libvirt",
            hint="as a rule QEMU waits at a socket, of an endpoint that does not serve or that it may not "
            f"open, or of a switch: mend that, and it goes on, or give up: virsh destroy {shlex.quote(name)}",
        )
    return BusyError(
        f"libvirt has been busy with guest '{name}' for {busy_s:.0f} s",
        holder="libvirt",
        hint=f"see: virsh domcontrol {shlex.quote(name)}",
    )


def _refuse_arriving(domain: libvirt.virDomain) -> None:
    """:raises BusyError: another host is just moving it here, and libvirt tells nothing until it has come."""
    with translated(f"guest '{domain.name()}'"):
        if domain.state() != _MOVING:
            return
    try:
        domain.jobInfo()  # its source knows how far it is
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            raise error_of(f"guest '{domain.name()}'", error) from error
        raise BusyError(
            f"guest '{domain.name()}' is on its way here from another host",
            holder="libvirt",
            hint="wait for it; virsh domjobinfo says on that host how far it is",
        ) from error
