"""Guests that are made with all that they need: volumes, ports and endpoints first, then the domain.

All of it, or nothing: what a creation made is told by its row, and by marks in the rows of what it made.
Until the domain is there it is undone, from then on it is finished, by whoever finds it. What was there
before stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from ringway import faults
from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError
from ringway.guest.resolvers import Connection, Resolvers
from ringway.host.changes import Changes
from ringway.host.events import now
from ringway.host.holdings import Holdings, guest_lock
from ringway.host.locks import Locks
from ringway.host.operations import Part, Progress
from ringway.host.rows import Row, Rows, Stage
from ringway.media import medium
from ringway.model import Action, Change, GuestInfo, GuestSpec, Plan

if TYPE_CHECKING:
    from ringway.guest.fresh import Fresh
    from ringway.guest.layout import Disk
    from ringway.host.host import Host

_log: Final = logging.getLogger(__name__)


class Creation(Row, frozen=True, kw_only=True):
    """A row: a guest that is being made. Endpoints and ports that it made have its UUID in their rows."""

    guest: str  #: the UUID that it has, or would have
    volumes: dict[str, int | None]  #: paths of new ones, and their inodes as soon as they are known
    connections: tuple[Connection, ...] = ()  #: volumes that resolvers bring here, or were about to


class Creations:
    """Makes guests on a host. For one event loop.

    :param sockets: the folder of its endpoints' sockets.
    :param locks: of guests, among others.
    """

    def __init__(
        self, rows: Rows[Creation], host: Host, changes: Changes, sockets: Path, locks: Locks
    ) -> None:
        self._rows = rows
        self._host = host
        self._changes = changes
        self._sockets = sockets
        self._locks = locks

    async def plan(self, spec: GuestSpec) -> Plan:
        """What :meth:`create` would do. :raises RingwayError: why it could not."""
        spec, made = await self._drawn(spec, str(uuid.uuid4()))
        async with self._promised(spec, made):
            pass
        endpoints = [f"endpoint/{each.name}" for each in made.endpoints.specs if not self._changes.has(each)]
        ports = [f"port/{port.name}" for port in spec.ports if not self._host.ports.has(port.name)]
        first = [Change(action=Action.CREATE, object=name) for name in (*endpoints, *ports)]
        disks = tuple(f"disk {disk.target}: {disk.volume.path}" for disk in made.disks)
        guest = Change(action=Action.CREATE, object=f"guest/{spec.name}", details=disks)
        return Plan(changes=(*first, guest))

    async def create(self, progress: Progress, spec: GuestSpec) -> GuestInfo:
        """Make a guest and all that it needs, and start it. When it fails, there is nothing of it.

        :raises ConflictError: there is one of this name. :raises BusyError: another guest has what it needs.
        """
        async with self._rows.alone(spec.name):  # of two of one name, the second is refused
            if (left := self._rows.find(spec.name)) is not None:
                progress.cancellable(False)
                await self._settle(left)
                progress.cancellable(True)
            progress.step(0.1, "checking")
            row = Creation(name=spec.name, guest=str(uuid.uuid4()), volumes={}, created=now())
            spec, made = await self._drawn(spec, row.guest)
            async with self._alone(spec, made), self._promised(spec, made):
                return await self._create(progress, row, spec, made)

    async def _create(self, progress: Progress, row: Creation, spec: GuestSpec, made: Fresh) -> GuestInfo:
        self._refuse_others(spec, made)
        progress.cancellable(False)
        row = await self._rows.mark(_with_connections(row, made), Stage.BEGUN)
        async with self._rows.confirming(row, self._undo), self._connected(row, spec, made) as whole:
            await self._make_parts(progress, self._rows.get(row.name), spec, whole)
            async with self._locks.hold(guest_lock(row.guest)):
                found = await self._make_domain(progress, spec, whole)
        for holdings in self._holdings:
            await holdings.enter(found)
        await self._rows.remove(row.name)
        return self._host.view(await self._host.guests.show(found.uuid))

    async def _make_domain(self, progress: Progress, spec: GuestSpec, made: Fresh) -> GuestInfo:
        guests = self._host.guests
        progress.step(0.7, "defining the guest")
        found = await guests.ask(guests.hypervisor.define, made.document.xml)
        faults.point("creation.defined")
        if spec.start:
            progress.step(0.8, "starting the guest")
            await guests.ask(guests.hypervisor.start, found.uuid)
        return found

    # What it would be

    async def _drawn(self, spec: GuestSpec, guest: str) -> tuple[GuestSpec, Fresh]:
        """Choose what is open, and draw the domain; nothing is made.

        :raises RingwayError: what would fail.
        """
        from ringway.guest import fresh
        from ringway.guest.catalogue import Catalogue, backstores_of

        await self._refuse_name(spec.name)
        ports = self._host.ports
        spec = replace(spec, ports=tuple([await ports.whole(port) for port in spec.ports]))
        for port in spec.ports if spec.start else ():
            await self._host.plugs.refuse_start(port)
        known = backstores_of(await self._host.backstores())
        catalogue = Catalogue(spec.volumes, spec.pools, backstores=known)
        ask, how = self._host.guests.ask, self._manner(spec, guest)
        made = await ask(fresh.fresh, spec, catalogue, self._socket, **how)
        for endpoint in made.endpoints.specs:
            self._changes.refuse_other(endpoint)
        self._refuse_others(spec, made)
        return spec, made

    def _manner(self, spec: GuestSpec, guest: str) -> dict[str, Any]:
        """How a domain is drawn, whether or not its volumes are here yet."""
        wwpns = {each.name: each.spec.wwpn for each in self._host.desired.all() if each.spec.wwpn}
        return {"wwpns": wwpns, "kvm": not spec.emulate, "uuid": guest}

    async def _refuse_name(self, name: str) -> None:
        """:raises ConflictError: there is a guest of this name."""
        with contextlib.suppress(NotFoundError):
            await self._host.guests.show(name)
            raise ConflictError(f"there is a guest '{name}' already", hint="take another name")

    @property
    def _holdings(self) -> tuple[Holdings, ...]:
        return self._host.attachments, self._host.plugs

    def _needed(self, spec: GuestSpec, made: Fresh) -> Iterator[tuple[Holdings, str]]:
        """What a guest shall have, in the order in which it is locked."""
        attachments, plugs = self._holdings
        yield from ((attachments, name) for name in sorted(each.name for each in made.endpoints.specs))
        yield from ((plugs, name) for name in sorted(port.name for port in spec.ports))

    def _refuse_others(self, spec: GuestSpec, made: Fresh) -> None:
        """:raises BusyError: another guest has a port or an endpoint that this one shall have."""
        for holdings, thing in self._needed(spec, made):
            if (guest := holdings.guest_of(thing)) is not None:
                raise BusyError(
                    f"guest '{guest}' has {holdings.words.thing} '{thing}'",
                    holder=f"guest {guest}",
                    hint="take it away there first",
                )

    @contextlib.asynccontextmanager
    async def _alone(self, spec: GuestSpec, made: Fresh) -> AsyncIterator[None]:
        """Let nobody give to another guest, or delete, what this one shall have."""
        async with contextlib.AsyncExitStack() as stack:
            for holdings, thing in self._needed(spec, made):
                await stack.enter_async_context(holdings.promising(thing, spec.name))
            yield

    def _promised(self, spec: GuestSpec, made: Fresh) -> contextlib.AbstractAsyncContextManager[None]:
        """Let nobody else have the disks that are there. :raises BusyError: somebody has."""
        there = [disk for disk in made.disks if not disk.volume.new]
        return self._host.disks.promised(spec.name, there, made.endpoints.specs)

    def _socket(self, endpoint: str) -> str:
        return str(self._sockets / f"{endpoint}.sock")

    # Making

    @contextlib.asynccontextmanager
    async def _connected(self, row: Creation, spec: GuestSpec, made: Fresh) -> AsyncIterator[Fresh]:
        """Have resolvers bring their volumes here; the domain is drawn again, with them as they are now."""
        if not row.connections:
            yield made
            return
        from ringway.guest import fresh

        disks = [await self._connect(row, disk) for disk in made.disks]
        ask, how = self._host.guests.ask, self._manner(spec, row.guest)
        made = await ask(fresh.draw, spec, tuple(disks), self._socket, **how)
        async with self._promised(spec, made):
            yield made

    async def _connect(self, row: Creation, disk: Disk) -> Disk:
        if (connection := _connection(disk)) is None:
            return disk
        volume = await self._host.guests.ask(Resolvers().connect, connection, row.guest)
        faults.point("creation.connected")
        row = self._rows.get(row.name)
        others = tuple(each for each in row.connections if each != connection)
        await self._rows.put(replace(row, connections=(*others, replace(connection, path=volume.path))))
        return replace(disk, volume=volume)

    async def _make_parts(self, progress: Progress, row: Creation, spec: GuestSpec, made: Fresh) -> None:
        await self._make_volumes(row, made)
        for port in spec.ports:
            await self._host.ports.create(Part(progress, 0.2, 0.4), port, made_for=row.guest)
        for endpoint in made.endpoints.specs:
            await self._changes.create(Part(progress, 0.4, 0.7), endpoint, made_for=row.guest)

    async def _make_volumes(self, row: Creation, made: Fresh) -> None:
        from ringway.guest import volumes

        for volume in (disk.volume for disk in made.disks if disk.volume.new):
            begun = await self._rows.put(replace(row, volumes={**row.volumes, volume.path: None}))
            try:
                inode = await asyncio.to_thread(volumes.make, volume)
            except RingwayError:  # what is there now, empty or not, is another's
                await self._rows.put(row)
                raise
            faults.point("creation.volume")
            row = await self._rows.put(replace(begun, volumes={**begun.volumes, volume.path: inode}))

    # Undoing, and finishing

    def left(self) -> tuple[str, ...]:
        """The names of guests that are being made, or were left half made."""
        return tuple(row.name for row in self._rows.all())

    async def settle(self) -> None:
        """Undo or finish what a daemon left that died; what is under way is left alone."""
        left = [name for name in self.left() if not self._rows.is_held(name)]
        await asyncio.gather(*(self._rows.look_at(name, self._settle) for name in left))

    async def _settle(self, row: Creation) -> None:
        """:raises RingwayError: libvirt cannot be asked now."""
        try:
            found = await self._host.guests.show(row.guest)
        except NotFoundError:
            await self._undo(row)
        else:
            for holdings in self._holdings:
                await holdings.take_in(found)
            await self._rows.remove(row.name)

    async def _undo(self, row: Creation) -> None:
        """Leave nothing of what a creation made. :raises RingwayError: it cannot be removed now."""
        guests, host = self._host.guests, self._host
        async with self._locks.hold(guest_lock(row.guest)):
            await guests.ask(guests.hypervisor.undefine, row.guest)
        for name in [wanted.name for wanted in host.desired.all() if wanted.made_for == row.guest]:
            await self._free(row, host.attachments, name, partial(self._changes.delete, force=True))
        for name in host.ports.made_for(row.guest):
            await self._free(row, host.plugs, name, host.ports.delete)
        await self._unmake_volumes(row)
        await self._rows.remove(row.name)

    async def _free(
        self,
        row: Creation,
        holdings: Holdings,
        thing: str,
        delete: Callable[[Progress, str], Awaitable[None]],
    ) -> None:
        """Delete what was made for a guest, unless another has been given it meanwhile."""
        if holdings.find(thing) is None:
            holdings.break_promise(thing, row.name)
            with contextlib.suppress(NotFoundError):
                await delete(Progress(), thing)
        else:
            _log.info("%s '%s' is another guest's by now, and stays", holdings.words.thing, thing)

    async def _unmake_volumes(self, row: Creation) -> None:
        """Remove and release volumes that nobody serves: an endpoint that stays keeps its disks."""
        from ringway.guest import volumes

        luns = [lun for wanted in self._host.desired.all() for lun in wanted.spec.luns]
        served = {lun.backstore.path for lun in luns if lun.backstore.path}
        stay = await asyncio.to_thread(_of_one_medium, set(row.volumes), served)
        for path, inode in row.volumes.items():
            if path not in stay:
                await asyncio.to_thread(volumes.unmake, path, inode)
        for connection in row.connections:
            if connection.path not in served:
                await self._host.guests.ask(Resolvers().release, connection, row.guest)


def _of_one_medium(paths: set[str], others: set[str]) -> set[str]:
    """Those of ``paths`` that lead where one of the others leads."""
    media = {medium(path) for path in others} if paths else set()
    return {path for path in paths if medium(path) in media}


def _with_connections(row: Creation, made: Fresh) -> Creation:
    """The row with the volumes that resolvers are to bring here."""
    connections = (_connection(disk) for disk in made.disks)
    return replace(row, connections=tuple(each for each in connections if each is not None))


def _connection(disk: Disk) -> Connection | None:
    """``None``: no resolver has to bring its volume here."""
    name = disk.volume.resolver
    return None if name is None else Connection(resolver=name, device=disk.mapping)
