"""Ports: each a row, written before its switch hears of it, and plugged into one guest at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ringway import faults
from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError, UnreachableError, UsageError
from ringway.guest.base import GuestEvent, GuestEventKind
from ringway.host.attachments import guest_lock, when
from ringway.host.calls import Calls
from ringway.host.events import Events, Kind, now
from ringway.host.hypervisors import Guests
from ringway.host.kept import Kept
from ringway.host.locks import Locks
from ringway.host.operations import Operation
from ringway.model import (
    Action,
    Change,
    Check,
    GuestInfo,
    Plan,
    PlugSpec,
    PortInfo,
    PortMode,
    PortSpec,
    PortState,
)
from ringway.net.base import Switch

_WORKERS: Final = 8
_log: Final = logging.getLogger(__name__)


class WantedPort(Struct, frozen=True, kw_only=True):
    """A row. ``made``: its switch confirmed it, and whoever asked was told. ``guest`` is a UUID."""

    spec: PortSpec
    made: bool = False
    deleting: bool = False
    guest: str | None = None
    guest_name: str | None = None
    plugging: bool = False
    created: str = ""

    @property
    def name(self) -> str:
        return self.spec.name


class Ports:
    """The verbs. For one event loop; changes of one port come one at a time."""

    def __init__(
        self,
        rows: Kept[WantedPort],
        switches: Mapping[str, Switch],
        guests: Guests,
        locks: Locks,
        events: Events,
    ) -> None:
        self._rows = rows
        self._switches = dict(switches)
        self._guests = guests
        self._locks = locks
        self._events = events
        self._ask = Calls(_WORKERS, "switch")

    def watch(self, wake: Callable[[str], None]) -> None:
        """Tell of ports that change by themselves. :param wake: called with a name, from any thread."""
        for switch in self._switches.values():
            switch.watch(wake)

    def close(self) -> bool:
        """Let go of the switches; ports stay. :returns: whether all has ended."""
        ended = self._ask.close()
        for switch in self._switches.values():
            switch.close()
        return ended

    # Looks

    def has(self, name: str) -> bool:
        """Whether there is a port of this name."""
        return name in self._rows

    def guest_of(self, name: str) -> str | None:
        """The name of the guest that has a port."""
        row = self._rows.find(name)
        return row.guest_name if row is not None else None

    async def list(self) -> tuple[PortInfo, ...]:
        """All ports, by name."""
        return tuple(await asyncio.gather(*(self._view(row) for row in self._rows.all())))

    async def show(self, name: str) -> PortInfo:
        """One port. :raises NotFoundError: there is none."""
        return await self._view(self._get(name))

    async def probe(self) -> tuple[Check, ...]:
        """What the switches of this host are able to."""
        found = await asyncio.gather(*(self._ask(switch.probe) for switch in self._switches.values()))
        return tuple(check for checks in found for check in checks)

    async def _view(self, row: WantedPort) -> PortInfo:
        try:
            info = await self._ask(self._switch(row.spec).show, row.spec)
        except RingwayError as error:
            info = _unseen(row.spec, error.message)
        return replace(info, guest=row.guest_name, spec=row.spec)

    def _get(self, name: str) -> WantedPort:
        if (found := self._rows.find(name)) is None:
            raise NotFoundError(f"there is no port '{name}'", hint="see: ringway port list")
        return found

    def _switch(self, spec: PortSpec) -> Switch:
        if (found := self._switches.get(spec.switch)) is None:
            raise UsageError(
                f"there is no driver for the switch '{spec.switch}'",
                hint=f"there are: {', '.join(sorted(self._switches))}",
            )
        return found

    # Plans

    async def plan_creation(self, spec: PortSpec) -> Plan:
        """What :meth:`create` would do. :raises RingwayError: why it could not."""
        if self._same(spec) is not None:
            return Plan(changes=())
        resolved = await self._check(spec)
        details = (f"{resolved.switch}: {resolved.socket}, QEMU as {resolved.mode}", f"mac {resolved.mac}")
        return Plan(changes=(Change(action=Action.CREATE, object=f"port/{spec.name}", details=details),))

    def plan_deletion(self, name: str, *, force: bool = False) -> Plan:
        """What :meth:`delete` would do. :raises BusyError: a guest has it."""
        row = self._get(name)
        if not force:
            _refuse_plugged(row, for_guest=None)
        return Plan(changes=(Change(action=Action.DELETE, object=f"port/{name}"),))

    async def plan_plug(self, guest: str, plug: PlugSpec) -> Plan:
        """What :meth:`plug` would do."""
        found = await self._guests.show(guest)
        row = self._get(plug.port)
        _refuse_plugged(row, for_guest=found.uuid)
        live, _ = when(found, plug.live, plug.persistent)
        if live:
            await self._refuse_standstill(row)
        return _plan_of(found, f"plug port {row.name} in")

    async def plan_unplug(self, guest: str, port: str) -> Plan:
        """What :meth:`unplug` would do."""
        found = await self._guests.show(guest)
        _refuse_unplugged(found, port)
        return _plan_of(found, f"unplug port {port}")

    # Ports

    async def _check(self, spec: PortSpec) -> PortSpec:
        """:returns: with all that was left open. :raises RingwayError: it could not be made."""
        switch = self._switch(spec)
        resolved = await self._ask(switch.resolve, spec)
        await self._ask(switch.check, resolved, self._others(spec.name))
        return resolved

    async def whole(self, spec: PortSpec) -> PortSpec:
        """A port as it is, or as :meth:`create` would make it. :raises RingwayError: it could not."""
        row = self._rows.find(spec.name)
        return row.spec if row is not None and _fits(row.spec, spec) else await self._check(spec)

    async def create(self, operation: Operation, spec: PortSpec) -> PortInfo:
        """Make a port; one that is there and equal is fine. When it fails, there is nothing of it."""
        async with self._locks.hold(_lock(spec.name)):
            switch = self._switch(spec)
            if (same := self._same(spec)) is not None:
                return await self._view(same)
            operation.step(0.2, "checking")
            async with self._locks.hold(_PLACES):  # of two that want one address, the second is refused
                resolved = await self._check(spec)
                operation.cancellable(False)
                row = await self._rows.put(spec.name, WantedPort(spec=resolved, created=now()))
            faults.point("port.committed")
            try:
                await self._ask(switch.create, resolved)
                faults.point("port.made")
                row = await self._rows.put(spec.name, replace(row, made=True))
            except BaseException:
                await self._take_back(row)
                raise
            self._events.tell(Kind.PORT_CREATED, f"port/{spec.name}")
            return await self._view(row)

    def _same(self, spec: PortSpec) -> WantedPort | None:
        """A port that is there and is what is asked for. :raises ConflictError: it is another."""
        found = self._rows.find(spec.name)
        if found is None or (found.made and not found.deleting and _fits(found.spec, spec)):
            return found
        raise ConflictError(
            f"there is a port '{spec.name}' already",
            hint=f"take another name, or delete it first: ringway port delete {spec.name}",
        )

    def _others(self, name: str) -> tuple[PortSpec, ...]:
        return tuple(row.spec for row in self._rows.all() if row.name != name)

    async def delete(self, operation: Operation, name: str, *, force: bool = False) -> None:
        """Remove a port from its switch. :raises BusyError: a guest has it."""
        async with self._locks.hold(_lock(name)):
            row = self._get(name)
            if row.guest is not None and not force:
                row = await self._freed(row, for_guest=None)
            operation.cancellable(False)
            row = await self._rows.put(name, replace(row, deleting=True))
            faults.point("port.deleting")
            await self._take_back(row, force=force)
            self._events.tell(Kind.PORT_DELETED, f"port/{name}")

    async def _freed(self, row: WantedPort, *, for_guest: str | None) -> WantedPort:
        """A port that no guest has but one; a guest may be gone without our having heard.

        :raises BusyError: a guest has it, as far as can be told.
        """
        if row.guest in (None, for_guest):
            return row
        if not row.plugging:
            with contextlib.suppress(UnreachableError):
                await self._compare(row.name)
            row = self._get(row.name)
        _refuse_plugged(row, for_guest=for_guest)
        return row

    async def _take_back(self, row: WantedPort, *, force: bool = False) -> None:
        """Leave nothing of a port; its lock is held. What its guest does not let go stays in the guest.

        :param force: a switch whose driver is not there any more has nothing of it.
        """
        if row.guest is not None:
            try:
                await self._unplug(row.guest, row.name)
            except RingwayError as error:
                _log.warning("guest '%s' does not let port '%s' go: %s", row.guest_name, row.name, error)
        if row.spec.switch in self._switches or not force:
            await self._ask(self._switch(row.spec).delete, row.spec)
        await self._rows.remove(row.name)

    # Guests

    async def plug(self, operation: Operation, guest: str, plug: PlugSpec) -> PortInfo:
        """Give a guest a port, the one that runs and its next start. When it fails, it is as before."""
        async with self._locks.hold(_lock(plug.port)):
            row = self._get(plug.port)
            found = await self._guests.show(guest)
            row = await self._freed(row, for_guest=found.uuid)
            live, persistent = when(found, plug.live, plug.persistent)
            if live:
                await self._refuse_standstill(row)
            operation.cancellable(False)
            async with self._locks.hold(guest_lock(found.uuid)):
                return await self._plug(row, found, live=live, persistent=persistent)

    async def _refuse_standstill(self, row: WantedPort) -> None:
        """:raises ConflictError: the guest that runs would stand still until a switch connects.

        QEMU that listens at a port waits for its switch, and nobody knows when an unknown one comes.
        """
        known = row.spec.switch != "external" and (await self._view(row)).state is not PortState.DEGRADED
        if row.spec.mode is PortMode.SERVER and not known:
            raise ConflictError(
                f"a guest that runs would stand still until the switch connects to port '{row.name}'",
                hint="plug it in for the next start (--no-live), or make the port with --mode client",
            )

    async def _plug(self, row: WantedPort, guest: GuestInfo, *, live: bool, persistent: bool) -> PortInfo:
        had = row.name in guest.ports and not row.plugging  # which is not to be taken back, then
        plugging = replace(row, guest=guest.uuid, guest_name=guest.name, plugging=not had)
        await self._rows.put(row.name, plugging)
        faults.point("plug.committed")
        try:
            await self._ask(self._switch(row.spec).plug, row.spec, guest.uuid)
            await self._guests.ask(
                self._guests.hypervisor.plug, guest.uuid, row.spec, live=live, persistent=persistent
            )
            faults.point("plug.made")
            plugged = await self._rows.put(row.name, replace(plugging, plugging=False))
        except BaseException:
            await self._give_up(row)
            raise
        self._events.tell(Kind.PLUGGED, f"guest/{guest.name}", f"port {row.name}")
        return await self._view(plugged)

    async def _give_up(self, row: WantedPort) -> None:
        """What the guest did not take it has not; the switch is told once more whose the port is."""
        await self._rows.put(row.name, row)
        try:
            await self._tell_owner(row)
        except RingwayError as error:
            _log.warning("port '%s': %s", row.name, error)

    async def _tell_owner(self, row: WantedPort) -> None:
        switch = self._switch(row.spec)
        if row.guest is None:
            await self._ask(switch.unplug, row.spec)
        else:
            await self._ask(switch.plug, row.spec, row.guest)

    async def unplug(
        self, operation: Operation, guest: str, name: str, *, live: bool, persistent: bool, timeout_s: float
    ) -> None:
        """Take a port from a guest. :raises TimedOutError: the guest does not let it go."""
        async with self._locks.hold(_lock(name)):
            found = await self._guests.show(guest)
            _refuse_unplugged(found, name)
            operation.cancellable(False)
            async with self._locks.hold(guest_lock(found.uuid)):
                await self._guests.ask(
                    self._guests.hypervisor.unplug,
                    found.uuid,
                    name,
                    live=live,
                    persistent=persistent,
                    timeout_s=timeout_s,
                )
                await self._compare(name)
            self._events.tell(Kind.UNPLUGGED, f"guest/{found.name}", f"port {name}")

    async def _unplug(self, guest: str, name: str) -> None:
        async with self._locks.hold(guest_lock(guest)):
            try:
                await self._guests.ask(
                    self._guests.hypervisor.unplug,
                    guest,
                    name,
                    live=True,
                    persistent=True,
                    timeout_s=_GIVE_UP_S,
                )
            except NotFoundError:
                _log.info("the guest of port '%s' is gone", name)

    # What others do

    async def settle(self) -> None:
        """Make the switches have what is wanted, and finish what a daemon left that died."""
        await asyncio.gather(*(self._alone(row.name, self._settle) for row in self._rows.all()))

    async def _alone(self, name: str, look: Callable[[str], Awaitable[None]]) -> None:
        """Look at a port when it is its turn. Never raises :class:`RingwayError`."""
        async with self._locks.hold(_lock(name)):
            try:
                await look(name)
            except RingwayError as error:
                _log.warning("port '%s': %s", name, error)

    async def look_at(self, name: str) -> None:
        """Look at a port of which its switch told something."""
        if not self._locks.is_held(_lock(name)):
            async with self._locks.hold(_lock(name)):
                await self._settle(name)

    async def _settle(self, name: str) -> None:
        row = self._rows.find(name)
        if row is None:
            return
        if row.deleting or not row.made:
            await self._take_back(row)
            return
        await self._finish(name)
        if await self._is_lost(row.spec):
            await self._ask(self._switch(row.spec).create, row.spec)
            await self._tell_owner(self._get(name))

    async def _finish(self, name: str) -> None:
        """Take back a plug that nobody was told of; then say what the guest's document says."""
        row = self._rows.find(name)
        if row is not None and row.plugging and row.guest is not None:
            await self._unplug(row.guest, name)
        await self._compare(name)

    async def _is_lost(self, spec: PortSpec) -> bool:
        try:
            return (await self._ask(self._switch(spec).show, spec)).state is PortState.DEGRADED
        except NotFoundError:
            return True

    async def _compare(self, name: str) -> None:
        """Make the row say what its guest's document says."""
        row = self._rows.find(name)
        if row is None or row.guest is None or not self._guests.there:
            return
        try:
            found = await self._guests.show(row.guest)
        except NotFoundError:
            found = None
        if found is not None and name in found.ports:
            kept = replace(row, plugging=False, guest_name=found.name)
        else:
            kept = replace(row, plugging=False, guest=None, guest_name=None)
        if kept != row:
            await self._rows.put(name, kept)
            await self._tell_owner(kept)

    async def heed(self, event: GuestEvent) -> None:
        """Something happened to a guest: look at the ports that it had."""
        await asyncio.gather(*(self._alone(name, self._finish) for name in self._of(event)))

    def _of(self, event: GuestEvent) -> Iterable[str]:
        everything = event.kind is GuestEventKind.CONNECTED
        plugged = [(row.name, row.guest, row.guest_name or "") for row in self._rows.all() if row.guest]
        return [name for name, uuid, guest in plugged if everything or event.is_of(uuid, guest)]


