"""Requests that a worker holds while the world around them changes. Each test names what went wrong once."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

import pytest

from ringway import _core
from ringway.testing.memory import GuestMemory, Piece
from ringway.testing.ring import Buffer, Ring
from ringway.testing.waiting import PATIENCE_S

MIB: Final = 1 << 20
VERSION_1: Final = 1 << 32
INDIRECT: Final = 1 << 28
HEADER, RESPONSE = 51, 108
TEST_UNIT_READY: Final = bytes(6)
UNKNOWN: Final = b"\xc0"  # no hot command: Python is always asked
QUEUE: Final = 2


def header(cdb: bytes, id: int = 1, lun: int = 0) -> bytes:
    address = struct.pack(">BBHI", 1, 0, 0x4000 | lun, 0)
    return struct.pack("<8sQBBB32s", address, id, 0, 0, 0, cdb)


def read10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, blocks, 0)


def region(piece: Piece) -> _core.Region:
    shared = piece.region
    return _core.Region(
        piece.fd,
        guest_address=shared.guest_address,
        size_bytes=shared.size,
        user_address=shared.user_address,
        mmap_offset=shared.mmap_offset,
    )


class Bench:
    """A scsi core in this process with one request ring, two regions, and a ram disk of 1 MiB.

    Rings lie in the first region; ``data`` is where the second one begins.
    """

    def __init__(self) -> None:
        self.memory = GuestMemory((16 * MIB, 16 * MIB))
        self.rings, self.buffers = (region(piece) for piece in self.memory.pieces)
        self.data = self.memory.pieces[1].region.guest_address
        self.core = _core.Device("scsi", queues=3)
        self.core.set_features(VERSION_1 | INDIRECT)
        self.core.set_memory([self.rings, self.buffers])
        self.store = _core.Store.ram(MIB)
        self.core.set_lun(0, 0, self.store, block_size=512)
        self.ring = self.start(Ring(self.memory, 64, indirect=True))

    def close(self) -> None:
        self.core.close()
        self.memory.close()

    def start(self, ring: Ring, call_fd: int | None = None) -> Ring:
        self.core.start_queue(
            QUEUE,
            size=ring.size,
            descriptors=self.memory.user(ring.descriptors),
            available=self.memory.user(ring.available),
            used=self.memory.user(ring.used),
            base=0,
            kick_fd=ring.kick_fd,
            call_fd=call_fd if call_fd is not None else ring.call_fd,
        )
        self.core.enable_queue(QUEUE, True)
        return ring

    def submit(self, cdb: bytes, *, id: int = 1, lun: int = 0, data_out: int = 0, data_in: int = 0) -> None:
        """The header at ``data``, the response a page on, the payload a MiB on: two pages a LUN."""
        at = self.data + 8192 * lun
        self.memory.write(at, header(cdb, id, lun))
        payload = self.data + MIB
        readable = [Buffer(at, HEADER, False)]
        if data_out:
            readable.append(Buffer(payload, data_out, False))
        writable = [Buffer(at + 4096, RESPONSE, True)]
        if data_in:
            writable.append(Buffer(payload, data_in, True))
        self.ring.add_buffers([*readable, *writable])
        self.ring.kick(force=True)

    def next_command(self) -> _core.Command:
        command = self.core.next_command(PATIENCE_S)
        assert command is not None
        return command

    def response(self) -> int:
        return self.memory.read(self.data + 4096 + 11, 1)[0]

    def drained(self) -> None:
        assert self.core.drain(timeout_s=PATIENCE_S)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_memory_that_was_taken_away_stays_mapped_for_a_request_that_is_held(bench: Bench) -> None:
    """Once it was unmapped under the second hold of the request, and the process died of SIGSEGV."""
    bench.store.write(0, b"\xa5" * 512)
    bench.core.set_gate(0, 0, _core.GATE_ATTENTION)
    bench.submit(read10(0, 1), data_in=512)
    command = bench.next_command()
    assert not bench.core.set_memory([bench.rings], timeout_s=0.05), "a request still uses the region"
    bench.core.resume(command.tag)
    bench.drained()
    assert bench.core.set_memory([bench.rings], timeout_s=PATIENCE_S)
    assert bench.memory.read(bench.data + MIB, 512) == b"\xa5" * 512


def test_what_runs_is_what_was_judged(bench: Bench) -> None:
    """Once the guest could write another CDB into the header between Python's judgement and the resume."""
    bench.core.set_gate(0, 0, _core.GATE_ATTENTION)
    bench.memory.write(bench.data + MIB, b"X" * 512)
    bench.submit(TEST_UNIT_READY, data_out=512)
    command = bench.next_command()
    assert command.cdb[0] == 0
    bench.memory.write(bench.data, header(write10(0, 1)))
    bench.core.resume(command.tag)
    bench.drained()
    assert bench.store.read(0, 512) == bytes(512)


