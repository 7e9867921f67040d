"""``ringway top`` without a socket: what all disks of this host do, both engines, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import click
import msgspec

from ringway.cli.format import Column, View, table
from ringway.cli.rates import LunRates, lun_rates
from ringway.client import Client
from ringway.errors import RingwayError, TimedOutError, UnreachableError
from ringway.model import EndpointInfo, LunStatistics, TargetStatistics
from ringway.units import format_count, format_duration, format_rate

#: Whether to look again, after so many seconds.
Pause = Callable[[float], bool]


class DiskRates(LunRates, frozen=True, kw_only=True):
    """One LUN of an endpoint over an interval."""

    endpoint: str
    engine: str


class Look(msgspec.Struct, frozen=True):
    """The counters of all endpoints at one time. Those that are down have none."""

    endpoints: tuple[EndpointInfo, ...]
    statistics: dict[str, TargetStatistics]


def _duration(ns: int) -> str:
    return format_duration(ns / 1e9)


_TABLE: Final = View[DiskRates](
    {
        "endpoint": Column(lambda row: row.endpoint),
        "lun": Column(lambda row: f"{row.target}:{row.lun}"),
        "engine": Column(lambda row: row.engine),
        "read/s": Column(lambda row: row.reads_per_s, format_count, right=True),
        "read": Column(lambda row: row.read_bytes_per_s, format_rate, right=True),
        "write/s": Column(lambda row: row.writes_per_s, format_count, right=True),
        "write": Column(lambda row: row.write_bytes_per_s, format_rate, right=True),
        "other/s": Column(lambda row: row.others_per_s, format_count, right=True),
        "p50": Column(lambda row: row.p50_ns, _duration, right=True),
        "p99": Column(lambda row: row.p99_ns, _duration, right=True),
        "not good": Column(lambda row: row.errors, right=True),
    },
    (
        "endpoint",
        "lun",
        "engine",
        "read/s",
        "read",
        "write/s",
        "write",
        "other/s",
        "p50",
        "p99",
        "not good",
    ),
    lambda row: f"{row.endpoint}/{row.target}:{row.lun}",
)


_NOTHING: Final = TargetStatistics(0.0, (), (), ())


def intervals(socket: str | None, seconds: float, pause: Pause) -> Iterator[tuple[DiskRates, ...]]:
    """Look again and again, until ``pause`` says no more. :raises UnreachableError: the daemon is gone."""
    client = Client(socket)
    before = look(client)
    while pause(seconds):
        after = look(client)
        yield tuple(between(before, after))
        before = after


def look(client: Client) -> Look:
    """Ask for all counters."""
    endpoints = client.endpoints.list()
    found = {each.name: _statistics(client, each.name) for each in endpoints}
    return Look(endpoints, {name: counters for name, counters in found.items() if counters is not None})


def _statistics(client: Client, name: str) -> TargetStatistics | None:
    """The counters of one endpoint; ``None`` when it has none now: it is down, or has gone meanwhile."""
    try:
        return client.endpoints.statistics(name)
    except (UnreachableError, TimedOutError):
        raise
    except RingwayError:
        return None


def between(before: Look, after: Look) -> Iterator[DiskRates]:
    """What each LUN did between two looks. What is new, or began anew, counts from zero."""
    for endpoint in after.endpoints:
        new, old = (each.statistics.get(endpoint.name, _NOTHING) for each in (after, before))
        if old.uptime_s > new.uptime_s:
            old = _NOTHING
        seconds = max(new.uptime_s - old.uptime_s, 1e-9)
        past, present = _by_address(old), _by_address(new)
        for lun in endpoint.luns:
            address = (lun.target, lun.lun)
            now = present.get(address, LunStatistics.unused(*address))
            rates = lun_rates(past.get(address), now, seconds)
            yield DiskRates(**msgspec.structs.asdict(rates), endpoint=endpoint.name, engine=endpoint.engine)


def _by_address(counters: TargetStatistics) -> dict[tuple[int, int], LunStatistics]:
    return {(lun.target, lun.lun): lun for lun in counters.luns}


def lines(rows: Sequence[DiskRates], width: int | None) -> Iterator[str]:
    """The table; the busiest disks come first."""
    busiest = sorted(rows, key=lambda row: (-row.reads_per_s - row.writes_per_s, row.endpoint, row.lun))
    yield from table(busiest, _TABLE.chosen(None), width=width) if busiest else ("there is no disk",)


def show(rows: Sequence[DiskRates], *, as_json: bool) -> None:
    """Print one interval: a table, or a line of JSON."""
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
    else:
        click.echo("\n".join(lines(rows, None)))
