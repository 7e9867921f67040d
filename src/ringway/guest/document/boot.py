"""Boot order: a number at each device, or ``<boot dev>`` in ``<os>`` for kinds of devices.

libvirt refuses both together. Who asks for a place gets it: kinds become the numbers that they stand for, and
who is in the way moves back by one. A device that libvirt gives no place to has it by an override.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ringway.guest.document.facts import SMALL, each_device
from ringway.guest.document.names import disk_index
from ringway.guest.document.overrides import properties_of
from ringway.guest.document.tree import Element, insert_at, make, remove

_DISKS: Final = {"hd": ("disk", "lun"), "cdrom": ("cdrom",), "fd": ("floppy",)}
BOOT_INDEX: Final = "bootindex"  #: QEMU's property, from 0; libvirt, for itself, begins with 1
_BEHIND: Final = ("encryption", "alias", "address")  #: what libvirt prints behind ``<boot>``


def make_room(root: Element, order: int) -> None:
    """Have no device boot at place ``order``, and none by its kind. :param order: from 1."""
    _number_kinds(root)
    numbered = {boot.get("order"): (boot, "order") for boot in root.iterfind("devices/*/boot")}
    overridden = {str(order_of(index)): (index, "value") for index in _overridden(root)}
    places = numbered | overridden
    while (place := places.get(str(order))) is not None:
        order += 1
        element, name = place
        element.set(name, str(order))


def index_of(order: int) -> int:
    """The boot index of a device that libvirt gives none.

    The first gets one that libvirt never uses: it gives 1 to the first disk of a domain in which it sees no
    order, and QEMU refuses to start with one index twice.
    """
    return 0 if order == 1 else order


def order_of(index: Element) -> int:
    """What an overridden boot index stands for; 0 if it is no number."""
    text = index.get("value", "")
    return max(int(text), 1) if re.fullmatch(SMALL, text) else 0


def _overridden(root: Element) -> list[Element]:
    return [found for found in properties_of(root) if found.get("name") == BOOT_INDEX]


def _number_kinds(root: Element) -> None:
    """Say at the devices what ``<os>`` says of their kinds; the first of a kind is meant."""
    first = max(map(order_of, _overridden(root)), default=0) + 1
    for order, boot in enumerate(list(root.iterfind("os/boot")), start=first):
        device = _first(root, boot.get("dev", ""))
        if device is not None and device.find("boot") is None:
            insert_at(device, make("boot", {"order": order}), _place(device))
        remove(boot)


def _first(root: Element, kind: str) -> Element | None:
    if kind == "network":
        return next(each_device(root, "interface"), None)
    of_kind = (disk for disk in _in_order(root) if disk.get("device", "disk") in _DISKS.get(kind, ()))
    return next(of_kind, None)


def _in_order(root: Element) -> Iterator[Element]:
    """Disks as libvirt sorts them: buses as they come, on each by name."""
    disks = [(disk, *_target(disk)) for disk in each_device(root, "disk")]
    buses = list(dict.fromkeys(bus for _, bus, _ in disks))
    yield from (disk for disk, _, _ in sorted(disks, key=lambda entry: (buses.index(entry[1]), entry[2])))


def _target(disk: Element) -> tuple[str, int]:
    target = disk.find("target")
    if target is None:
        return "", -1
    index = disk_index(target.get("dev", ""))
    return target.get("bus", ""), -1 if index is None else index


def _place(device: Element) -> int:
    behind = (at for at, child in enumerate(device) if child.tag in _BEHIND)
    return next(behind, len(device))
