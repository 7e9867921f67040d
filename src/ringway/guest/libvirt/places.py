"""Where in a running guest a new device goes."""

from __future__ import annotations

import libvirt
from lxml import etree

from ringway.errors import ConflictError
from ringway.guest.document import Chipset, Document, PciAddress
from ringway.guest.libvirt.monitor import Monitor


def free_place(domain: libvirt.virDomain, live: Document, persistent: Document | None) -> PciAddress | None:
    """A place that is free in QEMU, and preferably in the guest's next start as well.

    :returns: ``None``: QEMU and libvirt choose well by themselves.
    :raises ConflictError: there is none.
    """
    if live.chipset is not Chipset.Q35:
        return None
    taken = used(persistent) if persistent else frozenset()
    ports = Monitor(domain).free_ports()
    if not ports:
        raise ConflictError(
            f"guest '{live.name}' has no free PCI Express port",
            hint="give it <controller type='pci' model='pcie-root-port'/> and start it again",
        )
    return next((port for port in ports if port not in taken), ports[0])


def used(document: Document) -> frozenset[PciAddress]:
    """Places that a document names."""
    devices = etree.fromstring(document.xml.encode()).iterfind("devices/*")
    return frozenset(address for device in devices if (address := PciAddress.of(device)))
