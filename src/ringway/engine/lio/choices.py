"""What a specification leaves open, chosen once; and what this engine can serve on no host."""

from __future__ import annotations

import re
import secrets
import uuid
from typing import Final

from msgspec.structs import replace

from ringway.engine.lio.backstores import PAGE
from ringway.errors import UsageError
from ringway.model import (
    MAX_LUN,
    MAX_NAME,
    MAX_TARGET,
    BackstoreSpec,
    DeviceKind,
    EndpointSpec,
    Limits,
    LunSpec,
    Mapped,
    SpecKind,
    is_name,
)
from ringway.notation import check_serial

#: NAA 5, and the company that the kernel's target names its units after.
_COMPANY: Final = "naa.5001405"
_NAA: Final = re.compile(r"naa\.[0-9a-f]{16}([0-9a-f]{16})?")
_STORE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]*")
_SERVED: Final = (SpecKind.PATH, SpecKind.RAM, SpecKind.NULL)
_USERS_OWN: Final = ("queues", "workers", "cpus", "poll", "io_engine")
#: The kernel keeps so many bytes of a path, and loses the rest without a word.
_MAX_PATH: Final = 255
_BLOCK_SIZES: Final = (512, 1024, 2048, 4096)


def random_name() -> str:
    """A WWPN or nexus that nobody has."""
    return _COMPANY + secrets.token_hex(5)[:9]


def resolve(spec: EndpointSpec) -> EndpointSpec:
    """Choose names and serial numbers, and refuse what the kernel engine never serves.

    :raises UsageError: with what is the matter.
    """
    _check_endpoint(spec)
    for lun in spec.luns:
        _check_lun(lun)
    resolved = replace(
        spec,
        wwpn=spec.wwpn or random_name(),
        nexus=spec.nexus or random_name(),
        luns=tuple(_resolve_lun(spec.name, lun) for lun in spec.luns),
    )
    _check_shared(resolved)
    return resolved


def _resolve_lun(endpoint: str, lun: LunSpec) -> LunSpec:
    store = lun.backstore
    name = store.name or (
        store.path.rpartition("/")[2]
        if store.kind is SpecKind.TCMU and store.path
        else f"{endpoint}:{lun.target}:{lun.lun}"
    )
    serial = store.serial or (str(uuid.uuid4()) if store.kind in _SERVED else None)
    return replace(lun, backstore=replace(store, name=name, serial=serial))


def _check_endpoint(spec: EndpointSpec) -> None:
    if not is_name(spec.name):
        raise UsageError(
            f"'{spec.name}' cannot be an endpoint's name",
            hint=f"take letters, digits, '.', '_' and '-', {MAX_NAME} at most",
        )
    if spec.device is not DeviceKind.SCSI:
        raise UsageError(
            f"the kernel engine has no {spec.device} devices",
            hint="leave out --device, or take --engine user",
        )
    for name in (spec.wwpn, spec.nexus):
        if name is not None and not _NAA.fullmatch(name):
            raise UsageError(
                f"'{name}' is not a WWN",
                hint="write naa. and 16 hexadecimal digits (or 32), in small letters",
            )
    if spec.wwpn is not None and spec.wwpn == spec.nexus:
        raise UsageError("target port and nexus have the same name", hint="leave out one: it is chosen")
    defaults = EndpointSpec(name=spec.name)
    if spec.incoming:
        raise UsageError(
            "QEMU moves no guest that has an endpoint of the kernel engine",
            hint="leave out --incoming, or take --engine user",
        )
    for field in _USERS_OWN:
        if getattr(spec, field) != getattr(defaults, field):
            raise UsageError(
                f"'{field}' is the user engine's: the kernel has it from QEMU",
                hint="leave it out, and set num_queues of QEMU's vhost-scsi-pci",
            )


