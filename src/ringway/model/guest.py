"""Guests: libvirt's domains, and what of ours they have.

An *endpoint* is attached to a guest, a *port* is plugged into one. Both are described here as they are asked
for (``…Spec``) and as they are (``…Info``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from ringway.model.endpoint import Name

#: In front of the aliases of all that we put into a domain; libvirt keeps those that begin with ``ua-``.
ALIAS_PREFIX: Final = "ua-ringway-"


class GuestState(StrEnum):
    """What a guest does."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUT_OFF = "shut-off"
    OTHER = "other"  #: it starts, stops, crashed or sleeps; libvirt says more


class Face(StrEnum):
    """What a guest sees of an endpoint, and by which element libvirt is told of it."""

    VHOST_USER_SCSI = "vhost-user-scsi"  #: ``<disk type='vhostuser'>`` with an override of its driver
    VHOST_USER_BLK = "vhost-user-blk"  #: ``<disk type='vhostuser'>``
    VHOST_SCSI = "vhost-scsi"  #: ``<hostdev type='scsi_host'>``, the kernel engine's


class AttachmentState(StrEnum):
    """How far a guest is with an endpoint or a port."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"  #: the guest was asked to let it go, and has not yet
    FOREIGN = "foreign"  #: it is another guest's, of which this one may be a copy


class AttachSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked of an attachment. ``None``: what suits the guest and the endpoint.

    ``live`` is for the guest that runs, ``persistent`` for its next start.
    """

    endpoint: Name
    live: bool | None = None
    persistent: bool | None = None
    queues: Annotated[int, Meta(ge=1, le=1024)] | None = None
    boot_order: Annotated[int, Meta(ge=1, le=65535)] | None = None
    protection: bool = False  #: the guest may use T10 protection information (``t10_pi``)
    fix_memory: bool = False  #: make the guest's memory shared from its next start on


class AttachmentInfo(Struct, frozen=True, kw_only=True):
    """An endpoint that is attached to a guest."""

    guest: str
    endpoint: str
    face: Face
    alias: str  #: of the device in the domain
    state: AttachmentState = AttachmentState.ATTACHED
    live: bool = False  #: the guest that runs has it
    persistent: bool = False  #: its next start has it
    address: str | None = None  #: on the guest's PCI bus, ``0000:05:00.0``
    migratable: bool = True
    message: str | None = None  #: why it cannot be moved, what it waits for, or whose it is


class PlugSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked when a port is plugged in. ``None``: what suits the guest."""

    port: Name
    live: bool | None = None
    persistent: bool | None = None
    fix_memory: bool = False  #: make the guest's memory shared from its next start on


class PlugInfo(Struct, frozen=True, kw_only=True):
    """A port that is plugged into a guest."""

    guest: str
    port: str
    state: AttachmentState = AttachmentState.ATTACHED
    live: bool = False  #: the guest that runs has it
    persistent: bool = False  #: its next start has it
    message: str | None = None  #: whose it is


class GuestDisk(Struct, frozen=True, kw_only=True):
    """A disk in a guest's document, whoever put it there. ``volume`` has what was mapped into it by us."""

    target: str  #: ``sda``: libvirt's name of it, which the guest need not use
    bus: str
    device: str  #: disk, lun, cdrom or floppy
    source: str | None
    alias: str | None = None
    volume: str | None = None  #: its tag, or its volume's id, as the alias says
    serial: str | None = None
    readonly: bool = False  #: the guest cannot write to it
    state: AttachmentState = AttachmentState.ATTACHED
    live: bool = False  #: the guest that runs has it
    persistent: bool = False  #: its next start has it
    message: str | None = None  #: what holds later than now

    @property
    def names(self) -> tuple[str | None, ...]:
        """All that a disk of ours is called by."""
        return self.volume, self.alias, self.target, self.serial


class GuestInfo(Struct, frozen=True, kw_only=True):
    """A libvirt domain."""

    name: str
    uuid: str
    state: GuestState
    persistent: bool  #: it has a definition that outlives its stop
    memory_bytes: int
    vcpus: int
    machine: str
    shared_memory: bool  #: as vhost-user needs it
    disks: tuple[GuestDisk, ...] = ()
    attachments: tuple[AttachmentInfo, ...] = ()
    ports: tuple[PlugInfo, ...] = ()
    message: str | None = None  #: why no more can be told of it now
