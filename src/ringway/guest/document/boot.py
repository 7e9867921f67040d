"""Boot order: a number at each device, or ``<boot dev>`` in ``<os>`` for kinds of devices.

libvirt refuses both together. Who asks for a place gets it: kinds become the numbers that they stand for, and
who is in the way moves back by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ringway.guest.document.facts import each_device
from ringway.guest.document.names import disk_index
from ringway.guest.document.tree import Element, insert_at, make, remove

_DISKS: Final = {"hd": ("disk", "lun"), "cdrom": ("cdrom",), "fd": ("floppy",)}
_BEHIND: Final = ("encryption", "alias", "address")  #: what libvirt prints behind ``<boot>``


def make_room(root: Element, order: int) -> None:
    """Have no device boot at place ``order``, and none by its kind. :param order: from 1."""
    _number_kinds(root)
    places = {boot.get("order"): boot for boot in root.iterfind("devices/*/boot")}
    while (boot := places.get(str(order))) is not None:
        order += 1
        boot.set("order", str(order))


def _number_kinds(root: Element) -> None:
    """Say at the devices what ``<os>`` says of their kinds; the first of a kind is meant."""
    for order, boot in enumerate(list(root.iterfind("os/boot")), start=1):
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
