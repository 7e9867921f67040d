"""What a hostile guest writes into a ring stops that ring, by name, and nothing else.

One target serves all of a device's cases, one guest after the other: it must be the same process at the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from ringway.testing.frontend import BlkFrontEnd, GuestMemory, ScsiFrontEnd, lun_address
from ringway.testing.ring import INDIRECT, NEXT, WRITE, Ring
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import wait_until

from .. import cdb
from ..conftest import uring_is_allowed
from ..disks import MIB

Front = BlkFrontEnd | ScsiFrontEnd
Attack = Callable[[Front, Ring], object]

QUEUES: Final = 2
RING: Final = 16
OUTSIDE: Final = 1 << 40  #: no guest memory there


@pytest.fixture(scope="module", params=["uring", "epoll"])
def engine_name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "uring" and not uring_is_allowed():
        pytest.skip("this host forbids io_uring")
    return name


@pytest.fixture(scope="module", params=["blk", "scsi"])
def target(request: pytest.FixtureRequest, engine_name: str) -> Iterator[ServedTarget]:
    """A target that every case of its kind attacks."""
    with TemporaryDirectory(prefix="rw-") as folder:
        arguments = ["--device", request.param, "--io-engine", engine_name, "--queues", str(QUEUES)]
        with ServedTarget(Path(folder), *arguments, "ram:4M") as served:
            first = served.pid
            yield served
            assert served.pid == first
            assert served.stop() == 0


def guest(target: ServedTarget, **more: object) -> Front:
    """A front end whose rings have room for :data:`RING` descriptors."""
    if target.info().device == "blk":
        return BlkFrontEnd(target.socket, queues=QUEUES, queue_size=RING, **more).open()  # type: ignore[arg-type]
    front = ScsiFrontEnd(target.socket, request_queues=QUEUES, queue_size=RING, **more).open()
    while front.command(cdb.TEST_UNIT_READY).status:
        pass
    return front


def check_served(front: Front, queue: int) -> None:
    """A queue reads and writes."""
    data = os.urandom(512)
    if isinstance(front, BlkFrontEnd):
        assert front.write(8, data, queue=queue).status == 0
        assert front.read(8, 512, queue=queue).data == data
    else:
        assert front.command(cdb.write(8, 1), data_out=data, queue=queue).status == cdb.GOOD
        assert front.command(cdb.read(8, 1), data_in=512, queue=queue).data == data


def first_request_ring(front: Front) -> int:
    return 0 if isinstance(front, BlkFrontEnd) else 2


def room(front: Front, size: int = 4096) -> int:
    """Zeroed guest memory."""
    address = front.memory.allocate(size, align=4096)
    front.memory.write(address, bytes(size))
    return address


def offer(ring: Ring, *descriptors: tuple[int, int, int, int], head: int = 0) -> None:
    """Write descriptors (address, size, flags, next) from slot 0 on, and make ``head`` available."""
    for slot, descriptor in enumerate(descriptors):
        ring.write_descriptor(slot, *descriptor)
    ring.push(head)
    ring.kick(force=True)


def table(front: Front, *entries: tuple[int, int, int, int]) -> int:
    """An indirect table in guest memory."""
    address = room(front)
    front.memory.write(address, b"".join(struct.pack("<QIHH", *entry) for entry in entries))
    return address


def loop_of_two(front: Front, ring: Ring) -> None:
    page = room(front)
    offer(ring, (page, 16, NEXT, 1), (page, 16, NEXT, 0))


def loop_of_one(front: Front, ring: Ring) -> None:
    offer(ring, (room(front), 16, NEXT | WRITE, 0))


def next_outside(front: Front, ring: Ring) -> None:
    offer(ring, (room(front), 16, NEXT, RING))


def head_outside(_: Front, ring: Ring) -> None:
    offer(ring, head=0xFFFF)


def index_jump(_: Front, ring: Ring) -> None:
    ring.publish((ring.used_index + RING + 1) & 0xFFFF)
    ring.kick(force=True)


def index_back(_: Front, ring: Ring) -> None:
    ring.publish((ring.used_index - 1) & 0xFFFF)
    ring.kick(force=True)


def outside_of_memory(front: Front, ring: Ring) -> None:
    offer(ring, (OUTSIDE, 16, NEXT, 1), (room(front), 512, WRITE, 0))


def beyond_the_end(front: Front, ring: Ring) -> None:
    end = front.memory.pieces[0].end
    offer(ring, (end - 8, 16, NEXT, 1), (room(front), 512, WRITE, 0))


def wraps_around(front: Front, ring: Ring) -> None:
    offer(ring, (room(front), 64, NEXT, 1), ((1 << 64) - 8, 4096, WRITE, 0))


def enormous(front: Front, ring: Ring) -> None:
    offer(ring, (room(front), 64, NEXT, 1), (room(front), 0xFFFF_FFFF, WRITE, 0))


def readable_behind_writable(front: Front, ring: Ring) -> None:
    page = room(front)
    offer(ring, (page, 512, NEXT | WRITE, 1), (page, 64, 0, 0))


def nested_table(front: Front, ring: Ring) -> None:
    inner = table(front, (room(front), 64, 0, 0))
    outer = table(front, (inner, 16, INDIRECT, 0))
    offer(ring, (outer, 16, INDIRECT, 0))


def chained_table(front: Front, ring: Ring) -> None:
    inner = table(front, (room(front), 64, 0, 0))
    offer(ring, (inner, 16, INDIRECT | NEXT, 1), (room(front), 512, WRITE, 0))


def crooked_table(front: Front, ring: Ring) -> None:
    offer(ring, (table(front, (room(front), 64, 0, 0)), 24, INDIRECT, 0))


def empty_table(front: Front, ring: Ring) -> None:
    offer(ring, (room(front), 0, INDIRECT, 0))


def huge_table(front: Front, ring: Ring) -> None:
    offer(ring, (room(front), 16 * 4096, INDIRECT, 0))


def table_outside(_: Front, ring: Ring) -> None:
    offer(ring, (OUTSIDE, 32, INDIRECT, 0))


def table_over_the_end(front: Front, ring: Ring) -> None:
    offer(ring, (front.memory.pieces[0].end - 16, 32, INDIRECT, 0))


def table_with_a_next_outside(front: Front, ring: Ring) -> None:
    offer(ring, (table(front, (room(front), 64, NEXT, 2), (0, 0, 0, 0)), 32, INDIRECT, 0))


def table_that_loops(front: Front, ring: Ring) -> None:
    page = room(front)
    offer(ring, (table(front, (page, 64, NEXT, 1), (page, 64, NEXT, 0)), 32, INDIRECT, 0))


ATTACKS: Final[dict[str, tuple[Attack, str]]] = {
    "a chain that loops": (loop_of_two, "the chain at head 0 loops"),
    "a descriptor that follows itself": (loop_of_one, "the chain at head 0 loops"),
    "a next index outside of the table": (next_outside, f"descriptor index {RING} is outside"),
    "a head outside of the table": (head_outside, "descriptor index 65535 is outside"),
    "an index that jumps ahead": (index_jump, f"available index jumped by {RING + 1}"),
    "an index that goes back": (index_back, "available index jumped by 65535"),
    "an address outside of memory": (outside_of_memory, "guest address 0x10000000000 are outside"),
    "a buffer beyond memory's end": (beyond_the_end, "16 bytes at guest address .* are outside"),
    "a buffer that wraps around": (wraps_around, "4096 bytes at guest address .* are outside"),
    "a buffer of 4 GiB": (enormous, "4294967295 bytes at guest address .* are outside"),
    "a readable buffer behind a writable one": (readable_behind_writable, "a readable descriptor follows"),
    "a table in a table": (nested_table, "malformed indirect table"),
    "a table that goes on": (chained_table, "malformed indirect table"),
    "a table and a half": (crooked_table, "malformed indirect table"),
    "an empty table": (empty_table, "malformed indirect table"),
    "a table of 4096 entries": (huge_table, "malformed indirect table"),
    "a table outside of memory": (table_outside, "guest address 0x10000000000 are outside"),
    "a table over memory's end": (table_over_the_end, "malformed indirect table"),
    "a next index outside of an indirect table": (table_with_a_next_outside, "descriptor index 2 is outside"),
    "an indirect table that loops": (table_that_loops, "loops"),
}


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS)
def test_a_broken_ring_is_stopped_alone_and_named(target: ServedTarget, attack: Attack, message: str) -> None:
    target.forget_log()
    with guest(target) as front:
        index = first_request_ring(front)
        ring = front.rings[index]
        check_served(front, 0)
        before = ring.used_index
        attack(front, ring)
        assert wait_error(ring, front.timeout_s), "the err eventfd was not signalled"
        target.wait_message(f"ring {index} is broken: .*{message}")
        check_served(front, 1)
        assert not target.statistics().queues[index].running
        assert ring.used_index == before, "a chain that makes no sense was completed"
        assert front.get_vring_base(index) == before
    with guest(target) as following:
        check_served(following, 0)


def wait_error(ring: Ring, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(ring.err_fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def test_a_broken_ring_is_served_again_after_a_reset(target: ServedTarget) -> None:
    """The guest's next driver starts from scratch, on the same connection."""
    with guest(target) as front:
        index = first_request_ring(front)
        loop_of_two(front, front.rings[index])
        assert wait_error(front.rings[index], front.timeout_s)
        front.reset()
        front.start()
        while isinstance(front, ScsiFrontEnd) and front.command(cdb.TEST_UNIT_READY).status:
            pass
        check_served(front, 0)
        check_served(front, 1)


