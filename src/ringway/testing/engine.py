"""An engine whose endpoints are entries of a dictionary: the fake of the suites that run with every engine.

The :class:`World` outlives the driver, as a kernel or a target process does.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from ringway.engine.base import Notify
from ringway.errors import BackstoreError, BusyError, NotFoundError, UsageError
from ringway.model import (
    BackstoreInfo,
    DeviceKind,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    EngineReport,
    Latency,
    LunSpec,
    LunStatistics,
    LunStatus,
    SpecKind,
    TargetStatistics,
)


@dataclass
class World:
    """What is on the host, and what a test makes happen to it."""

    endpoints: dict[str, EndpointSpec] = field(default_factory=dict)
    connected: set[str] = field(default_factory=set)
    last_words: dict[str, str] = field(default_factory=dict)  #: of those that died and are still to be seen
    foreign: dict[str, EndpointSpec] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)  #: paths that do not exist
    before: Callable[[str, str], None] = lambda _verb, _name: None  #: called with each change's verb and name
    calls: list[tuple[str, str]] = field(default_factory=list)


class MemoryDriver:
    """The verbs of an engine on a :class:`World`. Calls come from many threads."""

    def __init__(self, world: World, kind: EngineKind = EngineKind.USER) -> None:
        self.kind = kind
        self._world = world
        self._lock = threading.Lock()
        self._notify: Notify | None = None
        self._began = time.monotonic()

    def probe(self) -> EngineReport:
        """It can do all that a dictionary can."""
        return EngineReport(
            engine=self.kind,
            usable=True,
            version="0",
            devices=tuple(DeviceKind),
            backstores=("ram", "null"),
            limits=True,
            resize=True,
            migration=False,
        )

    def resolve(self, spec: EndpointSpec) -> EndpointSpec:
        """Choose a WWPN, and a name and a serial for each backstore."""
        if spec.device is DeviceKind.BLK and len(spec.luns) != 1:
            raise UsageError("a blk device has exactly one disk")
        luns = tuple(_resolve_lun(spec.name, lun) for lun in spec.luns)
        return replace(spec, wwpn=spec.wwpn or f"naa.5{secrets.token_hex(8)[1:]}", luns=luns)

    def check(self, spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
        """Refuse a path that is missing, or that another endpoint has."""
        for lun in spec.luns:
            if lun.backstore.path in self._world.missing:
                raise BackstoreError(f"'{lun.backstore.path}' does not exist")
        _refuse_shared(spec, others)

    def check_foreign(self, spec: EndpointSpec, *, restoring: bool = False) -> None:
        """Refuse a path that a foreign endpoint of the world has."""
        _refuse_shared(spec, self._world.foreign.values())

    def create(self, spec: EndpointSpec) -> None:
        """Enter it."""
        self._change("create", spec.name)
        with self._lock:
            self._world.endpoints[spec.name] = spec
            self._world.last_words.pop(spec.name, None)

    def update(self, old: EndpointSpec, new: EndpointSpec, *, force: bool = False) -> None:
        """Enter another specification."""
        if len(new.luns) < len(old.luns) and new.name in self._world.connected and not force:
            raise BusyError(f"a LUN of endpoint '{new.name}' is in use by a guest", holder="a guest")
        self._change("update", new.name)
        with self._lock:
            assert self._world.endpoints[new.name].luns == old.luns
            self._world.endpoints[new.name] = new

    def delete(self, name: str, *, force: bool = False) -> None:
        """Take it out."""
        if name in self._world.connected and not force:
            raise BusyError(f"endpoint '{name}' is in use by a guest", holder="a guest")
        self._change("delete", name)
        with self._lock:
            self._world.endpoints.pop(name, None)
            self._world.last_words.pop(name, None)
            self._world.connected.discard(name)

    def take_back(self, name: str) -> None:
        """Take it out."""
        self.delete(name)

    def resize(self, name: str, lun: LunSpec) -> None:
        """Enter another LUN at its address."""
        self._change("resize", name)
        with self._lock:
            spec = self._world.endpoints[name]
            luns = (lun if (old.target, old.lun) == (lun.target, lun.lun) else old for old in spec.luns)
            self._world.endpoints[name] = replace(spec, luns=tuple(luns))

    def _change(self, verb: str, name: str) -> None:
        self._world.calls.append((verb, name))
        self._world.before(verb, name)

    def list(self) -> tuple[EndpointInfo, ...]:
        """All entries, the dead ones with their last words."""
        with self._lock:
            world = self._world
            ours = [self._info(spec, EndpointState.READY) for spec in world.endpoints.values()]
            foreign = [self._info(spec, EndpointState.FOREIGN) for spec in world.foreign.values()]
            return (*ours, *foreign)

    def show(self, name: str) -> EndpointInfo:
        """One entry."""
        found = next((info for info in self.list() if info.name == name), None)
        if found is None:
            raise NotFoundError(f"there is no endpoint '{name}'")
        return found

    def _info(self, spec: EndpointSpec, state: EndpointState) -> EndpointInfo:
        last_words = self._world.last_words.get(spec.name)
        return EndpointInfo(
            name=spec.name,
            engine=self.kind,
            device=spec.device,
            state=EndpointState.DEGRADED if last_words else state,
            wwpn=spec.wwpn,
            connected=spec.name in self._world.connected,
            message=last_words,
            luns=tuple(_status(lun) for lun in spec.luns),
            spec=None if state is EndpointState.FOREIGN else spec,
        )

    def backstores(self) -> tuple[BackstoreInfo, ...]:
        """What the entries' LUNs map."""
        with self._lock:
            specs = tuple(self._world.endpoints.values())
        return tuple(self._backstore(spec, lun) for spec in specs for lun in spec.luns)

    def _backstore(self, spec: EndpointSpec, lun: LunSpec) -> BackstoreInfo:
        backstore = lun.backstore
        return BackstoreInfo(
            name=backstore.name or "",
            engine=self.kind,
            kind="file" if backstore.kind is SpecKind.PATH else str(backstore.kind),
            path=backstore.path,
            size_bytes=backstore.size_bytes,
            serial=backstore.serial,
            used_by=(f"{spec.name}/{lun.target}:{lun.lun}",),
        )

    def statistics(self, name: str) -> TargetStatistics:
        """A request for each LUN, so that there is something to show."""
        self.show(name)
        luns = tuple(_statistics(lun) for lun in self._world.endpoints[name].luns)
        return TargetStatistics(time.monotonic() - self._began, luns, (), ())

    def watch(self, notify: Notify) -> None:
        self._notify = notify

    def close(self) -> None:
        self._notify = None

    # What a test makes happen

    def die(self, name: str, last_words: str = "") -> None:
        """Let an endpoint end by itself; with last words it is still to be seen."""
        with self._lock:
            if last_words:
                self._world.last_words[name] = last_words
            else:
                self._world.endpoints.pop(name, None)
        if self._notify is not None:
            self._notify(name)


