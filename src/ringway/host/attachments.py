"""Which guest has which endpoint: each attachment a row, written before the domain is touched.

The domain's own document says what is attached; a row says what was asked for, and who has the endpoint. A
row that is not confirmed is what a daemon left that died: what it began is taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ringway import faults
from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError, UnreachableError, UsageError
from ringway.guest.base import GuestEvent, GuestEventKind, Wish, face_of
from ringway.host.events import Events, Kind, now
from ringway.host.health import runs
from ringway.host.hypervisors import Guests
from ringway.host.kept import Kept
from ringway.host.locks import Locks
from ringway.host.operations import Operation
from ringway.model import (
    Action,
    AttachmentInfo,
    AttachmentState,
    AttachSpec,
    Change,
    EndpointInfo,
    EngineKind,
    GuestInfo,
    GuestState,
    Plan,
)

_RUNNING: Final = (GuestState.RUNNING, GuestState.PAUSED)
_log: Final = logging.getLogger(__name__)
ShowEndpoint = Callable[[str], Awaitable[EndpointInfo]]


class Attached(Struct, frozen=True, kw_only=True):
    """A row. ``guest`` is a UUID: a guest may get another name."""

    wish: Wish
    guest: str
    name: str  #: of the guest, when it was attached
    state: AttachmentState
    created: str


class Attachments:
    """The verbs. For one event loop.

    Who works on an attachment has a lock of its own, and the endpoint's for a moment only: a guest may take
    its time, and meanwhile whoever mends the endpoint must get at it, or the guest waits for a dead disk.
    Locks are taken in one order: the attachment's, the endpoint's (and given back), the guest's.

    :param locks: of endpoints and guests.
    :param show: tells how an endpoint is now.
    """

    def __init__(
        self, rows: Kept[Attached], guests: Guests, locks: Locks, events: Events, show: ShowEndpoint
    ) -> None:
        self._rows = rows
        self._guests = guests
        self._locks = locks
        self._events = events
        self._show = show
        self._changing: Counter[str] = Counter()  #: endpoints that are attached or detached, or wait for it
        self._due: set[str] = set()  #: endpoints at which somebody is about to look

    # Looks

    def guest_of(self, endpoint: str) -> str | None:
        """The name of the guest that has an endpoint."""
        row = self._rows.find(endpoint)
        return row.name if row is not None else None

    def view(self, guest: GuestInfo) -> GuestInfo:
        """A guest, with what is under way."""
        return replace(guest, attachments=tuple(map(self._with_state, guest.attachments)))

    def _with_state(self, info: AttachmentInfo) -> AttachmentInfo:
        row = self._rows.find(info.endpoint)
        if row is None or row.state is AttachmentState.ATTACHED:
            return info  # which may say that the guest was asked to let it go
        return replace(info, state=row.state)

    # Attach

    @contextlib.asynccontextmanager
    async def _change(self, endpoint: str) -> AsyncIterator[None]:
        """Be alone with an attachment, to change it."""
        self._changing[endpoint] += 1
        try:
            async with self._locks.hold(_lock(endpoint)):
                yield
        finally:
            self._changing[endpoint] -= 1
            self._changing += Counter()  # what is at zero goes

    async def plan(self, guest: str, spec: AttachSpec) -> Plan:
        """What :meth:`attach` would do. :raises RingwayError: why it could not."""
        found = await self._guests.show(guest)
        wish, live, persistent = await self._understand(found, spec)
        lines = await self._guests.ask(
            self._guests.hypervisor.check, found.uuid, wish, live=live, persistent=persistent
        )
        return Plan(changes=(Change(action=Action.UPDATE, object=_thing(found.name), details=lines),))

    async def attach(self, operation: Operation, guest: str, spec: AttachSpec) -> AttachmentInfo:
        """Give a guest an endpoint. When it fails, the guest is as before.

        :raises ConflictError: another guest has it. :raises RingwayError: as the hypervisor.
        """
        async with self._change(spec.endpoint):
            operation.step(0.1, "looking at the guest")
            found = await self._guests.show(guest)
            before = await self._row_of(spec.endpoint, found)
            async with self._locks.hold(spec.endpoint):  # nobody deletes it before there is a row
                wish, live, persistent = await self._understand(found, spec)
                operation.cancellable(False)
                row = await self._rows.put(wish.endpoint, _row(wish, found, before))
            faults.point("attach.committed")
            async with self._locks.hold(guest_lock(found.uuid)):
                operation.step(0.4, "attaching")
                return await self._attach(row, before, live=live, persistent=persistent)

    async def _row_of(self, endpoint: str, guest: GuestInfo) -> Attached | None:
        """The row of an endpoint that a guest shall get; its lock is held. Another guest's may be old."""
        row = self._rows.find(endpoint)
        if row is not None and row.guest != guest.uuid and row.state is not AttachmentState.ATTACHING:
            await self._compare(row.guest, endpoint)
        return self._rows.find(endpoint)

    async def _attach(
        self, row: Attached, before: Attached | None, *, live: bool, persistent: bool
    ) -> AttachmentInfo:
        wish = row.wish
        try:
            info = await self._guests.ask(
                self._guests.hypervisor.attach, row.guest, wish, live=live, persistent=persistent
            )
            faults.point("attach.made")
            await self._rows.put(wish.endpoint, replace(row, state=AttachmentState.ATTACHED))
        except BaseException:
            await self._give_up(row, before)
            raise
        faults.point("attach.acknowledged")
        self._events.tell(Kind.ATTACHED, _thing(row.name), f"endpoint {wish.endpoint}")
        return info

    async def _give_up(self, row: Attached, before: Attached | None) -> None:
        """Leave a guest as it was. What cannot be taken back now is when the row is looked at again."""
        if row.state is AttachmentState.ATTACHED:  # the guest had it already, and has it still
            if before is not None:
                await self._rows.put(row.wish.endpoint, before)
            return
        try:
            await self._take_back(row)
        except RingwayError as error:
            _log.warning("guest '%s' still has something of '%s': %s", row.name, row.wish.endpoint, error)

    async def _understand(self, guest: GuestInfo, spec: AttachSpec) -> tuple[Wish, bool, bool]:
        """:returns: what is wished, and whether for the guest that runs and for its next start."""
        row = self._rows.find(spec.endpoint)
        if row is not None and row.guest != guest.uuid:
            raise BusyError(
                f"endpoint '{spec.endpoint}' is attached to guest '{row.name}'",
                holder=f"guest {row.name}",
                hint=f"detach it there first: ringway guest detach {row.name} {spec.endpoint}",
            )
        endpoint = await self._show(spec.endpoint)
        if not runs(endpoint):
            raise ConflictError(
                f"endpoint '{spec.endpoint}' is {endpoint.state}"
                + (f": {endpoint.message}" if endpoint.message else ""),
                hint=f"see: ringway endpoint show {spec.endpoint}",
            )
        live, persistent = when(guest, spec.live, spec.persistent)
        return _wish(endpoint, spec), live, persistent

    # Detach

    async def detach(
        self,
        operation: Operation,
        guest: str,
        endpoint: str,
        *,
        live: bool,
        persistent: bool,
        timeout_s: float,
    ) -> None:
        """Take an endpoint from a guest, from the one that runs and from its next start.

        :param timeout_s: how long the guest may take. :raises TimedOutError: it did not let go in that time.
        :raises NotFoundError: it has none of this name.
        """
        async with self._change(endpoint):
            found = await self._guests.show(guest)
            async with self._locks.hold(guest_lock(found.uuid)):
                _attachment(found, endpoint)
                operation.cancellable(False)
                operation.step(0.3, "waiting for the guest to let it go" if live else "detaching")
                await self._detach(found, endpoint, live=live, persistent=persistent, timeout_s=timeout_s)

    async def _detach(
        self, guest: GuestInfo, endpoint: str, *, live: bool, persistent: bool, timeout_s: float
    ) -> None:
        row = self._rows.find(endpoint)
        if mine := row is not None and row.guest == guest.uuid:
            await self._rows.put(endpoint, replace(row, state=AttachmentState.DETACHING))
        faults.point("detach.committed")
        try:
            await self._guests.ask(
                self._guests.hypervisor.detach,
                guest.uuid,
                endpoint,
                live=live,
                persistent=persistent,
                timeout_s=timeout_s,
            )
            faults.point("detach.made")
        finally:
            if mine:
                await self._compare(guest.uuid, endpoint)
        self._events.tell(Kind.DETACHED, _thing(guest.name), f"endpoint {endpoint}")

    async def plan_detachment(
        self, guest: str, endpoint: str, *, live: bool = True, persistent: bool = True
    ) -> Plan:
        """What :meth:`detach` would do. :raises NotFoundError: there is nothing to detach."""
        found = await self._guests.show(guest)
        info = _attachment(found, endpoint)
        places = {"the guest that runs": live and info.live, "its next start": persistent and info.persistent}
        details = tuple(f"detach {endpoint} from {place}" for place, there in places.items() if there)
        return Plan(changes=(Change(action=Action.UPDATE, object=_thing(found.name), details=details),))

    async def release(self, endpoint: str, *, force: bool) -> None:
        """Let an endpoint go that is to be deleted; its lock is held.

        :param force: take it out of the guest that has it; what the guest or libvirt does not let go stays
            in the domain, and is nobody's.
        :raises BusyError: a guest has it, or is just getting it or losing it.
        """
        row = self._rows.find(endpoint)
        if row is None:
            return
        if self._changing[endpoint]:  # who does that may want the endpoint's lock
            raise BusyError(
                f"endpoint '{endpoint}' is just being attached to guest '{row.name}' or detached from it",
                holder=f"guest {row.name}",
                hint="wait for that: ringway operation list",
            )
        async with self._locks.hold(_lock(endpoint)):
            if force:
                await self._force_out(row)
            else:
                await self._refuse_attached(row)

    async def _refuse_attached(self, row: Attached) -> None:
        """:raises BusyError: a guest has it, as far as can be told."""
        with contextlib.suppress(RingwayError):
            if row.state is not AttachmentState.ATTACHING:
                await self._compare(row.guest, row.wish.endpoint)
        self.refuse_attached(row.wish.endpoint)

    def refuse_attached(self, endpoint: str) -> None:
        """:raises BusyError: a guest has an endpoint, as far as is known."""
        if (row := self._rows.find(endpoint)) is not None:
            raise _attached(row)

    async def _force_out(self, row: Attached) -> None:
        endpoint = row.wish.endpoint
        async with self._locks.hold(guest_lock(row.guest)):
            try:
                await self._take_back(row)
            except RingwayError as error:
                _log.warning("guest '%s' does not let '%s' go: %s", row.name, endpoint, error)
                await self._forget_next_start(row)
                await self._rows.remove(endpoint)

    async def _forget_next_start(self, row: Attached) -> None:
        """The guest's next start must not wait for what is gone then."""
        with contextlib.suppress(RingwayError):
            await self._guests.ask(
                self._guests.hypervisor.detach,
                row.guest,
                row.wish.endpoint,
                live=False,
                persistent=True,
                timeout_s=0.0,
            )

    # What others do

    async def settle(self, *, unconfirmed: bool = False) -> None:
        """Compare all rows with the domains: after a start, and when libvirt is there again.

        :param unconfirmed: only those that were left half done.
        """
        if not unconfirmed:
            await self._take_in()
        rows = [
            row for row in self._rows.all() if not (unconfirmed and row.state is AttachmentState.ATTACHED)
        ]
        await asyncio.gather(*(self._look_at(row.wish.endpoint) for row in rows))

    async def _take_in(self) -> None:
        """Write down what guests have of ours without a row: it was lost, or they were given it by others."""
        with contextlib.suppress(UnreachableError):
            for guest in await self._guests.list():
                for info in guest.attachments:
                    await self._enter(guest, info.endpoint)

    async def _enter(self, guest: GuestInfo, endpoint: str) -> None:
        async with self._locks.hold(_lock(endpoint)):
            if endpoint in self._rows or await self._who_has(guest.uuid, endpoint) is None:
                return
            if self._locks.is_held(endpoint):  # who deletes it may wait for us; a later look does it
                return
            async with self._locks.hold(endpoint):
                try:
                    wish = _wish(await self._show(endpoint), AttachSpec(endpoint=endpoint))
                except RingwayError as error:
                    _log.info(
                        "guest '%s' has an endpoint '%s' that is not known: %s", guest.name, endpoint, error
                    )
                else:
                    await self._rows.put(endpoint, _row(wish, guest, None))

    async def _look_at(self, endpoint: str) -> None:
        """Compare a row with its domain, when it is its turn. Never raises :class:`RingwayError`."""
        if endpoint in self._due:  # who waits for his turn sees what is so then
            return
        self._due.add(endpoint)
        try:
            async with self._locks.hold(_lock(endpoint)):
                self._due.discard(endpoint)
                await self._settle(endpoint)
        except RingwayError as error:
            _log.warning("a guest's endpoint '%s' cannot be looked at: %s", endpoint, error)
        finally:
            self._due.discard(endpoint)

    async def _settle(self, endpoint: str) -> None:
        row = self._rows.find(endpoint)
        if row is None:
            return
        async with self._locks.hold(guest_lock(row.guest)):
            if row.state is AttachmentState.ATTACHING:
                await self._take_back(row)
            else:
                await self._compare(row.guest, endpoint)

    async def _take_back(self, row: Attached) -> None:
        try:
            await self._guests.ask(self._guests.hypervisor.take_back, row.guest, row.wish.endpoint)
        except NotFoundError:
            _log.info("guest '%s' is gone, and its endpoint '%s' is free", row.name, row.wish.endpoint)
        faults.point("attach.taken-back")
        await self._rows.remove(row.wish.endpoint)

    async def _compare(self, guest: str, endpoint: str) -> None:
        """Make the row say what the domain says; without it there, there is no row."""
        row = self._rows.find(endpoint)
        if row is None:
            return
        name = await self._who_has(guest, endpoint)
        if name is None:
            await self._rows.remove(endpoint)
        elif row != (there := replace(row, name=name, state=AttachmentState.ATTACHED)):
            await self._rows.put(endpoint, there)

    async def _who_has(self, guest: str, endpoint: str) -> str | None:
        """The name that a guest has now, if it has an endpoint."""
        try:
            found = await self._guests.show(guest)
        except NotFoundError:
            return None
        return found.name if any(each.endpoint == endpoint for each in found.attachments) else None

    async def heed(self, event: GuestEvent) -> None:
        """Something happened to a guest: look at what it had."""
        if event.kind is GuestEventKind.CONNECTED:
            await self.settle()
        else:
            await asyncio.gather(*map(self._look_at, self._of(event)))

    def _of(self, event: GuestEvent) -> Iterable[str]:
        return [row.wish.endpoint for row in self._rows.all() if event.is_of(row.guest, row.name)]


