"""PCI: addresses of devices, and which are free."""

from __future__ import annotations

import re
from typing import Final, Self

from msgspec import Struct

from ringway.errors import UsageError
from ringway.guest.document.tree import Element, make

_ADDRESS: Final = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE | re.ASCII)
_NUMBERS: Final = ("domain", "bus", "slot", "function")


class PciAddress(Struct, frozen=True, order=True):
    """Where libvirt puts a device; ``bus`` is a controller's index, not the number that firmware gives."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``0000:05:00.0``. :raises UsageError: it is no address."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise UsageError(f"'{text}' is no PCI address", hint="write it as 0000:05:00.0")
        return cls(*(int(number, 16) for number in match.groups()))

    @classmethod
    def of(cls, element: Element) -> Self | None:
        """Read the ``<address type='pci'>`` of a device; ``None`` if it has none, or none that is whole."""
        address = element.find("address[@type='pci']")
        if address is None:
            return None
        try:
            return cls(*(int(address.get(name, "0"), 0) for name in _NUMBERS))
        except ValueError:
            return None

    def element(self) -> Element:
        """Make the ``<address>``."""
        widths = (4, 2, 2, 1)
        numbers = zip(_NUMBERS, widths, (self.domain, self.bus, self.slot, self.function), strict=True)
        return make(
            "address", {"type": "pci"} | {name: f"0x{number:0{width}x}" for name, width, number in numbers}
        )

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"
