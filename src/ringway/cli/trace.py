"""``ringway trace``: follow requests of a running target, and say where their time went."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ringway.cli.control import connect
from ringway.cli.outputs import check_writable
from ringway.cli.signals import as_ctrl_c
from ringway.errors import ControlError, NotFoundError
from ringway.model import (
    Carrier,
    Done,
    InfoRequest,
    Notice,
    StatisticsRequest,
    TargetInfo,
    TargetStatistics,
    TraceBatch,
    TraceFetchRequest,
    TraceSample,
    TraceStartRequest,
    TraceStopRequest,
    Wake,
)
from ringway.notation import parse_address
from ringway.target.control import ControlClient
from ringway.trace import perfetto, svg
from ringway.trace.figures import Group, by_operation, group
from ringway.trace.steps import MEANING, Step, segments, total_ns, unseen
from ringway.units import format_count, format_duration

if TYPE_CHECKING:
    from rich.table import Table

_PACE_S: Final = 0.05  #: between two fetches: what is busy is to be looked at, not to be kept busy
_LOOK_S: Final = 0.25  #: to learn the rate of requests
_WANTED_PER_S: Final = 2000  #: samples, when --sample is not given
_MOST: Final = 1_000_000  #: samples in one trace: they are held in memory
_KICKED: Final = {
    Wake.KICK: "while the worker slept",
    Wake.POLLING: "not needed: the worker was awake",
    Wake.OTHER: "not seen: something else woke the worker",
}
_UNTOLD: Final = {
    Notice.SIGNALLED: "",
    Notice.SUPPRESSED: "not: the driver wants no interrupt for it",
    Notice.NO_CALL: "not: the front end gave no eventfd for calls",
}
_BY: Final = {
    Carrier.WORKER: "by the worker",
    Carrier.KERNEL: "by the kernel",
    Carrier.PYTHON: "by the slow path",
}
_EPILOG: Final = """\b
Examples:
  ringway trace disk.img.sock
  ringway trace disk.img.sock --sample 1 --count 500 --lun 0:0
  ringway trace disk.img.sock --seconds 2 --svg way.svg --perfetto way.json

