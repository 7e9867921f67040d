"""From mappings to what a document is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ringway.errors import ConflictError, UsageError
from ringway.guest.catalogue import Catalogue
from ringway.guest.document import Document, ScsiController
from ringway.guest.fresh import bare, fresh, put
from ringway.guest.layout import (
    Disk,
    Service,
    add_disks,
    add_endpoints,
    bootable,
    check_apart,
    derived_wwpn,
    disk_face,
    endpoints,
    lay_out,
)
from ringway.guest.mappings import parse
from ringway.guest.volumes import Volume
from ringway.model import BlockDevice, DeviceKind, EngineKind, Face, GuestDisk, GuestSpec
from ringway.target.blk_device import serial_bytes

FILE = Volume(path="/srv/a.img", size_bytes=1 << 30)
SCSI = Volume(path="/dev/sdq", block=True, scsi=None, size_bytes=1 << 30)


def find(device: BlockDevice, name: str) -> Volume:
    """Every volume is there."""
    return Volume(path=f"/srv/{device.id or name}.img", size_bytes=device.size_bytes)


def laid_out(*texts: str, taken: Sequence[str] = ()) -> tuple[Disk, ...]:
    there = [GuestDisk(target=name, bus="scsi", device="disk", source=None) for name in taken]
    return lay_out([parse(text) for text in texts], find, "web0", there)


def disk(text: str, volume: Volume) -> Disk:
    device = parse(text)
    return Disk(mapping=device, volume=volume, target=device.device or "sda")


def new_guest(**fields: Any) -> Document:
    return bare(GuestSpec(name="web0", **fields))


def test_the_disk_to_boot_from_comes_first() -> None:
    found = laid_out("id=a,source=volume", "id=b,source=volume,bootindex=1", "id=c,source=volume,bootindex=0")
    assert [(each.name, each.target, each.boot_order) for each in found] == [
        ("c", "sda", 1),
        ("b", "sdb", 2),
        ("a", "sdc", None),
    ]


def test_names_that_are_asked_for_are_kept_and_order_the_rest() -> None:
    found = laid_out("id=a,source=volume,device=sdb", "id=b,source=volume", "id=c,source=volume")
    assert [(each.name, each.target) for each in found] == [("b", "sda"), ("a", "sdb"), ("c", "sdc")]


def test_names_are_of_the_bus_and_of_no_other_disk() -> None:
    texts = ("id=a,source=volume,bus=virtio", "id=b,source=volume", "id=c,source=volume,bus=sata")
    found = laid_out(*texts, taken=["sda", "vda", "vdb"])
    assert {each.name: each.target for each in found} == {"a": "vdc", "b": "sdb", "c": "sdc"}
    with pytest.raises(ConflictError, match="has a disk 'sda' already"):
        laid_out("id=a,source=volume,device=sda", taken=["sda"])


def test_one_file_is_not_two_disks_of_a_guest(tmp_path: Path) -> None:
    """Under another name it is the same, be it a link or what the guest has already."""
    image, link = tmp_path / "a.img", tmp_path / "b.img"
    image.write_bytes(bytes(512))
    os.link(image, link)

    def both(text: str, readonly: bool = False, *there: GuestDisk) -> int:
        def found(device: BlockDevice, _: str) -> Volume:
            return Volume(path=str(link if device.id == "b" else image), readonly=readonly)

        disks = lay_out([parse(each) for each in text.split()], found, "web0", there)
        check_apart(disks, there)
        return len(disks)

    with pytest.raises(ConflictError, match=rf"'b' is {link}, and so is the guest's 'a'") as refused:
        both("id=a,source=volume id=b,source=volume")
    assert refused.value.hint
    assert both("id=a,source=volume id=b,source=volume", True) == 2
    has = GuestDisk(target="vda", bus="virtio", device="disk", source=str(image))
    with pytest.raises(ConflictError, match=r"and so is the guest's disk 'vda', which it has"):
        both("id=b,source=volume", False, has)
    with pytest.raises(ConflictError, match="'vda'"):
        both("id=b,source=volume", True, has)
    assert both("id=b,source=volume", True, msgspec.structs.replace(has, readonly=True)) == 1


def test_a_domain_that_has_a_file_does_not_get_it_again(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(512))
    wanted = GuestSpec(name="web0", block_devices=(BlockDevice(id=str(image)),))
    document, catalogue = new_guest(), Catalogue(resolvers={})
    put(document, wanted, catalogue, socket)
    with pytest.raises(ConflictError, match="so is the guest's disk 'sda'"):
        put(document, wanted, catalogue, socket)
    both = tuple(BlockDevice(id=name) for name in (str(image), "b"))
    with pytest.raises(ConflictError, match="so is the guest's '/"):
        fresh(GuestSpec(name="w", block_devices=both), Catalogue({"b": str(image)}), socket)


def test_disks_that_would_be_called_alike_say_what_to_change() -> None:
    """A name that was chosen may be another disk's tag."""
    with pytest.raises(ConflictError, match="has volume 'sdb' already") as refused:
        add_disks(new_guest(), laid_out("id=a,source=volume,tag=sdb", "source=blank,size=1"))
    assert "another tag" in (refused.value.hint or "")


