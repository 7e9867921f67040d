"""What both we and a client of OpenStack's accept means the same to both."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import UsageError
from ringway.guest.mapping_files import read
from ringway.guest.mappings import KEYS, Form, parse, write
from ringway.model import BlockDevice, DiskBus

from .devices import devices
from .openstack import Refused, Request, novaclient, openstackclient

ORACLES = {Form.NOVA: novaclient, Form.OPENSTACK: openstackclient}
WORDS = {
    "id": ["web0", "6e9d", "a=b", ""],
    "source": ["volume", "image", "snapshot", "blank", "tape", ""],
    "destination": ["volume", "local", "cloud"],
    "bus": ["virtio-scsi", "scsi", "virtio", "sata", "ide", "usb", "fdc", "xen"],
    "type": ["disk", "lun", "cdrom", "floppy", "fs"],
    "device": ["vda", "/dev/sdb", "sda", "hdc", "/dev/xvda"],
    "size_bytes": ["1", "10", "0", "10G", "-1", "007"],
    "guest_format": ["ext4", "swap"],
    "boot_index": ["0", "1", "-1", "-7", "first", "007"],
    "delete_on_termination": ["remove", "preserve", "true", "False", "0", "YES", "maybe"],
    "tag": ["root", "a/b"],
    "volume_type": ["fast"],
}
#: What we take and one client trips over.
TRIPPED = {Form.NOVA: lambda text: any(part.count("=") > 1 for part in text.split(","))}


def meaning(request: Request) -> dict[str, Any]:
    """What a server understands of a request, in our words."""
    size, index = request.get("volume_size"), request.get("boot_index")
    unit = 20 if request.get("guest_format") == "swap" else 30
    bus = request.get("disk_bus")
    return {
        "id": request.get("uuid"),
        "source": request["source_type"],
        "destination": request["destination_type"],
        "bus": "scsi" if bus == "virtio-scsi" else bus,
        "type": request.get("device_type"),
        "device": (request.get("device_name") or "").removeprefix("/dev/") or None,
        "size_bytes": None if size is None else int(size) << unit,
        "guest_format": request.get("guest_format"),
        "boot_index": None if index is None else max(int(index), -1),
        "delete_on_termination": request.get("delete_on_termination", False),
        "tag": request.get("tag"),
        "volume_type": request.get("volume_type"),
    }


def fields(device: BlockDevice) -> dict[str, Any]:
    return {name: getattr(device, name) for name in device.__struct_fields__}


@st.composite
def texts(draw: st.DrawFn, form: Form) -> str:
    """Mappings as they may be written, right and wrong, in one client's keys."""
    chosen = draw(st.lists(st.sampled_from(list(KEYS[form].items())), min_size=1, max_size=6))
    pairs = [f"{key}={draw(st.sampled_from(WORDS[field]))}" for key, field in chosen]
    return ",".join(draw(st.permutations(pairs)))


@pytest.mark.parametrize("form", ORACLES)
@given(data=st.data())
def test_what_we_read_the_client_reads_alike(form: Form, data: st.DataObject) -> None:
    text = data.draw(texts(form))
    if form in TRIPPED and TRIPPED[form](text):
        return
    with contextlib.suppress(UsageError):
        assert fields(parse(text)) == meaning(ORACLES[form](text))


@pytest.mark.parametrize("form", ORACLES)
@given(device=devices(sizes_in_gib=True))
def test_what_we_write_the_client_reads(form: Form, device: BlockDevice) -> None:
    text = write([device], form)
    if form in TRIPPED and TRIPPED[form](text):
        return
    assert meaning(ORACLES[form](text)) == fields(device)


@given(device=devices(sizes_in_gib=True))
def test_openstackclient_reads_the_file_that_we_write(
    device: BlockDevice, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "mapping.json"
    file.write_text(write([device], Form.JSON))
    assert meaning(openstackclient(file)) == fields(device)
    assert read(str(file)) == (device,)


def test_openstackclient_reads_no_file_of_several(tmp_path: Path) -> None:
    """So we write none: neither objects in a row nor a list."""
    file = tmp_path / "mapping.json"
    one = '{"uuid": "a", "source_type": "volume"}'
    for text in (f"{one}\n{one}", f"[{one}, {one}]"):
        file.write_text(text)
        with pytest.raises((Refused, ValueError, TypeError)):
            openstackclient(file)
        with pytest.raises(UsageError):
            read(str(file))


def test_the_string_of_the_wiki() -> None:
    text = "id=web0,source=volume,dest=volume,bus=virtio-scsi,type=lun"
    assert fields(parse(text)) == meaning(novaclient(text))
    assert parse(text).bus is DiskBus.SCSI
    with pytest.raises(Refused):
        openstackclient(text)


def test_clients_disagree_on_where_an_image_goes(tmp_path: Path) -> None:
    """novaclient makes a local disk of it, openstackclient a volume; so do we, by the form."""
    nova, other = "id=i,source=image", "uuid=i,source_type=image"
    assert (parse(nova).destination, parse(other).destination) == ("local", "volume")
    assert novaclient(nova)["destination_type"] == "local"
    assert openstackclient(other)["destination_type"] == "volume"


@pytest.mark.parametrize(
    ("text", "accepted_by"),
    [
        ("id=a,id=b,source=volume", novaclient),
        ("uuid=a,uuid=b,source_type=volume", openstackclient),
        ("id=,source=volume", novaclient),
        ("id=a,source=volume,bus=virtio-sccsi", novaclient),
        ("id=a,source=volume,bootindex=first", novaclient),
        ("id=a,source=volume,dest=local", novaclient),
        ("source=blank", novaclient),
        ("source=blank,size=10G", novaclient),
    ],
)
def test_what_clients_let_through_and_we_do_not(text: str, accepted_by: Any) -> None:
    accepted_by(text)
    with pytest.raises(UsageError):
        parse(text)
