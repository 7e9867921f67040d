"""``python -m ringway.bench.host``: endpoints by the thousand, ours beside rtslib's and targetcli's."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from ringway.bench.host import figures, peers
from ringway.bench.host.figures import OURS, RTSLIB, TARGETCLI, Figure, Report
from ringway.bench.host.page import FIGURE_HEAD, cells, page
from ringway.errors import DegradedError, RingwayError
from ringway.testing.kernel import find_kernel
from ringway.testing.kernel_target import KernelTarget

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
_WIDTH: Final = 132
#: A side has so many long jobs at most.
_JOBS: Final = 8
#: To clear what a side left.
_CLEAR_S: Final = 3600
_MEMORY_MIB: Final = 2048
_USER_ENDPOINTS: Final = 200
#: Neither peer starts without its folder.
_PREPARE: Final = "mkdir -p /etc/target/pr /etc/rtslib-fb-target && modprobe vhost_scsi"
_CLEAR: Final = "from ringway.testing import configfs; configfs.clear()"

USER: Final = "user"
SIDES: Final = (OURS, RTSLIB, TARGETCLI, USER)
MODULES: Final = {
    OURS: "ringway.bench.host.kernel_side",
    RTSLIB: "ringway.bench.host.rtslib_side",
    TARGETCLI: "ringway.bench.host.targetcli_side",
}


@click.command()
@click.option("--endpoints", default=100, show_default=True, help="In the kernel; the goals are of 1000.")
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES), help="[default: all]")
@click.option(
    "--limit", default=900, show_default=True, help="Seconds that one job of a peer may take; then it is cut."
)
@click.option("--save", type=_FILE, help="Where the figures go, as JSON.")
@click.option(
    "--from", "kept", type=click.Path(exists=True, path_type=Path), help="Show a run that was saved."
)
@click.option(
    "--page", "page_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of it."
)
@click.option("--note", default="", help="What one has to know of this run.")
def main(
    endpoints: int,
    sides: Sequence[str],
    limit: int,
    save: Path | None,
    kept: Path | None,
    page_file: Path | None,
    note: str,
) -> None:
    """Measure what a host does with many endpoints, ours beside its peers."""
    if kept:
        report = msgspec.json.decode(kept.read_bytes(), type=Report)
    else:
        report = _measure(endpoints, sides or SIDES, limit, save)
    report = replace(report, note=note or report.note)
    if save:
        _keep(report, save)
    if page_file:
        page_file.write_text(page(report))
    _show(report)


def _measure(endpoints: int, sides: Sequence[str], limit_s: int, save: Path | None) -> Report:
    """:param save: where the figures of the sides go that are done, whatever becomes of the others."""
    found: list[Figure] = []
    environment, versions = _peers(sides)

    def report() -> Report:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return Report(today, find_kernel().release, versions, tuple(found))

    in_guest = [side for side in sides if side != USER]
    if in_guest:
        with KernelTarget(memory_mib=_MEMORY_MIB, environment=environment) as guest:
            for side in in_guest:
                _run_side(guest, side, endpoints, limit_s, found)
                if save:
                    _keep(report(), save)
    if USER in sides:
        found += _run_user()
    return report()


def _keep(report: Report, file: Path) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def _peers(sides: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Fetch what is compared with. :returns: the guest's environment, and versions."""
    path = [str(Path(__file__).parents[3])]
    versions = {"python": platform.python_version()}
    if {RTSLIB, TARGETCLI} & set(sides):  # either begins with endpoints of rtslib's
        path.append(str(peers.rtslib()))
        versions[RTSLIB] = peers.RTSLIB_VERSION
    if TARGETCLI in sides:
        versions[TARGETCLI] = peers.targetcli_version(peers.targetcli())
    return {"PYTHONPATH": os.pathsep.join(path), "RINGWAY_PEERS": str(peers.root())}, versions


def _run_side(guest: KernelTarget, side: str, endpoints: int, limit_s: int, found: list[Figure]) -> None:
    """Let one side do its jobs in an empty kernel, and clear up after it."""
    click.echo(f"{side}: {endpoints} endpoints …", err=True)
    guest.run(_PREPARE)
    limit = "0" if side == OURS else str(limit_s)
    command = ("env", f"{figures.LIMIT_S}={limit}", sys.executable, "-m", MODULES[side], str(endpoints))
    found += figures.parse(guest.command(*command, timeout_s=_JOBS * limit_s))
    guest.python(_CLEAR, timeout_s=_CLEAR_S)


def _run_user() -> list[Figure]:
    """Measure the user engine on this host."""
    click.echo(f"user engine: {_USER_ENDPOINTS} endpoints …", err=True)
    command = [sys.executable, "-m", "ringway.bench.host.user_side", str(_USER_ENDPOINTS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise DegradedError("the user engine could not be measured", hint="the lines above say why")
    return figures.parse(done.stdout)


def _show(report: Report) -> None:
    console = Console(width=_WIDTH)
    console.print(_table(FIGURE_HEAD, map(cells, report.figures)))
    console.print(_table(figures.HEAD, figures.rows(report.figures)))


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    table = Table(*head)
    for line in lines:
        table.add_row(*line)
    return table


if __name__ == "__main__":
    try:
        main()
    except RingwayError as error:
        click.echo(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), err=True)
        sys.exit(error.exit_status)
