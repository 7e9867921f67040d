"""``ringway guest attach`` and ``detach``, of plain disks: what is asked of the daemon, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.model import AttachmentInfo, Face, GuestDisk, GuestInfo, GuestState

from .conftest import Run
from .daemon import FakeDaemon

MAPPING = "id=v1,source=volume,dest=volume,bus=virtio-scsi"
BOOT_DISK = GuestDisk(target="vda", bus="virtio", device="disk", source="/srv/root.img", live=True)
V1 = GuestDisk(
    target="sda",
    bus="scsi",
    device="disk",
    source="/srv/v1.img",
    alias="ua-ringway-volume-v1",
    volume="v1",
    serial="v1",
    live=True,
    persistent=True,
)
DB0 = AttachmentInfo(guest="web", endpoint="db0", face=Face.VHOST_USER_BLK, alias="ua-ringway-db0", live=True)
DB0_DISK = GuestDisk(
    target="vdb", bus="virtio", device="disk", source="/run/db0.sock", alias="ua-ringway-db0", live=True
)


@pytest.fixture
def web(daemon: FakeDaemon) -> FakeDaemon:
    """A guest with a disk of its own, one of ours, and an endpoint."""
    daemon.guests = [
        GuestInfo(
            name="web",
            uuid="0" * 8,
            state=GuestState.RUNNING,
            persistent=True,
            memory_bytes=1 << 30,
            vcpus=2,
            machine="q35",
            shared_memory=True,
            attachments=(DB0,),
            disks=(BOOT_DISK, DB0_DISK, V1),
        )
    ]
    return daemon


def test_a_disk_is_attached(web: FakeDaemon, run: Run, tmp_path: Path) -> None:
    result = run("guest", "attach", "web", "--block-device", MAPPING, "--volume", f"v1={tmp_path}/v1.img")
    assert result.status == 0, result.err
    assert "sda" in result.out
    assert f"{tmp_path}/v1.img" in result.out
    assert "say so" in result.err
    assert web.asked[-1].startswith("POST /1.0/guests/web/disks")
    words = ("guest", "attach", "web", "--block-device", MAPPING, "--dry-run", "-q")
    assert run(*words).out == "guest/web\n"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ((), "an endpoint or a disk", "--block-device"),
        (("db0", "--block-device", MAPPING), "an endpoint or a disk", "--block-device"),
        (("db0", "--volume", "v1=/srv/v1.img"), "--volume means nothing here", "--block-device"),
        (("db0", "--via", "endpoint"), "--via means nothing here", "--block-device"),
        (("--block-device", MAPPING, "--queues", "2"), "--queues means nothing", "bootindex"),
        (("--block-device", MAPPING, "--boot-order", "1"), "--boot-order means nothing", "bootindex=0"),
        (("--block-device", MAPPING, "--fix-memory"), "--fix-memory means nothing", "plain disk"),
        (("--block-device", "id=v1,bus=xen"), "bus of Xen's guests", ""),
        (("--block-device", MAPPING, "--volume", "v2=/x"), "names the volume 'v2'", ""),
        (
            ("--block-device", MAPPING, "--volume", "v1=/srv/v1.img", "--via", "endpoint"),
            "the endpoint is made first",
            "ringway endpoint create v1 --lun 0=/srv/v1.img && ringway guest attach web v1",
        ),
        (
            ("--block-device", "id=/srv/a b.img,source=volume,bus=virtio", "--via", "endpoint"),
            "the endpoint is made first",
            "ringway endpoint create NAME --device blk --lun '0=/srv/a b.img' && ringway guest attach",
        ),
    ],
)
def test_what_makes_no_sense_asks_nobody(
    web: FakeDaemon, run: Run, words: tuple[str, ...], message: str, hint: str
) -> None:
    result = run("guest", "attach", "web", *words)
    assert result.status == 2
    text = " ".join(result.err.split())
    assert message in text
    assert hint in text
    assert web.asked == []


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("db0", "endpoints/db0"),
        ("ua-ringway-db0", "endpoints/db0"),
        ("v1", "disks/ua-ringway-volume-v1"),
        ("sda", "disks/ua-ringway-volume-v1"),
        ("ua-ringway-volume-v1", "disks/ua-ringway-volume-v1"),
        ("vda", "disks/vda"),  # which the daemon refuses, and says what does it
    ],
)
def test_what_is_detached_is_what_the_guest_calls_so(
    web: FakeDaemon, run: Run, name: str, asked: str
) -> None:
    assert run("guest", "detach", "web", name).status == 0
    assert web.asked[-1].startswith(f"DELETE /1.0/guests/web/{asked}?")


def test_what_the_guest_has_not_or_has_twice_is_refused(web: FakeDaemon, run: Run) -> None:
    result = run("guest", "detach", "web", "nothing")
    assert (result.status, "no endpoint and no disk 'nothing'" in result.err) == (3, True)
    assert run("guest", "detach", "mail", "v1").status == 3
    assert web.guests is not None
    twin = GuestDisk(target="sdb", bus="scsi", device="disk", source="/x", alias="u", volume="db0", live=True)
    web.guests = [replace(web.guests[0], disks=(V1, twin))]
    result = run("guest", "detach", "web", "db0")
    assert (result.status, "take an alias: ua-ringway-db0, u" in result.err) == (2, True)


def test_plain_disks_are_shown_and_listed(web: FakeDaemon, run: Run) -> None:
    shown = run("guest", "show", "web").out
    (line,) = (line for line in shown.splitlines() if line.startswith("sda"))
    assert line.split() == ["sda", "v1", "scsi", "disk", "/srv/v1.img", "yes", "yes"]
    assert "/run/db0.sock" not in shown
    assert run("guest", "list", "-c", "name,volumes", "--no-headers").out.split() == ["web", "v1"]
