"""The daemon's socket: where it is, and the two transports over it.

A transport sends one :class:`~ringway.client.wire.Request` on a connection of its own, so it may be used from
many threads or tasks, and a daemon that was started again in between is no matter.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncGenerator, Generator, Iterable
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from ringway.client.wire import Lines, Request, Response, ResponseReader
from ringway.errors import PermissionDeniedError, RingwayError, TimedOutError, UnreachableError

if TYPE_CHECKING:
    import asyncio

Path: TypeAlias = str | os.PathLike[str]

ENVIRONMENT: Final = "RINGWAY_SOCKET"
SYSTEM: Final = "/run/ringway/api.sock"
SYSTEM_READ_ONLY: Final = "/run/ringway/ro.sock"
_PIECE: Final = 1 << 18
_GONE: Final = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)


class Transport(Protocol):
    """Carries requests to a daemon and waits for their answers."""

    def send(self, request: Request) -> Response:
        """Ask. :raises UnreachableError: nobody is there. :raises TimedOutError: no answer came in time."""

    def lines(self, request: Request) -> Generator[bytes | Response]:
        """Ask for a stream: first its head, as a response (whole if it is an error's), then line by line."""


class AsyncTransport(Protocol):
    """A :class:`Transport` for asyncio."""

    async def send(self, request: Request) -> Response:
        """Ask. :raises UnreachableError: nobody is there. :raises TimedOutError: no answer came in time."""

    def lines(self, request: Request) -> AsyncGenerator[bytes | Response]:
        """Ask for a stream, as :meth:`Transport.lines` does."""


def candidates(given: Path | None = None) -> tuple[str, ...]:
    """Where the daemon may be, in order: as given, as ``$RINGWAY_SOCKET`` says, or at its usual places.

    The read-only socket comes after the other: who may not use that one can still look.
    """
    if given is not None:
        return (os.fspath(given),)
    if named := os.environ.get(ENVIRONMENT):
        return (named,)
    own = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/ringway-{os.getuid()}"
    return (SYSTEM, SYSTEM_READ_ONLY, f"{own}/ringway/api.sock")


class SocketTransport:
    """Blocking. ``timeout_s`` is what an answer may take, beside the time that a request grants it."""

    def __init__(self, path: Path | None = None, timeout_s: float = 30.0) -> None:
        self._paths = candidates(path)
        self._timeout_s = timeout_s

    def send(self, request: Request) -> Response:
        """Ask, and read the whole answer."""
        timeout_s = self._timeout_s + request.patience_s
        deadline = time.monotonic() + timeout_s
        with _explained(timeout_s), self._connect(timeout_s) as connection:
            connection.sendall(request.encode())
            reader, body = ResponseReader(), bytearray()
            while not reader.done:
                connection.settimeout(max(deadline - time.monotonic(), 1e-6))
                body += reader.feed(connection.recv(_PIECE))
            return Response(reader.status, bytes(body))

    def lines(self, request: Request) -> Generator[bytes | Response]:
        """Ask for a stream; it has no time limit once its head is there."""
        with _explained(self._timeout_s), self._connect(self._timeout_s) as connection:
            connection.sendall(request.encode())
            reader, lines = ResponseReader(), Lines()
            first = _read_head(connection, reader)
            yield Response(reader.status, first if reader.status >= 400 else b"")
            connection.settimeout(None)
            yield from lines.feed(first)
            while not reader.done:
                yield from lines.feed(reader.feed(connection.recv(_PIECE)))

    def _connect(self, timeout_s: float) -> socket.socket:
        failures = []
        for path in self._paths:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.settimeout(timeout_s)
            try:
                connection.connect(path)
            except OSError as error:
                connection.close()
                failures.append((path, error))
            else:
                return connection
        raise _cannot_connect(failures)


class AsyncSocketTransport:
    """The same for asyncio."""

    def __init__(self, path: Path | None = None, timeout_s: float = 30.0) -> None:
        self._paths = candidates(path)
        self._timeout_s = timeout_s

    async def send(self, request: Request) -> Response:
        """Ask, and read the whole answer."""
        import asyncio

        timeout_s = self._timeout_s + request.patience_s
        with _explained(timeout_s):
            async with asyncio.timeout(timeout_s):
                stream, writer = await self._connect()
                with contextlib.closing(writer):
                    writer.write(request.encode())
                    reader, body = ResponseReader(), bytearray()
                    while not reader.done:
                        body += reader.feed(await stream.read(_PIECE))
                    return Response(reader.status, bytes(body))

    async def lines(self, request: Request) -> AsyncGenerator[bytes | Response]:
        """Ask for a stream; it has no time limit once its head is there."""
        import asyncio

        with _explained(self._timeout_s):
            reader, lines = ResponseReader(), Lines()
            async with asyncio.timeout(self._timeout_s):
                stream, writer = await self._connect()
                writer.write(request.encode())
                first = await _read_head_async(stream, reader)
            with contextlib.closing(writer):
                yield Response(reader.status, first if reader.status >= 400 else b"")
                for line in lines.feed(first):
                    yield line
                while not reader.done:
                    for line in lines.feed(reader.feed(await stream.read(_PIECE))):
                        yield line

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        import asyncio

        failures = []
        for path in self._paths:
            try:
                return await asyncio.open_unix_connection(path)
            except OSError as error:
                failures.append((path, error))
        raise _cannot_connect(failures)


def _read_head(connection: socket.socket, reader: ResponseReader) -> bytes:
    """Read until the head is there, and the whole of an error. :returns: the body that came along."""
    body = b""
    while not reader.done and (not reader.status or reader.status >= 400):
        body += reader.feed(connection.recv(_PIECE))
    return body


async def _read_head_async(stream: asyncio.StreamReader, reader: ResponseReader) -> bytes:
    body = b""
    while not reader.done and (not reader.status or reader.status >= 400):
        body += reader.feed(await stream.read(_PIECE))
    return body


@contextlib.contextmanager
def _explained(timeout_s: float) -> Generator[None]:
    """Turn what goes wrong on a connection into our own errors."""
    try:
        yield
    except TimeoutError as error:
        raise TimedOutError(
            f"ringwayd did not answer within {timeout_s:g} s",
            hint="it may be busy; what was asked for may still be done: see ringway operation list",
        ) from error
    except (EOFError, ConnectionError) as error:
        raise UnreachableError(
            "ringwayd hung up before it had answered",
            hint="it ended, or has all connections that it takes: try again, and look whether it was done",
        ) from error


def _cannot_connect(failures: Iterable[tuple[str, OSError]]) -> RingwayError:
    """The most telling of all failures."""
    failures = tuple(failures)
    for path, error in failures:
        if isinstance(error, PermissionError):
            return PermissionDeniedError(f"you may not use ringwayd's socket '{path}'", hint=_who_may(path))
        if not isinstance(error, _GONE):
            return UnreachableError(f"'{path}' cannot be connected to: {error.strerror or error}")
    places = " or ".join(f"'{path}'" for path, _ in failures)
    return UnreachableError(
        f"ringwayd is not there: nobody listens on {places}",
        hint="start it with systemctl start ringwayd, or as yourself: ringwayd --directory DIR; "
        f"--socket or {ENVIRONMENT} says where it listens",
    )


def _who_may(path: str) -> str:
    """Name the group that the socket belongs to, if it can be seen."""
    import grp

    try:
        group = grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        group = "ringway-admin"
    more = "; the group ringway may look" if group == "ringway-admin" else ""
    return f"join its group and log in again: usermod -aG {group} $USER{more}"
