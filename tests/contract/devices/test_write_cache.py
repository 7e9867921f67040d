"""A guest's choice of write-through outlives the back end that it was made with."""

from __future__ import annotations

import pytest

from ringway.testing.frontend import BlkFrontEnd

from ..conftest import Serve
from ..disks import MIB, MakeDisk, is_stable
from ..requests import write

BLOCK = b"\xa5" * 4096


def test_after_a_resume_writes_are_stable_until_the_guest_flushes(serve: Serve, disk_of: MakeDisk) -> None:
    """QEMU repeats a write-through that was set to nobody; who flushes knows of the cache."""
    disk = disk_of("cached")
    with BlkFrontEnd(serve("blk", disk)).open() as guest:
        write(guest, 0, BLOCK)
        if is_stable(disk.path, 0, 4096):
            pytest.skip("the file system of /var/tmp allocates at once: nothing tells a cached write apart")
        guest.reconnect()
        write(guest, MIB, BLOCK)
        assert is_stable(disk.path, MIB, 4096)
        assert guest.flush().status == 0
        write(guest, 2 * MIB, BLOCK)
        assert not is_stable(disk.path, 2 * MIB, 4096)
