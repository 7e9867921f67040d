"""Nobody writes to a disk that is another's: requests outlive their rings, and stores change hands."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from ringway import _core
from ringway.cli import serve as command
from ringway.errors import BusyError, RingwayError, TimedOutError
from ringway.model import BackstoreSpec, LunSpec, SpecKind
from ringway.scsi import Medium
from ringway.target import device, luns, scsi_device, target
from ringway.target.ownership import FileClaim
from ringway.target.target import Target
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S, wait_until

from .. import cdb
from ..conftest import ServeHere as Serve
from ..disks import MIB, SIZE, Disk, MakeDisk

BLOCK: Final = 512
LIMIT_S: Final = 60.0


def write_and_verify(lba: int) -> bytes:
    """WRITE AND VERIFY (10) of a block, which the slow path does."""
    return bytes([0x2E, 0]) + lba.to_bytes(4) + bytes([0, 0, 1, 0])


class SlowMedium:
    """A medium whose writes wait until they may go on."""

    def __init__(self, inner: Medium) -> None:
        self._inner = inner
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.done = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        self.begun.set()
        assert self.go_on.wait(LIMIT_S)
        self._inner.write(offset, data, fua=fua)
        self.done.set()


class FatalMedium:
    """A medium that panics."""

    def __init__(self, inner: Medium) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        raise KeyboardInterrupt("no Exception, as a panic is none")


def unit_of(served: Target) -> Any:
    face = served._face
    assert isinstance(face, scsi_device.ScsiDevice)
    return face.units[0, 0]


def slow_down(served: Target) -> SlowMedium:
    """Let the slow path's writes to LUN 0 wait."""
    unit = unit_of(served)
    medium = SlowMedium(unit.medium)
    unit.replace_medium(medium)
    return medium


@pytest.fixture
def serve(serve_here: Serve) -> Serve:
    """These tests look inside."""
    return serve_here


def ready(path: str) -> ScsiFrontEnd:
    front = ScsiFrontEnd(path).open()
    while front.command(cdb.TEST_UNIT_READY).status:
        pass
    return front


@contextmanager
def rival(path: Path) -> Iterator[FileClaim]:
    """Another host process's claim."""
    fd = os.open(path, os.O_RDWR)
    claim = FileClaim(fd, "rival", writable=True)
    os.close(fd)
    yield claim
    claim.close()


