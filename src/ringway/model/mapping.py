"""What a guest is made of, or given: block-device mappings, and a new guest as a whole.

A :class:`BlockDevice` is what clouds call a block-device mapping: which volume, and how the guest sees it. It
says nothing of where the bytes are; a catalogue of volumes does.
"""

from __future__ import annotations

import re
from enum import StrEnum
from string import ascii_lowercase
from typing import Annotated, Final

from msgspec import Meta, Struct

from ringway.errors import UsageError
from ringway.model.endpoint import EngineKind, Name
from ringway.model.port import PortSpec
from ringway.model.validation import text

NO_BOOT: Final = -1  #: the boot index of what is never booted from
MAX_BOOT_INDEX: Final = 1 << 15
MAX_TEXT: Final = 255  #: characters, as clouds have it
MAX_TAG: Final = 60
_MIB: Final = 1 << 20


class VolumeSource(StrEnum):
    """What a disk is made from."""

    VOLUME = "volume"  #: it is there already
    IMAGE = "image"
    SNAPSHOT = "snapshot"
    BLANK = "blank"  #: from nothing: it will be new, and zeros


class Destination(StrEnum):
    """Where clouds keep what they made: among their volumes, or on the guest's host."""

    VOLUME = "volume"
    LOCAL = "local"


class DiskBus(StrEnum):
    """How a guest reaches a disk."""

    SCSI = "scsi"  #: a virtio-scsi controller, always: ``virtio-scsi`` means the same
    VIRTIO = "virtio"  #: a PCI device of its own, virtio-blk
    SATA = "sata"
    IDE = "ide"
    USB = "usb"
    FDC = "fdc"


class DiskType(StrEnum):
    """What a guest takes it for."""

    DISK = "disk"
    LUN = "lun"  #: a SCSI device of the host: the guest's commands go to it as they are
    CDROM = "cdrom"
    FLOPPY = "floppy"


class Via(StrEnum):
    """Who serves a mapping's disk."""

    QEMU = "qemu"  #: QEMU itself, on its own controllers
    ENDPOINT = "endpoint"  #: an endpoint of ours


#: How a guest's disks are named on a bus.
PREFIXES: Final = {
    DiskBus.SCSI: "sd",
    DiskBus.VIRTIO: "vd",
    DiskBus.SATA: "sd",
    DiskBus.IDE: "hd",
    DiskBus.USB: "sd",
    DiskBus.FDC: "fd",
}
_BUSES_OF: Final = {
    DiskType.DISK: (DiskBus.SCSI, DiskBus.VIRTIO, DiskBus.SATA, DiskBus.IDE, DiskBus.USB),
    DiskType.LUN: (DiskBus.SCSI,),
    DiskType.CDROM: (DiskBus.SCSI, DiskBus.SATA, DiskBus.IDE, DiskBus.USB),
    DiskType.FLOPPY: (DiskBus.FDC,),
}
_DEFAULT_OF_PREFIX: Final = {
    "sd": DiskBus.SCSI,
    "vd": DiskBus.VIRTIO,
    "hd": DiskBus.IDE,
    "fd": DiskBus.FDC,
}
#: What two mappings of a guest cannot share.
_ONCE: Final = {"id": "volume", "device": "device name", "tag": "tag", "boot_index": "boot index"}
#: Buses with one controller: how many drives it has.
DRIVES: Final = {DiskBus.IDE: 4, DiskBus.FDC: 2}
_NEVER_LOCAL: Final = (VolumeSource.VOLUME, VolumeSource.SNAPSHOT)
MAX_DISKS: Final = 256  #: of a guest that is made, and ports: each is compared with all others
_PRINTABLE: Final = text(r"[^\x00-\x1f\x7f\ufffe\uffff]+", "printable, and not empty", max_length=MAX_TEXT)
_IN_TAG: Final = r"[^,/\x00-\x1f\x7f\ufffe\uffff]+"

VolumeId = Annotated[str, _PRINTABLE]
Word = Annotated[str, _PRINTABLE]
Tag = Annotated[str, text(_IN_TAG, "printable, without comma and slash, and not empty", max_length=MAX_TAG)]
DeviceName = Annotated[str, text(r"(sd|vd|hd|fd)[a-z]{1,3}", "sd, vd, hd or fd and up to three letters")]
"""As libvirt writes it, without ``/dev/``."""


