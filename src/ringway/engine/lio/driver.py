"""The kernel engine: endpoints as objects of the kernel's target, fabric ``vhost``."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from ringway.engine.base import Notify
from ringway.engine.lio import checks, choices
from ringway.engine.lio.adoption import Adoption
from ringway.engine.lio.assembly import Assembly, difference, paths_of, rolled_back, stores_of
from ringway.engine.lio.backstores import Backstores, same_disk, served_size
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.counters import statistics_of
from ringway.engine.lio.foreign_media import ForeignMedia
from ringway.engine.lio.guests import guest_of
from ringway.engine.lio.locks import Locks
from ringway.engine.lio.looks import Looks
from ringway.engine.lio.modules import Kernel
from ringway.engine.lio.ports import Ports, port_path, targets_of
from ringway.engine.lio.records import Record, Records
from ringway.engine.lio.settings import Settings
from ringway.engine.lio.sightings import Sightings
from ringway.errors import BusyError, ConflictError, DegradedError, NotFoundError, RingwayError, UsageError
from ringway.model import (
    BackstoreInfo,
    BackstoreSpec,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    EngineReport,
    LunSpec,
    SpecKind,
    TargetStatistics,
)

_LOOK_EVERY_S: Final = 10.0
_LOOK_SHARE: Final = 0.003  #: of a CPU that looking takes at most: with very many endpoints it is rare
_LOOKS: Final = 3  #: at what changes under the eyes
_FIXED: Final = ("name", "engine", "device", "wwpn", "nexus", "protection")


class LioDriver:
    """As :class:`ringway.engine.base.Driver` says.

    An endpoint's objects are a target port, a portal group for each target number in use, and backstores.
    Which of the kernel's objects are ours is noted in ``settings.runtime``; all others are foreign, and stay
    as they are.
    """

    kind = EngineKind.LIO

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._fs = Configfs(self._settings.configfs, self._settings.kmsg)
        self._kernel = Kernel(self._settings, self._fs)
        self._records = Records(self._settings.runtime / "lio")
        self._ports = Ports(self._fs)
        self._backstores = Backstores(self._fs, self._settings)
        self._looks = Looks(self._fs, self._ports, self._backstores, self._records)
        self._assembly = Assembly(self._fs, self._ports, self._backstores, self._looks, self._records)
        self._foreign = ForeignMedia(self._fs, self._ports, self._backstores, self._records)
        self._identities = checks.Identities()
        self._locks = Locks()
        self._sightings = Sightings()
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    # What there is, and what may be

    def probe(self) -> EngineReport:
        """As the protocol says."""
        return self._kernel.report()

    def resolve(self, spec: EndpointSpec) -> EndpointSpec:
        """As the protocol says; LUN numbers that no guest could reach are refused."""
        return choices.resolve(spec)

    def check(self, spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
        """As the protocol says."""
        assert spec.wwpn is not None
        self._identities.forget()
        checks.check_names(spec, others)
        self._check_port(spec)
        stores = [store for store in stores_of(spec).values() if not self._is_mapped_by_us(spec, store)]
        for store in stores:
            checks.check_medium(store)
        checks.check_sharing(spec, others, self._identities)
        for store in stores:
            checks.check_unused(store)

    def check_foreign(self, spec: EndpointSpec, *, restoring: bool = False) -> None:
        """As the protocol says, of files and devices in whichever fabric's use."""
        self._foreign.refuse(spec, restoring=restoring)

    def _check_port(self, spec: EndpointSpec) -> None:
        """:raises ConflictError: somebody else made the port. Who knows its nexus takes it over."""
        assert spec.wwpn is not None
        if self._records.owner_of(spec.wwpn) is not None or not self._fs.exists(port_path(spec.wwpn)):
            return
        if any(self._ports.nexus(spec.wwpn, target) != spec.nexus for target in targets_of(spec)):
            raise ConflictError(
                f"the kernel has a target port {spec.wwpn} that is not Ringway's",
                hint="take it over with: ringway config import --adopt; or choose another WWPN",
            )

    def _is_mapped_by_us(self, spec: EndpointSpec, store: BackstoreSpec) -> bool:
        """Whether this endpoint has it already: who adds a LUN does not have the others looked at."""
        record = self._records.get(spec.name)
        return record is not None and store in stores_of(record.spec).values()

    # Changes

    def create(self, spec: EndpointSpec) -> None:
        """As the protocol says. An endpoint that others made and that is as ``spec`` says becomes ours."""
        assert spec.wwpn is not None
        for store in stores_of(spec).values():
            checks.check_medium(store)
        self._kernel.make_ready()
        with self._alone(spec, state=EndpointState.STARTING), rolled_back() as undo:
            known = self._records.get(spec.name)
            if known is None:
                undo(lambda: self._records.drop(spec.name))
            passing = _left_over(known, spec)
            adopted = known.adopted if known is not None else self._fs.exists(port_path(spec.wwpn))
            before = known.places if known is not None else {}
            self._records.put(Record(spec, before, passing, adopted))
            made = self._ports.make(spec, undo)
            places = self._assembly.places(spec, known, fresh=made)
            if known is not None:
                right = self._assembly.take_strays(spec, places) if not made else set()
                self._assembly.drop_stores(passing, known.places, kept=right | _names_in_both(passing, spec))
            for store in stores_of(spec).values():
                if not self._assembly.is_there(store, places):
                    checks.check_unlocked(store)
            self._assembly.add_all(spec, places, undo)
            if places or passing:
                self._records.put(Record(spec, places, adopted=adopted))

    def update(self, old: EndpointSpec, new: EndpointSpec, *, force: bool = False) -> None:
        """As the protocol says: LUNs come and go, and attributes change. Guests see both at once."""
        choices.resolve(new)
        _check_change(old, new)
        kept = _retuned(old, new)
        gone = tuple(lun for lun in difference(old, new) if _address(lun) not in kept)
        come = tuple(lun for lun in difference(new, old) if _address(lun) not in kept)
        for lun in come:
            checks.check_medium(lun.backstore)
        parts, stays = self._assembly, _unchanged(old, new)
        with self._alone(old, new), rolled_back() as undo:
            self._check_detached(old, new, gone, force=force)
            known = self._records.get(old.name)
            places = parts.places(new, known, fresh=False)
            before = known.places if known is not None else {}
            adopted = known is not None and known.adopted
            self._records.put(Record(old, before, come, adopted))
            undo(lambda: self._records.put(Record(old, before, adopted=adopted)))
            parts.take(old, gone, before, undo)
            in_the_way = tuple(lun for lun in gone if _collides(lun, come))
            parts.drop_stores(in_the_way, before, kept=stays)
            parts.add_groups(new, set(targets_of(new)) - set(targets_of(old)), undo)
            parts.add(new, come, places, undo)
            for one, other in kept.values():
                parts.set_attributes(new, one, other, undo)
            parts.drop_groups(new, set(targets_of(old)) - set(targets_of(new)))
            parts.drop_stores((lun for lun in gone if lun not in in_the_way), before, kept=stays)
            self._records.put(Record(new, places, adopted=adopted))

    def take_back(self, name: str) -> None:
        """As the protocol says. What :meth:`create` took over is foreign again, with what was added to it."""
        record = self._records.get(name)
        if record is None or not record.adopted:
            self.delete(name)
            return
        with self._alone(record.spec):
            self._records.drop(name)

    def delete(self, name: str, *, force: bool = False) -> None:
        """As the protocol says. With ``force``, a guest that is attached loses its LUNs, and the kernel
        keeps the empty port until the guest lets go of it.

        :raises DegradedError: that is so; call again when the guest is gone.
        """
        record = self._records.get(name)
        if record is None:
            self._records.drop(name)
            return
        wwpn = record.spec.wwpn
        assert wwpn is not None
        with self._alone(record.spec, state=EndpointState.DELETING):
            attached = self._ports.holds_guest(wwpn, targets_of(record.spec))
            if attached and not force:
                raise self._attached(record.spec, "it is not deleted")
            self._assembly.take_luns(record.spec)
            if not attached:
                self._assembly.drop_port(record.spec)
            self._assembly.drop_stores((*record.passing, *record.spec.luns), record.places)
            if attached:
                holder = guest_of(wwpn)
                raise DegradedError(
                    f"the disks of '{name}' are gone; the kernel keeps its port while {holder} is there",
                    hint="stop that guest, or detach its controller; the rest is then removed",
                )
            self._records.drop(name)

    def resize(self, name: str, lun: LunSpec) -> None:
        """Look at a LUN's size again; guests have to rescan, for the kernel does not tell them.

        :raises UsageError: memory keeps its size.
        """
        record = self._record(name)
        store = lun.backstore
        if store.kind is not SpecKind.PATH:
            raise UsageError(f"a {store.kind} disk keeps its size", hint="only a file or a device can change")
        assert record.spec.wwpn is not None
        device = self._ports.mapping(record.spec.wwpn, (lun.target, lun.lun)).device
        if device is None:
            raise NotFoundError(
                f"'{name}' has no LUN {lun.target}:{lun.lun}", hint=f"ringway lun list {name}"
            )
        checks.check_medium(store)
        with self._alone(record.spec):
            if device.startswith("core/fileio_"):
                self._backstores.resize(device, served_size(store))

    def adopt(self, names: tuple[str, ...] = ()) -> tuple[EndpointSpec, ...]:
        """Describe foreign endpoints as they are, for :meth:`create` to take over. Nothing changes by it.

        :param names: their WWPNs; all foreign ones if there is none.
        :raises NotFoundError: there is no such port. :raises ConflictError: it is ours already.
        :raises RingwayError: it is one that cannot be kept as it is.
        """
        for name in names:
            if (owner := self._records.owner_of(name)) is not None:
                raise ConflictError(f"endpoint '{owner}' has {name} already")
            if not self._fs.exists(port_path(name)):
                raise NotFoundError(f"the kernel has no target port '{name}'", hint="ringway endpoint list")
        taken = {name: path for record in self._records.all() for name, path in paths_of(record)}
        adoption = Adoption(self._fs, self._ports, self._backstores, taken)
        foreign = [wwpn for wwpn in self._looks.wwpns() if self._records.owner_of(wwpn) is None]
        return tuple(adoption.describe(wwpn, self._looks.mappings(wwpn)) for wwpn in names or foreign)

    # Looks

    def list(self) -> tuple[EndpointInfo, ...]:
        """As the protocol says. What is remembered is compared with the names that are in the kernel now."""
        return tuple(info for wwpn in self._looks.wwpns() if (info := self._info(wwpn)) is not None)

    def show(self, name: str) -> EndpointInfo:
        """As the protocol says; a foreign endpoint goes by its WWPN."""
        record = self._records.get(name)
        wwpn = name if record is None else record.spec.wwpn
        assert wwpn is not None
        if not self._fs.exists(port_path(wwpn)) or (record is None and self._records.owner_of(name)):
            raise NotFoundError(f"there is no endpoint '{name}' in the kernel", hint="ringway endpoint list")
        begin = self._sightings.now
        return self._sightings.remember(wwpn, self._look(wwpn, record, ask=True), begin)

    def backstores(self) -> tuple[BackstoreInfo, ...]:
        """As the protocol says, those of other fabrics too."""
        ours = {path for record in self._records.all() for _, path in paths_of(record)}
        return tuple(self._looks.backstore(path, foreign=path not in ours) for path in self._looks.devices())

    def statistics(self, name: str) -> TargetStatistics:
        """As the protocol says, in the kernel's coarse units: see :mod:`ringway.engine.lio.counters`."""
        record = self._records.get(name)
        wwpn = record.spec.wwpn if record is not None else name
        assert wwpn is not None
        if not self._fs.exists(port_path(wwpn)):
            raise NotFoundError(f"there is no endpoint '{name}' in the kernel", hint="ringway endpoint list")
        return statistics_of(self._fs, wwpn, self._looks.mappings(wwpn))

    def watch(self, notify: Notify) -> None:
        """Tell of guests that come and go, and of what others changed. The kernel tells nothing by itself:
        this looks every ten seconds, or as seldom as costs a three-hundredth of a CPU.
        """
        self._watcher = threading.Thread(
            target=self._look_around, args=(notify,), name="lio-watch", daemon=True
        )
        self._watcher.start()

    def close(self) -> None:
        """As the protocol says."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    # Pieces

    def _look_around(self, notify: Notify) -> None:
        used_s = 0.0
        while not self._closing.wait(max(_LOOK_EVERY_S, used_s / _LOOK_SHARE)):
            begin_s = time.thread_time()
            with contextlib.suppress(RingwayError, OSError):  # the next round may fare better
                self.look_again(notify)
            used_s = time.thread_time() - begin_s

    def look_again(self, notify: Notify) -> None:
        """One round of :meth:`watch`: tell of what is not as it was seen last."""
        present = set(self._looks.wwpns())
        for gone in self._sightings.take_gone(present):
            notify(gone.name)
        for wwpn in present:
            before = self._sightings.get(wwpn)
            with contextlib.suppress(RingwayError, OSError):  # it is going just now
                if not self._seems_same(wwpn, before):
                    after = self.show(self._records.owner_of(wwpn) or wwpn)
                    if before is not None and before != after:
                        notify(after.name)

    def _seems_same(self, wwpn: str, before: EndpointInfo | None) -> bool:
        """A glance at an endpoint of ours; foreign ones are read in whole."""
        if self._sightings.is_changing(wwpn):
            return True
        owner = self._records.owner_of(wwpn)
        record = self._records.get(owner) if owner is not None else None
        if record is None or before is None or before.name != owner or before.connected is None:
            return False
        if before.state is EndpointState.DEGRADED or not self._looks.is_whole(record.spec):
            return False
        return self._connected(record, whole=True) == before.connected

    def _info(self, wwpn: str) -> EndpointInfo | None:
        """What was seen last of a port, or a first look; ``None``: it has just gone."""
        for _ in range(_LOOKS):
            begin = self._sightings.now
            known = self._sightings.get(wwpn)
            owner = self._records.owner_of(wwpn)
            if known is not None and known.name == (owner or wwpn):
                return known
            record = self._records.get(owner) if owner is not None else None
            seen = self._look(wwpn, record, ask=False)
            if self._sightings.is_fresh(wwpn, begin):
                there = self._fs.exists(port_path(wwpn))
                return self._sightings.remember(wwpn, seen, begin) if there else None
        return None

    def _look(self, wwpn: str, record: Record | None, *, ask: bool) -> EndpointInfo:
        """Read a port. :param ask: whether a guest is there, which is more than a look."""
        if record is None:
            return self._looks.foreign(wwpn)
        return self._looks.ours(record, connected=self._connected(record) if ask else None)

    def _connected(self, record: Record, *, whole: bool = False) -> bool | None:
        """Whether a guest is there; ``None`` while the endpoint is being changed, which takes no question.

        :param whole: all its LUNs have just been seen.
        """
        wwpn = record.spec.wwpn
        assert wwpn is not None
        with self._locks.try_hold(f"endpoint/{record.spec.name}") as held:
            if not held:
                return None
            if whole and record.spec.luns:
                return self._ports.holds_guest(wwpn, targets_of(record.spec))
            return self._ports.is_attached(wwpn, self._ports.targets(wwpn))

    def _record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            raise NotFoundError(
                f"there is no endpoint '{name}' of ours in the kernel", hint="ringway endpoint list"
            )
        return record

    @contextlib.contextmanager
    def _alone(self, *specs: EndpointSpec, state: EndpointState | None = None) -> Iterator[None]:
        """Hold what an endpoint is made of: a shared backstore does not go while another LUN comes to it.

        :param specs: of one endpoint, as it is and as it shall be. :param state: what it is meanwhile.
        """
        names = {f"store/{name}" for spec in specs for name in stores_of(spec)}
        with (
            self._locks.hold({f"endpoint/{specs[0].name}"} | names),
            self._sightings.changing(specs[0], state),
        ):
            yield

    def _check_detached(
        self, old: EndpointSpec, new: EndpointSpec, gone: tuple[LunSpec, ...], *, force: bool
    ) -> None:
        """:raises BusyError: a guest would lose a LUN. :raises ConflictError: it would not see a new
        target.
        """
        assert old.wwpn is not None
        fresh = set(targets_of(new)) - set(targets_of(old))
        if not (gone or fresh) or not self._ports.is_attached(old.wwpn, targets_of(old)):
            return
        if gone and not force:
            raise self._attached(old, f"LUN {gone[0].target}:{gone[0].lun} is not taken away")
        if fresh:
            raise ConflictError(
                f"a guest that is attached does not see target {min(fresh)} before its next start",
                hint=f"add the LUN to target {targets_of(old)[0]}, or stop the guest first",
            )

    def _attached(self, spec: EndpointSpec, what: str) -> BusyError:
        assert spec.wwpn is not None
        holder = guest_of(spec.wwpn)
        return BusyError(
            f"{holder} is attached to '{spec.name}': {what}",
            holder=holder,
            hint="detach it first; --force takes the disk away all the same",
        )


def _address(lun: LunSpec) -> tuple[int, int]:
    return lun.target, lun.lun


def _retuned(old: EndpointSpec, new: EndpointSpec) -> dict[tuple[int, int], tuple[LunSpec, LunSpec]]:
    """LUNs whose disks differ in attributes alone, by address: as they are, and as they shall be."""
    before = {_address(lun): lun for lun in old.luns}
    pairs = ((before[_address(lun)], lun) for lun in new.luns if _address(lun) in before)
    return {
        _address(one): (one, other)
        for one, other in pairs
        if one != other and same_disk(one.backstore, other.backstore)
    }


def _collides(lun: LunSpec, come: tuple[LunSpec, ...]) -> bool:
    """Whether a LUN that goes has the name or the medium of one that comes: its backstore has to go
    before.
    """
    store = lun.backstore
    others = [other.backstore for other in come if other.backstore != store]
    return any(other.name == store.name or (store.path and other.path == store.path) for other in others)


def _left_over(known: Record | None, spec: EndpointSpec) -> tuple[LunSpec, ...]:
    """LUNs that were, or were to be, and that ``spec`` does not have."""
    before = (*known.spec.luns, *known.passing) if known is not None else ()
    return tuple(lun for lun in before if lun not in spec.luns)


def _names_in_both(luns: tuple[LunSpec, ...], spec: EndpointSpec) -> set[str]:
    """Names of backstores that stay, whichever LUN maps them."""
    wanted = stores_of(spec)
    return {
        name
        for lun in luns
        if (name := lun.backstore.name) in wanted and same_disk(lun.backstore, wanted[name])
    }


def _unchanged(old: EndpointSpec, new: EndpointSpec) -> set[str]:
    """Names of backstores that both have, and describe alike."""
    there, wanted = stores_of(old), stores_of(new)
    return {name for name in there if wanted.get(name) == there[name]}


def _check_change(old: EndpointSpec, new: EndpointSpec) -> None:
    for field in _FIXED:
        if getattr(old, field) != getattr(new, field):
            raise UsageError(
                f"the {field} of '{old.name}' cannot be changed while it is there",
                hint="delete the endpoint, and create it anew",
            )
