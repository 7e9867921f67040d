"""Stores that fail, answer short or run full: the guest hears of it, nothing else does, and it passes."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ringway.errors import BackstoreError
from ringway.model import BackstoreSpec, DeviceKind, SpecKind
from ringway.target.backstore import open_backstore
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.fuse import Op
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S

from .. import cdb
from ..fuse import FuseDisk, fuse_disk
from ..requests import front_end, make_ready, read, write

ENGINES: Final = ("uring", "epoll")
BLOCK: Final = 512
MIB: Final = 1 << 20
MEDIUM_ERROR, DATA_PROTECT = 3, 7
SPACE_ALLOCATION_FAILED = (DATA_PROTECT, 0x27, 0x07)
READ_ERROR, WRITE_ERROR = (MEDIUM_ERROR, 0x11, 0x00), (MEDIUM_ERROR, 0x0C, 0x00)
VERIFY: Final = bytes.fromhex("2f 00 00000000 00 0008 00")
WRITE_AND_VERIFY: Final = bytes.fromhex("2e 00 00000000 00 0008 00")
FLUSH: Final = bytes.fromhex("35 00 00000000 00 0000 00")
PAGE: Final = 4096
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def disk(run_dir: Path) -> Iterator[FuseDisk]:
    """A disk that does as it is told."""
    with fuse_disk(run_dir / "fuse") as made:
        yield made


@contextmanager
def served(
    run_dir: Path, engine: str, path: object, *more: str
) -> Iterator[tuple[ServedTarget, ScsiFrontEnd]]:
    """The disk as LUN 0, and a healthy one as LUN 1."""
    words = ["--io-engine", engine, f"--lun=0={path}", "--lun=1=ram:4M", *more]
    with ServedTarget(run_dir, *words) as target, ScsiFrontEnd(target.socket).open() as front:
        for lun in (0, 1):
            while front.command(cdb.TEST_UNIT_READY, lun=lun).status:
                pass
        yield target, front
        check_other(front)
        assert target.stop() == 0


def check_other(front: ScsiFrontEnd) -> None:
    """The other LUN is served."""
    data = os.urandom(PAGE)
    assert front.command(cdb.write(0, 8), data_out=data, lun=1).status == cdb.GOOD
    assert front.command(cdb.read(0, 8), data_in=PAGE, lun=1).data == data


def fail(disk: FuseDisk, number: int, *what: str) -> None:
    disk.rule = lambda kind, _offset, _size: -number if kind in what else None


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_of_the_medium_reach_the_guest_and_pass(run_dir: Path, disk: FuseDisk, engine: str) -> None:
    with served(run_dir, engine, disk.path) as (_, front):
        fail(disk, errno.EIO, "read", "write", "flush")
        assert front.command(cdb.read(0, 8), data_in=PAGE).sense_key == READ_ERROR
        assert front.command(cdb.write(0, 8), data_out=bytes(PAGE)).sense_key == WRITE_ERROR
        assert front.command(FLUSH).sense_key == WRITE_ERROR
        assert front.command(VERIFY).sense_key == READ_ERROR
        assert front.command(WRITE_AND_VERIFY, data_out=bytes(PAGE)).sense_key == WRITE_ERROR
        check_other(front)
        disk.go_on()
        data = os.urandom(PAGE)
        assert front.command(cdb.write(0, 8), data_out=data).status == cdb.GOOD
        assert front.command(FLUSH).status == cdb.GOOD
        assert front.command(cdb.read(0, 8), data_in=PAGE).data == data


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_medium_is_told_from_a_broken_one(
    run_dir: Path, disk: FuseDisk, engine: str, number: int
) -> None:
    with served(run_dir, engine, disk.path) as (_, front):
        fail(disk, number, "write")
        for command in (cdb.write(0, 8), WRITE_AND_VERIFY):
            assert front.command(command, data_out=bytes(PAGE)).sense_key == SPACE_ALLOCATION_FAILED
        assert front.command(cdb.read(0, 8), data_in=PAGE).status == cdb.GOOD


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", ["", ",direct"])
def test_short_answers_are_carried_on(run_dir: Path, disk: FuseDisk, engine: str, option: str) -> None:
    """The kernel may do less than it was asked for; what is left is asked for again, from where it ended.

    io_uring itself asks a FUSE file for the rest, once, and from the wrong place: guests read wrong data, and
    wrote to wrong places with O_DIRECT.
    """
    with served(run_dir, engine, f"{disk.path}{option}") as (_, front):
        disk.rule = lambda kind, _offset, _size: 1024 if kind in ("read", "write") else None
        data = os.urandom(64 * 1024)
        assert front.command(cdb.write(8, 128), data_out=data).status == cdb.GOOD
        assert bytes(disk.content[: 2 * PAGE + len(data)]) == bytes(PAGE) + data + bytes(PAGE)
        assert front.command(cdb.read(8, 128), data_in=len(data)).data == data
        verify = bytes.fromhex("2f 02 00000008 00 0080 00")
        assert front.command(verify, data_out=data).status == cdb.GOOD
        if not option:
            disk.rule = lambda kind, _offset, _size: 700 if kind in ("read", "write") else None
            assert front.command(cdb.write(9, 127), data_out=data[:-BLOCK]).status == cdb.GOOD
            assert front.command(cdb.read(8, 128), data_in=len(data)).data == data[:BLOCK] + data[:-BLOCK]


def test_a_file_system_that_does_not_say_what_it_is(disk: FuseDisk) -> None:
    """It was refused with "Function not implemented", and nothing else."""
    disk.unknown = frozenset((Op.STATFS,))
    with pytest.raises(BackstoreError, match=r"statfs.*Function not implemented") as refused:
        open_backstore(BackstoreSpec(SpecKind.PATH, str(disk.path)))
    assert str(disk.path) in refused.value.message
    assert "STATFS" in (refused.value.hint or "")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_of_nothing_ends(run_dir: Path, disk: FuseDisk, engine: str) -> None:
    """As at the end of a file that shrank: an error, and not a loop for ever."""
    with served(run_dir, engine, disk.path) as (_, front):
        disk.rule = lambda kind, _offset, _size: 0 if kind in ("read", "write") else None
        assert front.command(cdb.read(0, 8), data_in=PAGE).sense_key == READ_ERROR
        assert front.command(cdb.write(0, 8), data_out=bytes(PAGE)).sense_key == WRITE_ERROR
        assert front.command(VERIFY).sense_key == READ_ERROR


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("device", list(DeviceKind))
def test_a_file_that_shrinks_fails_what_lies_behind_its_end(
    run_dir: Path, engine: str, device: DeviceKind
) -> None:
    """Mapped (SIGBUS) and read, again and again, and by the slow path, which is Python's. What is there when
    the file has grown again is served: a mapped store was broken for good.
    """
    for folder, name in (("/dev/shm", "mapped"), ("/var/tmp", "cached")):
        path = Path(folder) / f"ringway-shrinks-{os.getpid()}"
        path.write_bytes(bytes(4 * MIB))
        try:
            words = ["--device", device.value, "--io-engine", engine, path]
            with ServedTarget(run_dir, *words, name=name) as target:
                with front_end(device.value, target.socket).open() as front:
                    make_ready(front)
                    for _ in range(5):
                        os.truncate(path, MIB)
                        check_lost(front)
                        os.truncate(path, 4 * MIB)
                with front_end(device.value, target.socket).open() as following:
                    make_ready(following)
                    write(following, 0, b"n" * PAGE)
                    assert read(following, 0) == b"n" * PAGE
                assert target.stop() == 0
        finally:
            path.unlink()


def check_lost(front: BlkFrontEnd | ScsiFrontEnd) -> None:
    """What lay behind the end is not read; what lies before it is."""
    if isinstance(front, BlkFrontEnd):
        assert front.read(4096, PAGE).status == 1
        assert front.read(0, PAGE).status == 0
    else:
        assert front.command(cdb.read(4096, 8), data_in=PAGE).sense_key == READ_ERROR
        assert front.command(bytes.fromhex("2f 00 00001000 00 0008 00")).sense_key == READ_ERROR
        assert front.command(cdb.read(0, 8), data_in=PAGE).status == cdb.GOOD


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs that runs full. The test is skipped where none can be mounted."""
    folder.mkdir()
    if _LIBC.mount(b"ringway", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        _LIBC.umount2(os.fsencode(folder), 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mapped", ["on", "off"])
def test_a_disk_that_is_full_goes_on_when_room_was_made(run_dir: Path, engine: str, mapped: str) -> None:
    """A mapped store was broken for good, for reads as well."""
    with small_file_system(run_dir / "small", "2m") as folder:
        image = folder / "disk"
        with image.open("wb") as file:
            file.truncate(8 * MIB)
        with served(run_dir, engine, f"{image},mapped={mapped}") as (_, front):
            data = bytes([7]) * 65536
            ends = [front.command(cdb.write(lba, 128), data_out=data) for lba in range(0, 64 * 128, 128)]
            failed = [end.sense_key for end in ends if end.status]
            assert set(failed) == {SPACE_ALLOCATION_FAILED}
            assert 16 < len(failed) < 64
            assert front.command(cdb.read(0, 128), data_in=len(data)).data == data
            unmap = bytes.fromhex("0016 0010 00000000 0000000000000000 00000800 00000000")
            assert front.command(b"\x42" + bytes(6) + b"\0\x18\0", data_out=unmap).status == cdb.GOOD
            assert front.command(cdb.write(4096, 128), data_out=data).status == cdb.GOOD
            assert front.command(cdb.read(4096, 128), data_in=len(data)).data == data


@pytest.mark.parametrize("engine", ENGINES)
def test_signals_to_any_thread_disturb_no_request(run_dir: Path, disk: FuseDisk, engine: str) -> None:
    """EINTR everywhere: each thread gets SIGCHLD, SIGWINCH and SIGURG while it works."""
    with served(run_dir, engine, disk.path) as (target, front):
        done = threading.Event()

        def disturb() -> None:
            while not done.is_set():
                for thread in os.listdir(f"/proc/{target.pid}/task"):
                    for number in (signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG):
                        _LIBC.tgkill(target.pid, int(thread), int(number))

        disturber = threading.Thread(target=disturb)
        disturber.start()
        try:
            for number in range(100):
                data = bytes([number]) * PAGE
                assert front.command(cdb.write(8, 8), data_out=data).status == cdb.GOOD
                assert front.command(cdb.read(8, 8), data_in=PAGE).data == data
                assert front.command(VERIFY).status == cdb.GOOD
        finally:
            done.set()
            disturber.join()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_limit_of_file_size_is_an_error_and_no_signal(run_dir: Path, engine: str) -> None:
    """SIGXFSZ would end the target."""
    image = run_dir / "disk"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    with served(run_dir, engine, image, f"--user={os.geteuid()}") as (
        target,
        front,
    ):  # its limits are set here
        subprocess.run(["prlimit", f"--pid={target.pid}", f"--fsize={MIB}"], check=True, timeout=PATIENCE_S)
        assert front.command(cdb.write(4096, 8), data_out=bytes(PAGE)).sense_key == WRITE_ERROR
        assert front.command(cdb.write(0, 8), data_out=bytes(PAGE)).status == cdb.GOOD
