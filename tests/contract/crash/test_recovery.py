"""A target that dies, stops or loses its front end under a verifying load: what was acknowledged is there.

The front end comes back as QEMU does: with the in-flight region, and rings that go on at their used index.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ringway.model import IoEngine
from ringway.testing.frontend import SPDK, BlkFrontEnd, ScsiFrontEnd
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import wait_until

from .. import cdb
from ..conftest import Count, Serve
from ..disks import FILES, MIB, Disk, MakeDisk
from ..loads import Load

QUEUES = 2


def served(folder: Path, engine: IoEngine, device: str, disk: Disk, *more: str) -> ServedTarget:
    options = ["--device", device, "--io-engine", engine.value, "--queues", str(QUEUES), "--workers", "2"]
    return ServedTarget(folder, *options, "--lun", f"0={disk.argument}", *more)


def front_end(device: str, path: str) -> BlkFrontEnd | ScsiFrontEnd:
    """Connected; a scsi disk's first unit attention is taken."""
    if device == "blk":
        return BlkFrontEnd(path, queues=QUEUES).open()
    front = ScsiFrontEnd(path, request_queues=QUEUES).open()
    while front.command(cdb.TEST_UNIT_READY).status:
        pass
    return front


def restart(target: ServedTarget, device: str) -> None:
    """A guest retries after a scsi disk's unit attention for a power on. The load does not: there is none."""
    target.start(*(["--incoming"] if device == "scsi" else []))


@pytest.mark.parametrize("device", ["blk", "scsi"])
@pytest.mark.parametrize("store", FILES)
def test_nothing_is_lost_when_the_target_is_killed(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str, store: str, count: Count
) -> None:
    """Trap T7: the ring goes on at its used index, the in-flight region says what was taken beyond it."""
    with served(run_dir, engine, device, disk_of(store)) as target, front_end(device, target.socket) as front:
        with Load(front) as load:
            for _ in range(count(5, 50)):
                load.wait_progress()
                target.kill()
                restart(target, device)
                front.reconnect()
            load.wait_progress()
        if device == "blk":
            assert target.stop() == 0


@pytest.mark.parametrize("device", ["blk", "scsi"])
@pytest.mark.parametrize("store", ["mapped", "cached"])
def test_nothing_is_lost_when_the_target_is_stopped_and_started(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str, store: str
) -> None:
    with (
        served(run_dir, engine, device, disk_of(store)) as target,
        front_end(device, target.socket) as front,
        Load(front) as load,
    ):
        for _ in range(3):
            load.wait_progress()
            assert target.stop() == 0
            restart(target, device)
            front.reconnect()
        load.wait_progress()


@pytest.mark.parametrize("store", FILES)
def test_a_front_end_that_loses_its_socket_finds_its_requests_done_once(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, store: str
) -> None:
    """The target lives on and drains what it had; what the driver adds meanwhile waits for a new session."""
    with served(run_dir, engine, "blk", disk_of(store)) as target, front_end("blk", target.socket) as front:
        pid = target.pid
        with Load(front) as load:
            for _ in range(10):
                load.wait_progress()
                front.reconnect()
            load.wait_progress()
        assert target.pid == pid


@pytest.mark.parametrize("store", ["ram", "cached"])
def test_a_base_that_the_ring_has_left_behind_repeats_nothing(
    serve: Serve, disk_of: MakeDisk, store: str
) -> None:
    """A front end that loses its socket sees a used index while the target still drains: its base is old.

    What was taken is either used or in the region, so the target knows better.
    """
    with BlkFrontEnd(serve("blk", disk_of(store))).open() as front:
        assert front.write(0, b"x" * 4096).status == 0
        ring = front.rings[0]
        old = ring.used_index
        first = [front.send_request(0, 8 * number, data_in=4096) for number in range(16)]
        wait_until(lambda: ring.used_index - old == len(first), "all requests")
        front.disconnect()
        front.bases = [old]
        front.open()
        assert [front.wait_request(request).status for request in first] == [0] * len(first)
        more = [front.send_request(0, 8 * number, data_in=4096) for number in range(32)]
        assert [front.wait_request(request).status for request in more] == [0] * len(more)
        front.stop()
        assert ring.collect() == []


@pytest.mark.parametrize("device", ["blk", "scsi"])
@pytest.mark.parametrize("store", ["mapped", "cached", "direct"])
def test_a_front_end_dies_with_requests_in_flight_and_the_next_is_served(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str, store: str
) -> None:
    """Its memory goes with it. What it wrote before and flushed is there."""
    data = os.urandom(MIB)
    with served(run_dir, engine, device, disk_of(store)) as target:
        for round_ in range(5):
            front = front_end(device, target.socket)
            if round_ == 0:
                write(front, 0, data)
            assert read(front, 0, MIB) == data
            for block in range(16):
                send_write(front, 4096 + 128 * block, os.urandom(65536))
            front.close()
        with front_end(device, target.socket) as last:
            assert read(last, 0, MIB) == data
            write(last, 4096, data)
            assert read(last, 4096, MIB) == data
        assert target.stop() == 0


def write(front: BlkFrontEnd | ScsiFrontEnd, sector: int, data: bytes) -> None:
    if isinstance(front, BlkFrontEnd):
        assert front.write(sector, data).status == 0
    else:
        answer = front.command(cdb.write(sector, len(data) // 512), data_out=data)
        assert (answer.response, answer.status) == (0, 0)


def send_write(front: BlkFrontEnd | ScsiFrontEnd, sector: int, data: bytes) -> None:
    if isinstance(front, BlkFrontEnd):
        front.send_request(1, sector, data_out=data)
    else:
        front.send_command(cdb.write(sector, len(data) // 512), data_out=data)


def read(front: BlkFrontEnd | ScsiFrontEnd, sector: int, size: int) -> bytes:
    if isinstance(front, BlkFrontEnd):
        return front.read(sector, size).data
    return front.command(cdb.read(sector, size // 512), data_in=size).data


def test_a_front_end_without_in_flight_tracking_comes_back_too(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """SPDK negotiates no region: its rings rest before it leaves, and it finds its disk."""
    data = os.urandom(65536)
    with (
        served(run_dir, engine, "blk", disk_of("cached")) as target,
        BlkFrontEnd(target.socket, queues=QUEUES, order=SPDK).open() as front,
    ):
        assert front.write(0, data).status == 0
        target.kill()
        target.start()
        front.reconnect()
        assert front.read(0, len(data), queue=1).data == data


def test_a_target_that_hangs_is_killed_and_its_successor_takes_over(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """SIGSTOP is as good as an endless loop: requests pile up, nothing answers, then it is killed."""
    with (
        served(run_dir, engine, "blk", disk_of("cached")) as target,
        front_end("blk", target.socket) as front,
        Load(front) as load,
    ):
        load.wait_progress()
        target.signal(signal.SIGSTOP)
        target.kill()
        target.start()
        front.reconnect()
        load.wait_progress()


def test_a_dead_targets_socket_is_replaced_and_a_live_ones_is_not(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    first, second = disk_of("cached"), disk_of("cached", name="other.img")
    with served(run_dir, engine, "blk", first) as target:
        rival = served(run_dir, engine, "blk", second)
        with pytest.raises(Exception, match="in use: pid"):
            rival.start()
        target.kill()
        assert os.path.exists(target.socket)
        with rival, BlkFrontEnd(rival.socket, queues=QUEUES).open() as front:
            assert front.write(0, b"x" * 512).status == 0
