"""How a guest is given a thing of ours, whichever: planned, and done."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from ringway.errors import UsageError
from ringway.guest.base import Wish, check_halves
from ringway.host.holdings import RUNNING, Holding, Holdings, change_of, guest_lock, holding
from ringway.host.operations import Progress
from ringway.host.rows import Stage
from ringway.model import AttachmentInfo, AttachSpec, GuestInfo, Plan, PlugInfo, PlugSpec, PortSpec

Ask = TypeVar("Ask", AttachSpec, PlugSpec)
Gift = TypeVar("Gift", Wish, PortSpec)
Given = TypeVar("Given", AttachmentInfo, PlugInfo)


class Giving(Holdings, Generic[Ask, Gift, Given]):
    """Holdings that guests are given when somebody asks for it."""

    # What one kind of thing is

    @abstractmethod
    def _thing_of(self, ask: Ask) -> str:
        """The name of the thing that is asked for."""

    @abstractmethod
    async def _gift(self, ask: Ask, *, live: bool) -> Gift:
        """What the guest gets. :param live: at once. :raises RingwayError: it cannot be had now."""

    @abstractmethod
    async def _push(self, guest: str, gift: Gift, *, live: bool, persistent: bool, fix_memory: bool) -> Given:
        """Put a thing into a domain. :raises RingwayError: it could not; the domain is as before."""

    # Give

    async def plan(self, guest: str, ask: Ask) -> Plan:
        """What :meth:`give` would do. :raises RingwayError: why it could not."""
        found = await self._guests.show(guest)
        self.refuse_held(self._thing_of(ask), but=found.uuid)
        live, persistent = when(found, ask.live, ask.persistent)
        gift = await self._gift(ask, live=live)
        check = self._guests.hypervisor.check
        lines = await self._guests.ask(
            check, found.uuid, gift, live=live, persistent=persistent, fix_memory=ask.fix_memory
        )
        return change_of(found, *lines) if lines else Plan(changes=())

    async def give(self, progress: Progress, guest: str, ask: Ask) -> Given:
        """Give a guest a thing, the one that runs and its next start. When it fails, the guest is as before.

        :raises BusyError: another guest has it. :raises RingwayError: as the hypervisor.
        """
        thing = self._thing_of(ask)
        async with self.changing(thing):
            progress.step(0.1, "looking at the guest")
            found = await self._guests.show(guest)
            await self._refuse_others(thing, found)
            async with self._locks.hold(self._lock_of(thing)):  # nobody deletes it before there is a row
                live, persistent = when(found, ask.live, ask.persistent)
                gift = await self._gift(ask, live=live)
                progress.cancellable(False)
                row = await self._begin(thing, found)
            async with self._entering(row):
                progress.step(0.4, self.words.giving)
                return await self._push(
                    found.uuid, gift, live=live, persistent=persistent, fix_memory=ask.fix_memory
                )

    async def _refuse_others(self, thing: str, guest: GuestInfo) -> None:
        """Look whether another guest has it still. :raises BusyError: it has."""
        row = self._rows.find(thing)
        if row is not None and row.guest != guest.uuid and row.stage is not Stage.BEGUN:
            await self._compare(row)
        self.refuse_held(thing, but=guest.uuid)

    async def _begin(self, thing: str, guest: GuestInfo) -> Holding:
        """Write down that a guest gets a thing. What it has already is not to be taken back."""
        before = self._rows.find(thing)
        half_done = before is not None and before.stage is Stage.BEGUN
        had = thing in self._of(guest) and not half_done
        return await self._rows.mark(holding(thing, guest), Stage.CONFIRMED if had else Stage.BEGUN)

    @contextlib.asynccontextmanager
    async def _entering(self, row: Holding) -> AsyncIterator[None]:
        """Change the guest's domain in the block; when that fails, it is as before."""
        async with (
            self._locks.hold(guest_lock(row.guest)),
            self._rows.confirming(row, self._take_back),
        ):
            yield
        self._tell_of(self.words.told_given, row.guest_name, row.name)


def when(guest: GuestInfo, live: bool | None, persistent: bool | None) -> tuple[bool, bool]:
    """Whether the guest that runs is meant, and whether its next start; both, if nothing is said.

    :raises ConflictError: the guest does not run, or has no next start.
    """
    runs, stays = guest.state in RUNNING, guest.persistent
    wanted = (runs if live is None else live, stays if persistent is None else persistent)
    check_halves(guest.name, runs=runs, stays=stays, live=wanted[0], persistent=wanted[1])
    if not any(wanted):
        raise UsageError("neither the guest that runs nor its next start is meant", hint="take one of them")
    return wanted
