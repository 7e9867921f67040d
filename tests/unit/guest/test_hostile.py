"""A document may say anything: it is described, edited or refused, and nothing else happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import RingwayError
from ringway.guest.base import Wish
from ringway.guest.document import DiskFace, DiskSource, Document
from ringway.model import DiskBus, Face, PortMode, PortSpec

from .domains import domain

_VALUES = st.sampled_from(
    [
        "",
        "0",
        "1",
        "-1",
        "0x",
        "0x1f",
        "9" * 30,
        "sda",
        "vdzzzzz",
        "scsi",
        "pci",
        "drive",
        "vhostuser",
        "x'\"]",
        "½",
    ]
) | st.text(st.characters(categories=["L", "N", "P"], exclude_characters="<&'\""), max_size=5)
_ATTRIBUTES = {
    "disk": ["type", "device"],
    "controller": ["type", "index", "model"],
    "hostdev": ["type", "mode"],
    "interface": ["type"],
    "memory": ["access"],
    "address": ["type", "domain", "bus", "slot", "function", "controller", "target", "unit"],
    "target": ["dev", "bus", "hotplug"],
    "source": ["path", "file", "wwpn", "socket", "mode", "pool", "protocol"],
    "alias": ["name"],
    "boot": ["order"],
    "driver": ["queues"],
    "mac": ["address"],
}
_DEVICES, _PARTS = list(_ATTRIBUTES)[:5], list(_ATTRIBUTES)[5:]


def _escaped(value: str) -> str:
    return value.replace("'", "&apos;")


@st.composite
def _element(draw: st.DrawFn, tags: list[str], inner: st.SearchStrategy[str]) -> str:
    tag = draw(st.sampled_from(tags))
    names = draw(st.lists(st.sampled_from(_ATTRIBUTES[tag]), unique=True))
    attributes = "".join(f" {name}='{_escaped(draw(_VALUES))}'" for name in names)
    return f"<{tag}{attributes}>{draw(inner)}</{tag}>"


_PARTS_OF_ONE = st.lists(_element(_PARTS, st.just("")), max_size=4).map("".join)
_ANY_DEVICES = st.lists(_element(_DEVICES, _PARTS_OF_ONE), max_size=5).map("".join)
_LOOKS: list[Callable[[Document], object]] = [
    Document.disks,
    Document.volumes,
    Document.ports,
    Document.attachments,
    Document.controllers,
    lambda document: (document.memory_obstacles, document.memory_bytes, document.vcpus, document.chipset),
]
_FILE = DiskFace(volume="v", source=DiskSource.FILE, path="/v", boot_order=1)
_EDITS: list[Callable[[Document], object]] = [
    lambda document: document.add_disk(_FILE),
    lambda document: document.add_disk(
        DiskFace(volume="w", source=DiskSource.FILE, path="/w", bus=DiskBus.SATA)
    ),
    lambda document: document.add_endpoint(
        Wish(endpoint="a", face=Face.VHOST_USER_SCSI, socket="/a", boot_order=2)
    ),
    lambda document: document.add_port(
        PortSpec(name="p", mac="52:54:00:00:00:01", socket="/p", mode=PortMode.SERVER)
    ),
    lambda document: document.add_hot_plug_ports(1),
    lambda document: document.share_memory(),
]


@given(_ANY_DEVICES, st.sampled_from(["q35", "pc"]))
def test_any_devices_are_described_or_refused(devices: str, machine: str) -> None:
    document = Document(domain(devices, machine=machine))
    before = document.xml
    for look in _LOOKS:
        with contextlib.suppress(RingwayError):
            look(document)
    assert document.xml == before


@given(_ANY_DEVICES, st.permutations(_EDITS), st.sampled_from(["", "<boot dev='hd'/><boot dev='x'/><boot/>"]))
def test_any_devices_are_edited_or_left_alone(
    devices: str, edits: list[Callable[[Document], object]], os: str
) -> None:
    document = Document(domain(devices, os=os, memory=""))
    for edit in edits:
        before = document.xml
        try:
            edit(document)
        except RingwayError:
            assert document.xml == before
        else:
            assert Document(document.xml).xml == document.xml
