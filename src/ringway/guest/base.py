"""What the host asks of a hypervisor, and what both say to each other."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct

from ringway.errors import ConflictError
from ringway.guest.faces import DiskFace
from ringway.model import (
    AttachmentInfo,
    Check,
    EndpointInfo,
    Face,
    GuestDisk,
    GuestInfo,
    PlugInfo,
    PortSpec,
)


class GuestEventKind(StrEnum):
    """What can happen to a guest."""

    STARTED = "started"
    RESUMED = "resumed"  #: it was paused, or has just arrived from another host
    STOPPED = "stopped"
    DEFINED = "defined"
    UNDEFINED = "undefined"
    DEVICE_REMOVED = "device-removed"
    CONNECTED = "connected"  #: libvirt is there again; anything may have happened meanwhile


class GuestEvent(Struct, frozen=True):
    """Something happened to a guest. ``guest`` is its name; empty with ``CONNECTED``."""

    kind: GuestEventKind
    guest: str = ""
    alias: str = ""  #: of the device that is gone
    uuid: str = ""  #: of the guest, which may have another name by now

    def is_of(self, uuid: str, name: str) -> bool:
        """Whether it is a guest's that had this name once."""
        return uuid in (self.uuid, self.guest) or (not self.uuid and self.guest == name)


class Wish(Struct, frozen=True, kw_only=True):
    """An endpoint as a guest shall have it."""

    endpoint: str
    face: Face
    socket: str | None = None  #: of the user engine's faces
    wwpn: str | None = None  #: of ``VHOST_SCSI``
    queues: int | None = None  #: ``None``: what QEMU takes by default
    queues_asked: bool = True  #: so many are wanted; else one that is there with others may stay
    boot_order: int | None = None
    protection: bool = False  #: ``t10_pi``; not of ``VHOST_USER_BLK``
    reconnect_s: int | None = 1  #: seconds until QEMU connects again; ``None``: it never does


NOT_MOVABLE: Final = "libvirt does not move a guest with a device of the kernel's vhost-scsi"

Device = Wish | PortSpec | DiskFace
"""What a guest can be given; of a port nothing is open."""

Notify = Callable[[GuestEvent], None]
"""From any thread; it must not block."""


class Hypervisor(Protocol):
    """libvirt, as a host sees it.

    Calls block; they come from many threads, at most one at a time for each guest. A guest goes by its name
    or its UUID. ``live``: the guest that runs; ``persistent``: its next start; ``fix_memory``: from which on
    its memory shall be shared.
    """

    def probe(self) -> tuple[Check, ...]:
        """Say what this host lets it do. Never raises."""

    def guests(self) -> tuple[GuestInfo, ...]:
        """All guests, by name, with what of ours is attached.

        :raises UnreachableError: libvirt is not there.
        """

    def show(self, guest: str) -> GuestInfo:
        """One guest. :raises NotFoundError: there is none."""

    def attach(
        self, guest: str, wish: Wish, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> AttachmentInfo:
        """Give a guest an endpoint, first to the one that runs. Doing it again changes nothing.

        :raises RingwayError: it could not; the guest is as before.
        """

    def detach(self, guest: str, endpoint: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take an endpoint away; what is not there is fine.

        :param timeout_s: how long the guest may take to let it go.
        :raises TimedOutError: it did not; it was asked, and nothing else changed.
        """

    def plug(
        self, guest: str, port: PortSpec, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> PlugInfo:
        """Give a guest a port. :raises RingwayError: it could not; the guest is as before."""

    def unplug(self, guest: str, port: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a port away; what is not there is fine."""

    def tidy(self, guest: str) -> None:
        """Remove what devices left behind that a guest let go when nobody waited for it any more.

        A guest that does not run, or has gone, is fine.
        """

    def attach_disk(self, guest: str, disk: DiskFace, *, live: bool, persistent: bool) -> GuestDisk:
        """Give a guest a plain disk, first to the one that runs. Doing it again changes nothing.

        :raises RingwayError: it could not; the guest is as before.
        """

    def detach_disk(self, guest: str, volume: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a plain disk away, by the name that its alias has; what is not there is fine.

        :raises TimedOutError: as :meth:`detach`.
        """

    def check(
        self, guest: str, device: Device, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> tuple[str, ...]:
        """Say what giving a guest a device would change, in lines; none if the guest has it.

        :raises RingwayError: why it could not.
        """

    def define(self, xml: str) -> GuestInfo:
        """Make a guest, which does not run yet.

        :raises ConflictError: there is one of its name. :raises RingwayError: it could not; there is none.
        """

    def start(self, guest: str) -> None:
        """Let a guest run. :raises RingwayError: it does not."""

    def undefine(self, guest: str) -> None:
        """Forget a guest; one that is not there is fine. :raises ConflictError: it runs."""

    def watch(self, notify: Notify) -> None:
        """Tell of what happens from now on."""

    def close(self) -> None:
        """Let go. Guests stay as they are."""


def check_halves(guest: str, *, runs: bool, stays: bool, live: bool, persistent: bool) -> None:
    """Refuse a half that a guest does not have.

    :param guest: its name. :param runs: it does. :param stays: it has a next start.
    :param live: the guest that runs is meant. :param persistent: its next start is.
    :raises ConflictError: one is meant, and not there.
    """
    if live and not runs:
        raise ConflictError(f"guest '{guest}' does not run", hint="start it, or say --no-live")
    if persistent and not stays:
        raise ConflictError(f"guest '{guest}' is transient: it has no next start", hint="say --no-persistent")


def face_of(endpoint: EndpointInfo) -> Face:
    """What a guest sees of an endpoint."""
    if endpoint.socket is None:
        return Face.VHOST_SCSI
    return Face.VHOST_USER_BLK if endpoint.device == "blk" else Face.VHOST_USER_SCSI
