"""Locks that QEMU respects and is respected by, and ownership over time."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ringway.errors import BackstoreError, BusyError
from ringway.model import OwnershipState
from ringway.target import kernel
from ringway.target.ownership import FileClaim, Ownership
from ringway.testing.waiting import PATIENCE_S

from .conftest import Spawn

_UNSHARED_WRITE = 201  # the byte that says "others may not write"


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    number = os.open(image, os.O_RDWR)
    yield number
    os.close(number)


def _other(image: Path, *, writable: bool) -> FileClaim:
    """A claim through an open file description of its own, as another process has it."""
    number = os.open(image, os.O_RDWR)
    try:
        return FileClaim(number, "other", writable=writable)
    finally:
        os.close(number)


def _tool_runs(command: list[str | Path]) -> bool:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert result.returncode == 0 or " lock" in result.stderr + result.stdout, result.stderr
    return result.returncode == 0


def _wait_until_open(process: subprocess.Popen[bytes]) -> None:
    """qemu-io prompts once the image is open and locked."""
    assert process.stdout is not None
    assert process.stdout.read(8) == b"qemu-io>"


def test_qemu_may_not_write_what_we_write(image: Path, fd: int, qemu_io: str) -> None:
    claim = FileClaim(fd, "image", writable=True)
    claim.take()
    assert not _tool_runs([qemu_io, "-f", "raw", "-c", "write 0 512", image])
    assert _tool_runs([qemu_io, "-U", "-r", "-f", "raw", "-c", "read 0 512", image])
    claim.drop()
    assert _tool_runs([qemu_io, "-f", "raw", "-c", "write 0 512", image])


def test_qemu_may_read_but_not_write_what_we_read(image: Path, fd: int, qemu_io: str) -> None:
    claim = FileClaim(fd, "image", writable=False)
    claim.take()
    assert _tool_runs([qemu_io, "-r", "-f", "raw", "-c", "read 0 512", image])
    assert not _tool_runs([qemu_io, "-f", "raw", "-c", "write 0 512", image])


@pytest.mark.parametrize("writable", [True, False])
def test_we_may_not_use_what_qemu_writes_and_say_who_it_is(
    image: Path, fd: int, qemu_io: str, spawn: Spawn, writable: bool
) -> None:
    process = spawn([qemu_io, "-f", "raw", image])
    _wait_until_open(process)
    claim = FileClaim(fd, "image", writable=writable)
    with pytest.raises(BusyError) as caught:
        claim.take()
    assert caught.value.holder == f"pid {process.pid} (qemu-io)"
    assert str(process.pid) in caught.value.message
    process.communicate()
    claim.take()


def test_we_may_read_what_qemu_reads(image: Path, fd: int, qemu_io: str, spawn: Spawn) -> None:
    _wait_until_open(spawn([qemu_io, "-r", "-f", "raw", image]))
    FileClaim(fd, "image", writable=False).take()


def test_qemu_storage_daemon_keeps_us_out(image: Path, fd: int, spawn: Spawn, tmp_path: Path) -> None:
    """A writable export shares with nobody, and qsd announces nothing: it is there when its socket is."""
    socket = tmp_path / "qsd.sock"
    process = spawn(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=n,filename={image}"),
            *("--export", f"vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={socket}"),
        ]
    )
    while not socket.exists():
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.01)
    with pytest.raises(BusyError, match=f"pid {process.pid}"):
        FileClaim(fd, "image", writable=True).take()


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
)
def test_two_of_us_share_only_for_reading(
    image: Path, fd: int, first: bool, second: bool, together: bool
) -> None:
    one, other = FileClaim(fd, "one", writable=first), _other(image, writable=second)
    one.take()
    if together:
        other.take()
        return
    with pytest.raises(BusyError):
        other.take()
    one.drop()
    other.take()


def test_a_claim_that_failed_holds_nothing(image: Path, fd: int) -> None:
    one, other = FileClaim(fd, "one", writable=True), _other(image, writable=True)
    one.take()
    with pytest.raises(BusyError):
        other.take()
    one.drop()
    one.take()


def test_an_epoch_counts_acquisitions(fd: int) -> None:
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    assert (ownership.state, ownership.epoch) == (OwnershipState.RELEASED, 0)
    ownership.acquire()
    ownership.acquire()
    assert (ownership.state, ownership.epoch) == (OwnershipState.HELD, 1)
    ownership.release()
    ownership.acquire()
    assert ownership.epoch == 2


def test_what_is_wanted_is_obtained_when_it_is_let_go(image: Path, fd: int) -> None:
    source, destination = (
        _other(image, writable=True),
        Ownership(FileClaim(fd, "image", writable=True), "image"),
    )
    source.take()
    obtained = threading.Event()
    destination.acquire_later(obtained.set)
    assert destination.state is OwnershipState.WANTED
    source.drop()
    assert obtained.wait(PATIENCE_S)
    assert (destination.state, destination.epoch) == (OwnershipState.HELD, 1)


def test_what_is_free_is_obtained_at_once(fd: int) -> None:
    calls: list[int] = []
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire_later(lambda: calls.append(ownership.epoch))
    assert calls == [1]


def test_a_wish_can_be_withdrawn(image: Path, fd: int) -> None:
    source = _other(image, writable=True)
    source.take()
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire_later(lambda: pytest.fail("obtained after release"))
    waiting = [thread for thread in threading.enumerate() if thread.name == "ownership"]
    ownership.release()
    source.drop()
    for thread in waiting:
        thread.join()
    assert ownership.state is OwnershipState.RELEASED


def test_a_store_is_flushed_before_it_is_given_up(image: Path, fd: int) -> None:
    flushing, go_on = threading.Event(), threading.Event()

    def flush() -> None:
        flushing.set()
        assert go_on.wait(PATIENCE_S)

    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire()
    ownership.release_later(flush)
    assert flushing.wait(PATIENCE_S)
    with pytest.raises(BusyError):
        _other(image, writable=True).take()
    go_on.set()
    _join("release")
    _other(image, writable=True).take()
    assert ownership.state is OwnershipState.RELEASED


def test_a_source_that_starts_again_during_the_flush_keeps_its_store(fd: int) -> None:
    flushing, go_on = threading.Event(), threading.Event()

    def flush() -> None:
        flushing.set()
        assert go_on.wait(PATIENCE_S)

    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire()
    ownership.release_later(flush)
    assert flushing.wait(PATIENCE_S)
    assert ownership.keep()
    go_on.set()
    _join("release")
    assert (ownership.state, ownership.epoch) == (OwnershipState.HELD, 1)


def test_nothing_is_flushed_or_given_up_while_a_request_still_uses_the_store(image: Path, fd: int) -> None:
    """A source whose requests did not end in time kept its store for ever, for one look was all there was."""
    asked, done = threading.Semaphore(0), threading.Event()
    flushed: list[bool] = []

    def ready() -> bool:
        asked.release()
        return done.is_set()

    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire()
    ownership.release_later(lambda: flushed.append(done.is_set()), ready)
    for _ in range(3):
        assert asked.acquire(timeout=PATIENCE_S)
        with pytest.raises(BusyError):
            _other(image, writable=True).take()
    done.set()
    _join("release")
    assert flushed == [True]
    _other(image, writable=True).take()


@pytest.mark.parametrize("change", [Ownership.close, Ownership.keep, Ownership.acquire])
def test_a_release_that_waits_ends_when_its_owner_changes_its_mind(
    fd: int, change: Callable[[Ownership], object]
) -> None:
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire()
    ownership.release_later(lambda: pytest.fail("flushed"), lambda: False)
    change(ownership)
    _join("release")
    assert ownership.held is (change is not Ownership.close)


class _Flaky:
    """A claim that is refused, then fails in ways that the kernel can think of, and works at last."""

    def __init__(self) -> None:
        self.answers: list[Exception] = [
            BusyError("refused"),
            OSError(errno.ENOLCK, "No locks available"),
            BackstoreError("cannot be locked"),
            BusyError("refused"),
        ]
        self.named: list[bool] = []
        self.looked = 0

    def take(self, *, name_holder: bool = True) -> None:
        self.named.append(name_holder)
        if self.answers:
            raise self.answers.pop(0)

    def holder(self) -> str | None:
        self.looked += 1
        return None

    def drop(self) -> None:
        pass

    def close(self) -> None:
        pass

    def follow(self, fd: int, *, held: bool) -> None:
        pass


@pytest.mark.parametrize("writable", [True, False])
def test_a_claim_follows_to_another_open_file_without_a_gap(image: Path, fd: int, writable: bool) -> None:
    """I/O on the new file that outlived its target was covered by no lock: those lay on the old file."""
    ownership = Ownership(FileClaim(fd, "image", writable=writable), "image")
    ownership.acquire()
    new = os.open(image, os.O_RDWR)
    ownership.follow(new)
    assert (ownership.held, ownership.epoch) == (True, 1)
    assert kernel.ofd_is_locked_by_others(fd, _UNSHARED_WRITE), "the new one is locked"
    assert kernel.ofd_is_locked_by_others(new, _UNSHARED_WRITE), "and the old one still is"
    ownership.drop_old()
    assert kernel.ofd_is_locked_by_others(fd, _UNSHARED_WRITE)
    assert not kernel.ofd_is_locked_by_others(new, _UNSHARED_WRITE)
    rival = _other(image, writable=True)
    with pytest.raises(BusyError):
        rival.take()
    ownership.close()
    rival.take()
    rival.close()
    os.close(new)


def test_a_claim_that_follows_to_its_own_file_is_not_lost(image: Path, fd: int) -> None:
    """A lock is given up for all descriptors of an open file at once."""
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire()
    ownership.follow(fd)
    ownership.drop_old()
    rival = _other(image, writable=True)
    with pytest.raises(BusyError):
        rival.take()
    ownership.close()
    rival.close()


def test_a_claim_that_cannot_follow_stays_where_it_is(image: Path, fd: int) -> None:
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    ownership.acquire()
    blind = os.open(image, os.O_WRONLY)  # a shared lock needs a file that can be read
    with pytest.raises(BackstoreError, match="cannot be locked"):
        ownership.follow(blind)
    os.close(blind)
    assert ownership.held
    rival = _other(image, writable=True)
    with pytest.raises(BusyError):
        rival.take()
    ownership.close()
    rival.take()
    rival.close()


def test_what_is_not_held_is_not_taken_by_following(image: Path, fd: int) -> None:
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    new = os.open(image, os.O_RDWR)
    ownership.follow(new)
    rival = _other(image, writable=True)
    rival.take()
    with pytest.raises(BusyError):
        ownership.acquire()
    rival.close()
    ownership.acquire()
    assert not kernel.ofd_is_locked_by_others(new, _UNSHARED_WRITE), "it is the new file that is locked"
    ownership.release()
    os.close(new)


def test_a_wish_survives_errors_and_looks_for_the_holder_once() -> None:
    """An ENOLCK ended the waiting thread, and its rings waited for ever; each try looked at all processes."""
    claim, obtained = _Flaky(), threading.Event()
    Ownership(claim, "store").acquire_later(obtained.set)
    assert obtained.wait(PATIENCE_S)
    assert claim.named == [False] * 5
    assert claim.looked == 1


def test_a_wish_that_is_made_again_needs_no_thread_of_its_own(image: Path, fd: int) -> None:
    """A front end that switched a ring off and on had hundreds of them."""
    source = _other(image, writable=True)
    source.take()
    ownership = Ownership(FileClaim(fd, "image", writable=True), "image")
    obtained = threading.Event()
    for _ in range(20):
        ownership.acquire_later(obtained.set)
    assert [thread.name for thread in threading.enumerate()].count("ownership") == 1
    source.drop()
    assert obtained.wait(PATIENCE_S)
    ownership.close()


def test_a_claim_that_could_not_look_holds_nothing(
    image: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locks were taken, looking at others' failed, and the locks stayed."""

    def fail(_fd: int, _byte: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "ofd_is_locked_by_others", fail)
        with pytest.raises(BackstoreError, match="cannot be locked"):
            FileClaim(fd, "image", writable=True).take()
    _other(image, writable=True).take()


