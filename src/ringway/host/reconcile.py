"""Make actual what is desired: at start, when an engine says that something changed, and on a timer.

Each endpoint is looked at alone with its lock, so that a list that was read a moment ago decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

from ringway import faults
from ringway.errors import BusyError
from ringway.host import specs
from ringway.host.actual import Actual
from ringway.host.changes import Changes
from ringway.host.desired import Desired
from ringway.host.events import Events, Kind
from ringway.host.health import Health, runs
from ringway.host.operations import CLOSING_S, as_ringway_error
from ringway.host.store import Deletion, Wanted
from ringway.host.strangers import Strangers
from ringway.model import EndpointInfo, EngineKind

_log: Final = logging.getLogger(__name__)


class Reconciler:
    """The loop. :meth:`wake` may come from any thread."""

    def __init__(
        self,
        desired: Desired,
        actual: Actual,
        changes: Changes,
        strangers: Strangers,
        health: Health,
        events: Events,
        *,
        every_s: float,
        parallel: int,
    ) -> None:
        self._desired = desired
        self._actual = actual
        self._changes = changes
        self._strangers = strangers
        self._health = health
        self._events = events
        self._limit = asyncio.Semaphore(parallel)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Task[None] | None = None
        self._closed = False
        self.every_s = every_s
        self.passes = 0

    async def start(self) -> None:
        """Look at all once, mend what differs, and go on doing so. :returns: when each had its turn."""
        await self.compare(first=True)
        self._timer = asyncio.create_task(self._run(), name="reconcile")

    async def compare(self, *, first: bool = False) -> None:
        """Look at all now. :param first: what is missing was lost with the host, and did not die."""
        await self._pass(first=first)
        while self._tasks:
            await asyncio.wait(tuple(self._tasks.values()))

    async def close(self) -> bool:
        """Stop, and wait for what is being mended. :returns: whether it has ended; what hangs has not."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for timer in self._timers.values():
            timer.cancel()
        if not self._tasks:
            return True
        _, hanging = await asyncio.wait(tuple(self._tasks.values()), timeout=CLOSING_S)
        return not hanging

    def wake(self, name: str) -> None:
        """Look at one endpoint soon. From any thread; does not wait."""
        self._loop.call_soon_threadsafe(self._look_at, name)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            try:
                await self._pass(first=False)
            except Exception:
                _log.exception("a comparison of desired and actual failed; the next one is due")

    async def _pass(self, *, first: bool) -> None:
        answered = await self._actual.refresh()
        for kind in answered:
            for name in tuple(self._differing(kind, first=first)):
                if first or not self._changes.locks.is_held(name):  # who works on it looks by himself
                    self._look_at(name, first=first)
        self.passes += 1

    def _differing(self, kind: EngineKind, *, first: bool) -> Iterator[str]:
        """The names of an engine's endpoints that are not as they should be."""
        for wanted in self._desired.all():
            if wanted.spec.engine is not kind:
                continue
            is_older = first and self._strangers.compare(wanted)
            if is_older or _differs(wanted, self._actual.seen(kind, wanted.name)):
                yield wanted.name
        for info in self._actual.all_seen(kind):
            if self._desired.find(info.name) is None:
                yield info.name

    def _look_at(self, name: str, *, first: bool = False) -> None:
        """Start a task for an endpoint, or let the one that runs begin again behind itself."""
        if self._closed:
            return
        if name in self._tasks:
            self._again.add(name)
            return
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        self._tasks[name] = asyncio.create_task(self._mend(name, first), name=f"mend {name}")

    async def _mend(self, name: str, first: bool) -> None:
        try:
            async with self._changes.locks.hold(name), self._limit:
                await self._mend_held(name, first)
        except Exception as error:
            self._failed(name, as_ringway_error(error).message)
        finally:
            del self._tasks[name]
            if name in self._again:
                self._again.discard(name)
                self._look_at(name)

    def _failed(self, name: str, message: str) -> None:
        """Note that it could not be mended, and come back."""
        _log.warning("endpoint '%s': %s", name, message)
        self._come_back(name, self._strike(name, message))

    def _come_back(self, name: str, delay_s: float) -> None:
        if not self._closed:
            self._timers[name] = self._loop.call_later(delay_s, self._look_at, name)

    async def _mend_held(self, name: str, first: bool) -> None:
        wanted = self._desired.find(name)
        if wanted is None:
            if (taken := await self._strangers.take_in(name)) is not None:
                await self._mend_wanted(taken, first)
        elif wanted.spec.engine not in self._actual.drivers:
            _log.debug("endpoint '%s' is of an engine that is not run", name)
        elif wanted.deletion is not None:
            await self._finish_deletion(wanted)
        elif wanted.applied is None:
            await self._changes.take_back(wanted)
        else:
            await self._mend_wanted(wanted, first)

    async def _finish_deletion(self, wanted: Wanted) -> None:
        try:
            await self._changes.finish_deletion(wanted, force=wanted.deletion is Deletion.FORCED)
        except BusyError as error:
            _log.warning("endpoint '%s' was to be deleted, and stays: %s", wanted.name, error)

    async def _mend_wanted(self, wanted: Wanted, first: bool) -> None:
        info = await self._actual.look(wanted.spec.engine, wanted.name)
        wanted = await self._strangers.renew(wanted, info)
        if not _differs(wanted, info):
            return
        if runs(info):
            await self._finish_change(wanted, info)
        else:
            await self._start_again(wanted, info, first)

    async def _finish_change(self, wanted: Wanted, info: EndpointInfo | None) -> None:
        """Bring a running endpoint from where it is to where it should be."""
        assert info is not None
        assert wanted.applied is not None
        there = {(lun.target, lun.lun) for lun in info.luns}
        present = specs.half_done(wanted.applied, wanted.spec, there)
        driver = self._actual.driver(wanted.spec.engine)
        settled = wanted.applied == wanted.spec
        try:
            await self._actual.change(driver.update, present, wanted.spec, force=settled)
        except BusyError as error:
            if settled:
                raise
            await self._call_off(wanted, error)
            return
        faults.point("mend.updated")
        await self._desired.put(wanted, applied=wanted.spec)
        await self._actual.look(wanted.spec.engine, wanted.name)
        self._events.tell(Kind.READY, _thing(wanted.name), "it is as it should be again")

    async def _call_off(self, wanted: Wanted, error: BusyError) -> None:
        """Forget a change that nobody was told of: it would take a disk from a guest."""
        _log.warning("endpoint '%s' was to be changed, and stays: %s", wanted.name, error)
        await self._desired.put(wanted, spec=wanted.applied)
        self._again.add(wanted.name)

    async def _start_again(self, wanted: Wanted, info: EndpointInfo | None, first: bool) -> None:
        """Restore it; when it died in this daemon's life, not before it is due."""
        name = wanted.name
        if not first and not self._health.is_restart_owed(name):
            last_words = (info.message if info is not None else None) or "it is not there any more"
            self._note_death(name, last_words)
        if (due_s := self._health.wait_s(name)) > 0:
            self._come_back(name, due_s)
            return
        await self._strangers.refuse_disks(wanted.spec)
        await self._actual.check_foreign(wanted.spec)
        await self._actual.make(wanted.spec)
        faults.point("mend.made")
        if wanted.applied != wanted.spec:
            await self._desired.put(wanted, applied=wanted.spec)
        if not first:
            self._health.started(name)
        self._events.tell(Kind.READY if first else Kind.RESTARTED, _thing(name))

    def _note_death(self, name: str, last_words: str) -> None:
        self._events.tell(Kind.DIED, _thing(name), last_words)
        self._strike(name, last_words)

    def _strike(self, name: str, message: str) -> float:
        """Count a death or a failure. :returns: seconds until the next attempt."""
        before = self._health.is_degraded(name)
        delay = self._health.died(name, message)
        if self._health.is_degraded(name) and not before:
            self._events.tell(Kind.DEGRADED, _thing(name), message)
        return delay


def _differs(wanted: Wanted, info: EndpointInfo | None) -> bool:
    """Whether there is something to do for an endpoint."""
    if wanted.deletion is not None or wanted.applied != wanted.spec or not runs(info):
        return True
    assert info is not None
    return {(lun.target, lun.lun) for lun in info.luns} != specs.by_address(wanted.spec.luns).keys()


def _thing(name: str) -> str:
    return f"endpoint/{name}"
