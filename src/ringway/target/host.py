"""What a target wants of its host's files while it runs: to know who uses one, to claim a device, to remove a
socket.

A confined target can do none of it itself: what it asks goes to its delegate then (:func:`delegate_to`), a
process that was set aside before the target gave up its rights. The delegate is told little and does little:
see ``ringway.target.sandbox.steward``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, Protocol

from ringway import holders
from ringway.vhost_user.connection import command_name as read_command_name

_log: Final = logging.getLogger(__name__)

Identity = tuple[int, int]  # device and inode


class Question(StrEnum):
    """All that a delegate can be asked."""

    LOCK_HOLDER = "lock-holder"
    DEVICE_USER = "device-user"
    FILE_USER = "file-user"
    OPENER = "opener"
    DISCARD_LIMITS = "discard-limits"
    OPEN_EXCLUSIVE = "open-exclusive"
    COMMAND_NAME = "command-name"
    REMOVE = "remove"
    FORGET = "forget"


class Delegate(Protocol):
    """Who acts for a confined process."""

    def ask(self, question: Question, text: str = "", fd: int | None = None) -> tuple[Any, int | None]:
        """:returns: what this module's function of that name returns, and a file descriptor if it is one.

        :raises OSError: what was asked for failed, or nobody answers.
        """


_delegate: Delegate | None = None
_made: Final[dict[str, Identity]] = {}  # what this process put on paths, and may remove again


def delegate_to(delegate: Delegate | None) -> None:
    """Let another process do from now on what this module does."""
    global _delegate
    _delegate = delegate


def is_delegated() -> bool:
    """Whether this process is confined."""
    return _delegate is not None


def lock_holder(fd: int) -> str | None:
    """As ``holders.lock_holder``."""
    return _told(Question.LOCK_HOLDER, fd)


def device_user(fd: int) -> str | None:
    """As ``holders.device_user``, of an open device."""
    return _told(Question.DEVICE_USER, fd)


def file_user(fd: int) -> str | None:
    """As ``holders.file_user``, of an open file."""
    return _told(Question.FILE_USER, fd)


def opener(fd: int) -> str | None:
    """As ``holders.opener``, of an open file or device."""
    return _told(Question.OPENER, fd)


def discard_limits(fd: int) -> tuple[int, int]:
    """Discard granularity and largest discard of an open block device, in bytes; (0, 0): it takes none."""
    if _delegate is None:
        return _read_discard_limits(fd)
    try:
        granularity, most = _delegate.ask(Question.DISCARD_LIMITS, fd=fd)[0]
    except OSError:
        return 0, 0
    return granularity, most


def open_exclusive(fd: int) -> int:
    """Open a block device again, exclusively: nobody mounts it, and nobody else opens it so.

    :returns: a new file descriptor, which can only read. :raises OSError: EBUSY: somebody else has it.
    """
    if _delegate is None:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    _, opened = _delegate.ask(Question.OPEN_EXCLUSIVE, fd=fd)
    assert opened is not None
    return opened


def command_name(pid: int) -> str:
    """A process's name, ``?`` when it cannot be told."""
    if _delegate is None:
        return read_command_name(pid)
    try:
        return str(_delegate.ask(Question.COMMAND_NAME, str(pid))[0])
    except OSError:
        return "?"


def made(path: str) -> Identity:
    """Note that this process put a file or socket on a path: it may be removed, also when it is confined.

    :raises OSError: nothing is there.
    """
    _made[path] = _identity(path)
    return _made[path]


def all_made() -> dict[str, Identity]:
    """What this process put on paths, and may remove again."""
    return dict(_made)


def take_over(made: dict[str, Identity]) -> None:
    """Have made just this, for who did."""
    _made.clear()
    _made.update(made)


def remove(path: str, its: Identity) -> None:
    """Remove what this process made, unless something else has taken its place."""
    if _delegate is None:
        remove_made(path, its)
        return
    try:
        _delegate.ask(Question.REMOVE, path)
    except OSError as error:
        _log.warning("'%s' could not be removed: %s", path, error.strerror or error)


def forget(path: str) -> None:
    """What was made is to stay."""
    _made.pop(path, None)
    if _delegate is not None:
        with contextlib.suppress(OSError):
            _delegate.ask(Question.FORGET, path)


def remove_made(path: str, its: Identity | None = None) -> None:
    """:func:`remove`, by this process itself.

    :param its: what was made there, if something else may have been made since.
    """
    expected = its or _made.get(path)
    if _made.get(path) == expected:
        _made.pop(path, None)
    with contextlib.suppress(OSError):
        if expected is not None and _identity(path) == expected:
            os.unlink(path)


def _identity(path: str) -> Identity:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _told(question: Question, fd: int) -> str | None:
    """An answer that nothing hangs on but a better message."""
    if _delegate is None:
        found = LOOKS[question](fd)
    else:
        try:
            found = _delegate.ask(question, fd=fd)[0]
        except OSError:
            found = None
    return None if found is None else str(found)


def _read_discard_limits(fd: int) -> tuple[int, int]:
    """A partition's limits are its disk's.

    A device that can discard but not write zeroes counts as taking none: a discarded block must read as
    zeroes, or one disk would read differently twice.
    """
    device = os.fstat(fd).st_rdev
    node = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    disk = os.path.dirname(node) if os.path.exists(f"{node}/partition") else node
    try:
        granularity, most, zeroes = (
            _read_number(f"{disk}/queue/{name}")
            for name in ("discard_granularity", "discard_max_bytes", "write_zeroes_max_bytes")
        )
    except (OSError, ValueError):
        return 0, 0
    return (granularity, most) if granularity and most and zeroes else (0, 0)


def _read_number(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def is_device(fd: int) -> bool:
    """Whether a file descriptor is of a block device."""
    return stat.S_ISBLK(os.fstat(fd).st_mode)


#: What is only looked at, by file descriptor.
LOOKS: Final[dict[Question, Callable[[int], Any]]] = {
    Question.LOCK_HOLDER: holders.lock_holder,
    Question.DEVICE_USER: lambda fd: holders.device_user(os.fstat(fd).st_rdev),
    Question.FILE_USER: lambda fd: holders.file_user(os.fstat(fd)),
    Question.OPENER: lambda fd: holders.opener(os.fstat(fd)),
    Question.DISCARD_LIMITS: _read_discard_limits,
}
