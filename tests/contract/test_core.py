"""The seams of the core, with the test as its slow path: swapped stores, ranges that are held, gates."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ringway import _core
from ringway.model import IoEngine
from ringway.target.backstore import open_backstore
from ringway.target.scsi_device import ScsiDevice
from ringway.testing.frontend import BlkFrontEnd, Framing, ScsiFrontEnd
from ringway.vhost_user.messages import Request as Message

from . import cdb
from .bare import BareTarget
from .conftest import Serve
from .disks import MIB, SIZE, Disk, MakeDisk
from .loads import Load, wait_until
from .requests import Front, read, send_read, send_write, wait, write

DEVICES = ["blk", "scsi"]
USED = MIB  #: bytes of the disk that loads use
T10_PI = 1 << 3
ABORTED, BAD_TARGET, RESET, BUSY, FAILURE = 2, 3, 4, 5, 9
IOERR = 1
ABORT_TASK, LOGICAL_UNIT_RESET, QUERY_TASK = 0, 5, 6
FUNCTION_COMPLETE, FUNCTION_SUCCEEDED = 0, 10
HELD = range(4 * MIB, 4 * MIB + 65536)  #: the bytes that tests lock
PAGE = 4096


@contextmanager
def another_store(disk: Disk) -> Iterator[_core.Store]:
    """The same file, opened once more."""
    backstore = open_backstore(disk.spec, claim=False)
    try:
        yield backstore.store
    finally:
        backstore.close()


@contextmanager
def locked(bare: BareTarget, *, reads: bool = True) -> Iterator[None]:
    """Hold :data:`HELD`."""
    handle = bare.core.lock_range(0, 0, HELD.start, len(HELD), reads=reads)
    assert handle is not None
    try:
        yield
    finally:
        bare.core.unlock_range(0, 0, handle)


def check_others_pass(front: Front, **more: Any) -> None:
    """Requests elsewhere are done, whatever came before them in the queue."""
    for number in range(20):
        write(front, 0, bytes([number]) * PAGE, **more)
        assert read(front, 0, **more) == bytes([number]) * PAGE


def in_flight(bare: BareTarget) -> int:
    rows: list[dict[str, Any]] = bare.core.statistics()["queues"]
    return sum(row["in_flight"] for row in rows)


def lun_figures(bare: BareTarget, name: str) -> int:
    rows: list[dict[str, Any]] = bare.core.statistics()["luns"]
    return sum(row[name] for row in rows)


# A store that is swapped between two requests


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["mapped", "cached", "direct"])
def test_a_store_is_swapped_under_a_load(serve: Serve, disk_of: MakeDisk, device: str, store: str) -> None:
    disk = disk_of(store)
    bare = serve.bare(device, disk, queues=2, workers=2)
    with bare.front_end(2) as front:
        with Load(front, size_bytes=USED) as load:
            for _ in range(20):
                load.wait_progress(50)
                with another_store(disk) as other:
                    assert bare.core.set_lun(0, 0, other, block_size=512)
            load.wait_progress(50)
        # Its figures are those of the LUN, not of one of its stores.
        assert lun_figures(bare, "reads") + lun_figures(bare, "writes") > 20 * 50


@pytest.mark.parametrize("store", ["cached", "direct"])
def test_what_runs_apart_finds_its_file_after_a_swap(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    """Flushes and fallocates begin on a thread of the kernel's, maybe after the store has left the LUN."""
    disk = disk_of(store)
    bare = serve.bare("blk", disk)
    zeroes = struct.pack("<QII", 64, 64, 0)
    with bare.front_end() as front:
        assert isinstance(front, BlkFrontEnd)
        for number in range(100):
            write(front, number * PAGE, b"x" * PAGE)
            sent = [front.send_request(4, kick=False) for _ in range(8)]
            sent += [front.send_request(13, data_out=zeroes, kick=False) for _ in range(8)]
            front.rings[0].kick()
            with another_store(disk) as other:
                bare.core.set_lun(0, 0, other, block_size=512)
            assert [front.wait_request(request).status for request in sent] == [0] * len(sent)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "cached", "direct"])
