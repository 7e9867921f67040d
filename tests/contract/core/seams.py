"""What tests of the seams share: second stores, held ranges, and figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ringway import _core
from ringway.target.backstore import open_backstore

from ..bare import BareTarget
from ..disks import MIB, Disk
from ..requests import Front, read, write

DEVICES = ["blk", "scsi"]
USED = MIB  #: bytes of the disk that loads use
ABORTED, BAD_TARGET, RESET, BUSY, FAILURE = 2, 3, 4, 5, 9
IOERR = 1
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