def _row(wish: Wish, guest: GuestInfo, before: Attached | None) -> Attached:
    """What is written down before a domain is touched: what it has already is not to be taken back."""
    had = any(each.endpoint == wish.endpoint for each in guest.attachments)
    half_done = before is not None and before.state is AttachmentState.ATTACHING
    state = AttachmentState.ATTACHED if had and not half_done else AttachmentState.ATTACHING
    return Attached(wish=wish, guest=guest.uuid, name=guest.name, state=state, created=now())


def _attached(row: Attached) -> BusyError:
    return BusyError(
        f"endpoint '{row.wish.endpoint}' is attached to guest '{row.name}', now or at its next start",
        holder=f"guest {row.name}",
        hint=f"first: ringway guest detach {row.name} {row.wish.endpoint};"
        " --force takes it away all the same",
    )


def _attachment(guest: GuestInfo, endpoint: str) -> AttachmentInfo:
    """:raises NotFoundError: the guest has no such endpoint."""
    found = next((each for each in guest.attachments if each.endpoint == endpoint), None)
    if found is None:
        raise NotFoundError(
            f"guest '{guest.name}' has no endpoint '{endpoint}'", hint=f"see: ringway guest show {guest.name}"
        )
    return found


def _lock(endpoint: str) -> str:
    """The name of an attachment's lock; no endpoint has a slash in its name."""
    return f"attachment/{endpoint}"


