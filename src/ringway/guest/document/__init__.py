"""A domain's XML: read, edited in place, checked.

``document`` is the whole; ``tree`` keeps what nobody touched; ``endpoints``, ``disks`` and ``ports`` make the
elements; ``facts``, ``memory``, ``pci``, ``drives``, ``names``, ``boot`` and ``overrides`` know one part
each; ``validation`` asks libvirt's programs. No connection to libvirt here.
"""

from ringway.guest.document.disks import MappedVolume
from ringway.guest.document.document import Document, difference
from ringway.guest.document.drives import ScsiControllerInfo
from ringway.guest.document.endpoints import Attached
from ringway.guest.document.facts import Chipset
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.ports import Plugged
from ringway.guest.document.validation import NativeCommand, native, validate
from ringway.guest.faces import DiskFace, DiskSource, ScsiController

__all__ = [
    "Attached",
    "Chipset",
    "DiskFace",
    "DiskSource",
    "Document",
    "MappedVolume",
    "NativeCommand",
    "PciAddress",
    "Plugged",
    "ScsiController",
    "ScsiControllerInfo",
    "difference",
    "native",
    "validate",
]
