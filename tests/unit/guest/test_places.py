"""The order that devices boot in, and places on PCI."""

from __future__ import annotations

import pytest
from lxml import etree
from msgspec.structs import replace

from ringway.errors import UsageError
from ringway.guest.base import Wish
from ringway.guest.document import (
    DiskFace,
    DiskSource,
    Document,
    PciAddress,
)
from ringway.model import Face

from .domains import domain

_OURS = DiskFace(volume="v", source=DiskSource.FILE, path="/ours")
_HOT = Wish(endpoint="a", face=Face.VHOST_USER_BLK, socket="/a")


def _disk(name: str, device: str = "disk", boot: str = "", bus: str = "virtio") -> str:
    return f"<disk device='{device}'><target dev='{name}' bus='{bus}'/>{boot}</disk>"


def _orders(document: Document) -> dict[str, str]:
    """Boot order -> name of a disk, or the tag of another device."""
    orders = {}
    for device in etree.fromstring(document.xml).iterfind("devices/*[boot]"):
        boot, target = device.find("boot"), device.find("target")
        name = str(device.tag) if target is None else target.get("dev", "")
        orders["" if boot is None else boot.get("order", "")] = name
    return orders


# Boot order


@pytest.mark.parametrize(
    ("kinds", "order", "expected"),
    [
        ("", 1, {"1": "sda"}),
        ("hd", 1, {"1": "sda", "2": "vda"}),
        ("hd", 2, {"1": "vda", "2": "sda"}),
        ("hd", 9, {"1": "vda", "9": "sda"}),
        ("cdrom hd network", 2, {"1": "sdc", "2": "sda", "3": "vda", "4": "interface"}),
        ("fd hd", 1, {"1": "sda", "2": "vda"}),
        ("hd hd", 1, {"1": "sda", "2": "vda"}),
    ],
)
def test_kinds_become_numbers(kinds: str, order: int, expected: dict[str, str]) -> None:
    devices = _disk("vdb") + _disk("sdc", "cdrom", bus="sata") + _disk("vda") + "<interface/><interface/>"
    os = "".join(f"<boot dev='{kind}'/>" for kind in kinds.split())
    document = Document(domain(devices, os=os))
    document.add_disk(replace(_OURS, boot_order=order))
    assert _orders(document) == expected
    assert "<boot dev" not in document.xml


def test_who_is_in_the_way_moves_back() -> None:
    boots = [
        _disk(f"vd{letter}", boot=f"<boot order='{order}'/>")
        for letter, order in (("a", 1), ("b", 2), ("c", 4))
    ]
    document = Document(domain("".join(boots)))
    document.add_disk(replace(_OURS, boot_order=1))
    assert _orders(document) == {"1": "sda", "2": "vda", "3": "vdb", "4": "vdc"}


def test_who_does_not_boot_leaves_the_order_alone() -> None:
    document = Document(domain(_disk("vda"), os="<boot dev='hd'/>"))
    document.add_disk(_OURS)
    assert "<boot dev='hd'/>" in document.xml
    assert _orders(document) == {}


# PCI


def test_an_address_is_printed_as_lspci_does() -> None:
    assert str(PciAddress(0, 0x1F, 2, 7)) == "0000:1f:02.7"


def _port(index: int, *, alias: str | None = None, model: str = "pcie-root-port") -> str:
    named = f"<alias name='{alias}'/>" if alias else ""
    return f"<controller type='pci' index='{index}' model='{model}'>{named}</controller>"


def _in(bus: int, slot: int = 0) -> str:
    return f"<address type='pci' domain='0x0000' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x0'/>"


_ROOT = "<controller type='pci' index='0' model='pcie-root'/>"
_PORTS = "".join(_port(index, alias=f"pci.{index}") for index in (1, 2, 10, 11))


def test_a_place_that_a_device_has_is_not_free() -> None:
    odd = (
        "<disk><address type='pci' bus='x'/></disk><disk><address type='ccw'/></disk><disk><address/></disk>"
    )
    document = Document(domain(_ROOT + _PORTS + odd + f"<disk><target dev='vda'/>{_in(11)}</disk>"))
    document.add_endpoint(_HOT, PciAddress(0, 10, 0, 0))
    free = [bus for bus in (1, 2, 10, 11) if document.is_free(PciAddress(0, bus, 0, 0))]
    assert free == [1, 2]


def test_more_ports_can_be_had_at_the_next_start() -> None:
    document = Document(domain(_ROOT + _port(1) + f"<disk>{_in(1)}</disk>"))
    assert document.add_hot_plug_ports(2) == (
        "<controller type='pci' index='2' model='pcie-root-port'/>",
        "<controller type='pci' index='3' model='pcie-root-port'/>",
    )
    assert document.xml.count("model='pcie-root-port'") == 3


def test_a_machine_with_slots_has_no_ports() -> None:
    document = Document(domain(_port(0, alias="pci.0", model="pci-root"), machine="pc"))
    with pytest.raises(UsageError, match="'pc' has no PCI Express"):
        document.add_hot_plug_ports(1)
