"""One front end's life: what it said so far, and one function for each request in a table.

A request that cannot be granted is refused with a NAK if the front end asked for an acknowledgement, and ends
the session if it did not: it would go on in the belief that all is well. Spec: vhost-user, "REPLY_ACK".
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from ringway._core import DirtyLog, InflightRegion, Region
from ringway.errors import ProtocolError
from ringway.vhost_user import inflight
from ringway.vhost_user import messages as wire
from ringway.vhost_user.channel import BackendChannel
from ringway.vhost_user.connection import Connection, Message, OwnedFd
from ringway.vhost_user.device import Device
from ringway.vhost_user.features import feature_names
from ringway.vhost_user.memory import MemoryTable
from ringway.vhost_user.messages import LOG_ALL, PROTOCOL_FEATURES, ProtocolFeature, Request, request_name
from ringway.vhost_user.ring import Ring, check_event_fd
from ringway.vhost_user.throttle import Throttle

_LOG: Final = logging.getLogger("ringway.vhost_user")

#: What every device offers. CONFIG comes on top for those that have one: QEMU warns of it for scsi.
_OFFERED: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


class _MalformedError(ProtocolError):
    """The message itself makes no sense: what follows on this stream cannot be trusted either."""


class _HarmlessError(ProtocolError):
    """Refused, and a front end that does not hear of it comes to no harm."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that a request has of its own. Its fds are closed once they are sent."""

    payload: bytes
    fds: tuple[OwnedFd, ...] = ()


