"""vhost-user-scsi in a guest that runs: libvirt has no element for it, so QEMU is asked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

from ringway import faults
from ringway.errors import GuestError, RingwayError, UnreachableError
from ringway.guest.aliases import endpoint_alias, look_at, owner
from ringway.guest.base import Wish
from ringway.guest.document import PciAddress
from ringway.guest.libvirt.monitor import Monitor, Refused

CONNECT_S: Final = 5.0
_DRIVER: Final = "vhost-user-scsi-pci"
_SOCKET: Final = "chr-vu-"  #: in front of an alias, as libvirt does it


def socket_name(alias: str) -> str:
    """The character device of a device, named as libvirt names its own."""
    return f"{_SOCKET}{alias}"


def connected(monitor: Monitor) -> Iterator[str]:
    """The aliases of endpoints' devices for which there is a connection, with a device or without one."""
    aliases = (name.removeprefix(_SOCKET) for name in monitor.sockets() if name.startswith(_SOCKET))
    return (alias for alias in aliases if owner(alias) is not None)


def plug(monitor: Monitor, wish: Wish, address: PciAddress | None) -> None:
    """Give the guest the adapter of an endpoint.

    :param address: ``None``: QEMU chooses.
    :raises RingwayError: it could not; nothing of it is left.
    """
    alias = endpoint_alias(wish.endpoint)
    try:
        _connect(monitor, wish, alias)
        faults.point("guest.connected")
        monitor.add_device(_properties(wish, alias, address))
    except Refused as error:
        with contextlib.suppress(RingwayError):
            clear(monitor, alias)
        raise GuestError(f"QEMU does not give guest '{monitor.guest}' the adapter: {error.text}") from error
    except BaseException:
        with contextlib.suppress(RingwayError):
            clear(monitor, alias)
        raise


def ask(monitor: Monitor, alias: str) -> None:
    """Ask the guest to let a device go; one that was asked, or has none, is fine."""
    try:
        monitor.remove_device(alias)
    except Refused as error:
        if error.kind != "DeviceNotFound" and "unplug" not in error.text:
            raise GuestError(f"QEMU of guest '{monitor.guest}': {error.text}") from error


def clear(monitor: Monitor, alias: str) -> None:
    """Remove the connection that a device had; none is fine."""
    if socket_name(alias) not in monitor.sockets():
        return
    try:
        monitor.execute("chardev-remove", id=socket_name(alias))
    except Refused as error:
        raise GuestError(f"QEMU of guest '{monitor.guest}': {error.text}") from error


def _connect(monitor: Monitor, wish: Wish, alias: str) -> None:
    """Have QEMU connect: a device on a socket that is not connected hangs QEMU, and its guest with it."""
    reconnect = {} if wish.reconnect_s is None else {"reconnect-ms": wish.reconnect_s * 1000}
    address = {"type": "unix", "data": {"path": wish.socket}}
    backend = {"type": "socket", "data": {"addr": address, "server": False, **reconnect}}
    monitor.execute("chardev-add", id=socket_name(alias), backend=backend)
    deadline = time.monotonic() + CONNECT_S
    while not monitor.sockets().get(socket_name(alias), False):
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"QEMU of guest '{monitor.guest}' does not get a connection at {wish.socket}",
                hint=f"another guest may have it; see: {look_at(endpoint_alias(wish.endpoint))}",
            )
        time.sleep(0.05)


def _properties(wish: Wish, alias: str, address: PciAddress | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"driver": _DRIVER, "id": alias, "chardev": socket_name(alias)}
    if wish.queues is not None:
        properties["num_queues"] = wish.queues
    if wish.protection:
        properties["t10_pi"] = True
    if address is not None:
        properties |= {"bus": f"pci.{address.bus}", "addr": f"{address.slot:#x}.{address.function:#x}"}
    return properties
