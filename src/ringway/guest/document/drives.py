"""Places of disks on SCSI controllers: which there are, which are taken, which is next.

What libvirt does by itself, as of 11.3: a SCSI controller without a model is an LSI one on x86. A disk
without an address has the one that its name says, seven a controller (``sdh`` is unit 0 of controller 1), and
controllers up to the highest that a disk names are added, of that default model too. So nothing is
left to libvirt here: a disk gets its address, and a controller the lowest index that nobody has or implies.
libvirt checks no more than that the bus is 0; QEMU takes targets to 255 and LUNs to 16383.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator
from itertools import chain, count
from typing import Final

from msgspec import Struct

from ringway.errors import UsageError
from ringway.guest.document.facts import each_device, iothreads_of
from ringway.guest.document.names import disk_index
from ringway.guest.document.parts import lanes
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make
from ringway.guest.faces import ScsiController

#: What QEMU's and the guest's driver for virtio-scsi serves; ``virtio-scsi`` follows the machine.
VIRTIO_MODELS: Final = ("virtio-scsi", "virtio-transitional", "virtio-non-transitional")
#: A controller's LUNs on its target 0. More would need the flat form of addressing, which not every firmware
#: and guest looks for; libvirt and QEMU go on to 16384.
UNITS: Final = 256
_BY_NAME: Final = {
    "scsi": 7,
    "sata": 6,
}  #: libvirt's own count of units a controller, for disks without address
SATA_UNITS: Final = 6


class DriveAddress(Struct, frozen=True, order=True):
    """A place on a controller of disks."""

    controller: int
    bus: int = 0
    target: int = 0
    unit: int = 0

    def element(self) -> Element:
        """Make the ``<address>``."""
        numbers = ("controller", "bus", "target", "unit")
        return make("address", {"type": "drive"} | {name: getattr(self, name) for name in numbers})


class ScsiControllerInfo(Struct, frozen=True, kw_only=True):
    """A SCSI controller that is in a domain's XML, or that libvirt will add for a disk that is."""

    index: int
    model: str | None  #: ``None``: libvirt's default
    disks: int = 0  #: that are on it

    @property
    def virtio(self) -> bool:
        return self.model in VIRTIO_MODELS


def drive_address(device: Element, bus: str) -> DriveAddress | None:
    """Where a device is, or where libvirt will put it for its name."""
    address = device.find("address[@type='drive']")
    if address is not None:
        return DriveAddress(*(_number(address.get(name, "0")) for name in DriveAddress.__struct_fields__))
    target = device.find("target")
    index = None if target is None else disk_index(target.get("dev", ""))
    return None if index is None else DriveAddress(index // _BY_NAME[bus], 0, 0, index % _BY_NAME[bus])


def taken(root: Element, bus: str) -> set[DriveAddress]:
    """All places on the controllers of ``scsi`` or ``sata``."""
    places = (drive_address(device, bus) for device in _on_bus(root, bus))
    return {place for place in places if place is not None}


def scsi_controllers(root: Element) -> tuple[ScsiControllerInfo, ...]:
    """All SCSI controllers, those that libvirt will add for a disk as well."""
    disks = Counter(place.controller for place in taken(root, "scsi"))
    elements = _indexed(root)
    implied = range(max(disks, default=-1) + 1)
    return tuple(_info(index, elements.get(index), disks[index]) for index in sorted({*elements, *implied}))


def place_on_scsi(root: Element, wanted: tuple[int, int] | None = None) -> DriveAddress | None:
    """The next place on a virtio-scsi controller that is there; ``None`` if all are full.

    :param wanted: the controller and unit to be taken if they are free.
    """
    places = taken(root, "scsi")
    controllers = [controller.index for controller in scsi_controllers(root) if controller.virtio]
    first = [DriveAddress(wanted[0], unit=wanted[1])] if wanted and wanted[0] in controllers else []
    each = (DriveAddress(index, unit=unit) for index in controllers for unit in range(UNITS))
    return next((place for place in chain(first, each) if place not in places), None)


def scsi_address(root: Element, index: int) -> PciAddress | None:
    """Where a SCSI controller is; ``None`` if it is not there, or libvirt is to choose."""
    controller = _indexed(root).get(index)
    return None if controller is None else PciAddress.of(controller)


def place_on_sata(root: Element) -> DriveAddress:
    """The next place on a SATA controller; libvirt adds the controller."""
    places = taken(root, "sata")
    candidates = (DriveAddress(at // SATA_UNITS, unit=at % SATA_UNITS) for at in range(len(places) + 1))
    return next(place for place in candidates if place not in places)


def controller_element(root: Element, wanted: ScsiController, address: PciAddress | None = None) -> Element:
    """Make a virtio-scsi controller, with the lowest index that is free.

    :param address: ``None``: libvirt chooses.
    :raises UsageError: an I/O thread that the domain has not, or numbers that make no sense.
    """
    check_lanes(root, wanted)
    index = _lowest({controller.index for controller in scsi_controllers(root)})
    driver = make("driver", *lanes(wanted))
    return make(
        "controller",
        {"type": "scsi", "index": index, "model": "virtio-scsi"},
        driver if driver.attrib or len(driver) else None,
        None if address is None else address.element(),
    )


def _on_bus(root: Element, bus: str) -> Iterator[Element]:
    for device in each_device(root, "disk"):
        target = device.find("target")
        if target is not None and target.get("bus") == bus:
            yield device
    if bus == "scsi":
        yield from root.iterfind("devices/hostdev[@type='scsi']")


def _indexed(root: Element) -> dict[int, Element]:
    """The SCSI controllers by their index; who has none gets the lowest that is free, as libvirt does it."""
    controllers = list(root.iterfind("devices/controller[@type='scsi']"))
    found = {_number(each.get("index", "")): each for each in controllers if each.get("index")}
    for each in controllers:
        if not each.get("index"):
            found[_lowest(found)] = each
    return found


def _info(index: int, element: Element | None, disks: int) -> ScsiControllerInfo:
    if element is None:
        return ScsiControllerInfo(index=index, model=None, disks=disks)
    return ScsiControllerInfo(index=index, model=element.get("model"), disks=disks)


def _lowest(indexes: Container[int]) -> int:
    """The lowest index that is free: above a gap libvirt would fill the gap, with LSI controllers."""
    return next(index for index in count() if index not in indexes)


def _number(text: str) -> int:
    """Part of an address. :raises UsageError: it is none, or more than any controller has."""
    if re.fullmatch("[0-9]{1,5}", text) is None:
        raise UsageError(f"'{text}' is no number of a controller or a unit")
    return int(text)


def check_lanes(root: Element, wanted: ScsiController) -> None:
    """:raises UsageError: an I/O thread that the domain has not, or numbers that make no sense."""
    there = iothreads_of(root)
    for thread in wanted.iothreads:
        if thread not in there:
            raise UsageError(
                f"the guest has no I/O thread {thread}",
                hint=f"virsh iothreadadd gives it one; it has {sorted(there)}",
            )
    if wanted.queues is not None and wanted.queues < 1:
        raise UsageError("a controller has at least one queue")
    threads = len(set(wanted.iothreads))
    if threads < len(wanted.iothreads) or threads > (wanted.queues or threads):
        raise UsageError("a controller has at most as many I/O threads as queues, and each of them once")
