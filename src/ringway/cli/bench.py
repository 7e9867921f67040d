"""``ringway bench``: this host's figures, ours beside a peer's."""

from __future__ import annotations

import sys

import click
import msgspec

from ringway.bench.plan import Case, DeviceKind, Figure, Sample, StoreKind, figures, is_fair
from ringway.bench.run import measure
from ringway.bench.sides import QSD, Side, qemu_storage_daemon, ringway

_STORES: tuple[StoreKind, ...] = ("null", "ram", "tmpfs")
_DEVICES: tuple[DeviceKind, ...] = ("scsi", "blk")
_DEPTHS = (1, 32)
_POLLS = ("interrupt", "adaptive", "poll")


@click.command(
    epilog="""\b
Examples:
  ringway bench
  ringway bench --store tmpfs --depth 32 --repeats 5 --seconds 2
  ringway bench --device blk --peer none -o json > series.json
"""
)
@click.option(
    "--store", "stores", multiple=True, type=click.Choice(_STORES), help="Repeatable. [default: all]"
)
@click.option(
    "--depth", "depths", multiple=True, type=click.IntRange(1, 64), help="Repeatable. [default: 1, 32]"
)
@click.option("--device", "devices", multiple=True, type=click.Choice(_DEVICES), help="[default: both]")
@click.option("--poll", type=click.Choice(_POLLS), default="adaptive", show_default=True)
@click.option("--peer", type=click.Choice([QSD, "none"]), default=QSD, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.05, 3600), default=1.0, show_default=True)
@click.option("--repeats", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--pin/--no-pin", default=True, help="Target on CPU 0, client on CPU 1. [default: pin]")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def bench(
    stores: tuple[StoreKind, ...],
    depths: tuple[int, ...],
    devices: tuple[DeviceKind, ...],
    poll: str,
    peer: str,
    seconds: float,
    repeats: int,
    pin: bool,
    output: str,
) -> None:
    """Measure 4 KiB random reads of our targets and of a peer, in one run.

    A front end of our own drives each side through its socket and polls, so that the target is the limit.
    Sides take turns (A B A B); figures are medians, ratios are against the peer. JSON has every sample with
    its latency histogram.
    """
    cases = [Case(store, depth) for store in stores or _STORES for depth in depths or _DEPTHS]
    sides = [ringway(device, poll) for device in devices or _DEVICES]
    if peer == QSD:
        sides.append(qemu_storage_daemon())
    samples = measure(
        cases,
        sides,
        repeats=repeats,
        seconds=seconds,
        cpus=(0, 1) if pin else None,
        progress=_progress,
    )
    if output == "json":
        click.echo(msgspec.json.encode(samples).decode())
    else:
        _print_table(samples, sides)


def _progress(sample: Sample) -> None:
    if sys.stderr.isatty():
        note = "" if is_fair(sample) else "  (the client did not get its CPU)"
        case = f"{sample.case.store} depth {sample.case.depth}"
        click.echo(f"{sample.side:20} {case:16} {sample.iops / 1e3:8.0f} k IOPS{note}", err=True)


def _print_table(samples: list[Sample], sides: list[Side]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = figures(samples)
    peers = {row.case: row for row in rows if row.side == QSD}
    table = Table(title="4 KiB random reads", caption="ratio: IOPS over the peer's; idle: CPU, connected")
    for name in ("store", "depth", "side"):
        table.add_column(name, no_wrap=True)
    for name in ("kIOPS", "p50 µs", "p99 µs", "ratio", "idle %", "fair"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (_STORES.index(row.case.store), row.case.depth)):
        table.add_row(*_cells(row, peers.get(row.case)))
    # in a pipe nobody sees where the line ends
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if any(row.unfair == row.samples for row in rows):
        click.echo("Some rows had no fair run: the machine is busy, do not trust their figures.", err=True)


def _cells(row: Figure, peer: Figure | None) -> list[str]:
    ratio = f"{row.iops / peer.iops:.2f}×" if peer and peer.side != row.side else ""
    return [
        row.case.store,
        str(row.case.depth),
        row.side,
        f"{row.iops / 1e3:.0f}",
        f"{row.p50_ns / 1e3:.2f}",
        f"{row.p99_ns / 1e3:.2f}",
        ratio,
        f"{row.idle_share * 100:.2f}",
        f"{row.samples - row.unfair}/{row.samples}",
    ]
