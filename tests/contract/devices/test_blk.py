"""A blk target over every store and engine: what a driver reads is what it wrote, however it asks."""

from __future__ import annotations

import os
import struct
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from ringway import _core
from ringway.model import Poll
from ringway.testing.frontend import BlkFrontEnd, Buffer, Framing, Ring
from ringway.testing.memory import Piece
from ringway.vhost_user.messages import BackendRequest, MemoryRegion

from ..conftest import Serve
from ..disks import FILES, MIB, SIZE, STORES, MakeDisk, is_stable
from ..loads import verify
from ..requests import settle

OK, IOERR, UNSUPP = 0, 1, 2
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
WRITEBACK = 32  #: offset in the configuration space
F_FLUSH = 1 << 9
VERSION_1 = 1 << 32
EVENT_IDX = 1 << 29

FRAMINGS = {
    "plain": Framing(),
    "joined header and data": Framing(joined=True),
    "a header over three descriptors": Framing(first=5, segment=7000),
    "many segments of 700": Framing(segment=700),
    "joined, of 1000": Framing(joined=True, segment=1000),
    "indirect": Framing(indirect=True),
    "indirect, of 512": Framing(indirect=True, segment=512),
}


def run_chain(
    front: BlkFrontEnd, kind: int, sector: int, pieces: list[tuple[int, int]], *, data: bytes = b""
) -> bytes:
    """Run a request over (address, size) pieces of memory that the caller chose.

    :param data: what is written. :returns: what is read.
    """
    memory, ring = front.memory, front.rings[0]
    header, status = memory.allocate(16), memory.allocate(1)
    memory.write(header, struct.pack("<IIQ", kind, 0, sector))
    ends = list(accumulate((size for _, size in pieces), initial=0))
    for (address, size), (start, end) in zip(pieces, pairwise(ends), strict=True):
        memory.write(address, data[start:end] if kind == OUT else b"\x5a" * size)
    body = [Buffer(address, size, kind == IN) for address, size in pieces]
    chain = ring.add_buffers([Buffer(header, 16, False), *body, Buffer(status, 1, True)])
    ring.kick()
    assert ring.wait(chain).data[-1] == OK
    assert chain.used_len == (ends[-1] + 1 if kind == IN else 1)
    return b"".join(memory.read(address, size) for address, size in pieces)


def drain_calls(ring: Ring) -> int:
    """:returns: how many interrupts wait in the call eventfd; none waits then."""
    try:
        return os.eventfd_read(ring.call_fd)
    except BlockingIOError:
        return 0


# Data


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_what_is_read_is_what_was_written(
    serve: Serve, disk_of: MakeDisk, store: str, framing: Framing
) -> None:
    path = serve("blk", disk_of(store), queues=2, workers=2)
    data = os.urandom(8192)
    with BlkFrontEnd(path, queues=2).open() as front:
        written = front.write(24, data, framing=framing)
        assert (written.status, written.used_len) == (OK, 1)
        read = front.read(24, len(data), queue=1, framing=framing)
        assert (read.status, read.used_len) == (OK, len(data) + 1)
        assert read.data == data
        around = front.read(16, 16384, framing=framing)
        assert around.data == bytes(4096) + data + bytes(4096)
        assert front.flush().status == OK