def test_a_copy_takes_the_place_of_its_original_under_a_load(
    serve: Serve, disk_of: MakeDisk, device: str, store: str
) -> None:
    """What a mirror does at its end: hold everything back, bring the copy up to date, swap, let go.

    What was held back must go to the copy: the original is spoiled behind everybody's back.
    """
    bare = serve.bare(device, disk_of(store), queues=2, workers=2)
    original = next(iter(bare.luns)).backstore.store
    with bare.front_end(2) as front, Load(front, size_bytes=USED) as load:
        for _ in range(5):
            load.wait_progress(100)
            copy = _core.Store.ram(SIZE)
            handle = bare.core.lock_range(0, 0, 0, SIZE)
            assert handle is not None
            copy.write(0, original.read(0, USED))
            swapped = bare.core.set_lun(0, 0, copy, block_size=512, timeout_s=1)
            original.write(0, b"\xdb" * USED)
            bare.core.unlock_range(0, 0, handle)
            assert swapped, "a request that is held back uses no store, and yet held up the swap"
            original = copy
        load.wait_progress(100)


def test_what_is_held_back_from_a_lun_that_goes_away_is_told_so(serve: Serve, disk_of: MakeDisk) -> None:
    bare = serve.bare("scsi", disk_of("cached"))
    with bare.front_end() as front:
        with locked(bare):
            held = send_write(front, HELD.start, b"x" * 512)
            check_others_pass(front)
            bare.core.remove_lun(0, 0, timeout_s=0.1)
            command = bare.next_command()
            assert (command.kind, command.cdb[0], command.failure) == ("cdb", 0x2A, "")
            bare.core.complete(command.tag, response=BAD_TARGET)
            assert wait(front, held)[0] == BAD_TARGET
            bare.core.set_lun(0, 0, _core.Store.ram(SIZE), block_size=512)
        assert read(front, HELD.start) == bytes(PAGE)


# Ranges that are held


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "mapped", "cached", "direct"])
@pytest.mark.parametrize("reads", [True, False], ids=["reads too", "writes alone"])
def test_a_lock_holds_back_what_meets_its_range_and_nothing_else(
    serve: Serve, disk_of: MakeDisk, device: str, store: str, reads: bool
) -> None:
    bare = serve.bare(device, disk_of(store))
    around = range(HELD.start - PAGE, HELD.stop + PAGE)
    meeting = (HELD.start, HELD.start + 8 * PAGE, HELD.stop - PAGE)
    with bare.front_end() as front:
        write(front, around.start, b"o" * len(around))
        with locked(bare, reads=reads):
            for outside in (HELD.start - PAGE, HELD.stop):
                write(front, outside, b"n" * PAGE)
                assert read(front, outside) == b"n" * PAGE
            looks = [send_read(front, at) for at in meeting]
            if not reads:
                assert [wait(front, look) for look in looks] == [(0, b"o" * PAGE)] * 3
            writes = [send_write(front, at, b"w" * PAGE) for at in meeting]
            across = send_write(front, HELD.start - PAGE, b"a" * PAGE + b"w" * PAGE)
            check_others_pass(front)
            held = [*writes, across, *(looks if reads else ())]
            assert not any(request.chain.done for request in held)
            assert in_flight(bare) == len(held)
            assert read(front, HELD.stop) == b"n" * PAGE
        assert all(wait(front, request)[0] == 0 for request in held)
        assert read(front, HELD.start - PAGE, 2 * PAGE) == b"a" * PAGE + b"w" * PAGE
        assert read(front, HELD.stop - PAGE, 2 * PAGE) == b"w" * PAGE + b"n" * PAGE
        assert in_flight(bare) == 0


@pytest.mark.parametrize("store", ["ram", "cached"])
def test_zeroing_and_filling_are_writes_to_a_lock(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    bare = serve.bare("scsi", disk_of(store))
    lba = HELD.start // 512
    listed = cdb.unmap_list((0, 8), (lba, 8))
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        write(front, HELD.start, b"o" * PAGE)
        with locked(bare, reads=False):
            held = [
                front.send_command(cdb.unmap(listed), data_out=listed),
                front.send_command(cdb.write_same(lba - 1, 2), data_out=b"x" * 512),
                front.send_command(cdb.write_same(lba, 1), data_out=bytes(512)),
                front.send_command(cdb.write_same(lba, 1, no_data=True)),
            ]
            check_others_pass(front)
            assert not any(request.chain.done for request in held)
            assert read(front, HELD.start) == b"o" * PAGE
        assert [front.wait_command(request).status for request in held] == [0] * 4


def test_locks_exclude_each_other_where_they_meet(serve: Serve, disk_of: MakeDisk) -> None:
    core = serve.bare("blk", disk_of("ram")).core
    first = core.lock_range(0, 0, 0, 100)
    assert first is not None
    assert core.lock_range(0, 0, 99, 1, timeout_s=0.01) is None
    beside = core.lock_range(0, 0, 100, 100, timeout_s=0.01)
    assert beside is not None
    core.unlock_range(0, 0, first)
    again = core.lock_range(0, 0, 50, 50, timeout_s=0.01)
    assert again is not None
    for handle in (beside, again):
        core.unlock_range(0, 0, handle)
    with pytest.raises(KeyError):
        core.lock_range(0, 1, 0, 100)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "mapped", "cached", "direct"])