# Requests that make no sense in rings that do


def complete(front: Front, ring: Ring, *descriptors: tuple[int, int, int, int]) -> int:
    """Run a hand-made chain. :returns: how many bytes the target says it wrote."""
    before = ring.used_index
    offer(ring, *descriptors)
    wait_until(lambda: ring.used_index != before, "the chain")
    entry = ring.used + 4 + 8 * (before % RING)
    head, length = front.memory.load(struct.Struct("<II"), entry)
    assert (head, (ring.used_index - before) & 0xFFFF) == (0, 1)
    return length


def header_of(front: Front) -> bytes:
    """A request's header that reads block 0."""
    if isinstance(front, BlkFrontEnd):
        return bytes(16)
    return lun_address(0, 0) + bytes(11) + cdb.read(0, 1).ljust(32, b"\0")


def test_requests_without_room_for_an_answer_are_given_back_untouched(target: ServedTarget) -> None:
    with guest(target) as front:
        ring, page = front.rings[first_request_ring(front)], room(front)
        header = header_of(front)
        front.memory.write(page, header)
        answer = page + 2048
        assert complete(front, ring, (page, len(header), 0, 0)) == 0
        assert complete(front, ring, (page, len(header), NEXT, 1), (answer, 0, WRITE, 0)) == 0
        if isinstance(front, ScsiFrontEnd):
            for size in (1, 107):
                chain = ((page, len(header), NEXT, 1), (answer, size, WRITE, 0))
                assert complete(front, ring, *chain) == 0
        assert front.memory.read(answer, 512) == bytes(512)
    with guest(target) as following:
        check_served(following, 0)


