"""What happened between two looks at a target's counters, by the second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from ringway.model import LunStatistics, QueueStatistics, TargetInfo, TargetStatistics, WorkerStatistics

_SHARES: Final = {"p50_ns": 0.5, "p99_ns": 0.99, "p999_ns": 0.999}
RowT = TypeVar("RowT", LunStatistics, QueueStatistics, WorkerStatistics)


class LunRates(msgspec.Struct, frozen=True):
    """One LUN over an interval. Latencies are upper bounds of their buckets; ``None``: no such request."""

    target: int
    lun: int
    reads_per_s: float
    writes_per_s: float
    read_bytes_per_s: float
    write_bytes_per_s: float
    others_per_s: float
    errors: int
    p50_ns: int | None
    p99_ns: int | None
    p999_ns: int | None


class QueueRates(msgspec.Struct, frozen=True):
    """One virtqueue over an interval. ``batch`` is requests in a batch; ``in_flight`` is at its end."""

    queue: int
    requests_per_s: float
    batch: float
    kicks_per_s: float
    signals_per_s: float
    slow_per_s: float
    in_flight: int
    running: bool


class WorkerRates(msgspec.Struct, frozen=True):
    """One worker over an interval. ``cpu`` is a share of one core."""

    worker: int
    thread: int
    cpu: float
    sleeps_per_s: float
    spins_per_s: float
    turns_per_s: float


class Interval(msgspec.Struct, frozen=True):
    """What a target did in so many seconds."""

    seconds: float
    connected: bool
    luns: tuple[LunRates, ...]
    queues: tuple[QueueRates, ...]
    workers: tuple[WorkerRates, ...]


def between(info: TargetInfo, before: TargetStatistics, after: TargetStatistics) -> Interval:
    """What happened from ``before`` to ``after``. What was not there before counts from zero."""
    seconds = max(after.uptime_s - before.uptime_s, 1e-9)
    luns = {(lun.target, lun.lun): lun for lun in before.luns}
    return Interval(
        seconds,
        info.connected,
        tuple(lun_rates(luns.get((lun.target, lun.lun)), lun, seconds) for lun in after.luns),
        tuple(_queue(*pair, seconds) for pair in zip(before.queues, after.queues, strict=True)),
        tuple(_worker(*pair, seconds) for pair in zip(before.workers, after.workers, strict=True)),
    )


def percentile(histogram: Mapping[int, int], share: float) -> int | None:
    """The upper bound of the bucket in which this share of all is reached; ``None``: there is nothing."""
    wanted, seen = share * sum(histogram.values()), 0
    for bound, count in sorted(histogram.items()):
        seen += count
        if count and seen >= wanted:
            return bound
    return None


def _grown(before: RowT | None, after: RowT, *names: str) -> int:
    """By how much counters have grown. One that is smaller than before began anew."""
    total = 0
    for name in names:
        old, new = getattr(before, name, 0), getattr(after, name)
        total += new - old if new >= old else new
    return total


def _latencies(before: LunStatistics | None, after: LunStatistics) -> dict[int, int]:
    """Reads and writes together, by bucket."""
    grown: dict[int, int] = {}
    for name in ("read_latency", "write_latency"):
        past = {} if before is None else dict(getattr(before, name).histogram)
        for bound, count in getattr(after, name).histogram:
            grown[bound] = grown.get(bound, 0) + max(count - past.get(bound, 0), 0)
    return grown


def lun_rates(before: LunStatistics | None, after: LunStatistics, seconds: float) -> LunRates:
    """What happened on one LUN in so many seconds."""
    histogram = _latencies(before, after)
    return LunRates(
        after.target,
        after.lun,
        _grown(before, after, "reads") / seconds,
        _grown(before, after, "writes") / seconds,
        _grown(before, after, "read_bytes") / seconds,
        _grown(before, after, "write_bytes") / seconds,
        _grown(before, after, "flushes", "unmaps", "other") / seconds,
        _grown(before, after, "errors"),
        **{name: percentile(histogram, share) for name, share in _SHARES.items()},
    )


def _queue(before: QueueStatistics, after: QueueStatistics, seconds: float) -> QueueRates:
    requests, batches = _grown(before, after, "requests"), _grown(before, after, "batches")
    return QueueRates(
        after.queue,
        requests / seconds,
        requests / batches if batches else 0.0,
        _grown(before, after, "kicks") / seconds,
        _grown(before, after, "signals") / seconds,
        _grown(before, after, "slow_commands") / seconds,
        after.in_flight,
        after.running,
    )


def _worker(before: WorkerStatistics, after: WorkerStatistics, seconds: float) -> WorkerRates:
    return WorkerRates(
        after.worker,
        after.thread,
        _grown(before, after, "cpu_ns") / 1e9 / seconds,
        _grown(before, after, "sleeps") / seconds,
        _grown(before, after, "spins") / seconds,
        _grown(before, after, "loops") / seconds,
    )
