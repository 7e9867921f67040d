"""What is around the endpoints: guests and switches, which others change as well. Looked at when they say
something, and every so often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ringway.guest.base import GuestEvent, GuestEventKind
from ringway.host.creations import Creations
from ringway.host.events import Events, Kind
from ringway.host.holdings import Holdings
from ringway.host.hypervisors import Guests
from ringway.host.ports import Ports
from ringway.host.switches import Switches

_EVERY_S: Final = 30.0
_SETTLE_S: Final = 20.0  #: how long a start waits for what was left half done
_log: Final = logging.getLogger(__name__)


Work = Callable[[], Coroutine[Any, Any, None]]


class Surroundings:
    """Keeps what guests have, and ports, true. For one event loop."""

    def __init__(
        self,
        guests: Guests,
        switches: Switches,
        creations: Creations,
        holdings: tuple[Holdings, ...],
        ports: Ports,
        events: Events,
    ) -> None:
        self._guests = guests
        self._switches = switches
        self._creations = creations
        self._holdings = holdings
        self._ports = ports
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self) -> None:
        """Settle what was left half done, and listen. A guest that does not answer holds up no start."""
        self._guests.watch(self._notify)
        self._switches.watch(self._notify_of_port)
        settling = self._begin(self._settle())
        done, _ = await asyncio.wait((settling,), timeout=_SETTLE_S)
        for task in done:
            task.result()
        self._begin(self._look_again())

    async def _settle(self, *, unconfirmed: bool = False) -> None:
        await self._creations.settle()
        for holdings in self._holdings:
            await holdings.settle(unconfirmed=unconfirmed)
        await self._ports.settle()

    async def stop(self) -> None:
        """Listen no more, and begin nothing."""
        self._stopped = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> bool:
        """Let go. Guests and ports stay. :returns: whether all has ended."""
        ended = await self._guests.close()
        return self._switches.close() and ended

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self._settle(unconfirmed=True)
            except Exception:
                _log.exception("guests and ports could not be looked at; the next look is due")

    def _notify(self, event: GuestEvent) -> None:
        """From libvirt's thread."""
        self._begin_soon(lambda: self._heed(event))

    def _notify_of_port(self, name: str) -> None:
        """From a switch's thread."""
        self._begin_soon(lambda: self._ports.look_at(name))

    def _begin_soon(self, work: Work) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            self._loop.call_soon_threadsafe(lambda: None if self._stopped else self._begin(work()))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _heed(self, event: GuestEvent) -> None:
        if event.guest:
            device = f" {event.alias}" if event.alias else ""
            self._events.tell(Kind.GUEST, f"guest/{event.guest}", f"{event.kind}{device}")
        if event.kind is GuestEventKind.CONNECTED:
            await self._settle()
        else:
            for holdings in self._holdings:
                await holdings.heed(event)
