"""PCI: addresses of devices, and ports for those that are plugged into a guest that runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Self

from msgspec import Struct

from ringway.guest.document.facts import Chipset, chipset_of
from ringway.guest.document.tree import Element, make

_FIELD: Final = re.compile("0[xX][0-9a-fA-F]{1,6}|[0-9]{1,6}")
_NUMBERS: Final = ("domain", "bus", "slot", "function")


class PciAddress(Struct, frozen=True, order=True):
    """Where libvirt puts a device; ``bus`` is a controller's index, not the number that firmware gives."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def of(cls, device: Element) -> Self | None:
        """Read the ``<address type='pci'>`` of a device; ``None`` if it has none that is whole."""
        address = device.find("address[@type='pci']")
        fields = [] if address is None else [address.get(name, "0") for name in _NUMBERS]
        if not fields or not all(map(_FIELD.fullmatch, fields)):
            return None
        return cls(*(int(field, 16 if field[:2] in ("0x", "0X") else 10) for field in fields))

    def element(self) -> Element:
        """Make the ``<address>``."""
        return make(
            "address",
            {
                "type": "pci",
                "domain": f"0x{self.domain:04x}",
                "bus": f"0x{self.bus:02x}",
                "slot": f"0x{self.slot:02x}",
                "function": f"0x{self.function:x}",
            },
        )

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


def addresses(root: Element) -> set[PciAddress]:
    """The PCI addresses of all devices."""
    return {address for device in root.iterfind("devices/*[address]") if (address := PciAddress.of(device))}


def has_express(root: Element) -> bool:
    """Whether devices are plugged into ports (q35, virt), and not into slots of one bus."""
    express = any(controller.get("model") == "pcie-root" for controller in _controllers(root))
    return express or chipset_of(root) is Chipset.Q35  # libvirt has yet to add the root


def port_element(root: Element) -> Element:
    """Make a port for one device more; libvirt chooses where it is itself.

    It has an index above all others: without one it would take that of a root which libvirt has yet to add.
    """
    indexes = (index for index, _ in _indexed(root))
    buses = (address.bus for address in addresses(root))
    index = max((0, *indexes, *buses)) + 1
    return make("controller", {"type": "pci", "index": index, "model": "pcie-root-port"})


def _controllers(root: Element) -> Iterator[Element]:
    yield from root.iterfind("devices/controller[@type='pci']")


def _indexed(root: Element) -> Iterator[tuple[int, Element]]:
    for controller in _controllers(root):
        if _FIELD.fullmatch(index := controller.get("index", "")):
            yield int(index, 0), controller