def test_the_image_is_kept_while_the_slow_path_writes_to_it(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up when the rings had stopped, and the write hit a disk that was another's.

    What waited behind that write is nobody's request any more: it is not done.
    """
    monkeypatch.setattr(device, "STOP_S", 0.2)
    disk = disk_of("cached")
    with ready(serve("scsi", disk)) as front, rival(disk.path) as other:
        medium = slow_down(serve.target)
        front.start_log()
        front.send_command(write_and_verify(0), data_out=b"a" * BLOCK)
        front.send_command(write_and_verify(1), data_out=b"b" * BLOCK)
        assert medium.begun.wait(LIMIT_S)
        front.stop()
        for _ in range(3):
            with pytest.raises(BusyError):
                other.take()
        medium.go_on.set()
        wait_until(lambda: serve.target.info().luns[0].ownership == "released", "the release")
        assert medium.done.is_set()
        other.take()
        serve.target.close()  # joins the slow path
        assert disk.path.read_bytes()[: 2 * BLOCK] == b"a" * BLOCK + bytes(BLOCK)


def test_a_source_that_goes_on_serves_commands_again(serve: Serve, disk_of: MakeDisk) -> None:
    """Its slow path rests while its rings do."""
    with ready(serve("scsi", disk_of("cached"))) as front:
        front.start_log()
        front.stop()
        front.logging = False
        front.start()
        assert front.command(write_and_verify(0), data_out=b"a" * BLOCK).status == cdb.GOOD


def test_a_target_that_is_closed_keeps_what_its_slow_path_still_writes_to(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "STOP_S", 0.2)
    monkeypatch.setattr(target, "SLOW_STOP_S", 0.2)
    disk = disk_of("cached")
    with ready(serve("scsi", disk)) as front, rival(disk.path) as other:
        medium = slow_down(serve.target)
        front.send_command(write_and_verify(0), data_out=b"a" * BLOCK)
        assert medium.begun.wait(LIMIT_S)
        serve.target.close()
        with pytest.raises(BusyError):
            other.take()
        medium.go_on.set()
        serve.target._slow.join(LIMIT_S)
        serve.target._luns.close()


def test_a_slow_path_that_dies_takes_the_target_with_it(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread died without a word; every command after that hung."""
    monkeypatch.setattr(device, "STOP_S", 0.2)
    with ready(serve("scsi", disk_of("ram"))) as front:
        unit_of(serve.target).replace_medium(FatalMedium(unit_of(serve.target).medium))
        front.send_command(write_and_verify(0), data_out=b"a" * BLOCK)
        assert serve.target.wait(LIMIT_S)
        assert serve.target.failed
        monkeypatch.setattr(command, "_run_in_background", lambda _target, _signals: None)
        with pytest.raises(RingwayError) as caught:
            command.run(serve.target, None)
        assert caught.value.exit_status == 1


def test_a_lun_that_the_slow_path_writes_to_is_closed_when_it_is_done(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up at once; and what lingered, lingered until the target was closed."""
    monkeypatch.setattr(luns, "SETTLE_S", 0.1)
    disk = disk_of("cached")
    with ready(serve("scsi", disk)) as front, rival(disk.path) as other:
        medium = slow_down(serve.target)
        request = front.send_command(write_and_verify(0), data_out=b"a" * BLOCK)
        assert medium.begun.wait(LIMIT_S)
        with pytest.raises(TimedOutError):
            serve.target.remove_lun(0, 0)
        assert serve.target.info().luns == ()
        with pytest.raises(BusyError):
            other.take()
        medium.go_on.set()
        front.wait_command(request)
        wait_until(lambda: (serve.target.info(), not serve.target._luns._lingering)[1], "the last request")
        other.take()


def test_a_range_is_unlocked_though_its_lun_is_gone(serve: Serve, disk_of: MakeDisk) -> None:
    with ready(serve("scsi", disk_of("ram"))):
        core = serve.target._core
        with scsi_device._Host(core, 0, 0).lock_range(0, BLOCK, reads=True):
            serve.target.remove_lun(0, 0)


class Recorder:
    """The core, and how long each ring had to drain."""

    def __init__(self, core: _core.Device) -> None:
        self._core = core
        self.timeouts: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def stop_queue(self, index: int, *, timeout_s: float) -> int:
        self.timeouts.append(timeout_s)
        return self._core.stop_queue(index)


def test_a_ring_that_starts_again_has_a_whole_drain_of_its_own(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ring stopped alone and came back; its deadline stayed, and was over when all stopped later."""
    monkeypatch.setattr(device, "STOP_S", 1e-3)
    with BlkFrontEnd(serve("blk", disk_of("ram"), queues=2), queues=2).open() as front:
        recorder = Recorder(serve.target._core)
        serve.target._device._core = recorder  # type: ignore[assignment]
        front.set_vring_kick(1)
        front.get_features()
        threading.Event().wait(0.01)
        front.stop()
        restarted, *_ = recorder.timeouts[-2:]
        assert restarted > 0


@pytest.mark.parametrize("name", ["blk", "scsi"])
def test_a_destination_serves_the_size_that_the_source_left(
    serve: Serve, disk_of: MakeDisk, name: str
) -> None:
    """It looked at the size when it was started; a guest that had grown its disk got errors beyond that."""
    disk = disk_of("cached")
    serve(name, disk)
    source = serve.target
    path = serve(name, disk, incoming=True)
    os.truncate(disk.path, 2 * SIZE)
    source.resize_lun(0, 0)
    source.close()
    kind = BlkFrontEnd if name == "blk" else ScsiFrontEnd
    with kind(path).open() as front:
        wait_until(lambda: serve.target.info().luns[0].ownership == "held", "the disk")
        if isinstance(front, ScsiFrontEnd):
            first = front.command(cdb.READ_CAPACITY_10, data_in=8)
            assert first.status == cdb.GOOD, "the guest is told of no change"
            assert int.from_bytes(first.data[:4]) + 1 == 2 * SIZE // BLOCK
            end = front.command(cdb.read(2 * SIZE // BLOCK - 1, 1), data_in=BLOCK)
            assert end.status == cdb.GOOD
        else:
            assert front.read(2 * SIZE // BLOCK - 8, 4096).status == 0
    assert serve.target.info().luns[0].size_bytes == 2 * SIZE


def disks_of(disk_of: MakeDisk) -> tuple[Disk, Disk]:
    return disk_of("cached", name="one.img"), disk_of("cached", name="two.img")


def test_a_lun_that_comes_while_rings_wait_is_wanted_too(serve: Serve, disk_of: MakeDisk) -> None:
    """Nobody asked for it, and the rings waited for it for ever."""
    one, two = disks_of(disk_of)
    serve("scsi", one)
    source = serve.target
    path = serve("scsi", one, incoming=True)
    with ScsiFrontEnd(path).open() as front:
        serve.target.add_lun(LunSpec(0, 1, two.spec))
        request = front.send_command(cdb.TEST_UNIT_READY, lun=1)
        source.close()
        front.wait_command(request)
        assert [lun.ownership for lun in serve.target.info().luns] == ["held", "held"]


def test_rings_do_not_wait_for_a_lun_that_is_gone(serve: Serve, disk_of: MakeDisk) -> None:
    one, two = disks_of(disk_of)
    serve("scsi", two)
    path = serve("scsi", one, two, incoming=True)
    with ScsiFrontEnd(path).open() as front:
        request = front.send_command(cdb.TEST_UNIT_READY)
        serve.target.remove_lun(0, 1)
        front.wait_command(request)


def test_a_lun_that_comes_calls_off_no_release(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incoming target that had become a source kept its disks when one was added during the flush."""
    one, two = disks_of(disk_of)
    with ready(serve("scsi", one, incoming=True)) as front:
        settled = threading.Event()
        monkeypatch.setattr(serve.target._device, "_settled", settled.is_set)
        front.start_log()
        front.stop()
        serve.target.add_lun(LunSpec(0, 1, two.spec))
        settled.set()
        wait_until(lambda: serve.target.info().luns[0].ownership == "released", "the release")


def test_a_ring_that_cannot_start_does_not_keep_the_others_from_it(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = disk_of("cached")
    serve("blk", disk)
    source = serve.target
    path = serve("blk", disk, incoming=True, queues=2)
    start = serve.target._device._start

    def fail_first(index: int, *rest: Any) -> None:
        if index == 0:
            raise OSError(24, "Too many open files")
        start(index, *rest)

    monkeypatch.setattr(serve.target._device, "_start", fail_first)
    with BlkFrontEnd(path, queues=2).open() as front:
        source.close()
        assert front.read(0, 4096, queue=1).status == 0


@pytest.fixture
def loop_device(disk_of: MakeDisk) -> Iterator[tuple[str, Path]]:
    """A block device, and the file that is its medium."""
    losetup = shutil.which("losetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if losetup is None or os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root, losetup and /dev/loop-control")
    medium = disk_of("cached", name="medium.img").path
    made = [losetup, "--find", "--show", str(medium)]
    name = subprocess.run(made, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout.strip()
    yield name, medium
    subprocess.run([losetup, "--detach", name], check=True, timeout=PATIENCE_S)


def test_a_device_is_written_back_before_the_last_ring_has_stopped(
    serve: Serve, loop_device: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim on a device does not reach the destination's host, which starts as soon as it is told to."""
    name, medium = loop_device
    monkeypatch.setattr(luns.LunTable, "release_later", lambda _luns, _ready: None)
    with BlkFrontEnd(serve("blk", Disk(BackstoreSpec(SpecKind.PATH, name)))).open() as front:
        for each in range(8):
            assert front.write(each * MIB // BLOCK, b"x" * MIB).status == 0
        front.start_log()
        front.stop()
        assert medium.read_bytes()[: 8 * MIB] == b"x" * (8 * MIB)