class Session:
    """What one front end negotiated and set up on a device.

    Messages are handled on one thread; :meth:`config_changed` and :meth:`ring_broken` may come from any.

    :param throttle: what a front end can have logged goes through it: one that comes back must not get more.
    """

    def __init__(self, connection: Connection, device: Device, throttle: Throttle) -> None:
        self._throttle = throttle
        self._connection = connection
        self._device = device
        self._features = 0
        self._protocol = ProtocolFeature(0)
        self._status = 0
        self._memory = MemoryTable()
        self._rings = tuple(Ring(index) for index in range(device.queues))
        self._inflight: InflightRegion | None = None
        self._channel: BackendChannel | None = None
        self._lock = threading.Lock()  # of what other threads use: the channel and the err fds

    def handle(self, message: Message) -> None:
        """Do what a message asks, and answer it if an answer is due. The message is closed.

        :raises ProtocolError: the session cannot go on. :raises EOFError: the front end hung up.
        """
        try:
            answer = self._dispatch(message)
        except ProtocolError as error:
            answer = self._refusal(message, error)
        finally:
            message.close()
        if answer is None and self._wants_ack(message):
            answer = Answer(wire.U64.pack(0))
        if answer is not None:
            self._connection.send(message.request, wire.Flag.REPLY, answer.payload, answer.fds)

    def close(self) -> None:
        """Stop the rings, drop memory and fds, and tell the device that the front end left.

        Whatever of it fails, the rest is done; the last failure is raised.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._device.detached)
            stack.callback(self._close_fds)
            stack.callback(self._device.set_memory, ())
            stack.callback(self._device.set_log, None)
            for ring in self._rings:
                stack.callback(self._enable, ring, False)
                stack.callback(self._halt, ring)

    def config_changed(self) -> None:
        """Tell the front end to read the configuration space again; without a channel for it, do nothing."""
        with self._lock:
            channel = self._channel
        if channel is not None and self._protocol & ProtocolFeature.CONFIG:
            need_reply = bool(self._protocol & ProtocolFeature.REPLY_ACK)
            channel.notify(wire.BackendRequest.CONFIG_CHANGE_MSG, need_reply=need_reply)

    def ring_broken(self, index: int, message: str) -> None:
        """Tell the front end that a ring was stopped because of what the guest wrote to it."""
        self._throttle.log(logging.ERROR, "ring %d is broken: %s", index, message)
        with self._lock, contextlib.suppress(OSError):
            self._rings[index].signal_error()

    # Dispatch

    def _dispatch(self, message: Message) -> Answer | None:
        handler = _HANDLERS.get(message.request)
        if handler is None:
            raise _HarmlessError("it is not known here")
        try:
            body = wire.REQUESTS[Request(message.request)].unpack(message.payload)
        except ProtocolError as error:
            raise _MalformedError(f"{request_name(message.request)}: {error}") from error
        _LOG.debug("%s %s", request_name(message.request), body)
        return handler(self, body, message)

    def _refusal(self, message: Message, error: ProtocolError) -> Answer | None:
        """A NAK, or nothing where silence does no harm. :raises ProtocolError: otherwise."""
        nak = self._wants_ack(message) and not self._has_reply(message.request)
        if isinstance(error, _MalformedError) or not (nak or isinstance(error, _HarmlessError)):
            raise error
        self._throttle.log(logging.WARNING, "refused %s: %s", request_name(message.request), error)
        return Answer(wire.U64.pack(1)) if nak else None

    def _wants_ack(self, message: Message) -> bool:
        return bool(message.flags & wire.Flag.NEED_REPLY and self._protocol & ProtocolFeature.REPLY_ACK)

    def _has_reply(self, request: int) -> bool:
        if request == Request.SET_LOG_BASE:
            return bool(self._protocol & ProtocolFeature.LOG_SHMFD)
        return request in wire.REPLIES

    # Rings

    def _ring(self, index: int) -> Ring:
        if index >= len(self._rings):
            raise ProtocolError(f"ring {index} does not exist, there are {len(self._rings)}")
        return self._rings[index]

    def _start(self, ring: Ring) -> None:
        """Start a ring as soon as it is kicked and all of it is known, its memory included."""
        if ring.running or not ring.configured or None in _regions_of(ring, self._memory):
            return
        try:
            self._device.start_ring(ring.index, ring.setup(), self._inflight)
        except ValueError as error:
            raise ProtocolError(f"ring {ring.index} cannot be started: {error}") from error
        ring.running = True

    def _start_all(self) -> None:
        for ring in self._rings:
            self._start(ring)

    def _halt(self, ring: Ring) -> None:
        """Drain a ring and stop it; it goes on at its base when it is started again."""
        if ring.running:
            ring.running = False
            ring.base = self._device.stop_ring(ring.index)

    def _enable(self, ring: Ring, enabled: bool) -> None:
        if ring.enabled != enabled:
            ring.enabled = enabled
            self._device.enable_ring(ring.index, enabled)

    def _reset(self) -> None:
        """Back to how a device is at first; memory, features and the session stay (trap T11: no more)."""
        for ring in self._rings:
            self._halt(ring)
            self._enable(ring, False)
            ring.reset()
        self._status, self._inflight = 0, None
        self._device.reset()

    def _swap_memory(self, table: MemoryTable) -> None:
        """Hand a memory table to the device; rings that lie in what changes rest meanwhile.

        :raises ProtocolError: regions overlap; the old table stays.
        """
        moved = [ring for ring in self._rings if ring.running]
        moved = [ring for ring in moved if _regions_of(ring, self._memory) != _regions_of(ring, table)]
        for ring in moved:
            self._halt(ring)
        try:
            self._device.set_memory(table.regions)
            self._memory = table
        except ValueError as error:
            raise ProtocolError(f"the memory regions make no map: {error}") from error
        finally:
            self._start_all()
        for ring in moved:
            if not ring.running:
                self.ring_broken(ring.index, "the memory that it lies in was taken away")

    def _close_fds(self) -> None:
        with self._lock:
            channel, self._channel = self._channel, None
            for ring in self._rings:
                ring.close()
        if channel is not None:
            channel.close()

    # Requests: the session

    def _get_features(self, _: None, __: Message) -> Answer:
        return Answer(wire.U64.pack(self._device.features | LOG_ALL | PROTOCOL_FEATURES))

    def _set_features(self, features: int, _: Message) -> None:
        refused = features & ~(self._device.features | LOG_ALL | PROTOCOL_FEATURES)
        if refused:  # trap T1: QEMU offers guests bits that we never had
            names = ", ".join(feature_names(self._device.kind, refused))
            raise ProtocolError(f"features were acknowledged that are not offered: {names}")
        if (features ^ self._features) & ~(LOG_ALL | PROTOCOL_FEATURES):
            for ring in self._rings:
                self._halt(ring)
        self._device.set_features(features & ~PROTOCOL_FEATURES)
        if self._features & ~features & LOG_ALL:
            self._device.set_log(None)
        self._features = features
        if not features & PROTOCOL_FEATURES:
            self._enable_all(True)
        self._start_all()

    def _enable_all(self, enabled: bool) -> None:
        for ring in self._rings:
            self._enable(ring, enabled)

    def _set_owner(self, _: None, __: Message) -> None:
        """Nothing to do: who connects is the owner."""

    def _reset_owner(self, _: None, __: Message) -> None:
        self._enable_all(False)

    def _get_protocol_features(self, _: None, __: Message) -> Answer:
        return Answer(wire.U64.pack(self._protocol_offered))

    @property
    def _protocol_offered(self) -> ProtocolFeature:
        return _OFFERED | (ProtocolFeature.CONFIG if self._device.has_config else ProtocolFeature(0))

    def _set_protocol_features(self, features: int, _: Message) -> None:
        refused = features & ~int(self._protocol_offered)
        if refused:
            raise ProtocolError(f"protocol features were acknowledged that are not offered: {refused:#x}")
        self._protocol = ProtocolFeature(features)

    def _get_queue_num(self, _: None, __: Message) -> Answer:
        return Answer(wire.U64.pack(self._device.queue_number))

    def _set_backend_req_fd(self, _: None, message: Message) -> None:
        channel = BackendChannel(message.take_fd())
        with self._lock:
            old, self._channel = self._channel, channel
        if old is not None:
            old.close()

    # Requests: memory, log, in-flight region

    def _set_mem_table(self, regions: tuple[wire.MemoryRegion, ...], message: Message) -> None:
        self._swap_memory(self._memory.replaced_by(regions, message.fds))

    def _get_max_mem_slots(self, _: None, __: Message) -> Answer:
        return Answer(wire.U64.pack(wire.MAX_MEM_SLOTS))

    def _add_mem_reg(self, region: wire.MemoryRegion, message: Message) -> None:
        self._swap_memory(self._memory.with_added(region, message.fd))

    def _rem_mem_reg(self, region: wire.MemoryRegion, _: Message) -> None:
        # Trap T12: an fd that comes along stays with the message and is closed with it.
        self._swap_memory(self._memory.without(region))

    def _set_log_base(self, area: wire.LogArea, message: Message) -> Answer | None:
        try:
            log = DirtyLog(message.fd.fileno(), mmap_offset=area.offset, size_bytes=area.size)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"the dirty log cannot be mapped: {error}") from error
        self._device.set_log(log)
        # QEMU looks at the reply's request number alone, rust-vmm wants the area back.
        return Answer(wire.LOG.pack(area)) if self._has_reply(Request.SET_LOG_BASE) else None

    def _set_log_fd(self, _: None, __: Message) -> None:
        """An eventfd that tells of a dirtied log is optional to use, and no front end waits for one."""

    def _get_inflight_fd(self, wanted: wire.Inflight, _: Message) -> Answer:
        made, fd = inflight.create(wanted, len(self._rings))
        return Answer(wire.INFLIGHT.pack(made), (fd,))

    def _set_inflight_fd(self, described: wire.Inflight, message: Message) -> None:
        # Trap T5: neither memory nor rings are known yet, so it is used when a ring starts.
        self._inflight = inflight.adopt(described, message.fd)

    # Requests: rings

    def _set_vring_num(self, state: wire.VringState, _: Message) -> None:
        ring = self._ring(state.index)
        ring.set_size(state.num)
        self._start(ring)

    def _set_vring_addr(self, address: wire.VringAddress, _: Message) -> None:
        ring = self._ring(address.index)
        ring.set_address(address)
        if ring.running:
            self._device.set_ring_log(ring.index, ring.log_address)
        else:
            self._start(ring)

    def _set_vring_base(self, state: wire.VringState, _: Message) -> None:
        self._ring(state.index).set_base(state.num)

    def _get_vring_base(self, state: wire.VringState, _: Message) -> Answer:
        ring = self._ring(state.index)
        self._halt(ring)
        ring.forget_kick()
        return Answer(wire.STATE.pack(wire.VringState(ring.index, ring.base)))

    def _event_fd(self, body: wire.VringFd, message: Message) -> OwnedFd | None:
        if not body.has_fd:
            return None
        check_event_fd(message.fd)
        return message.take_fd()

    def _set_vring_kick(self, body: wire.VringFd, message: Message) -> None:
        ring = self._ring(body.index)
        fd = self._event_fd(body, message)
        self._halt(ring)
        ring.set_kick(fd)
        self._start(ring)

    def _set_vring_call(self, body: wire.VringFd, message: Message) -> None:
        ring = self._ring(body.index)
        ring.set_call(self._event_fd(body, message))
        if ring.running:
            self._device.set_ring_call(ring.index, ring.setup().call_fd)

    def _set_vring_err(self, body: wire.VringFd, message: Message) -> None:
        ring = self._ring(body.index)
        fd = self._event_fd(body, message)
        with self._lock:
            ring.set_err(fd)

    def _set_vring_enable(self, state: wire.VringState, _: Message) -> None:
        # Trap T4: this comes for rings that have no address, too.
        self._enable(self._ring(state.index), bool(state.num))

    # Requests: the device

    def _get_config(self, wanted: wire.ConfigSpace, _: Message) -> Answer:
        """Answer the size that was asked for, zero-padded; nothing at all is how an error is told."""
        end = wanted.offset + wanted.size
        if not self._device.has_config or end > wire.MAX_CONFIG:
            return Answer(b"")
        data = self._device.config().ljust(wire.MAX_CONFIG, b"\0")[wanted.offset : end]
        return Answer(wire.CONFIG.pack(wire.ConfigSpace(wanted.offset, wanted.size, wanted.flags, data)))

    def _set_config(self, wanted: wire.ConfigSpace, _: Message) -> None:
        if len(wanted.data) != wanted.size:
            raise _MalformedError(f"SET_CONFIG: {wanted.size} bytes announced, {len(wanted.data)} came")
        try:
            self._device.set_config(wanted.offset, wanted.data)
        except ProtocolError as error:  # a guest's mistake, which must not cost it its disk
            raise _HarmlessError(str(error)) from error

    def _reset_device(self, _: None, __: Message) -> None:
        self._reset()

    def _set_status(self, status: int, _: Message) -> None:
        # Trap T3: DRIVER_OK may never come, so rings do not wait for it.
        if status == 0:
            self._reset()
        self._status = status

    def _get_status(self, _: None, __: Message) -> Answer:
        return Answer(wire.U64.pack(self._status))


def _regions_of(ring: Ring, table: MemoryTable) -> tuple[Region | None, ...]:
    return tuple(table.holding(address) for address in ring.addresses())


_Handler = Callable[[Session, Any, Message], Answer | None]

_HANDLERS: Final[Mapping[int, _Handler]] = MappingProxyType(
    {
        Request.GET_FEATURES: Session._get_features,
        Request.SET_FEATURES: Session._set_features,
        Request.SET_OWNER: Session._set_owner,
        Request.RESET_OWNER: Session._reset_owner,
        Request.SET_MEM_TABLE: Session._set_mem_table,
        Request.SET_LOG_BASE: Session._set_log_base,
        Request.SET_LOG_FD: Session._set_log_fd,
        Request.SET_VRING_NUM: Session._set_vring_num,
        Request.SET_VRING_ADDR: Session._set_vring_addr,
        Request.SET_VRING_BASE: Session._set_vring_base,
        Request.GET_VRING_BASE: Session._get_vring_base,
        Request.SET_VRING_KICK: Session._set_vring_kick,
        Request.SET_VRING_CALL: Session._set_vring_call,
        Request.SET_VRING_ERR: Session._set_vring_err,
        Request.GET_PROTOCOL_FEATURES: Session._get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: Session._set_protocol_features,
        Request.GET_QUEUE_NUM: Session._get_queue_num,
        Request.SET_VRING_ENABLE: Session._set_vring_enable,
        Request.SET_BACKEND_REQ_FD: Session._set_backend_req_fd,
        Request.GET_CONFIG: Session._get_config,
        Request.SET_CONFIG: Session._set_config,
        Request.GET_INFLIGHT_FD: Session._get_inflight_fd,
        Request.SET_INFLIGHT_FD: Session._set_inflight_fd,
        Request.RESET_DEVICE: Session._reset_device,
        Request.GET_MAX_MEM_SLOTS: Session._get_max_mem_slots,
        Request.ADD_MEM_REG: Session._add_mem_reg,
        Request.REM_MEM_REG: Session._rem_mem_reg,
        Request.SET_STATUS: Session._set_status,
        Request.GET_STATUS: Session._get_status,
    }
)
