"""``/metrics``: what the engines count, in the words of Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

import ringway
from ringway.errors import RingwayError
from ringway.host.host import Host
from ringway.model import EndpointInfo, EndpointState, Histogram, LunStatistics, TargetStatistics

_LUN: Final = ("endpoint", "engine", "lun", "backstore")
_OPERATIONS: Final = (
    ("reads", "read"),
    ("writes", "write"),
    ("flushes", "flush"),
    ("unmaps", "unmap"),
    ("other", "other"),
)
#: A core's histogram is finer than a board needs: upper bounds in nanoseconds, and as Prometheus writes them.
_BOUNDS_NS: Final = tuple(10**power * step for power in range(3, 10) for step in (1, 2, 5))


class Snapshot(Struct, frozen=True):
    """All that is told, taken at one time."""

    endpoints: tuple[EndpointInfo, ...]
    statistics: dict[str, TargetStatistics]
    operations_running: int
    events: int
    reconcile_passes: int


async def text(host: Host) -> bytes:
    """Ask all engines, and write it down."""
    snapshot = await _take(host)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


async def _take(host: Host) -> Snapshot:
    infos = await host.endpoints()
    ours = [info for info in infos if info.state in (EndpointState.READY, EndpointState.DEGRADED)]
    statistics = await asyncio.gather(*(_statistics(host, info) for info in ours))
    return Snapshot(
        infos,
        {info.name: found for info, found in zip(ours, statistics, strict=True) if found is not None},
        host.operations.running,
        host.events.sequence,
        host.reconciler.passes,
    )


async def _statistics(host: Host, info: EndpointInfo) -> TargetStatistics | None:
    """``None`` of one that does not run."""
    try:
        return await host.actual.ask(host.actual.driver(info.engine).statistics, info.name)
    except RingwayError:
        return None


class _Collector:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from _daemon(self._snapshot)
        yield from _endpoints(self._snapshot)
        yield from _luns(self._snapshot)


def _daemon(snapshot: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily("ringway", "What runs here.", {"version": ringway.__version__})
    yield GaugeMetricFamily(
        "ringway_operations_running", "Operations under way.", snapshot.operations_running
    )
    yield CounterMetricFamily("ringway_events", "Events since the daemon's start.", snapshot.events)
    yield CounterMetricFamily(
        "ringway_reconcile_passes", "Times that all endpoints were compared.", snapshot.reconcile_passes
    )
    yield CounterMetricFamily("ringway_daemon_cpu_seconds", "The daemon's CPU time.", time.process_time())


def _endpoints(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ("endpoint", "engine")
    state = GaugeMetricFamily(
        "ringway_endpoint_state", "1 for the state that it is in.", labels=(*labels, "state")
    )
    restarts = CounterMetricFamily(
        "ringway_endpoint_restarts", "Times that it was started again.", labels=labels
    )
    connected = GaugeMetricFamily("ringway_endpoint_connected", "1 while a guest uses it.", labels=labels)
    for info in snapshot.endpoints:
        for one in EndpointState:
            state.add_metric((info.name, info.engine, one), info.state is one)
        restarts.add_metric((info.name, info.engine), info.restarts)
        if info.connected is not None:
            connected.add_metric((info.name, info.engine), info.connected)
    yield from (state, restarts, connected)


def _luns(snapshot: Snapshot) -> Iterator[Metric]:
    operations = CounterMetricFamily(
        "ringway_lun_operations", "Requests that ended.", labels=(*_LUN, "operation")
    )
    moved = CounterMetricFamily("ringway_lun_bytes", "Bytes moved.", labels=(*_LUN, "operation"))
    errors = CounterMetricFamily("ringway_lun_errors", "Requests that failed.", labels=_LUN)
    latency = HistogramMetricFamily(
        "ringway_lun_latency_seconds", "How long requests took.", labels=(*_LUN, "operation")
    )
    for labels, lun in _each_lun(snapshot):
        for field, name in _OPERATIONS:
            operations.add_metric((*labels, name), getattr(lun, field))
        moved.add_metric((*labels, "read"), lun.read_bytes)
        moved.add_metric((*labels, "write"), lun.write_bytes)
        errors.add_metric(labels, lun.errors)
        for operation, histogram in _histograms(lun):
            if histogram:
                latency.add_metric((*labels, operation), _buckets(histogram), sum_value=_sum_s(histogram))
    yield from (operations, moved, errors, latency)


def _histograms(lun: LunStatistics) -> tuple[tuple[str, Histogram], ...]:
    return ("read", lun.read_latency.histogram), ("write", lun.write_latency.histogram)


def _each_lun(snapshot: Snapshot) -> Iterator[tuple[tuple[str, ...], LunStatistics]]:
    for info in snapshot.endpoints:
        names = {(lun.target, lun.lun): lun.backstore for lun in info.luns}
        counters = snapshot.statistics.get(info.name)
        for lun in counters.luns if counters else ():
            backstore = names.get((lun.target, lun.lun), "")
            yield (info.name, info.engine, f"{lun.target}:{lun.lun}", backstore), lun


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts below each bound. A bucket of the core's counts where its own bound fits."""
    found = [
        (f"{bound / 1e9:g}", float(sum(count for upper, count in histogram if upper <= bound)))
        for bound in _BOUNDS_NS
    ]
    return [*found, ("+Inf", float(sum(count for _, count in histogram)))]


def _sum_s(histogram: Histogram) -> float:
    """The time of all requests, as each bucket's upper bound says it."""
    return sum(upper * count for upper, count in histogram) / 1e9
