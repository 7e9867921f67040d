"""targetcli's ``saveconfig.json``: what of it is an endpoint of ours, and our endpoints written so.

Its form has no version and no specification: what is read here is what rtslib 2.2 and older write. There is
no nexus in it; :meth:`ringway.engine.lio.LioDriver.adopt` reads that from the kernel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from ringway.engine.lio import foreign_attributes
from ringway.errors import UsageError
from ringway.model import (
    MAX_LUN,
    MAX_TARGET,
    BackstoreSpec,
    EndpointSpec,
    EngineKind,
    LunSpec,
    Naa,
    Protection,
    SpecKind,
)
from ringway.model.validation import reason

_FABRIC: Final = "vhost"
_PROTECTION: Final = {0: Protection.NONE, 1: Protection.TYPE1, 3: Protection.TYPE3}
_BLOCK: Final = 512
_MAX_NOTE: Final = 500
_MAX_DIGITS: Final = 20


class Store(Struct):
    """One of ``storage_objects``."""

    name: str
    plugin: str
    dev: str | None = None
    size: int | None = None
    wwn: str | None = None
    nullio: bool = False
    readonly: bool = False
    aio: bool = False
    write_back: bool = True
    attributes: dict[str, int | str] = field(default_factory=dict)


class Lun(Struct):
    """One of a portal group's ``luns``."""

    index: int
    storage_object: str


class Group(Struct):
    """One of a target's ``tpgs``."""

    tag: int = 1
    luns: list[Lun] = field(default_factory=list)
    attributes: dict[str, int | str] = field(default_factory=dict)
    node_acls: list[Any] = field(default_factory=list)


class Target(Struct):
    """One of ``targets``."""

    fabric: str
    wwn: str
    tpgs: list[Group] = field(default_factory=list)


class Document(Struct):
    """The file. What else is in it is other fabrics' business."""

    storage_objects: list[Store] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


class Imported(Struct, frozen=True):
    """What a file came to.

    :param endpoints: go by their WWPN; what the file does not say is left open.
    :param notes: what was left out or is another now, a line each.
    """

    endpoints: tuple[EndpointSpec, ...]
    notes: tuple[str, ...] = ()


class Unfit(Exception):
    """Something in the file that the kernel engine has no word for."""


def read_saveconfig(text: str) -> Imported:
    """Read a file. Nothing is looked up on this host.

    :raises UsageError: it is no such file.
    """
    try:
        document = msgspec.json.decode(text.encode(), type=Document)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UsageError(
            f"this is no saveconfig.json: {printable(reason(error))}",
            hint="it lies in /etc/target, or targetcli saveconfig writes one",
        ) from error
    stores = {f"/backstores/{store.plugin}/{store.name}": store for store in document.storage_objects}
    endpoints, notes, mapped = [], [], set()
    for target in document.targets:
        try:
            endpoints.append(_checked(_endpoint(target, stores)))
            mapped |= {lun.storage_object for group in target.tpgs for lun in group.luns}
        except msgspec.ValidationError as error:
            notes.append(f"{target.fabric} {target.wwn}: skipped: {reason(error)}")
        except (Unfit, UsageError) as error:
            notes.append(f"{target.fabric} {target.wwn}: skipped: {error}")
    notes += [f"{path}: skipped: no endpoint maps it" for path in stores if path not in mapped]
    notes += _changed(stores, mapped)
    return Imported(tuple(endpoints), tuple(map(printable, notes)))


def printable(text: str) -> str:
    """A line for a person, of a length that one reads, whatever a file had in it."""
    return "".join(each if each.isprintable() else "?" for each in text[:_MAX_NOTE])


def _checked(spec: EndpointSpec) -> EndpointSpec:
    """What a client could have asked for as well: no path with a NUL, no size that no disk has.

    :raises msgspec.ValidationError: it could not. :raises UsageError: its LUNs are not as LUNs can be.
    """
    return msgspec.json.decode(msgspec.json.encode(spec), type=EndpointSpec)


def _endpoint(target: Target, stores: dict[str, Store]) -> EndpointSpec:
    """:raises Unfit: it is none that this engine makes."""
    if target.fabric != _FABRIC:
        raise Unfit("another fabric")
    if not target.tpgs:
        raise Unfit("it has no portal group")
    protections = {_number(group.attributes, "fabric_prot_type", 0) for group in target.tpgs}
    if len(protections) > 1 or not protections <= _PROTECTION.keys():
        raise Unfit("its portal groups have no one fabric_prot_type of 0, 1 or 3")
    return EndpointSpec(
        name=target.wwn,
        engine=EngineKind.LIO,
        wwpn=msgspec.convert(target.wwn, Naa),
        protection=_PROTECTION[protections.pop()],
        luns=tuple(_lun(group, lun, stores) for group in target.tpgs for lun in group.luns),
    )


def _lun(group: Group, lun: Lun, stores: dict[str, Store]) -> LunSpec:
    if not 0 <= group.tag <= MAX_TARGET or not 0 <= lun.index <= MAX_LUN:
        raise Unfit(f"LUN {lun.index} of portal group {group.tag} is out of reach of any guest")
    if lun.storage_object not in stores:
        raise Unfit(f"it maps {lun.storage_object}, which the file does not have")
    return LunSpec(group.tag, lun.index, _store(stores[lun.storage_object], stores))


