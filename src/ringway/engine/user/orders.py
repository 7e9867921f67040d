"""What the spawner is told, and what its children answer. An order is JSON in a memfd, of any length."""

from __future__ import annotations

import os
import socket
from typing import Final

import msgspec
from msgspec import Struct

from ringway.engine.user.processes import Identity
from ringway.errors import RingwayError
from ringway.model import EndpointSpec, ErrorRecord, LunInfo, LunSpec, SandboxMode, TargetConfig, TargetInfo

MAX_ANSWER: Final = 1 << 17
MAX_PATH: Final = 4096
NO_LOG: Final = "-"  #: a message of no bytes would be an end


class Serve(Struct, frozen=True, kw_only=True, tag="serve"):
    """Serve an endpoint. Answered with Born, then with Ready, or with Failed."""

    config: TargetConfig
    socket: str
    group: int | None = None  #: of the socket
    sandbox: SandboxMode = SandboxMode.AUTO
    user: str | None = None
    log: str | None = None  #: ``None``: the spawner's
    record: str | None = None
    spec: EndpointSpec | None = None  #: what the record says


class Probe(Struct, frozen=True, tag="probe"):
    """Open backstores as a target does, all at once, and close them. Answered with Probed, or with Failed.

    ``claim``: somebody else's is refused.
    """

    luns: tuple[LunSpec, ...]
    claim: bool = True


class Add(Struct, frozen=True, tag="add"):
    """Open a LUN's backstore for a target, which opens none itself. Answered with Added, or with Failed."""

    control: str
    spec: LunSpec


Order = Serve | Probe | Add


class Born(Struct, frozen=True, tag="born"):
    """The target's process; a pidfd comes along."""

    identity: Identity


class Ready(Struct, frozen=True, tag="ready"):
    """Front ends may come. An endpoint of very many LUNs is to be asked for its information."""

    info: TargetInfo | None


class Found(Struct, frozen=True):
    """A backstore that could be served."""

    kind: str
    size_bytes: int
    block_size: int


class Probed(Struct, frozen=True, tag="probed"):
    """One for each LUN of the order."""

    found: tuple[Found, ...]


class Added(Struct, frozen=True, tag="added"):
    """The guest has it."""

    info: LunInfo


class Failed(Struct, frozen=True, tag="failed"):
    """It could not be done, and nothing is left of it."""

    error: ErrorRecord

    @classmethod
    def of(cls, error: RingwayError) -> Failed:
        """What crosses the socket of an error."""
        return cls(ErrorRecord(error.code, error.message, error.hint))


Answer = Born | Ready | Probed | Added | Failed

_ORDER: Final[msgspec.json.Decoder[Order]] = msgspec.json.Decoder(Order)
_ANSWER: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)


def send_order(channel: socket.socket, order: Order) -> None:
    """Beside it goes the path of its log, which is all that the spawner itself needs to know.

    :raises OSError: nobody takes it.
    """
    log = order.log if isinstance(order, Serve) else None
    with open(os.memfd_create("order", os.MFD_CLOEXEC), "wb") as file:
        file.write(msgspec.json.encode(order))
        file.flush()
        socket.send_fds(channel, [os.fsencode(log or NO_LOG)], [file.fileno()])


def read_order(fd: int) -> Order:
    """Read a memfd. :raises msgspec.MsgspecError: it holds no order. :raises OSError: it cannot be read."""
    return _ORDER.decode(os.pread(fd, os.fstat(fd).st_size, 0))


def send_answer(channel: socket.socket, answer: Answer, fd: int | None = None) -> None:
    """:raises OSError: nobody listens any more."""
    data = msgspec.json.encode(answer)
    if fd is None:
        channel.send(data)
    else:
        socket.send_fds(channel, [data], [fd])


def receive_answer(channel: socket.socket) -> tuple[Answer | None, int | None]:
    """:returns: an answer and the file descriptor that came along; no answer: the other side ended.

    :raises OSError: none came in time. :raises msgspec.MsgspecError: it is none.
    """
    data, fds, _, _ = socket.recv_fds(channel, MAX_ANSWER, 1, socket.MSG_CMSG_CLOEXEC)
    return (_ANSWER.decode(data) if data else None), (fds[0] if fds else None)