def _refuse_shared(spec: EndpointSpec, others: Iterable[EndpointSpec]) -> None:
    owners = {lun.backstore.path: other.name for other in others for lun in other.luns}
    for lun in spec.luns:
        if (path := lun.backstore.path) is not None and path in owners:
            raise BusyError(f"'{path}' is used by endpoint '{owners[path]}'", holder=owners[path])


def _resolve_lun(name: str, lun: LunSpec) -> LunSpec:
    backstore = lun.backstore
    chosen = replace(
        backstore,
        name=backstore.name or f"{name}-{lun.target}-{lun.lun}",
        serial=backstore.serial or secrets.token_hex(8),
    )
    return replace(lun, backstore=chosen)


def _status(lun: LunSpec) -> LunStatus:
    backstore = lun.backstore
    return LunStatus(
        target=lun.target,
        lun=lun.lun,
        backstore=backstore.name or "",
        kind=str(backstore.kind),
        path=backstore.path,
        size_bytes=backstore.size_bytes,
        block_size=512,
        serial=backstore.serial,
        limits=lun.limits,
    )


def _statistics(lun: LunSpec) -> LunStatistics:
    return LunStatistics(
        lun.target, lun.lun, 1, 0, 0, 0, 0, 0, 4096, 0, Latency(1000, 1000, 1000, ((1024, 1),)), Latency()
    )
