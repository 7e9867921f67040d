"""The steward: a process that keeps its starter's rights for a target that gave them up.

It answers the questions of ``ringway.target.host``, one at a time, and ends with its target. It never sees a
guest's bytes. A target that was taken over can learn from it who uses a file that it has open, open a device
that it can read once more for reading, and have its own sockets removed; nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import signal
import socket
import threading
from typing import Any, Final, NoReturn

from ringway import holders
from ringway.target import host, kernel
from ringway.target.host import Question
from ringway.target.sandbox import privileges
from ringway.target.sandbox.filters import Filter
from ringway.target.sandbox.forking import bare_fork

_log: Final = logging.getLogger(__name__)

NAME: Final = "ringway-steward"
_ENDED: Final = "the target's steward has ended"
#: Bytes of a message: a path has 4096, each of which takes six in JSON when it is no character.
MAX_MESSAGE: Final = 32 * 1024
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
        self._closing = False
        self._ended = threading.Lock()  # taken by who tells of its end, for good

    @classmethod
    def start(cls, own_filter: Filter | None) -> Steward:
        """Fork one, which loads this filter. What is opened after this it never has.

        :raises OSError: the process may have no child.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = bare_fork()
        if pid == 0:
            _be_steward(theirs.detach(), own_filter)
        theirs.close()
        ours.settimeout(_PATIENCE_S)
        return cls(ours, pid)

    def begin(self, made: dict[str, host.Identity]) -> None:
        """Say what it may be asked to remove, once and for all. It holds no file of the target's after this.

        :raises OSError: it ended, or there is too much.
        """
        if self._channel.recv(MAX_MESSAGE) != _READY:
            raise ConnectionResetError(errno.ECONNRESET, _ENDED)
        _send(self._channel, list(made.items()), None)

    def ask(self, question: Question, text: str = "", fd: int | None = None) -> tuple[Any, int | None]:
        """As ``host.Delegate.ask``.

        A steward can hang: it looks at other processes' files. Who asks again before it has answered, or for
        a name while another thread waits for it, is told so at once: a session waits for names.

        :raises ConnectionResetError: it has ended.
        """
        if not self._lock.acquire(blocking=question is not Question.COMMAND_NAME):
            raise BlockingIOError(errno.EAGAIN, "the steward is busy")
        try:
            self._catch_up()
            _send(self._channel, [self._asked + 1, question, text], fd)
            self._asked += 1
            value, error, opened = self._take()
        except ConnectionError as error_:
            self._tell_end()
            raise ConnectionResetError(errno.ECONNRESET, _ENDED) from error_
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

    def watch(self) -> None:
        """Say so in the log if it ends before it is told to: it would be missed much later, or never."""
        threading.Thread(target=self._watch, name="steward-watch", daemon=True).start()

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._channel, 0)  # a hang-up is told of in any case
        poller.poll()
        self._tell_end()

    def _tell_end(self) -> None:
        if not self._closing and self._ended.acquire(blocking=False):
            _log.error(
                "%s (pid %d): it claims no block devices any more, names nobody who uses a disk, and this"
                " target's sockets stay when it ends; guests are served on; start the target again soon",
                _ENDED,
                self._pid,
            )

    def close(self) -> None:
        """Let it end, and wait for that."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # for who watches, too
        self._channel.close()
        with contextlib.suppress(OSError):
            os.waitpid(self._pid, 0)


def _send(channel: socket.socket, message: object, fd: int | None) -> None:
    """:raises OSError: EMSGSIZE: it is too long; or nobody is there."""
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE:
        raise OSError(errno.EMSGSIZE, f"a message of {len(data)} bytes; the steward takes {MAX_MESSAGE}")
    if fd is None:
        channel.send(data)
    else:
        socket.send_fds(channel, [data], [fd])


def _receive(channel: socket.socket) -> tuple[Any, int | None]:
    """:raises ConnectionResetError: the other side left, or speaks another language.

    :raises OSError: nothing came in time.
    """
    data, fds, flags, _ = socket.recv_fds(channel, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    if flags & socket.MSG_TRUNC:
        _close(fds[0] if fds else None)
        raise ConnectionResetError("the other side sends more than it may")
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
            _learn(own)
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


def _learn(channel: socket.socket) -> None:
    """What may be removed: heard from a target that has yet to see its guest, and never again."""
    entries, _ = _receive(channel)
    host.take_over({path: (device, inode) for path, (device, inode) in entries})


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
