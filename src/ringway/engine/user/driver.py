"""The verbs of the user engine."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec.structs import replace

import ringway
from ringway import holders
from ringway.engine.base import Notify
from ringway.engine.user import choices, records, strays
from ringway.engine.user.changes import apply_changes
from ringway.engine.user.client import SpawnerClient
from ringway.engine.user.conflicts import refuse_conflicts
from ringway.engine.user.endpoint import Endpoint
from ringway.engine.user.figures import figures_of
from ringway.engine.user.orders import Serve
from ringway.engine.user.places import EndpointPlaces, Places, is_locked
from ringway.engine.user.processes import Process
from ringway.engine.user.records import Record
from ringway.engine.user.strays import Strays
from ringway.engine.user.watch import Watch
from ringway.engine.user.words import last_words
from ringway.errors import (
    BusyError,
    NotFoundError,
    PermissionDeniedError,
    RingwayError,
)
from ringway.model import (
    BackstoreInfo,
    BackstoreSpec,
    Check,
    DeviceKind,
    EndpointInfo,
    EndpointSpec,
    EngineKind,
    EngineReport,
    LunInfo,
    LunResizeRequest,
    LunSpec,
    SandboxMode,
    SpecKind,
    StatisticsRequest,
    TargetStatistics,
)
from ringway.unix_sockets import connected_paths

_log: Final = logging.getLogger(__name__)

#: Seconds that a target which somebody else started has to serve in.
ADOPTION_S: Final = 30.0


class UserDriver:
    """See :class:`ringway.engine.base.Driver`.

    :param run: the host's runtime folder. Of one folder there is one driver at a time.
    :param group: name of the group whose front ends may connect; ``None``: this process's own.
    :param user: who targets are; ``None``: as root, for each a user that nothing else is.
    """

    kind = EngineKind.USER

    def __init__(
        self,
        run: Path,
        *,
        group: str | None = None,
        user: str | None = None,
        sandbox: SandboxMode = SandboxMode.AUTO,
    ) -> None:
        self._places = Places(run)
        self._group = group
        self._user = user
        self._sandbox = sandbox
        self._spawner = SpawnerClient(str(self._places.spawner))
        self._endpoints: dict[str, Endpoint] = {}
        self._starting: set[str] = set()
        self._lock = threading.Lock()
        self._watch = Watch()
        self._strays = Strays(self._places)

    # What could be

    def probe(self) -> EngineReport:
        """As the protocol says."""
        checks = (self._check_folder(), self._check_group(), self._check_spawner())
        return EngineReport(
            engine=self.kind,
            usable=all(check.ok for check in checks),
            version=ringway.__version__,
            devices=tuple(DeviceKind),
            backstores=tuple(str(kind) for kind in choices.KINDS),
            limits=True,
            resize=True,
            migration=True,
            checks=checks,
        )

    def resolve(self, spec: EndpointSpec) -> EndpointSpec:
        """As the protocol says."""
        self._places.of(spec.name).check()
        return choices.resolved(spec)

    def check(self, spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
        """As the protocol says: backstores are opened as the target will, by a process that ends."""
        refuse_conflicts(spec, others)
        running = self._find(spec.name)
        luns = () if running is None or not running.alive else running.spec.luns
        has = [lun.backstore for lun in luns]
        self._make_folder()
        new = tuple(lun for lun in spec.luns if lun.backstore not in has)
        self._spawner.probe(new, claim=not spec.incoming)

    def check_foreign(self, spec: EndpointSpec, *, restoring: bool = False) -> None:
        """As the protocol says. Targets of others lock their disks, which :meth:`check` sees."""

    def probe_backstore(self, disk: BackstoreSpec) -> BackstoreInfo:
        """Open a backstore as a target would. :raises RingwayError: what would be wrong with it."""
        self._make_folder()
        (found,) = self._spawner.probe((LunSpec(0, 0, disk),))
        return BackstoreInfo(
            name=disk.name or str(disk),
            engine=self.kind,
            kind=found.kind,
            path=disk.path,
            size_bytes=found.size_bytes,
            block_size=found.block_size,
            serial=disk.serial,
        )

    # What shall be

    def create(self, spec: EndpointSpec) -> None:
        """As the protocol says. One that runs is kept, and changed into what ``spec`` says if it can be.

        :raises BusyError: the target has lost its files, and a guest is connected all the same.
        """
        running = self._find(spec.name)
        if running is not None and running.is_cut_off:
            self._end_stray(spec.name, running.process)
            running = None
        if running is None or not running.wait_ready(ADOPTION_S):
            running = self._adopted(spec) or self._started(spec)
        if running.spec != spec:
            self.update(running.spec, spec)

    def update(self, old: EndpointSpec, new: EndpointSpec, *, force: bool = False) -> None:
        """As the protocol says. What is there is what counts, whatever ``old`` says."""
        endpoint = self._running(old.name)
        endpoint.look()
        apply_changes(endpoint, new, self._spawner, force=force)

    def delete(self, name: str, *, force: bool = False) -> None:
        """As the protocol says."""
        endpoint = self._find(name)
        if endpoint is not None and endpoint.alive:
            if not force:
                endpoint.refuse_if_used()
            self._watch.forget(name)
            endpoint.end()
        else:
            self._end_stray(name, self._strays.find(name), force=force)
        self._drop(name)
        self._places.of(name).remove()

    def take_back(self, name: str) -> None:
        """As the protocol says. Nothing of others is ever taken over."""
        self.delete(name)

    def resize(self, name: str, lun: LunSpec) -> None:
        """As the protocol says."""
        size_bytes = lun.backstore.size_bytes if lun.backstore.kind is SpecKind.NULL else None
        endpoint = self._running(name)
        endpoint.ask(LunResizeRequest(lun.target, lun.lun, size_bytes), LunInfo)
        endpoint.look()
        address = lun.target, lun.lun
        luns = tuple(lun if (each.target, each.lun) == address else each for each in endpoint.spec.luns)
        endpoint.note(replace(endpoint.spec, luns=luns))

    # What is

    def list(self) -> tuple[EndpointInfo, ...]:
        """As the protocol says. Targets are not asked."""
        connected = connected_paths()
        with self._lock:
            known = set(self._endpoints)
        found = [self._find(name) for name in sorted(known.union(self._places.names()))]
        return tuple(
            each.describe(None if connected is None else each.places.socket in connected)
            for each in found
            if each is not None
        ) + tuple(self._nameless(known))

    def show(self, name: str) -> EndpointInfo:
        """As the protocol says. The target is asked."""
        if (endpoint := self._find(name)) is None:
            if (stray := self._strays.all().get(name)) is None:
                raise _not_found(name)
            return strays.describe(self._places.of(name), stray)
        connected = None
        with contextlib.suppress(RingwayError):
            connected = endpoint.look().connected
        return endpoint.describe(connected)

    def backstores(self) -> tuple[BackstoreInfo, ...]:
        """As the protocol says."""
        return tuple(
            BackstoreInfo(
                name=lun.backstore,
                engine=self.kind,
                kind=lun.kind,
                path=lun.path,
                size_bytes=lun.size_bytes,
                block_size=lun.block_size,
                serial=lun.serial,
                used_by=(f"{info.name}/{lun.target}:{lun.lun}",),
            )
            for info in self.list()
            for lun in info.luns
        )

    def statistics(self, name: str) -> TargetStatistics:
        """As the protocol says."""
        endpoint = self._running(name)
        return figures_of(endpoint.spec, endpoint.ask(StatisticsRequest(), TargetStatistics))

    def watch(self, notify: Notify) -> None:
        """As the protocol says."""
        self._watch.start(notify)
        self.list()

    def close(self) -> None:
        """As the protocol says."""
        self._watch.close()
        with self._lock:
            self._endpoints.clear()

    # Inside

    def _nameless(self, known: set[str]) -> Iterator[EndpointInfo]:
        """Targets of which there is no record."""
        for name, process in self._strays.all().items():
            places = self._places.of(name)
            if name not in known and records.read(places.record) is None:
                yield strays.describe(places, process)

    def _adopted(self, spec: EndpointSpec) -> Endpoint | None:
        """Have a target whose record was lost, if there is one. One without files is ended instead."""
        if (stray := self._strays.all().get(spec.name)) is None:
            return None
        if (found := strays.adopt(self._places.of(spec.name), stray, spec)) is None:
            self._end_stray(spec.name, stray)
            return None
        self._keep(found)
        return found

    def _end_stray(self, name: str, process: Process | None, *, force: bool = False) -> None:
        """:raises BusyError: a guest is served by it, or it cannot be seen, but its lock."""
        places = self._places.of(name)
        if process is not None:
            self._watch.forget(name)
            strays.end(places, process, force=force)
        _refuse_nameless(places)

    def _started(self, spec: EndpointSpec) -> Endpoint:
        """Have a new target. Of one endpoint there is one: if its disks are held by a lost one, that goes.

        :raises RingwayError: it does not serve; then nothing is left of it.
        """
        try:
            return self._start(spec)
        except BusyError:
            if (stray := self._strays.find(spec.name)) is None:
                raise
            self._end_stray(spec.name, stray)
            return self._start(spec)

    def _start(self, spec: EndpointSpec) -> Endpoint:
        """Start one. :raises RingwayError: it does not serve; then nothing is left of it."""
        places = self._places.of(spec.name)
        places.check()
        self._make_folder()
        self._drop(spec.name)
        order = Serve(
            config=choices.config_of(spec),
            socket=places.socket,
            group=self._gid(),
            sandbox=self._sandbox,
            user=self._user,
            log=places.log,
            record=places.record,
            spec=spec,
        )
        with self._noted_as_starting(spec.name):
            try:
                started = self._spawner.serve(order)
            except BaseException:
                self._clean_up(places)
                raise
        record = Record(process=started.process.identity, spec=spec)
        endpoint = Endpoint(places, record, started.process, started.info)
        self._keep(endpoint)
        return endpoint

    @contextlib.contextmanager
    def _noted_as_starting(self, name: str) -> Iterator[None]:
        """In the block, who lists leaves the target alone: it would not answer yet."""
        with self._lock:
            self._starting.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._starting.discard(name)

    def _clean_up(self, places: EndpointPlaces) -> None:
        """Remove what a target that did not come up left, unless one lives there all the same."""
        if not is_locked(places.log):
            places.remove()

    def _find(self, name: str) -> Endpoint | None:
        """What is known of an endpoint; of one that ended, or is not known, its record is read again."""
        with self._lock:
            known, starting = self._endpoints.get(name), name in self._starting
        if known is not None and known.alive:
            return known
        places = self._places.of(name)
        record = records.read(places.record)
        if record is None or (known is not None and record.process == known.record.process):
            return known
        found = Endpoint(places, record, Process.find(record.process))
        if starting:
            return found
        if found.alive:
            with contextlib.suppress(RingwayError):
                found.look()
        self._keep(found)
        return found

    def _running(self, name: str) -> Endpoint:
        """:raises NotFoundError: there is no such endpoint, or its target has ended."""
        endpoint = self._find(name)
        if endpoint is None:
            raise _not_found(name)
        if not endpoint.alive:
            raise NotFoundError(f"endpoint '{name}' does not run", hint=last_words(endpoint.places.log))
        return endpoint

    def _keep(self, endpoint: Endpoint) -> None:
        with self._lock:
            self._endpoints[endpoint.name] = endpoint
        if endpoint.process is not None and endpoint.alive:
            self._watch.add(endpoint.name, endpoint.process)

    def _drop(self, name: str) -> None:
        self._watch.forget(name)
        with self._lock:
            self._endpoints.pop(name, None)

    # The host

    def _make_folder(self) -> None:
        """:raises PermissionDeniedError: the runtime folder is not writable."""
        folder = self._places.endpoints
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise PermissionDeniedError(
                f"'{folder}' cannot be made: {error.strerror}",
                hint="be root, or take another --directory",
            ) from error

    def _gid(self) -> int | None:
        """:raises NotFoundError: there is no such group."""
        if self._group is None:
            return None
        try:
            return grp.getgrnam(self._group).gr_gid
        except KeyError:
            hint = "name another in [user] group, or make it with: groupadd --system " + self._group
            raise NotFoundError(f"there is no group '{self._group}'", hint=hint) from None

    def _check_folder(self) -> Check:
        folder = self._places.endpoints
        try:
            self._make_folder()
        except RingwayError as error:
            return Check(name="folder", ok=False, detail=error.message, hint=error.hint)
        if not os.access(folder, os.W_OK | os.X_OK):
            return Check(name="folder", ok=False, detail=f"'{folder}' is not writable", hint="see its mode")
        return Check(name="folder", ok=True, detail=str(folder))

    def _check_group(self) -> Check:
        try:
            gid = self._gid()
        except RingwayError as error:
            return Check(name="group", ok=False, detail=error.message, hint=error.hint)
        who = f"group {self._group} ({gid})" if self._group else "this user"
        return Check(name="group", ok=True, detail=f"sockets are open to {who}")

    def _check_spawner(self) -> Check:
        pid = self._spawner.pid()
        state = "it is started when it is needed" if pid is None else f"pid {pid}"
        return Check(name="spawner", ok=True, detail=state)


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"there is no endpoint '{name}'", hint="ringway endpoint list shows those there are")


def _refuse_nameless(places: EndpointPlaces) -> None:
    """:raises BusyError: a target lives there whose record is lost: with another there would be two."""
    if is_locked(places.log):
        holder = holders.opener(os.stat(places.log))
        raise BusyError(
            f"the target of '{places.name}' runs, but its record is lost",
            holder=holder,
            hint=f"end {holder or 'it'}, then try again",
        )
