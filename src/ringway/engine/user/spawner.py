"""``ringway-spawner``: a process that has imported all that targets need, and forks them.

It has one thread, and it waits for no child and no client: a child answers its client itself. Its death ends
no target.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn, Self

import click

import ringway
from ringway import logs
from ringway.engine.user import birth
from ringway.engine.user.orders import MAX_PATH, Failed, send_answer
from ringway.engine.user.processes import boot_id
from ringway.errors import ConflictError, PermissionDeniedError, RingwayError, UsageError
from ringway.target import host
from ringway.target.listen import listen
from ringway.target.sandbox import filters, privileges
from ringway.target.sandbox.confinement import warm_up
from ringway.target.sandbox.filters import Filters
from ringway.target.sandbox.forking import bare_fork

_log: Final = logging.getLogger(__name__)

NAME: Final = "ringway-spawner"
_BACKLOG: Final = 512
_LOOK_MS: Final = 30_000  #: how often it is looked whether the path is still there
_FIRST_PASSED_FD: Final = 3  # as sd_listen_fds(3) has it
_M_ARENA_MAX: Final = -8
_SORTING_SIZES: Final = (60000, 3000, 1024)  #: bytes; what is free is put in order by who asks for so much
_OURS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


class _Place(NamedTuple):
    """A path, and the socket that we put there."""

    path: str
    inode: int | None

    @classmethod
    def of(cls, listener: socket.socket) -> Self:
        path = listener.getsockname()
        return cls(path, _inode(path))

    def is_ours(self) -> bool:
        return _inode(self.path) == self.inode


def _inode(path: str) -> int | None:
    """``None``: nothing is there, or it cannot be told."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


class Spawner:
    """Takes orders on a listening socket until it is told to end.

    :param listener: of packets; only this user comes there.
    :param filters: what :func:`prepare` made.
    :param linger_s: it ends when nobody came for so long, and it has no child any more.
    """

    def __init__(
        self, listener: socket.socket, filters: Filters | None, *, linger_s: float = math.inf
    ) -> None:
        self._listener = listener
        self._filters = filters
        self._linger_s = linger_s
        self._needed_s = time.monotonic()
        self._place = _Place.of(listener)
        self._waiting: dict[int, socket.socket] = {}  # clients that have yet to say what they want
        self._children: dict[int, bytes] = {}  # process -> its log
        self._poller = select.poll()

    def run(self) -> None:
        """Until SIGTERM or SIGINT, until the socket's path is gone, for nobody can come then, or until it is
        not needed. Children go on.
        """
        receiver, sender = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        for number in _OURS:
            signal.signal(number, lambda *_: None)
        self._listener.setblocking(False)
        self._poller.register(self._listener, select.POLLIN)
        self._poller.register(receiver, select.POLLIN)
        look_ms = min(_LOOK_MS, self._linger_s * 1000)
        while self._place.is_ours():
            for fd, _ in self._poller.poll(look_ms):
                if fd == receiver:
                    if _ending(os.read(receiver, 4096)):
                        return
                    self._reap()
                else:
                    self._attend(fd)
            if not self._is_needed():
                self._finish()
                return

    def _attend(self, fd: int) -> None:
        self._needed_s = time.monotonic()
        if fd == self._listener.fileno():
            self._accept()
        else:
            self._take_order(self._waiting.pop(fd))

    def _is_needed(self) -> bool:
        """Whether somebody came lately, is about to give an order, or has a process here that will end."""
        if self._waiting or _has_children():
            self._needed_s = time.monotonic()
        return time.monotonic() - self._needed_s < self._linger_s

    def _finish(self) -> None:
        """Let nobody come any more, then serve who came just before: a new spawner is started for others."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._place.path)
        while ready := self._poller.poll(0 if not self._waiting else _LOOK_MS):
            for fd, _ in ready:
                if fd == self._listener.fileno() or fd in self._waiting:
                    self._attend(fd)
                else:
                    return

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:  # it left, or there are too many files
            _log.warning("a client could not be accepted: %s", error)
            return
        client.setblocking(False)
        self._waiting[client.fileno()] = client
        self._poller.register(client, select.POLLIN)

    def _take_order(self, client: socket.socket) -> None:
        """Fork who carries an order out; the client is theirs."""
        self._poller.unregister(client)
        with client:
            try:
                self._fork(client)
            except OSError as error:
                _log.warning("an order could not be taken: %s", error)
                refusal = ConflictError(f"the spawner cannot start a process: {error}")
                with contextlib.suppress(OSError):
                    send_answer(client, Failed.of(refusal))

    def _fork(self, client: socket.socket) -> None:
        """:raises OSError: no process can be had."""
        log, fds, _, _ = socket.recv_fds(client, MAX_PATH, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            return  # it left
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)  # a child has our handlers until it has its own
        try:
            if (pid := bare_fork()) == 0:
                birth.carry_out(client, fds[0], self._filters)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
            os.close(fds[0])
        self._children[pid] = log

    def _reap(self) -> None:
        """Take leave of children that ended; who was killed has that written into its log."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                log = self._children.pop(pid, None)
                if os.WIFSIGNALED(status) and log is not None:  # and not a steward
                    _write_obituary(log, pid, signal.Signals(os.WTERMSIG(status)))