_GIVE_UP_S: Final = 10.0


_PLACES: Final = "ports"  #: the lock of who chooses addresses and sockets


def _lock(name: str) -> str:
    return f"port/{name}"


def _plan_of(guest: GuestInfo, detail: str) -> Plan:
    return Plan(changes=(Change(action=Action.UPDATE, object=f"guest/{guest.name}", details=(detail,)),))


def _refuse_unplugged(guest: GuestInfo, port: str) -> None:
    """:raises NotFoundError: the guest has no such port."""
    if port not in guest.ports:
        raise NotFoundError(
            f"guest '{guest.name}' has no port '{port}'", hint=f"see: ringway guest show {guest.name}"
        )


def _refuse_plugged(row: WantedPort, *, for_guest: str | None) -> None:
    """:raises BusyError: a guest has it, and not this one."""
    if row.guest not in (None, for_guest):
        raise BusyError(
            f"port '{row.name}' is plugged into guest '{row.guest_name}'",
            holder=f"guest {row.guest_name}",
            hint=f"unplug it there first: ringway guest unplug {row.guest_name} {row.name}",
        )


def _fits(there: PortSpec, wanted: PortSpec) -> bool:
    """Whether a port is what is asked for, which leaves some things open."""
    fields = PortSpec.__struct_fields__
    return all(getattr(wanted, field) in (None, getattr(there, field)) for field in fields)


def _unseen(spec: PortSpec, message: str) -> PortInfo:
    """What can be said of a port whose switch does not answer."""
    return PortInfo(
        name=spec.name,
        switch=spec.switch,
        state=PortState.DEGRADED,
        mac=spec.mac or "",
        socket=spec.socket or "",
        mode=spec.mode,
        message=message,
    )
