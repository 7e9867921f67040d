"""The errors of Ringway: one tree, each class with a stable code, an exit status and an HTTP status.

    RingwayError                      failed               1
    +-- UsageError                    usage                2
    +-- NotFoundError                 not-found            3
    +-- UnreachableError              unreachable          4   the other side of a socket is not there
    |   +-- PermissionDeniedError     permission-denied    4
    +-- TimedOutError                 timed-out            5   what goes on is its `.operation`
    +-- ConflictError                 conflict             6
    |   +-- BusyError                 busy                 6   in use by somebody; `.holder` names who
    +-- DegradedError                 degraded             7
    +-- BackstoreError                backstore            1   what a disk is made of cannot serve
    +-- ProtocolError                 protocol             1   a front end broke vhost-user
    +-- ControlError                  control              1   a control socket does not speak as it should
    +-- GuestError                    guest                1   a guest did not do what it was asked

A user sees ``error: <message>`` and ``hint: <hint>``; a program matches on ``code``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class RingwayError(Exception):
    """Root of the tree.

    Notes (``add_note``) are told as well: what else went wrong, as clauses.

    :param message: one sentence, for a person.
    :param hint: the next step to take, or ``None``.
    """

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self._sentence = message
        self.hint = hint

    @property
    def message(self) -> str:
        """The sentence, with its notes, each once."""
        return "; ".join(dict.fromkeys((self._sentence, *getattr(self, "__notes__", ()))))


class UsageError(RingwayError):
    """What was asked for makes no sense, whatever the host's state."""

    code = "usage"
    exit_status = 2
    http_status = 400


class NotFoundError(RingwayError):
    """A named thing does not exist."""

    code = "not-found"
    exit_status = 3
    http_status = 404


class UnreachableError(RingwayError):
    """The other side of a socket cannot be reached."""

    code = "unreachable"
    exit_status = 4
    http_status = 503


class PermissionDeniedError(UnreachableError):
    """The caller may not do this."""

    code = "permission-denied"
    http_status = 403


class TimedOutError(RingwayError):
    """Work did not finish within the time that it was given.

    :param operation: the identifier of the operation that goes on, if there is one.
    """

    code = "timed-out"
    exit_status = 5
    http_status = 504

    def __init__(self, message: str, *, operation: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.operation = operation


class ConflictError(RingwayError):
    """The state of the host forbids it."""

    code = "conflict"
    exit_status = 6
    http_status = 409


class BusyError(ConflictError):
    """Somebody else uses it.

    :param holder: who, as far as it can be told (``"pid 4711 (qemu-system-x86)"``).
    """

    code = "busy"

    def __init__(self, message: str, *, holder: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.holder = holder


class DegradedError(RingwayError):
    """It works, but not as it should."""

    code = "degraded"
    exit_status = 7
    http_status = 500


class BackstoreError(RingwayError):
    """What a disk is made of cannot serve."""

    code = "backstore"
    http_status = 422


class ProtocolError(RingwayError):
    """A front end broke the vhost-user protocol."""

    code = "protocol"


class ControlError(RingwayError):
    """A peer on a control socket sent what this version does not understand."""

    code = "control"
    http_status = 400


class GuestError(RingwayError):
    """A guest did not do what it was asked."""

    code = "guest"


def all_errors(root: type[RingwayError] = RingwayError) -> Iterator[type[RingwayError]]:
    """Walk the tree, parents before children, in the order of definition."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def error_from_code(code: str, message: str, *, hint: str | None = None) -> RingwayError:
    """Rebuild an error that crossed a socket; an unknown code becomes the root class."""
    for kind in all_errors():
        if kind.code == code:
            return kind(message, hint=hint)
    return RingwayError(message, hint=hint)
