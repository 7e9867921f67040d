"""What happened: the last events, and who wants to hear of the next ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from ringway.logs import log_event
from ringway.model import Event

KEPT: Final = 1000
WAITING: Final = 1000  #: events that wait for a slow reader; more are dropped, and their numbers are missing


class Kind(StrEnum):
    """What can happen."""

    meaning: str

    CREATED = "endpoint.created", "It was made; whoever asked is told now."
    UPDATED = "endpoint.updated", "It has another specification; `message` says what is new in it."
    ADOPTED = "endpoint.adopted", "It was on the host, and not in the store; now it is."
    DELETED = "endpoint.deleted", "It is gone."
    DIED = "endpoint.died", "It is not there, and nobody asked for that; `message` has its last words."
    RESTARTED = "endpoint.restarted", "It is there again after a death."
    DEGRADED = "endpoint.degraded", "It died or failed for the fourth time in a minute; it is tried on."
    READY = "endpoint.ready", "It was restored at the daemon's start, or a change to it was finished."
    RESIZED = "lun.resized", "The size of a LUN was looked at again."
    OPERATION = "operation.ended", "An operation has ended, well or not."
    ATTACHED = "guest.attached", "A guest has an endpoint or a disk; `message` names it."
    DETACHED = "guest.detached", "It has it no longer."
    PLUGGED = "guest.plugged", "A guest has a port; `message` names it."
    UNPLUGGED = "guest.unplugged", "It has it no longer."
    FOREIGN = "guest.foreign", "It has what is another guest's, as a copy of one does; `message` says whose."
    GUEST = "guest.changed", "libvirt told of it; `message` says what: started, stopped, defined, undefined."
    PORT_CREATED = "port.created", "A port was made, and its switch knows it."
    PORT_DELETED = "port.deleted", "It is gone from its switch, or by force from our lists alone."
    RELOADED = "daemon.reloaded", "The configuration was read again; `message` names what changed."

    def __new__(cls, value: str, meaning: str) -> Kind:
        """A string that knows its meaning."""
        self = str.__new__(cls, value)
        self._value_ = value
        self.meaning = meaning
        return self


def now() -> str:
    """The time as all objects say it: RFC 3339, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Events:
    """The ring of events. For one event loop."""

    def __init__(self) -> None:
        self._last: deque[Event] = deque(maxlen=KEPT)
        self._readers: set[asyncio.Queue[Event | None]] = set()
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """The number of the last event; 0 when there was none."""
        return self._sequence

    def tell(self, kind: Kind, thing: str, message: str = "") -> None:
        """Keep an event, log it, and hand it to whoever listens. Does not wait."""
        self._sequence += 1
        event = Event(sequence=self._sequence, time=now(), kind=kind, object=thing, message=message)
        self._last.append(event)
        log_event(str(kind), message or thing, object=thing)
        for reader in self._readers:
            with contextlib.suppress(asyncio.QueueFull):
                reader.put_nowait(event)

    async def listen(self, since: int | None = None) -> AsyncIterator[Event]:
        """Yield what happens from now on, until :meth:`close`.

        :param since: first what is kept of what happened behind this number.
        """
        reader: asyncio.Queue[Event | None] = asyncio.Queue(WAITING)
        kept = () if since is None else tuple(event for event in self._last if event.sequence > since)
        self._readers.add(reader)
        try:
            for event in kept:
                yield event
            while (new := await reader.get()) is not None:
                yield new
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End all readers."""
        for reader in self._readers:
            while True:
                try:
                    reader.put_nowait(None)
                    break
                except asyncio.QueueFull:
                    reader.get_nowait()