def _join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()


class _Lock:
    """One thing that two sides claim; knows who has it, and is taken by none but one."""

    def __init__(self) -> None:
        self.owner: object | None = None


class _Side:
    """A claim on it."""

    def __init__(self, lock: _Lock) -> None:
        self._lock = lock

    def take(self, *, name_holder: bool = True) -> None:
        if self._lock.owner not in (None, self):
            raise BusyError("taken")
        self._lock.owner = self

    def holder(self) -> str | None:
        return None

    def drop(self) -> None:
        if self._lock.owner is self:
            self._lock.owner = None

    def close(self) -> None:
        self.drop()

    def follow(self, fd: int, *, held: bool) -> None:
        """There are no files here."""


class TwoSides(RuleBasedStateMachine):
    """A source and a destination that take and give up in any order: at no time do both hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = _Lock()
        self.claims = [_Side(self.lock), _Side(self.lock)]
        self.sides = [Ownership(claim, "store") for claim in self.claims]

    @rule(side=st.integers(0, 1))
    def acquire(self, side: int) -> None:
        before = self.sides[side].epoch, self.sides[side].held
        try:
            self.sides[side].acquire()
        except BusyError:
            assert self.sides[side].epoch == before[0]
        else:
            assert self.sides[side].epoch == before[0] + (not before[1])

    @rule(side=st.integers(0, 1))
    def release(self, side: int) -> None:
        self.sides[side].release()

    @rule(side=st.integers(0, 1))
    def keep(self, side: int) -> None:
        assert self.sides[side].keep() == (self.lock.owner is self.claims[side])

    @invariant()
    def one_owner(self) -> None:
        held = [side.held for side in self.sides]
        assert held == [self.lock.owner is claim for claim in self.claims]


TwoSides.TestCase.settings = settings(max_examples=50, stateful_step_count=20)
TestTwoSides = TwoSides.TestCase
