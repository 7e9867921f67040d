"""libvirt's own word on what is made here: its schema, and the command line that it would start QEMU with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ringway.errors import NotFoundError, PermissionDeniedError, RingwayError, UsageError
from ringway.guest.base import Wish
from ringway.guest.document import (
    DiskFace,
    DiskSource,
    Document,
    PciAddress,
    ScsiController,
    native,
    validate,
)
from ringway.model import DiskBus, DiskType, Face, PortMode, PortSpec

from .domains import domain

_TOOLS = ("virsh", "virt-xml-validate", "xmllint", "qemu-system-x86_64")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, _TOOLS)),
    reason="apt-get install libvirt-clients libvirt-daemon-driver-qemu libxml2-utils qemu-system-x86",
)
Devices = Callable[[str], list[dict[str, Any]]]

_SCSI = Wish(endpoint="db0", face=Face.VHOST_USER_SCSI, socket="/run/db0.sock", queues=2)
_BLK = Wish(endpoint="b.k", face=Face.VHOST_USER_BLK, socket="/run/blk.sock", queues=4)
_KERNEL = Wish(endpoint="lio_0", face=Face.VHOST_SCSI, wwpn="naa.5001405aa3a2c1f0", protection=True)
_PORT = PortSpec(name="p0", mac="52:54:00:00:00:01", socket="/run/p0", mode=PortMode.CLIENT)
_FILE = DiskFace(volume="v", source=DiskSource.FILE, path="/srv/v.img")
_LUN = DiskFace(volume="l", source=DiskSource.BLOCK, path="/dev/sdb", device=DiskType.LUN)
_CD = DiskFace(volume="c", source=DiskSource.FILE, path=None, device=DiskType.CDROM)
_THREADS = "<iothreads>2</iothreads>"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for libvirt's driver, which asks QEMU once and remembers."""
    return tmp_path_factory.mktemp("libvirt")


