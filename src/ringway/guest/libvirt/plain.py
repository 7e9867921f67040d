"""Plain disks of a domain: what they have to be like, and controllers that come with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Final

import libvirt

from ringway.errors import RingwayError, UsageError
from ringway.guest.aliases import volume_alias
from ringway.guest.document import DiskFace, Document, ScsiControllerInfo
from ringway.guest.libvirt.failures import translated
from ringway.guest.libvirt.looks import live_document
from ringway.model import DiskBus, DiskType, GuestDisk

_log: Final = logging.getLogger(__name__)
#: libvirt 11.3: "disk bus 'sata' cannot be hotplugged", and so on.
_COLD_BUSES: Final = (DiskBus.SATA, DiskBus.IDE, DiskBus.FDC)
_PLUGGED: Final = (DiskType.DISK, DiskType.LUN)


def check_hot(face: DiskFace) -> None:
    """:raises UsageError: no guest that runs can be given such a disk."""
    if face.bus in _COLD_BUSES:
        raise UsageError(
            f"a guest that runs cannot be given a disk on bus {face.bus}",
            hint="take bus=virtio-scsi or bus=virtio, or give it to its next start alone: --no-live",
        )
    if face.device not in _PLUGGED:
        raise UsageError(
            f"a guest that runs cannot be given a {face.device}",
            hint="give it to its next start alone (--no-live), or change the medium of one that is there: "
            "virsh change-media",
        )


def differences(document: Document, face: DiskFace) -> Iterator[str]:
    """Between what a document has of this name and what is asked for; nothing if it has none."""
    alias = volume_alias(face.volume)
    for disk in (each for each in document.disks() if each.alias == alias):
        yield from _differences(disk, face)


def _differences(disk: GuestDisk, face: DiskFace) -> Iterator[str]:
    if _real(disk.source) != _real(face.path):
        yield f"source {disk.source}, not {face.path}"
    wanted = {"bus": face.bus, "device": face.device, "target": face.target or disk.target}
    for name, value in wanted.items():
        if (there := getattr(disk, name)) != value:
            yield f"{name} {there}, not {value}"
    if disk.readonly != (face.readonly or face.device is DiskType.CDROM):
        yield "no right to write" if disk.readonly else "the right to write"


def order_differs(document: Document, face: DiskFace) -> Iterator[str]:
    """Whether its place in the order of boot is another, as far as one is asked for."""
    for disk in document.volumes():
        if disk.volume == face.volume and face.boot_order not in (None, disk.boot_order):
            yield f"boot order {disk.boot_order or 'unset'}, not {face.boot_order}"


def _real(path: str | None) -> str | None:
    return None if path is None else os.path.realpath(path)


def drop_controllers(domain: libvirt.virDomain, before: Document) -> None:
    """Ask the guest that runs for the SCSI controllers that it was given since, and that have no disk.

    It is not waited for, and never raises RingwayError: one that stays does no harm, and is there for the
    next disk.
    """
    had = {each.index for each in before.controllers()}
    try:
        now = live_document(domain)
        for controller in now.controllers() if now else ():
            if controller.index not in had and not controller.disks:
                _drop(domain, controller)
    except RingwayError as error:
        _log.info("guest '%s' keeps an empty SCSI controller: %s", before.name, error)


def _drop(domain: libvirt.virDomain, controller: ScsiControllerInfo) -> None:
    element = f"<controller type='scsi' index='{controller.index}' model='{controller.model}'/>"
    with translated(f"guest '{domain.name()}' keeps SCSI controller {controller.index}"):
        domain.detachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)
