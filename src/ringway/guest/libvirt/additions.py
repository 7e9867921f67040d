"""Devices that come into a domain: what has to hold before, and both halves of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import libvirt
from msgspec.structs import replace

from ringway.errors import ConflictError, UsageError
from ringway.guest.aliases import endpoint_alias, port_alias, spoken, volume_alias
from ringway.guest.base import Device, Wish
from ringway.guest.document import Attached, DiskFace, Document, PciAddress, Plugged, difference
from ringway.guest.libvirt import confinement, hotplug, places, plain, reach
from ringway.guest.libvirt.failures import translated
from ringway.guest.libvirt.looks import Look, from_next_start, persistent_xml
from ringway.guest.libvirt.monitor import Monitor
from ringway.model import Face, PortMode, PortSpec

Edit = Callable[[Document], object]

_TRIES: Final = 5


def alias_of(device: Device) -> str:
    """The name that it has in the domain."""
    match device:
        case Wish():
            return endpoint_alias(device.endpoint)
        case PortSpec():
            return port_alias(device.name)
        case DiskFace():
            return volume_alias(device.volume)


def _is_kernels(device: Device) -> bool:
    """Whether it is the kernel's, which maps a guest's memory whether it is shared or not."""
    return isinstance(device, Wish) and device.face is Face.VHOST_SCSI


def _is_in_qemu(device: Device) -> bool:
    """Whether QEMU or the kernel does its work, so that no other process needs the guest's memory."""
    return isinstance(device, DiskFace) or _is_kernels(device)


def missing(look: Look, device: Device, *, live: bool, persistent: bool) -> tuple[bool, bool]:
    """Which of the halves that are meant do not have a device yet: the guest that runs, its next start.

    :raises ConflictError: one has it otherwise than is wished now.
    """
    alias = alias_of(device)
    has = (
        ("the guest that runs", _live_differences(look, device) if live else ()),
        ("its next start", _differences(look, device) if persistent else ()),
    )
    for whose, differences in has:
        if found := ", ".join(differences):
            raise ConflictError(
                f"guest '{look.name}' has {spoken(alias)} already: {whose} with {found}",
                hint=f"detach it first: ringway guest detach {look.name} {_name_of(device)}",
            )
    return live and not look.is_live(alias), persistent and not look.is_persistent(alias)


def _name_of(device: Device) -> str:
    """What a command calls it."""
    match device:
        case Wish():
            return device.endpoint
        case PortSpec():
            return device.name
        case DiskFace():
            return device.volume


def _live_differences(look: Look, device: Device) -> Iterator[str]:
    """Of what holds at once."""
    if isinstance(device, DiskFace) and look.live is not None:
        yield from plain.differences(look.live, device)
    if isinstance(device, Wish) and device.face is not Face.VHOST_SCSI:
        alias = alias_of(device)
        if look.is_live(alias):
            yield from _queues_differ(look.queues(alias), device)


def _differences(look: Look, device: Device) -> Iterator[str]:
    """Between what the guest's next start has and what was asked for; what was not may be as it is."""
    if look.persistent is None:
        return
    if isinstance(device, DiskFace):
        yield from plain.differences(look.persistent, device)
        yield from plain.order_differs(look.persistent, device)
    if isinstance(device, Wish):
        yield from _wish_differs(look.persistent, device)


def _wish_differs(document: Document, wish: Wish) -> Iterator[str]:
    there = document.attachments()
    for found in (each for each in there if each.alias == alias_of(wish)):
        yield from _queues_differ(found.queues, wish)
        if wish.boot_order not in (None, found.boot_order):
            yield f"boot order {found.boot_order or 'unset'}, not {wish.boot_order}"
        if wish.protection and not found.protection:
            yield "no protection"


def _queues_differ(queues: int | None, wish: Wish) -> Iterator[str]:
    if wish.queues_asked and wish.queues not in (None, queues):
        yield f"queues {queues or 'unset'}, not {wish.queues}"


def memory_is_shared(document: Document, device: Device, *, fix: bool, persistent: bool) -> bool:
    """Whether a device may come in, as far as memory goes: a vhost-user one needs it shared.

    :param fix: to be shared from the guest's next start on. :param persistent: that is meant.
    :raises ConflictError: it may not, and it is not to be fixed.
    """
    if _is_in_qemu(device) or document.shares_memory:
        return True
    if not (fix and persistent):
        needed = "--fix-memory shares it from the guest's next start on"
        raise ConflictError(
            f"guest '{document.name}' does not share its memory: {'; '.join(document.memory_obstacles)}",
            hint=f"{needed}: leave out --no-persistent" if fix else needed,
        )
    return False


def check_socket(device: Device, look: Look, capabilities: str, *, now: bool) -> None:
    """Look whether the host lets QEMU get to what the device needs.

    :param now: the guest that runs is to have it, so that somebody has to listen.

    :raises RingwayError: it does not; the message names what is in the way.
    """
    if isinstance(device, DiskFace):
        return
    document = look.live if now else look.persistent
    assert document is not None
    alias, qemu = alias_of(device), _qemu_of(document, capabilities)
    if now and _is_kernels(device):
        confinement.check_hot_plug(alias, qemu.profile)
    _check_place(device, alias, qemu, now=now)


def check_start(document: Document, capabilities: str) -> None:
    """Look whether QEMU gets to all sockets of ours that a guest starts with: it would wait for ever.

    :raises RingwayError: as :func:`check_socket`.
    """
    qemu = _qemu_of(document, capabilities)
    devices: tuple[Attached | Plugged, ...] = (*document.attachments(), *document.ports())
    for device in devices:
        _check_place(device, device.alias, qemu, now=True)


