"""A store that answers no more: its commands end in an abort or wait, and all others go on."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ringway.errors import TimedOutError
from ringway.model import (
    BackstoreSpec,
    Done,
    IoEngine,
    LunInfo,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    SpecKind,
)
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd, lun_address
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import wait_until

from .. import cdb
from ..fuse import FuseDisk, fuse_disk

BLOCK: Final = 512
ABORT_TASK, LUN_RESET, QUERY_TASK = 0, 5, 6
COMPLETE, ABORTED, FAILURE, SUCCEEDED = 0, 2, 9, 10
INQUIRY: Final = bytes.fromhex("12 00 00 00 24 00")
VERIFY: Final = bytes.fromhex("2f 00 00000000 00 0001 00")
COMPARE_AND_WRITE: Final = bytes.fromhex("89 00 0000000000000000 000000 01 00 00")


@pytest.fixture
def hung(run_dir: Path) -> Iterator[FuseDisk]:
    """A disk that can hang."""
    with fuse_disk(run_dir / "hung") as disk:
        yield disk


@contextmanager
def served(
    run_dir: Path, engine: IoEngine, hung: FuseDisk, *others: object, queues: int = 1
) -> Iterator[tuple[ServedTarget, ScsiFrontEnd]]:
    """A target of several LUNs and its front end, ready. The disk goes on before it ends, or it could not."""
    luns = [f"--lun={number}={what}" for number, what in enumerate((hung.path, *others))]
    words = ["--io-engine", engine.value, "--queues", str(queues), *luns]
    with ServedTarget(run_dir, *words) as target, guest(target, queues) as front:
        try:
            yield target, front
        finally:
            hung.go_on()


def guest(target: ServedTarget, queues: int = 1) -> ScsiFrontEnd:
    front = ScsiFrontEnd(target.socket, request_queues=queues).open()
    for lun in range(len(target.info().luns)):
        while front.command(cdb.TEST_UNIT_READY, lun=lun).status:
            pass
    return front


def manage(front: ScsiFrontEnd, function: int, lun: int = 0, id: int = 0) -> int:
    """Run a task management function. :returns: its response."""
    return front.control(struct.pack("<II8sQ", 0, function, lun_address(0, lun), id), 1)[0]


def check_served(front: ScsiFrontEnd, lun: int) -> None:
    """A LUN reads, writes, verifies, and answers what it is."""
    data = bytes((lun + 1,)) * BLOCK
    assert front.command(cdb.write(8, 1), data_out=data, lun=lun).status == cdb.GOOD
    assert front.command(cdb.read(8, 1), data_in=BLOCK, lun=lun).data == data
    assert front.command(VERIFY, lun=lun).status == cdb.GOOD
    check_answers(front, lun)


def check_answers(front: ScsiFrontEnd, lun: int) -> None:
    """A LUN answers what needs no medium."""
    assert front.command(INQUIRY, data_in=36, lun=lun).status == cdb.GOOD
    assert front.command(cdb.READ_CAPACITY_10, data_in=8, lun=lun).status == cdb.GOOD
    assert front.command(cdb.TEST_UNIT_READY, lun=lun).status == cdb.GOOD


def test_a_verify_that_hangs_is_aborted_and_holds_up_nobody(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    """One thread did the slow path: INQUIRY and the functions of all disks waited behind it."""
    with served(run_dir, engine, hung, "ram:4M") as (_, front):
        hung.hang("read")
        first = front.send_command(VERIFY, id=501)
        second = front.send_command(VERIFY, id=502)
        wait_until(lambda: hung.waiting == 1, "the first VERIFY to hang")
        check_answers(front, 0)
        check_served(front, 1)
        assert manage(front, QUERY_TASK, id=501) == SUCCEEDED
        assert manage(front, ABORT_TASK, id=502) == COMPLETE
        assert manage(front, ABORT_TASK, id=501) == COMPLETE
        assert [front.wait_command(each).response for each in (first, second)] == [ABORTED] * 2
        assert manage(front, LUN_RESET) == COMPLETE
        assert front.command(cdb.TEST_UNIT_READY).sense_key == (6, 0x29, 0x03)
        check_served(front, 1)
        hung.go_on()
        check_served(front, 0)


def test_a_compare_and_write_that_hangs_is_not_said_to_be_aborted(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    """Its data may still reach the disk. Others go on while the function waits."""
    with served(run_dir, engine, hung, "ram:4M") as (_, front):
        hung.hang("write")
        request = front.send_command(COMPARE_AND_WRITE, data_out=bytes(BLOCK) + b"n" * BLOCK, id=501)
        wait_until(lambda: hung.waiting == 1, "the write to hang")
        check_answers(front, 0)
        check_served(front, 1)
        assert manage(front, ABORT_TASK, id=501) == FAILURE
        assert not request.chain.done
        hung.go_on()
        assert front.wait_command(request).status == cdb.GOOD
        assert manage(front, ABORT_TASK, id=501) == COMPLETE
        assert hung.content[:BLOCK] == b"n" * BLOCK


@pytest.mark.parametrize("count", [1, 40])
def test_reads_and_writes_that_hang_hold_up_no_other_disk(
    run_dir: Path, engine: IoEngine, hung: FuseDisk, count: int
) -> None:
    """More than the kernel had threads for: the I/O of all other disks waited for one of them."""
    with fuse_disk(run_dir / "well") as well, served(run_dir, engine, hung, well.path) as (_, front):
        hung.hang("read", "flush")
        stuck = [
            front.send_command(cdb.read(number, 1), data_in=BLOCK, id=500 + number) for number in range(count)
        ]
        wait_until(lambda: hung.waiting == count, "the reads to hang")
        check_answers(front, 0)
        check_served(front, 1)
        assert manage(front, ABORT_TASK, id=500) == FAILURE, "the kernel has not given it back"
        assert manage(front, LUN_RESET, lun=1) == COMPLETE
        assert front.command(cdb.TEST_UNIT_READY, lun=1).sense_key == (6, 0x29, 0x03)
        hung.go_on()
        for request in stuck:
            front.wait_command(request)
        assert manage(front, ABORT_TASK, id=500) == COMPLETE
        check_served(front, 0)


def test_the_next_front_end_is_served_while_a_disk_hangs(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    with served(run_dir, engine, hung, "ram:4M", queues=2) as (target, front):
        hung.hang("read", "write")
        for opcode in (cdb.read(0, 1), VERIFY):
            front.send_command(opcode, data_in=BLOCK)
        front.send_command(cdb.write(0, 1), data_out=b"w" * BLOCK, queue=1)
        wait_until(lambda: hung.waiting == 3, "all to hang")
        front.close()
        with guest(target, 2) as following:
            check_answers(following, 0)
            check_served(following, 1)
            hung.go_on()
            check_served(following, 0)
        assert target.stop() == 0


def test_a_disk_that_hangs_is_removed_alone(run_dir: Path, engine: IoEngine, hung: FuseDisk) -> None:
    """The removal of a LUN waited for the slow path's command to any."""
    with served(run_dir, engine, hung, "ram:4M") as (target, front):
        hung.hang("read")
        front.send_command(VERIFY)
        wait_until(lambda: hung.waiting == 1, "the VERIFY to hang")
        with target.control() as client:
            client.call(LunRemoveRequest(target=0, lun=1), Done)
        assert [lun.lun for lun in target.info().luns] == [0]
        hung.go_on()


