"""Whole hosts as files: ours, and targetcli's."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct

from ringway.engine.base import Driver
from ringway.engine.lio import (
    VHOST,
    FabricSpec,
    LioDriver,
    parse_fabric_spec,
    print_fabric_spec,
    read_saveconfig,
    write_saveconfig,
)
from ringway.errors import UsageError
from ringway.model import EndpointSpec, EndpointState, HostConfig

_FORMER_MODULE: Final = "tcm_vhost"  #: vhost_scsi's name before Linux 3.10
_SPEC_LINE: Final = re.compile(rb"^[a-z_]+ *=", re.MULTILINE)


class Format(StrEnum):
    """What a host is written as."""

    RINGWAY = "ringway"
    TARGETCLI = "targetcli"  #: its saveconfig.json; the kernel engine's endpoints alone
    FABRIC_SPEC = "fabric-spec"  #: its vhost.spec, which says what the fabric is


class Import(Struct, frozen=True):
    """What a file came to, and a line for each thing that was left out."""

    config: HostConfig
    notes: tuple[str, ...]


def write(config: HostConfig, form: Format) -> bytes:
    """Write a host. Blocks. :raises OSError: the size of an image has to be written, and it is not there."""
    if form is Format.FABRIC_SPEC:
        return msgspec.json.encode({"fabric_spec": print_fabric_spec(VHOST)})
    if form is Format.RINGWAY:
        return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
    return write_saveconfig(config.endpoint).encode()


def read(text: bytes, driver: Driver, *, adopt: bool) -> Import:
    """Read targetcli's saveconfig.json, or its vhost.spec, which changes nothing. Blocks.

    :param adopt: what is live in the kernel is described as it is there, its nexus too; making that takes it
        over in place. Without a file, all that is live.
    :raises UsageError: it is no such file, or there is none.
    """
    if not isinstance(driver, LioDriver):
        raise UsageError("only the kernel engine has what targetcli has", hint="see [lio] in ringway.toml")
    if not text and not adopt:
        raise UsageError("there is no file to import", hint="send a saveconfig.json, or say adopt=1")
    if not text:
        return Import(HostConfig(endpoint=driver.adopt()), ())
    if _is_fabric_spec(text):
        return Import(HostConfig(), _compared(parse_fabric_spec(text.decode(errors="replace"))))
    found = read_saveconfig(text.decode(errors="replace"))
    if not adopt:
        return Import(HostConfig(endpoint=found.endpoints), found.notes)
    live = driver.list()
    foreign = {info.name for info in live if info.state is EndpointState.FOREIGN}
    ours = {info.wwpn: info.name for info in live if info.state is not EndpointState.FOREIGN}
    kept = tuple(
        f"{spec.wwpn}: is endpoint '{ours[spec.wwpn]}', and stays as it is"
        for spec in found.endpoints
        if spec.wwpn in ours
    )
    wanted = (spec for spec in found.endpoints if spec.wwpn not in ours)
    endpoints = tuple(_described(spec, driver, foreign) for spec in wanted)
    return Import(HostConfig(endpoint=endpoints), (*found.notes, *kept))


def _is_fabric_spec(text: bytes) -> bool:
    """Whether it has lines of ``name = value``, and no JSON."""
    return _SPEC_LINE.search(text) is not None and not text.lstrip().startswith((b"{", b"["))


def _compared(spec: FabricSpec) -> tuple[str, ...]:
    """What the kernel engine makes of a fabric's description.

    :raises UsageError: it is another fabric's.
    """
    for field in ("kernel_module", "configfs_group"):
        theirs, ours = getattr(spec, field), getattr(VHOST, field)
        if theirs not in (None, ours, _FORMER_MODULE):
            raise UsageError(
                f"the file describes another fabric: {field} = {theirs}",
                hint=f"the kernel engine drives {VHOST.configfs_group}, of the module {VHOST.kernel_module}",
            )
    known = {*VHOST.features, *VHOST.wwn_types}
    lacks = [word for word in (*spec.features, *spec.wwn_types) if word not in known]
    same = f"the fabric is {VHOST.configfs_group}, which the kernel engine drives; nothing has to be changed"
    return (same, *(f"'{word}' is not of this fabric, and is left out" for word in lacks))


def _described(spec: EndpointSpec, driver: LioDriver, foreign: set[str]) -> EndpointSpec:
    """As it is in the kernel, if it is there and not ours; else as the file has it."""
    return driver.adopt((spec.name,))[0] if spec.name in foreign else spec