def _store(store: Store, stores: dict[str, Store]) -> BackstoreSpec:
    """:raises Unfit: a plug-in that is unknown, or without what it needs."""
    kind = {
        "block": SpecKind.PATH,
        "fileio": SpecKind.PATH,
        "pscsi": SpecKind.PSCSI,
        "user": SpecKind.TCMU,
    }.get(store.plugin)
    if store.plugin == "ramdisk":
        kind = SpecKind.NULL if store.nullio else SpecKind.RAM
    if kind is None:
        raise Unfit(f"backstores of kind {store.plugin} are unknown")
    bare = kind in (SpecKind.PSCSI, SpecKind.TCMU)
    path = store.name if kind is SpecKind.TCMU else store.dev
    attributes = {} if bare else foreign_attributes.kept(store.attributes, store.plugin)
    attributes.pop("emulate_3pc", None)
    if str(store.attributes.get("emulate_3pc", 1)) == "0":
        attributes["emulate_3pc"] = "0"
    if store.plugin == "fileio" and not store.write_back:
        attributes["emulate_write_cache"] = "0"
    return BackstoreSpec(
        kind,
        path=path,
        size_bytes=store.size if store.plugin in ("fileio", "ramdisk") else None,
        readonly=store.readonly,
        direct=store.aio,
        block_size=None if bare else _block_size(store),
        serial=None if bare else store.wwn,
        name=_name(store, stores),
        attributes=attributes,
    )


def _name(store: Store, stores: dict[str, Store]) -> str:
    """Names are unique for each plug-in there, and for all of them here."""
    same = [other.plugin for other in stores.values() if other.name == store.name]
    return store.name if same[0] == store.plugin else f"{store.name}:{store.plugin}"


def _block_size(store: Store) -> int | None:
    size = _number(store.attributes, "block_size", _BLOCK)
    return None if size == _BLOCK else size


def _number(attributes: dict[str, int | str], name: str, default: int) -> int:
    """:raises Unfit: an attribute is there, and is no number."""
    value = attributes.get(name, default)
    if isinstance(value, str) and not (value.isdecimal() and len(value) <= _MAX_DIGITS):
        raise Unfit(f"{name} is '{value}'")
    return int(value)


def _changed(stores: dict[str, Store], mapped: set[str]) -> Iterator[str]:
    for path in sorted(mapped):
        if str(stores[path].attributes.get("emulate_3pc", 0)) == "1":
            yield f"{path}: emulate_3pc is off now: with it a guest can copy from other guests' disks"


def write_saveconfig(specs: Iterable[EndpointSpec]) -> str:
    """Write endpoints of this engine so that targetcli restores them, but for their nexus.

    :raises OSError: a file that is served in whole is not there, and its size has to be written.
    """
    chosen = [spec for spec in specs if spec.engine is EngineKind.LIO]
    stores = {lun.backstore.name: lun.backstore for spec in chosen for lun in spec.luns}
    document = {
        "fabric_modules": [],
        "storage_objects": [
            _written_store(store) for store in stores.values() if store.kind is not SpecKind.TCMU
        ],
        "targets": [_written_target(spec) for spec in chosen],
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _plugin(store: BackstoreSpec) -> str:
    if store.kind in (SpecKind.RAM, SpecKind.NULL):
        return "ramdisk"
    if store.kind is not SpecKind.PATH:
        return {SpecKind.PSCSI: "pscsi", SpecKind.TCMU: "user"}[store.kind]
    assert store.path is not None
    return "fileio" if os.path.isfile(store.path) else "block"


def _written_store(store: BackstoreSpec) -> dict[str, Any]:
    plugin = _plugin(store)
    written: dict[str, Any] = {"name": store.name, "plugin": plugin, "alua_tpgs": []}
    if store.serial is not None:
        written["wwn"] = store.serial
    if store.path is not None:
        written["dev"] = store.path
    if plugin == "block":
        written |= {"readonly": store.readonly, "write_back": False}
    elif plugin == "fileio":
        assert store.path is not None
        size = store.size_bytes if store.size_bytes is not None else os.path.getsize(store.path)
        write_back = store.attributes.get("emulate_write_cache") != "0"
        written |= {"size": size, "write_back": write_back, "aio": store.direct}
    elif plugin == "ramdisk":
        written |= {"size": store.size_bytes} | ({"nullio": True} if store.kind is SpecKind.NULL else {})
    if plugin != "pscsi":
        written["attributes"] = _written_attributes(store)
    return written


def _written_attributes(store: BackstoreSpec) -> dict[str, int | str]:
    texts = {"emulate_3pc": "0", **store.attributes}
    if store.block_size is not None:
        texts["block_size"] = str(store.block_size)
    return {name: int(text) if text.isdecimal() else text for name, text in texts.items()}


def _written_target(spec: EndpointSpec) -> dict[str, Any]:
    targets = sorted({lun.target for lun in spec.luns}) or [0]
    return {"fabric": _FABRIC, "wwn": spec.wwpn, "tpgs": [_written_group(spec, target) for target in targets]}


def _written_group(spec: EndpointSpec, target: int) -> dict[str, Any]:
    number = next(number for number, kind in _PROTECTION.items() if kind is spec.protection)
    return {
        "tag": target,
        "enable": True,
        "attributes": {"fabric_prot_type": number},
        "node_acls": [],
        "portals": [],
        "luns": [_written_lun(lun) for lun in spec.luns if lun.target == target],
    }


def _written_lun(lun: LunSpec) -> dict[str, Any]:
    store = lun.backstore
    return {
        "index": lun.lun,
        "storage_object": f"/backstores/{_plugin(store)}/{store.name}",
        "alias": store.name,
    }
