"""Put an endpoint together from its port and its backstores, and take it apart again.

Each step can be undone; what belongs to others is left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ringway.engine.lio import foreign_attributes
from ringway.engine.lio.backstores import DEFAULTS, Backstores, usual_place
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.looks import Looks
from ringway.engine.lio.ports import Ports, Undo, targets_of
from ringway.engine.lio.records import Record, Records
from ringway.errors import ConflictError, NotFoundError, RingwayError, UsageError
from ringway.model import BackstoreSpec, EndpointSpec, LunSpec, SpecKind

Places = dict[str, str]
"""Where backstores lie that are not at the place where we would put them, by name."""


_USUAL: Final = foreign_attributes.DEFAULTS | DEFAULTS


class Assembly:
    """The pieces of :class:`ringway.engine.lio.LioDriver`'s changes. Its caller holds the endpoint's lock,
    and those of its backstores.
    """

    def __init__(
        self, fs: Configfs, ports: Ports, backstores: Backstores, looks: Looks, records: Records
    ) -> None:
        self._fs = fs
        self._ports = ports
        self._backstores = backstores
        self._looks = looks
        self._records = records

    def places(self, spec: EndpointSpec, known: Record | None, *, fresh: bool) -> Places:
        """Where backstores lie that others made: as it was noted, or as the port's links say.

        :param fresh: whether the port has just been made, and has no links.
        """
        assert spec.wwpn is not None
        found = dict(known.places) if known is not None else {}
        there = self._looks.mappings(spec.wwpn) if known is None and not fresh else {}
        for lun in spec.luns:
            name = lun.backstore.name
            assert name is not None
            mapping = there.get((lun.target, lun.lun))
            if mapping is not None and mapping.device is not None:
                found[name] = mapping.device
            elif name not in found and (elsewhere := self._records.place_of(name)) is not None:
                found[name] = elsewhere
        wanted = stores_of(spec)
        return {name: path for name, path in found.items() if name in wanted and not is_usual(path, name)}

    def add_all(self, spec: EndpointSpec, places: Places, undo: Undo) -> None:
        """Have backstores and LUNs of a port that is there. :raises RingwayError: one of them cannot be."""
        paths = {name: self.have(store, places, undo) for name, store in stores_of(spec).items()}
        for lun in spec.luns:
            self._map(spec, lun, paths[_name(lun)], undo)

    def add(self, spec: EndpointSpec, luns: Iterable[LunSpec], places: Places, undo: Undo) -> None:
        """Have these LUNs. :raises RingwayError: one of them cannot be."""
        for lun in luns:
            self._map(spec, lun, self.have(lun.backstore, places, undo), undo)

    def is_there(self, store: BackstoreSpec, places: Places) -> bool:
        """Whether the kernel has a backstore that :meth:`have` would take."""
        place = places.get(store.name or "")
        return place is not None and self._fs.exists(place)

    def have(self, store: BackstoreSpec, places: Places, undo: Undo) -> str:
        """Have a backstore. :returns: its path. :raises RingwayError: it cannot be."""
        assert store.name is not None
        if not self.is_there(store, places):
            return self._backstores.make(store, undo)
        place = places[store.name]
        self._backstores.check_same(store, place)
        return place

    def take(self, spec: EndpointSpec, luns: Iterable[LunSpec], places: Places, undo: Undo) -> None:
        """Take LUNs away; undone, they are there again, and their backstores with them."""
        assert spec.wwpn is not None
        for lun in luns:
            self._ports.unmap(spec.wwpn, (lun.target, lun.lun), lun.backstore.name)
            undo(lambda lun=lun: self._give_back(spec, lun, places))  # type: ignore[misc]

    def take_luns(self, spec: EndpointSpec) -> None:
        """Take away an endpoint's LUNs, also from a guest that uses them."""
        assert spec.wwpn is not None
        for lun in spec.luns:
            self._ports.unmap(spec.wwpn, (lun.target, lun.lun), lun.backstore.name)

    def drop_port(self, spec: EndpointSpec) -> None:
        """Remove a port that has lost its LUNs, and what others put there since.

        :raises BusyError: a guest has come.
        """
        assert spec.wwpn is not None
        if self._ports.remove_empty(spec.wwpn, targets_of(spec)):
            return
        for address in self._ports.addresses(spec.wwpn):
            self._ports.unmap(spec.wwpn, address)
        self.drop_groups(spec, self._ports.targets(spec.wwpn))
        self._ports.remove(spec.wwpn)

    def set_attributes(self, spec: EndpointSpec, old: LunSpec, new: LunSpec, undo: Undo) -> None:
        """Change attributes of a disk that stays.

        :raises UsageError: one is left out whose default is unknown. :raises RingwayError: as the kernel
        says.
        """
        assert spec.wwpn is not None
        device = self._ports.mapping(spec.wwpn, (new.target, new.lun)).device
        if device is None:
            raise NotFoundError(f"LUN {new.target}:{new.lun} is not there any more")
        before, after = old.backstore.attributes, new.backstore.attributes
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        for name in before.keys() - after.keys():
            if name not in _USUAL:
                raise UsageError(
                    f"attribute '{name}' has no known default", hint="say which value it shall have"
                )
            changed[name] = _USUAL[name]
        for name, value in changed.items():
            there = self._fs.read_or(f"{device}/attrib/{name}")
            if (
                there != value
            ):  # the kernel refuses some while a LUN maps the disk, also what would change nothing
                self._backstores.set_attributes(device, {name: value})
                undo(lambda name=name, there=there: self._backstores.set_attributes(device, {name: there}))  # type: ignore[misc]

    def take_strays(self, spec: EndpointSpec, places: Places) -> set[str]:
        """Take away LUNs that are not wanted, or map another disk: a change was cut off.

        :returns: names of the backstores that are mapped as they shall be.
        """
        assert spec.wwpn is not None
        wanted = {(lun.target, lun.lun): lun.backstore for lun in spec.luns}
        right = set()
        for address in self._ports.addresses(spec.wwpn):
            device = self._ports.mapping(spec.wwpn, address).device
            store = wanted.get(address)
            if device is not None and store is not None and self._is(device, store, places):
                right.add(str(store.name))
            elif device is not None or store is None:
                self._ports.unmap(spec.wwpn, address)
                if device is not None and is_usual(device, device.rpartition("/")[2]):
                    self._backstores.remove(device)
        return right

    def _is(self, device: str, store: BackstoreSpec, places: Places) -> bool:
        """Whether a device is a backstore's: by its place, and by what it says of itself."""
        assert store.name is not None
        if store.kind is SpecKind.TCMU:
            return True
        if device not in possible_paths(store, store.name, places):
            return False
        try:
            self._backstores.check_same(store, device)
        except ConflictError:
            return False
        return True

    def add_groups(self, spec: EndpointSpec, targets: Iterable[int], undo: Undo) -> None:
        """Have portal groups."""
        for target in sorted(targets):
            self._ports.make_group(spec, target, undo)

    def drop_groups(self, spec: EndpointSpec, targets: Iterable[int]) -> None:
        """Remove portal groups that have no LUN any more. :raises BusyError: a guest is attached."""
        assert spec.wwpn is not None
        for target in sorted(targets):
            self._ports.remove_group(spec.wwpn, target)

    def drop_stores(self, luns: Iterable[LunSpec], places: Places, *, kept: Iterable[str] = ()) -> None:
        """Remove backstores of LUNs that are gone, unless another LUN maps them. A handler's stays."""
        stores = {_name(lun): lun.backstore for lun in luns if lun.backstore.kind is not SpecKind.TCMU}
        for name in stores.keys() - set(kept):
            for path in possible_paths(stores[name], name, places):
                self._backstores.remove(path)

    def _map(self, spec: EndpointSpec, lun: LunSpec, path: str, undo: Undo) -> None:
        assert spec.wwpn is not None
        self._ports.map(spec.wwpn, (lun.target, lun.lun), _name(lun), path, undo)

    def _give_back(self, spec: EndpointSpec, lun: LunSpec, places: Places) -> None:
        with rolled_back() as undo:
            self.add_groups(spec, {lun.target} & set(targets_of(spec)), undo)
            self.add(spec, (lun,), places, undo)


