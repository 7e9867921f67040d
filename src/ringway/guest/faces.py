"""What can be put into a domain, as it is asked for: plain disks, controllers.

Endpoints are asked for by :class:`ringway.guest.base.Wish`, network ports by :class:`ringway.model.PortSpec`.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from ringway.model import DiskBus, DiskType


class DiskSource(StrEnum):
    """What is behind a plain disk."""

    FILE = "file"
    BLOCK = "block"


class DiskFace(Struct, frozen=True, kw_only=True):
    """A plain disk: QEMU opens what is behind it. ``None``: libvirt's or QEMU's own choice."""

    volume: str  #: its alias names it
    source: DiskSource
    path: str | None  #: ``None``: a drive without a medium
    device: DiskType = DiskType.DISK
    bus: DiskBus = DiskBus.SCSI
    target: str | None = None  #: ``sda``; ``None``: the first that is free
    format: str = "raw"
    readonly: bool = False
    serial: str | None = None
    boot_order: int | None = None
    place: tuple[int, int] | None = None  #: controller and unit on bus scsi, if they are free
    cache: str | None = None
    io: str | None = None
    discard: str | None = None


class ScsiController(Struct, frozen=True, kw_only=True):
    """How a controller of the model virtio-scsi is made, where one has to be made.

    A disk of bus virtio is a controller of its own, and made so too.
    """

    queues: int | None = None
    iothreads: tuple[int, ...] = ()  #: one: for all queues; several (libvirt 11.2): queues in turn