def test_requests_without_a_whole_header_fail(target: ServedTarget) -> None:
    with guest(target) as front:
        ring, page = front.rings[first_request_ring(front)], room(front)
        header = header_of(front)
        front.memory.write(page, header)
        answer = page + 2048
        blk = isinstance(front, BlkFrontEnd)
        where, failed = (answer, 1) if blk else (answer + 11, 9)  # IOERR, FAILURE
        for size in (0, 1, len(header) - 1):
            front.memory.write(answer, b"\xee" * 108)
            chain = ((page, size, NEXT, 1), (answer, 1 if blk else 108, WRITE, 0))
            assert complete(front, ring, *chain) == (1 if blk else 108)
            assert front.memory.read(where, 1) == bytes([failed])
        assert complete(front, ring, (answer, 1 if blk else 108, WRITE, 0)) == (1 if blk else 108)
        assert front.memory.read(where, 1) == bytes([failed])
    with guest(target) as following:
        check_served(following, 0)


def test_empty_descriptors_between_others_count_for_nothing(target: ServedTarget) -> None:
    with guest(target) as front:
        ring, page = front.rings[first_request_ring(front)], room(front, 8192)
        header, answer = header_of(front), page + 4096
        front.memory.write(page, header)
        blk = isinstance(front, BlkFrontEnd)
        sizes = [0, 512, 0, 1] if blk else [0, 108, 0, 512]
        at, descriptors = answer, [(page, 0, NEXT, 1), (page, len(header), NEXT, 2), (page, 0, NEXT, 3)]
        for number, size in enumerate(sizes):
            last = number == len(sizes) - 1
            descriptors.append((at, size, WRITE if last else WRITE | NEXT, 0 if last else 4 + number))
            at += size
        assert complete(front, ring, *descriptors) == sum(sizes)
        status = answer + (512 if blk else 11)
        assert front.memory.read(status, 1) == b"\0"


