"""READ CAPACITY, VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, over blocks that are really there."""

from __future__ import annotations

import errno
import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.scsi import Delivery, Geometry, Reply, Status
from ringway.scsi.block import CHUNK_BYTES, first_difference
from ringway.scsi.reply import RESUME
from ringway.scsi.vpd import MAX_TRANSFER_BYTES

from .fake import Bench, MemoryStore, information_of, pointer_of, sense_of

MISCOMPARE = (0xE, 0x1D, 0)
OUT_OF_RANGE = (5, 0x21, 0)
READ_ERROR = (3, 0x11, 0)
WRITE_ERROR = (3, 0x0C, 0)
NO_SPACE = (7, 0x27, 7)

VERIFY = {10: 0x2F, 12: 0xAF, 16: 0x8F}
WRITE_AND_VERIFY = {10: 0x2E, 12: 0xAE, 16: 0x8E}
BYTCHK = 1
SIZES = (10, 12, 16)


def cdb(opcode: int, lba: int, blocks: int, *, bytchk: int = 0, flags: int = 0) -> bytes:
    """A CDB of the three long forms, which differ in where they keep the numbers."""
    head = bytes((opcode, bytchk << 1 | flags))
    match opcode >> 5:
        case 0b001:
            return head + lba.to_bytes(4) + b"\0" + blocks.to_bytes(2) + b"\0"
        case 0b101:
            return head + lba.to_bytes(4) + blocks.to_bytes(4) + bytes(2)
        case _:
            return head + lba.to_bytes(8) + blocks.to_bytes(4) + bytes(2)


