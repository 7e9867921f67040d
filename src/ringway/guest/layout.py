"""From block-device mappings to what a domain's document is asked for.

A guest counts SCSI disks by their units, and libvirt by the letters in their names. Both get the same order
here: names first, the disk to boot from before all that have none, then units in the order of names. So
``sda`` is the guest's first disk, and the one it boots from, unless a mapping asks for another name. (Linux
probes disks side by side, and may give letters of its own in another order; units and serial numbers hold.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Final

import msgspec
from msgspec import Struct

from ringway.errors import ConflictError, UsageError
from ringway.guest.base import Wish
from ringway.guest.document import DiskFace, DiskSource, Document, ScsiController
from ringway.guest.document.names import disk_index, disk_name
from ringway.guest.volumes import QCOW2, RAW, Volume
from ringway.media import medium
from ringway.model import (
    NO_BOOT,
    PREFIXES,
    BackstoreSpec,
    BlockDevice,
    DeviceKind,
    DiskBus,
    DiskType,
    EndpointSpec,
    EngineKind,
    Face,
    GuestDisk,
    LunSpec,
    SpecKind,
    check_together,
    is_name,
)

#: What libvirt's schema takes for a serial number; QEMU cuts it to what a bus shows.
_SERIAL: Final = re.compile(r"[A-Za-z0-9_.+-]([A-Za-z0-9_.+ -]{0,34}[A-Za-z0-9_.+-])?", re.ASCII)
_BLK_SERIAL: Final = 20  #: characters that a virtio-blk disk shows. Spec: virtio 1.3, 5.2.6
_MEDIA: Final = (DiskType.CDROM, DiskType.FLOPPY)
_NO_SERIAL: Final = (DiskType.LUN, *_MEDIA)
#: Buses on which libvirt has no disk that cannot be written.
_ALWAYS_WRITABLE: Final = (DiskBus.IDE, DiskBus.SATA)

Find = Callable[[BlockDevice, str], Volume]
"""A volume of a mapping; the text is what a new one is called."""


class Disk(Struct, frozen=True, kw_only=True):
    """A mapping with its volume and its name."""

    mapping: BlockDevice
    volume: Volume
    target: str

    @property
    def name(self) -> str:
        """What the disk's alias says."""
        return self.mapping.tag or self.mapping.id or self.target

    @property
    def boot_order(self) -> int | None:
        """libvirt's, which counts from 1."""
        index = self.mapping.boot_index
        return None if index is None or index == NO_BOOT else index + 1


class Service(Struct, frozen=True, kw_only=True):
    """How endpoints serve a guest's disks."""

    name: str  #: of the one for bus scsi; the others are called after it and their disk
    socket: Callable[[str], str]  #: where an endpoint of the user engine has it
    engine: EngineKind = EngineKind.USER
    queues: int | None = 1  #: of each; the kernel engine has QEMU's choice, too
    guest: str = ""  #: what new names of target ports follow from
    wwpns: Mapping[str, str] = {}  #: of endpoints that are there

    def wwpn(self, endpoint: str) -> str | None:
        """The name of its target port, where a guest finds it by that."""
        if self.engine is not EngineKind.LIO:
            return None
        return self.wwpns.get(endpoint) or derived_wwpn(self.guest, endpoint)


class Endpoints(Struct, frozen=True, kw_only=True):
    """Endpoints that serve a guest's disks: what is asked of the daemon, and what the guest sees."""

    specs: tuple[EndpointSpec, ...]
    wishes: tuple[Wish, ...]


def lay_out(
    devices: Sequence[BlockDevice], find: Find, guest: str, there: Iterable[GuestDisk] = ()
) -> tuple[Disk, ...]:
    """Give each mapping its volume and its name, in the order in which the guest shall see them.

    :param guest: its name; new volumes are named after it.
    :param there: disks that the guest has.
    :raises UsageError: mappings contradict each other. :raises RingwayError: as :meth:`Catalogue.find`.
    :raises ConflictError: a name is taken.
    """
    check_together(tuple(devices))
    names = _names(devices, {disk.target for disk in there})
    return tuple(
        Disk(mapping=device, volume=find(device, f"{guest}-{device.tag or name}"), target=name)
        for device, name in names
    )


def check_apart(disks: Iterable[Disk], there: Iterable[GuestDisk] = ()) -> None:
    """Compare what paths lead to: a guest that has one file as two disks destroys what is on it.

    :param there: disks that the guest has.
    :raises ConflictError: two are one file or device, and not both only read.
    """
    seen = {
        medium(disk.source): (f"disk '{disk.target}', which it has", disk.readonly)
        for disk in there
        if disk.source is not None and disk.source.startswith("/")
    }
    for disk in disks:
        path, readonly = disk.volume.path, disk.volume.readonly
        other, read_there = seen.get(medium(path), ("", True))
        if other and not (readonly and read_there):
            raise ConflictError(
                f"'{disk.mapping}' is {path}, and so is the guest's {other}", hint="leave one of them away"
            )
        seen[medium(path)] = (f"'{disk.mapping}'", readonly)


