"""Elements that devices of several kinds have."""

from __future__ import annotations

from ringway.guest.document.drives import DriveAddress
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make


def reconnect(after_s: int | None) -> Element | None:
    """Have QEMU connect to a socket again, so many seconds after its other side went."""
    return None if after_s is None else make("reconnect", {"enabled": "yes", "timeout": after_s})


def closing(
    alias: str, boot_order: int | None = None, address: PciAddress | DriveAddress | None = None
) -> tuple[Element | None, ...]:
    """What a device ends with, in libvirt's order."""
    return (
        None if boot_order is None else make("boot", {"order": boot_order}),
        make("alias", {"name": alias}),
        None if address is None else address.element(),
    )
