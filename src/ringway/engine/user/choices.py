"""What an endpoint of the user engine may be, and what it gets where its specification leaves it open."""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import Final

from msgspec.structs import replace

from ringway.errors import UsageError
from ringway.model import (
    BackstoreSpec,
    DeviceKind,
    EndpointSpec,
    LunSpec,
    Protection,
    SpecKind,
    TargetConfig,
)

KINDS: Final = (SpecKind.PATH, SpecKind.RAM, SpecKind.NULL)
_LOCALLY_ASSIGNED: Final = "naa.3"


def resolved(spec: EndpointSpec) -> EndpointSpec:
    """Choose names and serial numbers; what is set stays.

    :raises UsageError: the engine cannot serve such an endpoint.
    """
    refuse_foreign(spec)
    luns = tuple(_resolved_lun(spec.name, lun) for lun in spec.luns)
    wwpn = spec.wwpn
    if wwpn is None and spec.device is DeviceKind.SCSI:
        wwpn = _LOCALLY_ASSIGNED + secrets.token_hex(8)[1:]
    whole = replace(spec, luns=luns, wwpn=wwpn)
    config_of(whole)
    return whole


def config_of(spec: EndpointSpec) -> TargetConfig:
    """What the endpoint's process is told. :raises UsageError: numbers that no host could serve."""
    return TargetConfig(
        device=spec.device,
        luns=spec.luns,
        queues=spec.queues,
        workers=spec.workers,
        cpus=spec.cpus,
        poll=spec.poll,
        io_engine=spec.io_engine,
        wwpn=spec.wwpn if spec.device is DeviceKind.SCSI else None,
        incoming=spec.incoming,
    )


def refuse_foreign(spec: EndpointSpec) -> None:
    """:raises UsageError: it has what only the kernel engine has."""
    if spec.nexus is not None or spec.protection is not Protection.NONE:
        what = "an initiator's name" if spec.nexus is not None else "protection information"
        raise UsageError(f"the user engine has no use for {what}", hint="leave it out, or take --engine lio")
    for lun in spec.luns:
        _refuse_foreign_backstore(lun.backstore)


def _refuse_foreign_backstore(disk: BackstoreSpec) -> None:
    if disk.kind not in KINDS:
        raise UsageError(
            f"the user engine has no backstores of kind '{disk.kind}'",
            hint="take --engine lio, or a path, ram or null",
        )
    if disk.attributes:
        names = ", ".join(sorted(disk.attributes))
        raise UsageError(f"the user engine has no attributes such as {names}", hint="take --engine lio")
    if disk.kind is SpecKind.PATH and not os.path.isabs(disk.path or ""):
        raise UsageError(
            f"'{disk.path or ''}' is not an absolute path", hint="a daemon has no current directory of yours"
        )
    if disk.kind is not SpecKind.PATH and not disk.size_bytes:
        raise UsageError(f"a {disk.kind} disk of no bytes", hint=f"give it a size, as in {disk.kind}:4G")


def _resolved_lun(endpoint: str, lun: LunSpec) -> LunSpec:
    disk = lun.backstore
    name = disk.name or f"{endpoint}-{lun.target}-{lun.lun}"
    return replace(lun, backstore=replace(disk, name=name, serial=disk.serial or _serial(disk)))


def _serial(disk: BackstoreSpec) -> str:
    """The same image under the same path has the same one, whoever serves it; memory has a new one."""
    if disk.path is None:
        return secrets.token_hex(8)
    return hashlib.sha256(os.fsencode(os.path.realpath(disk.path))).hexdigest()[:16]
