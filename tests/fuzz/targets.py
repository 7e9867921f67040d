"""Each target turns any bytes into what a front end or a guest could send, and checks what must hold.

They are plain functions: what instruments them is not their business. A target raises whatever it did not
expect.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from ringway import _core
from ringway.errors import ProtocolError
from ringway.scsi import RESUME, Gate, Geometry, Identity, LogicalUnit, Nexus, Reply, Status, Target, Task
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user.connection import Connection
from ringway.vhost_user.messages import HEADER, REPLIES, REQUESTS, Request
from ringway.vhost_user.session import Session
from ringway.vhost_user.throttle import Throttle

_log: Final = logging.getLogger(__name__)

PAGE: Final = 4096
_MEMORY: Final = 1 << 20


class Bytes:
    """An input that is read from its front; it ends in zeroes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next bytes, as many as there are."""
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        return part

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")


# Messages


def messages(data: bytes) -> None:
    """A codec refuses a payload, or makes a value of it that packs to the same bytes."""
    source = Bytes(data)
    known = list(REQUESTS)
    request = known[source.number() % len(known)]
    payload = source.take(PAGE)
    for codec in filter(None, (REQUESTS[request], REPLIES.get(request))):
        try:
            value = codec.unpack(payload)
        except ProtocolError:
            continue
        packed = codec.pack(value)
        assert codec.unpack(packed) == value, (request, value)
        assert len(packed) == len(payload)


# Sessions


def _read_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _memory() -> int:
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    os.ftruncate(fd, _MEMORY)
    return fd


_FDS: Final[tuple[Callable[[], int], ...]] = (
    _memory,
    lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
    _read_end,
    lambda: os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
    lambda: socket.socket(socket.AF_UNIX).detach(),
)


def _send(endpoint: socket.socket, source: Bytes) -> None:
    """Send what the input says: a message of a request that exists, with fds, or bytes that are none."""
    kind = source.number()
    known = list(REQUESTS)
    payload = source.take(source.number())
    if kind < 0xF0:
        flags = 1 | (8 if kind & 1 else 0)
        header = HEADER.pack(known[(kind >> 1) % len(known)], flags, len(payload))
        payload = header + payload
    fds = [_FDS[source.number() % len(_FDS)]() for _ in range(source.number() & 3)]
    try:
        if payload:
            socket.send_fds(endpoint, [payload], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _serve(connection: Connection, session: Session) -> bool:
    """Handle what came. :returns: whether the session goes on."""
    try:
        while (message := connection.receive()) is not None:
            session.handle(message)
    except (EOFError, ProtocolError):
        return False
    return True


@contextmanager
def _session(device: RecorderDevice) -> Iterator[tuple[socket.socket, Connection, Session]]:
    front, back = socket.socketpair()
    connection = Connection(back)
    session = Session(connection, device, Throttle(_log))
    try:
        with front:
            front.setblocking(False)
            yield front, connection, session
    finally:
        session.close()
        connection.close()


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _is_served(device: RecorderDevice) -> bool:
    with _session(device) as (front, connection, session):
        front.send(HEADER.pack(Request.GET_FEATURES, 1, 0))
        assert _serve(connection, session)
        return HEADER.unpack_from(front.recv(PAGE))[:2] == (Request.GET_FEATURES, 5)


def session(data: bytes) -> None:
    """Whatever a front end sends, and in whatever order: nothing stays of it, and the next is served."""
    source, device = Bytes(data), RecorderDevice()
    before = _open_fds()
    with _session(device) as (front, connection, served):
        while source.left:
            _take_answers(front)
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                _send(front, source)
            if not _serve(connection, served):
                break
    assert device.running == {}
    assert device.memory == ()
    assert _is_served(device)
    assert _open_fds() == before, "file descriptors were lost"


def _take_answers(front: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while True:
            _, fds, _, _ = socket.recv_fds(front, PAGE, 16)
            for fd in fds:
                os.close(fd)


# The slow path

_SIZE: Final = 16 * PAGE
_STATUSES: Final = frozenset(Status)


class _Host:
    """What a unit needs of a data path that does nothing else meanwhile."""

    instance = 1

    def __init__(self) -> None:
        self.gates: dict[Nexus, Gate] = {}

    def set_gate(self, nexus: Nexus, gate: Gate) -> None:
        self.gates[nexus] = gate

    @contextmanager
    def lock_range(self, offset: int, length: int, *, reads: bool) -> Iterator[None]:
        assert 0 <= offset < offset + length <= _SIZE, "a lock beyond the medium"
        yield

    def drain(self) -> bool:
        return True


_FAILURES: Final = (
    "",
    "range",
    "read_only",
    "no_lun",
    "field",
    "parameter",
    "overrun",
    "errno:5",
    "errno:28",
)
_NEXUSES: Final = (Nexus("a"), Nexus("b"))


def dispatcher(data: bytes) -> None:
    """Any commands in any order: each has an answer, a legal one; the medium keeps its size."""
    source = Bytes(data)
    geometry = Geometry((512, 4096)[source.number() & 1], 4096)
    target, host = Target(), _Host()
    for number in range(2):
        identity = Identity.derive("naa.5001405c0ffee001", f"SN{number}")
        unit = LogicalUnit(_core.Store.ram(_SIZE), host, identity, target, geometry)
        for nexus in _NEXUSES:
            unit.join(nexus, power_on=True)
        target.add(number, unit)
    while source.left:
        _command(target, source)


def _command(target: Target, source: Bytes) -> None:
    shape = source.number()
    cdb = source.take(16 if shape & 1 else 32).ljust(32, b"\0")
    data_out = source.take(source.number(2) & 0x7FF)
    size = len(data_out) + (source.number(2) if shape & 2 else 0)
    lun = (0, 0, 0, 1, 0xC101, None, 7, 0)[shape >> 2 & 7]
    failure = _FAILURES[source.number() % len(_FAILURES)] if shape & 0x20 else ""
    nexus = _NEXUSES[shape >> 6 & 1]
    outcome = target.execute(lun, Task(cdb, nexus, data_out, size, failure))
    if outcome is RESUME:
        assert not failure or lun not in target.units
        return
    assert isinstance(outcome, Reply)
    assert outcome.status in _STATUSES
    assert bool(outcome.sense) is (outcome.status is Status.CHECK_CONDITION), outcome
    assert len(outcome.sense) <= 96
    assert not (outcome.sense and outcome.data)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = MappingProxyType(
    {"messages": messages, "session": session, "dispatcher": dispatcher}
)


@contextmanager
def quiet() -> Iterator[None]:
    """Let nobody log: a fuzzer would hear of each refusal."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
