"""What a vhost-user session drives: one endpoint's virtio device over the core.

Besides passing things on it holds one rule: **no ring runs unless all stores are owned.** A ring that a front
end starts before waits here; it is started when the last store is obtained (the destination of a migration),
and the stores are given up when the last ring has stopped while dirty pages were logged (its source), and
nobody works on a request any more.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from ringway import _core
from ringway.model import DeviceKind
from ringway.target.luns import LunListener, LunTable
from ringway.vhost_user import RingSetup

_log: Final = logging.getLogger(__name__)

F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_VERSION_1: Final = 1 << 32
F_LOG_ALL: Final = 1 << 26
#: Seconds that all rings have to drain.
STOP_S: Final = 5.0
#: Seconds between two looks whether given-up requests have ended, in the kernel and on the slow path.
SETTLE_S: Final = 0.5
COMMON_FEATURES: Final = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1


class Face(LunListener, Protocol):
    """What tells a scsi from a blk device."""

    @property
    def extra_queues(self) -> int:
        """Virtqueues besides the request queues."""

    @property
    def has_config(self) -> bool:
        """Whether the configuration space is ours to serve (QEMU makes the scsi one)."""

    @property
    def features(self) -> int:
        """Feature bits of the device type (below 24)."""

    def config(self) -> bytes:
        """The configuration space as it is now."""

    def set_config(self, offset: int, data: bytes) -> None:
        """:raises ProtocolError: the field is not writable."""

    def acknowledged(self, features: int) -> None:
        """What the driver took of the offered features."""

    def reset(self) -> None:
        """The front end reset the device: an I_T nexus event at most (trap T11)."""

    def resumed(self) -> None:
        """A guest that this target has not seen before, or that was paused, goes on where it was."""

    def powered_on(self) -> None:
        """Another guest than the last one starts: to it, the device has just been switched on."""

    def serve_waiting(self) -> None:
        """Decide on all requests that the core could not finish. It waits for no medium: threads do."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A ring that a front end started before its stores were owned. The fds are this object's own."""

    setup: RingSetup
    inflight: _core.InflightRegion | None

    def close(self) -> None:
        for fd in (self.setup.kick_fd, self.setup.call_fd):
            _close(fd)


