"""Our front end on /dev/vhost-scsi, and what the kernel does with an endpoint while it is attached."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import BusyError, NotFoundError
from ringway.testing.configfs import Backstore, VhostEndpoint, file_backstore
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

from . import cdb

MIB = 1 << 20
WWPN = "naa.5001405a1b2c3d4e"
NEXUS = "naa.5001405000000001"
SERIAL = "3b5c6a52-0000-4000-8000-0123456789ab"
RESCAN, REMOVED = 1, 2


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of 1 MiB with nothing repeated in it."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


@pytest.fixture
def backstore(image: Path) -> Backstore:
    """The file as the kernel's."""
    return file_backstore(image, MIB, serial=SERIAL)


@pytest.fixture
def endpoint(backstore: Backstore) -> VhostEndpoint:
    """An endpoint with that as LUN 0."""
    made = VhostEndpoint(WWPN).make(NEXUS)
    made.link(0, backstore)
    return made


@pytest.fixture
def guest(endpoint: VhostEndpoint) -> Iterator[VhostScsiFrontEnd]:
    """A front end that is attached."""
    with VhostScsiFrontEnd(endpoint.wwpn).open() as front:
        yield front


def test_a_disk_says_who_it_is(guest: VhostScsiFrontEnd) -> None:
    assert guest.command(cdb.INQUIRY, data_in=36).data[8:16] == b"LIO-ORG "
    page = guest.command(cdb.vpd(0x80), data_in=255).data
    assert page[4 : 4 + page[3]].rstrip(b"\0").decode() == SERIAL
    assert guest.command(cdb.vpd(0x83), data_in=255).data[1] == 0x83
    luns = guest.command(cdb.REPORT_LUNS, data_in=256).data
    assert luns[:4] == (8).to_bytes(4)
    assert guest.command(cdb.READ_CAPACITY, data_in=8).data == (MIB // 512 - 1).to_bytes(4) + (512).to_bytes(
        4
    )


def test_blocks_are_read_and_written(guest: VhostScsiFrontEnd, image: Path) -> None:
    before = image.read_bytes()
    assert guest.command(cdb.read(3, 8), data_in=4096).data == before[3 * 512 : 11 * 512]
    data = os.urandom(4096)
    answer = guest.command(cdb.write(100, 8), data_out=data)
    assert (answer.response, answer.status) == (0, 0)
    assert image.read_bytes() == before[: 100 * 512] + data + before[108 * 512 :]


def test_a_front_end_holds_its_endpoint(guest: VhostScsiFrontEnd, endpoint: VhostEndpoint) -> None:
    with VhostScsiFrontEnd(WWPN) as second, pytest.raises(NotFoundError):
        second.open()
    with pytest.raises(BusyError):
        guest.attach()
    with pytest.raises(OSError, match="busy"):
        (endpoint.group / "nexus").write_text("NULL")


@pytest.mark.parametrize("leave", ["detach", "disconnect"])
def test_whether_a_front_end_is_attached_shows_in_a_rmdir(
    guest: VhostScsiFrontEnd, endpoint: VhostEndpoint, leave: str
) -> None:
    """Dependents come before children; that is what the engine tells an attached guest by."""
    assert _refusal(endpoint) == errno.EBUSY
    endpoint.unlink(0)
    assert _refusal(endpoint) == errno.EBUSY
    (endpoint.group / "lun" / "lun_16000").mkdir()
    getattr(guest, leave)()
    assert _refusal(endpoint) == errno.ENOTEMPTY
    assert (endpoint.group / "nexus").read_text().strip() == NEXUS


def _refusal(endpoint: VhostEndpoint) -> int | None:
    try:
        endpoint.group.rmdir()
    except OSError as refused:
        return refused.errno
    return None


def test_luns_that_come_and_go_are_told_of(
    guest: VhostScsiFrontEnd, endpoint: VhostEndpoint, backstore: Backstore
) -> None:
    guest.offer_event_buffers(2)
    endpoint.unlink(0)
    event = guest.wait_event()
    assert (event.event, event.reason, event.lun[:4]) == (1, REMOVED, bytes([1, 1, 0, 0]))
    endpoint.link(5, backstore)
    event = guest.wait_event()
    assert (event.event, event.reason, event.lun[:4]) == (1, RESCAN, bytes([1, 1, 0, 5]))


def test_a_lun_past_255_has_two_names(
    guest: VhostScsiFrontEnd, endpoint: VhostEndpoint, backstore: Backstore
) -> None:
    """Linux takes them for two: 300 of a scan, and 16684 (flat addressing, 0x412c) of an event."""
    guest.offer_event_buffers(1)
    endpoint.link(300, backstore)
    assert guest.wait_event().lun[2:4] == bytes([0x41, 0x2C])
    luns = guest.command(cdb.REPORT_LUNS, data_in=256).data
    assert {luns[8:16], luns[16:24]} == {bytes(8), (300).to_bytes(2) + bytes(6)}


def test_an_endpoint_without_a_nexus_takes_nobody(backstore: Backstore) -> None:
    (endpoint := VhostEndpoint(WWPN)).group.mkdir(parents=True)
    endpoint.link(0, backstore)
    with VhostScsiFrontEnd(WWPN) as front, pytest.raises(NotFoundError):
        front.open()
