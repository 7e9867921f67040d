"""A vhost-user front end: the VMM's side of the protocol, with a pretended guest's memory and rings."""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self

from ringway.errors import ProtocolError, TimedOutError, UnreachableError
from ringway.testing.memory import USER_BASE, GuestMemory, Piece
from ringway.testing.orders import NEEDS, QEMU, SPDK, Order, Step
from ringway.testing.ring import Ring
from ringway.testing.waiting import PATIENCE_S
from ringway.vhost_user.connection import Connection, Message, OwnedFd
from ringway.vhost_user.messages import (
    LOG_ALL,
    MAX_CONFIG,
    PROTOCOL_FEATURES,
    REPLIES,
    REQUESTS,
    U64,
    BackendRequest,
    ConfigSpace,
    Flag,
    Inflight,
    LogArea,
    ProtocolFeature,
    Request,
    VringFd,
    VringState,
)

DEVICE_FEATURES: Final = (1 << 24) - 1  #: the bits that mean something else for each kind of device
EVENT_IDX: Final = 1 << 29
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
LOG_PAGE: Final = 4096


class RefusedError(ProtocolError):
    """The back end answered a request with a NAK."""


class FrontEnd:
    """A connection to a back end, and what lives longer than it: memory, rings, in-flight region, log.

    ``FrontEnd(path).open()`` connects, shakes hands as ``order`` says and starts the rings. Each message is
    also a method of its own, so that a test can say anything at any time. Whatever is waited for, it is for
    ``timeout_s`` at most. A context manager that closes everything.

    :param target: path of the back end's socket, or a socket that is connected to it.
    :param queues: rings that are made. :param queue_size: entries of each.
    :param memory: the guest's; by default one region of 16 MiB. It is closed with the front end.
    :param features: virtio bits that are acknowledged if they are offered; by default all that are the
        device's own, and those of the transport that ``order`` takes.
    :param indirect: whether chains are indirect where nothing else is said.
    """

    def __init__(
        self,
        target: str | PathLike[str] | socket.socket,
        *,
        queues: int = 1,
        queue_size: int = 128,
        order: Order = QEMU,
        memory: GuestMemory | None = None,
        features: int | None = None,
        indirect: bool = False,
        timeout_s: float = PATIENCE_S,
    ) -> None:
        self.order = order
        self.timeout_s = timeout_s
        self.queue_size = queue_size
        self.memory = memory or GuestMemory(user_base=0 if order is SPDK else USER_BASE)
        self.rings = [Ring(self.memory, queue_size, indirect=indirect) for _ in range(queues)]
        self.bases = [0] * queues  #: where each ring goes on when it is started
        self.wanted = order.features | DEVICE_FEATURES if features is None else features
        self.offered = 0
        self.features = 0
        self.protocol = ProtocolFeature(0)
        self.logging = False
        self.sent: list[Request] = []  #: every request of this front end, in order
        self._target = target
        self._connection: Connection | None = None
        self._known: list[Piece] = []
        self._starting = True
        self._inflight: tuple[Inflight, OwnedFd] | None = None
        self._log: tuple[OwnedFd, mmap.mmap] | None = None
        self._channel: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A front end's life

    def open(self) -> Self:
        """Connect, negotiate, and start the rings. :raises UnreachableError: nobody listens."""
        self.connect()
        self.run(self.order.connect)
        self.start()
        return self

    def connect(self) -> Self:
        """Connect; nothing is said yet. :raises UnreachableError: nobody listens."""
        self._connection = Connection(_connected(self._target))
        self._known, self.features, self.protocol = [], 0, ProtocolFeature(0)
        return self

    def start(self) -> None:
        """Start the rings at their :attr:`bases`."""
        self._starting = True
        self.run(self.order.start)

    def stop(self) -> list[int]:
        """Stop the rings as the order has it. :returns: where each goes on (``bases``)."""
        self._starting = False
        self.run(self.order.stop)
        return self.bases

    def disconnect(self) -> None:
        """Hang up, as a front end that dies does. Memory, rings, log and the in-flight region stay."""
        for connection in (self._connection, self._channel):
            if connection is not None:
                connection.close()
        self._connection = self._channel = None

    def reconnect(self) -> Self:
        """Come back to a back end that was lost: rings go on at their used index, as QEMU does (trap T7)."""
        self.disconnect()
        self.bases = [ring.used_index for ring in self.rings]
        return self.open()

    def reset(self) -> None:
        """Stop, reset the device and empty the rings, as a guest's reboot does. :meth:`start` goes on."""
        self.stop()
        if self.protocol & ProtocolFeature.RESET_DEVICE:
            self.ask(Request.RESET_DEVICE)
        for ring in self.rings:
            ring.reset()
        self.bases = [0] * len(self.rings)

    def close(self) -> None:
        """Hang up and drop everything; idempotent."""
        self.disconnect()
        while self.rings:
            self.rings.pop().close()
        self.forget_inflight()
        self._drop_log()
        self.memory.close()

    def run(self, steps: Sequence[Step]) -> None:
        """Say some of an order: what was not negotiated is left out."""
        for step in steps:
            if not isinstance(step, tuple):
                self._step(step)
                continue
            for index in range(len(self.rings)):
                for request in step:
                    _RING_STEPS[request](self, index)

    def _step(self, request: Request) -> None:
        needed = NEEDS.get(request, ProtocolFeature(0))
        if self.protocol & needed == needed:
            _STEPS[request](self)

    # Messages

    def ask(
        self, request: Request, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool | None = None
    ) -> Any:
        """Send a request and take its reply, or the acknowledgement that was asked for.

        :param value: as the request's codec has it. :param fds: are not closed.
        :param need_reply: by default what the order does. :returns: the reply's value, else ``None``.
        :raises RefusedError: a NAK. :raises UnreachableError: the back end hung up.
        """
        reply = self.exchange(request, value, fds, need_reply=need_reply)
        if reply is None:
            return None
        reply.close()
        if self._has_reply(request):
            return REPLIES[request].unpack(reply.payload)
        if U64.unpack(reply.payload):
            raise RefusedError(f"the back end refused {request.name}")
        return None

    def exchange(
        self, request: Request, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool | None = None
    ) -> Message | None:
        """As :meth:`ask`, but with the reply as it came, or ``None`` where none is due."""
        if need_reply is None:
            need_reply = request in self.order.need_reply
        acked = need_reply and bool(self.protocol & ProtocolFeature.REPLY_ACK)
        payload = REQUESTS[request].pack(value)
        self.sent.append(request)
        self.send(request, payload, fds, Flag.NEED_REPLY if acked else 0)
        return self.receive(request) if acked or self._has_reply(request) else None

    def send(self, request: int, payload: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send any message. :raises UnreachableError: the back end hung up."""
        connection = self._socket()
        try:
            connection.send(request, flags, payload, [OwnedFd(os.dup(fd)) for fd in fds])
            while connection.pending:
                _wait_for(connection, select.POLLOUT, self.timeout_s)
                connection.flush()
        except EOFError as error:
            raise UnreachableError(f"the back end: {error}") from error

    def receive(self, request: int) -> Message:
        """Wait for the reply to a request. :raises ProtocolError: something else came."""
        message = _wait_message(self._socket(), self.timeout_s)
        if message.request != request or not message.flags & Flag.REPLY:
            message.close()
            raise ProtocolError(f"a reply to {request} was due, {message.request} came")
        return message

    def hung_up(self) -> bool:
        """Whether the back end ends the connection; waits for it."""
        try:
            self.receive(0)
        except UnreachableError:
            return True
        except (TimedOutError, ProtocolError):
            pass
        return False

    def _socket(self) -> Connection:
        if self._connection is None:
            raise UnreachableError("the front end is not connected")
        return self._connection

    def _has_reply(self, request: Request) -> bool:
        if request is Request.SET_LOG_BASE:
            return bool(self.protocol & ProtocolFeature.LOG_SHMFD)
        return request in REPLIES

    def get_features(self) -> int:
        self.offered = int(self.ask(Request.GET_FEATURES))
        return self.offered

    def set_features(self, features: int | None = None, *, need_reply: bool | None = None) -> None:
        """Acknowledge these; by default what is both wanted and offered, and LOG_ALL while logging is on."""
        if features is None:
            log = LOG_ALL if self.logging else 0
            features = self.offered & (self.wanted | PROTOCOL_FEATURES | log)
        self.ask(Request.SET_FEATURES, features, need_reply=need_reply)
        self.features = features
        for ring in self.rings:
            ring.event_idx = bool(features & EVENT_IDX)

    def set_protocol_features(self, features: ProtocolFeature | None = None) -> None:
        """Acknowledge these; by default what was offered and the order takes."""
        if features is None:
            features = ProtocolFeature(self.ask(Request.GET_PROTOCOL_FEATURES)) & self.order.protocol
        self.ask(Request.SET_PROTOCOL_FEATURES, int(features))
        self.protocol = features

    def get_config(self, offset: int = 0, size: int = MAX_CONFIG) -> bytes:
        """:raises ProtocolError: the back end has no such bytes."""
        wanted = ConfigSpace(offset, size, 0, bytes(size))
        reply = self.exchange(Request.GET_CONFIG, wanted)
        assert reply is not None
        found = REPLIES[Request.GET_CONFIG].unpack(reply.payload)
        return bytes(found.data)

    def set_config(self, offset: int, data: bytes, *, need_reply: bool | None = None) -> None:
        self.ask(Request.SET_CONFIG, ConfigSpace(offset, len(data), 0, data), need_reply=need_reply)

    def share_memory(self) -> None:
        """Tell the back end of regions that it does not know, one by one or, if it must be, as a table."""
        if not self.protocol & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self.set_mem_table()
            return
        for piece in self.memory.pieces:
            if piece not in self._known:
                self.add_mem_reg(piece)

    def set_mem_table(self) -> None:
        pieces = self.memory.pieces
        regions = tuple(piece.region for piece in pieces)
        self.ask(Request.SET_MEM_TABLE, regions, [piece.fd for piece in pieces])

    def add_mem_reg(self, piece: Piece) -> None:
        self.ask(Request.ADD_MEM_REG, piece.region, [piece.fd])
        self._known.append(piece)

    def rem_mem_reg(self, piece: Piece, *, stray_fd: bool = True) -> None:
        """Take a region away, with the needless fd that known front ends send along (trap T12)."""
        self.ask(Request.REM_MEM_REG, piece.region, [piece.fd] if stray_fd else [])
        self._known.remove(piece)

    def set_vring_num(self, index: int) -> None:
        self.ask(Request.SET_VRING_NUM, VringState(index, self.rings[index].size))

    def set_vring_base(self, index: int) -> None:
        self.ask(Request.SET_VRING_BASE, VringState(index, self.bases[index]))

    def get_vring_base(self, index: int) -> int:
        """Stop a ring. :returns: where it goes on; kept in :attr:`bases` too."""
        self.bases[index] = self.ask(Request.GET_VRING_BASE, VringState(index, 0)).num
        return self.bases[index]

    def set_vring_addr(self, index: int, *, need_reply: bool | None = None) -> None:
        address = self.rings[index].address(index, log=self.logging)
        self.ask(Request.SET_VRING_ADDR, address, need_reply=need_reply)

    def set_vring_kick(self, index: int) -> None:
        self._send_eventfd(Request.SET_VRING_KICK, index, self.rings[index].kick_fd)

    def set_vring_call(self, index: int) -> None:
        self._send_eventfd(Request.SET_VRING_CALL, index, self.rings[index].call_fd)

    def set_vring_err(self, index: int) -> None:
        self._send_eventfd(Request.SET_VRING_ERR, index, self.rings[index].err_fd)

    def _send_eventfd(self, request: Request, index: int, fd: int) -> None:
        self.ask(request, VringFd(index, True), [fd])

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        self.ask(Request.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def get_inflight_fd(self) -> None:
        """Have the back end make an in-flight region, unless there is one."""
        if self._inflight is not None:
            return
        wanted = Inflight(0, 0, len(self.rings), self.queue_size, self.order.padding)
        reply = self.exchange(Request.GET_INFLIGHT_FD, wanted)
        assert reply is not None
        self._inflight = (REPLIES[Request.GET_INFLIGHT_FD].unpack(reply.payload), reply.take_fd())

    def set_inflight_fd(self) -> None:
        """Give the back end the in-flight region (back)."""
        if self._inflight is not None:
            described, fd = self._inflight
            self.ask(Request.SET_INFLIGHT_FD, described, [fd.fileno()])

    def forget_inflight(self) -> None:
        """Drop the in-flight region, as a front end that is another process has it not: a migration's end."""
        if self._inflight is not None:
            self._inflight[1].close()
            self._inflight = None

    def inflight_bytes(self) -> bytes:
        """What the in-flight region holds now."""
        assert self._inflight is not None, "there is no in-flight region"
        described, fd = self._inflight
        return os.pread(fd.fileno(), described.mmap_size, described.mmap_offset)

    # The back end's own requests

    def open_channel(self) -> None:
        """SET_BACKEND_REQ_FD with one end of a fresh pair of sockets."""
        ours, theirs = socket.socketpair()
        with theirs:
            old, self._channel = self._channel, Connection(ours)
            self.ask(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        if old is not None:
            old.close()

    def wait_notice(self, *, result: int = 0) -> BackendRequest:
        """Wait for a request of the back end (CONFIG_CHANGE_MSG, say).

        :param result: how it is acknowledged, if it asks for that; 0 is success.
        """
        assert self._channel is not None, "the back end has no channel"
        message = _wait_message(self._channel, self.timeout_s)
        if message.flags & Flag.NEED_REPLY:
            self._channel.send(message.request, Flag.REPLY, U64.pack(result))
        return BackendRequest(message.request)

    # Migration

    def prepare_log(self) -> None:
        """Make a dirty log; a :meth:`start` that follows starts with logging on (trap T6)."""
        self._drop_log()
        self.logging = True
        size = -(-self.memory.size_bytes // (8 * LOG_PAGE))
        fd = OwnedFd(os.memfd_create("dirty-log", os.MFD_CLOEXEC))
        os.ftruncate(fd.fileno(), size)
        self._log = (fd, mmap.mmap(fd.fileno(), size))

    def set_log_base(self) -> None:
        """Give the back end the log, if there is one in use."""
        if self._log is not None and self.logging:
            self.ask(Request.SET_LOG_BASE, LogArea(len(self._log[1]), 0), [self._log[0].fileno()])

    def start_log(self) -> None:
        """Begin to log under running rings, as QEMU does: log, features, addresses, each acknowledged."""
        self.prepare_log()
        self.set_log_base()
        self.set_features(need_reply=True)
        for index in range(len(self.rings)):
            self.set_vring_addr(index, need_reply=True)

    def stop_log(self) -> None:
        """End logging under running rings, as after a migration that failed; the log can still be read."""
        self.logging = False
        for index in range(len(self.rings)):
            self.set_vring_addr(index, need_reply=True)
        self.set_features(need_reply=True)

    def dirty_pages(self, *, clear: bool = True) -> set[int]:
        """Numbers of the pages that were logged, and forget them."""
        assert self._log is not None, "there is no log"
        bitmap = self._log[1]
        dirty = [(at, byte) for at, byte in enumerate(bitmap[:]) if byte]
        found = {8 * at + bit for at, byte in dirty for bit in range(8) if byte >> bit & 1}
        if clear:
            bitmap[:] = bytes(len(bitmap))
        return found

    def _drop_log(self) -> None:
        if self._log is not None:
            fd, bitmap = self._log
            bitmap.close()
            fd.close()
            self._log = None

    def _set_status(self) -> None:
        status = int(self.ask(Request.GET_STATUS))
        self.ask(Request.SET_STATUS, status | ACKNOWLEDGE | DRIVER | FEATURES_OK)


def _connected(target: str | PathLike[str] | socket.socket) -> socket.socket:
    if isinstance(target, socket.socket):
        return target.dup()
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        endpoint.connect(str(Path(target)))
    except OSError as error:
        endpoint.close()
        raise UnreachableError(f"no back end at {target}: {error}") from error
    return endpoint


def _wait_message(connection: Connection, timeout_s: float) -> Message:
    deadline = time.monotonic() + timeout_s
    try:
        while (message := connection.receive()) is None:
            _wait_for(connection, select.POLLIN, deadline - time.monotonic())
    except EOFError as error:
        raise UnreachableError(f"the other end: {error}") from error
    return message


def _wait_for(connection: Connection, event: int, timeout_s: float) -> None:
    poller = select.poll()
    poller.register(connection, event)
    if not poller.poll(max(0.0, timeout_s) * 1000):
        raise TimedOutError("the other end neither said nor took anything")


_STEPS: Final[Mapping[Request, Callable[[FrontEnd], object]]] = {
    Request.GET_FEATURES: FrontEnd.get_features,
    Request.SET_FEATURES: FrontEnd.set_features,
    Request.SET_PROTOCOL_FEATURES: FrontEnd.set_protocol_features,
    Request.GET_PROTOCOL_FEATURES: lambda front: None,  # set_protocol_features asks
    Request.SET_OWNER: lambda front: front.ask(Request.SET_OWNER),
    Request.GET_QUEUE_NUM: lambda front: front.ask(Request.GET_QUEUE_NUM),
    Request.GET_MAX_MEM_SLOTS: lambda front: front.ask(Request.GET_MAX_MEM_SLOTS),
    Request.RESET_DEVICE: lambda front: front.ask(Request.RESET_DEVICE),
    Request.SET_BACKEND_REQ_FD: FrontEnd.open_channel,
    Request.GET_CONFIG: lambda front: front.get_config(0, front.order.config_size),
    Request.GET_INFLIGHT_FD: FrontEnd.get_inflight_fd,
    Request.SET_INFLIGHT_FD: FrontEnd.set_inflight_fd,
    Request.GET_STATUS: lambda front: None,  # set_status asks
    Request.SET_STATUS: FrontEnd._set_status,
    Request.ADD_MEM_REG: FrontEnd.share_memory,
    Request.SET_MEM_TABLE: FrontEnd.set_mem_table,
    Request.SET_LOG_BASE: FrontEnd.set_log_base,
}

_RING_STEPS: Final[Mapping[Request, Callable[[FrontEnd, int], object]]] = {
    Request.SET_VRING_NUM: FrontEnd.set_vring_num,
    Request.SET_VRING_BASE: FrontEnd.set_vring_base,
    Request.GET_VRING_BASE: FrontEnd.get_vring_base,
    Request.SET_VRING_ADDR: FrontEnd.set_vring_addr,
    Request.SET_VRING_KICK: FrontEnd.set_vring_kick,
    Request.SET_VRING_CALL: FrontEnd.set_vring_call,
    Request.SET_VRING_ERR: FrontEnd.set_vring_err,
    Request.SET_VRING_ENABLE: lambda front, index: front.set_vring_enable(index, front._starting),
}