def guest_lock(uuid: str) -> str:
    """The name of a guest's lock; no endpoint has a slash in its name."""
    return f"guest/{uuid}"


def _thing(name: str) -> str:
    return f"guest/{name}"


def when(guest: GuestInfo, live: bool | None, persistent: bool | None) -> tuple[bool, bool]:
    """Whether the guest that runs is meant, and whether its next start; both, if nothing is said.

    :raises ConflictError: the guest does not run, or has no next start.
    """
    runs_now = guest.state in _RUNNING
    if live and not runs_now:
        raise ConflictError(f"guest '{guest.name}' does not run", hint="leave out --live")
    if persistent and not guest.persistent:
        raise ConflictError(f"guest '{guest.name}' has no next start", hint="leave out --persistent")
    wanted = (runs_now if live is None else live, guest.persistent if persistent is None else persistent)
    if not any(wanted):
        raise UsageError("neither the guest that runs nor its next start is meant", hint="take one of them")
    return wanted


def _wish(endpoint: EndpointInfo, spec: AttachSpec) -> Wish:
    """:raises UsageError: the endpoint has not so many queues, or no protection information."""
    has = endpoint.spec.queues if endpoint.spec is not None and endpoint.engine is EngineKind.USER else None
    if has is not None and spec.queues is not None and spec.queues > has:
        raise UsageError(
            f"endpoint '{endpoint.name}' has {has} queues, not {spec.queues}",
            hint=f"take --queues {has}, or make the endpoint with more",
        )
    if spec.protection and endpoint.engine is EngineKind.USER:
        raise UsageError("the user engine has no protection information", hint="leave out --protection")
    return Wish(
        endpoint=endpoint.name,
        face=face_of(endpoint),
        socket=endpoint.socket,
        wwpn=endpoint.wwpn,
        queues=spec.queues or has or 1,
        boot_order=spec.boot_order,
        protection=spec.protection,
        fix_memory=spec.fix_memory,
    )