@pytest.fixture
def devices(state: Path) -> Devices:
    """Return what tells QEMU's devices for a document."""

    def told(xml: str) -> list[dict[str, Any]]:
        words = native(xml, state).arguments
        return [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-device"]

    return told


def _of(devices: list[dict[str, Any]], *drivers: str) -> list[dict[str, Any]]:
    return [device for device in devices if device["driver"] in drivers]


def _without(device: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in device.items() if key not in keys}


# What is made


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_vhost_user_devices_are_what_was_asked_for(devices: Devices, machine: str) -> None:
    document = Document(domain(machine=machine, os="<boot dev='hd'/>"))
    document.add_endpoint(replace(_SCSI, boot_order=1))
    document.add_endpoint(replace(_SCSI, endpoint="db1", socket="/run/db1", protection=True, queues=None))
    document.add_endpoint(replace(_BLK, boot_order=1))
    validate(document.xml)
    made = _of(devices(document.xml), "vhost-user-scsi-pci", "vhost-user-blk-pci")
    assert [_without(device, "bus", "addr") for device in made] == [
        {
            "driver": "vhost-user-scsi-pci",
            "id": "ua-ringway-db0",
            "chardev": "chr-vu-ua-ringway-db0",
            "num_queues": 2,
            "bootindex": 2,
        },
        {
            "driver": "vhost-user-scsi-pci",
            "id": "ua-ringway-db1",
            "chardev": "chr-vu-ua-ringway-db1",
            "t10_pi": True,
        },
        {
            "driver": "vhost-user-blk-pci",
            "id": "ua-ringway-b_dk",
            "chardev": "chr-vu-ua-ringway-b_dk",
            "num-queues": 4,
            "bootindex": 1,
        },
    ]


def test_qemu_connects_again(state: Path) -> None:
    document = Document(domain())
    document.add_endpoint(replace(_SCSI, reconnect_s=3))
    document.add_endpoint(replace(_BLK, reconnect_s=None))
    sockets = [word for word in native(document.xml, state).arguments if word.startswith("socket,id=chr-vu")]
    assert [re.findall(r"path=([^,]*)|reconnect(?:-ms)?=(\d+)", socket) for socket in sockets] == [
        [("/run/db0.sock", ""), ("", "3000")],
        [("/run/blk.sock", "")],
    ]


def test_an_address_is_kept(devices: Devices) -> None:
    document = Document(domain())
    document.add_endpoint(_SCSI, PciAddress(0, 7, 0, 0))
    (device,) = _of(devices(document.xml), "vhost-user-scsi-pci")
    assert (device["bus"], device["addr"]) == ("pci.7", "0x0")


def test_a_kernels_endpoint_is_valid_and_wants_the_kernels_device(state: Path) -> None:
    document = Document(domain(memory=""))
    document.add_endpoint(_KERNEL)
    document.add_endpoint(replace(_KERNEL, endpoint="l1", wwpn="naa.5001405aa3a2c1f1", protection=False))
    validate(document.xml)
    if Path("/dev/vhost-scsi").exists():
        assert "vhost-scsi-pci" in " ".join(native(document.xml, state).arguments)
    else:
        with pytest.raises(UsageError, match="'/dev/vhost-scsi' cannot be found"):
            native(document.xml, state)


@pytest.mark.parametrize("mode", list(PortMode))
def test_a_port_is_valid(state: Path, mode: PortMode) -> None:
    document = Document(domain())
    reconnect = 5 if mode is PortMode.CLIENT else None
    document.add_port(
        replace(_PORT, mode=mode, queues=2, rx_queue_size=1024, tx_queue_size=256, reconnect_s=reconnect)
    )
    document.add_port(replace(_PORT, name="p1", mac="52:54:00:00:00:02", socket="/run/p1"))
    validate(document.xml)
    words = native(document.xml, state).arguments
    assert sum('"driver":"virtio-net-pci"' in word for word in words) == 2


@pytest.mark.parametrize(("machine", "count"), [("q35", 258), ("pc", 17)])
def test_disks_are_on_virtio_scsi_and_no_lsi_appears(devices: Devices, machine: str, count: int) -> None:
    document = Document(domain(machine=machine, extra=_THREADS))
    for number in range(count):
        document.add_disk(replace(_FILE, volume=str(number)), ScsiController(queues=2, iothreads=(1, 2)))
    document.add_disk(_LUN)
    document.add_disk(_CD)
    validate(document.xml)
    made = devices(document.xml)
    controllers = _of(made, "virtio-scsi-pci")
    assert [each["id"] for each in controllers] == (["scsi0", "scsi1"] if count > 256 else ["scsi0"])
    threads = [{"iothread": "iothread1"}, {"iothread": "iothread2"}]
    assert all(each["num_queues"] == 2 and each["iothread-vq-mapping"] == threads for each in controllers)
    assert _of(made, "lsi", "lsi53c895a") == []
    places = [(each["bus"], each["scsi-id"], each["lun"]) for each in _of(made, "scsi-hd")]
    assert sorted(places) == [(f"scsi{at // 256}.0", 0, at % 256) for at in range(count)]
    assert [each["lun"] for each in _of(made, "scsi-block", "scsi-cd")] == [count % 256, count % 256 + 1]


_BUSES = [
    (replace(_FILE, bus=DiskBus.VIRTIO, cache="none", io="native"), "virtio-blk-pci"),
    (
        replace(_FILE, bus=DiskBus.VIRTIO, serial="A-1_2.3+4", discard="unmap"),
        "virtio-blk-pci",
    ),
    (replace(_FILE, bus=DiskBus.SATA, format="qcow2", io="threads"), "ide-hd"),
    (replace(_FILE, bus=DiskBus.USB, boot_order=1), "usb-storage"),
    (replace(_FILE, source=DiskSource.BLOCK, path="/dev/sdb", io="io_uring"), "scsi-hd"),
    (replace(_CD, bus=DiskBus.SATA), "ide-cd"),
    (replace(_CD, bus=DiskBus.USB, path="/srv/cd.iso"), "usb-storage"),
    (replace(_CD, device=DiskType.FLOPPY, bus=DiskBus.FDC), "floppy"),
    (replace(_LUN, readonly=True, cache="none", discard="unmap"), "scsi-block"),
]


@pytest.mark.parametrize(("face", "driver"), _BUSES)
def test_a_disk_of_each_kind_is_taken(devices: Devices, face: DiskFace, driver: str) -> None:
    document = Document(domain(extra=_THREADS))
    document.add_disk(face)
    validate(document.xml)
    assert [each["id"] for each in _of(devices(document.xml), driver)] == [f"ua-ringway-volume-{face.volume}"]


@pytest.mark.parametrize(
    "lanes",
    [
        ScsiController(queues=4, iothreads=(1, 2)),
        ScsiController(iothreads=(1, 2)),
        ScsiController(queues=3, iothreads=(2,)),
    ],
)
def test_a_disk_of_bus_virtio_has_queues_and_threads(devices: Devices, lanes: ScsiController) -> None:
    document = Document(domain(extra=_THREADS))
    document.add_disk(replace(_FILE, bus=DiskBus.VIRTIO), lanes)
    validate(document.xml)
    (made,) = _of(devices(document.xml), "virtio-blk-pci")
    assert made.get("num-queues") == lanes.queues
    threads = [f"iothread{each}" for each in lanes.iothreads]
    if len(threads) > 1:
        assert made["iothread-vq-mapping"] == [{"iothread": each} for each in threads]
    else:
        assert [made["iothread"]] == threads


def test_ports_for_hot_plug_are_taken(devices: Devices) -> None:
    document = Document(domain())
    before = len(_of(devices(document.xml), "pcie-root-port"))
    document.add_hot_plug_ports(9)
    validate(document.xml)
    assert len(_of(devices(document.xml), "pcie-root-port")) == max(before, 9)


# What libvirt does by itself, as it is reckoned here


_ACCESS = ["", "<access mode='shared'/>", "<access mode='private'/>"]


@pytest.mark.parametrize("access", _ACCESS)
@pytest.mark.parametrize("source", ["", "memfd", "file", "anonymous"])
def test_memory_is_shared_when_libvirt_says_so(state: Path, access: str, source: str) -> None:
    where = f"<source type='{source}'/>" if source else ""
    _share(Document(domain(memory=f"<memoryBacking>{where}{access}</memoryBacking>")), state)


@pytest.mark.parametrize("access", _ACCESS)
@pytest.mark.parametrize("cell", ["", "shared", "private"])
def test_a_cells_memory_is_shared_when_libvirt_says_so(state: Path, access: str, cell: str) -> None:
    of_cell = f"memAccess='{cell}'" if cell else ""
    numa = f"<cpu><numa><cell id='0' cpus='0-1' memory='65536' {of_cell}/></numa></cpu>"
    _share(Document(domain(memory=f"<memoryBacking>{access}</memoryBacking>", extra=numa)), state)


def _share(document: Document, state: Path) -> None:
    """Hold what is thought of a guest's memory against libvirt, before and after it was made shared."""
    document.add_endpoint(_BLK)
    assert _takes(document.xml, state) is document.shares_memory
    if document.share_memory():
        validate(document.xml)
        assert _takes(document.xml, state)


def _takes(xml: str, state: Path) -> bool:
    try:
        native(xml, state)
    except UsageError as error:
        if "requires shared memory" not in error.message:
            raise
        return False
    return True


@pytest.mark.parametrize("model", [None, "auto", "lsilogic", "virtio-scsi", "virtio-transitional"])
@pytest.mark.parametrize("names", ["", "a", "g", "h", "ao"])
def test_controllers_are_foreseen(devices: Devices, model: str | None, names: str) -> None:
    of_model = f" model='{model}'" if model else ""
    disk = (
        f"<disk type='file'><source file='/x'/><target dev='sd{names}' bus='scsi'/></disk>" if names else ""
    )
    document = Document(domain(f"<controller type='scsi' index='1'{of_model}/>{disk}"))
    foreseen = {f"scsi{found.index}": found.virtio for found in document.controllers()}
    made = _of(devices(document.xml), "lsi", "virtio-scsi-pci", "virtio-scsi-pci-transitional")
    assert {each["id"]: each["driver"] != "lsi" for each in made} == foreseen
    document.add_disk(_FILE)
    (ours,) = [each for each in _of(devices(document.xml), "scsi-hd") if each["id"] == "ua-ringway-volume-v"]
    assert foreseen.get(ours["bus"].removesuffix(".0"), True)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.permutations(["hd", "cdrom", "fd", "network"]), st.integers(0, 4), st.permutations(range(7)))
