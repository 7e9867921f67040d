"""The verbs of ``guest.base``, by libvirt."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import Final, TypeVar

import libvirt
from msgspec.structs import replace

from ringway import faults
from ringway.errors import (
    BusyError,
    ConflictError,
    GuestError,
    NotFoundError,
    RingwayError,
    UnreachableError,
    UsageError,
)
from ringway.guest.aliases import endpoint_alias, port_alias, spoken, volume_alias
from ringway.guest.base import Device, Notify, Wish
from ringway.guest.document import DiskFace, Document
from ringway.guest.libvirt import additions, confinement, plain, reach, versions
from ringway.guest.libvirt.additions import alias_of
from ringway.guest.libvirt.connection import Connection
from ringway.guest.libvirt.events import Events
from ringway.guest.libvirt.failures import translated
from ringway.guest.libvirt.looks import Look, glance, persistent_document
from ringway.guest.libvirt.removals import Removals, tidy
from ringway.model import AttachmentInfo, Check, GuestDisk, GuestInfo, PlugInfo, PortSpec

Info = TypeVar("Info", AttachmentInfo, PlugInfo)
_log: Final = logging.getLogger(__name__)
_UNDO_S: Final = 30.0  #: how long a guest may take to let go of what is taken back


class LibvirtHypervisor:
    """libvirt's guests on this host: :class:`~ringway.guest.base.Hypervisor`.

    The connection is made when it is needed, and again when it breaks. All calls :raise UnreachableError:
    libvirt is not there.

    :param uri: of libvirt.
    """

    def __init__(self, uri: str = "qemu:///system") -> None:
        self._events = Events()
        self._removals = Removals(self._events)
        self._connection = Connection(uri, self._events.prepare)

    # Looks

    def probe(self) -> tuple[Check, ...]:
        """Say what this host lets it do. Never raises."""
        try:
            connection = self._connection.get()
            with translated("libvirt"):
                libvirt_version, qemu_version = connection.getLibVersion(), connection.getVersion()
                capabilities = connection.getCapabilities()
        except RingwayError as error:
            return (Check(name="libvirt", ok=False, detail=error.message, hint=error.hint),)
        user = reach.user_of(capabilities)
        return (
            versions.check_libvirt(libvirt_version, self._connection.uri),
            versions.check_qemu(qemu_version),
            Check(name="qemu's user", ok=True, detail=user.name if user else "not told by libvirt"),
            confinement.confinement(capabilities),
        )

    def guests(self) -> tuple[GuestInfo, ...]:
        """All guests, by name, with what of ours is attached."""
        with translated("libvirt does not list its guests"):
            domains = self._connection.get().listAllDomains()
        found = []
        for domain in domains:
            try:
                found.append(self._info(domain))
            except (NotFoundError, ConflictError) as error:
                _log.debug("guest '%s' went meanwhile, or has not come: %s", domain.name(), error)
            except UnreachableError:
                raise
            except RingwayError as error:  # one guest that is not well hides no other
                _log.warning("guest '%s' is left out: %s", domain.name(), error)
        return tuple(sorted(found, key=lambda guest: guest.name))

    def show(self, guest: str) -> GuestInfo:
        """One guest. :raises NotFoundError: there is none."""
        return self._look(self._find(guest)).info()

    def document(self, guest: str, *, persistent: bool) -> Document:
        """A guest's document, of its next start or as it runs.

        :raises NotFoundError: there is no such guest.
        :raises ConflictError: it does not run, or has no next start.
        """
        look = self._look(self._find(guest))
        look.check_halves(live=not persistent, persistent=persistent)
        document = look.persistent if persistent else look.live
        assert document is not None
        return document

    # Devices

    def check(
        self, guest: str, device: Device, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> tuple[str, ...]:
        """Say what giving a guest a device would change, in lines; none if the guest has it.

        :raises RingwayError: why it could not.
        """
        look = self._look(self._find(guest))
        live, persistent = additions.missing(look, device, live=live, persistent=persistent)
        live = self._checked(look, device, live=live, persistent=persistent, fix_memory=fix_memory)
        lines = [f"guest '{look.name}' gets {spoken(alias_of(device))} now"] * live
        if live and (note := additions.check_late(device, persistent=persistent)):
            lines.append(note)
        return (*lines, *(additions.preview(look, device).splitlines() if persistent else ()))

    def attach(
        self, guest: str, wish: Wish, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> AttachmentInfo:
        """Give a guest an endpoint, first to the one that runs. Doing it again changes nothing.

        :raises RingwayError: it could not; the guest is as before.
        """
        domain = self._find(guest)
        note = self._add(domain, wish, live=live, persistent=persistent, fix_memory=fix_memory)
        return _given(guest, wish, self._look(domain).attachment(wish.endpoint), note)

    def detach(self, guest: str, endpoint: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take an endpoint away; what is not there is fine.

        :param timeout_s: how long the guest may take to let it go.
        :raises TimedOutError: it did not; it was asked, and nothing else changed.
        """
        self._remove(guest, endpoint_alias(endpoint), live=live, persistent=persistent, timeout_s=timeout_s)

    def plug(
        self, guest: str, port: PortSpec, *, live: bool, persistent: bool, fix_memory: bool = False
    ) -> PlugInfo:
        """Give a guest a port.

        Where QEMU is the server, a guest that runs stands still until the switch connects: plug such a port
        in live only when its switch tries to connect already.

        :raises RingwayError: it could not; the guest is as before.
        """
        domain = self._find(guest)
        note = self._add(domain, port, live=live, persistent=persistent, fix_memory=fix_memory)
        return _given(guest, port, self._look(domain).plug(port.name), note)

    def unplug(self, guest: str, port: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a port away; what is not there is fine. :raises TimedOutError: as :meth:`detach`."""
        self._remove(guest, port_alias(port), live=live, persistent=persistent, timeout_s=timeout_s)

    def tidy(self, guest: str) -> None:
        """Remove what devices left behind that a guest let go when nobody waited for it any more."""
        with contextlib.suppress(NotFoundError):
            tidy(self._look(self._find(guest)))

    def attach_disk(self, guest: str, disk: DiskFace, *, live: bool, persistent: bool) -> GuestDisk:
        """Give a guest a plain disk, first to the one that runs. Doing it again changes nothing.

        :raises RingwayError: it could not; the guest is as before.
        """
        domain = self._find(guest)
        self._add(domain, disk, live=live, persistent=persistent)
        info = self._look(domain).disk(disk.volume)
        if info is None:
            raise GuestError(f"guest '{guest}' lost '{disk.volume}' as soon as it had it")
        late = additions.check_late(disk, persistent=True) if info.live else ""
        return replace(info, message="; ".join(filter(None, (info.message, late))) or None)

    def detach_disk(self, guest: str, volume: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        """Take a plain disk away, by the name that its alias has; what is not there is fine.

        :raises TimedOutError: as :meth:`detach`.
        """
        self._remove(guest, volume_alias(volume), live=live, persistent=persistent, timeout_s=timeout_s)

    # Whole guests

    def define(self, xml: str) -> GuestInfo:
        """Make a guest, which does not run yet.

        :raises ConflictError: there is one of its name. :raises RingwayError: it could not; there is none.
        """
        document = Document(xml)
        connection = self._connection.get()
        with contextlib.suppress(NotFoundError):
            self._find(document.name)
            raise ConflictError(f"there is a guest '{document.name}' already")
        with translated(f"libvirt does not take guest '{document.name}'"):
            domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        return self._look(domain).info()

    def start(self, guest: str) -> None:
        """Let a guest run.

        :raises RingwayError: it does not, or would wait for ever for an endpoint's or a port's socket.
        """
        domain = self._find(guest)
        if (document := persistent_document(domain)) is not None:
            additions.check_start(document, self._capabilities())
        with translated(f"guest '{domain.name()}' does not start"):
            domain.create()

    def undefine(self, guest: str) -> None:
        """Forget a guest; one that is not there is fine. :raises ConflictError: it runs."""
        with contextlib.suppress(NotFoundError):
            domain = self._find(guest)
            with translated(f"guest '{domain.name()}' stays"):
                if domain.isActive():
                    raise ConflictError(f"guest '{domain.name()}' runs", hint="stop it first")
                domain.undefine()

    # What happens

    def watch(self, notify: Notify) -> None:
        """Tell of what happens from now on, and whenever libvirt is there again; at most one may ask."""
        self._events.watch(notify)
        self._connection.keep(self._events.came_back)

    def close(self) -> None:
        """Let go. Guests stay as they are."""
        self._connection.close()

    # Inside

    def _info(self, domain: libvirt.virDomain) -> GuestInfo:
        try:
            return self._look(domain).info()
        except BusyError as error:
            return glance(domain, error.message)

    def _find(self, guest: str) -> libvirt.virDomain:
        connection = self._connection.get()
        # A guest may be called as another's UUID is: what works on that one must not find this.
        for look_up in (connection.lookupByUUIDString, connection.lookupByName):
            with contextlib.suppress(NotFoundError, UsageError), translated(f"guest '{guest}'"):
                return look_up(guest)
        raise NotFoundError(f"there is no guest '{guest}'", hint="ringway guest list shows all")

    def _look(self, domain: libvirt.virDomain) -> Look:
        return Look(domain, self._removals.asked(domain))

    def _checked(self, look: Look, device: Device, *, live: bool, persistent: bool, fix_memory: bool) -> bool:
        """Check what can be before anything changes. :returns: whether the guest that runs can have it."""
        if not live and not persistent:
            return False
        look.check_halves(live=live, persistent=persistent)
        memory = partial(additions.memory_is_shared, device=device, fix=fix_memory, persistent=persistent)
        if live and look.live is not None:
            if isinstance(device, DiskFace):
                plain.check_hot(device)
            live = memory(look.live)
        if persistent and look.persistent is not None:
            memory(look.persistent)
        additions.check_socket(device, look, self._capabilities(), now=live)
        return live

    def _capabilities(self) -> str:
        with translated("libvirt's capabilities"):
            return str(self._connection.get().getCapabilities())

    def _add(
        self,
        domain: libvirt.virDomain,
        device: Device,
        *,
        live: bool,
        persistent: bool,
        fix_memory: bool = False,
    ) -> str:
        """Do both halves, or none. :returns: what the caller should know besides."""
        alias, look = alias_of(device), self._look(domain)
        live, persistent = additions.missing(look, device, live=live, persistent=persistent)
        if live:
            tidy(look)  # or its socket would count as another's
        live = self._checked(look, device, live=live, persistent=persistent, fix_memory=fix_memory)
        if live:
            additions.check_late(device, persistent=persistent)
            self._removals.forget(domain.UUIDString(), alias)
            additions.add_live(domain, look, device)
            faults.point("guest.live")
        if not persistent:
            return ""
        try:
            memory = additions.add_persistent(domain, self._look(domain), device)
        except BaseException as error:
            if live:
                self._undo(domain, look, alias, error)
            raise
        return f"its memory is shared from its next start on:\n{memory}" if memory else ""

    def _undo(self, domain: libvirt.virDomain, before: Look, alias: str, error: BaseException) -> None:
        """Take the first half back; what fails now is a note to what failed first."""
        try:
            self._removals.remove(lambda: domain, alias, _UNDO_S)
            if before.live is not None:
                plain.drop_controllers(domain, before.live)
        except RingwayError as further:
            error.add_note(f"{spoken(alias)} was not taken back: {further.message}")

    def _remove(self, guest: str, alias: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        domain = self._find(guest)
        if live:
            uuid = domain.UUIDString()
            self._removals.remove(lambda: self._find(uuid), alias, timeout_s)
        if persistent and self._look(domain := self._find(guest)).is_persistent(alias):
            additions.remove_persistent(domain, alias)


def _given(guest: str, device: Device, info: Info | None, note: str) -> Info:
    """What a guest has got, with a note. :raises GuestError: it has it no longer."""
    if info is None:
        raise GuestError(f"guest '{guest}' lost {spoken(alias_of(device))} as soon as it had it")
    return replace(info, message="\n".join(filter(None, (info.message, note))) or None)
