"""Requests that hang in the kernel or wait for a range: stops, aborts and memory do not wait for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ringway import _core
from ringway.model import IoEngine
from ringway.target.scsi_device import ScsiDevice
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S, wait_until

from .. import cdb
from ..bare import BareTarget
from ..conftest import Serve
from ..disks import SIZE, MakeDisk
from ..requests import read, send_read, send_write, wait, write
from .seams import ABORTED, BUSY, DEVICES, HELD, IOERR, PAGE, RESET, check_others_pass, in_flight, locked

ABORT_TASK, LOGICAL_UNIT_RESET, QUERY_TASK = 0, 5, 6
FUNCTION_COMPLETE, FUNCTION_SUCCEEDED = 0, 10


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
        beside = bare.core.lock_range(0, 0, 0, 8192, timeout_s=PATIENCE_S)
        assert beside is not None
        bare.core.unlock_range(0, 0, beside)
        assert not bare.core.drain(timeout_s=0.05)
        assert bare.core.drain(cancel=True)
        assert wait(front, stuck)[0] == IOERR
        assert bare.core.lock_range(0, 0, 0, 3 * PAGE, timeout_s=PATIENCE_S) is not None


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
        assert bare.core.set_memory([], timeout_s=PATIENCE_S)
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
            assert bare.core.set_memory([], timeout_s=PATIENCE_S)
        assert bare.core.drain()
        assert not held.chain.done
        assert next(iter(bare.luns)).backstore.store.read(HELD.start, PAGE) == b"o" * PAGE
