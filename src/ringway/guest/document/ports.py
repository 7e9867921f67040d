"""Network ports in a domain: ``<interface type='vhostuser'>``.

It has no ``<mtu>``: libvirt would look for a network device of the host's, and there is none. QEMU is told by
an override.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ringway.errors import UsageError
from ringway.guest.aliases import Kind, owner, port_alias
from ringway.guest.document.faces import PortFace
from ringway.guest.document.facts import alias_of, each_device
from ringway.guest.document.overrides import Value
from ringway.guest.document.parts import check_reconnect, closing, reconnect
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make
from ringway.model import MTU_MAX, MTU_MIN, PortMode

_MAC: Final = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.IGNORECASE)
RING_SIZES: Final = (256, 512, 1024)  #: that QEMU's virtio-net has


class Plugged(Struct, frozen=True, kw_only=True):
    """A port that is in a domain's XML."""

    port: str
    alias: str
    mac: str
    socket: str
    mode: PortMode
    address: PciAddress | None = None


def port_element(face: PortFace, address: PciAddress | None) -> Element:
    """Make the interface. :raises UsageError: libvirt or QEMU would refuse it."""
    _check(face)
    sizes = {"rx_queue_size": face.rx_queue_size, "tx_queue_size": face.tx_queue_size}
    driver = {"queues": face.queues} | sizes
    return make(
        "interface",
        {"type": "vhostuser"},
        make("mac", {"address": face.mac}),
        make("source", {"type": "unix", "path": face.socket, "mode": face.mode}, reconnect(face.reconnect_s)),
        make("model", {"type": "virtio"}),
        make("driver", driver) if any(driver.values()) else None,
        *closing(port_alias(face.port), face.boot_order, address),
    )


def port_override(face: PortFace) -> dict[str, Value]:
    """The properties to be overridden for a port; none if libvirt says all by itself."""
    return {} if face.mtu is None else {"host_mtu": face.mtu}


def plugged_ports(root: Element) -> Iterator[Plugged]:
    """Ports of ours in the domain, by their aliases."""
    for device in root.iterfind("devices/interface[@type='vhostuser']"):
        alias = alias_of(device)
        whose = owner(alias)
        source, mac = device.find("source"), device.find("mac")
        if alias and whose and whose.kind is Kind.PORT and source is not None:
            yield Plugged(
                port=whose.name,
                alias=alias,
                mac="" if mac is None else mac.get("address", ""),
                socket=source.get("path", ""),
                mode=PortMode.SERVER if source.get("mode") == "server" else PortMode.CLIENT,
                address=PciAddress.of(device),
            )


def mac_addresses(root: Element) -> Iterator[str]:
    """The MAC addresses of all interfaces, in small letters."""
    for device in each_device(root, "interface"):
        mac = device.find("mac")
        if mac is not None:
            yield mac.get("address", "").lower()


def _check(face: PortFace) -> None:
    if not _MAC.fullmatch(face.mac):
        raise UsageError(f"'{face.mac}' is no MAC address of a single station")
    if not face.socket.startswith("/"):
        raise UsageError(f"'{face.socket}' is no socket's path: it has to begin with /")
    if face.reconnect_s is not None and face.mode is PortMode.SERVER:
        raise UsageError(
            "QEMU listens at this port's socket, and does not connect again by itself",
            hint="the switch connects again; leave reconnect out, or take mode=client",
        )
    if face.queues is not None and face.queues < 1:
        raise UsageError("a port has at least one pair of queues")
    if face.mtu is not None and not MTU_MIN <= face.mtu <= MTU_MAX:
        raise UsageError(f"no guest is told an MTU of {face.mtu}", hint=f"take {MTU_MIN} to {MTU_MAX}")
    check_reconnect(face.reconnect_s)
    for size in (face.rx_queue_size, face.tx_queue_size):
        if size is not None and size not in RING_SIZES:
            raise UsageError(f"a ring of {size} is none that QEMU has", hint="take 256, 512 or 1024")