@contextlib.contextmanager
def rolled_back() -> Iterator[Undo]:
    """Undo, in reverse order, when the block fails. What cannot be undone is added to the error."""
    steps: list[Callable[[], object]] = []
    try:
        yield steps.append
    except BaseException as error:
        for step in reversed(steps):
            try:
                step()
            except (RingwayError, OSError) as failed:
                error.add_note(f"it could not be undone: {failed}")
        raise


def stores_of(spec: EndpointSpec) -> dict[str, BackstoreSpec]:
    """By name; a resolved specification has names."""
    return {_name(lun): lun.backstore for lun in spec.luns}


def is_usual(path: str, name: str) -> bool:
    """Whether a backstore lies where we would put it."""
    return path == usual_place(path.removeprefix("core/").partition("/")[0].rpartition("_")[0], name)


def possible_paths(store: BackstoreSpec, name: str, places: Places) -> tuple[str, ...]:
    """Where it may lie. What a path leads to may be gone, so both plug-ins are asked."""
    if name in places:
        return (places[name],)
    plugins = {SpecKind.PATH: ("fileio", "iblock"), SpecKind.PSCSI: ("pscsi",), SpecKind.TCMU: ()}.get(
        store.kind, ("rd_mcp",)
    )
    return tuple(usual_place(plugin, name) for plugin in plugins)


def paths_of(record: Record) -> Iterator[tuple[str, str]]:
    """Names of an endpoint's backstores, and where they may lie; those too that a change is about."""
    for lun in (*record.passing, *record.spec.luns):
        name = _name(lun)
        yield from ((name, path) for path in possible_paths(lun.backstore, name, record.places))


def difference(one: EndpointSpec, other: EndpointSpec) -> tuple[LunSpec, ...]:
    """LUNs of ``one`` that ``other`` has not, or has otherwise."""
    return tuple(lun for lun in one.luns if lun not in other.luns)


def _name(lun: LunSpec) -> str:
    assert lun.backstore.name is not None
    return lun.backstore.name
