"""Guests that are to be made: volumes, endpoints and ports first, then the domain; all of it, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError
from ringway.host.locks import Locks
from ringway.host.operations import Operation
from ringway.model import (
    Action,
    AttachSpec,
    Change,
    EndpointSpec,
    GuestInfo,
    GuestSpec,
    Plan,
    PlugSpec,
    PortSpec,
)

if TYPE_CHECKING:
    from ringway.guest.fresh import Fresh
    from ringway.host.host import Host

_log: Final = logging.getLogger(__name__)


class Creations:
    """Makes guests on a host.

    :param sockets: the folder of its endpoints' sockets.
    """

    def __init__(self, host: Host, sockets: Path) -> None:
        self._host = host
        self._sockets = sockets
        self._locks = Locks()

    async def plan(self, spec: GuestSpec) -> Plan:
        """What :meth:`create` would do. :raises RingwayError: why it could not."""
        spec, made = await self._drawn(spec)
        endpoints = [f"endpoint/{each.name}" for each in made.endpoints.specs]
        ports = [f"port/{port.name}" for port in spec.ports if not self._host.ports.has(port.name)]
        first = [Change(action=Action.CREATE, object=name) for name in (*endpoints, *ports)]
        disks = tuple(f"disk {disk.target}: {disk.volume.path}" for disk in made.disks)
        guest = Change(action=Action.CREATE, object=f"guest/{spec.name}", details=disks)
        return Plan(changes=(*first, guest))

    async def create(self, operation: Operation, spec: GuestSpec) -> GuestInfo:
        """Make a guest and all that it needs, and start it. When it fails, there is nothing of it.

        :raises ConflictError: there is one of this name.
        """
        async with self._locks.hold(f"new/{spec.name}"):  # of two of one name, the second is refused
            return await self._create(operation, spec)

    async def _create(self, operation: Operation, spec: GuestSpec) -> GuestInfo:
        operation.step(0.1, "checking")
        spec, made = await self._drawn(spec)
        operation.cancellable(False)
        async with contextlib.AsyncExitStack() as undo:
            operation.step(0.2, "making ports and disks")
            for port in spec.ports:
                await self._port(port, undo)
            await self._make_volumes(made, undo)
            for endpoint in made.endpoints.specs:
                await self._endpoint(endpoint, undo)
            operation.step(0.7, "starting the guest" if spec.start else "defining the guest")
            guests = self._host.guests
            found = await guests.ask(guests.hypervisor.create, made.document.xml, start=spec.start)
            undo.pop_all()
        await self._enter(found, made, spec)
        return self._host.attachments.view(await guests.show(found.uuid))

    async def _refuse_name(self, name: str) -> None:
        """:raises ConflictError: there is a guest of this name."""
        with contextlib.suppress(NotFoundError):
            await self._host.guests.show(name)
            raise ConflictError(f"there is a guest '{name}' already", hint="take another name")

    async def _drawn(self, spec: GuestSpec) -> tuple[GuestSpec, Fresh]:
        """Choose what is open, and draw the domain; nothing is made.

        :raises RingwayError: what would fail.
        """
        from ringway.guest import fresh
        from ringway.guest.volumes import Catalogue, backstores_of

        await self._refuse_name(spec.name)
        ports = self._host.ports
        spec = replace(spec, ports=tuple([await ports.whole(port) for port in spec.ports]))
        known = backstores_of(await self._host.backstores())
        catalogue = Catalogue(spec.volumes, spec.pools, backstores=known)
        ask = self._host.guests.ask
        made = await ask(fresh.fresh, spec, catalogue, self._socket, kvm=not spec.emulate)
        self._refuse_others(spec, made)
        return spec, made

    def _refuse_others(self, spec: GuestSpec, made: Fresh) -> None:
        """:raises BusyError: another guest has a port or an endpoint that this one shall have."""
        taken = {
            f"endpoint '{one.name}'": self._host.attachments.guest_of(one.name)
            for one in made.endpoints.specs
        }
        taken |= {f"port '{port.name}'": self._host.plugs.guest_of(port.name) for port in spec.ports}
        for thing, guest in taken.items():
            if guest is not None:
                raise BusyError(
                    f"guest '{guest}' has {thing}", holder=f"guest {guest}", hint="take it away there first"
                )

    def _socket(self, endpoint: str) -> str:
        return str(self._sockets / f"{endpoint}.sock")

    async def _port(self, spec: PortSpec, undo: contextlib.AsyncExitStack) -> None:
        """Have a port; one that is there is taken as it is."""
        was_there = self._host.ports.has(spec.name)
        await _done(self._host.create_port(spec))
        if not was_there:
            undo.push_async_callback(_try, lambda: _done(self._host.delete_port(spec.name, force=True)))

    async def _make_volumes(self, made: Fresh, undo: contextlib.AsyncExitStack) -> None:
        from ringway.guest import volumes

        for disk in made.disks:
            await asyncio.to_thread(volumes.make, disk.volume)
            undo.push_async_callback(asyncio.to_thread, volumes.unmake, disk.volume)

    async def _endpoint(self, spec: EndpointSpec, undo: contextlib.AsyncExitStack) -> None:
        was_there = self._host.desired.find(spec.name) is not None
        await _done(self._host.create(spec))
        if not was_there:
            undo.push_async_callback(_try, lambda: _done(self._host.delete(spec.name, force=True)))

    async def _enter(self, guest: GuestInfo, made: Fresh, spec: GuestSpec) -> None:
        """Write down what the guest has of ours. It has it already, so that nothing else is changed."""
        for endpoint in made.endpoints.specs:
            await _done(self._host.attach(guest.uuid, AttachSpec(endpoint=endpoint.name)))
        for port in spec.ports:
            await _done(self._host.plug(guest.uuid, PlugSpec(port=port.name)))


async def _done(operation: Operation) -> Any:
    """:raises RingwayError: it failed."""
    await operation.ended()
    return operation.outcome()


async def _try(undo: Callable[[], Awaitable[object]]) -> None:
    try:
        await undo()
    except RingwayError as error:
        _log.warning("what a guest was to have stays: %s", error)