def _check_lun(lun: LunSpec) -> None:
    if not 0 <= lun.target <= MAX_TARGET or not 0 <= lun.lun <= MAX_LUN:
        raise UsageError(
            f"LUN {lun.target}:{lun.lun} is out of range: no guest could reach it",
            hint=f"targets go from 0 to {MAX_TARGET}, LUNs from 0 to {MAX_LUN}",
        )
    if lun.limits != Limits():
        raise UsageError(
            "the kernel engine cannot limit a LUN",
            hint="take --engine user, or limit the device below (io.max)",
        )
    _check_store(lun.backstore)


def _check_store(store: BackstoreSpec) -> None:
    """:raises UsageError: options that this engine has not, or values that the kernel would misread."""
    if store.kind in (SpecKind.RAM, SpecKind.NULL):
        _check_memory(store)
    elif not store.path:
        raise UsageError(f"a {store.kind} disk without a path", hint="give it a path")
    elif store.kind is SpecKind.PATH:
        check_path(store.path)
    if store.mapped is Mapped.ON:
        raise UsageError("the kernel engine maps no files", hint="leave out mapped=on, or take --engine user")
    if store.block_size is not None and store.block_size not in _BLOCK_SIZES:
        raise UsageError(f"a block size of {store.block_size} is not possible", hint="take 512 or 4096")
    if store.name is not None and not _STORE_NAME.fullmatch(store.name):
        raise UsageError(
            f"'{store.name}' cannot be a backstore's name", hint="take letters, digits and any of _.:@+-"
        )
    if store.serial is not None:
        _check_serial(store)
    for name, value in store.attributes.items():
        if "/" in name or name in ("", ".", "..") or not value.strip():
            raise UsageError(f"'{name}={value}' is no attribute", hint="write it as emulate_tpu=1")


def check_path(path: str) -> None:
    """:raises UsageError: the kernel would open another file than this."""
    if not path.startswith("/"):
        raise UsageError(f"'{path}' is not an absolute path", hint="write it from / on")
    for mark, word in ((",", "a comma"), ("\n", "a line break")):
        if mark in path:
            raise UsageError(
                f"the kernel ends a path at {word}, and would take another file than '{path}'",
                hint="make a symbolic link to it without one, and name that",
            )
    if len(path.encode()) > _MAX_PATH:
        raise UsageError(
            f"the kernel keeps {_MAX_PATH} bytes of a path, and '{path[:40]}…' has {len(path.encode())}",
            hint="make a symbolic link to it, and name that",
        )


def _check_memory(store: BackstoreSpec) -> None:
    if not store.size_bytes or store.size_bytes < 0:
        raise UsageError(f"a {store.kind} disk of no bytes", hint=f"give it a size, as in {store.kind}:4G")
    if store.size_bytes % PAGE:
        raise UsageError(
            f"the kernel's {store.kind} disks have whole pages, and {store.size_bytes} bytes are none",
            hint=f"take {-(-store.size_bytes // PAGE) * PAGE}",
        )
    if store.readonly:
        raise UsageError(f"a {store.kind} disk cannot be read-only", hint="leave out readonly")


def _check_serial(store: BackstoreSpec) -> None:
    assert store.serial is not None
    if store.kind not in _SERVED:
        raise UsageError(
            f"a {store.kind} disk has the serial number that it has", hint="leave out the serial number"
        )
    check_serial(store.serial)
    if "/" in store.serial:
        raise UsageError(
            f"serial number '{store.serial}' has a slash",
            hint="the kernel names a file after it: leave that out",
        )


def _check_shared(spec: EndpointSpec) -> None:
    """LUNs may share a backstore that they name and describe alike."""
    stores: dict[str | None, BackstoreSpec] = {}
    for lun in spec.luns:
        if stores.setdefault(lun.backstore.name, lun.backstore) != lun.backstore:
            raise UsageError(
                f"two LUNs of '{spec.name}' describe their backstore '{lun.backstore.name}' differently",
                hint="describe it alike to share it, or name one of them otherwise",
            )
