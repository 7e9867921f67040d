"""A domain's XML: read, edited in place, checked.

``document`` is the whole; ``tree`` keeps what nobody touched; ``facts``, ``memory``, ``pci``, ``names``,
``overrides`` know one part each; ``faces`` is what can be put in. No libvirt connection here.
"""

from ringway.guest.document.disks import MappedVolume
from ringway.guest.document.document import Document, difference
from ringway.guest.document.drives import ScsiControllerInfo
from ringway.guest.document.endpoints import Attached, ForeignDevice
from ringway.guest.document.faces import (
    DiskBus,
    DiskDevice,
    DiskFace,
    DiskSource,
    EndpointFace,
    PortFace,
    ScsiController,
)
from ringway.guest.document.facts import Chipset
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.ports import Plugged

__all__ = [
    "Attached",
    "Chipset",
    "DiskBus",
    "DiskDevice",
    "DiskFace",
    "DiskSource",
    "Document",
    "EndpointFace",
    "ForeignDevice",
    "MappedVolume",
    "PciAddress",
    "Plugged",
    "PortFace",
    "ScsiController",
    "ScsiControllerInfo",
    "difference",
]
