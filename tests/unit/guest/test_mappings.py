"""Block-device mappings: read, written, refused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import UsageError
from ringway.guest.mapping_files import parse_json, parse_toml, read, read_all
from ringway.guest.mappings import Form, parse, write
from ringway.model import BlockDevice, Destination, DiskBus, DiskType, VolumeSource

from .devices import devices

WIKI = "id=web0,source=volume,dest=volume,bus=virtio-scsi,type=lun"
LUN = BlockDevice(id="web0", bus=DiskBus.SCSI, type=DiskType.LUN)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        (WIKI, LUN),
        ("uuid=web0,source_type=volume,disk_bus=virtio-scsi,device_type=lun", LUN),
        (
            "id=a,source=volume,bootindex=-3,device=/dev/vda,shutdown=preserve",
            BlockDevice(id="a", boot_index=-1, device="vda"),
        ),
        (
            "source=blank,size=5,tag=t",
            BlockDevice(
                source=VolumeSource.BLANK,
                destination=Destination.LOCAL,
                size_bytes=5 << 30,
                delete_on_termination=True,
                tag="t",
            ),
        ),
        (
            "source_type=blank,volume_size=64,guest_format=swap,destination_type=volume,volume_type=fast",
            BlockDevice(
                source=VolumeSource.BLANK, size_bytes=64 << 20, guest_format="swap", volume_type="fast"
            ),
        ),
    ],
)
def test_a_mapping_is_read(text: str, device: BlockDevice) -> None:
    assert parse(text) == device


def test_a_file_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "disks.toml"
    file.write_text(
        '[[block_device]]\nid = "web0"\nbus = "virtio-scsi"\ntype = "lun"\n'
        '[[block_device]]\nsource = "blank"\nsize = "10G"\nboot_index = 1\n'
    )
    blank = BlockDevice(source=VolumeSource.BLANK, size_bytes=10 << 30, boot_index=1)
    assert read_all([str(file)]) == (LUN, blank)


def test_openstackclients_file(tmp_path: Path) -> None:
    file = tmp_path / "disk=1.json"
    file.write_text('{"uuid": "a", "source_type": "volume", "boot_index": 0, "tag": null}')
    assert read(str(file)) == (BlockDevice(id="a", boot_index=0),)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("id=a,source=volume,bus=virtio-sccsi", "virtio-sccsi is not possible", "did you mean virtio-scsi"),
        ("id=a,source=volume,bus=xen", "a bus of Xen's guests", "scsi, virtio"),
        ("id=a,source=volume,bus=SCSI", "bus=SCSI", "did you mean scsi"),
        ("id=a,source=volume,type=fs", "a container's file system", "lun"),
        ("id=a,sorce=volume", "no key 'sorce'", "did you mean source"),
        ("id=a,source=volume,boot_index=0", "novaclient's and 'boot_index'", "bootindex for boot_index"),
        ("uuid=a,source=volume", "'source' is a key of nova", "write id for uuid, or source_type for source"),
        ("uuid=a,source_type=volume,boot=0", "no key 'boot'", "did you mean boot_index"),
        ("id=a,ID=b,source=volume", "no key 'ID'", "did you mean id"),
        ("id=a,id=b,source=volume", "'id' comes twice", "leave one away"),
        ("id=a,,source=volume", "'' in the mapping", "no value can be empty"),
        ("id=a,source=volume,", "'' in the mapping", "no value can be empty"),
        ("id=,source=volume", "'id=' in the mapping", "no value can be empty"),
        ("id=a,lun,source=volume", "'lun' in the mapping", "no value can be empty"),
        ("=a", "'=a' in the mapping", "no value can be empty"),
        ("source=blank", "blank disk without a size", "give it a size"),
        ("size=5,id=a", "a blank disk has no id, and this has 'a'", "source=volume"),
        ("source=volume", "a disk of source volume without an id", "give the id"),
        ("source=image", "a disk of source image without an id", "give the id"),
        ("id=a,source=volume,dest=local", "a volume cannot be a local disk", "leave the destination away"),
        ("id=a,source=volume,volume_type=fast", "is there already", "leave the volume type away"),
        ("id=a,source=volume,bus=virtio,type=lun", "a lun cannot be on bus virtio", "can be on scsi"),
        ("id=a,source=volume,bus=fdc,type=disk", "a disk cannot be on bus fdc", "can be on scsi"),
        ("id=a,source=volume,bus=virtio,type=cdrom", "a cdrom cannot be on bus virtio", "scsi, sata"),
        ("id=a,source=image,type=lun", "a LUN is a SCSI device of the host", "source=volume"),
        ("source=blank,size=1,type=cdrom", "a blank cdrom holds nothing", "type=disk"),
        ("id=a,source=volume,device=vda,bus=scsi", "a disk on bus scsi is not called vda", "call it sda"),
        ("id=a,source=volume,device=vda,type=lun", "a lun cannot be on bus virtio", "scsi"),
        ("id=a,source=volume,device=xvda", "no name of a guest's disk", "sda"),
        ("id=a,source=volume,bootindex=first", "no place in the order of boot", "0 for the disk"),
        ("id=a,source=volume,bootindex=99999", "no place in the order of boot", "-1 for never"),
        ("source=blank,size=10G", "size=10G is no size", "GiB"),
        ("source=blank,size=0", "size=0 is no size", "GiB"),
        ("source=blank,size=-1", "size=-1 is no size", "GiB"),
        ("source=blank,size=9999999999", "is no size", "GiB"),
        ("source=blank,size=١", "is no size", "GiB"),
        ("id=a,source=volume,shutdown=delete", "shutdown=delete is not possible", "remove or preserve"),
        ("uuid=a,source_type=volume,delete_on_termination=remove", "is not possible", "true or false"),
        ("id=a,source=volume,tag=a/b", "'a/b' is no tag", "60"),
        ("id=a\nb,source=volume", "is not possible", "printable"),
        (f"id={'x' * 256},source=volume", "is not possible", "255 printable"),
        ("id=a,source=volume,bus=ide,device=hdz", "has 4 drives, and none is called hdz", "hda or hdb"),
        ("id=a,source=volume,bus=fdc,type=floppy,device=fdc", "bus fdc has 2 drives", "fda or fdb, or leave"),
        ("vda=6e9d:volume:10:1", "the form of --block-device-mapping",
         "write id=6e9d,source=volume,dest=volume,device=vda,size=10"),
        ("/dev/xvdb=6e9d:snap", "the form of --block-device-mapping",
         "write id=6e9d,source=snapshot,dest=volume,device=vdb"),
        ("vdb=web0", "the form of --block-device-mapping", "write id=web0,source=volume,dest=volume"),
        ("vdb=6e9d:::0", "the form of --block-device-mapping", "dest=volume,device=vdb"),
        ("device=vda,no_device=true", "'no_device' leaves out a disk that an image", "leave this mapping"),
        ("nothing.json", "neither a mapping nor a file", "JSON or TOML"),
    ],
)  # fmt: skip
def test_a_wrong_mapping_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(text)
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ('[{"uuid": "a", "source_type": "volume"}]', "the object of one mapping, .* and no list"),
        ('{"uuid": "a", "source_type": "volume"}\n{}', "no JSON: Extra data"),
        ('{"no_device": true, "device_name": "vda"}', "'no_device' leaves out"),
        ('{"uuid": "a", "uuid": "b"}', "comes twice"),
        ('{"id": "a"}', "no key 'id'"),
        ('{"uuid": ["a"]}', "is not possible"),
        ('{"uuid": "a", "source_type": "volume", "boot_index": true}', "no place"),
        ('{"uuid": "a", "source_type": "volume", "boot_index": 1.5}', "no place"),
        ('{"uuid": "a", "source_type": ["volume"]}', "is not possible"),
        ('{"uuid": "a", "source_type": "volume", "delete_on_termination": []}', "is not possible"),
    ],
)
def test_a_wrong_file_of_openstackclients_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=", "no TOML"),
        ("", "holds tables"),
        ("block_device = 1", "holds tables"),
        ("block_device = [1]", "holds tables"),
        ('[[block_device]]\nid = "a"\n[other]', "nothing else"),
        ('[[block_device]]\nuuid = "a"', "no key 'uuid'"),
        ('[[block_device]]\nid = "a"\ndelete_on_termination = "true"', "is not possible"),
        ('[[block_device]]\nsource = "blank"\nsize = "much"', "not a size"),
        ('[[block_device]]\nsource = "blank"\nsize = true', "no size"),
    ],
)
def test_a_wrong_file_of_ours_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_toml(text)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "disk.json"
    file.write_text('{"uid": "a"}')
    with pytest.raises(UsageError, match=r"disk.json: there is no key 'uid'") as refused:
        read(str(file))
    assert "did you mean uuid" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("id=a,source=volume", "the same volume, a"),
        ("id=b,source=volume,bootindex=0", "the same boot index, 0"),
        ("id=b,source=volume,device=/dev/sda", "the same device name, sda"),
        ("id=b,source=volume,tag=t", "the same tag, t"),
        ("id=t,source=volume", "the tag of 'a' is 't', and so is another disk called \\('t'\\)"),
        ("source=blank,size=1,device=sdt,tag=x", None),
    ],
)
def test_mappings_of_one_guest_may_not_contradict_each_other(second: str, message: str | None) -> None:
    first = "id=a,source=volume,bootindex=0,device=sda,tag=t"
    for texts in ([first, second], [second, first]):
        with pytest.raises(UsageError, match=message) if message else contextlib.nullcontext() as refused:
            read_all(texts)
        assert message is None or (refused and refused.value.hint)
    assert len(read_all([first, "id=b,source=volume,bootindex=-1", "id=c,source=volume,bootindex=-1"])) == 3


def _is_in_bytes(device: BlockDevice) -> bool:
    """Clients cannot say its size."""
    return (device.size_bytes or 0) % (1 << (20 if device.guest_format == "swap" else 30)) != 0


@given(device=devices(), form=st.sampled_from([Form.NOVA, Form.OPENSTACK, Form.TOML]))
def test_what_is_written_is_read_back(device: BlockDevice, form: Form) -> None:
    if form is not Form.TOML and _is_in_bytes(device):
        with pytest.raises(UsageError, match="no whole number"):
            write([device], form)
        return
    text = write([device], form)
    assert (parse_toml(text) if form is Form.TOML else (parse(text),)) == (device,)


@given(device=devices())
def test_a_mapping_goes_through_the_api(device: BlockDevice) -> None:
    assert msgspec.json.decode(msgspec.json.encode(device), type=BlockDevice) == device


def test_a_comma_cannot_be_written_in_a_line() -> None:
    device = BlockDevice(id="a,b")
    with pytest.raises(UsageError, match="comma"):
        write([device], Form.NOVA)
    assert parse_json(write([device], Form.JSON)) == device
    assert parse_toml(write([device], Form.TOML)) == (device,)


@pytest.mark.parametrize("size", [512, 4 << 20])
def test_an_image_is_no_file_of_mappings(tmp_path: Path, size: int) -> None:
    """It was read whole, and was no TOML then; a disk would have been, too."""
    image = tmp_path / "web0.img"
    with image.open("wb") as file:
        file.truncate(size)
    with pytest.raises(UsageError, match="is no file of mappings") as refused:
        read(str(image))
    assert f"id={image},source=volume" in (refused.value.hint or "")


def test_no_more_of_a_file_is_read_than_mappings_need(tmp_path: Path) -> None:
    image = tmp_path / "huge.img"
    with image.open("wb") as file:
        file.write(b"[[block_device]]\n")
        file.truncate(1 << 40)  # nobody has the memory for it
    with pytest.raises(UsageError, match="is no file of mappings"):
        read(str(image))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="is no file of mappings"):
            read(str(path))
    with pytest.raises(UsageError, match="neither a mapping nor a file"):
        read(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"id = '\xe9'")
    with pytest.raises(UsageError, match=r"is no file of mappings: .*utf-8"):
        read(str(tmp_path / "latin"))


def test_openstackclients_file_has_one_mapping(tmp_path: Path) -> None:
    """Two objects in a row read neither we nor openstackclient."""
    two = [BlockDevice(id="a"), BlockDevice(id="b")]
    with pytest.raises(UsageError, match="file holds one mapping, and these are 2") as refused:
        write(two, Form.JSON)
    assert "toml" in (refused.value.hint or "")
    for form in (Form.NOVA, Form.OPENSTACK, Form.TOML):
        assert write(two, form)


@given(text=st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for reader in (parse, parse_json, parse_toml):
        with contextlib.suppress(UsageError):
            reader(text)
