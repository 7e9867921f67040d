"""Plain disks: QEMU opens a file or a block device and emulates the drive, or passes SCSI commands on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ringway.errors import ConflictError, UsageError
from ringway.guest.aliases import Kind, owner, volume_alias
from ringway.guest.document.drives import DriveAddress, drive_address, scsi_address
from ringway.guest.document.facts import Chipset, alias_of, chipset_of, each_device, number_at
from ringway.guest.document.names import disk_index, free_name, target_names
from ringway.guest.document.parts import closing, lanes
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make, make_text
from ringway.guest.faces import DiskFace, DiskSource, ScsiController
from ringway.model import DRIVES, PREFIXES, DiskBus, DiskType, GuestDisk

_SERIAL: Final = re.compile(r"[A-Za-z0-9_.+ -]+")
#: Where the name of a disk's source is, the first that there is.
_SOURCES: Final = ("file", "dev", "path", "dir", "name", "volume")


class MappedVolume(Struct, frozen=True, kw_only=True):
    """A volume that was mapped into a domain as a plain disk."""

    volume: str
    alias: str
    target: str
    place: tuple[int, int] | None = None  #: its controller and unit on bus scsi
    boot_order: int | None = None
    address: PciAddress | None = None  #: its own, or its SCSI controller's


def disk_target(root: Element, face: DiskFace) -> str:
    """The disk's name: the one that was asked for, or the first that no disk has.

    :raises ConflictError: the name is taken, or the bus takes no more drives.
    :raises UsageError: it is no disk's name.
    """
    if face.target is not None and (disk_index(face.target) is None or face.target[-1].isdigit()):
        raise UsageError(f"'{face.target}' is no disk's name", hint=f"take one like {PREFIXES[face.bus]}a")
    target = face.target or free_name(root, PREFIXES[face.bus])
    if target in target_names(root):
        raise ConflictError(f"the guest has a disk '{target}' already")
    if (disk_index(target) or 0) >= DRIVES.get(face.bus, 1 << 20):
        raise ConflictError(
            f"the guest's {face.bus} bus has {DRIVES[face.bus]} drives, and '{target}' would be one more",
            hint="take another bus for it",
        )
    return target


def disk_element(
    face: DiskFace,
    target: str,
    address: DriveAddress | PciAddress | None,
    controller: ScsiController,
) -> Element:
    """Make the disk's element. Its combination was checked by :func:`check_disk`.

    :param controller: that it is itself, on bus virtio.
    """
    options = {
        "name": "qemu",
        "type": face.format,
        "cache": face.cache,
        "io": face.io,
        "discard": face.discard,
    }
    attributes, threads = lanes(controller if face.bus is DiskBus.VIRTIO else ScsiController())
    source = {"file" if face.source is DiskSource.FILE else "dev": face.path}
    readonly = face.readonly or face.device is DiskType.CDROM
    return make(
        "disk",
        {"type": face.source, "device": face.device},
        make("driver", options | attributes, threads),
        make("source", source) if face.path else None,
        make("target", {"dev": target, "bus": face.bus}),
        make("readonly") if readonly else None,
        None if face.serial is None else make_text("serial", face.serial),
        *closing(volume_alias(face.volume), face.boot_order, address),
    )


def disks_of(root: Element) -> Iterator[GuestDisk]:
    """All disks, whoever put them there, in their order."""
    for disk in each_device(root, "disk"):
        target = disk.find("target")
        attributes = {} if target is None else dict(target.attrib)
        yield GuestDisk(
            target=str(attributes.get("dev", "")),
            bus=str(attributes.get("bus", "")),
            device=disk.get("device", "disk"),
            source=_source_of(disk),
            alias=(alias := alias_of(disk)),
            volume=_volume_of(alias),
            serial=disk.findtext("serial"),
            readonly=disk.find("readonly") is not None or disk.get("device") == DiskType.CDROM,
        )


def mapped_volumes(root: Element) -> Iterator[MappedVolume]:
    """Disks of ours, by their aliases."""
    for element, disk in zip(each_device(root, "disk"), disks_of(root), strict=True):
        if disk.alias and disk.volume:
            on_scsi = drive_address(element, "scsi") if disk.bus == DiskBus.SCSI else None
            yield MappedVolume(
                volume=disk.volume,
                alias=disk.alias,
                target=disk.target,
                boot_order=number_at(element, "boot", "order"),
                place=(on_scsi.controller, on_scsi.unit) if on_scsi else None,
                address=scsi_address(root, on_scsi.controller) if on_scsi else PciAddress.of(element),
            )


def _volume_of(alias: str | None) -> str | None:
    whose = owner(alias)
    return whose.name if whose and whose.kind is Kind.VOLUME else None


def check_disk(root: Element, face: DiskFace) -> None:
    """:raises UsageError: libvirt or QEMU would refuse such a disk, whatever else the guest has."""
    for wrong, reason, hint in (*_faults(face), *_faults_here(root, face)):
        if wrong:
            raise UsageError(reason, hint=hint)


def _faults(face: DiskFace) -> Iterator[tuple[bool, str, str | None]]:
    lun, medium = face.device is DiskType.LUN, face.device in (DiskType.CDROM, DiskType.FLOPPY)
    yield lun and face.bus is not DiskBus.SCSI, f"a LUN cannot be on bus {face.bus}", "take bus=scsi"
    yield (
        lun and face.source is not DiskSource.BLOCK,
        f"'{face.path}' is no block device, and a LUN passes SCSI commands on to one",
        "take type=disk",
    )
    yield lun and face.format != "raw", f"a LUN has no format '{face.format}'", "take format=raw"
    yield lun and face.serial is not None, "a LUN has the serial of its device", "leave serial out"
    yield not medium and face.path is None, f"a {face.device} has to have a source", None
    yield (
        medium and face.bus is DiskBus.VIRTIO,
        f"bus virtio has no {face.device}",
        "take bus=scsi or bus=sata",
    )
    floppy = face.device is DiskType.FLOPPY
    yield floppy != (face.bus is DiskBus.FDC), f"a {face.device} cannot be on bus {face.bus}", None
    yield (
        face.serial is not None and not _SERIAL.fullmatch(face.serial),
        f"libvirt takes no serial '{face.serial}'",
        "take letters, digits and _-.+",
    )
    yield (
        face.readonly and face.device is DiskType.DISK and face.bus in (DiskBus.SATA, DiskBus.IDE),
        f"a disk on bus {face.bus} cannot be read-only",
        "take bus=scsi or bus=virtio",
    )
    yield face.io == "native" and face.cache not in ("none", "directsync"), "io=native needs cache=none", None


def _faults_here(root: Element, face: DiskFace) -> Iterator[tuple[bool, str, str | None]]:
    q35 = chipset_of(root) is Chipset.Q35
    yield q35 and face.bus is DiskBus.IDE, "a q35 machine has no bus ide", "take bus=sata or bus=scsi"


def _source_of(disk: Element) -> str | None:
    source = disk.find("source")
    if source is None:
        return None
    name = next((name for attribute in _SOURCES if (name := source.get(attribute))), None)
    protocol, pool = source.get("protocol"), source.get("pool")
    if protocol is not None:
        return f"{protocol}:{name or ''}"
    return f"{pool}/{name}" if pool and name else name