def test_locks_come_and_go_under_a_load(serve: Serve, disk_of: MakeDisk, device: str, store: str) -> None:
    """What is read under a lock does not change while it is held: nobody writes there."""
    disk = disk_of(store)
    bare = serve.bare(device, disk, queues=2, workers=2)
    medium = next(iter(bare.luns)).backstore.store
    with bare.front_end(2) as front, Load(front, size_bytes=USED) as load:
        for number in range(50):
            load.wait_progress(20)
            start, length = number * PAGE % USED, 16 * PAGE
            handle = bare.core.lock_range(0, 0, start, length, reads=bool(number % 2))
            assert handle is not None
            before = medium.read(start, length)
            assert all(medium.read(start, length) == before for _ in range(5))
            bare.core.unlock_range(0, 0, handle)
        load.wait_progress(20)


# Requests that hang in the kernel


class Hanging:
    """A store whose reads wait in the kernel until it is fed: a pipe, which io_uring reads like a file."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.store = _core.Store.file(self._reader, size_bytes=SIZE, writable=False)

    def feed(self, data: bytes) -> None:
        assert os.write(self._writer, data) == len(data)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def hanging(engine: IoEngine) -> Iterator[Hanging]:
    """A store that hangs: a pipe, which io_uring reads whatever the offset; preadv2 refuses."""
    if engine is IoEngine.EPOLL:
        pytest.skip("preadv2 reads no pipe; test_stores_that_hang has a file that hangs")
    store = Hanging()
    yield store
    store.close()


@pytest.mark.parametrize("device", DEVICES)
def test_a_ring_whose_requests_hang_is_stopped_in_time(
    serve: Serve, disk_of: MakeDisk, hanging: Hanging, device: str
) -> None:
    """Trap T9: GET_VRING_BASE waits, but not for ever: BUSY or IOERR is what the guest gets then."""
    bare = serve.bare(device, disk_of("ram"), queues=2)
    with bare.front_end(2) as front:
        write(front, 0, b"x" * PAGE)
        bare.core.set_lun(0, 0, hanging.store, block_size=512)
        stuck = [send_read(front, 0, queue=1) for _ in range(3)]
        wait_until(lambda: in_flight(bare) == 3, "the requests to be in flight")
        ring = front.rings[-1]
        assert front.get_vring_base(len(front.rings) - 1) == ring.used_index == 3
        assert [wait(front, request)[0] for request in stuck] == [IOERR if device == "blk" else BUSY] * 3
        bare.core.set_lun(0, 0, _core.Store.ram(SIZE), block_size=512)
        assert read(front, 0, queue=0) == bytes(PAGE)


@pytest.mark.parametrize("device", DEVICES)
def test_requests_that_wait_for_a_lock_do_not_hold_up_a_stop_for_ever(
    serve: Serve, disk_of: MakeDisk, device: str
) -> None:
    """Trap T9, for both engines; the lock is nobody's any more when a ring is gone."""
    bare = serve.bare(device, disk_of("cached"), queues=2)
    with bare.front_end(2) as front:
        index = len(front.rings) - 1
        with locked(bare):
            held = [send_write(front, HELD.start, b"w" * PAGE, queue=1) for _ in range(3)]
            check_others_pass(front, queue=0)
            wait_until(lambda: in_flight(bare) == 3, "the requests to be in flight")
            assert bare.core.stop_queue(index, timeout_s=0.05) == 3
            assert [wait(front, request)[0] for request in held] == [IOERR if device == "blk" else BUSY] * 3
            check_others_pass(front, queue=0)
        assert read(front, HELD.start, queue=0) == bytes(PAGE), "a write that failed was done after all"