@pytest.mark.parametrize("store", FILES)
def test_the_bytes_lie_where_they_belong_in_the_file(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    disk = disk_of(store)
    data = os.urandom(4096)
    with BlkFrontEnd(serve("blk", disk)).open() as front:
        assert front.write(SIZE // 512 - 8, data).status == OK
        assert front.flush().status == OK
        assert disk.path.read_bytes() == bytes(SIZE - 4096) + data


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_random_load_on_four_queues_verifies(
    serve: Serve, disk_of: MakeDisk, store: str, event_idx: bool, block_size: int
) -> None:
    disk = disk_of(store, block_size=None if store == "direct" and block_size == 512 else block_size)
    path = serve("blk", disk, queues=4, workers=2)
    features = None if event_idx else VERSION_1 | F_FLUSH
    with BlkFrontEnd(path, queues=4, features=features, indirect=event_idx).open() as front:
        assert front.rings[0].event_idx is event_idx
        state = _core.Generations(4 * MIB // 4096)
        plan = {"size_bytes": 4 * MIB, "depth": 8, "requests": 3000, "flush_every": 500}
        report = verify(front.load_driver(), state, **plan)
        assert report["flushes"] == 6 + 1
        assert report["checked"] >= 1000  # the sweep, but for blocks that were never written


@pytest.mark.parametrize("store", STORES)
def test_buffers_at_odd_addresses(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    """O_DIRECT takes none of them as they are: they go through a buffer of the target's own."""
    data = os.urandom(3 * MIB)
    with BlkFrontEnd(serve("blk", disk_of(store))).open() as front:
        base = front.memory.allocate(4 * MIB)
        pieces = [(base + 1, 511), (base + 777, 5000), (base + 8192, 4096), (base + 20001, len(data) - 9607)]
        run_chain(front, OUT, 1024, pieces, data=data)
        assert run_chain(front, IN, 1024, pieces) == data
        assert front.read(1024, 65536).data == data[:65536]


class PatchedFrontEnd(BlkFrontEnd):
    """Shares its memory in hundreds of regions that touch: buffers run over from one into the next."""

    STEP = 0x8A00  #: bytes; no multiple of a page

    def share_memory(self) -> None:
        whole = self.memory.pieces[0]
        starts = [
            0,
            *range(2 * MIB, whole.region.size, self.STEP),
            whole.region.size,
        ]  # rings lie in the first
        for start, end in pairwise(starts):
            region = MemoryRegion(start, end - start, self.memory.user(start), start)
            self.add_mem_reg(Piece(whole.fd, whole.map, region))


@pytest.mark.parametrize("store", STORES)
def test_buffers_that_cross_into_the_next_region(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    """For the guest its regions are one piece of memory; for the target each is a mapping of its own."""
    data = os.urandom(3 * MIB)
    with PatchedFrontEnd(serve("blk", disk_of(store)), queue_size=64).open() as front:
        run_chain(front, OUT, 64, [(3 * MIB, len(data))], data=data)
        assert run_chain(front, IN, 64, [(9 * MIB + 512, len(data))]) == data
        state = _core.Generations(MIB // 4096)
        report = verify(front.load_driver(), state, size_bytes=MIB, depth=16, requests=1000)
        assert report["checked"] > 200


@pytest.mark.parametrize("store", STORES)
def test_a_request_of_a_megabyte_and_one_of_a_sector(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    data = os.urandom(MIB)
    with BlkFrontEnd(serve("blk", disk_of(store))).open() as front:
        sector = front.get_config(20, 4)
        step = int.from_bytes(sector, "little")
        assert front.write(8, data).status == OK
        assert front.read(8, MIB, framing=Framing(segment=16384)).data == data
        assert front.read(8, step).data == data[:step]


# Limits of what is served


@pytest.mark.parametrize("store", STORES)
def test_beyond_the_end_is_an_error_of_one_request(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    last = SIZE // 512 - 8
    with BlkFrontEnd(serve("blk", disk_of(store))).open() as front:
        assert front.read(last, 4096).status == OK
        for sector in (last + 8, last + 1 << 20, (1 << 64) // 512, (1 << 64) - 8):
            assert front.read(sector, 4096).status == IOERR
            assert front.write(sector, bytes(4096)).status == IOERR
            assert front.discard(sector, 8).status == IOERR
        assert front.read(last, 8192).status == IOERR
        assert front.write(last, bytes(4096)).status == OK


def test_an_error_does_not_claim_that_data_was_written(serve: Serve, disk_of: MakeDisk) -> None:
    """``used_len`` counts from the first byte: with the status alone behind untouched data it is 0."""
    with BlkFrontEnd(serve("blk", disk_of("ram"))).open() as front:
        failed = front.read(SIZE // 512, 4096)
        assert (failed.status, failed.data) == (IOERR, b"\x5a" * 4096)
        assert failed.used_len == 0


def test_a_read_only_disk_is_told_and_kept(serve: Serve, disk_of: MakeDisk) -> None:
    disk = disk_of("cached", readonly=True)
    with BlkFrontEnd(serve("blk", disk)).open() as front:
        assert front.features & 1 << 5
        assert front.write(0, b"x" * 512).status == IOERR
        assert front.discard(0, 8).status == IOERR
        assert front.write_zeroes(0, 8).status == IOERR
        assert front.read(0, 512).status == OK
    assert disk.path.read_bytes() == bytes(SIZE)


def test_unknown_requests_are_unsupported_and_the_queue_goes_on(serve: Serve, disk_of: MakeDisk) -> None:
    with BlkFrontEnd(serve("blk", disk_of("ram"))).open() as front:
        for kind in (2, 3, 5, 14, 0xFFFF_FFFF):
            answer = front.request(kind, data_in=512)
            assert (answer.status, answer.data) == (UNSUPP, b"\x5a" * 512)
        assert front.read(0, 512).status == OK


def test_blocks_of_4096_bytes_are_the_unit_of_requests(serve: Serve, disk_of: MakeDisk) -> None:
    with BlkFrontEnd(serve("blk", disk_of("cached", block_size=4096))).open() as front:
        assert int.from_bytes(front.get_config(20, 4), "little") == 4096
        assert front.capacity == SIZE // 512
        assert front.write(8, b"x" * 4096).status == OK
        assert front.read(8, 4096).data == b"x" * 4096
        assert front.read(9, 4096).status == IOERR
        assert front.read(8, 512).status == IOERR


# Zeroing


@pytest.mark.parametrize("store", STORES)
def test_discarded_and_zeroed_ranges_read_as_zeros(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    data = os.urandom(64 << 10)
    with BlkFrontEnd(serve("blk", disk_of(store))).open() as front:
        for kind, flags in ((DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)):
            assert front.write(128, data).status == OK
            assert front.request(kind, data_out=struct.pack("<QII", 136, 16, flags)).status == OK
            read = front.read(128, len(data)).data
            assert read == data[:4096] + bytes(8192) + data[12288:], (kind, flags)


@pytest.mark.parametrize("store", STORES)
def test_zeroing_keeps_its_neighbours_when_it_ends_inside_a_page(
    serve: Serve, disk_of: MakeDisk, store: str
) -> None:
    with BlkFrontEnd(serve("blk", disk_of(store))).open() as front:
        step = int.from_bytes(front.get_config(20, 4), "little") // 512
        data = os.urandom(32 << 10)
        for start, length in ((1, 1), (3, 17), (7, 2), (8, 9)):
            first, count = start * step, length * step
            assert front.write(0, data).status == OK
            assert front.write_zeroes(first, count, unmap=True).status == OK
            wanted = data[: first * 512] + bytes(count * 512) + data[(first + count) * 512 :]
            assert front.read(0, len(wanted[: 32 << 10])).data == wanted[: 32 << 10]


@pytest.mark.parametrize("store", FILES)
def test_a_discard_gives_space_back(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    disk = disk_of(store)
    with BlkFrontEnd(serve("blk", disk)).open() as front:
        assert front.features & 1 << 13
        assert front.write(0, os.urandom(4 * MIB)).status == OK
        assert front.flush().status == OK
        full = disk.path.stat().st_blocks
        assert front.discard(0, 4 * MIB // 512).status == OK
        assert front.flush().status == OK
        assert disk.path.stat().st_blocks <= full - 4 * MIB // 512


def test_several_ranges_in_one_request(serve: Serve, disk_of: MakeDisk) -> None:
    data = os.urandom(32 << 10)
    ranges = b"".join(struct.pack("<QII", sector, 8, 0) for sector in (0, 16, 48))
    with BlkFrontEnd(serve("blk", disk_of("cached"))).open() as front:
        assert front.write(0, data).status == OK
        assert front.request(DISCARD, data_out=ranges).status == OK
        pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        wanted = [bytes(4096) if number in (0, 2, 6) else page for number, page in enumerate(pages)]
        assert front.read(0, len(data)).data == b"".join(wanted)


def test_flags_of_ranges_are_looked_at(serve: Serve, disk_of: MakeDisk) -> None:
    """Spec: virtio 1.3, 5.2.6.2: unknown flags, and unmap in a discard, are unsupported."""
    with BlkFrontEnd(serve("blk", disk_of("ram"))).open() as front:
        assert front.write(0, b"x" * 4096).status == OK
        for kind, flags in ((DISCARD, 1), (DISCARD, 2), (WRITE_ZEROES, 2), (WRITE_ZEROES, 1 << 31)):
            answer = front.request(kind, data_out=struct.pack("<QII", 0, 8, flags))
            assert answer.status == UNSUPP, (kind, flags)
        for size in (0, 15, 17, 16 * 257):
            assert front.request(DISCARD, data_out=bytes(size)).status == IOERR, size
        assert front.read(0, 4096).data == b"x" * 4096


# Stable storage


def needs_delayed_allocation(path: Path) -> None:
    """Skip where the file system does not let a dirty page be told from a clean one."""
    probe = path.with_name("probe")
    probe.write_bytes(b"x" * 4096)
    if is_stable(probe, 0, 4096):
        pytest.skip("the file system of /var/tmp chooses blocks at once: dirty pages do not show")


def test_a_flush_makes_what_was_written_stable(serve: Serve, disk_of: MakeDisk) -> None:
    disk = disk_of("cached")
    needs_delayed_allocation(disk.path)
    with BlkFrontEnd(serve("blk", disk)).open() as front:
        assert front.write(0, b"x" * 65536).status == OK
        assert front.flush().status == OK
        assert is_stable(disk.path, 0, 65536)


def test_without_a_write_cache_every_write_is_stable(serve: Serve, disk_of: MakeDisk) -> None:
    """The driver switches the cache off in the configuration space. Spec: virtio 1.3, 5.2.6.2."""
    disk = disk_of("cached")
    needs_delayed_allocation(disk.path)
    with BlkFrontEnd(serve("blk", disk)).open() as front:
        assert front.get_config(WRITEBACK, 1) == b"\1"
        front.set_config(WRITEBACK, b"\0")
        assert front.get_config(WRITEBACK, 1) == b"\0"
        assert front.write(0, b"x" * 65536).status == OK
        assert is_stable(disk.path, 0, 65536)


def test_a_driver_that_cannot_flush_has_no_write_cache(serve: Serve, disk_of: MakeDisk) -> None:
    disk = disk_of("cached")
    needs_delayed_allocation(disk.path)
    with BlkFrontEnd(serve("blk", disk), features=VERSION_1 | EVENT_IDX).open() as front:
        assert not front.features & F_FLUSH
        assert front.write(0, b"x" * 65536).status == OK
        assert is_stable(disk.path, 0, 65536)


def test_the_rest_of_the_configuration_space_is_not_writable(serve: Serve, disk_of: MakeDisk) -> None:
    with BlkFrontEnd(serve("blk", disk_of("ram"))).open() as front:
        before = front.get_config(0, 60)
        front.set_config(0, bytes(8), need_reply=False)
        front.set_config(WRITEBACK, b"\2", need_reply=False)
        assert front.get_config(0, 60) == before
        assert front.read(0, 512).status == OK


# Identity and size


def test_get_id_is_the_serial_number(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("blk", disk_of("ram"))
    (lun,) = serve.target.info().luns
    with BlkFrontEnd(path).open() as front:
        whole = front.request(GET_ID, data_in=20)
        assert (whole.status, whole.used_len) == (OK, 21)
        assert whole.data == lun.serial.encode().ljust(20, b"\0")
        short = front.request(GET_ID, data_in=7)
        assert (short.status, short.data) == (OK, lun.serial.encode()[:7])


@pytest.mark.parametrize("store", FILES)
def test_a_resize_is_told_and_the_new_blocks_are_served(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    disk = disk_of(store)
    path = serve("blk", disk)
    with BlkFrontEnd(path).open() as front:
        assert front.read(SIZE // 512, 4096).status == IOERR
        os.truncate(disk.path, 2 * SIZE)
        serve.target.resize_lun(0, 0)
        assert front.wait_notice() is BackendRequest.CONFIG_CHANGE_MSG
        assert front.capacity == 2 * SIZE // 512
        assert front.write(2 * SIZE // 512 - 8, b"x" * 4096).status == OK
        assert front.read(2 * SIZE // 512 - 8, 4096).data == b"x" * 4096
        os.truncate(disk.path, SIZE)
        serve.target.resize_lun(0, 0)
        assert front.wait_notice() is BackendRequest.CONFIG_CHANGE_MSG
        assert front.capacity == SIZE // 512
        assert front.read(SIZE // 512, 4096).status == IOERR


@pytest.mark.parametrize("store", ["mapped", "mapped on disk", "cached"])
def test_a_file_that_shrinks_costs_requests_and_not_the_target(
    serve: Serve, disk_of: MakeDisk, store: str
) -> None:
    """Mapped pages behind a file's end raise SIGBUS: that is one request's error."""
    disk = disk_of(store)
    with BlkFrontEnd(serve("blk", disk)).open() as front:
        assert front.write(0, b"x" * 4096).status == OK
        os.truncate(disk.path, 4096)
        assert front.read(1024, 4096).status == IOERR
        os.truncate(disk.path, SIZE)
        serve.target.info()


# Notification


def test_interrupts_come_when_they_are_asked_for_and_only_then(serve: Serve, disk_of: MakeDisk) -> None:
    """EVENT_IDX: ``used_event`` says at which completion. Spec: virtio 1.3, 2.7.7."""
    with BlkFrontEnd(serve("blk", disk_of("cached"))).open() as front:
        ring = front.rings[0]
        assert front.read(0, 4096).status == OK  # the first one after a start always comes
        settle(front)  # and may come after its answer is seen
        used_event = ring.available + 4 + 2 * ring.size
        front.memory.write(used_event, (ring.used_index + 3).to_bytes(2, "little"))
        drain_calls(ring)
        for _ in range(3):
            poll_one(front)
        front.stop()  # what was to be signalled is signalled now
        assert drain_calls(ring) == 0
        front.start()
        assert front.read(0, 4096).status == OK
        settle(front)
        seen = ring.used_index
        front.memory.write(used_event, (seen + 1).to_bytes(2, "little"))
        drain_calls(ring)
        for _ in range(3):
            poll_one(front)
        front.stop()
        assert drain_calls(ring) == 1


def poll_one(front: BlkFrontEnd) -> None:
    """Read a block without asking for an interrupt."""
    ring = front.rings[0]
    request = front.send_request(IN, 0, data_in=4096)
    while not request.chain.done:
        ring.collect()
        os.sched_yield()
    assert request.chain.data[-1] == OK


def test_without_event_idx_a_flag_suppresses_interrupts(serve: Serve, disk_of: MakeDisk) -> None:
    with BlkFrontEnd(serve("blk", disk_of("cached")), features=VERSION_1 | F_FLUSH).open() as front:
        ring = front.rings[0]
        assert front.read(0, 4096).status == OK
        settle(front)
        drain_calls(ring)
        ring.set_interrupts(False)
        for _ in range(3):
            poll_one(front)
        front.stop()
        assert drain_calls(ring) == 0
        ring.set_interrupts(True)
        front.start()
        drain_calls(ring)
        poll_one(front)
        front.stop()
        assert drain_calls(ring) == 1


@pytest.mark.parametrize("poll", ["interrupt", "adaptive", "poll"])
def test_no_kick_is_lost_however_a_worker_waits(serve: Serve, disk_of: MakeDisk, poll: str) -> None:
    with BlkFrontEnd(serve("blk", disk_of("cached"), poll=Poll(poll))).open() as front:
        for _ in range(300):
            assert front.read(0, 4096).status == OK


def test_every_queue_runs_on_its_own(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("blk", disk_of("cached"), queues=8, workers=3)
    with BlkFrontEnd(path, queues=8).open() as front:
        for queue in range(8):
            assert front.write(64 * queue, bytes([queue]) * 4096, queue=queue).status == OK
        for queue in range(8):
            assert front.read(64 * queue, 4096, queue=7 - queue).data == bytes([queue]) * 4096
        assert [row.requests for row in serve.target.statistics().queues] == [2] * 8