def test_the_control_and_event_queues_are_no_softer(target: ServedTarget) -> None:
    if target.info().device == "blk":
        return  # it has neither
    target.forget_log()
    with guest(target) as front:
        assert isinstance(front, ScsiFrontEnd)
        for request in (b"", b"\0", bytes(3), bytes(23), b"\xff" * 24, b"\xff" * 4096):
            assert front.control(request, 1)[0] in (3, 9, 11, 12), request[:4]
        control, page = front.rings[0], room(front)
        assert complete(front, control, (page, 24, 0, 0)) == 0
        loop_of_two(front, control)
        assert wait_error(control, front.timeout_s)
        target.wait_message("ring 0 is broken: .*loops")
        check_served(front, 0)
        check_served(front, 1)


def test_guest_memory_that_shrinks_is_one_rings_trouble(target: ServedTarget) -> None:
    """Its pages raise SIGBUS; the target and its other guests-to-be do not feel it."""
    memory = GuestMemory((4 * MIB, MIB))
    with guest(target, memory=memory) as front:
        ring, page = front.rings[first_request_ring(front)], room(front)
        lost = memory.pieces[1]
        os.ftruncate(lost.fd, 4096)
        header = header_of(front)
        front.memory.write(page, header)
        where = lost.region.guest_address + 65536
        blk = isinstance(front, BlkFrontEnd)
        data, answer = (where, 512), (page + 2048, 1 if blk else 108)
        parts = (data, answer) if blk else (answer, data)
        chain = [(page, len(header), NEXT, 1), (*parts[0], NEXT | WRITE, 2), (*parts[1], WRITE, 0)]
        front.memory.write(page + 2048, b"\xee" * 108)
        complete(front, ring, *chain)
        status = front.memory.read(page + 2048 + (0 if blk else 10), 1)
        assert status != b"\0", "data that cannot be there was reported as read"
        assert target.alive
        assert os.fstat(lost.fd).st_size == 4096
    with guest(target) as following:
        check_served(following, 0)


def test_a_storm_of_kicks_for_nothing_keeps_nobody_from_being_served(target: ServedTarget) -> None:
    with guest(target) as front:
        ring = front.rings[first_request_ring(front)]
        for _ in range(20):
            for _ in range(500):
                os.eventfd_write(ring.kick_fd, 1)
            check_served(front, 1)
        check_served(front, 0)


def fill(eventfd: int) -> None:
    """Fill an eventfd, and let it block: a write to it would wait for a reader, and there is none.

    One that was filled before may be empty by now, or a worker may still be about to write to it.
    """
    os.set_blocking(eventfd, False)
    filled = False
    while not filled:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(eventfd)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(eventfd, 2**64 - 2)
            filled = True
    os.set_blocking(eventfd, True)


def test_an_err_eventfd_that_is_never_read_stops_nobody(target: ServedTarget) -> None:
    target.forget_log()
    with guest(target) as front:
        index = first_request_ring(front)
        fill(front.rings[index].err_fd)
        front.set_vring_err(index)
        front.get_features()  # it knows by now
        loop_of_two(front, front.rings[index])
        target.wait_message(f"ring {index} is broken")
        check_served(front, 1)
    with guest(target) as following:
        check_served(following, 0)


def test_a_call_eventfd_that_is_never_read_stops_nobody(target: ServedTarget) -> None:
    """SPDK's initiator never reads it, and a hostile one fills it."""
    with guest(target) as front:
        index = first_request_ring(front)
        ring, page = front.rings[index], room(front)
        fill(ring.call_fd)
        front.set_vring_call(index)
        front.get_features()  # it knows by now: whether an eventfd blocks is looked at once
        header = header_of(front)
        front.memory.write(page, header)
        answer = 1 if isinstance(front, BlkFrontEnd) else 108
        for _ in range(3):
            complete(front, ring, (page, len(header), NEXT, 1), (page + 2048, answer, WRITE, 0))
        check_served(front, 1)
    with guest(target) as following:
        check_served(following, 0)


def test_a_call_eventfd_that_is_filled_under_a_worker_holds_it_up_for_a_moment(target: ServedTarget) -> None:
    """It does not block when it is given, and so nobody looks before it is written: the worker waited for
    ever, with all queues of its own.
    """
    with guest(target) as front:
        index = first_request_ring(front)
        ring, page = front.rings[index], room(front)
        header = header_of(front)
        front.memory.write(page, header)
        answer = 1 if isinstance(front, BlkFrontEnd) else 108
        for _ in range(3):
            fill(ring.call_fd)
            complete(front, ring, (page, len(header), NEXT, 1), (page + 2048, answer, WRITE, 0))
            check_served(front, 1)
        fill(ring.call_fd)
        offer(ring, (page, len(header), NEXT, 1), (page + 2048, answer, WRITE, 0))
    with guest(target) as following:
        check_served(following, 0)
