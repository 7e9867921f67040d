"""What is on the host, as the engines tell it; their calls block, so they run on threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, KeysView, Mapping
from typing import Final

from msgspec.structs import replace

from ringway.engine.base import Driver
from ringway.errors import NotFoundError, UsageError
from ringway.host.calls import Calls
from ringway.model import (
    BackstoreInfo,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    LunSpec,
    SpecKind,
)

MAX_AGE_S: Final = 1.0  #: a list that is younger needs no look at the host
PATIENCE_S: Final = 5.0  #: for an engine that does not say what it has; then it is told what it had
_WORKERS: Final = 64  #: calls that change something; one that hangs holds up no other
_LOOKERS: Final = 16
_log: Final = logging.getLogger(__name__)


class Actual:
    """The engines, and the last look at what they have. For one event loop.

    :param own: the folder of the host's own state, which is nobody's disk.
    :param guards: engines that are not run here, and may serve a disk all the same.
    """

    def __init__(
        self, drivers: Mapping[EngineKind, Driver], own: str, guards: tuple[Driver, ...] = ()
    ) -> None:
        self.drivers = dict(drivers)
        self._guards = guards
        self._own = own
        self.change = Calls(_WORKERS, "change")  #: calls an engine to change something
        self.ask = Calls(_LOOKERS, "look")  #: calls an engine to be told something
        self._seen: dict[EngineKind, dict[str, EndpointInfo]] = {kind: {} for kind in drivers}
        self._foreign: dict[EngineKind, tuple[EndpointInfo, ...]] = {}
        self._seen_at = float("-inf")
        self._touched: dict[tuple[EngineKind, str], float] = {}  #: endpoints looked at one by one, and when
        self._refreshing: asyncio.Task[tuple[EngineKind, ...]] | None = None

    def close(self) -> None:
        """Let go of the engines; endpoints stay. Calls that hang are not waited for."""
        for calls in (self.change, self.ask):
            calls.close()
        for driver in self.drivers.values():
            driver.close()

    def driver(self, kind: EngineKind) -> Driver:
        """:raises UsageError: this daemon does not run the engine."""
        if (found := self.drivers.get(kind)) is None:
            raise UsageError(
                f"this daemon does not run the engine '{kind}'",
                hint=f"see [{kind}] in its configuration; without root there is only 'user'",
            )
        return found

    async def check(
        self, spec: EndpointSpec, others: tuple[EndpointSpec, ...], *, had: tuple[LunSpec, ...] = ()
    ) -> None:
        """Have an endpoint's engine check it, and each engine whether somebody else's serves a disk of it.

        :param others: as :meth:`ringway.engine.base.Driver.check`. :param had: LUNs that it serves already.
        :raises RingwayError: with who holds what, and what to do.
        """
        await self.ask(self._check, self.driver(spec.engine), spec, others, had)

    def _check(
        self, driver: Driver, spec: EndpointSpec, others: tuple[EndpointSpec, ...], had: tuple[LunSpec, ...]
    ) -> None:
        _refuse_own(spec, self._own)
        driver.check(spec, others)
        known = [lun.backstore for lun in had]
        fresh = replace(spec, luns=tuple(lun for lun in spec.luns if lun.backstore not in known))
        self._check_foreign(fresh, restoring=False)

    async def check_foreign(self, spec: EndpointSpec) -> None:
        """Ask each engine whether somebody else's serves a disk of an endpoint that is to be restored.

        :raises BusyError: with what does. A guard that cannot look has seen nothing.
        """
        await self.ask(self._check_foreign, spec, restoring=True)

    def _check_foreign(self, spec: EndpointSpec, *, restoring: bool) -> None:
        for each in self.drivers.values():
            each.check_foreign(spec, restoring=restoring)
        for guard in self._guards:
            with contextlib.suppress(OSError):
                guard.check_foreign(spec, restoring=restoring)

    async def backstores(self, *, guarded: bool = False) -> tuple[BackstoreInfo, ...]:
        """All that is mapped now.

        :param guarded: also by engines that are not run here. A guard that cannot look has seen nothing.
        """
        lists = [self.ask(driver.backstores) for driver in self.drivers.values()]
        lists += [self.ask(_seen_by, guard) for guard in self._guards if guarded]
        return tuple(found for each in await asyncio.gather(*lists) for found in each)

    async def make(self, spec: EndpointSpec) -> EndpointInfo:
        """Have an endpoint made, and look at it. :raises RingwayError: as the engine."""
        driver = self.driver(spec.engine)
        info = await self.change(_made, driver, spec)
        self._note(spec.engine, spec.name, info)
        return info

    async def look(self, kind: EngineKind, name: str) -> EndpointInfo | None:
        """Look at one endpoint of ours, and remember it. :returns: ``None``: it is not there."""
        try:
            info = await self.ask(self.driver(kind).show, name)
        except NotFoundError:
            self.forget(kind, name)
            return None
        if info.state is EndpointState.FOREIGN:
            return None
        self._note(kind, name, info)
        return info

    async def refresh(self) -> tuple[EngineKind, ...]:
        """Look at all; who comes while somebody looks shares the answer.

        :returns: the engines that answered. What the others have is as it was.
        """
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._look_at_all())
            self._refreshing.add_done_callback(self._refreshed)
        return await asyncio.shield(self._refreshing)

    def _refreshed(self, _task: object) -> None:
        self._refreshing = None

    async def refresh_if_old(self) -> None:
        """Look at all unless that was done a moment ago; an engine that hangs is not waited for long."""
        if time.monotonic() - self._seen_at > MAX_AGE_S:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.refresh(), PATIENCE_S)

    async def _look_at_all(self) -> tuple[EngineKind, ...]:
        began = time.monotonic()
        lists = [self.ask(driver.list) for driver in self.drivers.values()]
        results = await asyncio.gather(*lists, return_exceptions=True)
        answered = []
        for kind, result in zip(self.drivers, results, strict=True):
            if isinstance(result, BaseException):
                _log.warning("the engine '%s' cannot be asked: %s", kind, result)
                continue
            self._see(kind, {i.name: i for i in result if i.state is not EndpointState.FOREIGN}, began)
            self._foreign[kind] = tuple(i for i in result if i.state is EndpointState.FOREIGN)
            answered.append(kind)
        self._seen_at = began
        return tuple(answered)

    def _see(self, kind: EngineKind, infos: dict[str, EndpointInfo], began: float) -> None:
        """Take a list over, but for endpoints that were looked at since it was begun: they know better."""
        self._touched = {each: when for each, when in self._touched.items() if when >= began}
        for other, name in self._touched:
            if other is kind:
                infos.pop(name, None)
                if (newer := self._seen[kind].get(name)) is not None:
                    infos[name] = newer
        self._seen[kind] = infos

    def _note(self, kind: EngineKind, name: str, info: EndpointInfo) -> None:
        self._seen[kind][name] = info
        self._touched[kind, name] = time.monotonic()

    def seen(self, kind: EngineKind, name: str) -> EndpointInfo | None:
        """One endpoint of ours as it was last seen."""
        return self._seen.get(kind, {}).get(name)

    def names_seen(self, kind: EngineKind) -> KeysView[str]:
        """The names of all endpoints of ours."""
        return self._seen[kind].keys()

    def all_seen(self, kind: EngineKind) -> tuple[EndpointInfo, ...]:
        return tuple(self._seen[kind].values())

    def foreign(self) -> Iterator[EndpointInfo]:
        """What is not ours."""
        for infos in self._foreign.values():
            yield from infos

    def forget(self, kind: EngineKind, name: str) -> None:
        """It is gone."""
        self._seen[kind].pop(name, None)
        self._touched[kind, name] = time.monotonic()


def _seen_by(guard: Driver) -> tuple[BackstoreInfo, ...]:
    with contextlib.suppress(OSError):
        return guard.backstores()
    return ()


def _made(driver: Driver, spec: EndpointSpec) -> EndpointInfo:
    driver.create(spec)
    return driver.show(spec.name)


def _refuse_own(spec: EndpointSpec, own: str) -> None:
    """:raises UsageError: a disk lies in the host's own folder: a guest could rewrite what is kept there."""
    folder = os.path.join(os.path.realpath(own), "")
    for lun in spec.luns:
        path = lun.backstore.path if lun.backstore.kind is SpecKind.PATH else None
        if path is not None and os.path.realpath(path).startswith(folder):
            raise UsageError(f"'{path}' is in ringwayd's own folder", hint="keep disks somewhere else")