class TargetDevice:
    """Implements :class:`ringway.vhost_user.device.Device`.

    :param ring_failed: told of a ring that could not be started once its stores were owned.
    """

    def __init__(
        self,
        core: _core.Device,
        kind: DeviceKind,
        face: Face,
        luns: LunTable,
        *,
        request_queues: int,
        ring_failed: Callable[[int, str], None],
    ) -> None:
        self._core = core
        self._kind = kind
        self._face = face
        self._luns = luns
        self._request_queues = request_queues
        self._ring_failed = ring_failed
        self._lock = threading.RLock()  # rings are started by the session and by the ownership's thread
        self._waiting: dict[int, _Waiting] = {}
        self._started: set[int] = set()
        self._enabled: set[int] = set()
        self._features = 0
        self._left = False  # a front end left, and no request ring was started since
        self._stopping: float | None = None  # when the rings that are being stopped run out of time

    @property
    def kind(self) -> Literal["scsi", "blk"]:
        """What it is, for the session's logs."""
        return "scsi" if self._kind is DeviceKind.SCSI else "blk"

    @property
    def queues(self) -> int:
        """Virtqueues that exist, the scsi control and event queue included."""
        return self._request_queues + self._face.extra_queues

    @property
    def queue_number(self) -> int:
        """What GET_QUEUE_NUM answers: QEMU compares it with its request queues alone."""
        return self._request_queues

    @property
    def features(self) -> int:
        """Virtio feature bits offered."""
        return COMMON_FEATURES | self._face.features

    @property
    def has_config(self) -> bool:
        """Whether the configuration space is ours to serve."""
        return self._face.has_config

    def config(self) -> bytes:
        """The configuration space as it is now."""
        return self._face.config()

    def set_config(self, offset: int, data: bytes) -> None:
        """:raises ProtocolError: the field is not writable."""
        self._face.set_config(offset, data)

    def set_features(self, features: int) -> None:
        """Remember whether dirty pages are logged: it tells a migration's stop from any other."""
        self._features = features
        self._core.set_features(features)
        self._face.acknowledged(features)

    def set_memory(self, regions: Sequence[_core.Region]) -> None:
        """:raises ValueError: two regions overlap."""
        if not self._core.set_memory(regions):
            _log.warning("requests still use guest memory that the front end took away")

    def set_log(self, log: _core.DirtyLog | None) -> None:
        """The log of dirty pages, or none."""
        self._core.set_log(log)

    def start_ring(self, index: int, ring: RingSetup, inflight: _core.InflightRegion | None) -> None:
        """Start a ring, or let it wait until the stores are owned. :raises ValueError: as ``start_queue``."""
        with self._lock:
            if self._luns.keep():
                self._start(index, ring, inflight)
            else:
                setup = replace(ring, kick_fd=_dup(ring.kick_fd), call_fd=_dup(ring.call_fd))
                self._waiting[index] = _Waiting(setup, inflight)
        self._want_stores()

    def enable_ring(self, index: int, enabled: bool) -> None:
        """Serve a ring or let it rest.

        The first enabled ring makes a migration's destination ask for its stores.
        """
        with self._lock:
            (self._enabled.add if enabled else self._enabled.discard)(index)
            self._core.enable_queue(index, enabled)
        self._want_stores()

    def set_ring_call(self, index: int, fd: int | None) -> None:
        """Replace the call eventfd of a ring that runs or waits."""
        with self._lock:
            if (waiting := self._waiting.get(index)) is None:
                self._core.set_queue_call(index, fd)
                return
            self._waiting[index] = replace(waiting, setup=replace(waiting.setup, call_fd=_dup(fd)))
            _close(waiting.setup.call_fd)

    def set_ring_log(self, index: int, log_address: int | None) -> None:
        """Replace the log address of a ring that runs or waits."""
        with self._lock:
            if (waiting := self._waiting.get(index)) is None:
                self._core.set_queue_log(index, log_address)
            else:
                setup = replace(waiting.setup, log_address=log_address)
                self._waiting[index] = replace(waiting, setup=setup)

    def stop_ring(self, index: int) -> int:
        """Drain and stop a ring. The last one of a migration's source gives up the stores.

        :returns: next available index.
        """
        with self._lock:
            waiting = self._waiting.pop(index, None)
            if waiting is not None:
                waiting.close()
                base = waiting.setup.base
            else:
                base = self._core.stop_queue(index, timeout_s=self._stop_timeout_s())
            self._started.discard(index)
            if not self._started and not self._waiting:
                self._all_stopped()
            return base

    def luns_changed(self) -> None:
        """A LUN came or went: rings that wait may want one more store, or wait for none any more."""
        self._want_stores()
        self._start_waiting()

    def reset(self) -> None:
        """RESET_DEVICE or SET_STATUS(0). Spec: vhost-user, VHOST_USER_RESET_DEVICE.

        QEMU resets a migration's destination before the guest is there (trap T11): it has no nexus to lose
        yet.
        """
        if self._luns.held:
            self._face.reset()

    def detached(self) -> None:
        """The front end left; the disks stay as they are."""
        self._left = True
        self._features = 0

    def _stop_timeout_s(self) -> float:
        """What is left of the time that all rings have together: the front end waits for each in its main
        loop, and with it the whole VM's management (trap T9).
        """
        now = time.monotonic()
        if self._stopping is None:
            self._stopping = now + STOP_S
        return max(self._stopping - now, 0.0)

    def _all_stopped(self) -> None:
        """A migration's source lets go; a destination whose front end gave up wants nothing any more."""
        left_s = self._stop_timeout_s()
        self._stopping = None
        if self._features & F_LOG_ALL:
            self._luns.flush_unguarded(left_s)
        if self._features & F_LOG_ALL or not self._luns.keep():
            self._luns.release_later(self._settled)

    def _settled(self) -> bool:
        """Whether no request that was given up is still worked on, by the kernel or by the slow path: its
        write would hit a disk that is another's by then.
        """
        return self._core.drain(timeout_s=SETTLE_S) and self._face.settled(SETTLE_S)

    def _want_stores(self) -> None:
        """Ask for the stores if an enabled ring waits for them.

        Outside of the lock: the answer may come at once.
        """
        with self._lock:
            wanted = bool(self._waiting.keys() & self._enabled)
        if wanted:
            self._luns.acquire_later(self._start_waiting)

    def _start_waiting(self) -> None:
        """Start what waited, once the last store is owned."""
        with self._lock:
            if not self._waiting or not self._luns.keep():
                return
            self._luns.forget_cached()
            self._luns.reload_sizes()
            for index in sorted(self._waiting):
                waiting = self._waiting.pop(index)
                try:
                    self._start(index, waiting.setup, waiting.inflight)
                except (ValueError, OSError) as error:
                    self._ring_failed(index, str(error))
                finally:
                    waiting.close()

    def _start(self, index: int, ring: RingSetup, inflight: _core.InflightRegion | None) -> None:
        self._stopping = None  # a drain before this one has its own deadline
        if ring.base or self._core.is_used(ring.size, ring.used):  # an index that wrapped is zero, too
            self._face.resumed()
        elif self._left and index >= self._face.extra_queues:
            self._face.powered_on()
        if index >= self._face.extra_queues:
            self._left = False
        self._core.start_queue(
            index,
            size=ring.size,
            descriptors=ring.descriptors,
            available=ring.available,
            used=ring.used,
            base=ring.base,
            kick_fd=ring.kick_fd,
            call_fd=ring.call_fd,
            log_address=ring.log_address,
            inflight=inflight,
        )
        self._started.add(index)


def _dup(fd: int | None) -> int | None:
    return None if fd is None else os.dup(fd)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
