"""The store of a LUN: swapped between two requests, and written by the slow path."""

from __future__ import annotations

import os
import struct

import pytest

from ringway import _core
from ringway.testing.frontend import BlkFrontEnd
from ringway.testing.waiting import PATIENCE_S

from ..conftest import Serve
from ..disks import SIZE, MakeDisk
from ..loads import Load
from ..requests import read, send_write, wait, write
from .seams import (
    BAD_TARGET,
    DEVICES,
    HELD,
    PAGE,
    USED,
    another_store,
    check_others_pass,
    locked,
    lun_figures,
)


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
            swapped = bare.core.set_lun(0, 0, copy, block_size=512, timeout_s=PATIENCE_S)
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
