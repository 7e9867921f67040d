"""What comes over the control socket in place of an open disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import BackstoreError, PermissionDeniedError, RingwayError
from ringway.model import BackstoreSpec, LunAddRequest, LunInfo, LunResizeRequest, LunSpec, SpecKind
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.target import ServedTarget

from .. import cdb

MIB = 1 << 20
FLAWED = [
    pytest.param(os.O_RDWR | os.O_APPEND, BackstoreError, "appending", id="append"),
    pytest.param(os.O_WRONLY, PermissionDeniedError, "not open for reading", id="write-only"),
    pytest.param(os.O_RDONLY, PermissionDeniedError, "not open for writing", id="read-only"),
    pytest.param(os.O_PATH, PermissionDeniedError, "not open for reading", id="a place"),
]


@pytest.fixture
def image(run_dir: Path) -> Path:
    path = run_dir / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def target(run_dir: Path) -> Iterator[ServedTarget]:
    with ServedTarget(run_dir, "null:1M") as served:
        yield served


@pytest.mark.parametrize(("flags", "error", "why"), FLAWED)
def test_a_disk_is_open_for_what_guests_do(
    target: ServedTarget, image: Path, flags: int, error: type[RingwayError], why: str
) -> None:
    """Each write to a file that is open for appending went to its end, wherever the guest meant it to go."""
    disk = LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, str(image)))
    fd = os.open(image, flags | os.O_CLOEXEC)
    with target.control() as client, pytest.raises(error, match=why):
        client.call(LunAddRequest(disk), LunInfo, fd=fd)
    os.close(fd)
    assert len(target.info().luns) == 1


@pytest.mark.parametrize(("flags", "error", "why"), FLAWED)
def test_a_file_that_replaces_the_open_one_is_open_as_that_was(
    target: ServedTarget, image: Path, flags: int, error: type[RingwayError], why: str
) -> None:
    """A resize took any file descriptor of the same file, and guests' writes failed or went astray."""
    disk = LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, str(image)))
    with target.control() as client:
        client.add_lun(disk)
        os.truncate(image, 2 * MIB)
        fd = os.open(image, flags | os.O_CLOEXEC)
        with pytest.raises(error, match=why):
            client.call(LunResizeRequest(0, 1), LunInfo, fd=fd)
        os.close(fd)
    with ScsiFrontEnd(target.socket).open() as front:
        while front.command(cdb.TEST_UNIT_READY, lun=1).status:
            pass
        assert front.command(cdb.write(8, 1), data_out=b"w" * 512, lun=1).status == cdb.GOOD
    assert image.read_bytes()[4096:4608] == b"w" * 512
    assert image.stat().st_size == 2 * MIB


def test_what_cannot_be_read_is_refused_in_words(target: ServedTarget) -> None:
    fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)  # nothing is at its begin
    disk = LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, "/nowhere"))
    with target.control() as client, pytest.raises(BackstoreError, match="cannot be read: Input/output"):
        client.call(LunAddRequest(disk), LunInfo, fd=fd)
    os.close(fd)
