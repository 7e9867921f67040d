"""The steward: a process that keeps its starter's rights for a target that gave them up.

It answers the questions of ``ringway.target.host``, one at a time, and ends with its target. It never sees a
guest's bytes. A target that was taken over can learn from it who uses a file that it has open, open a device
that it can read once more for reading, and have its own sockets removed; nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import threading
from typing import Any, Final, NoReturn

from ringway import holders
from ringway.target import host, kernel
from ringway.target.host import Question
from ringway.target.sandbox import privileges
from ringway.target.sandbox.filters import Filter

NAME: Final = "ringway-steward"
_MAX_MESSAGE: Final = 8192
_PATIENCE_S: Final = 5.0
_READY: Final = b"ready"
_STANDARD_FDS: Final = 3


class Steward:
    """The target's end. From any thread, one question at a time.

    Made by :meth:`start`, while the process has no other threads.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self._asked = self._answered = 0
        self._lock = threading.Lock()

    @classmethod
    def start(cls, own_filter: Filter | None) -> Steward:
        """Fork one, which loads this filter. It holds no file of the target's when this returns.

        :raises OSError: the process may have no child, or it ended at once.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _be_steward(theirs.detach(), own_filter)
        theirs.close()
        ours.settimeout(_PATIENCE_S)
        if ours.recv(_MAX_MESSAGE) != _READY:
            raise ConnectionResetError("the steward ended")
        return cls(ours, pid)

    def ask(self, question: Question, text: str = "", fd: int | None = None) -> tuple[Any, int | None]:
        """As ``host.Delegate.ask``.

        A steward can hang: it looks at other processes' files. Who asks again before it has answered, or for
        a name while another thread waits for it, is told so at once: a session waits for names.
        """
        if not self._lock.acquire(blocking=question is not Question.COMMAND_NAME):
            raise BlockingIOError(errno.EAGAIN, "the steward is busy")
        try:
            self._catch_up()
            self._asked += 1
            _send(self._channel, [self._asked, question, text], fd)
            value, error, opened = self._take()
        finally:
            self._lock.release()
        if error:
            raise OSError(error, os.strerror(error))
        return value, opened

    def _take(self) -> tuple[Any, int, int | None]:
        """Wait for the next answer. :raises OSError: it does not come in time."""
        (self._answered, value, error), opened = _receive(self._channel)
        return value, error, opened

    def _catch_up(self) -> None:
        """Take the answer that somebody gave up. :raises BlockingIOError: it has not come yet."""
        if self._answered == self._asked:
            return
        self._channel.setblocking(False)
        try:
            _close(self._take()[2])
        finally:
            self._channel.settimeout(_PATIENCE_S)

    def close(self) -> None:
        """Let it end, and wait for that."""
        self._channel.close()
        with contextlib.suppress(OSError):
            os.waitpid(self._pid, 0)


def _send(channel: socket.socket, message: object, fd: int | None) -> None:
    data = json.dumps(message).encode()
    if fd is None:
        channel.send(data)
    else:
        socket.send_fds(channel, [data], [fd])


def _receive(channel: socket.socket) -> tuple[Any, int | None]:
    """:raises ConnectionResetError: the other side left. :raises OSError: nothing came in time."""
    data, fds, _, _ = socket.recv_fds(channel, _MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise ConnectionResetError("the other side left")
    return json.loads(data), fds[0] if fds else None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


# The other process


def _be_steward(channel: int, own_filter: Filter | None) -> NoReturn:
    """Serve until the target ends, and end.

    What stops a target (Ctrl-C reaches both) must not stop its steward before it.
    """
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        _keep_only(channel)
        privileges.name_process(NAME)
        holders.stand_in_for(os.getppid())
        _confine(own_filter)
        with socket.socket(fileno=_STANDARD_FDS) as own:
            own.send(_READY)
            _serve(own)
    finally:
        os._exit(0)


def _confine(own_filter: Filter | None) -> None:
    """Keep what it takes to look at other processes' files, to open a device and to remove a socket."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            privileges.empty_bounding_set()
        privileges.keep_capabilities(
            privileges.CAP_DAC_OVERRIDE, privileges.CAP_DAC_READ_SEARCH, privileges.CAP_SYS_PTRACE
        )
    privileges.forbid_new_privileges()
    if own_filter is not None:
        with contextlib.suppress(OSError):  # its target says that there is no seccomp
            own_filter.load()


def _keep_only(channel: int) -> None:
    """Close all else: a disk's locks last as long as any copy of its file, and pipes have readers."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(_STANDARD_FDS):
        os.dup2(null, number)
    os.dup2(channel, _STANDARD_FDS, inheritable=False)
    os.closerange(_STANDARD_FDS + 1, os.sysconf("SC_OPEN_MAX"))


def _serve(channel: socket.socket) -> None:
    while True:
        try:
            (number, question, text), fd = _receive(channel)
        except ConnectionResetError:
            return
        opened = None
        try:
            value, opened = _answer(Question(question), text, fd)
            _send(channel, [number, value, 0], opened)
        except OSError as error:
            _send(channel, [number, None, error.errno], None)
        finally:
            _close(fd)
            _close(opened)


def _answer(question: Question, text: str, fd: int | None) -> tuple[Any, int | None]:
    """:raises OSError: it failed, or is not to be had."""
    match question:
        case Question.COMMAND_NAME:
            return host.command_name(int(text)), None
        case Question.REMOVE:
            host.remove_made(text)
            return None, None
        case Question.FORGET:
            host.forget(text)
            return None, None
    if fd is None:
        raise OSError(22, "no file came along")
    if question is Question.OPEN_EXCLUSIVE:
        # opening again asks for the steward's rights: who has but a place (O_PATH) never had to show any
        if not (host.is_device(fd) and kernel.is_readable(fd)):
            raise PermissionError(1, "not a block device that was opened for reading")
        return None, host.open_exclusive(fd)
    return host.LOOKS[question](fd), None