def test_a_guest_cannot_make_us_hold_its_data_without_end(bench: Bench) -> None:
    """Once 200 commands over one buffer of 4 MiB took 800 MiB. 64 MiB is what all of them get, those of one
    LUN a quarter of it.
    """
    luns, commands = range(5), 8
    for lun in luns[1:]:
        bench.core.set_lun(0, lun, bench.store, block_size=512)
    for lun in luns:
        for _ in range(commands):
            bench.submit(UNKNOWN, lun=lun, data_out=4 * MIB)
    held = [bench.next_command() for _ in range(16)]
    assert bench.core.next_command(0.2) is None, "the budget is spent"
    answer_all(bench, held, len(luns) * commands)
    assert bench.ring.used_index == len(luns) * commands


def answer_all(bench: Bench, held: list[_core.Command], commands: int) -> None:
    """Answer what is held, and what comes when there is room again."""
    for _ in range(commands):
        if not held:
            held.append(bench.next_command())
        command = held.pop(0)
        bench.core.complete(command.tag, response=0)
        del command
    bench.drained()


def test_a_lun_whose_commands_hang_leaves_room_for_those_of_another(bench: Bench) -> None:
    """Once 16 commands of 4 MiB that hung on one disk held up each MODE SELECT to any other."""
    bench.core.set_lun(0, 1, bench.store, block_size=512)
    for _ in range(20):
        bench.submit(UNKNOWN, data_out=4 * MIB)
    held = [bench.next_command() for _ in range(4)]
    assert bench.core.next_command(0.2) is None, "the share is spent"
    bench.submit(UNKNOWN, lun=1, data_out=24)
    other = bench.next_command()
    assert (other.lun, other.data_out_size) == (header(b"", lun=1)[:8], 24)
    bench.core.complete(other.tag, response=0)
    answer_all(bench, held, 20)


def test_cancelling_reaches_a_request_that_waits_for_a_range_lock(bench: Bench) -> None:
    """Once ABORT TASK waited for nothing, and the write ran after the guest had given it up."""
    lock = bench.core.lock_range(0, 0, 0, 4096)
    assert lock is not None
    bench.memory.write(bench.data + MIB, b"X" * 512)
    bench.submit(write10(0, 1), id=77, data_out=512)
    while bench.core.drain(timeout_s=0):
        pass
    assert bench.core.drain(target=0, lun=0, id=77, cancel=True, timeout_s=PATIENCE_S)
    bench.core.unlock_range(0, 0, lock)
    bench.drained()
    assert (bench.response(), bench.ring.used_index) == (2, 1)
    assert bench.store.read(0, 512) == bytes(512)


def test_completions_of_a_ring_that_lost_its_memory_reach_no_other_ring(bench: Bench) -> None:
    """Once they were put on the ring that was started in its place."""
    for _ in range(5):
        bench.submit(UNKNOWN)
    commands = [bench.next_command() for _ in range(5)]
    bench.core.set_memory([bench.buffers], timeout_s=0.05)
    notice = bench.next_command()
    assert notice.kind == "broken"
    assert "memory was taken away" in notice.failure
    bench.core.set_memory([bench.rings, bench.buffers], timeout_s=PATIENCE_S)
    other = bench.start(Ring(bench.memory, 8))
    for command in commands:
        bench.core.complete(command.tag, response=0)
    bench.drained()
    assert other.used_index == 0
    (row,) = (row for row in bench.core.statistics()["queues"] if row["queue"] == QUEUE)
    assert row["in_flight"] == 0


def test_a_chain_that_is_too_large_stops_the_ring(bench: Bench) -> None:
    """Once a thousand descriptors over one buffer kept a worker copying for minutes."""
    payload = Buffer(bench.data + MIB, 8 * MIB, True)
    bench.memory.write(bench.data, header(read10(0, 1)))
    readable, response = Buffer(bench.data, HEADER, False), Buffer(bench.data + 4096, RESPONSE, True)
    bench.ring.add_buffers([readable, response, *[payload] * 9])
    bench.ring.kick(force=True)
    notice = bench.next_command()
    assert (notice.kind, notice.queue) == ("broken", QUEUE)
    assert "larger than 64 MiB" in notice.failure


def test_a_call_eventfd_that_is_full_and_blocks_holds_nobody_up(bench: Bench) -> None:
    """Once the worker slept in write(2) for ever."""
    bench.core.stop_queue(QUEUE)
    call = os.eventfd(0)
    os.eventfd_write(call, 2**64 - 2)
    ring = Ring(bench.memory, 8)
    bench.start(ring, call_fd=call)
    bench.core.stop_queue(QUEUE)
    os.close(call)