def bootable(devices: Sequence[BlockDevice]) -> tuple[BlockDevice, ...]:
    """The same, with one to boot from: the first that does not refuse, unless some has a boot index."""
    if any((device.boot_index or 0) > 0 or device.boot_index == 0 for device in devices):
        return tuple(devices)
    free = [device for device in devices if device.boot_index is None]
    first = next((device for device in free if device.kind not in _MEDIA), next(iter(free), None))
    return tuple(
        msgspec.structs.replace(device, boot_index=0) if device is first else device for device in devices
    )


def add_disks(
    document: Document, disks: Sequence[Disk], controller: ScsiController | None = None
) -> tuple[str, ...]:
    """Put disks on QEMU's own controllers into a document.

    :param controller: how a virtio-scsi controller is to be that has to be added.
    :returns: the elements, controllers before their disks.
    :raises UsageError: libvirt or QEMU would refuse one; says which and why. The document may hold some.
    :raises ConflictError: the guest has such a disk, or its bus is full.
    """
    faces = [disk_face(disk) for disk in disks]
    return tuple(element for face in faces for element in document.add_disk(face, controller))


def disk_face(disk: Disk) -> DiskFace:
    """What a document is asked for. :raises UsageError: the volume cannot be such a disk."""
    device, volume = disk.mapping, disk.volume
    _check_volume(disk)
    tuned = volume.block and device.kind not in _MEDIA
    return DiskFace(
        volume=disk.name,
        source=DiskSource.BLOCK if volume.block else DiskSource.FILE,
        path=volume.path,
        device=device.kind,
        bus=device.place,
        target=disk.target,
        format=volume.format,
        readonly=volume.readonly,
        serial=device.id if device.id and _has_serial(device) else None,
        boot_order=disk.boot_order,
        cache="none" if tuned else None,
        io="native" if tuned else None,
        discard="unmap" if device.kind is DiskType.DISK and not volume.readonly else None,
    )


def endpoints(disks: Sequence[Disk], service: Service) -> Endpoints:
    """Serve disks through endpoints: all of bus scsi through one, each of bus virtio through one of its own.

    :raises UsageError: an endpoint serves no such disk.
    """
    for disk in disks:
        _check_served(disk, service.engine)
    name = service.name
    groups = {name: _luns([disk for disk in disks if disk.mapping.place is DiskBus.SCSI])}
    groups |= {f"{name}-{disk.target}": [disk] for disk in disks if disk.mapping.place is DiskBus.VIRTIO}
    wanted = {each: group for each, group in groups.items() if group}
    return Endpoints(
        specs=tuple(_spec(each, group, service) for each, group in wanted.items()),
        wishes=tuple(_wish(each, group, service) for each, group in wanted.items()),
    )


def derived_wwpn(guest: str, endpoint: str) -> str:
    """The name of a target port that is the same each time, and for each guest and endpoint another.

    NAA 5, and the company that the kernel's target names its ports after.
    """
    return "naa.5001405" + hashlib.sha256(f"{guest}/{endpoint}".encode()).hexdigest()[:9]


def add_endpoints(document: Document, wishes: Sequence[Wish]) -> tuple[str, ...]:
    """Put endpoints into a document, and share its memory with those that are not the kernel's.

    :returns: their elements. :raises ConflictError: it has one of them.
    """
    if any(wish.face is not Face.VHOST_SCSI for wish in wishes):
        document.share_memory()
    return tuple(element for wish in wishes for element in document.add_endpoint(wish))


def _names(devices: Sequence[BlockDevice], taken: set[str]) -> list[tuple[BlockDevice, str]]:
    """Each with a name, in the order of names. :raises ConflictError: a name is taken."""
    asked = [device.device for device in devices if device.device]
    if both := [name for name in asked if name in taken]:
        raise ConflictError(f"the guest has a disk '{both[0]}' already", hint="leave the name away")
    used = taken | set(asked)
    named = list[tuple[BlockDevice, str]]()
    for device in sorted(devices, key=_turn):
        name = device.device or _free(PREFIXES[device.place], used)
        used.add(name)
        named.append((device, name))
    return sorted(named, key=lambda each: disk_index(each[1]) or 0)


def _turn(device: BlockDevice) -> int:
    """What is booted from first comes first; what never is, or may be, stays in its order behind."""
    none = device.boot_index is None or device.boot_index == NO_BOOT
    return (1 << 30) if none else int(device.boot_index or 0)