def test_new_volumes_are_named_after_the_guest_and_their_place() -> None:
    found = laid_out("source=blank,size=1", "source=blank,size=1,tag=logs")
    assert [each.volume.path for each in found] == ["/srv/web0-sda.img", "/srv/web0-logs.img"]


@given(st.lists(st.sampled_from([None, -1, 0, 1, 2]), max_size=6))
def test_units_follow_names(indexes: list[int | None]) -> None:
    """What the guest counts is what the names say."""
    unique = [index for at, index in enumerate(indexes) if index in (None, -1) or index not in indexes[:at]]
    devices = [BlockDevice(id=f"v{at}", boot_index=index) for at, index in enumerate(unique)]
    document = new_guest()
    add_disks(document, lay_out(devices, find, "web0"))
    places = [(found.target, found.source) for found in document.disks()]
    assert [target for target, _ in places] == sorted(target for target, _ in places)
    first = min((index for index in unique if index is not None and index >= 0), default=None)
    if first is not None:
        assert places[0][1] == f"/srv/v{unique.index(first)}.img"


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        (["id=a,source=volume", "id=b,source=volume"], "a"),
        (["id=a,source=volume,bootindex=-1", "id=b,source=volume"], "b"),
        (["id=a,source=image,type=cdrom", "id=b,source=volume"], "b"),
        (["id=a,source=image,type=cdrom"], "a"),
        (["id=a,source=volume", "id=b,source=volume,bootindex=4"], None),
        (["id=a,source=volume,bootindex=-1"], None),
    ],
)
def test_a_new_guest_boots_from_something(texts: list[str], first: str | None) -> None:
    before = tuple(map(parse, texts))
    chosen = [device.id for device in bootable(before) if device.boot_index == 0]
    assert chosen == ([] if first is None else [first])


# Elements


def test_a_disk_has_its_volume_as_its_serial_number() -> None:
    assert disk_face(disk("id=6e9d-1,source=volume", FILE)).serial == "6e9d-1"
    assert disk_face(disk("id=a/b,source=volume", FILE)).serial is None
    assert disk_face(disk(f"id={'x' * 37},source=volume", FILE)).serial is None
    assert disk_face(disk("id=a,source=volume,type=lun", SCSI)).serial is None


def test_a_block_device_is_opened_past_the_page_cache() -> None:
    face = disk_face(disk("id=a,source=volume", SCSI))
    assert (face.cache, face.io, face.discard) == ("none", "native", "unmap")
    face = disk_face(disk("id=a,source=volume", FILE))
    assert (face.cache, face.io, face.discard) == (None, None, "unmap")
    face = disk_face(disk("id=a,source=volume,type=lun", SCSI))
    assert (face.cache, face.io, face.discard) == ("none", "native", None)