def test_a_read_that_hangs_holds_up_no_change_of_another_disk(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    """Who waited for the requests of one LUN waited for those of all."""
    image = run_dir / "other.img"
    image.write_bytes(bytes(1 << 20))
    with served(run_dir, engine, hung, image) as (target, front):
        hung.hang("read")
        front.send_command(cdb.read(0, 1), data_in=BLOCK)
        wait_until(lambda: hung.waiting == 1, "the read to hang")
        os.truncate(image, 2 << 20)
        with target.control() as client:
            assert client.call(LunResizeRequest(0, 1), LunInfo).size_bytes == 2 << 20
            client.call(LunRemoveRequest(0, 1), Done)
        assert [lun.lun for lun in target.info().luns] == [0]
        hung.go_on()


def test_a_read_that_hangs_holds_up_no_disk_that_comes_to_its_address(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    """The successor's COMPARE AND WRITE waited for it, and so did its removal. The guest's abort does: the
    read may still write to its memory.
    """
    with served(run_dir, engine, hung, "ram:4M") as (target, front):
        hung.hang("read")
        first = front.send_command(cdb.read(0, 1), data_in=BLOCK, id=501)
        wait_until(lambda: hung.waiting == 1, "the read to hang")
        with target.control() as client:
            with pytest.raises(TimedOutError, match="do not end"):
                client.call(LunRemoveRequest(0, 0), Done)
            client.add_lun(LunSpec(0, 0, BackstoreSpec(SpecKind.RAM, size_bytes=1 << 20)))
            while front.command(cdb.TEST_UNIT_READY).status:
                pass
            both = bytes(BLOCK) + b"n" * BLOCK
            assert front.command(COMPARE_AND_WRITE, data_out=both).status == cdb.GOOD
            assert manage(front, ABORT_TASK, id=501) == FAILURE
            client.call(LunRemoveRequest(0, 0), Done)
        hung.go_on()
        front.wait_command(first)


def test_what_waits_for_a_disk_that_is_removed_is_not_done_on_its_successor(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    """A COMPARE AND WRITE to the old disk wrote to the new one; the new one's commands waited behind it."""
    image = run_dir / "new.img"
    image.write_bytes(bytes(1 << 20))
    successor = LunSpec(0, 0, disk(image))
    with served(run_dir, engine, hung) as (target, front):
        hung.hang("read")
        first = front.send_command(VERIFY)
        second = front.send_command(COMPARE_AND_WRITE, data_out=bytes(BLOCK) + b"n" * BLOCK)
        wait_until(lambda: hung.waiting == 1, "the VERIFY to hang")
        with target.control() as client:
            with pytest.raises(TimedOutError, match="do not end"):
                client.call(LunRemoveRequest(target=0, lun=0), Done)
            client.add_lun(successor)
        while front.command(cdb.TEST_UNIT_READY).status:
            pass
        check_served(front, 0)
        hung.go_on()
        assert front.wait_command(second).sense_key == (5, 0x25, 0), "there is no such unit any more"
        assert front.wait_command(first).status == cdb.GOOD
        assert image.read_bytes()[:BLOCK] == bytes(BLOCK)


def test_a_disk_that_hangs_while_it_is_added_holds_up_no_other(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    """Whoever asked for the state of the target waited for it, and so did its end."""
    with served(run_dir, engine, hung) as (target, front), fuse_disk(run_dir / "late") as late:
        late.hang("read")
        adding = threading.Thread(target=add, args=(target, LunSpec(0, 2, disk(late.path))), daemon=True)
        adding.start()
        wait_until(lambda: late.waiting == 1, "the new disk to hang")
        with target.control() as client:
            client.add_lun(LunSpec(0, 1, BackstoreSpec(SpecKind.RAM, size_bytes=1 << 20)))
        while front.command(cdb.TEST_UNIT_READY, lun=1).status:
            pass
        check_served(front, 1)
        assert len(target.info().luns) == 2
        late.go_on()
        adding.join()
        assert len(target.info().luns) == 3


def add(target: ServedTarget, spec: LunSpec) -> None:
    with target.control() as client:
        client.add_lun(spec)


def disk(path: Path) -> BackstoreSpec:
    return BackstoreSpec(SpecKind.PATH, str(path))


def test_a_blk_disk_that_hangs_stops_in_time_and_is_served_again(
    run_dir: Path, engine: IoEngine, hung: FuseDisk
) -> None:
    with ServedTarget(run_dir, "--device", "blk", "--io-engine", engine.value, hung.path) as target:
        with BlkFrontEnd(target.socket).open() as front:
            hung.hang("read")
            front.send_request(0, data_in=BLOCK)
            wait_until(lambda: hung.waiting == 1, "the read to hang")
            assert target.info().connected
        hung.go_on()
        with BlkFrontEnd(target.socket).open() as following:
            assert following.read(0, BLOCK).status == 0