def test_a_task_that_hangs_is_aborted_before_the_function_answers(
    serve: Serve, disk_of: MakeDisk, hanging: Hanging
) -> None:
    bare = serve.bare("scsi", disk_of("ram"))
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        bare.core.set_lun(0, 0, hanging.store, block_size=512)
        one, two, three = (
            front.send_command(cdb.read(0, 8), data_in=PAGE, id=number) for number in (501, 502, 503)
        )
        wait_until(lambda: in_flight(bare) == 3, "the requests to be in flight")
        assert manage(bare, front, QUERY_TASK, 502) == FUNCTION_SUCCEEDED
        assert manage(bare, front, ABORT_TASK, 502) == FUNCTION_COMPLETE
        assert two.chain.done or front.wait_command(two).response == ABORTED
        assert front.wait_command(two).response == ABORTED
        assert manage(bare, front, QUERY_TASK, 502) == FUNCTION_COMPLETE
        assert (one.chain.done, three.chain.done) == (False, False)
        assert manage(bare, front, LOGICAL_UNIT_RESET) == FUNCTION_COMPLETE
        assert [front.wait_command(each).response for each in (one, three)] == [RESET] * 2


def manage(bare: BareTarget, front: ScsiFrontEnd, function: int, id: int = 0) -> int:
    """Run a task management function; the slow path is this thread's."""
    request = b"\0" * 4 + function.to_bytes(4, "little") + bytes([1, 0, 0x40, 0]) + bytes(4)
    ring = front.rings[0]
    chain = ring.submit([request + id.to_bytes(8, "little")], [1])
    assert isinstance(bare.face, ScsiDevice)
    bare.face.handle(bare.next_command())
    return ring.wait(chain, front.timeout_s).data[0]


def test_a_lock_waits_for_what_is_in_flight_in_its_range(
    serve: Serve, disk_of: MakeDisk, hanging: Hanging
) -> None:
    bare = serve.bare("blk", disk_of("ram"))
    with bare.front_end() as front:
        bare.core.set_lun(0, 0, hanging.store, block_size=512)
        stuck = send_read(front, 8192)
        wait_until(lambda: in_flight(bare) == 1, "the request to be in flight")
        assert bare.core.lock_range(0, 0, 0, 3 * PAGE, timeout_s=0.05) is None
        beside = bare.core.lock_range(0, 0, 0, 8192, timeout_s=5)
        assert beside is not None
        bare.core.unlock_range(0, 0, beside)
        assert not bare.core.drain(timeout_s=0.05)
        assert bare.core.drain(cancel=True)
        assert wait(front, stuck)[0] == IOERR
        assert bare.core.lock_range(0, 0, 0, 3 * PAGE, timeout_s=5) is not None


@pytest.mark.parametrize("device", DEVICES)
def test_memory_that_is_taken_away_stays_mapped_for_who_still_uses_it(
    serve: Serve, disk_of: MakeDisk, hanging: Hanging, device: str
) -> None:
    """The kernel writes its data after the region was removed: to nobody's harm."""
    bare = serve.bare(device, disk_of("ram"))
    with bare.front_end() as front:
        bare.core.set_lun(0, 0, hanging.store, block_size=512)
        stuck = send_read(front, 0)
        wait_until(lambda: in_flight(bare) == 1, "the request to be in flight")
        assert not bare.core.set_memory([], timeout_s=0.05)
        notices = [bare.next_command() for _ in front.rings]
        assert [(each.kind, each.queue) for each in notices] == [("broken", n) for n in range(len(notices))]
        assert all("memory was taken away under it" in each.failure for each in notices)
        hanging.feed(b"d" * PAGE)
        assert bare.core.set_memory([], timeout_s=20)
        assert b"d" * PAGE in [front.memory.read(each.address, each.size) for each in stuck.chain.buffers]
        assert front.rings[-1].collect() == [], "a ring that is gone was written to"


