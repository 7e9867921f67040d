"""Specifications compared: what a new one keeps of the old one, and what is between two. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from ringway.errors import NotFoundError, UsageError
from ringway.model import EndpointSpec, LunSpec

Address = tuple[int, int]
_CHOSEN: Final = ("wwpn", "nexus")  #: ``None`` in a change means: as it is
_CHOSEN_OF_BACKSTORE: Final = ("name", "serial")


def by_address(luns: Iterable[LunSpec]) -> dict[Address, LunSpec]:
    """LUNs by where a guest finds them."""
    return {(lun.target, lun.lun): lun for lun in luns}


def inherit(old: EndpointSpec, new: EndpointSpec) -> EndpointSpec:
    """Give ``new`` what was chosen for ``old`` and what it leaves open: names, and serials of the same disks.

    :raises UsageError: the engine or the device would be another.
    """
    for field in ("engine", "device"):
        if getattr(old, field) != getattr(new, field):
            raise UsageError(
                f"the {field} of endpoint '{old.name}' cannot be changed",
                hint="delete the endpoint, and create it anew",
            )
    before = by_address(old.luns)
    luns = tuple(_inherit_lun(before.get((lun.target, lun.lun)), lun) for lun in new.luns)
    return replace(new, luns=luns, **_left_open(old, new, _CHOSEN))


def _inherit_lun(old: LunSpec | None, new: LunSpec) -> LunSpec:
    if old is None or (old.backstore.kind, old.backstore.path) != (new.backstore.kind, new.backstore.path):
        return new
    kept = _left_open(old.backstore, new.backstore, _CHOSEN_OF_BACKSTORE)
    return replace(new, backstore=replace(new.backstore, **kept))


def _left_open(old: object, new: object, fields: tuple[str, ...]) -> dict[str, str]:
    return {field: getattr(old, field) for field in fields if getattr(new, field) is None}


def with_lun(spec: EndpointSpec, lun: LunSpec) -> EndpointSpec:
    """``spec`` with one LUN more. :raises UsageError: its address is taken."""
    return replace(spec, luns=(*spec.luns, lun))


def lun_of(spec: EndpointSpec, address: Address) -> LunSpec:
    """:raises NotFoundError: there is no such LUN."""
    found = by_address(spec.luns).get(address)
    if found is None:
        target, lun = address
        raise NotFoundError(
            f"endpoint '{spec.name}' has no LUN {target}:{lun}", hint=f"see: ringway lun list {spec.name}"
        )
    return found


def replace_lun(spec: EndpointSpec, address: Address, by: LunSpec | None) -> EndpointSpec:
    """``spec`` with another LUN at an address, or with none. :raises NotFoundError: there is none."""
    old = lun_of(spec, address)
    luns = (by if lun is old else lun for lun in spec.luns)
    return replace(spec, luns=tuple(lun for lun in luns if lun is not None))


def with_size(spec: EndpointSpec, address: Address, size_bytes: int | None) -> EndpointSpec:
    """``spec`` with another size of a LUN; ``None``: it has one of its own.

    :raises UsageError: it has one of its own, and another is asked for. :raises NotFoundError: no such LUN.
    """
    old = lun_of(spec, address)
    if size_bytes is None:
        return spec
    if old.backstore.size_bytes is None:
        raise UsageError(
            f"'{old.backstore}' has a size of its own",
            hint="make the disk larger, then resize without a size",
        )
    return replace_lun(spec, address, replace(old, backstore=replace(old.backstore, size_bytes=size_bytes)))


def half_done(old: EndpointSpec, new: EndpointSpec, there: set[Address]) -> EndpointSpec:
    """What an endpoint is on which a change from ``old`` to ``new`` was cut short, going by its LUNs."""
    before, after = by_address(old.luns), by_address(new.luns)
    luns = (before.get(address) or after.get(address) for address in sorted(there))
    return replace(old, luns=tuple(lun for lun in luns if lun is not None))


def is_same(one: EndpointSpec, other: EndpointSpec) -> bool:
    """Whether two say the same, in whichever order."""
    return by_address(one.luns) == by_address(other.luns) and replace(one, luns=other.luns) == other


def differences(old: EndpointSpec, new: EndpointSpec) -> Iterator[str]:
    """Lines for a person: what is another in ``new``."""
    before, after = by_address(old.luns), by_address(new.luns)
    for address in sorted(before.keys() | after.keys()):
        yield from _lun_difference(address, before.get(address), after.get(address))
    for field in EndpointSpec.__struct_fields__:
        was, becomes = getattr(old, field), getattr(new, field)
        if field != "luns" and was != becomes:
            yield f"{field}: {was} -> {becomes}"


def _lun_difference(address: Address, old: LunSpec | None, new: LunSpec | None) -> Iterator[str]:
    name = f"lun {address[0]}:{address[1]}"
    if new is None:
        yield f"{name}: remove {old.backstore if old else ''}"
    elif old is None:
        yield f"{name}: add {new.backstore}"
    else:
        if old.backstore != new.backstore:
            yield f"{name}: replace {old.backstore} by {new.backstore}"
        if old.limits != new.limits:
            yield f"{name}: limits {_limits(old)} -> {_limits(new)}"


def _limits(lun: LunSpec) -> str:
    limits = lun.limits
    return f"{limits.iops or 'no'} iops, {limits.bytes_per_s or 'no'} B/s, {limits.burst_s:g} s burst"


def description(spec: EndpointSpec) -> tuple[str, ...]:
    """Lines for a person: what a new endpoint is."""
    disks = (f"lun {lun.target}:{lun.lun}: add {lun.backstore}" for lun in spec.luns)
    return (f"engine {spec.engine}, device {spec.device}", *disks)
