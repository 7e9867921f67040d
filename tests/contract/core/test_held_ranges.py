"""Ranges that are held: what meets them waits, and all else passes."""

from __future__ import annotations

import pytest

from ringway.testing.frontend import ScsiFrontEnd

from .. import cdb
from ..conftest import Serve
from ..disks import MakeDisk
from ..loads import Load
from ..requests import read, send_read, send_write, wait, write
from .seams import DEVICES, HELD, PAGE, USED, check_others_pass, in_flight, locked


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
