"""Desired state in memory, with what is about to become part of it; the store has it on disk.

One writer at a time reaches the disk; readers never wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, KeysView
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError
from ringway.host.events import now
from ringway.host.store import Deletion, Store, Wanted
from ringway.model import EndpointSpec


class Desired:
    """The endpoints that shall be. For one event loop; changes of one endpoint come one at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._disk = ThreadPoolExecutor(1, "store")
        self._rows = {wanted.name: wanted for wanted in store.load()}
        self._claims: dict[object, EndpointSpec] = {}

    def close(self) -> None:
        """Finish what is being written. The store stays open."""
        self._disk.shutdown()

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> KeysView[str]:
        """The names of all rows."""
        return self._rows.keys()

    def find(self, name: str) -> Wanted | None:
        return self._rows.get(name)

    def get(self, name: str) -> Wanted:
        """:raises NotFoundError: nobody wants such an endpoint."""
        if (found := self._rows.get(name)) is None:
            raise NotFoundError(f"there is no endpoint '{name}'", hint="see: ringway endpoint list")
        return found

    def settled(self, name: str) -> Wanted:
        """An endpoint that is to stay. :raises ConflictError: it is on its way in or out."""
        wanted = self.get(name)
        if wanted.deletion is not None or wanted.applied is None:
            raise ConflictError(f"endpoint '{name}' is being made or deleted", hint="wait, then look again")
        return wanted

    def all(self) -> tuple[Wanted, ...]:
        """All rows, by name."""
        return tuple(self._rows[name] for name in sorted(self._rows))

    @contextlib.contextmanager
    def claim(self, spec: EndpointSpec) -> Iterator[tuple[EndpointSpec, ...]]:
        """Let a specification be seen by later claims while the block checks it and writes it down.

        Of two that exclude each other and come at once, so, the second is refused, never both or none.

        :returns: all other endpoints that are wanted or were claimed before.
        :raises ConflictError: another endpoint has its WWPN; it is named.
        """
        others = self.others(spec.name)
        self._refuse_wwpn(spec, others)
        ticket = object()
        self._claims[ticket] = spec
        try:
            yield others
        finally:
            del self._claims[ticket]

    def refuse_name(self, name: str) -> None:
        """:raises ConflictError: an endpoint has this name."""
        if (found := self._rows.get(name)) is not None:
            raise ConflictError(
                f"there is an endpoint '{name}' already (engine {found.spec.engine}, made {found.created})",
                hint=f"take another name, or delete it first: ringway endpoint delete {name}",
            )

    def others(self, *names: str) -> tuple[EndpointSpec, ...]:
        """What others want than these, and what they have still: a change under way may come to nothing."""
        rows = self._rows.values()
        had = (row.applied for row in rows if row.applied is not None and row.applied != row.spec)
        specs = [*(row.spec for row in rows), *had, *self._claims.values()]
        return tuple(spec for spec in specs if spec.name not in names)

    @staticmethod
    def _refuse_wwpn(spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
        owner = next((other for other in others if other.wwpn == spec.wwpn is not None), None)
        if owner is not None:
            raise ConflictError(
                f"{spec.wwpn} is the WWPN of endpoint '{owner.name}'",
                hint="take another one, or none: one is chosen then",
            )

    async def insert(
        self, spec: EndpointSpec, *, confirmed: bool = False, made_for: str | None = None
    ) -> Wanted:
        """Write a new endpoint down. It is on disk when this returns. :param confirmed: it is there."""
        applied = spec if confirmed else None
        wanted = Wanted(spec=spec, applied=applied, created=now(), made_for=made_for)
        await self.write(self._store.insert, wanted)
        self._rows[wanted.name] = wanted
        return wanted

    async def put(self, wanted: Wanted, **changes: Any) -> Wanted:
        """Replace a row by itself with other fields. It is on disk when this returns."""
        changed = replace(wanted, **changes)
        await self.write(self._store.update, changed)
        self._rows[changed.name] = changed
        return changed

    async def remove(self, name: str) -> None:
        """Forget an endpoint."""
        await self.write(self._store.delete, name)
        self._rows.pop(name, None)

    async def mark_deleted(self, wanted: Wanted, *, force: bool) -> Wanted:
        """Write down that an endpoint is on its way out."""
        return await self.put(wanted, deletion=Deletion.FORCED if force else Deletion.WANTED)

    async def write(self, change: Callable[..., None], *arguments: Any) -> None:
        """On the one thread that writes. Callers cannot be cancelled any more when they come here."""
        await asyncio.wrap_future(self._disk.submit(change, *arguments))
