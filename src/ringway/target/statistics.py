"""Turn the core's counters into records: rows of queues are added up, histograms become percentiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from ringway import _core
from ringway.model import Latency, LunStatistics, QueueStatistics, TargetStatistics, WorkerStatistics

_COUNTERS: Final = ("reads", "writes", "flushes", "unmaps", "other", "errors", "read_bytes", "write_bytes")
Row = Mapping[str, int | list[int]]


def collect(rows: Mapping[str, Sequence[Row]], uptime_s: float) -> TargetStatistics:
    """Make the records of a target from ``_core.Device.statistics()``."""
    by_lun: defaultdict[tuple[Any, Any], list[Row]] = defaultdict(list)
    for row in rows["luns"]:
        by_lun[row["target"], row["lun"]].append(row)
    return TargetStatistics(
        uptime_s=uptime_s,
        luns=tuple(_lun(*address, group) for address, group in sorted(by_lun.items())),
        queues=tuple(msgspec.convert(row, QueueStatistics, strict=False) for row in rows["queues"]),
        workers=tuple(msgspec.convert(row, WorkerStatistics) for row in rows["workers"]),
    )


def latency(counts: Sequence[int]) -> Latency:
    """Percentiles of a histogram of the core: each is its bucket's upper bound, and so never too low."""
    total = sum(counts)
    if total == 0:
        return Latency()
    return Latency(
        p50_ns=_percentile(counts, total, 0.5),
        p99_ns=_percentile(counts, total, 0.99),
        max_ns=_percentile(counts, total, 1.0),
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


def _lun(target: int, lun: int, rows: Sequence[Row]) -> LunStatistics:
    """Add up one LUN's rows, one of each queue."""
    sums: dict[str, Any] = {name: sum(row[name] for row in rows) for name in _COUNTERS}
    histograms: dict[str, Any] = {
        name: latency([sum(column) for column in zip(*(row[name] for row in rows), strict=True)])
        for name in ("read_latency", "write_latency")
    }
    return LunStatistics(target=target, lun=lun, **sums, **histograms)