class _Qemu(NamedTuple):
    """What the host makes of a guest's QEMU."""

    user: reach.User | None
    profile: confinement.Profile | None


def _qemu_of(document: Document, capabilities: str) -> _Qemu:
    user = reach.user_of(document.xml) or reach.user_of(capabilities)
    return _Qemu(user, confinement.profile_of(document.xml, capabilities))


def _check_place(device: Wish | PortSpec | Attached | Plugged, alias: str, qemu: _Qemu, *, now: bool) -> None:
    if device.socket is None:
        return
    if isinstance(device, PortSpec | Plugged):  # libvirt gives their sockets to QEMU's profile
        if device.mode is PortMode.SERVER:  # QEMU makes it, and listens there
            reach.check_folder(device.socket, qemu.user)
            return
    else:
        confinement.check_socket(device.socket, alias, qemu.profile)
    reach.check_socket(device.socket, qemu.user)
    if now:
        reach.check_free(device.socket, alias)


def check_late(device: Device, *, persistent: bool) -> str:
    """Look at what holds from a start on alone, of a device that a guest is to get while it runs.

    :returns: what the caller should know of it.
    :raises UsageError: it has no next start, so that this would never hold.
    """
    words = tuple(_late(device))
    if words and not persistent:
        raise UsageError(
            f"a device that a guest gets while it runs has no {' and '.join(words)} of one's own",
            hint="leave that out, or give the device to its next start as well",
        )
    return from_next_start(words)


def _late(device: Device) -> Iterator[str]:
    """A firmware looks for its boot devices at a start, and libvirt heeds overrides then."""
    if isinstance(device, PortSpec):
        return
    if device.boot_order is not None:
        yield "boot order"
    if isinstance(device, Wish) and _is_kernels(device):
        if device.queues is not None:
            yield "queues"
        if device.protection:
            yield "protection"


def add_live(domain: libvirt.virDomain, look: Look, device: Device) -> None:
    """Give a device to the guest that runs. :raises RingwayError: it could not; nothing of it is left."""
    assert look.live is not None
    if not isinstance(device, PortSpec):
        device = replace(device, boot_order=None)  # libvirt refuses one where <os> names kinds of devices
    if isinstance(device, Wish) and device.face is Face.VHOST_USER_SCSI:
        hotplug.plug(Monitor(domain), device, places.free_place(domain, look.live, look.persistent))
        return
    elements = _add(Document(look.live.xml), device, _place_of_ours(domain, look, device))
    try:
        for element in elements:
            with translated(f"guest '{look.name}' does not get {spoken(alias_of(device))}"):
                domain.attachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except BaseException:
        if len(elements) > 1:
            plain.drop_controllers(domain, look.live)
        raise


def _place_of_ours(domain: libvirt.virDomain, look: Look, device: Device) -> PciAddress | None:
    """``None``: libvirt chooses, and well as long as it knows of all that is there."""
    assert look.live is not None
    if not look.hides or (isinstance(device, DiskFace) and look.live.has_room_for(device)):
        return None
    return places.free_place(domain, look.live, look.persistent)


def add_persistent(domain: libvirt.virDomain, look: Look, device: Device) -> str:
    """Give a device to the guest's next start, and share its memory if that is needed and is not so.

    :param look: at the guest that runs; where that has it, the next start has it too, if that is free.
    :returns: what changed of its memory, as a diff.
    """
    memory: list[str] = []
    address = look.address(alias_of(device))
    if isinstance(device, DiskFace):
        device = replace(device, place=look.drive(alias_of(device)))

    def edit(document: Document) -> None:
        wanted = address if address is not None and document.is_free(address) else None
        if not _is_in_qemu(device):
            memory[:] = [document.share_memory()]
        _add(document, device, wanted)

    rewrite(domain, edit)
    return "".join(memory)


def remove_persistent(domain: libvirt.virDomain, alias: str) -> None:
    """Take a device out of the guest's next start. :raises NotFoundError: it has none such."""
    rewrite(domain, lambda document: document.remove(alias))


def preview(look: Look, device: Device) -> str:
    """What :func:`add_persistent` would change, as a diff."""
    assert look.persistent is not None
    document = Document(look.persistent.xml)
    if not _is_in_qemu(device):
        document.share_memory()
    _add(document, device, None)
    return difference(look.persistent.xml, document.xml)


def rewrite(domain: libvirt.virDomain, edit: Edit) -> None:
    """Change a domain's persistent document; if others have changed it meanwhile, again, on top of theirs.

    libvirt has no compare-and-set: what others define while it checks and takes ours, a few milliseconds, is
    lost. Nothing else comes between the last look and that.

    :raises RingwayError: what ``edit`` raises, or libvirt refuses it; the document is as before.
    """
    before = _next_start(domain)
    for _ in range(_TRIES):
        document = Document(before)
        edit(document)
        after, name = document.xml, document.name
        if (now := _next_start(domain)) == before:
            with translated(f"libvirt does not take the document of guest '{name}'"):
                domain.connect().defineXMLFlags(after, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            return
        before = now
    raise ConflictError(
        f"somebody else changes guest '{domain.name()}' all the time", hint="wait for that, and try again"
    )


def _next_start(domain: libvirt.virDomain) -> str:
    """:raises ConflictError: the domain has none."""
    if (xml := persistent_xml(domain)) is None:
        raise ConflictError(f"guest '{domain.name()}' has no next start any more")
    return xml


def _add(document: Document, device: Device, address: PciAddress | None) -> tuple[str, ...]:
    match device:
        case Wish():
            return document.add_endpoint(device, address)
        case PortSpec():
            return document.add_port(device, address)
        case DiskFace():
            return document.add_disk(device, address=address)
