"""Turn the core's counters into records: rows of queues are added up, histograms become percentiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from ringway import _core
from ringway.model import (
    Latency,
    LunStatistics,
    QueueStatistics,
    TargetStatistics,
    WorkerStatistics,
)

_COUNTERS: Final = ("reads", "writes", "flushes", "unmaps", "other", "errors", "read_bytes", "write_bytes")
_HISTOGRAMS: Final = ("read_latency", "write_latency")
Row = Mapping[str, int | list[int]]


def collect(rows: Mapping[str, Sequence[Row]], uptime_s: float) -> TargetStatistics:
    """Make the records of a target from ``_core.Device.statistics()``."""
    return TargetStatistics(uptime_s, tuple(_luns(rows["luns"])), _queues(rows), _workers(rows))


def latency(counts: Sequence[int]) -> Latency:
    """What a histogram of the core says. Percentiles are their bucket's upper bound, and so never too low."""
    total = sum(counts)
    if total == 0:
        return Latency()
    return Latency(
        p50_ns=_percentile(counts, total, 0.5),
        p99_ns=_percentile(counts, total, 0.99),
        max_ns=_percentile(counts, total, 1.0),
        histogram=tuple((bound, count) for bound, count in zip(_bounds(), counts, strict=True) if count),
    )


def total(luns: Iterable[LunStatistics], field: str) -> int:
    """Sum one counter over LUNs."""
    return sum(getattr(lun, field) for lun in luns)


def operations(lun: LunStatistics) -> int:
    """All requests of a LUN."""
    return lun.reads + lun.writes + lun.flushes + lun.unmaps + lun.other


@cache
def _bounds() -> list[int]:
    return _core.latency_bucket_bounds()


def _percentile(counts: Sequence[int], total: int, share: float) -> int:
    wanted, seen, bounds = share * total, 0, _bounds()
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return bounds[min(index, len(bounds) - 1)]
    return bounds[-1]


def _queues(rows: Mapping[str, Sequence[Row]]) -> tuple[QueueStatistics, ...]:
    return tuple(msgspec.convert(row, QueueStatistics, strict=False) for row in rows["queues"])


def _workers(rows: Mapping[str, Sequence[Row]]) -> tuple[WorkerStatistics, ...]:
    return tuple(msgspec.convert(row, WorkerStatistics) for row in rows["workers"])


def _luns(rows: Sequence[Row]) -> Iterator[LunStatistics]:
    """Add up each LUN's rows, one of each queue."""
    by_lun: defaultdict[tuple[Any, Any], list[Any]] = defaultdict(list)
    for row in rows:
        by_lun[row["target"], row["lun"]].append(row)
    for (target, lun), group in sorted(by_lun.items()):
        sums = {name: sum(row[name] for row in group) for name in _COUNTERS}
        latencies: dict[str, Any] = {
            name: latency([sum(column) for column in zip(*(row[name] for row in group), strict=True)])
            for name in _HISTOGRAMS
        }
        yield LunStatistics(target, lun, **sums, **latencies)
