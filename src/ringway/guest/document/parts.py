"""Elements that devices of several kinds have."""

from __future__ import annotations

from typing import Protocol

from ringway.guest.document.tree import Element, make
from ringway.guest.faces import ScsiController


class Address(Protocol):
    """Where a device is, on whichever bus."""

    def element(self) -> Element:
        """Make the ``<address>``."""


def reconnect(after_s: int | None) -> Element | None:
    """Have QEMU connect to a socket again, so many seconds after its other side went."""
    return None if after_s is None else make("reconnect", {"enabled": "yes", "timeout": after_s})


def lanes(wanted: ScsiController) -> tuple[dict[str, object], Element | None]:
    """How many queues a device has, and which threads of QEMU's work on them.

    :returns: attributes of its ``<driver>``, and what is in that.
    """
    several = len(wanted.iothreads) > 1
    one = None if several else next(iter(wanted.iothreads), None)
    threads = make("iothreads", None, *(make("iothread", {"id": each}) for each in wanted.iothreads))
    return {"queues": wanted.queues, "iothread": one}, threads if several else None


def closing(
    alias: str, boot_order: int | None = None, address: Address | None = None
) -> tuple[Element | None, ...]:
    """What a device ends with, in libvirt's order."""
    return (
        None if boot_order is None else make("boot", {"order": boot_order}),
        make("alias", {"name": alias}),
        None if address is None else address.element(),
    )
