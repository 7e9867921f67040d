"""Plain disks that guests are given while they are there: QEMU serves them, and nobody here.

There are no rows of them. What a guest has, its domain says, by the disk's alias. Who finds one in the guest
that runs, or in its next start alone, may go on from there: giving it again adds what is missing, taking it
takes what is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ringway import faults
from ringway.errors import ConflictError, NotFoundError, UsageError
from ringway.guest.faces import DiskFace
from ringway.host.disks import Disks
from ringway.host.events import Events, Kind
from ringway.host.giving import when
from ringway.host.holdings import change_of, guest_lock
from ringway.host.hypervisors import Guests
from ringway.host.locks import Locks
from ringway.host.operations import Progress
from ringway.model import BackstoreInfo, BlockDevice, DiskSpec, GuestDisk, GuestInfo, Plan, VolumeSource

if TYPE_CHECKING:
    from ringway.guest.layout import Disk

ListBackstores = Callable[[], Awaitable[tuple[BackstoreInfo, ...]]]


class PlainDisks:
    """The plain disks of guests. For one event loop.

    :param disks: keeps two off one disk. :param backstores: tells which the engines serve now.
    """

    def __init__(
        self, guests: Guests, locks: Locks, events: Events, disks: Disks, backstores: ListBackstores
    ) -> None:
        self._guests = guests
        self._locks = locks
        self._events = events
        self._disks = disks
        self._backstores = backstores

    # Give

    async def plan(self, guest: str, spec: DiskSpec) -> Plan:
        """What :meth:`give` would do. :raises RingwayError: why it could not."""
        found = await self._guests.show(guest)
        live, persistent = when(found, spec.live, spec.persistent)
        disk, face = await self._drawn(found, spec)
        async with self._disks.promised(found.name, [disk], (), but=found.uuid):
            check = self._guests.hypervisor.check
            lines = await self._guests.ask(check, found.uuid, face, live=live, persistent=persistent)
        return change_of(found, *lines) if lines else Plan(changes=())

    async def give(self, progress: Progress, guest: str, spec: DiskSpec) -> GuestDisk:
        """Give a guest a disk, the one that runs and its next start. When it fails, the guest is as before.

        :raises BusyError: an endpoint serves it, or another guest has it. :raises RingwayError: as the
            hypervisor.
        """
        progress.step(0.1, "looking at the guest")
        async with self._alone(guest) as found:
            live, persistent = when(found, spec.live, spec.persistent)
            disk, face = await self._drawn(found, spec)
            async with self._disks.promised(found.name, [disk], (), but=found.uuid):
                progress.cancellable(False)
                progress.step(0.4, "attaching")
                faults.point("disk.promised")
                attach = self._guests.hypervisor.attach_disk
                given = await self._guests.ask(attach, found.uuid, face, live=live, persistent=persistent)
                faults.point("disk.made")
        self._events.tell(Kind.ATTACHED, f"guest/{found.name}", f"disk {face.volume}")
        return given

    async def _drawn(self, guest: GuestInfo, spec: DiskSpec) -> tuple[Disk, DiskFace]:
        """What the guest is asked to take. What it has of this name keeps its place.

        :raises RingwayError: there is no such volume, or it cannot be such a disk.
        """
        from ringway.guest.catalogue import Catalogue, backstores_of
        from ringway.guest.layout import check_apart, disk_face, lay_out

        device = spec.block_device
        _refuse_new(device)
        known = backstores_of(await self._backstores())
        find = Catalogue(spec.volumes, backstores=known).find
        own = next((disk for disk in guest.disks if disk.volume == (device.tag or device.id)), None)
        others = [disk for disk in guest.disks if disk is not own]
        (disk,) = await self._guests.ask(lay_out, (device,), find, guest.name, others)
        _refuse_away(disk)
        await self._guests.ask(check_apart, (disk,), others)
        if own is not None and device.device is None:
            disk = replace(disk, target=own.target)
        return disk, disk_face(disk)

    # Take

    async def plan_taking(self, guest: str, name: str, *, live: bool = True, persistent: bool = True) -> Plan:
        """What :meth:`take` would do. :raises NotFoundError: the guest has no such disk of ours."""
        found = await self._guests.show(guest)
        disk = _find(found, name)
        places = {"the guest that runs": live and disk.live, "its next start": persistent and disk.persistent}
        return change_of(found, *(f"detach {disk.volume} from {at}" for at, there in places.items() if there))

    async def take(
        self, progress: Progress, guest: str, name: str, *, live: bool, persistent: bool, timeout_s: float
    ) -> None:
        """Take a disk from a guest, from the one that runs and from its next start.

        :param name: the volume's, or its alias, target or serial number.
        :param timeout_s: how long the guest may take. :raises TimedOutError: it did not let go in that time.
        :raises NotFoundError: it has none of this name. :raises ConflictError: it is not ours.
        """
        async with self._alone(guest) as found:
            disk = _find(found, name)
            assert disk.volume is not None
            progress.cancellable(False)
            progress.step(0.3, "waiting for the guest to let it go" if live else "changing its next start")
            detach = self._guests.hypervisor.detach_disk
            await self._guests.ask(
                detach, found.uuid, disk.volume, live=live, persistent=persistent, timeout_s=timeout_s
            )
            self._guests.forget_recent()
        self._events.tell(Kind.DETACHED, f"guest/{found.name}", f"disk {disk.volume}")

    @contextlib.asynccontextmanager
    async def _alone(self, guest: str) -> AsyncIterator[GuestInfo]:
        """Be alone with a guest, and with how it is then."""
        uuid = (await self._guests.show(guest)).uuid
        async with self._locks.hold(guest_lock(uuid)):
            yield await self._guests.show(uuid)


def _refuse_new(device: BlockDevice) -> None:
    """:raises UsageError: there would be a volume to be made, and perhaps to be removed again."""
    if device.source is VolumeSource.BLANK:
        raise UsageError(
            "a guest that is there is given volumes that are there, and none is made for it",
            hint="make it (truncate -s 10G PATH), and give it as id=PATH,source=volume,dest=volume",
        )


def _refuse_away(disk: Disk) -> None:
    """:raises UsageError: its volume is not here, or is not there at all."""
    if disk.volume.resolver is not None or disk.volume.new:
        raise UsageError(
            f"volume '{disk.mapping.id}' is not on this host, and only ringway guest create brings it",
            hint="bring it here yourself, and say where it is: --volume ID=PATH",
        )


def _find(guest: GuestInfo, name: str) -> GuestDisk:
    """:raises NotFoundError: there is none. :raises ConflictError: several have it, or it is not ours."""
    endpoints = {each.alias for each in guest.attachments}
    named = [disk for disk in guest.disks if name in disk.names and disk.alias not in endpoints]
    ours = [disk for disk in named if disk.volume is not None]
    if len(named) > 1:
        raise ConflictError(
            f"several disks of guest '{guest.name}' are called '{name}'",
            hint=f"take an alias: {', '.join(str(disk.alias) for disk in ours)}",
        )
    if named and not ours:
        raise ConflictError(
            f"disk '{name}' of guest '{guest.name}' is not ours to take",
            hint=f"it is: virsh detach-disk {guest.name} {named[0].target}",
        )
    if not named:
        raise NotFoundError(
            f"guest '{guest.name}' has no disk '{name}'", hint=f"see: ringway guest show {guest.name}"
        )
    return ours[0]
