"""Who may write to a store: claims (a lock, an exclusive open) and their ownership over time.

Files carry QEMU's byte locks, so that QEMU, qemu-img and Ringway keep out of each other's way: for permission
*n*, byte 100+n is locked by who uses it, and byte 200+n by who does not share it. Block devices carry them on
their node, and are opened O_EXCL besides.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Final, Protocol

from ringway.errors import BackstoreError, BusyError
from ringway.model import OwnershipState
from ringway.target import host, kernel

_log: Final = logging.getLogger(__name__)

RETRY_S: Final = 0.05

_USED: Final = 100
_UNSHARED: Final = 200
_READ, _WRITE, _RESIZE = (
    0,
    1,
    3,
)  # bits of QEMU's permissions; 2 is "write unchanged", which nobody needs here
_ALL: Final = (_READ, _WRITE, _RESIZE)
_CHANGES: Final = (_WRITE, _RESIZE)


class Claim(Protocol):
    """How a store is kept from others."""

    def take(self, *, name_holder: bool = True) -> None:
        """Take it at once.

        :param name_holder: say in the error who has it: a look at all processes.
        :raises BusyError: somebody else has it; then nothing is held.
        :raises BackstoreError: it cannot be claimed; then nothing is held either.
        """

    def holder(self) -> str | None:
        """Who has it now, as far as that can be seen. A look at all processes."""

    def drop(self) -> None:
        """Give it up; no effect when it is not held."""

    def close(self) -> None:
        """Give it up for good. Idempotent."""

    def follow(self, fd: int, *, held: bool) -> Claim | None:
        """Make the same claim through another open file, while this one is kept.

        :param fd: of the same file or device; duplicated.
        :param held: this claim is held, and the other is to be: there is no look at others, whom this claim
            keeps out.
        :returns: the other claim; ``None``: this one reaches ``fd`` already.
        :raises BackstoreError: it cannot be claimed; then nothing has changed. :raises BusyError: as much.
        """


class NoClaim:
    """For what nobody else can reach (memory), and for what the user forced."""

    def take(self, *, name_holder: bool = True) -> None:
        """Always works."""

    def holder(self) -> str | None:
        """Nobody."""
        return None

    def drop(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""

    def follow(self, fd: int, *, held: bool) -> None:
        """Nothing has to be claimed."""


class FileClaim:
    """QEMU-compatible byte locks on an image. A reader lets readers in, and a writer nobody who minds.

    :param fd: of the image; duplicated, because a file system may refuse to open it again.
    """

    def __init__(self, fd: int, name: str, *, writable: bool) -> None:
        self._fd = os.dup(fd)
        self._name = name
        self._writable = writable
        self._used = _ALL if writable else (_READ,)

    def take(self, *, name_holder: bool = True) -> None:
        """Take the locks first and look second, so that of two that start at once at most one goes on.

        :raises BusyError: somebody else uses it in a way that does not go together.
        :raises BackstoreError: the file system has no locks.
        """
        try:
            taken = self._lock() and self._nobody_minds()
        except OSError as error:
            self.drop()
            raise self._unlockable(error) from error
        if not taken:
            self.drop()  # first: a holder is found by its locks, and it is not this one
            raise busy(self._name, self.holder() if name_holder else None)

    def holder(self) -> str | None:
        """A process that has locks on it; asked while this claim has none."""
        return host.lock_holder(self._fd)

    def drop(self) -> None:
        """Unlock all permission bytes."""
        for base in (_USED, _UNSHARED) if self._fd >= 0 else ():
            kernel.ofd_unlock(self._fd, base, _RESIZE + 1)

    def close(self) -> None:
        """Unlock, and close the duplicate."""
        if self._fd >= 0:
            self.drop()
            os.close(self._fd)
            self._fd = -1

    def follow(self, fd: int, *, held: bool) -> FileClaim | None:
        """A lock is its open file description's, and lasts as long as I/O on that: what a target had in the
        kernel when it died is covered only if it was submitted on a description that has the locks.
        """
        if kernel.is_same_description(self._fd, fd):
            return None
        with contextlib.ExitStack() as undo:
            other = FileClaim(fd, self._name, writable=self._writable)
            undo.callback(other.close)
            try:
                locked = not held or other._lock()
            except OSError as error:
                raise self._unlockable(error) from error
            if not locked:  # exclusively, by who cares for nobody's shared locks
                raise busy(self._name, None)
            undo.pop_all()
        return other

    def _unlockable(self, error: OSError) -> BackstoreError:
        return BackstoreError(
            f"'{self._name}' cannot be locked: {error.strerror}",
            hint="if its file system has no locks, copy the image to one that has",
        )

    def _lock(self) -> bool:
        try:
            for byte in (*(_USED + bit for bit in self._used), *(_UNSHARED + bit for bit in _CHANGES)):
                kernel.ofd_lock_shared(self._fd, byte)
        except BlockingIOError:
            return False
        return True

    def _nobody_minds(self) -> bool:
        mine_refused = (_UNSHARED + bit for bit in self._used)
        theirs_unwanted = (_USED + bit for bit in _CHANGES)
        return not any(
            kernel.ofd_is_locked_by_others(self._fd, byte) for byte in (*mine_refused, *theirs_unwanted)
        )


class DeviceClaim:
    """An exclusive open of a block device: no mount, no other writer of this kind. And the byte locks of an
    image on its node: QEMU opens no device exclusively.

    :param fd: of the device; duplicated, and opened again exclusively to claim it.
    :param locks: on ``fd``, if there are some already; they are this claim's from then on.
    """

    def __init__(self, fd: int, name: str, locks: FileClaim | None = None) -> None:
        self._fd = os.dup(fd)
        self._name = name
        self._locks = locks or FileClaim(fd, name, writable=True)
        self._claim: int | None = None

    def take(self, *, name_holder: bool = True) -> None:
        """:raises BusyError: mounted, held, locked, or opened exclusively by another."""
        if self._claim is not None:
            return
        self._locks.take(name_holder=name_holder)
        try:
            self._claim = host.open_exclusive(self._fd)
        except OSError as error:
            self._locks.drop()
            if error.errno != errno.EBUSY:
                raise BackstoreError(f"'{self._name}' cannot be claimed: {error.strerror}") from error
            raise busy(self._name, self.holder() if name_holder else None) from error

    def holder(self) -> str | None:
        """What is on it, or a process that has it open."""
        return host.device_user(self._fd) or self._locks.holder() or host.opener(self._fd)

    def drop(self) -> None:
        """Close the exclusive open; reads and writes through other opens are not this claim's business."""
        self._locks.drop()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def follow(self, fd: int, *, held: bool) -> DeviceClaim | None:
        """The exclusive open passes on: it carries no I/O, and there cannot be two."""
        locks = self._locks.follow(fd, held=held)
        if locks is None:
            return None
        try:
            other = DeviceClaim(fd, self._name, locks)
        except OSError:
            locks.close()
            raise
        other._claim, self._claim = self._claim, None
        return other

    def close(self) -> None:
        """Close both opens."""
        self.drop()
        self._locks.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def busy(name: str, holder: str | None) -> BusyError:
    """The error for a backstore that somebody else uses."""
    return BusyError(
        f"'{name}' is in use" + (f": {holder}" if holder else ""),
        holder=holder,
        hint="stop who uses it; or --incoming, if its guest is to move here; or readonly, if all only read",
    )


