"""A scsi target over every store and engine: data, and the exact figures that come with it."""

from __future__ import annotations

import os

import pytest

from ringway import _core
from ringway.testing.frontend import Framing, ScsiFrontEnd, lun_address

from .. import cdb
from ..conftest import Serve
from ..disks import FILES, MIB, SIZE, STORES, MakeDisk, is_stable
from ..loads import verify
from .test_blk import FRAMINGS, needs_delayed_allocation

HEADER = 108  #: bytes of a response header
OK, BAD_TARGET = 0, 3
ILLEGAL_REQUEST = 5
LBA_OUT_OF_RANGE = (ILLEGAL_REQUEST, 0x21, 0)
INVALID_FIELD = (ILLEGAL_REQUEST, 0x24, 0)
INVALID_PARAMETER = (ILLEGAL_REQUEST, 0x26, 0)
WRITE_PROTECTED = (7, 0x27, 0)


def ready(front: ScsiFrontEnd, *luns: int) -> None:
    """Take the unit attentions that disks begin with."""
    for lun in luns or (0,):
        while front.command(cdb.TEST_UNIT_READY, lun=lun).status:
            pass


def opened(path: str, **more: object) -> ScsiFrontEnd:
    front = ScsiFrontEnd(path, **more).open()  # type: ignore[arg-type]
    ready(front)
    return front