def test_requests_of_a_dead_back_end_run_before_the_ring_is_handed_on() -> None:
    """Once GET_VRING_BASE of a ring that was recovered and never enabled forgot them."""
    entries, held = 64, (0, 1, 2)
    size = _core.inflight_size(1, entries)
    fd = os.memfd_create("inflight")
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as marks:
        struct.pack_into("<QHHHH", marks, 0, 0, 1, entries, 0, 0)
        for order, head in enumerate(held):
            struct.pack_into("<B5xHQ", marks, 16 + 16 * head, 1, 0, order)
    memory = GuestMemory((MIB,))
    core = _core.Device("blk", queues=1)
    core.set_features(VERSION_1 | INDIRECT)
    core.set_memory([region(memory.pieces[0])])
    store = _core.Store.ram(MIB)
    core.set_lun(0, 0, store, block_size=512)
    ring = Ring(memory, entries, indirect=True)
    for sector in range(3):
        ring.add([struct.pack("<IIQ", 1, 0, sector), bytes([sector + 1]) * 512], [1])
    region_of_marks = _core.InflightRegion(fd, mmap_offset=0, size_bytes=size, queues=1, queue_size=entries)
    core.start_queue(
        0,
        size=entries,
        descriptors=memory.user(ring.descriptors),
        available=memory.user(ring.available),
        used=memory.user(ring.used),
        base=0,
        kick_fd=ring.kick_fd,
        call_fd=ring.call_fd,
        inflight=region_of_marks,
    )
    assert core.stop_queue(0) == 3
    assert ring.used_index == 3
    assert store.read(0, 1536) == b"".join(bytes([value]) * 512 for value in (1, 2, 3))
    core.close()
    memory.close()
    os.close(fd)


def replace_disk(bench: Bench) -> _core.Store:
    """Remove LUN 0:0, and let another disk come to its address."""
    assert bench.core.remove_lun(0, 0, timeout_s=PATIENCE_S)
    other = _core.Store.ram(MIB)
    bench.core.set_lun(0, 0, other, block_size=512)
    return other


def test_a_write_that_waited_is_not_for_another_disk_at_its_address(bench: Bench) -> None:
    """Once it was tried again on whatever LUN was there by then."""
    instance = bench.core.lun_instance(0, 0)
    assert bench.core.lock_range(0, 0, 0, 4096) is not None
    bench.memory.write(bench.data + MIB, b"X" * 512)
    bench.submit(write10(0, 1), data_out=512)
    while bench.core.drain(timeout_s=0):
        pass
    other = replace_disk(bench)
    command = bench.next_command()
    assert command.cdb[0] == 0x2A, "Python is asked what to answer"
    assert command.instance == instance != bench.core.lun_instance(0, 0)
    bench.core.complete(command.tag, response=3)
    while bench.ring.used_index == 0:
        pass
    assert (bench.store.read(0, 512), other.read(0, 512)) == (bytes(512), bytes(512))


def test_a_write_that_python_sends_back_is_not_for_another_disk_at_its_address(bench: Bench) -> None:
    bench.core.set_gate(0, 0, _core.GATE_ATTENTION)
    bench.memory.write(bench.data + MIB, b"X" * 512)
    bench.submit(write10(0, 1), data_out=512)
    command = bench.next_command()
    other = replace_disk(bench)
    bench.core.resume(command.tag)
    again = bench.next_command()
    assert again.instance == command.instance != bench.core.lun_instance(0, 0)
    bench.core.complete(again.tag, response=3)
    while bench.ring.used_index == 0:
        pass
    assert other.read(0, 512) == bytes(512)


def test_a_lun_that_is_gone_opens_no_gate_of_the_next_one(bench: Bench) -> None:
    """Once what became of a reservation on one disk decided who could write to another."""
    gone = bench.core.lun_instance(0, 0)
    replace_disk(bench)
    bench.core.set_gate(0, 0, _core.GATE_NO_WRITE)
    with pytest.raises(KeyError):
        bench.core.set_gate(0, 0, 0, instance=gone)
    with pytest.raises(KeyError):
        bench.core.lock_range(0, 0, 0, 512, instance=gone)
    bench.submit(write10(0, 1), data_out=512)
    assert bench.next_command().instance == bench.core.lun_instance(0, 0), "the gate is closed"


def test_a_swap_of_the_store_keeps_the_lun(bench: Bench) -> None:
    before = bench.core.lun_instance(0, 0)
    bench.core.set_lun(0, 0, _core.Store.ram(2 * MIB), block_size=512)
    assert bench.core.lun_instance(0, 0) == before
