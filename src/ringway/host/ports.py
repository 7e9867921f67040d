"""Ports: each a row, written before its switch hears of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, RingwayError
from ringway.host.events import Events, Kind, now
from ringway.host.locks import Locks
from ringway.host.operations import Progress
from ringway.host.plugs import Plugs, WantedPort
from ringway.host.rows import Rows, Stage
from ringway.host.switches import Switches
from ringway.model import Action, Change, Plan, PortInfo, PortSpec, PortState, mac_of, socket_of
from ringway.net.base import Condition

_log: Final = logging.getLogger(__name__)
_PLACES: Final = "ports"  #: the lock of who chooses addresses and sockets


class Ports:
    """The verbs. For one event loop.

    :param plugs: which guests have them.
    """

    def __init__(
        self, rows: Rows[WantedPort], switches: Switches, plugs: Plugs, locks: Locks, events: Events
    ) -> None:
        self._rows = rows
        self._switches = switches
        self._ask = switches.ask
        self._plugs = plugs
        self._locks = locks
        self._events = events

    # Looks

    def has(self, name: str) -> bool:
        """Whether there is a port of this name."""
        return name in self._rows

    def made_for(self, guest: str) -> tuple[str, ...]:
        """The names of the ports that the creation of a guest made. :param guest: its UUID."""
        return tuple(row.name for row in self._rows.all() if row.made_for == guest)

    async def list(self) -> tuple[PortInfo, ...]:
        """All ports, by name."""
        return tuple(await asyncio.gather(*(self._view(row) for row in self._rows.all())))

    async def show(self, name: str) -> PortInfo:
        """One port. :raises NotFoundError: there is none."""
        return await self._view(self._rows.get(name))

    async def _view(self, row: WantedPort) -> PortInfo:
        spec = row.spec
        try:
            seen = await self._ask(self._switches.of(spec).show, spec)
        except RingwayError as error:
            seen = Condition(PortState.DEGRADED, error.message)
        return PortInfo(
            name=spec.name,
            switch=spec.switch,
            state=seen.state,
            mac=mac_of(spec),
            socket=socket_of(spec),
            mode=spec.mode,
            guest=self._plugs.guest_of(spec.name),
            message=seen.message,
            spec=spec,
        )

    # Plans

    async def plan_creation(self, spec: PortSpec) -> Plan:
        """What :meth:`create` would do. :raises RingwayError: why it could not."""
        if self._same(spec) is not None:
            return Plan(changes=())
        resolved = await self._check(spec)
        details = (f"{resolved.switch}: {resolved.socket}, QEMU as {resolved.mode}", f"mac {resolved.mac}")
        return Plan(changes=(Change(action=Action.CREATE, object=_thing(spec.name), details=details),))

    def plan_deletion(self, name: str, *, force: bool = False) -> Plan:
        """What :meth:`delete` would do. :raises BusyError: a guest has it."""
        self._rows.get(name)
        if not force:
            self._plugs.refuse_held(name)
        return Plan(changes=(Change(action=Action.DELETE, object=_thing(name)),))

    # Changes

    async def whole(self, spec: PortSpec) -> PortSpec:
        """A port as it is, or as :meth:`create` would make it. :raises RingwayError: it could not."""
        same = self._same(spec)
        return same.spec if same is not None else await self._check(spec)

    async def _check(self, spec: PortSpec) -> PortSpec:
        """:returns: with all that was left open. :raises RingwayError: it could not be made."""
        switch = self._switches.of(spec)
        resolved = await self._ask(switch.resolve, spec)
        others = tuple(row.spec for row in self._rows.all() if row.name != spec.name)
        await self._ask(switch.check, resolved, others)
        return resolved

    async def create(self, progress: Progress, spec: PortSpec, *, made_for: str | None = None) -> PortInfo:
        """Make a port; one that is there and equal is fine. When it fails, there is nothing of it.

        :param made_for: the UUID of the guest whose creation makes it.
        """
        async with self._rows.alone(spec.name):
            switch = self._switches.of(spec)
            if (same := self._same(spec)) is not None:
                if same.made_for not in (None, made_for):  # it is wanted for itself as well
                    same = await self._rows.put(replace(same, made_for=None))
                return await self._view(same)
            progress.step(0.2, "checking")
            async with self._locks.hold(_PLACES):  # of two that want one address, the second is refused
                resolved = await self._check(spec)
                progress.cancellable(False)
                row = await self._rows.mark(
                    WantedPort(name=spec.name, spec=resolved, created=now(), made_for=made_for), Stage.BEGUN
                )
            async with self._rows.confirming(row, self._take_back):
                await self._ask(switch.create, resolved)
            self._events.tell(Kind.PORT_CREATED, _thing(spec.name))
            return await self._view(row)

    def _same(self, spec: PortSpec) -> WantedPort | None:
        """A port that is there and is what is asked for. :raises ConflictError: it is another."""
        found = self._rows.find(spec.name)
        if found is None or (found.stage is Stage.CONFIRMED and _fits(found.spec, spec)):
            return found
        raise ConflictError(
            f"there is a port '{spec.name}' already",
            hint=f"take another name, or delete it first: ringway port delete {spec.name}",
        )

    async def delete(self, progress: Progress, name: str, *, force: bool = False) -> None:
        """Remove a port from its switch. :raises BusyError: a guest has it.

        :param force: take it from its guest; a switch that cannot be asked keeps what it has of it.
        """
        async with self._rows.alone(name):
            row = self._rows.get(name)
            progress.cancellable(False)
            await self._plugs.release(name, force=force)
            row = await self._rows.mark(row, Stage.GOING)
            note = await (self._forget if force else self._take_back)(row)
            self._events.tell(Kind.PORT_DELETED, _thing(name), note or "")

    async def _forget(self, row: WantedPort) -> str | None:
        """Leave nothing of a port, or leave to its switch what that one has: it may be gone for good.

        :returns: what the switch said to it.
        """
        try:
            await self._take_back(row)
        except RingwayError as error:
            await self._rows.remove(row.name)
            note = f"port '{row.name}' is forgotten; what its switch has of it stays: {error.message}"
            _log.warning("%s", note)
            return note
        return None

    async def _take_back(self, row: WantedPort) -> None:
        """Leave nothing of a port; its lock is held."""
        await self._ask(self._switches.of(row.spec).delete, row.spec)
        await self._rows.remove(row.name)

    # What others do

    async def settle(self) -> None:
        """Make the switches have what is wanted, and finish what a daemon left that died."""
        await asyncio.gather(*(self._rows.look_at(row.name, self._settle) for row in self._rows.all()))

    async def look_at(self, name: str) -> None:
        """Look at a port of which its switch told something."""
        if not self._rows.is_held(name):  # who works on it knows
            await self._rows.look_at(name, self._settle)

    async def _settle(self, row: WantedPort) -> None:
        if row.stage is not Stage.CONFIRMED:
            await self._take_back(row)
        elif await self._is_lost(row.spec):
            await self._ask(self._switches.of(row.spec).create, row.spec)
            await self._plugs.tell_again(row.name)

    async def _is_lost(self, spec: PortSpec) -> bool:
        try:
            return (await self._ask(self._switches.of(spec).show, spec)).state is PortState.DEGRADED
        except NotFoundError:
            return True


def _thing(name: str) -> str:
    return f"port/{name}"


def _fits(there: PortSpec, wanted: PortSpec) -> bool:
    """Whether a port is what is asked for, which leaves some things open."""
    fields = PortSpec.__struct_fields__
    return all(getattr(wanted, field) in (None, getattr(there, field)) for field in fields)