def test_kinds_become_the_numbers_that_they_stood_for(
    devices: Devices, kinds: list[str], count: int, order: list[int]
) -> None:
    boots = "".join(f"<boot dev='{kind}'/>" for kind in kinds[:count])
    disks = [
        *(_disk(name, bus) for name, bus in (("vdb", "virtio"), ("vda", "virtio"), ("sdb", "sata"))),
        *(_disk(name, "sata", "cdrom") for name in ("sdd", "sdc")),
        _disk("fda", "fdc", "floppy"),
        "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>",
    ]
    document = Document(domain("".join(disks[at] for at in order), os=boots))
    before = _boot_indexes(devices(document.xml)) if count else {}
    document.add_disk(replace(_FILE, bus=DiskBus.USB, boot_order=9))
    assert _boot_indexes(devices(document.xml)) == before | {"ua-ringway-volume-v": 9}


def _disk(name: str, bus: str, device: str = "disk") -> str:
    target = f"<target dev='{name}' bus='{bus}'/>"
    return f"<disk type='file' device='{device}'><source file='/{name}'/>{target}</disk>"


def _boot_indexes(devices: list[dict[str, Any]]) -> dict[str, int]:
    """Of all but network devices, which a command line is shown without their places."""
    return {each["id"]: each["bootindex"] for each in devices if "bootindex" in each and each["id"] != "net0"}


