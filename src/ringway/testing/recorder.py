"""A device that does nothing but write down what a vhost-user session asks of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from ringway import _core
from ringway.errors import ProtocolError
from ringway.vhost_user.device import RingSetup

VERSION_1 = 1 << 32
EVENT_IDX = 1 << 29
INDIRECT_DESC = 1 << 28


class RecorderDevice:
    """Implements :class:`ringway.vhost_user.Device`.

    :ivar calls: a tuple for each call: the method's name and its arguments.
    :ivar failures: an exception to raise from the method of that name.
    :ivar stop_at: what ``stop_ring`` answers, ring by ring; 0 where nothing is said.
    :ivar running: rings that are started. :ivar enabled: rings that are enabled.
    """

    def __init__(
        self,
        *,
        kind: Literal["scsi", "blk"] = "blk",
        queues: int = 2,
        config: bytes = bytes(range(60)),
        writable: range = range(32, 33),
    ) -> None:
        self.kind: Literal["scsi", "blk"] = kind
        self.queues = queues
        self.queue_number = queues - 2 if kind == "scsi" else queues
        self.features = VERSION_1 | EVENT_IDX | INDIRECT_DESC | 0b110
        self.has_config = kind == "blk"
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, Exception] = {}
        self.stop_at: dict[int, int] = {}
        self.running: dict[int, RingSetup] = {}
        self.enabled: set[int] = set()
        self.memory: tuple[_core.Region, ...] = ()
        self.log: _core.DirtyLog | None = None
        self.acknowledged = 0
        self._config = bytearray(config)
        self._writable = writable

    def names(self) -> list[str]:
        """The calls so far, without their arguments."""
        return [call[0] for call in self.calls]

    def config(self) -> bytes:
        return bytes(self._config)

    def set_config(self, offset: int, data: bytes) -> None:
        self._record("set_config", offset, data)
        if any(at not in self._writable for at in range(offset, offset + len(data))):
            raise ProtocolError("the field is not writable")
        self._config[offset : offset + len(data)] = data

    def set_features(self, features: int) -> None:
        self._record("set_features", features)
        self.acknowledged = features

    def set_memory(self, regions: Sequence[_core.Region]) -> None:
        self._record("set_memory", tuple(regions))
        self.memory = tuple(regions)

    def set_log(self, log: _core.DirtyLog | None) -> None:
        self._record("set_log", log)
        self.log = log

    def start_ring(self, index: int, ring: RingSetup, inflight: _core.InflightRegion | None) -> None:
        for fd in (ring.kick_fd, ring.call_fd):
            if fd is not None:
                os.fstat(fd)  # it must be open
        self._record("start_ring", index, ring, inflight)
        self.running[index] = ring

    def enable_ring(self, index: int, enabled: bool) -> None:
        self._record("enable_ring", index, enabled)
        (self.enabled.add if enabled else self.enabled.discard)(index)

    def set_ring_call(self, index: int, fd: int | None) -> None:
        self._record("set_ring_call", index, fd)

    def set_ring_log(self, index: int, log_address: int | None) -> None:
        self._record("set_ring_log", index, log_address)

    def stop_ring(self, index: int) -> int:
        self.running.pop(index)
        self._record("stop_ring", index)
        return self.stop_at.get(index, 0)

    def reset(self) -> None:
        self._record("reset")

    def detached(self) -> None:
        self._record("detached")

    def _record(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.failures:
            raise self.failures[name]
