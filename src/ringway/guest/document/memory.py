"""Memory that a vhost-user target can map: shared, as libvirt checks it.

Shared memory of which no more is said is a file of libvirt's on a disk; memfd is better, and as good for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ringway.guest.document.tree import Element, insert, insert_at, make

_SOURCES: Final = ("memfd", "file")


def obstacles(root: Element) -> Iterator[str]:
    """What of the guest's memory is not shared, a sentence each; nothing if all is."""
    shared = _mode(root.find("memoryBacking/access"), "mode") == "shared"
    cells = list(root.iterfind("cpu/numa/cell"))
    for cell in cells:
        if cell.get("memAccess", "shared" if shared else "private") != "shared":
            yield f"NUMA cell {cell.get('id', '?')} is private"
    if not cells and not shared:
        yield "its memory is private (no <access mode='shared'/> in <memoryBacking>)"
    yield from (f"memory device {number} is private" for number, _ in _private_devices(root))


def share(root: Element) -> None:
    """Make all of the guest's memory shared, from its next start on."""
    backing = root.find("memoryBacking")
    if backing is None:
        backing = make("memoryBacking")
        insert_at(root, backing, _behind_memory(root))
    if not _has_source(root):
        _set(backing, "source", "type", "memfd")
    _set(backing, "access", "mode", "shared")
    for cell in root.iterfind("cpu/numa/cell[@memAccess]"):
        cell.set("memAccess", "shared")
    for _, device in list(_private_devices(root)):
        device.set("access", "shared")


def _private_devices(root: Element) -> Iterator[tuple[int, Element]]:
    """Memory devices that do not take after the rest, with their place among the devices."""
    for number, device in enumerate(root.iterfind("devices/memory")):
        if device.get("access") == "private":
            yield number, device


def _has_source(root: Element) -> bool:
    if root.find("memoryBacking/hugepages") is not None:
        return True
    return _mode(root.find("memoryBacking/source"), "type") in _SOURCES


def _mode(element: Element | None, attribute: str) -> str | None:
    return None if element is None else element.get(attribute)


def _set(parent: Element, tag: str, attribute: str, value: str) -> None:
    element = parent.find(tag)
    if element is None:
        insert(parent, make(tag, {attribute: value}))
    else:
        element.set(attribute, value)


def _behind_memory(root: Element) -> int:
    """Where libvirt itself prints ``<memoryBacking>``."""
    places = [
        root.index(child) for tag in ("memory", "currentMemory", "maxMemory") for child in root.iterfind(tag)
    ]
    return max(places, default=len(root) - 1) + 1