# What is refused


@pytest.mark.parametrize(
    ("xml", "call", "error", "reason"),
    [
        (domain("<nothing/>"), validate, UsageError, "schema does not take it: .*devices"),
        (domain(os="<boot dev='disk'/>"), validate, UsageError, "schema does not take it"),
        (domain(machine="nix"), native, UsageError, "libvirt refuses it: "),
        (domain("<emulator>/none</emulator>"), validate, UsageError, "schema does not take it"),
        ("<!DOCTYPE a [<!ENTITY b SYSTEM '/etc/passwd'>]><domain/>", validate, UsageError, "document type"),
        ("<!DOCTYPE a [<!ENTITY b SYSTEM '/etc/passwd'>]><domain/>", native, UsageError, "document type"),
        ("", validate, UsageError, "no XML"),
        ("-", native, UsageError, "no XML"),
    ],
)
def test_what_libvirt_refuses_is_told_with_its_reason(
    xml: str, call: Callable[[str], object], error: type[RingwayError], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        call(xml)
    assert "\n" not in caught.value.message
    assert not re.search("(^|[;:] )error:", caught.value.message)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no program found."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("call", [validate, native])
def test_a_program_that_is_not_there_is_named(call: Callable[[str], object]) -> None:
    with pytest.raises(NotFoundError, match="there is no program 'vir") as caught:
        call(domain())
    assert "apt-get install" in (caught.value.hint or "")


def test_a_driver_that_does_not_start_is_told(tmp_path: Path) -> None:
    for folder in ("lib", "run", "etc", "cache"):
        (tmp_path / folder).touch()
    with pytest.raises(PermissionDeniedError, match="QEMU driver does not start"):
        native(domain(), tmp_path)
