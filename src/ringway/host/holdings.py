"""Which guest has which thing of ours: each a row, written before the domain is touched.

The domain's own document says what a guest has; a row says what was asked for, and whose the thing is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import ClassVar, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ringway import faults
from ringway.errors import BusyError, NotFoundError, RingwayError
from ringway.guest.base import GuestEvent, GuestEventKind
from ringway.host.events import Events, Kind, now
from ringway.host.hypervisors import Guests
from ringway.host.locks import Locks
from ringway.host.operations import Progress
from ringway.host.rows import Row, Rows, Stage
from ringway.model import (
    Action,
    AttachmentInfo,
    AttachmentState,
    Change,
    GuestInfo,
    GuestState,
    Plan,
    PlugInfo,
)

RUNNING: Final = (GuestState.RUNNING, GuestState.PAUSED)
_STATES: Final = {Stage.BEGUN: AttachmentState.ATTACHING, Stage.GOING: AttachmentState.DETACHING}
_COMINGS: Final = (GuestEventKind.STARTED, GuestEventKind.RESUMED, GuestEventKind.DEFINED)
_COMING_S: Final = 1.0  #: between two looks at a guest that is on its way
_GIVE_UP_S: Final = 30.0  #: how long a guest may take to let go of what is taken back
_log: Final = logging.getLogger(__name__)
Info = TypeVar("Info", AttachmentInfo, PlugInfo)


class Holding(Row, frozen=True, kw_only=True):
    """A row, by the thing's name."""

    guest: str  #: its UUID: it may get another name
    guest_name: str  #: when it was looked at last


class Words(Struct, frozen=True, kw_only=True):
    """How one kind of thing is spoken of."""

    thing: str
    given: str  #: "attached to" a guest
    giving: str  #: what is done then
    take: str  #: the verb, and the command
    told_given: Kind
    told_taken: Kind


