"""What a target counted since its start."""

from __future__ import annotations

from msgspec import Struct

Histogram = tuple[tuple[int, int], ...]
"""How many requests took less than so many nanoseconds, and no less than the bound before; empty buckets are
left out."""


class Latency(Struct, frozen=True):
    """How long requests took since the target's start, in nanoseconds; all zero when there was none.

    The histogram is what can be subtracted from a later look.
    """

    p50_ns: int = 0
    p99_ns: int = 0
    max_ns: int = 0
    histogram: Histogram = ()


class LunStatistics(Struct, frozen=True):
    """What guests did to one LUN since the target's start, over all queues."""

    target: int
    lun: int
    reads: int
    writes: int
    flushes: int
    unmaps: int
    other: int
    errors: int
    read_bytes: int
    write_bytes: int
    read_latency: Latency
    write_latency: Latency

    @classmethod
    def unused(cls, target: int, lun: int) -> LunStatistics:
        """Of a LUN that nobody has used."""
        return cls(target, lun, 0, 0, 0, 0, 0, 0, 0, 0, Latency(), Latency())


class QueueStatistics(Struct, frozen=True):
    """What happened on one virtqueue since the target's start."""

    queue: int
    kicks: int
    signals: int
    batches: int
    requests: int
    in_flight: int
    running: bool
    slow_commands: int = 0  #: requests that the slow path decided


class WorkerStatistics(Struct, frozen=True):
    """What one I/O thread did since the target's start."""

    worker: int
    thread: int
    sleeps: int
    spins: int
    loops: int
    cpu_ns: int
    alarms: int = 0  #: times that it woke up for a request that was due
    foreseen: int = 0  #: requests that it was awake for, because they came at an even pace


class TargetStatistics(Struct, frozen=True):
    """All counters of a target; ``uptime_s`` is what to divide by."""

    uptime_s: float
    luns: tuple[LunStatistics, ...]
    queues: tuple[QueueStatistics, ...]
    workers: tuple[WorkerStatistics, ...]
