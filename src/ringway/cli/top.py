"""``ringway top``: what a running target does, again and again; without one, what all of a host's do."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click
import msgspec

from ringway.cli.control import connect
from ringway.cli.rates import Interval, LunRates, QueueRates, WorkerRates, between
from ringway.cli.remote import remote
from ringway.cli.signals import as_ctrl_c
from ringway.model import (
    InfoRequest,
    StatisticsRequest,
    TargetInfo,
    TargetStatistics,
)
from ringway.target.control import ControlClient
from ringway.units import format_count, format_duration, format_rate

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_EPILOG: Final = """\b
Examples:
  ringway top
  ringway top disk.img.sock
  ringway top --once --json disk.img.sock
"""


@click.command(epilog=_EPILOG, short_help="Watch the disks of this host, or a running target.")
@click.argument("socket", metavar="[SOCKET]", required=False, type=click.Path())
@remote
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.05, 3600),
    metavar="S",
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line for each interval.")
def top(socket: str | None, remote: str | None, interval_s: float, once: bool, as_json: bool) -> None:
    """Watch what all disks of this host do, or, in more detail, one running target. q or Ctrl-C ends it.

    SOCKET is the path that `ringway serve` listens on, its control socket's, or the disk's: then disks,
    queues and workers are shown, with latencies of the interval, from a request's dequeueing to its
    completion. For all disks of the host the daemon is asked; the kernel's tell no latencies.
    """
    live = sys.stdout.isatty() and not once and not as_json
    if socket is None:
        _watch_host(remote, interval_s, live=live, once=once, as_json=as_json)
        return
    with (
        connect(socket) as client,
        contextlib.suppress(KeyboardInterrupt, BrokenPipeError),
        as_ctrl_c(),
    ):
        if live:
            _show(client, interval_s)
            return
        for info, rates in _intervals(client, interval_s, _Pause()):
            _print(info, rates, as_json=as_json)
            if once:
                return


def _watch_host(socket: str | None, seconds: float, *, live: bool, once: bool, as_json: bool) -> None:
    from ringway.cli import overview

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError), as_ctrl_c():
        if live:
            _show_host(socket, seconds)
            return
        for rows in overview.intervals(socket, seconds, _Pause().wait):
            overview.show(rows, as_json=as_json)
            sys.stdout.flush()
            if once:
                return


def _show_host(socket: str | None, seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from ringway.cli import overview

    console, first = Console(), Text("looking  (q ends)")
    with _keyboard() as keys, Live(first, console=console, auto_refresh=False, screen=True) as display:
        for rows in overview.intervals(socket, seconds, _Pause(keys).wait):
            text = "\n".join(overview.lines(rows, console.width))
            display.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


# Looking


class _Pause:
    """Waits between two looks; in a terminal, ``q`` ends it."""

    def __init__(self, keys: int | None = None) -> None:
        self._keys = keys

    def wait(self, seconds: float) -> bool:
        """:returns: whether to go on."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._keys is None:
                time.sleep(left)
            elif select.select([self._keys], [], [], left)[0] and self._is_over():
                return False
        return True

    def _is_over(self) -> bool:
        typed = os.read(self._keys, 64) if self._keys is not None else b""
        return not typed or b"q" in typed.lower()


def _intervals(client: ControlClient, seconds: float, pause: _Pause) -> Iterator[tuple[TargetInfo, Interval]]:
    before = client.call(StatisticsRequest(), TargetStatistics)
    while pause.wait(seconds):
        after = client.call(StatisticsRequest(), TargetStatistics)
        info = client.call(InfoRequest(), TargetInfo)
        yield info, between(info, before, after)
        before = after


def _show(client: ControlClient, seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    first = Text("looking  (q ends)")
    with _keyboard() as keys, Live(first, console=Console(), auto_refresh=False, screen=True) as display:
        for info, rates in _intervals(client, seconds, _Pause(keys)):
            display.update(_view(info, rates), refresh=True)


@contextlib.contextmanager
def _keyboard() -> Iterator[int | None]:
    """Single keys from the terminal, which is put back at the end; ``None``: there is no keyboard."""
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    old = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, old)


def _print(info: TargetInfo, rates: Interval, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(rates).decode())
        return
    from rich.console import Console

    # in a pipe nobody sees where the line ends
    Console(width=None if sys.stdout.isatty() else 120).print(_view(info, rates))


def _view(info: TargetInfo, rates: Interval) -> Group:
    from rich.console import Group

    state = "a guest is connected" if rates.connected else "no guest is connected"
    busy = any(queue.requests_per_s for queue in rates.queues)
    head = [
        info.socket or "a target",
        f"vhost-user-{info.device}",
        info.io_engine,
        info.poll,
        f"pid {info.pid}",
    ]
    note = f"{state}{'' if busy else ', and nothing was asked for'} · {format_duration(rates.seconds)}"
    tables = (_lun_table(rates.luns), _queue_table(rates.queues), _worker_table(rates.workers))
    return Group(" · ".join(head), note, *tables)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _lun_table(rows: Sequence[LunRates]) -> Table:
    table = _table("LUN", "read/s", "", "write/s", "", "other/s", "p50", "p99", "p99.9", "not GOOD")
    for row in rows:
        table.add_row(
            f"{row.target}:{row.lun}",
            format_count(row.reads_per_s),
            format_rate(row.read_bytes_per_s),
            format_count(row.writes_per_s),
            format_rate(row.write_bytes_per_s),
            format_count(row.others_per_s),
            *(_latency(ns) for ns in (row.p50_ns, row.p99_ns, row.p999_ns)),
            str(row.errors),
        )
    return table


def _queue_table(rows: Sequence[QueueRates]) -> Table:
    table = _table("queue", "requests/s", "in flight", "batch", "kicks/s", "signals/s", "slow path/s")
    for row in rows:
        if not row.running:
            continue
        rates = (row.kicks_per_s, row.signals_per_s, row.slow_per_s)
        table.add_row(
            str(row.queue),
            format_count(row.requests_per_s),
            str(row.in_flight),
            f"{row.batch:.1f}",
            *map(format_count, rates),
        )
    return table


def _worker_table(rows: Sequence[WorkerRates]) -> Table:
    table = _table("worker", "thread", "CPU", "sleeps/s", "spins/s", "turns/s")
    for row in rows:
        rates = (row.sleeps_per_s, row.spins_per_s, row.turns_per_s)
        table.add_row(str(row.worker), str(row.thread), f"{row.cpu:.1%}", *map(format_count, rates))
    return table


def _latency(ns: int | None) -> str:
    return "" if ns is None else format_duration(ns / 1e9)