def compare_and_write(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return bytes((0x89, fua << 3)) + lba.to_bytes(8) + bytes((0, 0, 0, blocks, 0, 0))


def patterned(size: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


@pytest.fixture
def written(bench: Bench) -> Bench:
    """The disk with a pattern on it."""
    bench.store.content[:] = patterned(len(bench.store.content))
    return bench


# READ CAPACITY


@pytest.mark.parametrize(
    ("size", "geometry", "exponent"),
    [(1 << 20, Geometry(512, 4096), 3), (1 << 20, Geometry(512, 512), 0), (1 << 20, Geometry(4096, 4096), 0)],
)
def test_read_capacity(size: int, geometry: Geometry, exponent: int) -> None:
    bench = Bench(MemoryStore(size), geometry)
    block = geometry.block_bytes
    last = size // block - 1
    assert bench.data("25") == last.to_bytes(4) + block.to_bytes(4)
    data = bench.data("9e 10 0000000000000000 000000ff 00 00")
    assert data == last.to_bytes(8) + block.to_bytes(4) + bytes((0, exponent, 0xC0, 0)) + bytes(16)
    assert bench.data("9e 10 0000000000000000 0000000c 00 00") == data[:12]


def test_read_capacity_10_of_a_disk_that_is_too_large() -> None:
    bench = Bench()
    bench.store.size_bytes = 3 << 40
    assert bench.data("25") == b"\xff\xff\xff\xff" + (512).to_bytes(4)


def test_read_capacity_takes_no_address(bench: Bench) -> None:
    assert bench.sense("25 00 00000001 0000 00 00") == (5, 0x24, 0)


# VERIFY


@pytest.mark.parametrize("size", SIZES)
def test_verify_without_data_reads_the_medium(written: Bench, size: int) -> None:
    assert written.data(cdb(VERIFY[size], 5, 20)) == b""
    assert written.store.reads == [20 * 512]


@pytest.mark.parametrize("size", SIZES)
def test_verify_compares(written: Bench, size: int) -> None:
    expected = bytearray(written.store.content[5 * 512 : 25 * 512])
    assert written.data(cdb(VERIFY[size], 5, 20, bytchk=BYTCHK), bytes(expected)) == b""
    expected[7777] ^= 1
    reply = written.reply(cdb(VERIFY[size], 5, 20, bytchk=BYTCHK), bytes(expected))
    assert (sense_of(reply), information_of(reply)) == (MISCOMPARE, 7777)


@pytest.mark.parametrize("size", SIZES)
def test_verify_compares_one_block_with_each(bench: Bench, size: int) -> None:
    block = patterned(512)
    bench.store.content[512 * 3 : 512 * 9] = block * 6
    assert bench.data(cdb(VERIFY[size], 3, 6, bytchk=3), block) == b""
    reply = bench.reply(cdb(VERIFY[size], 3, 7, bytchk=3), block)
    assert (sense_of(reply), information_of(reply)) == (MISCOMPARE, 6 * 512 + 1)


def test_verify_refuses_the_reserved_bytchk(bench: Bench) -> None:
    assert pointer_of(bench.reply(cdb(0x2F, 0, 1, bytchk=2), bytes(512))) == (1, 2, True)


def test_verify_reads_in_chunks() -> None:
    bench = Bench(MemoryStore(3 * CHUNK_BYTES))
    bench.store.content[:] = content = patterned(3 * CHUNK_BYTES)
    blocks = (2 * CHUNK_BYTES) // 512 + 1
    assert bench.data(cdb(0x8F, 1, blocks, bytchk=1), content[512 : 512 + blocks * 512]) == b""
    assert bench.store.reads == [CHUNK_BYTES, CHUNK_BYTES, 512]


@pytest.mark.parametrize("bytchk", [1, 3])
def test_a_difference_in_a_later_chunk_is_found_where_it_is(bytchk: int) -> None:
    bench = Bench(MemoryStore(3 * CHUNK_BYTES))
    bench.store.content[2 * CHUNK_BYTES + 9] = 1
    data = bytes(3 * CHUNK_BYTES if bytchk == 1 else 512)
    assert information_of(bench.reply(cdb(0x8F, 0, 3 * CHUNK_BYTES // 512, bytchk=bytchk), data)) == (
        2 * CHUNK_BYTES + 9
    )


def test_verify_of_no_blocks(bench: Bench) -> None:
    assert bench.data(cdb(0x2F, 2048, 0, bytchk=1)) == b""
    assert bench.sense(cdb(0x2F, 2049, 0)) == OUT_OF_RANGE


@pytest.mark.parametrize(
    ("opcode", "field"),
    [(VERIFY[10], 7), (VERIFY[12], 6), (VERIFY[16], 10), (0x2E, 7), (0xAE, 6), (0x8E, 10)],
)
@pytest.mark.parametrize("bytchk", [0, 1])
def test_more_than_the_maximum_transfer_length_is_refused_before_it_is_read(
    opcode: int, field: int, bytchk: int
) -> None:
    """One VERIFY of a whole disk, without data, kept all other commands waiting for minutes."""
    bench, most = Bench(MemoryStore(2 * MAX_TRANSFER_BYTES)), MAX_TRANSFER_BYTES // 512
    reply = bench.reply(cdb(opcode, 0, most + 1, bytchk=bytchk), data_out_size=2 * MAX_TRANSFER_BYTES)
    assert (sense_of(reply), pointer_of(reply)) == ((5, 0x24, 0), (field, None, True))
    assert bench.store.calls == []


def test_the_maximum_transfer_length_itself_is_verified() -> None:
    bench = Bench(MemoryStore(2 * MAX_TRANSFER_BYTES))
    assert bench.data(cdb(0x8F, 1, MAX_TRANSFER_BYTES // 512)) == b""
    assert sum(bench.store.reads) == MAX_TRANSFER_BYTES


@pytest.mark.parametrize(("lba", "blocks"), [(2048, 1), (2047, 2), (0, 2049), (0xFFFFFFFF, 1)])
@pytest.mark.parametrize("opcode", [*VERIFY.values(), *WRITE_AND_VERIFY.values()])
def test_beyond_the_end(bench: Bench, opcode: int, lba: int, blocks: int) -> None:
    assert bench.sense(cdb(opcode, lba, blocks), bytes(512)) == OUT_OF_RANGE


@pytest.mark.parametrize("opcode", [*VERIFY.values(), *WRITE_AND_VERIFY.values(), 0x89])
def test_protection_information_is_refused(bench: Bench, opcode: int) -> None:
    assert pointer_of(bench.reply(cdb(opcode, 0, 1, flags=0x20), bytes(512))) == (1, 5, True)


def test_a_read_error(bench: Bench) -> None:
    bench.store.fail_with["read"] = errno.EIO
    assert bench.sense(cdb(0x2F, 0, 1)) == READ_ERROR
    assert bench.sense(cdb(0x2E, 0, 1), bytes(512)) == READ_ERROR
    assert bench.sense(compare_and_write(0, 1), bytes(1024)) == READ_ERROR


def test_data_that_is_not_there(bench: Bench) -> None:
    """A buffer too small is an overrun; data that the slow path does not carry is refused."""
    for command in (cdb(0x2F, 0, 4, bytchk=1), cdb(0x2E, 0, 4), compare_and_write(0, 2)):
        assert bench.reply(command, bytes(2047)) == Reply(delivery=Delivery.OVERRUN)
        assert bench.sense(command, bytes(2047), data_out_size=2048) == (5, 0x24, 0)
    assert "write" not in bench.store.calls


# WRITE AND VERIFY


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bytchk", [0, 1])
def test_write_and_verify(bench: Bench, size: int, bytchk: int) -> None:
    data = patterned(3 * 512)
    assert bench.data(cdb(WRITE_AND_VERIFY[size], 7, 3, bytchk=bytchk), data) == b""
    assert bench.store.content[7 * 512 : 10 * 512] == data
    assert bench.store.calls == ["write+fua", "read"]
    assert bench.host.locked == [(7 * 512, 3 * 512, False)]


def test_write_and_verify_compares_what_it_reads() -> None:
    class Forgetful(MemoryStore):
        def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
            super().write(offset, data[:700], fua=fua)

    data = patterned(1024)
    assert Bench(Forgetful()).data(cdb(0x2E, 0, 2), data) == b""
    reply = Bench(Forgetful()).reply(cdb(0x2E, 0, 2, bytchk=1), data)
    assert (sense_of(reply), information_of(reply)) == (MISCOMPARE, 700)


def test_write_and_verify_has_no_other_bytchk(bench: Bench) -> None:
    assert pointer_of(bench.reply(cdb(0x2E, 0, 1, bytchk=3), bytes(512))) == (1, 2, True)


@pytest.mark.parametrize(
    ("number", "sense"), [(errno.EIO, WRITE_ERROR), (errno.ENOSPC, NO_SPACE), (errno.EDQUOT, NO_SPACE)]
)
def test_a_write_error(bench: Bench, number: int, sense: tuple[int, int, int]) -> None:
    bench.store.fail_with["write"] = number
    assert bench.sense(cdb(0x2E, 0, 1), bytes(512)) == sense
    assert bench.sense(compare_and_write(0, 1), bytes(1024)) == sense


@pytest.mark.parametrize("command", [cdb(0x2E, 0, 1), compare_and_write(0, 1)])
def test_a_range_that_others_hold_on_to_is_busy(bench: Bench, command: bytes) -> None:
    bench.host.busy = True
    assert bench.reply(command, bytes(1024)) == Reply(Status.BUSY)
    assert bench.store.calls == []


@pytest.mark.parametrize("command", [cdb(0x2E, 0, 1), compare_and_write(0, 1)])
def test_a_protected_medium_is_not_written(command: bytes) -> None:
    bench = Bench(MemoryStore(writable=False))
    assert bench.sense(command, bytes(1024)) == (7, 0x27, 0)
    assert bench.run(cdb(0x2F, 0, 1)) == Reply()


# COMPARE AND WRITE


def test_compare_and_write_writes_what_is_believed(written: Bench) -> None:
    before = bytes(written.store.content[512:1536])
    new = bytes(1024)
    assert written.data(compare_and_write(1, 2), before + new) == b""
    assert written.store.content[512:1536] == new
    assert written.host.locked == [(512, 1024, True)]
    assert written.store.calls == ["read", "write"]


def test_compare_and_write_leaves_what_is_not(written: Bench) -> None:
    before = bytes(written.store.content)
    believed = bytearray(before[512:1536])
    believed[1023] ^= 0x80
    reply = written.reply(compare_and_write(1, 2), bytes(believed) + bytes(1024))
    assert (sense_of(reply), information_of(reply)) == (MISCOMPARE, 1023)
    assert written.store.content == before


def test_compare_and_write_through(bench: Bench) -> None:
    assert bench.data(compare_and_write(0, 1, fua=True), bytes(1024)) == b""
    assert bench.store.calls[-1] == "write+fua"


def test_compare_and_write_of_none_and_of_most(bench: Bench) -> None:
    assert bench.data(compare_and_write(0, 0)) == b""
    assert bench.store.calls == []
    assert bench.data(compare_and_write(0, 255), bytes(255 * 512) + patterned(255 * 512)) == b""
    assert bench.store.content[: 255 * 512] == patterned(255 * 512)


def test_compare_and_write_is_one_step_to_a_writer() -> None:
    """Two count in one block: one with COMPARE AND WRITE, one by writes in flight. No step may be lost."""
    bench, steps = Bench(), 200
    started = threading.Barrier(2)

    def count_by_writes() -> None:
        started.wait()
        for _ in range(steps):
            with bench.host.ranges.write(0, 512):
                value = int.from_bytes(bench.store.read(0, 512)) + 1
                bench.store.write(0, value.to_bytes(512))

    writer = threading.Thread(target=count_by_writes)
    writer.start()
    started.wait()
    done = 0
    while done < steps:
        value = int.from_bytes(bench.store.read(0, 512))
        reply = bench.reply(compare_and_write(0, 1), value.to_bytes(512) + (value + 1).to_bytes(512))
        done += reply.status is Status.GOOD
        assert reply.status is Status.GOOD or sense_of(reply) == MISCOMPARE
    writer.join()
    assert int.from_bytes(bench.store.read(0, 512)) == 2 * steps


def test_a_write_cannot_come_between_compare_and_write() -> None:
    """The writer begins while COMPARE AND WRITE reads, and is held back until that has written."""

    class Slow(MemoryStore):
        def read(self, offset: int, length: int) -> bytes:
            writer.start()
            began.wait()
            return super().read(offset, length)

    def write() -> None:
        began.set()
        with bench.host.ranges.write(0, 512):
            order.append(bytes(bench.store.content[:1]))
            bench.store.write(0, b"W" * 512)

    began, order = threading.Event(), list[bytes]()
    writer = threading.Thread(target=write)
    bench = Bench(Slow())
    assert bench.data(compare_and_write(0, 1), bytes(512) + b"C" * 512) == b""
    writer.join()
    assert order == [b"C"]
    assert bench.store.content[:512] == b"W" * 512


# What they share


@given(st.binary(min_size=1, max_size=64), st.data())
def test_first_difference(one: bytes, data: st.DataObject) -> None:
    other = bytearray(one)
    places = data.draw(st.lists(st.integers(0, len(one) - 1)))
    for place in places:
        other[place] = one[place] ^ 0xFF
    assert first_difference(one, bytes(other)) == min(places, default=None)


def test_these_commands_do_not_go_back_to_the_data_path(bench: Bench) -> None:
    for opcode in (*VERIFY.values(), *WRITE_AND_VERIFY.values()):
        assert bench.run(cdb(opcode, 0, 1), bytes(512)) is not RESUME
