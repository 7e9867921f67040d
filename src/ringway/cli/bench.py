"""``ringway bench``: this host's figures, ours beside a peer's."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from ringway.bench import chart, goals, page, text
from ringway.bench.client import BURST
from ringway.bench.machine import Cpus, check_cpus, this_machine, two_cpus
from ringway.bench.plan import DEVICES, STORES, SUITES, Case, DeviceKind, select, suite
from ringway.bench.run import Plan, measure
from ringway.bench.samples import Failure, Run, Sample, load_run, save_run
from ringway.bench.sides import QSD, OurTarget, Side, check_folder, qemu_storage_daemon, running_peer
from ringway.cli.outputs import check_writable
from ringway.cli.signals import as_ctrl_c
from ringway.errors import DegradedError, UsageError

_POLLS: Final = ("interrupt", "adaptive", "poll")
_WIDTH: Final = 132
#: Options with a value that say where the output goes.
_OUTPUTS: Final = {"--save", "--page", "--svg", "-o", "--output"}
_FILE: Final = click.Path(dir_okay=False, path_type=Path)


class CpuPair(click.ParamType[Cpus]):
    """Two CPUs, as in ``0,1``."""

    name = "target,client"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Cpus:
        """Parse."""
        if isinstance(value, Cpus):
            return value
        numbers = str(value).split(",")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or len(set(numbers)) < 2:
            self.fail(f"{value} is not two CPUs, as in 0,1", param, ctx)
        return Cpus(int(numbers[0]), int(numbers[1]))


class Tally(msgspec.Struct):
    """Progress on standard error."""

    wanted: int
    done: int = 0

    def show(self, found: Sample | Failure) -> None:
        """Tell of one more sample; on a terminal alone, but of a failure always."""
        self.done += 1
        if isinstance(found, Failure):
            click.echo(f"{found.side} {found.case}: {found.reason}", err=True)
        elif sys.stderr.isatty():
            note = "" if found.fair else "  (dropped: somebody did not get its CPU)"
            count = f"{self.done}/{self.wanted}"
            rate = f"{found.iops / 1e3:10.1f} k IOPS  {found.p50_ns / 1e3:9.2f} µs"
            click.echo(f"{count:>9} {found.side:22} {found.case.name:30} {rate}{note}", err=True)


@click.command(
    epilog="""\b
Examples:
  ringway bench
  ringway bench --suite goals --seconds 2 --repeats 5 --save run.json
  ringway bench --case 'tmpfs-4k-*' --case ram-1m-read-1x8 --device scsi
  ringway bench --from run.json --page performance.md
  ringway bench --peer-socket /var/tmp/vhost.0 --peer-device blk \\
      --peer-store ram --peer none --only-peer