@pytest.mark.parametrize("device", DEVICES)
def test_what_waits_for_a_lock_goes_with_its_memory(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """It has not begun, and nobody can be told of its end any more."""
    bare = serve.bare(device, disk_of("cached"))
    with bare.front_end() as front:
        write(front, HELD.start, b"o" * PAGE)
        with locked(bare):
            held = send_write(front, HELD.start, b"w" * PAGE)
            check_others_pass(front)
            assert bare.core.set_memory([], timeout_s=5)
        assert bare.core.drain()
        assert not held.chain.done
        assert next(iter(bare.luns)).backstore.store.read(HELD.start, PAGE) == b"o" * PAGE


# Rings


@pytest.mark.parametrize("device", DEVICES)
def test_a_head_that_is_made_available_twice_breaks_its_ring(
    serve: Serve, disk_of: MakeDisk, device: str
) -> None:
    bare = serve.bare(device, disk_of("cached"), queues=2)
    with bare.front_end(2) as front:
        ring = front.rings[-1]
        with locked(bare):
            held = send_write(front, HELD.start, b"w" * PAGE, queue=1)
            ring.push(held.chain.head)
            ring.kick(force=True)
            command = bare.next_command()
            assert (command.kind, command.queue) == ("broken", len(front.rings) - 1)
            assert command.failure == f"head {held.chain.head} was made available twice"
            check_others_pass(front, queue=0)
        assert wait(front, held)[0] == 0, "what was in flight before still finishes"


def test_a_tag_is_dead_once_its_ring_was_stopped(serve: Serve, disk_of: MakeDisk) -> None:
    bare = serve.bare("scsi", disk_of("ram"))
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        asked = front.send_command(cdb.inquiry(36), data_in=36)
        command = bare.next_command()
        assert bare.core.stop_queue(2, timeout_s=0.01) == 1
        assert front.wait_command(asked).response == BUSY
        bare.core.complete(command.tag, response=0, data=b"late")
        bare.core.resume(command.tag)
        front.bases = [ring.used_index for ring in front.rings]
        front.ask(Message.RESET_DEVICE)
        front.start()
        again = front.send_command(cdb.inquiry(36), data_in=36)
        command = bare.next_command()
        bare.core.complete(command.tag, response=0, data=b"in time")
        assert front.wait_command(again).data == b"in time"
        assert front.rings[2].collect() == []


# The gate

Asked = tuple[bytes, dict[str, Any]]  #: a CDB, and its data


def test_the_gate_sends_what_it_names_to_the_slow_path_and_nothing_else(
    serve: Serve, disk_of: MakeDisk
) -> None:
    bare = serve.bare("scsi", disk_of("cached"))
    listed = cdb.unmap_list((0, 1))
    reads: list[Asked] = [(cdb.read(0, 1, size=size), {"data_in": 512}) for size in (6, 10, 12, 16)]
    writes: list[Asked] = [(cdb.write(0, 1, size=size), {"data_out": b"w" * 512}) for size in (6, 10, 12, 16)]
    writes += [
        (cdb.write_same(0, 1, size=10), {"data_out": b"w" * 512}),
        (cdb.write_same(0, 1, size=16), {"data_out": bytes(512)}),
        (cdb.unmap(listed), {"data_out": listed}),
    ]
    others: list[Asked] = [(cdb.TEST_UNIT_READY, {}), (cdb.synchronize_cache(), {})]
    words: dict[int, list[Asked]] = {
        0: [],
        _core.GATE_NO_READ: reads,
        _core.GATE_NO_WRITE: writes,
        _core.GATE_NO_READ | _core.GATE_NO_WRITE: [*reads, *writes],
        _core.GATE_ATTENTION: [*reads, *writes, *others],
    }
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        for word, gated in words.items():
            bare.core.set_gate(0, 0, word)
            for command, data in (*reads, *writes, *others):
                sent = front.send_command(command, **data)
                if (command, data) in gated:
                    asked = bare.next_command()
                    assert (asked.kind, asked.failure) == ("cdb", "")
                    assert asked.cdb == command.ljust(32, b"\0")
                    assert asked.data_out == data.get("data_out", b"")
                    assert asked.data_in_size == data.get("data_in", 0)
                    assert not sent.chain.done
                    bare.core.resume(asked.tag)
                answer = front.wait_command(sent)
                assert (answer.response, answer.status, answer.residual) == (0, 0, 0), command.hex(" ")
            assert bare.core.next_command(0) is None


def test_a_command_that_failed_hot_is_not_run_again(serve: Serve, disk_of: MakeDisk) -> None:
    """It would fail the same way for ever."""
    bare = serve.bare("scsi", disk_of("ram"))
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        cases: list[tuple[bytes, dict[str, Any], str]] = [
            (cdb.read(SIZE // 512, 1), {"data_in": 512}, "range"),
            (cdb.read(0, 2), {"data_in": 512}, "overrun"),
            (cdb.write_same(0, 0), {"data_out": bytes(512)}, "field"),
            (cdb.unmap(b"\0" * 4), {"data_out": bytes(4)}, "parameter"),
        ]
        for command, data, failure in cases:
            sent = front.send_command(command, **data)
            asked = bare.next_command()
            assert asked.failure == failure
            bare.core.resume(asked.tag)
            assert front.wait_command(sent).response == FAILURE


def test_more_commands_for_python_than_it_can_queue_wait_their_turn(serve: Serve, disk_of: MakeDisk) -> None:
    """The ring to Python is bounded; what does not fit is parked, and every command is answered once."""
    count = 1500
    bare = serve.bare("scsi", disk_of("ram"), queues=2)
    with bare.front_end(2, queue_size=1024, indirect=True) as front:
        assert isinstance(front, ScsiFrontEnd)
        bare.core.set_gate(0, 0, _core.GATE_ATTENTION)
        sent = [
            front.send_command(cdb.TEST_UNIT_READY, queue=number % 2, framing=Framing(indirect=True))
            for number in range(count)
        ]
        wait_until(lambda: in_flight(bare) == count, "all commands to be taken")
        ids = set()
        for _ in range(count):
            command = bare.next_command()
            ids.add(command.id)
            bare.core.complete(command.tag, response=0)
        assert ids == {request.id for request in sent}
        assert [front.wait_command(request).response for request in sent] == [0] * count
        assert bare.core.next_command(0) is None


def test_next_command_waits_until_it_is_woken(serve: Serve, disk_of: MakeDisk) -> None:
    core = serve.bare("scsi", disk_of("ram")).core
    answers: list[_core.Command | None] = []
    waiter = threading.Thread(target=lambda: answers.append(core.next_command()), daemon=True)
    waiter.start()
    core.wake()
    waiter.join(20)
    assert answers == [None]
    assert core.next_command(0) is None


# The request header


@pytest.mark.parametrize("framing", [Framing(), Framing(joined=True), Framing(first=20)], ids=str)
def test_protection_information_makes_the_header_longer(
    serve: Serve, disk_of: MakeDisk, framing: Framing
) -> None:
    """T10_PI: 59 bytes, the two protection lengths before the CDB, as Linux and QEMU lay them out."""
    bare = serve.bare("scsi", disk_of("cached"))
    data = os.urandom(PAGE)
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        write(front, 0, b"o" * PAGE)
        bare.core.set_features(front.features | T10_PI)  # the target does not offer it yet
        front.features |= T10_PI
        write(front, 0, data, framing=framing)
        assert read(front, 0, framing=framing) == data
        sent = front.send_command(cdb.inquiry(36), data_in=36, framing=framing, id=0x1122)
        asked = bare.next_command()
        assert (asked.cdb, asked.id) == (cdb.inquiry(36).ljust(32, b"\0"), 0x1122)
        assert (asked.data_out_size, asked.data_in_size) == (0, 36)
        bare.core.complete(asked.tag, response=0, data=b"i" * 36)
        assert front.wait_command(sent).data == b"i" * 36
        bare.core.set_features(front.features & ~T10_PI)
        front.features &= ~T10_PI
        assert read(front, 0, framing=framing) == data


# The store by itself, as the slow path uses it


@pytest.mark.parametrize("store", ["ram", "mapped", "mapped on disk", "cached", "direct"])
def test_a_store_that_the_slow_path_writes_is_the_one_that_guests_read(
    serve: Serve, disk_of: MakeDisk, store: str
) -> None:
    bare = serve.bare("blk", disk_of(store))
    medium = next(iter(bare.luns)).backstore.store
    data = os.urandom(65536)
    with bare.front_end() as front:
        medium.write(PAGE, data, fua=True)
        assert read(front, PAGE, len(data)) == data
        write(front, 2 * PAGE, b"g" * PAGE)
        assert medium.read(2 * PAGE, PAGE) == b"g" * PAGE
        medium.zero(PAGE, PAGE)
        medium.zero(3 * PAGE, PAGE, unmap=True)
        medium.flush()
        pages = [bytes(PAGE), b"g" * PAGE, bytes(PAGE), data[3 * PAGE : 4 * PAGE]]
        assert read(front, PAGE, 4 * PAGE) == b"".join(pages)
        for offset, length in ((SIZE, 512), (SIZE - 512, 1024), (1 << 63, 512)):
            with pytest.raises(OSError, match="Invalid"):
                medium.read(offset, length)
            with pytest.raises(OSError, match="Invalid"):
                medium.write(offset, bytes(length))
        assert isinstance(front, BlkFrontEnd)
        assert front.read(SIZE // 512 - 8, 4096).data == bytes(4096)
