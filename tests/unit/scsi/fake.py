"""A data path in memory: stores over a bytearray, a range lock that holds writes back, ordered queues."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ringway.scsi import (
    Busy,
    Gate,
    Geometry,
    Identity,
    LogicalUnit,
    Nexus,
    Outcome,
    Reply,
    Status,
    Target,
    Task,
)
from ringway.testing.waiting import PATIENCE_S

WWPN = "naa.5001405c0ffee001"
NEXUS = Nexus("a")
OTHER = Nexus("b")


class MemoryStore:
    """A store of ``size_bytes``; ``fail_with`` makes reads, writes or flushes fail with an errno.

    It hangs while ``answers`` is cleared; ``asked`` is set once somebody waits for it.
    """

    def __init__(self, size_bytes: int = 1 << 20, *, writable: bool = True, discard: bool = True) -> None:
        self.content = bytearray(size_bytes)
        self.size_bytes = size_bytes
        self.writable = writable
        self.discard = discard
        self.calls: list[str] = []
        self.reads: list[int] = []
        self.fail_with: dict[str, int] = {}
        self.answers, self.asked = threading.Event(), threading.Event()
        self.answers.set()

    def _call(self, name: str, offset: int = 0, length: int = 0) -> None:
        self.calls.append(name)
        self.asked.set()
        assert self.answers.wait(PATIENCE_S), "nobody lets the store go on"
        if number := self.fail_with.get(name.partition("+")[0]):
            raise OSError(number, os.strerror(number))
        if offset + length > self.size_bytes:
            raise OSError(errno.EINVAL, "beyond the end")

    def read(self, offset: int, length: int) -> bytes:
        self._call("read", offset, length)
        self.reads.append(length)
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        self._call("write+fua" if fua else "write", offset, len(data))
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, *, unmap: bool = False) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self._call("flush")


class RangeLock:
    """Who holds which bytes. Writes wait for holders, holders for writes in flight and for each other."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: list[range] = []
        self._writing: list[range] = []

    @contextmanager
    def hold(self, offset: int, length: int) -> Iterator[None]:
        """Hold back writes of a range."""
        with self._enter(self._held, offset, length, self._held, self._writing):
            yield

    @contextmanager
    def write(self, offset: int, length: int) -> Iterator[None]:
        """Be a write in flight."""
        with self._enter(self._writing, offset, length, self._held):
            yield

    @contextmanager
    def _enter(self, mine: list[range], offset: int, length: int, *others: list[range]) -> Iterator[None]:
        extent = range(offset, offset + length)
        with self._changed:
            while any(_overlap(extent, each) for held in others for each in held):
                self._changed.wait()
            mine.append(extent)
        try:
            yield
        finally:
            with self._changed:
                mine.remove(extent)
                self._changed.notify_all()


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


class MemoryHost:
    """What a logical unit needs, for real: gates that can be read, and the range lock."""

    instance = 1

    def __init__(self) -> None:
        self.gates: dict[Nexus, Gate] = {}
        self.ranges = RangeLock()
        self.busy = False
        self.locked: list[tuple[int, int, bool]] = []
        self.drained: list[dict[Nexus, Gate]] = []

    def set_gate(self, nexus: Nexus, gate: Gate) -> None:
        self.gates[nexus] = gate

    @contextmanager
    def lock_range(self, offset: int, length: int, *, reads: bool) -> Iterator[None]:
        if self.busy:
            raise Busy
        self.locked.append((offset, length, reads))
        with self.ranges.hold(offset, length):
            yield

    def drain(self) -> bool:
        self.drained.append(dict(self.gates))
        return True


class Bench:
    """A target with one unit at LUN 0, whose power-on attention is taken, and commands in one line."""

    def __init__(self, store: MemoryStore | None = None, geometry: Geometry | None = None) -> None:
        self.store = store or MemoryStore()
        self.host = MemoryHost()
        self.geometry = geometry or Geometry()
        self.target = Target()
        self.unit = self.add(0)
        self.unit.take_attention(NEXUS)

    def add(self, lun: int) -> LogicalUnit:
        """Put a unit over the same store at a LUN."""
        identity = Identity.derive(WWPN, f"SN{lun:06d}")
        unit = LogicalUnit(self.store, self.host, identity, self.target, self.geometry)
        unit.join(NEXUS, power_on=True)
        self.target.add(lun, unit)
        return unit

    def run(
        self,
        cdb: str | bytes,
        data_out: bytes = b"",
        *,
        lun: int | None = 0,
        failure: str = "",
        nexus: Nexus = NEXUS,
        data_out_size: int | None = None,
    ) -> Outcome:
        """Run a command, given as hexadecimal or as bytes."""
        command = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        size = len(data_out) if data_out_size is None else data_out_size
        return self.target.execute(lun, Task(command.ljust(32, b"\0"), nexus, data_out, size, failure))

    def reply(self, cdb: str | bytes, data_out: bytes = b"", **options: object) -> Reply:
        """Run a command that must end here."""
        outcome = self.run(cdb, data_out, **options)  # type: ignore[arg-type]
        assert isinstance(outcome, Reply)
        return outcome

    def data(self, cdb: str | bytes, data_out: bytes = b"", **options: object) -> bytes:
        """Run a command that must succeed. :returns: data-in."""
        reply = self.reply(cdb, data_out, **options)
        assert reply == Reply(data=reply.data), sense_of(reply)
        return reply.data

    def sense(self, cdb: str | bytes, data_out: bytes = b"", **options: object) -> tuple[int, int, int]:
        """Run a command that must end with CHECK CONDITION. :returns: key, code, qualifier."""
        reply = self.reply(cdb, data_out, **options)
        assert reply.status is Status.CHECK_CONDITION
        return sense_of(reply)


