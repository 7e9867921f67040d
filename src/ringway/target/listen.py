"""Listening sockets on paths: checked, replaced when their process is dead, removed if still ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from typing import Final

from ringway.control import SUFFIX
from ringway.errors import BusyError, ConflictError, NotFoundError, PermissionDeniedError, UsageError
from ringway.holders import process_name
from ringway.target import host

MAX_PATH_BYTES: Final = 107  #: sun_path without its terminating zero
_BACKLOG: Final = 16
_TURN_S: Final = 2.0


class _PathSocket(socket.socket):
    """A socket that takes its path away with it, whoever closes it.

    The path goes first: as long as the socket is open its inode is in use, so that what has the same number
    is the same socket. Later, a successor's socket could have it.
    """

    _path: str | None = None
    _its: host.Identity | None = None

    def bind_path(self, path: str) -> None:
        """:raises OSError: as bind."""
        self.bind(path)
        self._path, self._its = path, host.made(path)

    def remove_path(self) -> None:
        """Remove the path unless another socket has taken its place. Idempotent."""
        path, self._path = self._path, None
        if path is not None and self._its is not None:
            host.remove(path, self._its)

    def close(self) -> None:
        """Remove the path, and close. Idempotent."""
        self.remove_path()
        super().close()


class Listener:
    """A listening Unix socket on a path. Made by :func:`listen`."""

    def __init__(self, path: str, sock: _PathSocket) -> None:
        self.path = path
        self.socket: socket.socket = sock
        self._socket = sock

    def remove_path(self) -> None:
        """Let nobody come by the path any more; who came already is still accepted. Idempotent."""
        self._socket.remove_path()

    def close(self) -> None:
        """Stop listening; remove the path unless another socket has taken its place. Idempotent."""
        self.socket.close()


def listen(
    path: str,
    *,
    mode: int = 0o660,
    group: int | None = None,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> Listener:
    """Listen on a path. A socket that a dead process left there is replaced; nothing else is touched.

    :param mode: permissions; set before anybody can connect, as is the ``group`` (a number) that owns it.
    :param kind: of the socket: a stream of bytes, or packets in their order.
    :raises UsageError: the path is empty or too long.
    :raises NotFoundError: its directory does not exist.
    :raises PermissionDeniedError: its directory is not writable.
    :raises BusyError: a live process listens there; ``.holder`` names it.
    :raises ConflictError: something that is no socket is there.
    """
    check_path(path)
    try:
        with _one_at_a_time(path):
            _clear(path)
            return _bound(path, mode, group, kind)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _not_writable(path) from error
        raise


@contextlib.contextmanager
def endpoint(path: str, *, group: int | None = None) -> Iterator[tuple[Listener, Listener]]:
    """Listen for front ends, and beside that, for this user alone, for the control socket's clients.

    :param group: whose front ends may come; as for :func:`listen`, which says what may be wrong.
    """
    main = listen(path, group=group)
    try:
        control = listen(path + SUFFIX, mode=0o600)
    except BaseException:
        main.close()
        raise
    try:
        yield main, control
    finally:
        control.close()
        main.close()


def _bound(path: str, mode: int, group: int | None, kind: socket.SocketKind) -> Listener:
    """Bind where nothing is. :raises OSError: as bind; then nothing is there."""
    sock = _PathSocket(socket.AF_UNIX, kind)
    try:
        os.fchmod(sock.fileno(), mode)  # bind makes the path so, less what the umask takes away
        sock.bind_path(path)
        _set_mode(path, mode, group)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Listener(path, sock)


def check_path(path: str) -> None:
    """Check what can be checked before anything is made.

    :raises UsageError: empty, or too long for a socket. :raises NotFoundError: no such directory.
    :raises PermissionDeniedError: the way to its directory is closed.
    """
    if not path:
        raise UsageError("the socket path is empty", hint="name one, as in --socket /run/disk.sock")
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise UsageError(
            f"the socket path has {length} bytes, and a socket's can have {MAX_PATH_BYTES}: '{path}'",
            hint="take a shorter one with --socket, as in /run/disk.sock",
        )
    directory = os.path.dirname(path) or "."
    try:
        exists = stat.S_ISDIR(os.stat(directory).st_mode)
    except PermissionError as error:
        raise _not_writable(path) from error
    except OSError:
        exists = False
    if not exists:
        raise NotFoundError(f"'{directory}' is not a directory", hint=f"make it with: mkdir -p '{directory}'")


def _set_mode(path: str, mode: int, group: int | None) -> None:
    """Give a socket that was just bound its group and its mode, whatever the umask is.

    A symbolic link is not followed.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode):
            return
        if group is not None and status.st_gid != group:
            os.chown(f"/proc/self/fd/{fd}", -1, group)
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """Let two starts on one path look and bind one after the other: a lock on the directory leaves no file.

    Who keeps the lock for longer than two seconds is not one of us, and is not waited for.
    """
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _TURN_S
        while not _try_lock(fd) and time.monotonic() < deadline:
            time.sleep(0.001)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EINTR)  # a file system without locks: go on
    return True


def _clear(path: str) -> None:
    """Remove a dead socket.

    :raises BusyError: it lives. :raises ConflictError: it is no socket. :raises OSError: as unlink.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConflictError(
            f"'{path}' exists and is not a socket", hint="take another --socket, or remove it if you can"
        )
    if (holder := _listener(path)) is not None:
        raise BusyError(
            f"the socket '{path}' is in use: {holder}",
            holder=holder,
            hint="stop it, or take another --socket",
        )
    os.unlink(path)


def _listener(path: str) -> str | None:
    """Name who listens on a socket; ``None`` when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as error:  # full (EAGAIN), or not permitted: somebody is there
            return f"a process that cannot be asked ({error.strerror})"
        return process_name(peer_process(probe))


def peer_process(sock: socket.socket) -> int:
    """Process id of a connected socket's other side, as it was when it connected or listened."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)


def _not_writable(path: str) -> PermissionDeniedError:
    directory = os.path.dirname(path) or "."
    return PermissionDeniedError(
        f"'{directory}' is not writable",
        hint="take a --socket in a directory of your own, or change its mode",
    )
