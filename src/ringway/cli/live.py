"""Figures of a running target: a live line on a terminal, and a table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ringway.model import Latency, LunStatistics, TargetInfo, TargetStatistics
from ringway.units import format_count, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from rich.table import Table


#: Counters without sizes. A guest that looks around for its disks is refused something now and then.
_OTHERS: Final = {"flushes": "flush", "unmaps": "unmap", "other": "other", "errors": "(not GOOD)"}


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two looks at a target, by the second."""

    reads: float
    writes: float
    read_bytes: float
    write_bytes: float
    cpu: float  #: cores

    @classmethod
    def between(cls, before: TargetStatistics, after: TargetStatistics) -> Rates:
        """The rates from ``before`` to ``after``."""
        seconds = max(after.uptime_s - before.uptime_s, 1e-9)

        def rate(field: str) -> float:
            return (total(after, field) - total(before, field)) / seconds

        cpu_ns = sum(worker.cpu_ns for worker in after.workers) - sum(
            worker.cpu_ns for worker in before.workers
        )
        return cls(
            rate("reads"), rate("writes"), rate("read_bytes"), rate("write_bytes"), cpu_ns / 1e9 / seconds
        )


def line(info: TargetInfo, before: TargetStatistics, after: TargetStatistics) -> str:
    """One line for a person: who is there, what goes through, what it costs."""
    rates = Rates.between(before, after)
    state = "connected" if info.connected else "no guest"
    in_flight = sum(queue.in_flight for queue in after.queues)
    errors = total(after, "errors")
    parts = [
        state,
        f"read {format_count(rates.reads)}/s {format_rate(rates.read_bytes)}",
        f"write {format_count(rates.writes)}/s {format_rate(rates.write_bytes)}",
        f"in flight {in_flight}",
        f"cpu {rates.cpu:.0%}",
    ]
    return " · ".join(parts + ([f"not GOOD {errors}"] if errors else []))


def summary_table(statistics: TargetStatistics, title: str) -> Table:
    """What a target did in its life: a row for each LUN and kind of request that came."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("LUN")
    table.add_column("request")
    for name in ("count", "bytes", "p50", "p99", "longest"):
        table.add_column(name, justify="right")
    for lun in statistics.luns:
        for row in _rows(lun):
            table.add_row(f"{lun.target}:{lun.lun}", *row)
    return table


def warm_up() -> None:
    """Draw all once into nowhere, so that no module is left to import for a process that may open no file."""
    import io

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=io.StringIO(), force_terminal=True)
    with Live(Text("·"), console=console, auto_refresh=False) as display:
        display.update(Text("·", no_wrap=True, overflow="ellipsis"), refresh=True)
    row = LunStatistics(0, 0, 1, 1, 1, 1, 1, 1, 1, 1, Latency(), Latency())
    console.print(summary_table(TargetStatistics(1.0, (row,), (), ()), "·"))


def total(statistics: TargetStatistics, field: str) -> int:
    """Sum one counter over the LUNs."""
    return sum(getattr(lun, field) for lun in statistics.luns)


def _rows(lun: LunStatistics) -> Iterator[list[str]]:
    """Reads and writes always, the others if there were any."""
    yield ["read", *_transfers(lun.reads, lun.read_bytes, lun.read_latency)]
    yield ["write", *_transfers(lun.writes, lun.write_bytes, lun.write_latency)]
    for name, title in _OTHERS.items():
        if count := getattr(lun, name):
            yield [title, format_count(count)]


def _transfers(count: int, size_bytes: int, latency: Latency) -> list[str]:
    times = [
        format_duration(ns / 1e9) if count else "" for ns in (latency.p50_ns, latency.p99_ns, latency.max_ns)
    ]
    return [format_count(count), format_size(size_bytes), *times]
