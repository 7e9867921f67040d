"""Documents in memory and on disk: readers never wait, and what :meth:`Kept.put` returned from is on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from msgspec import Struct

from ringway.host.store import Table

T = TypeVar("T", bound=Struct)
Write = Callable[..., Awaitable[None]]
"""Calls a function on the one thread that writes."""


class Kept(Generic[T]):
    """The rows of one table. For one event loop; changes of one row come one at a time."""

    def __init__(self, table: Table[T], write: Write) -> None:
        self._table = table
        self._write = write
        self._rows = table.load()

    def find(self, name: str) -> T | None:
        return self._rows.get(name)

    def all(self) -> tuple[T, ...]:
        """All rows, by name."""
        return tuple(self._rows[name] for name in sorted(self._rows))

    async def put(self, name: str, document: T) -> T:
        """Write a row. It is on disk when this returns."""
        await self._write(self._table.put, name, document)
        self._rows[name] = document
        return document

    async def remove(self, name: str) -> None:
        """Forget a row."""
        await self._write(self._table.delete, name)
        self._rows.pop(name, None)

    def __contains__(self, name: Any) -> bool:
        return name in self._rows