@pytest.mark.parametrize(
    ("text", "volume", "message"),
    [
        ("id=a,source=volume,type=lun", FILE, "cannot be a LUN: it is a file"),
        (
            "id=a,source=volume,type=lun",
            Volume(path="/dev/sda1", block=True, scsi="it is a partition"),
            "cannot be a LUN: it is a partition",
        ),
        (
            "id=a,source=volume,type=lun",
            Volume(path="/dev/sda", block=True, scsi=None, format="qcow2"),
            "it is a qcow2 image",
        ),
        ("id=a,source=volume,bus=sata", Volume(path="/a", readonly=True), "no such disk on bus sata"),
        ("id=a,source=volume,bus=ide", Volume(path="/a", readonly=True), "no such disk on bus ide"),
    ],
)
def test_a_volume_that_cannot_be_such_a_disk(text: str, volume: Volume, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        disk_face(disk(text, volume))
    assert refused.value.hint


def test_one_controller_is_made_and_then_shared() -> None:
    document = new_guest(iothreads=2)
    wanted = ScsiController(queues=4, iothreads=(1, 2))
    elements = add_disks(document, laid_out("id=a,source=volume", "id=b,source=volume"), wanted)
    assert ["<controller" in element for element in elements] == [True, False, False]
    assert "queues='4'" in elements[0]
    assert elements[0].count("<iothread ") == 2
    more = add_disks(document, laid_out("id=c,source=volume", taken=["sda", "sdb"]), wanted)
    assert [element.split()[0] for element in more] == ["<disk"]
    assert [found.model for found in document.controllers()] == ["virtio-scsi"]


def test_three_hundred_disks_take_two_controllers() -> None:
    document = new_guest()
    elements = add_disks(document, laid_out(*(f"id=v{number},source=volume" for number in range(300))))
    assert sum("<controller" in element for element in elements) == 2
    assert [found.disks for found in document.controllers()] == [256, 44]
    assert {found.model for found in document.controllers()} == {"virtio-scsi"}
    assert document.disks()[299].target == "sdkn"


# Endpoints


def socket(name: str) -> str:
    return f"/run/{name}.sock"


SERVICE = Service(name="web0", socket=socket)
KERNEL = Service(name="web0", socket=socket, engine=EngineKind.LIO, queues=None, guest="web0")


def test_disks_of_one_endpoint_are_its_luns() -> None:
    found = endpoints(
        laid_out("id=a,source=volume", "id=b,source=volume,bootindex=0", "id=c,source=volume,bus=virtio"),
        Service(name="web0", socket=socket, queues=2),
    )
    scsi, blk = found.specs
    assert (scsi.name, scsi.device, scsi.queues) == ("web0", DeviceKind.SCSI, 2)
    assert [(lun.lun, lun.backstore.path, lun.backstore.serial) for lun in scsi.luns] == [
        (0, "/srv/b.img", "b"),
        (1, "/srv/a.img", "a"),
    ]
    assert (blk.name, blk.device, len(blk.luns)) == ("web0-vda", DeviceKind.BLK, 1)
    assert [(face.face, face.socket, face.queues, face.boot_order) for face in found.wishes] == [
        (Face.VHOST_USER_SCSI, "/run/web0.sock", 2, 1),
        (Face.VHOST_USER_BLK, "/run/web0-vda.sock", 2, None),
    ]


def test_an_endpoint_shows_of_a_volumes_id_what_qemu_would() -> None:
    """A volume of a cloud's has 36 characters, and a blk endpoint refused all beyond 20."""
    uuid = "6e9d0c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6"
    spaced = f"{'x' * 19} y"
    for text, seen in ((uuid, uuid[:20]), (spaced, "x" * 19), ("db0", "db0")):
        (blk,) = endpoints(laid_out(f"id={text},source=volume,bus=virtio"), SERVICE).specs
        assert blk.luns[0].backstore.serial == seen
        assert serial_bytes(seen) == seen.encode()
        (scsi,) = endpoints(laid_out(f"id={text},source=volume"), SERVICE).specs
        assert scsi.luns[0].backstore.serial == text


def test_lun_0_is_what_is_booted_from() -> None:
    texts = ("id=a,source=volume,device=sda", "id=b,source=volume,device=sdb,bootindex=3")
    (spec,) = endpoints(laid_out(*texts), SERVICE).specs
    assert [lun.backstore.path for lun in spec.luns] == ["/srv/b.img", "/srv/a.img"]
    both = laid_out("id=a,source=volume,bootindex=0", "id=b,source=volume,bootindex=1")
    with pytest.raises(UsageError, match="'a' and 'b' both have a boot index"):
        endpoints(both, SERVICE)


def test_a_document_with_endpoints_shares_its_memory() -> None:
    document = new_guest()
    add_endpoints(document, endpoints(laid_out("id=a,source=volume"), SERVICE).wishes)
    assert document.shares_memory
    assert [found.endpoint for found in document.attachments()] == ["web0"]


def test_the_kernels_endpoint_is_found_by_the_name_of_its_port() -> None:
    """It maps memory that is private, too."""
    found = endpoints(laid_out("id=a,source=volume,bootindex=0", "id=b,source=volume"), KERNEL)
    (spec,), (wish,) = found.specs, found.wishes
    assert (spec.engine, spec.device, spec.queues, len(spec.luns)) == (EngineKind.LIO, DeviceKind.SCSI, 1, 2)
    assert (wish.face, wish.wwpn, wish.socket, wish.queues) == (Face.VHOST_SCSI, spec.wwpn, None, None)
    document = new_guest()
    add_endpoints(document, found.wishes)
    assert not document.shares_memory
    assert [(each.endpoint, each.wwpn, each.boot_order) for each in document.attachments()] == [
        ("web0", spec.wwpn, 1)
    ]


def test_the_name_of_a_port_that_is_there_stays() -> None:
    there = replace(KERNEL, wwpns={"web0": "naa.5001405000000001"})
    for service, wwpn in ((there, "naa.5001405000000001"), (KERNEL, derived_wwpn("web0", "web0"))):
        (spec,) = endpoints(laid_out("id=a,source=volume"), service).specs
        assert spec.wwpn == wwpn
    assert derived_wwpn("web0", "web0") != derived_wwpn("web1", "web0")


def test_the_kernel_serves_no_disk_of_bus_virtio() -> None:
    with pytest.raises(UsageError, match="no disk of bus virtio"):
        endpoints(laid_out("id=a,source=volume,bus=virtio"), KERNEL)


@pytest.mark.parametrize(
    ("text", "volume", "message"),
    [
        ("id=a,source=volume,type=lun", SCSI, "is a lun, and an endpoint serves disks"),
        ("id=a,source=image,type=cdrom", FILE, "is a cdrom"),
        ("id=a,source=volume,bus=sata", FILE, "has no bus sata"),
        ("id=a,source=volume", Volume(path="/a", format="qcow2"), "is a qcow2 image"),
    ],
)
def test_what_no_endpoint_serves(text: str, volume: Volume, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        endpoints([disk(text, volume)], SERVICE)
    assert refused.value.hint


def test_an_endpoint_needs_a_name_that_can_be() -> None:
    with pytest.raises(UsageError, match="cannot be called 'a b'"):
        endpoints(laid_out("id=a,source=volume"), Service(name="a b", socket=socket))
