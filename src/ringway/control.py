"""The client's end of a control socket: one JSON line asks, one JSON line answers.

    {"version": 1, "verb": "statistics"}
    {"version": 1, "ok": {"uptime_s": 12.5, "luns": [...], ...}}
    {"version": 1, "error": {"code": "control", "message": "...", "hint": null}}

It knows no target: who asks one needs no more of it than this. (``ringway.target.control`` answers.)
"""

from __future__ import annotations

import socket
from typing import Final, Self, TypeVar

import msgspec

from ringway.errors import ControlError, TimedOutError, UnreachableError, error_from_code
from ringway.model import ControlRequest, ErrorRecord

SUFFIX: Final = ".ctl"  #: what a target's control socket has behind the path of its endpoint's

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class ControlChannel:
    """Asks a target. Use it in a ``with`` statement.

    :raises UnreachableError: nobody listens on the path, or it may not be used.
    """

    def __init__(self, path: str, *, timeout_s: float = 30.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._buffer = b""
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            hint = "give the target's socket, as printed by ringway serve, and run as the user who started it"
            raise UnreachableError(f"no target answers on '{path}': {error.strerror}", hint=hint) from error

    def call(self, request: ControlRequest, answer: type[AnswerT], *, fd: int | None = None) -> AnswerT:
        """Ask, and wait for the answer.

        :param fd: an open file to send along; the caller keeps it.
        :raises RingwayError: what the target answers, as the class of its code.
        :raises TimedOutError: no answer in time. :raises UnreachableError: the target hung up.
        """
        line = msgspec.json.encode(request) + b"\n"
        try:
            if fd is None:
                self._socket.sendall(line)
            else:
                sent = socket.send_fds(self._socket, [line], [fd])
                self._socket.sendall(line[sent:])
            return _decode_answer(self._read_line(), answer)
        except TimeoutError as error:
            raise TimedOutError(f"the target on '{self._path}' does not answer") from error
        except OSError as error:
            raise UnreachableError(f"the target on '{self._path}' hung up: {error.strerror}") from error

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if not (more := self._socket.recv(65536)):
                raise UnreachableError(f"the target on '{self._path}' hung up")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _decode_answer(line: bytes, answer: type[AnswerT]) -> AnswerT:
    """:raises RingwayError: the answer is an error. :raises ControlError: it is none at all."""
    try:
        message = msgspec.json.decode(line)
        if "error" in message:
            record = msgspec.convert(message["error"], ErrorRecord)
            raise error_from_code(record.code, record.message, hint=record.hint)
        return msgspec.convert(message["ok"], answer)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ControlError(f"the target's answer is not understood: {error}") from error