\b
A case is STORE-SIZE-PATTERN-LOAD, as tmpfs-4k-read-1x32: one queue, depth 32.
--list shows all. Ctrl-C ends a run early; what was measured is shown.
"""
)
@click.option("--suite", "suite_name", type=click.Choice(SUITES), default="quick", show_default=True)
@click.option(
    "--case", "patterns", multiple=True, metavar="PATTERN", help="Cases of the full suite, by name."
)
@click.option("--list", "list_only", is_flag=True, help="Only show the names of the cases.")
@click.option("--device", "devices", multiple=True, type=click.Choice(DEVICES), help="[default: both]")
@click.option("--poll", type=click.Choice(_POLLS), default="adaptive", show_default=True)
@click.option(
    "--peer",
    type=click.Choice([QSD, "none"]),
    default=QSD,
    show_default=True,
    help="A peer to start as well.",
)
@click.option("--peer-socket", type=_FILE, metavar="PATH", help="A peer that runs. Its disk is overwritten.")
@click.option("--peer-device", type=click.Choice(DEVICES), default="blk", show_default=True)
@click.option(
    "--peer-store", type=click.Choice(STORES), default="ram", show_default=True, help="What its disk is."
)
@click.option("--only-peer", is_flag=True, help="Leave our own targets out.")
@click.option(
    "--seconds", type=click.FloatRange(0.02, 3600), default=0.5, show_default=True, help="A sample."
)
@click.option("--repeats", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--cpus", type=CpuPair(), metavar="T,C", help="Of target and client. [default: the first two]")
@click.option("--pin/--no-pin", default=True, help="Keep target and client on their CPUs. [default: pin]")
@click.option("--burst", type=click.IntRange(1, 64), default=BURST, show_default=True, help="See below.")
@click.option("--huge-pages", is_flag=True, help="Guest memory in pages of 2 MiB, which SPDK asks for.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("/var/tmp"),
    show_default=True,
    help="On the disk to measure.",
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--save", type=_FILE, metavar="FILE", help="Save the run as JSON.")
@click.option("--from", "saved", multiple=True, type=_FILE, metavar="FILE", help="A saved run; repeatable.")
@click.option(
    "--page", "page_file", type=_FILE, metavar="FILE", help="Write a page, and FILE's SVG beside it."
)
@click.option("--svg", type=_FILE, metavar="FILE", help="Write the chart, here.")
def bench(**options: Any) -> None:
    """Measure vhost-user targets, ours and a peer's, in one run.

    A front end of our own drives each side through its socket. It polls on one CPU, the target has the other.
    Sides take turns (A B A B). A sample is dropped, and repeated twice at most, if somebody did not get its
    CPU; figures are the medians of the others, apart for CPUs that are near each other and far. The client
    takes up to --burst completions, half of its depth at most, and publishes their successors at once.
    """
    cases = (
        select(options["patterns"], suite("full")) if options["patterns"] else suite(options["suite_name"])
    )
    if options["list_only"]:
        click.echo("\n".join(case.name for case in cases))
        return
    for file in (options["save"], options["page_file"], options["svg"]):
        if file is not None:
            check_writable(file)
    if options["page_file"] or options["svg"]:
        chart.check()
    if options["saved"]:
        run, interrupted = load_run(options["saved"]), False
    else:
        run, interrupted = _measured(cases, options)
    _put_out(run, options)
    if interrupted:
        sys.exit(130)
    if run.failures and not options["saved"]:
        sides = ", ".join(dict.fromkeys(failure.side for failure in run.failures))
        raise DegradedError(f"not everything could be measured: {sides}", hint="the reasons are above")


def _measured(cases: Sequence[Case], options: dict[str, Any]) -> tuple[Run, bool]:
    """Measure. :returns: the run, and whether it was interrupted."""
    sides = _sides(options, wants_floor=goals.FLOOR_CASE in cases)
    check_folder(options["folder"])
    cpus = (options["cpus"] or two_cpus()) if options["pin"] else None
    if cpus:
        check_cpus(cpus)
    plan = Plan(
        cases=cases,
        sides=sides,
        repeats=options["repeats"],
        seconds=options["seconds"],
        cpus=cpus,
        folder=options["folder"],
        huge_pages=options["huge_pages"],
        burst=options["burst"],
    )
    run = Run(this_machine(), repeating(sys.argv[1:]), datetime.date.today().isoformat(), [], [], [])
    wanted = plan.repeats * sum(side.serves(case) for side in sides for case in cases)
    with as_ctrl_c(), _ctrl_c() as interrupted:
        measure(plan, run, Tally(wanted).show)
    return run, bool(interrupted)


@contextmanager
def _ctrl_c() -> Iterator[list[str]]:
    """Let Ctrl-C end the work inside, and no more. :returns: a list that is not empty then."""
    interrupted: list[str] = []
    try:
        yield interrupted
    except KeyboardInterrupt:
        interrupted.append("interrupted")
        click.echo("interrupted: this is what was measured", err=True)


def _sides(options: dict[str, Any], *, wants_floor: bool) -> list[Side]:
    devices: Sequence[DeviceKind] = options["devices"] or DEVICES
    ours = [] if options["only_peer"] else devices
    sides: list[Side] = [OurTarget(device, options["poll"]) for device in ours]
    if options["peer"] == QSD:
        sides.append(qemu_storage_daemon())
    if options["peer_socket"]:
        sides.append(running_peer(options["peer_socket"], options["peer_device"], options["peer_store"]))
    if not sides:
        raise UsageError("there is nothing to measure", hint="name a peer: --peer or --peer-socket")
    if wants_floor and options["poll"] == "adaptive" and options["pin"] and "blk" in ours:
        sides.append(OurTarget("blk", "poll", only=goals.FLOOR_CASE.name))
    return sides


def repeating(words: Sequence[str]) -> str:
    """What repeats a run, by the words of its command line: without where its output went."""
    kept, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] not in _OUTPUTS:
            kept.append(word)
        skip = word in _OUTPUTS
    return shlex.join(["ringway", *kept])


def _put_out(run: Run, options: dict[str, Any]) -> None:
    if options["save"]:
        save_run(run, options["save"])
    if options["page_file"]:
        page.write(run, options["page_file"])
    if options["svg"]:
        chart.write(run, options["svg"])
    if options["output"] == "json":
        click.echo(msgspec.json.encode(run).decode())
    elif run.samples:
        _print_tables(run)


def _print_tables(run: Run) -> None:
    from rich.console import Console

    # in a pipe nobody sees where the line ends
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(_table("", text.HEAD, text.WORDS, text.rows(run)))
    verdicts = [
        (found.goal, found.subject, found.measured, found.wanted, text.MET[found.met])
        for found in goals.verdicts(run)
    ]
    if verdicts:
        console.print(_table("Goals", text.GOAL_HEAD, 2, text.without_repeats(verdicts)))
    click.echo(text.summary(run))
    if text.weak(run):
        click.echo("Some rows had no fair sample: the machine is busy, do not trust their figures.", err=True)


def _table(title: str, head: Sequence[str], words: int, lines: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(title=title or None)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < words else "right", no_wrap=number > 0 or not title)
    for line in lines:
        table.add_row(*line)
    return table
