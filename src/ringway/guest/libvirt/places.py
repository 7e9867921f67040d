"""Where in a running guest a new device goes."""

from __future__ import annotations

import libvirt

from ringway.errors import ConflictError
from ringway.guest.document import Chipset, Document, PciAddress
from ringway.guest.libvirt.monitor import Monitor


def free_place(domain: libvirt.virDomain, live: Document, persistent: Document | None) -> PciAddress | None:
    """A place that is free in QEMU, and preferably in the guest's next start as well.

    It is the last, where libvirt looks last: it does not know of a device that QEMU was given past it, and
    would put its next one there.

    :returns: ``None``: QEMU and libvirt choose well by themselves.
    :raises ConflictError: there is none.
    """
    places = _free_places(Monitor(domain), live)
    if places is None:
        return None
    return next((place for place in places if persistent is None or persistent.is_free(place)), places[0])


def _free_places(monitor: Monitor, live: Document) -> tuple[PciAddress, ...] | None:
    """:raises ConflictError: there is none."""
    match live.chipset:
        case Chipset.Q35:
            if ports := monitor.free_ports():
                return ports
            raise ConflictError(
                f"guest '{live.name}' has no free PCI Express port",
                hint="give it <controller type='pci' model='pcie-root-port'/> and start it again",
            )
        case Chipset.I440FX:
            if slots := monitor.free_slots():
                return slots
            raise ConflictError(
                f"guest '{live.name}' has no free slot on its PCI bus", hint="detach something from it first"
            )
        case Chipset.OTHER:
            return None