\b
Open --perfetto's file at https://ui.perfetto.dev, --svg's in a browser.
"""


class Recording(msgspec.Struct, frozen=True):
    """What ``--json`` writes: the samples, their figures, and what they are samples of."""

    target: TargetInfo
    sample: int
    seconds: float
    dropped: int
    groups: tuple[Group, ...]
    samples: tuple[TraceSample, ...]


@click.command(epilog=_EPILOG, short_help="See where the time of a target's requests goes.")
@click.argument("socket", metavar="SOCKET")
@click.option(
    "--sample",
    type=click.IntRange(1, 1 << 31),
    metavar="N",
    help="Follow one of N requests of each queue, at random.  [default: about 2000 a second]",
)
@click.option("--seconds", type=click.FloatRange(0, 3600, min_open=True), default=5.0, show_default=True)
@click.option("--count", type=click.IntRange(1, _MOST), metavar="N", help="End after so many samples.")
@click.option(
    "--queue",
    type=click.IntRange(0, 255),
    metavar="Q",
    help="This virtqueue alone; those of requests begin at 2 (scsi) or 0 (blk).",
)
@click.option("--lun", metavar="[TARGET:]LUN", help="This disk alone.")
@click.option("--json", "json_file", type=click.File("w"), help="Write all samples; - is stdout.")
@click.option("--svg", "svg_file", type=click.File("w"), help="Draw requests, a row each.")
@click.option("--perfetto", "perfetto_file", type=click.File("w"), help="Write Chrome's trace event format.")
def trace(
    socket: str,
    sample: int | None,
    seconds: float,
    count: int | None,
    queue: int | None,
    lun: str | None,
    json_file: Any,
    svg_file: Any,
    perfetto_file: Any,
) -> None:
    """See where the time of a running target's requests goes, step by step.

    SOCKET is the path that `ringway serve` listens on, its control socket's, or the disk's. Ctrl-C ends the
    trace early and shows what there is.
    """
    target, number = (None, None) if lun is None else parse_address(lun)
    for file in (json_file, svg_file, perfetto_file):
        if file is not None and file is not sys.stdout:
            check_writable(Path(file.name))
    with connect(socket) as client:
        info = client.call(InfoRequest(), TargetInfo)
        interval = sample or _fitting_interval(client)
        _start(client, TraceStartRequest(interval, queue, target, number), info)
        record = _record(client, info, interval, seconds, count or _MOST)
    if not record.samples:
        message, hint = _nothing(record)
        raise NotFoundError(message, hint=hint)
    if json_file is not None:
        json_file.write(msgspec.json.encode(record).decode() + "\n")
    if svg_file is not None:
        svg_file.write(svg.picture(record.samples, _title(record)))
    if perfetto_file is not None:
        document = perfetto.document(record.samples, info)
        perfetto_file.write(msgspec.json.encode(document).decode() + "\n")
    if json_file is None or json_file is not sys.stdout:
        _print(record)


def _fitting_interval(client: ControlClient) -> int:
    """Such that a busy target is followed at some two thousand requests a second, and a quiet one fully."""
    before = client.call(StatisticsRequest(), TargetStatistics)
    time.sleep(_LOOK_S)
    after = client.call(StatisticsRequest(), TargetStatistics)
    requests = sum(queue.requests for queue in after.queues) - sum(queue.requests for queue in before.queues)
    rate = requests / max(after.uptime_s - before.uptime_s, 1e-9)
    return max(1, round(rate / _WANTED_PER_S))


def _start(client: ControlClient, request: TraceStartRequest, info: TargetInfo) -> None:
    """:raises ControlError: the target is too old to know this."""
    try:
        client.call(request, Done)
    except ControlError as error:
        raise ControlError(
            f"the target (version {info.ringway}, pid {info.pid}) cannot be traced: {error.message}",
            hint="start it again with this version of ringway",
        ) from error


def _record(client: ControlClient, info: TargetInfo, interval: int, seconds: float, most: int) -> Recording:
    """Fetch until the time is up, there is enough, or the user has seen enough."""
    samples: list[TraceSample] = []
    dropped = 0
    start = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), as_ctrl_c():
        while len(samples) < most and (left := start + seconds - time.monotonic()) > 0:
            time.sleep(min(_PACE_S, left))
            batch = client.call(TraceFetchRequest(), TraceBatch)
            samples += batch.samples
            dropped = batch.dropped
    lasted = time.monotonic() - start
    client.call(TraceStopRequest(), Done)
    kept = tuple(samples[:most])
    groups = tuple(group(operation, members) for operation, members in by_operation(kept).items())
    return Recording(info, interval, lasted, dropped, groups, kept)


def _nothing(record: Recording) -> tuple[str, str]:
    """Why there is no sample, and what to do about it."""
    lasted = format_duration(record.seconds)
    if not record.target.connected:
        return f"no guest is connected: nothing to trace in {lasted}", "connect a guest, then trace again"
    what = f"no request came in {lasted}" if record.sample == 1 else f"no request was sampled in {lasted}"
    return (
        what,
        "let the guest do some I/O; take --sample 1, or a longer --seconds; look at --queue and --lun",
    )


def _title(record: Recording) -> str:
    every = "every request" if record.sample == 1 else f"one request in {record.sample}"
    return f"{record.target.socket or 'a target'}: where the time goes ({every})"


# What a person sees


def _print(record: Recording) -> None:
    from rich.console import Console

    # in a pipe nobody sees where the line ends
    console = Console(width=None if sys.stdout.isatty() else 120)
    every = "every request" if record.sample == 1 else f"one request in {record.sample} of each queue"
    count = format_count(len(record.samples))
    click.echo(f"{count} requests in {format_duration(record.seconds)}: {every}")
    if record.dropped:
        click.echo(f"{format_count(record.dropped)} more found no room: take a larger --sample")
    for figures in record.groups:
        console.print(_table(figures))
    _print_slowest(max(record.samples, key=total_ns))


def _table(figures: Group) -> Table:
    from rich import box
    from rich.table import Table

    title = f"{figures.operation}: {format_count(figures.count)} sampled"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("step", no_wrap=True)
    for name in ("median", "p99", "longest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("after the step before it")
    for row in figures.steps:
        times = (row.p50_ns, row.p99_ns, row.max_ns)
        note = "; ".join(filter(None, (MEANING[row.step], row.note)))
        table.add_row(str(row.step), *(_cell(ns, bound=row.bound) for ns in times), note)
    table.add_section()
    totals = (figures.total_p50_ns, figures.total_p99_ns, figures.total_max_ns)
    table.add_row("in all", *map(_cell, totals), "from found by the worker to told")
    return table


def _cell(ns: int | None, *, bound: bool = False) -> str:
    return "" if ns is None else ("≤ " if bound else "") + format_duration(ns / 1e9)


def _print_slowest(sample: TraceSample) -> None:
    lun = "" if sample.lun is None else f", LUN {sample.target}:{sample.lun}"
    what = f"{sample.operation}{f' of {sample.bytes} bytes' if sample.bytes else ''}"
    click.echo(f"\nThe slowest: {what} (opcode 0x{sample.opcode:02x}), queue {sample.queue}{lun}")
    click.echo(f"  {'queued':<11}{_queued(sample)}")
    click.echo(f"  {'kicked':<11}{_KICKED[sample.wake]}")
    click.echo(f"  {'woken':<11}{'at 0 ns' if sample.woken_ns is not None else 'it was awake'}")
    at = 0
    for part in segments(sample):
        at += part.ns
        click.echo(
            f"  {part.step:<11}at {_cell(at):>8}   after {_cell(part.ns):>8}: {_detail(part.step, sample)}"
        )
    if sample.notified_ns is None:
        click.echo(f"  {'notified':<11}{_UNTOLD[sample.notice]}")


def _queued(sample: TraceSample) -> str:
    part = unseen(sample)
    if part is None:
        return "before the trace began"
    return f"within the {_cell(part.ns)} before that"


def _detail(step: Step, sample: TraceSample) -> str:
    if step is Step.COMPLETED:
        return f"{MEANING[step]} {_BY[sample.carrier]}{', after it was parked' if sample.parked else ''}"
    return MEANING[step]
