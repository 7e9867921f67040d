"""Network ports in a domain: ``<interface type='vhostuser'>``.

It has no ``<mtu>``: libvirt would look for a network device of the host's, and there is none. QEMU is told by
an override.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from ringway.guest.aliases import Kind, owner, port_alias
from ringway.guest.document.facts import alias_of, each_device
from ringway.guest.document.overrides import Value
from ringway.guest.document.parts import closing, reconnect
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make
from ringway.model import PortMode, PortSpec, mac_of, socket_of


class Plugged(Struct, frozen=True, kw_only=True):
    """A port that is in a domain's XML."""

    port: str
    alias: str
    mac: str
    socket: str
    mode: PortMode
    address: PciAddress | None = None


def port_element(spec: PortSpec, address: PciAddress | None) -> Element:
    """Make the interface of a port that is whole. :raises UsageError: it is not."""
    sizes = {"rx_queue_size": spec.rx_queue_size, "tx_queue_size": spec.tx_queue_size}
    driver = {"queues": spec.queues if spec.queues > 1 else None} | sizes
    source = {"type": "unix", "path": socket_of(spec), "mode": spec.mode}
    return make(
        "interface",
        {"type": "vhostuser"},
        make("mac", {"address": mac_of(spec)}),
        make("source", source, reconnect(spec.reconnect_s)),
        make("model", {"type": "virtio"}),
        make("driver", driver) if any(driver.values()) else None,
        *closing(port_alias(spec.name), None, address),
    )


def port_override(spec: PortSpec) -> dict[str, Value]:
    """The properties to be overridden for a port; none if libvirt says all by itself."""
    return {} if spec.mtu is None else {"host_mtu": spec.mtu}


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