class Holdings(ABC):
    """What guests have of one kind of thing. For one event loop.

    Who works on a holding has a lock of its own, and the thing's for a moment only: a guest may take its
    time, and meanwhile whoever mends the thing must get at it, or the guest waits for a dead disk.
    Locks are taken in one order: the holding's, the thing's (and given back), the guest's.

    :param locks: of things and guests.
    """

    words: ClassVar[Words]

    def __init__(self, rows: Rows[Holding], guests: Guests, locks: Locks, events: Events) -> None:
        self._rows = rows
        self._guests = guests
        self._locks = locks
        self._events = events
        self._foreigners: set[tuple[str, str]] = set()  #: guest's UUID and thing of which was told
        self._coming: set[str] = set()  #: guests that are waited for
        self._changing: Counter[str] = Counter()  #: things that are given or taken, or wait for it
        self._promised: dict[str, str] = {}  #: things, and guests that are being made with them

    # What one kind of thing is

    @abstractmethod
    def _of(self, guest: GuestInfo) -> Mapping[str, AttachmentInfo | PlugInfo]:
        """The things that a guest has, by name."""

    @abstractmethod
    async def _pull(self, guest: str, thing: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a thing out of a domain. :raises NotFoundError: there is no such guest."""

    @abstractmethod
    def _lock_of(self, thing: str) -> str:
        """The name of the thing's own lock."""

    @abstractmethod
    async def _is_there(self, thing: str) -> bool:
        """Whether there is such a thing, for a guest to have."""

    @abstractmethod
    async def _tell(self, thing: str, guest: str | None) -> None:
        """Tell others whose it is now. Never raises :class:`RingwayError`."""

    # Looks

    def find(self, thing: str) -> Holding | None:
        """Who has a thing, or is about to."""
        return self._rows.find(thing)

    def guest_of(self, thing: str) -> str | None:
        """The name of the guest that has a thing."""
        row = self._rows.find(thing)
        return row.guest_name if row is not None else None

    def refuse_held(self, thing: str, *, but: str | None = None) -> None:
        """:raises BusyError: a guest has it, as far as is known. :param but: a guest's UUID that may."""
        row = self._rows.find(thing)
        if row is None or row.guest == but:
            return
        words = self.words
        more = "; --force takes it away all the same" if but is None else ""
        raise BusyError(
            f"{words.thing} '{thing}' is {words.given} guest '{row.guest_name}', now or at its next start",
            holder=f"guest {row.guest_name}",
            hint=f"first: ringway guest {words.take} {row.guest_name} {thing}{more}",
        )

    def _seen(self, guest: GuestInfo, things: Mapping[str, Info]) -> Iterator[Info]:
        """What a guest has, with what is known of it here."""
        for thing, info in things.items():
            row = self._rows.find(thing)
            if row is None:
                yield info
            elif row.guest != guest.uuid:
                yield replace(info, state=AttachmentState.FOREIGN, message=self._foreign(guest, row))
            else:  # which may say itself that the guest was asked to let it go
                yield replace(info, state=_STATES.get(row.stage, info.state))

    def _foreign(self, guest: GuestInfo, row: Holding) -> str:
        words = self.words
        return (
            f"{words.thing} '{row.name}' is {words.given} guest '{row.guest_name}', and two cannot have it; "
            f"take it out here: ringway guest {words.take} {guest.name} {row.name}"
        )

    def refuse_absent(self, guest: GuestInfo, thing: str) -> None:
        """:raises NotFoundError: the guest has no such thing."""
        if thing not in self._of(guest):
            raise NotFoundError(
                f"guest '{guest.name}' has no {self.words.thing} '{thing}'",
                hint=f"see: ringway guest show {guest.name}",
            )

    # Be alone with one

    @contextlib.asynccontextmanager
    async def changing(self, thing: str) -> AsyncIterator[None]:
        """Be alone with a holding, to change it."""
        self._changing[thing] += 1
        try:
            async with self._rows.alone(thing):
                yield
        finally:
            self._changing[thing] -= 1
            self._changing += Counter()  # what is at zero goes

    @contextlib.asynccontextmanager
    async def promising(self, thing: str, guest: str) -> AsyncIterator[None]:
        """Be alone with a holding while a guest is made that shall have it: nobody deletes the thing.

        :param guest: the name of the guest.
        """
        async with self.changing(thing):
            self._promised[thing] = guest
            try:
                yield
            finally:
                self._promised.pop(thing, None)

    def break_promise(self, thing: str, guest: str) -> None:
        """That guest is not made: whoever was promising the thing may delete it."""
        if self._promised.get(thing) == guest:
            del self._promised[thing]

    # Take

    async def plan_taking(
        self, guest: str, thing: str, *, live: bool = True, persistent: bool = True
    ) -> Plan:
        """What :meth:`take` would do. :raises NotFoundError: the guest has no such thing."""
        found = await self._guests.show(guest)
        self.refuse_absent(found, thing)
        info = self._of(found)[thing]
        places = {"the guest that runs": live and info.live, "its next start": persistent and info.persistent}
        lines = (f"{self.words.take} {thing} from {place}" for place, there in places.items() if there)
        return change_of(found, *lines)

    async def take(
        self, progress: Progress, guest: str, thing: str, *, live: bool, persistent: bool, timeout_s: float
    ) -> None:
        """Take a thing from a guest, from the one that runs and from its next start.

        :param timeout_s: how long the guest may take. :raises TimedOutError: it did not let go in that time.
        :raises NotFoundError: it has none of this name.
        """
        async with self.changing(thing):
            found = await self._guests.show(guest)
            async with self._locks.hold(guest_lock(found.uuid)):
                self.refuse_absent(found, thing)
                progress.cancellable(False)
                progress.step(
                    0.3, "waiting for the guest to let it go" if live else "changing its next start"
                )
                row = self._rows.find(thing)
                async with self._going(row if row is not None and row.guest == found.uuid else None):
                    await self._pull(found.uuid, thing, live=live, persistent=persistent, timeout_s=timeout_s)
            self._tell_of(self.words.told_taken, found.name, thing)

    @contextlib.asynccontextmanager
    async def _going(self, row: Holding | None) -> AsyncIterator[None]:
        """Take a thing from its guest in the block; then the domain says what has become of it."""
        if row is None:  # what is there is nothing that we know of
            yield
            return
        row = await self._rows.mark(row, Stage.GOING)
        try:
            yield
            faults.point(f"{self._rows.kind}.gone")
        finally:
            await self._compare(row)

    async def release(self, thing: str, *, force: bool) -> None:
        """Let a thing go that is to be deleted; its lock is held.

        :param force: take it out of the guest that has it; what the guest or libvirt does not let go stays
            in the domain, and is nobody's.
        :raises BusyError: a guest has it, or is just getting it or losing it.
        """
        row = self._rows.find(thing)
        guest = row.guest_name if row is not None else self._promised.get(thing)
        if guest is not None and self._changing[thing]:  # who does that may want the thing's lock
            raise BusyError(
                f"{self.words.thing} '{thing}' is just on its way to guest '{guest}', or back",
                holder=f"guest {guest}",
                hint="wait for that: ringway operation list",
            )
        if row is None:
            return
        async with self._rows.alone(thing):
            if force:
                await self._force_out(row)
            else:
                await self._refuse_any(row)

    async def _refuse_any(self, row: Holding) -> None:
        """:raises BusyError: a guest has it, as far as can be told."""
        with contextlib.suppress(RingwayError):
            if row.stage is not Stage.BEGUN:
                await self._compare(row)
        self.refuse_held(row.name)

    async def _force_out(self, row: Holding) -> None:
        async with self._locks.hold(guest_lock(row.guest)):
            try:
                await self._take_back(row)
            except RingwayError as error:
                _log.warning("guest '%s' keeps %s: %s", row.guest_name, self._named(row.name), error)
                with contextlib.suppress(RingwayError):  # its next start must not wait for what is gone then
                    await self._pull(row.guest, row.name, live=False, persistent=True, timeout_s=0.0)
                await self._free(row)

    # What others do

    async def settle(self, *, unconfirmed: bool = False) -> None:
        """Compare all rows with the domains: after a start, and when libvirt is there again.

        Never raises :class:`RingwayError`.

        :param unconfirmed: only those that were left half done.
        """
        if not self._guests.there:
            return
        if not unconfirmed:
            await self._take_in()
        rows = self._rows.all()
        await self._look_at(row.name for row in rows if not (unconfirmed and row.stage is Stage.CONFIRMED))

    async def heed(self, event: GuestEvent) -> None:
        """Something happened to a guest: look at what it had, and at what it has come with.

        Never raises :class:`RingwayError`.
        """
        had = [row.name for row in self._rows.all() if event.is_of(row.guest, row.guest_name)]
        await self._look_at(had)
        if any(thing not in self._rows for thing in had):  # a copy of that guest may have it still
            await self._take_in()
        if event.kind in _COMINGS:
            with logged(f"guest '{event.guest}'"):
                await self._welcome(event.uuid)

    async def _welcome(self, guest: str) -> None:
        """Take in what a guest has come with; one that is still on its way, or starts, is waited for."""
        if guest in self._coming:
            return
        self._coming.add(guest)
        try:
            while not await self._has_come(guest):
                await asyncio.sleep(_COMING_S)
        finally:
            self._coming.discard(guest)

    async def _has_come(self, guest: str) -> bool:
        try:
            await self.take_in(await self._guests.show(guest))
        except BusyError:
            return False
        except NotFoundError:
            pass
        return True

    async def _look_at(self, things: Iterable[str]) -> None:
        await asyncio.gather(*(self._rows.look_at(thing, self._settle) for thing in things))

    async def _settle(self, row: Holding) -> None:
        async with self._locks.hold(guest_lock(row.guest)):
            await (self._take_back if row.stage is Stage.BEGUN else self._compare)(row)

    async def _take_in(self) -> None:
        """Write down what guests have of ours without a row: it was lost, or they were given it by others.

        Of two that have the same, whoever runs with it has it, or else the first by name.
        """
        guests: tuple[GuestInfo, ...] = ()
        with logged("guests"):
            guests = await self._guests.list()
        for guest in sorted(guests, key=lambda found: found.state not in RUNNING):
            with logged(f"guest '{guest.name}'"):
                await self.take_in(guest)

    async def take_in(self, guest: GuestInfo) -> None:
        """Write down what a guest has of ours, and nobody else has; of what another has, tell."""
        for thing in self._of(guest):
            row = self._rows.find(thing)
            if row is not None and row.guest != guest.uuid:
                await self._warn(guest, thing)
            if thing not in self._rows:
                async with self.changing(thing):
                    if thing not in self._rows and await self._who_has(guest.uuid, thing) is not None:
                        await self._enter(guest, thing)

    async def _warn(self, guest: GuestInfo, thing: str) -> None:
        """Tell once that a guest has what is another's; that one may have it no longer."""
        async with self._rows.alone(thing):
            row = self._rows.find(thing)
            if row is not None and row.stage is Stage.CONFIRMED:
                await self._compare(row)
            row = self._rows.find(thing)
            if row is None or row.guest == guest.uuid or (guest.uuid, thing) in self._foreigners:
                return
            self._foreigners.add((guest.uuid, thing))
            self._events.tell(Kind.FOREIGN, _thing(guest.name), self._foreign(guest, row))

    async def enter(self, guest: GuestInfo) -> None:
        """Write down what a new guest has of ours; whoever calls is :meth:`changing` all of it."""
        for thing in self._of(guest):
            await self._enter(guest, thing)

    async def _enter(self, guest: GuestInfo, thing: str) -> None:
        async with self._locks.hold(self._lock_of(thing)):
            if not await self._is_there(thing):
                _log.info("guest '%s' has %s, which is not known", guest.name, self._named(thing))
                return
            await self._rows.mark(holding(thing, guest), Stage.CONFIRMED)
        await self._tell(thing, guest.uuid)

    # The row, and the domain

    async def _take_back(self, row: Holding) -> None:
        """Leave nothing in a guest of what it has; the guest's lock is held."""
        try:
            await self._pull(row.guest, row.name, live=True, persistent=True, timeout_s=_GIVE_UP_S)
        except NotFoundError:
            _log.info("guest '%s' is gone, and %s is free", row.guest_name, self._named(row.name))
        await self._free(row)

    async def _free(self, row: Holding) -> None:
        await self._rows.remove(row.name)
        await self._tell(row.name, None)

    async def _compare(self, row: Holding) -> None:
        """Make the row say what the domain says; without it there, there is no row."""
        name = await self._who_has(row.guest, row.name)
        if name is None:
            await self._free(row)
        elif row != (there := replace(row, guest_name=name, stage=Stage.CONFIRMED)):
            await self._rows.put(there)
            await self._tell(row.name, row.guest)

    async def _who_has(self, guest: str, thing: str) -> str | None:
        """The name that a guest has now, if it has a thing."""
        try:
            found = await self._guests.show(guest)
        except NotFoundError:
            return None
        return found.name if thing in self._of(found) else None

    def _tell_of(self, kind: Kind, guest: str, thing: str) -> None:
        self._events.tell(kind, _thing(guest), self._named(thing))

    def _named(self, thing: str) -> str:
        return f"{self.words.thing} {thing}"


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """Look at something in the block that may be ill, and is no reason not to look at the rest."""
    try:
        yield
    except RingwayError as error:
        _log.warning("%s cannot be looked at: %s", what, error)


def holding(thing: str, guest: GuestInfo) -> Holding:
    """Make the row that a guest has a thing."""
    return Holding(name=thing, guest=guest.uuid, guest_name=guest.name, created=now())


def guest_lock(uuid: str) -> str:
    """The name of a guest's lock; no endpoint has a slash in its name."""
    return f"guest/{uuid}"


def _thing(guest: str) -> str:
    return f"guest/{guest}"


def change_of(guest: GuestInfo, *details: str) -> Plan:
    """What would change in one guest."""
    return Plan(changes=(Change(action=Action.UPDATE, object=_thing(guest.name), details=details),))
