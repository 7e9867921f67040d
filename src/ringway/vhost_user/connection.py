"""One vhost-user socket: whole messages in and out, with the file descriptors that ride on them.

Nothing here blocks, and no fd is lost: what a peer sent lies in an :class:`OwnedFd` from the moment that it
arrives, and whoever does not take it closes it.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ringway.errors import ProtocolError
from ringway.vhost_user.messages import HEADER, MAX_PAYLOAD, VERSION, VERSION_MASK, request_name

_MAX_FDS: Final = 253  #: the kernel's SCM_MAX_FD: with room for all of them, none is dropped unseen
_ANCILLARY_SPACE: Final = socket.CMSG_SPACE(_MAX_FDS * struct.calcsize("i"))
_CREDENTIALS: Final = struct.Struct("=iII")
_GONE: Final = (BrokenPipeError, ConnectionResetError)


class OwnedFd:
    """A file descriptor with one owner. Closing it twice is allowed."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def fileno(self) -> int:
        """:raises ValueError: it is closed."""
        if self._fd is None:
            raise ValueError("the file descriptor is closed")
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def detach(self) -> int:
        """Give the ownership away."""
        fd = self.fileno()
        self._fd = None
        return fd


@dataclass(slots=True)
class Message:
    """One message as it came. Who handles it takes the fds that it wants and closes the message."""

    request: int
    flags: int
    payload: bytes
    fds: list[OwnedFd] = field(default_factory=list)

    @property
    def fd(self) -> OwnedFd:
        """The first fd, which stays the message's. :raises ProtocolError: it came without one."""
        if not self.fds:
            raise ProtocolError(f"{request_name(self.request)} came without a file descriptor")
        return self.fds[0]

    def take_fd(self) -> OwnedFd:
        """The first fd, the caller's from now on. :raises ProtocolError: it came without one."""
        fd = self.fd
        self.fds.remove(fd)
        return fd

    def close(self) -> None:
        """Close the fds that nobody took."""
        while self.fds:
            self.fds.pop().close()


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket."""

    pid: int
    uid: int
    name: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


def command_name(pid: int) -> str:
    """A process's name; ``?`` when /proc does not tell."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def peer_of(endpoint: socket.socket, name_of: Callable[[int], str] = command_name) -> Peer:
    """Ask the kernel (SO_PEERCRED) who connected, and ``name_of`` what it is called."""
    raw = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, name_of(pid))


class Connection:
    """A vhost-user stream over a connected unix socket, which it owns.

    The socket may be a blocking one: every call here returns at once.
    """

    def __init__(self, endpoint: socket.socket) -> None:
        self._socket = endpoint
        self._received = bytearray()
        self._due = HEADER.size
        self._fds: list[OwnedFd] = []
        self._outgoing: list[tuple[bytes, list[OwnedFd]]] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def peer(self, name_of: Callable[[int], str] = command_name) -> Peer:
        """Who is at the other end, as :func:`peer_of`."""
        return peer_of(self._socket, name_of)

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent: call :meth:`flush` once the socket is writable."""
        return bool(self._outgoing)

    def receive(self) -> Message | None:
        """Take the next message, or ``None`` while it has not come whole.

        :raises EOFError: the peer hung up, between two messages or in one.
        :raises ProtocolError: a header that no vhost-user peer sends.
        """
        while len(self._received) < self._due:
            if not self._read(self._due - len(self._received)):
                return None
            if len(self._received) == HEADER.size:
                self._due = HEADER.size + self._payload_size()
        return self._take()

    def send(self, request: int, flags: int, payload: bytes, fds: Sequence[OwnedFd] = ()) -> None:
        """Queue a message and send what the socket takes. The fds are closed once sent, or on an error.

        :raises EOFError: the peer hung up.
        """
        self._outgoing.append((HEADER.pack(request, VERSION | flags, len(payload)) + payload, list(fds)))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. :raises EOFError: the peer hung up."""
        while self._outgoing:
            data, fds = self._outgoing[0]
            sent = self._send_some(data, fds)
            if sent is None:
                return
            _close_all(fds)
            if sent == len(data):
                self._outgoing.pop(0)
            else:
                self._outgoing[0] = (data[sent:], [])

    def close(self) -> None:
        """Close the socket and every fd that was not handed out."""
        _close_all(self._fds)
        for _, fds in self._outgoing:
            _close_all(fds)
        self._outgoing.clear()
        self._socket.close()

    def _send_some(self, data: bytes, fds: list[OwnedFd]) -> int | None:
        # Not socket.send_fds(): Python 3.11 drops the flags that it is given, and blocks.
        numbers = array.array("i", [fd.fileno() for fd in fds])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
        try:
            return self._socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return None
        except _GONE as error:
            raise EOFError("the peer hung up before it took the answer") from error

    def _read(self, size: int) -> bool:
        """Read at most ``size`` bytes; false when there is nothing to read."""
        try:
            data = self._read_with_fds(size) if not self._received else self._read_plain(size)
        except BlockingIOError:
            return False
        except _GONE as error:
            raise EOFError("the peer hung up") from error
        if not data:
            raise EOFError("the peer hung up" + (" in the middle of a message" if self._received else ""))
        self._received += data
        return True

    def _read_plain(self, size: int) -> bytes:
        # Descriptors come with the first byte of a message only; a read without room for ancillary data
        # makes the kernel drop any other.
        return self._socket.recv(size, socket.MSG_DONTWAIT)

    def _read_with_fds(self, size: int) -> bytes:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        data, ancillary, result, _ = self._socket.recvmsg(size, _ANCILLARY_SPACE, flags)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                count = len(content) // struct.calcsize("i")
                numbers = struct.unpack_from(f"={count}i", content)
                self._fds += [OwnedFd(number) for number in numbers]
        if result & socket.MSG_CTRUNC:
            raise ProtocolError("more file descriptors came than this process can hold")
        return data

    def _payload_size(self) -> int:
        request, flags, size = HEADER.unpack(self._received)
        if flags & VERSION_MASK != VERSION:
            raise ProtocolError(f"{request_name(request)} has version {flags & VERSION_MASK}, not {VERSION}")
        if size > MAX_PAYLOAD:
            raise ProtocolError(f"{request_name(request)} announces {size} bytes, {MAX_PAYLOAD} are allowed")
        return int(size)

    def _take(self) -> Message:
        request, flags, _ = HEADER.unpack_from(self._received)
        message = Message(request, flags & ~VERSION_MASK, bytes(self._received[HEADER.size :]), self._fds)
        self._received.clear()
        self._due, self._fds = HEADER.size, []
        return message


def _close_all(fds: list[OwnedFd]) -> None:
    while fds:
        fds.pop().close()
