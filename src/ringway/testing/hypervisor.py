"""A hypervisor and a switch whose guests and ports are entries of dictionaries, for the host's tests.

The worlds outlive who uses them, as domains and bridges do.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from ringway.errors import BusyError, ConflictError, NotFoundError, TimedOutError
from ringway.guest.aliases import volume_alias
from ringway.guest.base import Device, GuestEvent, Notify, Wish
from ringway.guest.document import Document
from ringway.guest.faces import DiskFace
from ringway.model import (
    ALIAS_PREFIX,
    AttachmentInfo,
    Check,
    GuestDisk,
    GuestInfo,
    GuestState,
    PlugInfo,
    PortSpec,
    PortState,
)
from ringway.net.base import Condition


@dataclass
class MemoryGuest:
    """A domain: what the one that runs has, and what its next start has."""

    name: str
    running: bool = True
    persistent: bool = True
    shared_memory: bool = True
    arriving: bool = False  #: another host moves it here, and nothing is told of it
    holds: set[str] = field(default_factory=set)  #: what it does not let go
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    live: dict[str, Wish] = field(default_factory=dict)
    kept: dict[str, Wish] = field(default_factory=dict)
    ports: set[str] = field(default_factory=set)
    disks: tuple[GuestDisk, ...] = ()
    left: set[str] = field(default_factory=set)  #: connections without a device


@dataclass
class GuestWorld:
    """The domains of a host, and what a test makes happen to them."""

    guests: dict[str, MemoryGuest] = field(default_factory=dict)
    before: Callable[[str, str], None] = lambda _verb, _name: None  #: called with each change
    documents: dict[str, str] = field(default_factory=dict)  #: of guests that were created
    notify: Notify | None = None

    def add(self, name: str, *, running: bool = True, persistent: bool = True) -> MemoryGuest:
        """Define a domain."""
        found = self.guests[name] = MemoryGuest(name, running, persistent)
        return found

    def tell(self, event: GuestEvent) -> None:
        """Let who watches hear of something."""
        assert self.notify is not None
        self.notify(event)


class MemoryHypervisor:
    """As :class:`ringway.guest.base.Hypervisor`."""

    def __init__(self, world: GuestWorld) -> None:
        self._world = world

    def probe(self) -> tuple[Check, ...]:
        """It is always there."""
        return (Check(name="libvirt", ok=True, detail="a dictionary"),)

    def guests(self) -> tuple[GuestInfo, ...]:
        """All, by name."""
        return tuple(self.show(name) for name, one in sorted(self._world.guests.items()) if not one.arriving)

    def show(self, guest: str) -> GuestInfo:
        """One. :raises BusyError: it is on its way here."""
        found = self._guest(guest)
        if found.arriving:
            raise BusyError(f"guest '{found.name}' is on its way", holder="libvirt", hint="wait")
        names = sorted(found.live.keys() | found.kept.keys())
        return GuestInfo(
            name=found.name,
            uuid=found.uuid,
            state=GuestState.RUNNING if found.running else GuestState.SHUT_OFF,
            persistent=found.persistent,
            memory_bytes=1 << 30,
            vcpus=1,
            machine="q35",
            shared_memory=found.shared_memory,
            disks=found.disks,
            attachments=tuple(self._info(found, name) for name in names),
            ports=tuple(_plug(found, name) for name in sorted(found.ports)),
        )

    def _info(self, guest: MemoryGuest, name: str) -> AttachmentInfo:
        wish = guest.live.get(name) or guest.kept[name]
        return AttachmentInfo(
            guest=guest.name,
            endpoint=name,
            face=wish.face,
            alias=f"{ALIAS_PREFIX}{name}",
            live=name in guest.live,
            persistent=name in guest.kept,
        )

    def check(
        self, guest: str, device: Device, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> tuple[str, ...]:
        """Refuse a guest whose memory is not shared; what it has already is fine."""
        found = self._guest(guest)
        if isinstance(device, DiskFace):
            return tuple(self._changes(found, device, live=live, persistent=persistent))
        if isinstance(device, Wish):
            doing, name, now, later = "attach", device.endpoint, set(found.live), set(found.kept)
        else:
            doing, name, now, later = "plug", device.name, found.ports, found.ports
        places = {"now": live and name not in now, "at its next start": persistent and name not in later}
        if any(places.values()) and not (found.shared_memory or fix_memory):
            raise ConflictError(f"the memory of '{guest}' is not shared", hint="--fix-memory")
        return tuple(f"{doing} {name} {place}" for place, meant in places.items() if meant)

    def attach(
        self, guest: str, wish: Wish, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> AttachmentInfo:
        """Enter it."""
        self.check(guest, wish, live=live, persistent=persistent, fix_memory=fix_memory)
        found = self._guest(guest)
        self._world.before("attach", wish.endpoint)
        if live:
            found.live[wish.endpoint] = wish
        if persistent:
            found.kept[wish.endpoint] = wish
        return self._info(found, wish.endpoint)

    def detach(self, guest: str, endpoint: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take it out, if the guest lets it go."""
        found = self._guest(guest)
        if live and endpoint in found.holds:
            raise TimedOutError(f"'{guest}' did not let '{endpoint}' go within {timeout_s:g} s")
        self._world.before("detach", endpoint)
        if live:
            found.live.pop(endpoint, None)
        if persistent:
            found.kept.pop(endpoint, None)

    def plug(
        self, guest: str, port: PortSpec, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> PlugInfo:
        """Enter a port."""
        self.check(guest, port, live=live, persistent=persistent, fix_memory=fix_memory)
        self._world.before("plug", port.name)
        found = self._guest(guest)
        found.ports.add(port.name)
        return _plug(found, port.name)

    def unplug(self, guest: str, port: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a port out."""
        self._world.before("unplug", port)
        self._guest(guest).ports.discard(port)

    def tidy(self, guest: str) -> None:
        """Forget connections."""
        with contextlib.suppress(NotFoundError):
            found = self._guest(guest)
            self._world.before("tidy", found.name)
            found.left.clear()

    def attach_disk(self, guest: str, disk: DiskFace, *, live: bool, persistent: bool) -> GuestDisk:
        """Enter a disk, beside what there is of it."""
        found = self._guest(guest)
        self._world.before("attach disk", disk.volume)
        old = _disk(found, disk.volume)
        new = GuestDisk(
            target=disk.target or "",
            bus=disk.bus,
            device=disk.device,
            source=disk.path,
            alias=volume_alias(disk.volume),
            volume=disk.volume,
            serial=disk.serial,
            readonly=disk.readonly,
            live=live or bool(old and old.live),
            persistent=persistent or bool(old and old.persistent),
        )
        found.disks = (*(each for each in found.disks if each is not old), new)
        return new

    def _changes(self, guest: MemoryGuest, disk: DiskFace, *, live: bool, persistent: bool) -> Iterator[str]:
        old = _disk(guest, disk.volume)
        if live and not (old and old.live):
            yield f"attach {disk.volume} now"
        if persistent and not (old and old.persistent):
            yield f"attach {disk.volume} at its next start"

    def detach_disk(self, guest: str, volume: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a disk out, if the guest lets it go."""
        found = self._guest(guest)
        if live and volume in found.holds:
            raise TimedOutError(f"'{guest}' did not let '{volume}' go within {timeout_s:g} s")
        self._world.before("detach disk", volume)
        if (old := _disk(found, volume)) is not None:
            rest = replace(old, live=old.live and not live, persistent=old.persistent and not persistent)
            others = tuple(each for each in found.disks if each is not old)
            found.disks = (*others, rest) if rest.live or rest.persistent else others

    def define(self, xml: str) -> GuestInfo:
        """Enter a guest, with what its document says that it has."""
        document = Document(xml)
        if document.name in self._world.guests:
            raise ConflictError(f"there is a guest '{document.name}' already")
        self._world.before("define", document.name)
        self._world.documents[document.name] = xml
        guest = self._world.add(document.name, running=False)
        guest.uuid = document.uuid or guest.uuid
        guest.ports = {port.port for port in document.ports()}
        guest.kept = {
            each.endpoint: Wish(endpoint=each.endpoint, face=each.face) for each in document.attachments()
        }
        guest.disks = tuple(replace(disk, persistent=True) for disk in document.disks())
        return self.show(document.name)

    def start(self, guest: str) -> None:
        """Let it run, with what its next start has."""
        found = self._guest(guest)
        self._world.before("start", found.name)
        found.running, found.live = True, dict(found.kept)

    def undefine(self, guest: str) -> None:
        """Take a guest out."""
        with contextlib.suppress(NotFoundError):
            found = self._guest(guest)
            if found.running:
                raise ConflictError(f"guest '{guest}' runs")
            del self._world.guests[found.name]

    def watch(self, notify: Notify) -> None:
        """What the test tells."""
        self._world.notify = notify

    def close(self) -> None:
        """Domains stay."""
        self._world.notify = None

    def _guest(self, guest: str) -> MemoryGuest:
        for found in self._world.guests.values():
            if guest in (found.name, found.uuid):
                return found
        raise NotFoundError(f"there is no guest '{guest}'")


def _plug(guest: MemoryGuest, name: str) -> PlugInfo:
    return PlugInfo(guest=guest.name, port=name, live=guest.running, persistent=guest.persistent)


def _disk(guest: MemoryGuest, volume: str) -> GuestDisk | None:
    return next((disk for disk in guest.disks if disk.volume == volume), None)


@dataclass
class SwitchWorld:
    """The ports that a switch has, and what a test makes happen to them."""

    ports: dict[str, PortSpec] = field(default_factory=dict)
    guests: dict[str, str] = field(default_factory=dict)
    before: Callable[[str, str], None] = lambda _verb, _name: None


class MemorySwitch:
    """As :class:`ringway.net.base.Switch`."""

    name = "memory"

    def __init__(self, world: SwitchWorld) -> None:
        self._world = world

    def probe(self) -> tuple[Check, ...]:
        """It is always there."""
        return (Check(name="memory", ok=True, detail="a dictionary"),)

    def resolve(self, spec: PortSpec) -> PortSpec:
        """Choose an address and a socket."""
        mac = spec.mac or f"52:54:00:00:00:{len(self._world.ports):02x}"
        return replace(spec, mac=mac, socket=spec.socket or f"/run/{spec.name}.sock")

    def check(self, spec: PortSpec, others: tuple[PortSpec, ...]) -> None:
        """Refuse an address that another port has."""
        owner = next((other for other in others if other.mac == spec.mac), None)
        if owner is not None:
            raise ConflictError(f"{spec.mac} is the address of port '{owner.name}'")

    def create(self, spec: PortSpec) -> None:
        """Enter it."""
        self._world.before("create", spec.name)
        self._world.ports[spec.name] = spec

    def delete(self, spec: PortSpec) -> None:
        """Take it out."""
        self._world.before("delete", spec.name)
        self._world.ports.pop(spec.name, None)

    def plug(self, spec: PortSpec, guest: str) -> None:
        """Note whose it is."""
        self.show(spec)
        self._world.guests[spec.name] = guest

    def unplug(self, spec: PortSpec) -> None:
        """Take that back."""
        self._world.guests.pop(spec.name, None)

    def show(self, spec: PortSpec) -> Condition:
        """One that is there."""
        if spec.name not in self._world.ports:
            raise NotFoundError(f"the switch has no port '{spec.name}'")
        return Condition(PortState.READY)

    def watch(self, notify: Callable[[str], None]) -> None:
        """It changes by nobody's will but the test's."""

    def close(self) -> None:
        """Ports stay."""
