"""HTTP/1.1 as the daemon speaks it, without I/O: one request out, one response in, a connection for each.

Both transports read with this, so they read alike. ``http.client`` would serve the blocking one alone, at
three times the import time of all that is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

from msgspec import Struct, field

from ringway.errors import ControlError

MAX_HEAD: Final = 64 * 1024
MAX_LINE: Final = 16 << 20  #: of a stream
_SAFE: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:")
_HINT: Final = "is this the socket of ringwayd, and of the same version?"


class Request(Struct, frozen=True):
    """What is asked. ``patience_s``: how long the answer may take beyond what the transport allows."""

    method: str
    path: str  #: quoted
    query: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    patience_s: float = 0.0

    def encode(self) -> bytes:
        """The bytes on the wire. Spec: RFC 9112, 2.1."""
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in self.query.items())
        lines = [
            f"{self.method} {self.path}{'?' if query else ''}{query} HTTP/1.1",
            "Host: ringway",
            "Connection: close",
        ]
        if self.body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body or b"")


class Response(Struct, frozen=True):
    """A whole answer."""

    status: int
    body: bytes


def quote(text: str) -> str:
    """Percent-encode all that has a meaning in a path or a query."""
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode())


class _Part(Enum):
    HEAD = auto()
    PLAIN = auto()  #: so many bytes, or all until the end
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()  #: the empty line behind it
    TRAILER = auto()
    DONE = auto()


class ResponseReader:
    """Takes a response apart as its bytes come in.

    ``status`` is 0 until the head is complete.
    """

    def __init__(self) -> None:
        self.status = 0
        self._part = _Part.HEAD
        self._left: int | None = None  #: bytes of this part; None: until the connection ends
        self._buffer = bytearray()

    @property
    def done(self) -> bool:
        """The response is complete."""
        return self._part is _Part.DONE

    def feed(self, data: bytes) -> bytes:
        """Take what came; nothing means that the peer has closed.

        :returns: the piece of the body in it.
        :raises ControlError: that is no response. :raises EOFError: it ended before its end.
        """
        self._buffer += data
        body = bytearray()
        while not self.done and self._step(body):
            pass
        if not data and not self.done:
            if self._part is not _Part.PLAIN or self._left is not None:
                raise EOFError
            self._part = _Part.DONE
        return bytes(body)

    def _step(self, body: bytearray) -> bool:
        """:returns: whether there was enough to go on."""
        match self._part:
            case _Part.HEAD:
                return self._read_head()
            case _Part.CHUNK_SIZE:
                return self._read_chunk_size()
            case _Part.CHUNK_END | _Part.TRAILER:
                return self._read_line()
        return self._read_bytes(body)

    def _read_head(self) -> bool:
        head = self._take_through(b"\r\n\r\n")
        if head is None:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ControlError(f"what answers does not speak HTTP: {first[:80]!r}", hint=_HINT)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._begin_body(int(rest[:3]), headers)
        return True

    def _begin_body(self, status: int, headers: dict[str, str]) -> None:
        """Spec: RFC 9112, 6.3."""
        if status < 200:  # an interim response: the real one follows
            return
        self.status = status
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._part = _Part.CHUNK_SIZE
            return
        length = headers.get("content-length")
        if length is not None and not length.isdecimal():
            raise ControlError(f"an answer has the length {length[:20]!r}", hint=_HINT)
        self._left = None if length is None else int(length)
        self._part = _Part.DONE if self._left == 0 or status in (204, 304) else _Part.PLAIN

    def _read_bytes(self, body: bytearray) -> bool:
        size = len(self._buffer) if self._left is None else min(self._left, len(self._buffer))
        body += self._buffer[:size]
        del self._buffer[:size]
        if self._left is None:
            return False
        self._left -= size
        if self._left == 0:
            self._part = _Part.DONE if self._part is _Part.PLAIN else _Part.CHUNK_END
        return self._left == 0

    def _read_chunk_size(self) -> bool:
        """Spec: RFC 9112, 7.1."""
        line = self._take_through(b"\r\n")
        if line is None:
            return False
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError as error:
            raise ControlError("an answer's chunk has no size", hint=_HINT) from error
        self._part = _Part.CHUNK if self._left else _Part.TRAILER
        return True

    def _read_line(self) -> bool:
        line = self._take_through(b"\r\n")
        if line is None:
            return False
        if self._part is _Part.CHUNK_END:
            self._part = _Part.CHUNK_SIZE
        elif not line:
            self._part = _Part.DONE
        return True

    def _take_through(self, mark: bytes) -> bytes | None:
        at = self._buffer.find(mark)
        if at < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ControlError("an answer's head has no end", hint=_HINT)
            return None
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found


class Lines:
    """Cuts a stream into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """:returns: the lines that are complete now, without empty ones (they only keep a stream alive)."""
        self._rest += data
        if len(self._rest) > MAX_LINE:
            raise ControlError("a line of the stream has no end", hint=_HINT)
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        yield from (line for line in lines if line.strip())
