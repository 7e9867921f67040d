"""Processes that outlive who started them: known by number and start time, held by a pidfd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, Self

from msgspec import Struct

_GONE: Final = " (deleted)"  # as proc(5) has it
_MAX_READ: Final = 1024
_START_TIME: Final = 19  #: fields of /proc/PID/stat behind the name, before the start time.


class Identity(Struct, frozen=True):
    """A process, once and for all: its number is given out again, its start time and the boot are not."""

    pid: int
    started: int  #: clock ticks after the boot
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity:
        """:raises ProcessLookupError: there is no such process."""
        try:
            fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        except OSError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        return cls(pid, int(fields[_START_TIME]), boot_id())


@cache
def boot_id() -> str:
    """A name for the time since the host's boot."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def _read(path: str) -> bytes:
    """A short file, past Python's own files: a target's first would make 200 shared pages its own."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MAX_READ)
    finally:
        os.close(fd)


class Log(NamedTuple):
    """A file that a process writes to; ``gone``: it was removed under it."""

    path: Path
    gone: bool


class Process:
    """A process that can be waited for and signalled, and is never mistaken for another."""

    def __init__(self, identity: Identity, fd: int) -> None:
        self.identity = identity
        self._fd = fd

    @classmethod
    def find(cls, identity: Identity) -> Self | None:
        """:returns: ``None``: it has ended."""
        try:
            fd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        found = cls(identity, fd)
        with contextlib.suppress(ProcessLookupError):
            if Identity.of(identity.pid) == identity and found.alive:
                return found
        return None

    @property
    def pid(self) -> int:
        return self.identity.pid

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._fd

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """:returns: whether it ended in time."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def signal(self, number: signal.Signals) -> None:
        """No effect when it has ended. :raises PermissionError: it is another user's."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    @property
    def log(self) -> Log | None:
        """What its stderr leads to; ``None``: it has ended, or is another user's."""
        try:
            link = os.readlink(f"/proc/{self.pid}/fd/2")
        except OSError:
            return None
        return Log(Path(link.removesuffix(_GONE)), link.endswith(_GONE)) if self.alive else None

    def __del__(self) -> None:
        """Whoever still looks at it keeps it open."""
        os.close(self._fd)