class Ownership:
    """The right to use one store, with an epoch that counts how often it was obtained.

    Only while ``state`` is HELD may a request reach the store. Safe to use from several threads.
    """

    def __init__(self, claim: Claim, name: str) -> None:
        self._claim = claim
        self._old: list[Claim] = []  # through files that late I/O may still use
        self._name = name
        self._lock = threading.RLock()
        self._state = OwnershipState.RELEASED
        self._epoch = 0
        self._turn = 0  # each change of mind makes older background work void
        self._complaint = ""  # the last reason other than a holder that it could not be obtained for

    @property
    def state(self) -> OwnershipState:
        """HELD, WANTED or RELEASED."""
        return self._state

    @property
    def held(self) -> bool:
        """Whether requests may reach the store."""
        return self._state is OwnershipState.HELD

    @property
    def epoch(self) -> int:
        """How often it was obtained."""
        return self._epoch

    def acquire(self) -> None:
        """Obtain it now; no effect (and no new epoch) when it is held.

        :raises BusyError: somebody else has it; the state is what it was before.
        """
        self._acquire(name_holder=True)

    def keep(self) -> bool:
        """Call off a release that still flushes. :returns: whether it is held."""
        with self._lock:
            if self.held:
                self._turn += 1
            return self.held

    def acquire_later(self, when_held: Callable[[], None]) -> None:
        """Obtain it as soon as its holder lets go, tried every 50 ms in the background.

        :param when_held: called once, from this thread when it is free at once, else from another; not called
            when :meth:`release` comes first, nor when it is wanted already: then who asked first is told.
        """
        with self._lock:
            waiting, before = self._state is OwnershipState.WANTED, self._turn
            obtained = self._try()
            if waiting and not obtained:
                self._turn = before
                return
            turn = self._turn
            if not obtained:
                self._state = OwnershipState.WANTED
        if obtained:
            when_held()
            return
        threading.Thread(target=self._retry, args=(turn, when_held), name="ownership", daemon=True).start()

    def release(self) -> None:
        """Give it up, now. The caller has drained the store and nobody uses it."""
        with self._lock:
            self._turn += 1
            self._let_go()

    def close(self) -> None:
        """Give it up for good; it cannot be acquired again. Idempotent."""
        with self._lock:
            self._turn += 1
            self.drop_old()
            self._claim.close()
            self._state = OwnershipState.RELEASED

    def follow(self, fd: int) -> None:
        """Claim the store through another open file of it from now on, without a moment in between.

        The claim through the present file is kept besides, for I/O that is under way: see :meth:`drop_old`.

        :param fd: duplicated.
        :raises BackstoreError: it cannot be claimed so; nothing has changed. :raises BusyError: as much.
        """
        with self._lock:
            other = self._claim.follow(fd, held=self.held)
            if other is not None:
                self._old.append(self._claim)
                self._claim = other

    def drop_old(self) -> None:
        """Give up what is claimed through earlier files. The caller knows that no request uses these."""
        with self._lock:
            while self._old:
                self._old.pop().close()

    def release_later(self, flush: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        """Flush the store in the background, then give it up, unless it is acquired again before that.

        A flush may take long, and who asks is a front end that must not wait (trap T9). The other side waits
        for the claim in any case.

        :param ready: whether nobody uses the store any more. It may take a moment; it is asked from another
            thread, again and again, and nothing is flushed or given up before it says so.
        """
        with self._lock:
            self._turn += 1
            turn = self._turn
            if not self.held:
                self._let_go()
                return
        threading.Thread(
            target=self._flush_and_release, args=(turn, flush, ready), name="release", daemon=True
        ).start()

    def _let_go(self) -> None:
        self.drop_old()
        self._claim.drop()
        self._state = OwnershipState.RELEASED

    def _acquire(self, *, name_holder: bool) -> None:
        with self._lock:
            self._turn += 1  # a release that still flushes is called off
            if self.held:
                return
            self._claim.take(name_holder=name_holder)
            self._state = OwnershipState.HELD
            self._epoch += 1

    def _try(self) -> bool:
        """:returns: whether it is held now. What is wrong besides a holder may pass: it is said once."""
        try:
            self._acquire(name_holder=False)
        except BusyError as error:
            _log.debug("%s", error)
        except (BackstoreError, OSError) as error:
            if str(error) != self._complaint:
                _log.warning("'%s' cannot be obtained yet: %s", self._name, error)
            self._complaint = str(error)
        return self.held

    def _retry(self, turn: int, when_held: Callable[[], None]) -> None:
        pause = threading.Event()
        told = False
        while not pause.wait(RETRY_S):
            with self._lock:
                if turn != self._turn:
                    return
                if self._try():
                    break
                self._turn = turn
            if not told:
                self._tell_holder()
                told = True
        when_held()

    def _tell_holder(self) -> None:
        """Outside of the lock, and once a wait: it looks at all processes."""
        try:
            holder = self._claim.holder()
        except OSError:
            holder = None  # closed meanwhile
        _log.info("waiting for '%s' to be given up%s", self._name, f": {holder}" if holder else "")

    def _flush_and_release(self, turn: int, flush: Callable[[], None], ready: Callable[[], bool]) -> None:
        if not self._await_ready(turn, ready):
            return
        try:
            flush()
        except OSError as error:
            _log.error("'%s' is given up, but could not be flushed: %s", self._name, error.strerror)
        with self._lock:
            if turn == self._turn:
                self._let_go()

    def _await_ready(self, turn: int, ready: Callable[[], bool]) -> bool:
        """:returns: whether to go on; not when somebody changed their mind."""
        pause = threading.Event()
        told = False
        while turn == self._turn:
            if ready():
                return True
            if not told:
                _log.error("requests to '%s' do not end: it is kept, and who wants it must wait", self._name)
                told = True
            pause.wait(RETRY_S)
        return False
