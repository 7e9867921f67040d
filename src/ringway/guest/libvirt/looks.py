"""What a domain is, as the model says it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import libvirt
from msgspec.structs import replace

from ringway.errors import NotFoundError
from ringway.guest.aliases import Kind, owner
from ringway.guest.base import NOT_MOVABLE, check_halves
from ringway.guest.document import Attached, Document, MappedVolume, PciAddress, Plugged
from ringway.guest.libvirt.failures import translated
from ringway.guest.libvirt.monitor import Monitor
from ringway.guest.libvirt.turns import wait_turn
from ringway.model import (
    AttachmentInfo,
    AttachmentState,
    Face,
    GuestDisk,
    GuestInfo,
    GuestState,
    PlugInfo,
)

_STATES: Final = {
    libvirt.VIR_DOMAIN_RUNNING: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: GuestState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: GuestState.SHUT_OFF,
}
_GOING: Final = AttachmentState.DETACHING
_FACES: Final = {"vhost-user-scsi": Face.VHOST_USER_SCSI, "vhost-user-blk": Face.VHOST_USER_BLK}
#: What a document is read with to be written again: it has what is secret then.
_WHOLE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE

UNTIL_START: Final = "libvirt does not know of it until the guest's next start, and cannot move the guest"
UNTIL_STOP: Final = "libvirt does not know of it, and cannot move the guest, which has it until it stops"
WAS_ASKED: Final = "the guest was asked to let it go, and still may: attach it again then"


def live_document(domain: libvirt.virDomain) -> Document | None:
    """Of the guest that runs; ``None`` if it does not."""
    with translated(f"guest '{domain.name()}'"):
        return Document(domain.XMLDesc(0)) if domain.isActive() else None


def persistent_document(domain: libvirt.virDomain) -> Document | None:
    """Of its next start; ``None`` if there will be none."""
    xml = persistent_xml(domain)
    return None if xml is None else Document(xml)


def persistent_xml(domain: libvirt.virDomain) -> str | None:
    """The text of that, as libvirt prints it."""
    with translated(f"guest '{domain.name()}'"):
        return str(domain.XMLDesc(_WHOLE)) if domain.isPersistent() else None


def hidden(domain: libvirt.virDomain, live: Document) -> dict[str, str]:
    """Devices of ours that QEMU has and libvirt does not know of: alias to QEMU's type.

    Only a domain that was tampered with can have some, and libvirt marks such a domain: others are not asked.
    """
    if not is_tainted(domain):
        return {}
    known = {each.alias for each in _ours(live)}
    devices = Monitor(domain).devices()
    return {name: kind for name, kind in devices.items() if owner(name) and name not in known}


def is_tainted(domain: libvirt.virDomain) -> bool:
    """Whether libvirt marked it as changed by other means than its own, or as unsafe."""
    with translated(f"guest '{domain.name()}'"):
        return bool(domain.messages(libvirt.VIR_DOMAIN_MESSAGE_TAINTING))


def glance(domain: libvirt.virDomain, message: str) -> GuestInfo:
    """What can be told of a guest that cannot be asked. :param message: why not."""
    with translated(f"guest '{domain.name()}'"):
        _, memory_kib, _, vcpus, _ = domain.info()
        return GuestInfo(
            name=domain.name(),
            uuid=domain.UUIDString(),
            state=GuestState.OTHER,
            persistent=bool(domain.isPersistent()),
            memory_bytes=memory_kib * 1024,
            vcpus=vcpus,
            machine="",
            shared_memory=False,
            message=message,
        )


class Look:
    """All that can be told of a domain at one moment.

    :param asked: aliases of devices that the guest was asked to let go.
    :raises RingwayError: libvirt or QEMU cannot be asked. :raises BusyError: as :func:`wait_turn`.
    """

    def __init__(self, domain: libvirt.virDomain, asked: frozenset[str] = frozenset()) -> None:
        self.domain: Final = domain
        wait_turn(domain)
        self.live = live_document(domain)
        self.persistent = persistent_document(domain)
        self._asked = asked
        self._hidden = hidden(domain, self.live) if self.live else {}

    @property
    def name(self) -> str:
        """Of the guest."""
        return self._document.name

    @property
    def hides(self) -> bool:
        """Whether QEMU has something of ours that libvirt does not know of."""
        return bool(self._hidden)

    @property
    def _document(self) -> Document:
        document = self.live or self.persistent
        if document is None:
            raise NotFoundError("the guest has gone meanwhile")
        return document

    def check_halves(self, *, live: bool, persistent: bool) -> None:
        """:raises ConflictError: the guest does not run, or has no next start, and that is meant."""
        runs, stays = self.live is not None, self.persistent is not None
        check_halves(self.name, runs=runs, stays=stays, live=live, persistent=persistent)

    def info(self) -> GuestInfo:
        """The guest."""
        document = self._document
        with translated(f"guest '{document.name}'"):
            state, *_ = self.domain.info()
        return GuestInfo(
            name=document.name,
            uuid=document.uuid or "",
            state=_STATES.get(state, GuestState.OTHER),
            persistent=self.persistent is not None,
            memory_bytes=document.memory_bytes,
            vcpus=document.vcpus,
            machine=document.machine,
            shared_memory=document.shares_memory,
            disks=self.disks(),
            attachments=self.attachments(),
            ports=self.ports(),
        )

    def ports(self) -> tuple[PlugInfo, ...]:
        """Our ports, by name."""
        running, next_start = _plugged(self.live), _plugged(self.persistent)
        return tuple(
            PlugInfo(
                guest=self.name,
                port=name,
                state=self._state(alias),
                live=name in running,
                persistent=name in next_start,
            )
            for name, alias in sorted({**next_start, **running}.items())
        )

    def plug(self, port: str) -> PlugInfo | None:
        """One of them; ``None`` if it is not there."""
        return next((info for info in self.ports() if info.port == port), None)

    def disks(self) -> tuple[GuestDisk, ...]:
        """All disks, whoever put them there: those of the guest that runs, then those of its next start."""
        found: dict[object, GuestDisk] = {}
        for half, document in (("live", self.live), ("persistent", self.persistent)):
            for disk in document.disks() if document else ():
                key = disk.alias if owner(disk.alias) else (disk.target, disk.bus, disk.source)
                found[key] = replace(found.get(key, disk), **{half: True})
        return tuple(map(self._told, found.values()))

    def disk(self, volume: str) -> GuestDisk | None:
        """One of ours; ``None`` if it is not there."""
        return next((disk for disk in self.disks() if disk.volume == volume), None)

    def _told(self, disk: GuestDisk) -> GuestDisk:
        """With what is said of one that is ours."""
        if disk.volume is None or disk.alias is None:
            return disk
        state = self._state(disk.alias)
        return replace(disk, state=state, message=WAS_ASKED if state is _GOING else None)

    def _state(self, alias: str) -> AttachmentState:
        return _GOING if alias in self._asked and self.is_live(alias) else AttachmentState.ATTACHED

    def attachments(self) -> tuple[AttachmentInfo, ...]:
        """Our endpoints, by name."""
        names = {*self._in(self.live), *self._in(self.persistent), *self._hidden_endpoints()}
        return tuple(info for name in sorted(names) if (info := self.attachment(name)))

    def attachment(self, endpoint: str) -> AttachmentInfo | None:
        """One of them; ``None`` if it is not there."""
        running, next_start = self._in(self.live).get(endpoint), self._in(self.persistent).get(endpoint)
        alias = self._hidden_endpoints().get(endpoint)
        known = running or next_start
        if known is None and alias is None:
            return None
        face = known.face if known else _face(self._hidden[alias or ""])
        hides = (UNTIL_START if next_start else UNTIL_STOP) if alias else None
        fixed = NOT_MOVABLE if face is Face.VHOST_SCSI else hides
        name = alias or (known.alias if known else "")
        live = running is not None or alias is not None
        waits = from_next_start(late(running, next_start)) if live and next_start else ""
        return AttachmentInfo(
            guest=self.name,
            endpoint=endpoint,
            face=face,
            alias=name,
            state=(state := self._state(name)),
            live=live,
            persistent=next_start is not None,
            address=self._address(running or next_start, alias),
            migratable=fixed is None,
            message="; ".join(filter(None, (WAS_ASKED if state is _GOING else "", fixed, waits))) or None,
        )

    @property
    def was_tampered_with(self) -> bool:
        """Whether the guest that runs may have what libvirt does not know of."""
        return self.live is not None and is_tainted(self.domain)

    def address(self, alias: str) -> PciAddress | None:
        """Where the guest that runs has a device of ours; ``None`` if it has none."""
        if alias in self._hidden:
            return Monitor(self.domain).address(alias)
        devices = _ours(self.live) if self.live else []
        return next((each.address for each in devices if each.alias == alias), None)

    def drive(self, alias: str) -> tuple[int, int] | None:
        """The SCSI controller and unit of a plain disk of ours that the guest has now."""
        disks = self.live.volumes() if self.live else ()
        return next((each.place for each in disks if each.alias == alias), None)

    def queues(self, alias: str) -> int | None:
        """How many a device of the guest that runs has; ``None``: that is not said."""
        if alias in self._hidden:
            return Monitor(self.domain).queues(alias)
        devices = self.live.attachments() if self.live else ()
        return next((each.queues for each in devices if each.alias == alias), None)

    def is_live(self, alias: str) -> bool:
        """Whether the guest that runs has a device."""
        return alias in self._hidden or self.knows(alias)

    def knows(self, alias: str) -> bool:
        """Whether libvirt knows of a device of the guest that runs."""
        return self.live is not None and _has(self.live, alias)

    def is_persistent(self, alias: str) -> bool:
        """Whether the guest's next start has a device."""
        return self.persistent is not None and _has(self.persistent, alias)

    def _address(self, known: Attached | None, alias: str | None) -> str | None:
        address = Monitor(self.domain).address(alias) if alias else known.address if known else None
        return None if address is None else str(address)

    def _in(self, document: Document | None) -> dict[str, Attached]:
        return {each.endpoint: each for each in document.attachments()} if document else {}

    def _hidden_endpoints(self) -> dict[str, str]:
        owners = ((alias, owner(alias)) for alias in self._hidden)
        return {whose.name: alias for alias, whose in owners if whose and whose.kind is Kind.ENDPOINT}


def from_next_start(words: Iterable[str]) -> str:
    """Say of what a device holds then, and not before; empty of nothing."""
    found = " and ".join(words)
    return f"{found}: from the guest's next start on" if found else ""


def late(running: Attached | None, next_start: Attached) -> Iterator[str]:
    """What a guest's next start has, and the guest that runs has not. :param running: unless it is hidden."""
    if next_start.boot_order not in (None, running.boot_order if running else None):
        yield "boot order"
    if running is not None and running.face is Face.VHOST_SCSI:
        if next_start.queues not in (None, running.queues):
            yield "queues"
        if next_start.protection and not running.protection:
            yield "protection"


def _plugged(document: Document | None) -> dict[str, str]:
    """Our ports in a document, and their aliases."""
    return {port.port: port.alias for port in document.ports()} if document else {}


def _ours(document: Document) -> list[Attached | Plugged | MappedVolume]:
    return [*document.attachments(), *document.ports(), *document.volumes()]


def _has(document: Document, alias: str) -> bool:
    return any(each.alias == alias for each in _ours(document))


def _face(kind: str) -> Face:
    """What QEMU's type of a device is."""
    return next((face for prefix, face in _FACES.items() if kind.startswith(prefix)), Face.VHOST_SCSI)