# Data


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_what_is_read_is_what_was_written(
    serve: Serve, disk_of: MakeDisk, store: str, framing: Framing
) -> None:
    data = os.urandom(8192)
    with opened(serve("scsi", disk_of(store), queues=2, workers=2), request_queues=2) as front:
        step = block_size(front)
        written = front.command(
            cdb.write(12288 // step, 8192 // step), data_out=data, framing=framing, queue=1
        )
        assert (written.response, written.status, written.residual, written.used_len) == (0, 0, 0, HEADER)
        read = front.command(cdb.read(8192 // step, 16384 // step), data_in=16384, framing=framing)
        assert (read.response, read.status, read.residual) == (0, 0, 0)
        assert read.used_len == HEADER + 16384
        assert read.data == bytes(4096) + data + bytes(4096)


def block_size(front: ScsiFrontEnd) -> int:
    answer = front.command(cdb.READ_CAPACITY_10, data_in=8)
    return int.from_bytes(answer.data[4:], "big")


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("size", [6, 10, 12, 16])
def test_each_length_of_read_and_write(serve: Serve, disk_of: MakeDisk, store: str, size: int) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        step = block_size(front)
        data = os.urandom(7 * step)
        assert front.command(cdb.write(21, 7, size=size), data_out=data).status == cdb.GOOD
        assert front.command(cdb.read(21, 7, size=size), data_in=len(data)).data == data
        whole = 256 * step
        assert len(front.command(cdb.read(0, 256, size=size), data_in=whole).data) == whole


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
def test_a_random_load_on_four_queues_verifies(
    serve: Serve, disk_of: MakeDisk, store: str, event_idx: bool
) -> None:
    path = serve("scsi", disk_of(store), queues=4, workers=2)
    more = {"indirect": True} if event_idx else {"features": 1 << 32 | 0b110}
    with opened(path, request_queues=4, **more) as front:
        step = block_size(front)
        state = _core.Generations(4 * MIB // 4096)
        plan = {"size_bytes": 4 * MIB, "depth": 8, "requests": 3000, "flush_every": 500}
        report = verify(front.load_driver(), state, sector_bytes=step, **plan)
        assert report["flushes"] == 6 + 1
        assert report["checked"] >= 1000


def test_each_lun_has_its_own_bytes(serve: Serve, disk_of: MakeDisk) -> None:
    disks = [disk_of("ram"), disk_of("cached", name="a.img"), disk_of("mapped", name="b.img")]
    with opened(serve("scsi", *disks)) as front:
        ready(front, 1, 2)
        for lun in range(3):
            assert front.command(cdb.write(0, 1), lun=lun, data_out=bytes([lun]) * 512).status == cdb.GOOD
        for lun in range(3):
            for flat in (True, False):  # as Linux and as SPDK write it
                address = lun_address(0, lun, flat=flat)
                assert front.command(cdb.read(0, 1), lun=address, data_in=512).data == bytes([lun]) * 512
        assert front.command(cdb.read(0, 1), target=1, data_in=512).response == BAD_TARGET
        assert front.command(cdb.read(0, 1), lun=3, data_in=512).sense_key == (ILLEGAL_REQUEST, 0x25, 0)


# Residuals and used.len


@pytest.mark.parametrize("store", ["ram", "cached", "direct"])
@pytest.mark.parametrize("surplus", [0, 1, 511, 512, 4096])
def test_a_buffer_that_is_larger_than_the_transfer_has_a_residual(
    serve: Serve, disk_of: MakeDisk, store: str, surplus: int
) -> None:
    """Spec: virtio 1.3, 5.6.6.1.3: residual is what of the buffer was not used."""
    with opened(serve("scsi", disk_of(store))) as front:
        size = 2 * block_size(front)
        data = os.urandom(size)
        written = front.command(cdb.write(8, 2), data_out=data + b"?" * surplus)
        assert (written.response, written.status) == (OK, cdb.GOOD)
        assert (written.residual, written.used_len) == (surplus, HEADER)
        read = front.command(cdb.read(8, 2), data_in=size + surplus)
        assert (read.response, read.status) == (OK, cdb.GOOD)
        assert (read.residual, read.used_len) == (surplus, HEADER + size)
        assert read.buffer == data + b"\x5a" * surplus
        after = front.command(cdb.read(10, 8), data_in=8 * size // 2)
        assert not any(after.data), "more was written than the CDB says"


@pytest.mark.parametrize("store", ["ram", "cached", "direct"])
@pytest.mark.parametrize("missing", [1, 512, 1023])
def test_a_buffer_that_is_smaller_than_the_transfer_is_an_overrun(
    serve: Serve, disk_of: MakeDisk, store: str, missing: int
) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        size = 2 * block_size(front)
        written = front.command(cdb.write(8, 2), data_out=b"x" * (size - missing))
        assert (written.response, written.used_len) == (cdb.OVERRUN, HEADER)
        read = front.command(cdb.read(8, 2), data_in=size - missing)
        assert (read.response, read.used_len) == (cdb.OVERRUN, HEADER)
        assert read.buffer == b"\x5a" * (size - missing)
        assert front.command(cdb.read(8, 2), data_in=size).data == bytes(size), "half a write was done"


@pytest.mark.parametrize(
    ("allocation", "room", "response", "moved", "residual"),
    [
        (36, 36, OK, 36, 0),
        (36, 100, OK, 36, 64),
        (5, 36, OK, 5, 31),
        (0, 36, OK, 0, 36),
        (255, 255, OK, None, None),
        (36, 20, cdb.OVERRUN, 20, 0),
        (36, 0, cdb.OVERRUN, 0, 0),
    ],
)
def test_a_command_of_the_slow_path_counts_alike(
    serve: Serve,
    disk_of: MakeDisk,
    allocation: int,
    room: int,
    response: int,
    moved: int | None,
    residual: int | None,
) -> None:
    with opened(serve("scsi", disk_of("ram"))) as front:
        answer = front.command(cdb.inquiry(allocation), data_in=room)
        if moved is None:  # all there is
            moved = 5 + answer.data[4]
            residual = room - moved
        assert (answer.response, answer.residual) == (response, residual)
        assert answer.used_len == HEADER + moved
        assert answer.buffer[moved:] == b"\x5a" * (room - moved)


@pytest.mark.parametrize("store", ["ram", "cached"])
def test_commands_without_data_leave_the_whole_buffer(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        for command in (
            cdb.TEST_UNIT_READY,
            cdb.read(0, 0),
            cdb.write(0, 0),
            cdb.synchronize_cache(),
            cdb.unmap(b""),
        ):
            into = front.command(command, data_in=512)
            assert (into.status, into.residual, into.used_len) == (0, 512, HEADER), command.hex(" ")
            out = front.command(command, data_out=b"x" * 512)
            assert (out.status, out.residual, out.used_len) == (0, 512, HEADER), command.hex(" ")
        assert front.command(cdb.read(0, 1), data_in=512).data == bytes(512)


@pytest.mark.parametrize("store", ["ram", "cached"])
def test_parameter_data_counts_too(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    """UNMAP takes its parameter list and no more of data-out, WRITE SAME one block."""
    listed = cdb.unmap_list((8, 8))
    with opened(serve("scsi", disk_of(store))) as front:
        for surplus in (0, 40):
            unmapped = front.command(cdb.unmap(listed), data_out=listed + bytes(surplus))
            assert (unmapped.status, unmapped.residual) == (cdb.GOOD, surplus)
            for block in (b"x" * 512, bytes(512)):
                filled = front.command(cdb.write_same(8, 8), data_out=block + b"?" * surplus)
                assert (filled.status, filled.residual) == (cdb.GOOD, surplus)
            bare = front.command(cdb.write_same(8, 8, no_data=True), data_out=bytes(surplus))
            assert (bare.status, bare.residual) == (cdb.GOOD, surplus)


@pytest.mark.parametrize("surplus", [0, 512])
def test_data_out_of_the_slow_path_counts_too(serve: Serve, disk_of: MakeDisk, surplus: int) -> None:
    """COMPARE AND WRITE takes two blocks for each that it writes, VERIFY with BYTCHK one."""
    old, new = os.urandom(512), os.urandom(512)
    with opened(serve("scsi", disk_of("cached"))) as front:
        assert front.command(cdb.write(8, 1), data_out=old).status == cdb.GOOD
        swapped = front.command(cdb.compare_and_write(8, 1), data_out=old + new + bytes(surplus))
        assert (swapped.status, swapped.residual, swapped.used_len) == (cdb.GOOD, surplus, HEADER)
        same = front.command(cdb.verify(8, 1), data_out=new + bytes(surplus))
        assert (same.status, same.residual) == (cdb.GOOD, surplus)
        other = front.command(cdb.verify(8, 1), data_out=old + bytes(surplus))
        assert other.sense_key == (0xE, 0x1D, 0)
        missing = front.command(cdb.verify(8, 1), data_out=new[:-1])
        assert missing.response == cdb.OVERRUN


# Zeroing and filling


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("size", [10, 16])
def test_write_same_repeats_a_block(serve: Serve, disk_of: MakeDisk, store: str, size: int) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        step = block_size(front)
        before = os.urandom(64 * step)
        pattern = os.urandom(step)
        for block in (pattern, bytes(step)):
            for unmap in (False, True):
                assert front.command(cdb.write(0, 64), data_out=before).status == cdb.GOOD
                same = cdb.write_same(3, 50, size=size, unmap=unmap)
                assert front.command(same, data_out=block).status == cdb.GOOD
                read = front.command(cdb.read(0, 64), data_in=len(before)).data
                assert read == before[: 3 * step] + 50 * block + before[53 * step :]


@pytest.mark.parametrize("store", STORES)
def test_write_same_of_megabytes_and_without_data(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        step = block_size(front)
        blocks, pattern = 5 * MIB // step - 1, os.urandom(step)
        assert front.command(cdb.write_same(1, blocks), data_out=pattern).status == cdb.GOOD
        tail = front.command(cdb.read(blocks, 2), data_in=2 * step).data
        assert tail == pattern + bytes(step)
        middle = front.command(cdb.read(blocks // 2, 16), data_in=16 * step).data
        assert middle == 16 * pattern
        assert front.command(cdb.write_same(1, blocks, no_data=True)).status == cdb.GOOD
        assert front.command(cdb.read(blocks // 2, 16), data_in=16 * step).data == bytes(16 * step)


@pytest.mark.parametrize("store", STORES)
def test_unmapped_blocks_read_as_zeros(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        step = block_size(front)
        data = os.urandom(64 * step)
        assert front.command(cdb.write(0, 64), data_out=data).status == cdb.GOOD
        listed = cdb.unmap_list((8, 8), (32, 0), (40, 16))
        assert front.command(cdb.unmap(listed), data_out=listed).status == cdb.GOOD
        expected = bytearray(data)
        for first, count in ((8, 8), (40, 16)):
            expected[first * step : (first + count) * step] = bytes(count * step)
        assert front.command(cdb.read(0, 64), data_in=len(data)).data == expected


@pytest.mark.parametrize("store", FILES)
def test_an_unmap_gives_space_back(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    disk = disk_of(store)
    with opened(serve("scsi", disk)) as front:
        blocks = 4 * MIB // block_size(front)
        assert front.command(cdb.write(0, blocks), data_out=os.urandom(4 * MIB)).status == cdb.GOOD
        assert front.command(cdb.synchronize_cache()).status == cdb.GOOD
        full = disk.path.stat().st_blocks
        listed = cdb.unmap_list((0, blocks))
        assert front.command(cdb.unmap(listed), data_out=listed).status == cdb.GOOD
        assert front.command(cdb.synchronize_cache(size=16)).status == cdb.GOOD
        assert disk.path.stat().st_blocks <= full - 4 * MIB // 512


# Stable storage


@pytest.mark.parametrize("size", [10, 12, 16])
def test_a_write_with_fua_is_stable(serve: Serve, disk_of: MakeDisk, size: int) -> None:
    disk = disk_of("cached")
    needs_delayed_allocation(disk.path)
    with opened(serve("scsi", disk)) as front:
        fua = cdb.write(0, 128, size=size, fua=True)
        assert front.command(fua, data_out=b"x" * 65536).status == cdb.GOOD
        assert is_stable(disk.path, 0, 65536)


@pytest.mark.parametrize("size", [10, 16])
def test_synchronize_cache_makes_what_was_written_stable(serve: Serve, disk_of: MakeDisk, size: int) -> None:
    disk = disk_of("cached")
    needs_delayed_allocation(disk.path)
    with opened(serve("scsi", disk)) as front:
        assert front.command(cdb.write(0, 128), data_out=b"x" * 65536).status == cdb.GOOD
        assert front.command(cdb.synchronize_cache(size=size)).status == cdb.GOOD
        assert is_stable(disk.path, 0, 65536)


def test_a_read_with_fua_flushes_what_is_dirty_first(serve: Serve, disk_of: MakeDisk) -> None:
    disk = disk_of("cached")
    needs_delayed_allocation(disk.path)
    with opened(serve("scsi", disk)) as front:
        assert front.command(cdb.write(0, 128), data_out=b"x" * 65536).status == cdb.GOOD
        assert front.command(cdb.read(0, 1, fua=True), data_in=512).data == b"x" * 512
        assert is_stable(disk.path, 0, 65536)


# What is refused


@pytest.mark.parametrize("store", STORES)
def test_what_is_refused_changes_nothing_and_says_why(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    with opened(serve("scsi", disk_of(store))) as front:
        step = block_size(front)
        end = SIZE // step
        listed = cdb.unmap_list((0, 8), (end - 1, 2))
        block = b"x" * step
        for command, data_out, sense in (
            (cdb.write(end, 1), block, LBA_OUT_OF_RANGE),
            (cdb.write(end - 1, 2), 2 * block, LBA_OUT_OF_RANGE),
            (cdb.write((1 << 64) - 1, 1, size=16), block, LBA_OUT_OF_RANGE),
            (cdb.write_same(end - 1, 2), block, LBA_OUT_OF_RANGE),
            (cdb.write_same(0, 0), block, INVALID_FIELD),
            (cdb.unmap(listed), listed, LBA_OUT_OF_RANGE),
        ):
            answer = front.command(command, data_out=data_out)
            assert (answer.response, answer.status) == (OK, cdb.CHECK_CONDITION), command.hex(" ")
            assert answer.sense_key == sense, command.hex(" ")
            assert answer.used_len == HEADER
        read = front.command(cdb.read(end, 1), data_in=step)
        assert (read.sense_key, read.used_len, read.residual) == (LBA_OUT_OF_RANGE, HEADER, step)
        assert front.command(cdb.read(0, 8), data_in=8 * step).data == bytes(8 * step)
        assert front.command(cdb.read(end - 1, 1), data_in=step).data == bytes(step)


def test_a_read_only_disk_is_write_protected(serve: Serve, disk_of: MakeDisk) -> None:
    disk = disk_of("cached", readonly=True)
    listed = cdb.unmap_list((0, 8))
    with opened(serve("scsi", disk)) as front:
        for command, data_out in (
            (cdb.write(0, 1), b"x" * 512),
            (cdb.write_same(0, 8), b"x" * 512),
            (cdb.unmap(listed), listed),
        ):
            assert front.command(command, data_out=data_out).sense_key == WRITE_PROTECTED
        assert front.command(cdb.read(0, 1), data_in=512).data == bytes(512)
    assert disk.path.read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("store", ["mapped", "mapped on disk", "cached"])
def test_a_file_that_shrinks_is_a_medium_error(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    disk = disk_of(store)
    with opened(serve("scsi", disk)) as front:
        os.truncate(disk.path, 4096)
        read = front.command(cdb.read(1024, 8), data_in=4096)
        assert (read.response, read.status, read.sense_key[0]) == (OK, cdb.CHECK_CONDITION, 3)
        os.truncate(disk.path, SIZE)
        assert front.command(cdb.TEST_UNIT_READY).status == cdb.GOOD
