"""Rows of what is kept outside of us: a port in a switch, a device in a domain, a whole guest.

All have one life. A row is *begun* on disk before the outside is touched, *confirmed* after, and *going*
while what it stands for is taken away. A daemon that dies leaves rows that say what it was about: who finds
one that is begun takes back what is there of it, and who finds one that is going sees it to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ringway import faults
from ringway.errors import NotFoundError, RingwayError
from ringway.host.locks import Locks
from ringway.host.store import Table

_log: Final = logging.getLogger(__name__)
Write = Callable[..., Awaitable[None]]
"""Calls a function on the one thread that writes."""


class Stage(StrEnum):
    """How far a row is in its life."""

    BEGUN = "begun"  #: nobody was told of it
    CONFIRMED = "confirmed"
    GOING = "going"


class Row(Struct, frozen=True, kw_only=True):
    """What all rows have."""

    name: str
    stage: Stage = Stage.BEGUN
    created: str = ""


R = TypeVar("R", bound=Row)
Look = Callable[[R], Awaitable[None]]


class Rows(Generic[R]):
    """The rows of one table. For one event loop.

    Readers never wait; what a change returned from is on disk. Who changes a row is :meth:`alone` with it.
    A process that shall die does so at ``TABLE.begun``, ``TABLE.made`` and so on.
    """

    def __init__(self, table: Table[R], write: Write, locks: Locks) -> None:
        self.kind: Final = table.name
        self._table = table
        self._write = write
        self._locks = locks
        self._rows = table.load()
        self._due: set[str] = set()  #: at which somebody is about to look

    def __contains__(self, name: Any) -> bool:
        return name in self._rows

    def find(self, name: str) -> R | None:
        return self._rows.get(name)

    def get(self, name: str) -> R:
        """:raises NotFoundError: there is no such row."""
        if (found := self._rows.get(name)) is None:
            raise NotFoundError(f"there is no {self.kind} '{name}'", hint=f"see: ringway {self.kind} list")
        return found

    def all(self) -> tuple[R, ...]:
        """All rows, by name."""
        return tuple(self._rows[name] for name in sorted(self._rows))

    # One row

    def lock(self, name: str) -> str:
        """The name of a row's lock; no endpoint, whose lock has its bare name, has a slash in it."""
        return f"{self.kind}/{name}"

    def is_held(self, name: str) -> bool:
        """Whether somebody is alone with a row, or waits for it."""
        return self._locks.is_held(self.lock(name))

    @contextlib.asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Be alone with a row, or with a name that has none."""
        async with self._locks.hold(self.lock(name)):
            yield

    async def put(self, row: R) -> R:
        """Write a row down. Who is cancelled meanwhile leaves disk and memory alike."""
        await asyncio.shield(self._put(row))
        return row

    async def _put(self, row: R) -> None:
        await self._write(self._table.put, row.name, row)
        self._rows[row.name] = row

    async def remove(self, name: str) -> None:
        """Forget a row; one that is not there is fine. As :meth:`put` when it is cancelled."""
        await asyncio.shield(self._remove(name))

    async def _remove(self, name: str) -> None:
        await self._write(self._table.delete, name)
        self._rows.pop(name, None)

    async def mark(self, row: R, stage: Stage) -> R:
        """Write down how far a row is."""
        marked = await self.put(replace(row, stage=stage))
        faults.point(f"{self.kind}.{stage}")
        return marked

    @contextlib.asynccontextmanager
    async def confirming(self, row: R, take_back: Look[R]) -> AsyncIterator[None]:
        """Make in the block what a row stands for: at its end a row that was begun is confirmed.

        :param take_back: leaves nothing of it, row included, when the block fails. What cannot be taken back
            now is when the row is looked at again; the error has a note of that.
        """
        if row.stage is not Stage.BEGUN:  # it was there before, and stays
            yield
            return
        try:
            yield
            faults.point(f"{self.kind}.made")
            await self.mark(self.get(row.name), Stage.CONFIRMED)
        except BaseException as error:
            if not await self._try(take_back, self.get(row.name)):
                error.add_note("what was done so far is taken back later")
            raise

    # All of them

    async def look_at(self, name: str, look: Look[R]) -> None:
        """Look at a row when it is its turn, if it is there then. Never raises :class:`RingwayError`."""
        if name in self._due:  # who waits for his turn sees what is so then
            return
        self._due.add(name)
        try:
            async with self.alone(name):
                self._due.discard(name)
                if (row := self.find(name)) is not None:
                    await self._try(look, row)
        finally:
            self._due.discard(name)

    async def _try(self, look: Look[R], row: R) -> bool:
        """:returns: whether it could be looked at."""
        try:
            await look(row)
        except RingwayError as error:
            _log.warning("%s '%s' is looked at again: %s", self.kind, row.name, error.message)
            return False
        return True