def sense_of(reply: Reply) -> tuple[int, int, int]:
    """:returns: key, code and qualifier, from either format."""
    sense = reply.sense
    if sense[0] & 0x7F == 0x72:
        return sense[1] & 0xF, sense[2], sense[3]
    return sense[2] & 0xF, sense[12], sense[13]


def information_of(reply: Reply) -> int | None:
    """:returns: the INFORMATION field of fixed format sense, if it is valid."""
    return int.from_bytes(reply.sense[3:7]) if reply.sense[0] & 0x80 else None


def pointer_of(reply: Reply) -> tuple[int, int | None, bool]:
    """:returns: byte, bit, and whether it is in the CDB, from fixed format sense."""
    flags, byte = reply.sense[15], int.from_bytes(reply.sense[16:18])
    assert flags & 0x80
    return byte, flags & 7 if flags & 8 else None, bool(flags & 0x40)


# The core, for the device


@dataclass(frozen=True)
class MemoryCommand:
    """A ``_core.Command``."""

    kind: Literal["cdb", "control", "broken"] = "cdb"
    tag: int = 0
    dead: bool = False
    queue: int = 2
    lun: bytes = bytes((1, 0, 0, 0, 0, 0, 0, 0))
    id: int = 0
    instance: int = 0
    cdb: bytes = bytes(32)
    data_out: bytes = b""
    data_out_size: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Completion:
    """What a ``_core.Device.complete`` said."""

    response: int
    status: int = 0
    sense: bytes = b""
    data: bytes = b""


@dataclass
class MemoryCore:
    """A ``_core.Device`` without a ring: commands are put in, completions are looked at.

    ``in_flight`` are commands on the hot path. By their ids, ``stuck`` ones do not end; ``gives_up`` ones
    fail to the slow path when they are cancelled, as a cancelled read does.
    """

    waiting: deque[MemoryCommand] = field(default_factory=deque)
    in_flight: list[MemoryCommand] = field(default_factory=list)
    stuck: set[int] = field(default_factory=set)
    gives_up: set[int] = field(default_factory=set)
    gates: dict[tuple[int, int], int] = field(default_factory=dict)
    log: list[tuple[str, int]] = field(default_factory=list)
    completions: dict[int, Completion] = field(default_factory=dict)
    responses: dict[int, bytes] = field(default_factory=dict)
    events: list[tuple[int, bytes, int]] = field(default_factory=list)
    locks: dict[int, object] = field(default_factory=dict)
    lock_calls: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    locked_out: bool = False
    given_up: set[int] = field(default_factory=set)
    instances: dict[tuple[int, int], int] = field(default_factory=dict)

    def lun_instance(self, target: int, lun: int) -> int:
        return self.instances.setdefault((target, lun), len(self.instances) + 1)

    def set_gate(self, target: int, lun: int, word: int, *, instance: int | None = None) -> None:
        self.gates[target, lun] = word

    def lock_range(
        self,
        target: int,
        lun: int,
        offset: int,
        length: int,
        *,
        reads: bool = True,
        instance: int | None = None,
    ) -> int | None:
        if self.locked_out:
            return None
        self.lock_calls.append((target, lun, offset, length, reads))
        self.locks[len(self.lock_calls)] = offset
        return len(self.lock_calls)

    def unlock_range(self, target: int, lun: int, handle: int) -> None:
        del self.locks[handle]

    def next_command(self, timeout_s: float | None = None) -> MemoryCommand | None:
        assert timeout_s == 0, "the device must not wait for commands"
        return self.waiting.popleft() if self.waiting else None

    def complete(
        self,
        tag: int,
        *,
        response: int,
        status: int = 0,
        sense: bytes = b"",
        data: bytes = b"",
        taken: int | None = None,
    ) -> None:
        if tag in self.given_up:
            return  # a dead tag
        assert tag not in self.completions, "completed twice"
        self.completions[tag] = Completion(response, status, sense, data)
        self.log.append(("complete", tag))

    def complete_control(self, tag: int, response: bytes) -> None:
        self.responses[tag] = response
        self.log.append(("control", tag))

    def resume(self, tag: int) -> None:
        self.log.append(("resume", tag))

    def post_event(self, event: int, lun: bytes, reason: int) -> None:
        self.events.append((event, lun, reason))

    def drain(
        self,
        *,
        target: int | None = None,
        lun: int | None = None,
        id: int | None = None,
        instance: int | None = None,
        cancel: bool = False,
        timeout_s: float = 5.0,
    ) -> bool:
        about = [
            each
            for each in self.in_flight
            if target in (None, each.lun[1])
            and lun in (None, each.lun[3])
            and id in (None, each.id)
            and instance in (None, self.lun_instance(each.lun[1], each.lun[3]))
        ]
        if timeout_s == 0:
            return not about
        for command in about:
            if cancel and command.id in self.gives_up:
                self.waiting.append(_cancelled(command))
            elif command.id not in self.stuck:
                self.complete(command.tag, response=0)
        self.in_flight = [each for each in self.in_flight if each not in about or each.id in self.stuck]
        return not any(each.id in self.stuck for each in about)


def _cancelled(command: MemoryCommand) -> MemoryCommand:
    return MemoryCommand(
        tag=command.tag, lun=command.lun, id=command.id, cdb=command.cdb, failure=f"errno:{errno.ECANCELED}"
    )


@dataclass(frozen=True)
class MemoryGeometry:
    """Sizes of a ``Backstore``."""

    block_size: int = 512
    physical_block_size: int = 4096
    discard_granularity: int = 4096


@dataclass(frozen=True)
class MemoryBackstore:
    """A ``Backstore`` over memory."""

    store: MemoryStore = field(default_factory=MemoryStore)
    geometry: MemoryGeometry = MemoryGeometry()