def _free(prefix: str, used: set[str]) -> str:
    return next(name for index in count() if (name := disk_name(prefix, index)) not in used)


def _has_serial(device: BlockDevice) -> bool:
    return device.kind not in _NO_SERIAL and _SERIAL.fullmatch(device.id or "") is not None


def _check_volume(disk: Disk) -> None:
    """:raises UsageError: this volume cannot be such a disk; says what of it is in the way."""
    device, volume = disk.mapping, disk.volume
    if device.kind is DiskType.LUN and volume.format != RAW:
        raise UsageError(
            f"'{device}' cannot be a LUN: it is a {volume.format} image, and a LUN is a device",
            hint="leave type=lun away",
        )
    if device.kind is DiskType.LUN and volume.scsi is not None:
        raise UsageError(
            f"'{device}' ({volume.path}) cannot be a LUN: {volume.scsi}",
            hint="leave type=lun away, or name a whole SCSI device of this host",
        )
    if device.kind is DiskType.DISK and volume.readonly and device.place in _ALWAYS_WRITABLE:
        raise UsageError(
            f"'{device}' may not be written, and libvirt has no such disk on bus {device.place}",
            hint="take bus=scsi or bus=virtio",
        )


def _check_served(disk: Disk, engine: EngineKind) -> None:
    """:raises UsageError: no endpoint of the engine serves such a disk."""
    device, volume = disk.mapping, disk.volume
    if device.kind is not DiskType.DISK:
        raise UsageError(
            f"'{device}' is a {device.kind}, and an endpoint serves disks",
            hint="take type=disk" if device.kind is DiskType.LUN else "take --via qemu for it",
        )
    if device.place not in (DiskBus.SCSI, DiskBus.VIRTIO):
        raise UsageError(
            f"an endpoint has no bus {device.place} ('{device}')", hint="take bus=scsi or bus=virtio"
        )
    if device.place is DiskBus.VIRTIO and engine is EngineKind.LIO:
        raise UsageError(
            f"the kernel engine has no disk of bus virtio ('{device}')", hint="take bus=scsi or --engine user"
        )
    if volume.format == QCOW2:
        raise UsageError(
            f"'{device}' is a qcow2 image, and an endpoint serves raw ones",
            hint="take --via qemu, or convert it: qemu-img convert -O raw",
        )


def _luns(disks: Sequence[Disk]) -> list[Disk]:
    """Those of one endpoint, the one to boot from as LUN 0. :raises UsageError: there are several of that."""
    first = [disk for disk in disks if disk.boot_order is not None]
    if len(first) > 1:
        raise UsageError(
            f"'{first[0].mapping}' and '{first[1].mapping}' both have a boot index, "
            "and of an endpoint a guest boots from LUN 0 alone",
            hint="leave all boot indexes but one away, or take --via qemu",
        )
    return [*first, *(disk for disk in disks if disk not in first)]


def _spec(name: str, disks: Sequence[Disk], service: Service) -> EndpointSpec:
    """:raises UsageError: no name of an endpoint."""
    if not is_name(name):
        raise UsageError(f"an endpoint cannot be called '{name}'", hint="name it with --endpoint")
    scsi, kernel = disks[0].mapping.place is DiskBus.SCSI, service.engine is EngineKind.LIO
    return EndpointSpec(
        name=name,
        engine=service.engine,
        device=DeviceKind.SCSI if scsi else DeviceKind.BLK,
        queues=1 if kernel else service.queues or 1,  # the kernel has them from QEMU
        wwpn=service.wwpn(name),
        luns=tuple(LunSpec(0, number, _backstore(disk)) for number, disk in enumerate(disks)),
    )


def _backstore(disk: Disk) -> BackstoreSpec:
    """Its serial number is what the guest would see of it on QEMU's disk of that bus."""
    serial = disk.mapping.id if _has_serial(disk.mapping) else None
    if serial is not None and disk.mapping.place is DiskBus.VIRTIO:
        serial = serial[:_BLK_SERIAL].rstrip()
    return BackstoreSpec(SpecKind.PATH, disk.volume.path, readonly=disk.volume.readonly, serial=serial)


def _wish(name: str, disks: Sequence[Disk], service: Service) -> Wish:
    """A SCSI endpoint is booted from by its LUN 0, which is the first disk."""
    scsi, kernel = disks[0].mapping.place is DiskBus.SCSI, service.engine is EngineKind.LIO
    face = Face.VHOST_USER_SCSI if scsi else Face.VHOST_USER_BLK
    return Wish(
        endpoint=name,
        face=Face.VHOST_SCSI if kernel else face,
        socket=None if kernel else service.socket(name),
        wwpn=service.wwpn(name),
        queues=service.queues,
        boot_order=disks[0].boot_order,
    )
