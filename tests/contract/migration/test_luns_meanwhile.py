"""LUNs that come, grow and go while something else happens: a disk changes hands, a file system hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from ringway.errors import BusyError, NotFoundError
from ringway.model import BackstoreSpec, LunSpec
from ringway.target import backstore, kernel, luns
from ringway.target.backstore import Backstore, open_backstore
from ringway.target.medium import Medium, examine
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.waiting import wait_until

from .. import cdb
from ..conftest import ServeHere as Serve
from ..disks import SIZE, Disk, MakeDisk
from .test_change_of_hands import ready, rival

LIMIT_S: Final = 60.0


@pytest.fixture
def serve(serve_here: Serve) -> Serve:
    """These tests look inside."""
    return serve_here


def disks_of(disk_of: MakeDisk) -> tuple[Disk, Disk]:
    return disk_of("cached", name="one.img"), disk_of("cached", name="two.img")


@contextmanager
def in_background(run: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run something besides, to its end. What it raises is in the list by then."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    yield raised
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def meanwhile(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> list[bool]:
    """Have something happen while the next disk is opened. :returns: whether each open was to claim it."""
    claims: list[bool] = []

    def opening(*spec: Any, claim: bool, **more: Any) -> Backstore:
        opened = open_backstore(*spec, claim=claim, **more)
        claims.append(claim)
        if len(claims) == 1:
            then()
        return opened

    monkeypatch.setattr(luns, "open_backstore", opening)
    return claims


def test_a_lun_that_comes_while_the_disks_are_taken_over_is_owned(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether to own it was asked before it was opened: guests used it, and nobody had claimed it."""
    one, two = disks_of(disk_of)
    serve("scsi", one)
    source = serve.target
    path = serve("scsi", one, incoming=True)
    destination = serve.target

    def take_over() -> None:
        source.close()
        wait_until(lambda: destination.info().luns[0].ownership == "held", "the first disk")
        front.command(cdb.TEST_UNIT_READY)  # its rings run

    with ScsiFrontEnd(path).open() as front, rival(two.path) as other:
        claims = meanwhile(monkeypatch, take_over)
        destination.add_lun(LunSpec(0, 1, two.spec))
        assert claims == [False, True]
        assert [lun.ownership for lun in destination.info().luns] == ["held", "held"]
        with pytest.raises(BusyError):
            other.take()


def test_a_lun_that_comes_while_the_disks_are_given_up_is_not_owned(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed the source's, and the destination waited for it."""
    one, two = disks_of(disk_of)
    with ready(serve("scsi", one)) as front, rival(two.path) as other:

        def give_up() -> None:
            front.start_log()
            front.stop()

        claims = meanwhile(monkeypatch, give_up)
        serve.target.add_lun(LunSpec(0, 1, two.spec))
        assert claims == [True, False]
        other.take()


class Hang:
    """A file system that does not answer: each look at a disk waits until it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self._patch = monkeypatch
        self._patch.setattr(backstore, "examine", self._examine)

    def _examine(self, spec: BackstoreSpec, fd: int) -> Medium:
        self._patch.setattr(backstore, "examine", examine)  # the others' file systems answer
        self.begun.set()
        assert self.go_on.wait(LIMIT_S)
        return examine(spec, fd)


def test_a_file_system_that_hangs_holds_up_its_own_disk_only(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resize held the table while it looked: nothing could be added, removed or told of."""
    one, two = disks_of(disk_of)
    with ready(serve("scsi", one)) as front:
        target, done = serve.target, threading.Event()

        def change_others() -> None:
            try:
                target.add_lun(LunSpec(0, 1, two.spec))
                assert [lun.size_bytes for lun in target.info().luns] == [SIZE, SIZE]
                target.remove_lun(0, 1)
            finally:
                done.set()

        os.truncate(one.path, 2 * SIZE)
        hang = Hang(monkeypatch)
        with in_background(lambda: target.resize_lun(0, 0)) as resize:
            assert hang.begun.wait(LIMIT_S)
            with in_background(change_others) as changes:
                finished = done.wait(LIMIT_S / 2)
                hang.go_on.set()
            assert finished
            assert changes == []
        assert resize == []
        assert target.info().luns[0].size_bytes == 2 * SIZE
        assert front.command(cdb.TEST_UNIT_READY).status == cdb.CHECK_CONDITION


def test_a_disk_that_goes_while_it_is_looked_at_does_not_come_back(
    serve: Serve, disk_of: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = disks_of(disk_of)
    with ready(serve("scsi", one)), rival(one.path) as other:
        os.truncate(one.path, 2 * SIZE)
        hang = Hang(monkeypatch)
        with in_background(lambda: serve.target.resize_lun(0, 0)) as resize:
            assert hang.begun.wait(LIMIT_S)
            serve.target.remove_lun(0, 0)
            serve.target.add_lun(LunSpec(0, 0, disk_of("ram").spec))
            hang.go_on.set()
        assert [type(error).__name__ for error in resize] in (["ConflictError"], [NotFoundError.__name__])
        assert serve.target.info().luns[0].kind == "ram"
        other.take()


def test_a_resize_by_another_open_file_moves_the_claim(serve: Serve, disk_of: MakeDisk) -> None:
    """The locks stayed on the file that was opened first: neither was the new one's late I/O covered, nor
    did the old file become free while somebody had it open.
    """
    one, _ = disks_of(disk_of)
    with ready(serve("scsi", one)), rival(one.path) as other:
        target = serve.target
        first = target._luns._luns[0, 0].backstore._fd
        assert first is not None
        kept = os.dup(first)
        os.truncate(one.path, 2 * SIZE)
        new = os.open(one.path, os.O_RDWR)
        assert target.resize_lun(0, 0, fd=new).size_bytes == 2 * SIZE
        assert not luns_lock_seen_by(new), "the new file has the lock, and no other has"
        assert luns_lock_seen_by(kept)
        with pytest.raises(BusyError):
            other.take()
        target.remove_lun(0, 0)
        other.take()
        os.close(kept)
        os.close(new)


def luns_lock_seen_by(fd: int) -> bool:
    """Whether another open file has the lock that says "others may not write"."""
    return kernel.ofd_is_locked_by_others(fd, 201)