class BlockDevice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A block-device mapping. What is ``None`` is chosen to suit the guest.

    :raises UsageError: fields that contradict each other.
    """

    id: VolumeId | None = None
    source: VolumeSource = VolumeSource.VOLUME
    destination: Destination = Destination.VOLUME
    bus: DiskBus | None = None
    type: DiskType | None = None
    device: DeviceName | None = None
    size_bytes: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None = None
    guest_format: Word | None = None  #: what a blank disk is to be formatted with
    boot_index: Annotated[int, Meta(ge=NO_BOOT, le=MAX_BOOT_INDEX)] | None = None  #: 0 is booted from first
    delete_on_termination: bool = False
    tag: Tag | None = None  #: what the disk is called in the guest's document
    volume_type: Word | None = None  #: of a volume that is to be made

    def __post_init__(self) -> None:
        """Refuse what no host could do."""
        _check_source(self)
        _check_type(self)
        _check_name(self)

    @property
    def kind(self) -> DiskType:
        """Its type, chosen."""
        if self.type is not None:
            return self.type
        return DiskType.FLOPPY if self.bus is DiskBus.FDC else DiskType.DISK

    @property
    def place(self) -> DiskBus:
        """Its bus, chosen: by its name, by its type, or SCSI."""
        if self.bus is not None:
            return self.bus
        if self.device is not None:
            return _DEFAULT_OF_PREFIX[self.device[:2]]
        return _BUSES_OF[self.kind][0]

    def __str__(self) -> str:
        """The word for it in messages."""
        return self.id or self.tag or self.device or f"{self.source} disk"


class GuestSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A guest that is to be made. The first disk that may be booted from is, if none has a boot index.

    ``volumes`` says where the bytes of volumes are, by their id; ``pools`` names the folders in which blank
    volumes are made, by volume type (``""``: of no type).
    """

    name: Name
    memory_bytes: Annotated[int, Meta(ge=_MIB)] = 1 << 30
    vcpus: Annotated[int, Meta(ge=1, le=4096)] = 1
    #: of each virtio-scsi controller, disk on bus virtio, or endpoint; ``None``: one a vCPU
    queues: Annotated[int, Meta(ge=1, le=256)] | None = None
    iothreads: Annotated[int, Meta(ge=0, le=256)] = 0  #: of QEMU's, which those of its controllers share
    block_devices: Annotated[tuple[BlockDevice, ...], Meta(max_length=MAX_DISKS)] = ()
    volumes: dict[str, str] = {}
    pools: dict[str, str] = {}
    ports: Annotated[tuple[PortSpec, ...], Meta(max_length=MAX_DISKS)] = ()
    via: Via = Via.QEMU
    engine: EngineKind | None = None  #: of its endpoints; ``None``: the user engine
    emulate: bool = False  #: without KVM
    start: bool = True


class DiskSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked when a guest that is there is given a plain disk. ``None``: what suits the guest.

    ``volumes`` says where the volume's bytes are, by its id; ``live`` is for the guest that runs,
    ``persistent`` for its next start.
    """

    block_device: BlockDevice
    volumes: dict[str, str] = {}
    live: bool | None = None
    persistent: bool | None = None


def check_together(devices: tuple[BlockDevice, ...]) -> None:
    """:raises UsageError: two of a guest's mappings claim the same volume, name, tag or place in the order
    of boot."""
    for field, what in _ONCE.items():
        values = [getattr(device, field) for device in devices]
        twice = [value for value in values if value not in (None, NO_BOOT) and values.count(value) > 1]
        if twice:
            raise UsageError(f"two disks have the same {what}, {twice[0]}", hint=f"give each its own {what}")
    _check_called(devices)


def _check_called(devices: tuple[BlockDevice, ...]) -> None:
    """:raises UsageError: a disk's tag is what another one is called by."""
    called = dict[str, BlockDevice]()
    for device in devices:
        if (name := device.tag or device.id or device.device) is None:
            continue
        if name in called:
            tagged, other = (called[name], device) if called[name].tag == name else (device, called[name])
            raise UsageError(
                f"the tag of '{tagged}' is '{name}', and so is another disk called ('{other}')",
                hint="give one of them another tag",
            )
        called[name] = device


def _check_source(device: BlockDevice) -> None:
    """:raises UsageError: there is nothing to make the disk from, or too much."""
    blank = device.source is VolumeSource.BLANK
    if blank and device.id is not None:
        raise UsageError(
            f"a blank disk has no id, and this has '{device.id}'",
            hint="name source=volume for a volume that is there, or leave the id away",
        )
    if blank and device.size_bytes is None:
        raise UsageError("a blank disk without a size", hint="give it a size, or a source and an id")
    if not blank and device.id is None:
        raise UsageError(f"a disk of source {device.source} without an id", hint="give the id of the volume")
    if device.destination is Destination.LOCAL and device.source in _NEVER_LOCAL:
        raise UsageError(
            f"a {device.source} cannot be a local disk ('{device}')",
            hint="leave the destination away: it is volume",
        )
    if device.volume_type is not None and device.source is VolumeSource.VOLUME:
        raise UsageError(
            f"volume '{device.id}' is there already, and has its type",
            hint="leave the volume type away",
        )


def _check_type(device: BlockDevice) -> None:
    """:raises UsageError: a type that the bus, or the source, cannot have."""
    buses = _BUSES_OF[device.kind]
    if device.place not in buses:
        raise UsageError(
            f"a {device.kind} cannot be on bus {device.place} ('{device}')",
            hint=f"a {device.kind} can be on {', '.join(buses)}",
        )
    if device.kind is DiskType.LUN and device.source is not VolumeSource.VOLUME:
        raise UsageError(
            f"a LUN is a SCSI device of the host, and its source is {device.source} ('{device}')",
            hint="take type=disk, or source=volume",
        )
    if device.kind in (DiskType.CDROM, DiskType.FLOPPY) and device.source is VolumeSource.BLANK:
        raise UsageError(
            f"a blank {device.kind} holds nothing", hint="take type=disk, or an id of what it holds"
        )


def _check_name(device: BlockDevice) -> None:
    """:raises UsageError: a device name of another bus."""
    if device.device is None:
        return
    prefix = PREFIXES[device.place]
    if not device.device.startswith(prefix):
        raise UsageError(
            f"a disk on bus {device.place} is not called {device.device}",
            hint=f"call it {re.sub('^..', prefix, device.device)}, or leave the name away",
        )
    drives = ascii_lowercase[: DRIVES.get(device.place, 0)]
    if drives and device.device.removeprefix(prefix) not in drives:
        raise UsageError(
            f"bus {device.place} has {len(drives)} drives, and none is called {device.device}",
            hint=f"call it {' or '.join(prefix + letter for letter in drives)}, or leave the name away",
        )
