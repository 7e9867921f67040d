"""What a domain's XML says about the guest as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from itertools import count, islice
from typing import Final

from ringway.errors import UsageError
from ringway.guest.document.tree import Element, insert_at

_TYPES: Final = ("kvm", "qemu", "hvf")  #: whose devices are QEMU's
#: Of ``<memory unit='…'>``; without one it is KiB.
_UNITS: Final[dict[str, int]] = {"": 1024, "b": 1, "bytes": 1} | {
    unit: int(base**power)
    for power, letter in enumerate("kmgtpe", start=1)
    for unit, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
SMALL: Final = "[0-9]{1,6}"  #: a count
_SUSPECT: Final = re.compile(r"\{.*\}")


class Chipset(StrEnum):
    """How a machine's PCI is built."""

    Q35 = "q35"
    I440FX = "i440fx"
    OTHER = "other"


def check_domain(root: Element) -> None:
    """:raises UsageError: it is no domain of QEMU's, or one without a name."""
    if root.tag != "domain":
        shown = _SUSPECT.sub("", str(root.tag))
        where = " in a namespace" if shown != root.tag else ""
        raise UsageError(f"this is no domain: its root is <{shown}>{where}")
    if (kind := root.get("type")) not in _TYPES:
        what = "has no type" if kind is None else f"has a type '{kind}'"
        raise UsageError(f"the domain {what}", hint=f"QEMU runs those of {', '.join(_TYPES)}")
    if not text_at(root, "name"):
        raise UsageError("the domain has no name")


def text_at(root: Element, path: str) -> str:
    """The text of an element; empty if there is none."""
    return (root.findtext(path) or "").strip()


def devices_of(root: Element) -> Element:
    """The ``<devices>``; made if there are none."""
    devices = root.find("devices")
    if devices is None:
        devices = root.makeelement("devices")
        insert_at(root, devices, len(root))
    return devices


def each_device(root: Element, *tags: str) -> Iterator[Element]:
    """Devices of some tags, in their order; of all tags if none is named."""
    for device in root.iterfind("devices/*"):
        if isinstance(device.tag, str) and (not tags or device.tag in tags):
            yield device


def alias_of(device: Element) -> str | None:
    """The name in a device's ``<alias>``."""
    alias = device.find("alias")
    return None if alias is None else alias.get("name")


def number_at(device: Element, tag: str, attribute: str) -> int | None:
    """A count in an element of a device; ``None`` if it is not there, or none."""
    element = device.find(tag)
    text = "" if element is None else element.get(attribute, "")
    return int(text) if re.fullmatch(SMALL, text) else None


def machine_of(root: Element) -> str:
    """``pc-q35-10.0``; empty if libvirt is to choose."""
    kind = root.find("os/type")
    return "" if kind is None else kind.get("machine", "")


def arch_of(root: Element) -> str:
    """``x86_64``; empty if libvirt is to choose."""
    kind = root.find("os/type")
    return "" if kind is None else kind.get("arch", "")


def chipset_of(root: Element) -> Chipset:
    """Which kind of PCI the machine has, by the machine's name."""
    machine = machine_of(root)
    if "q35" in machine:
        return Chipset.Q35
    return Chipset.I440FX if machine == "pc" or machine.startswith("pc-i440fx") else Chipset.OTHER


def memory_bytes_of(root: Element) -> int:
    """What the guest starts with: ``<memory>``, or the sum of its NUMA cells."""
    memory = root.find("memory")
    if memory is not None:
        return _size(memory.text, memory.get("unit"))
    cells = root.iterfind("cpu/numa/cell")
    return sum(_size(cell.get("memory"), cell.get("unit")) for cell in cells)


def _size(text: str | None, unit: str | None) -> int:
    try:
        return int(text or "", 10) * _UNITS[(unit or "").lower()]
    except (KeyError, ValueError) as error:
        raise UsageError(f"'{text} {unit or 'KiB'}' is no size of memory") from error


def iothreads_of(root: Element) -> set[int]:
    """The numbers of the guest's I/O threads: those listed, and the lowest others up to their count."""
    listed = {thread.get("id", "") for thread in root.iterfind("iothreadids/iothread")}
    numbers = {int(number) for number in listed if re.fullmatch(SMALL, number)}
    wanted = text_at(root, "iothreads")
    others = (number for number in count(1) if number not in numbers)
    missing = int(wanted) - len(numbers) if re.fullmatch(SMALL, wanted) else 0
    return numbers | set(islice(others, max(missing, 0)))


def vcpus_of(root: Element) -> int:
    """How many virtual CPUs the guest has; libvirt's default is one."""
    vcpu = root.find("vcpu")
    text = "1" if vcpu is None else vcpu.get("current") or (vcpu.text or "").strip()
    if not re.fullmatch(SMALL, text):
        raise UsageError(f"'{text}' is no number of virtual CPUs")
    return int(text)