def _has_children() -> bool:
    """Whether any lives, or waits to be taken leave of."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _ending(received: bytes) -> bool:
    return any(number != signal.SIGCHLD for number in received)


def _write_obituary(path: bytes, pid: int, number: signal.Signals) -> None:
    """Append a line to a log, if it is there still."""
    message = f"the target (pid {pid}) was killed by {number.name}"
    line = json.dumps({"time": time.time(), "level": "critical", "logger": __name__, "message": message})
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            logs.write_line(fd, line)
        finally:
            os.close(fd)


def prepare() -> Filters | None:
    """Make now what each child would make for itself, and leave memory alone from now on.

    A collection writes to each object that it looks at, and the first large allocation sorts what is free; a
    page that is written to is a child's own.
    """
    warm_up()
    boot_id()
    try:
        made = filters.prepare()
    except OSError as error:
        _log.warning("there are no filters of system calls: %s", error.strerror)
        made = None
    gc.disable()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.mallopt(_M_ARENA_MAX, 1)
    gc.collect()
    gc.freeze()
    libc.malloc_trim(0)
    for size in _SORTING_SIZES:
        libc.free(ctypes.c_void_p(libc.malloc(size)))
    return made


def handed_socket() -> socket.socket | None:
    """The listening socket that a service manager opened for us, if one did (sd_listen_fds(3))"""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(_FIRST_PASSED_FD, False)
    return socket.socket(fileno=_FIRST_PASSED_FD)


def own_socket(path: str) -> socket.socket:
    """Listen on a path. :raises RingwayError: as ``listen``."""
    path = os.path.abspath(path)
    listener = listen(path, mode=0o600, kind=socket.SOCK_SEQPACKET).socket
    host.forget(path)  # no target may have it removed
    listener.listen(_BACKLOG)
    return listener


@click.command(NAME)
@click.option("--socket", "path", metavar="PATH", help="Listen there, unless a socket was handed in.")
@click.option("--detach", metavar="LOG", help="Return once it listens, and go on in the background.")
@click.option(
    "--linger",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    help="End when nobody came for so long, and no target of its is left.  [default: never]",
)
@click.version_option(ringway.__version__, message="%(prog)s %(version)s")
def command(path: str | None, detach: str | None, linger: float | None) -> None:
    """Start the targets of the user engine, for ringwayd.

    It is started when it is needed. Ending it ends no target.
    """
    listener = handed_socket()
    if listener is None and path is None:
        raise UsageError("there is nowhere to listen", hint=f"as in: {NAME} --socket spawner.sock")
    with listener or own_socket(str(path)) as ours:
        logs.log_directly()
        made = prepare()
        if detach is not None:
            _detach(ours, detach)
        privileges.name_process(NAME)
        privileges.adopt_orphans()  # the stewards of targets that were killed
        os.chdir("/")
        _notify_ready()
        Spawner(ours, made, linger_s=math.inf if linger is None else linger).run()


def _detach(listener: socket.socket, log: str) -> None:
    """Go on as somebody's child no more, and say all into a log from now on.

    :raises PermissionDeniedError: the log cannot be written.
    """
    try:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise PermissionDeniedError(f"'{log}' cannot be written: {error.strerror}") from error
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for number, fd in enumerate((null, said, said)):
        os.dup2(fd, number)
    listener.listen(_BACKLOG)  # so that its peers are told the process that goes on


def _notify_ready() -> None:
    """Tell a service manager that orders are taken (sd_notify(3)). Targets do not inherit the way to it."""
    path = os.environ.pop("NOTIFY_SOCKET", "")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(path.replace("@", "\0", 1) if path.startswith("@") else path)
            manager.send(b"READY=1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program ``ringway-spawner``."""
    try:
        command.main(arguments, prog_name=NAME, standalone_mode=False)
    except RingwayError as error:
        _complain(error.message, error.hint)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(0)


def _complain(message: str, hint: str | None) -> None:
    click.echo(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), err=True)


if __name__ == "__main__":
    main()
