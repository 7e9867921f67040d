"""A run of the host's benchmark as a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ringway.bench.host import figures
from ringway.bench.host.figures import Figure, Report

_TEXT: Final = """\
# Performance of a host

Made by `make bench-host` on {date}; `python -m ringway.bench.host --from RUN.json --page PAGE.md` writes
this page.

Many endpoints on one host: what ours takes beside rtslib-fb {rtslib} and Debian's targetcli-fb {targetcli},
one after the other in the same guest (Debian's kernel {kernel}, two CPUs, QEMU's software emulation), each
in an empty kernel. Software emulation makes Python many times as slow and waiting for the kernel no slower,
so read the ratios, and not the times. The user engine, which needs no kernel target, runs
on the machine itself.

## Goals

The goals are for a thousand endpoints, where what grows with their number weighs most; this run had
{endpoints}.{note}

{goals}

* Engine and rtslib are compared as libraries: a program with its imports behind it, rtslib in a loop as its
  documentation shows, ours by eight threads, for which rtslib makes no promise.
* The daemon is asked by eight clients; each creation is on its disk before it is answered. targetcli reads
  its commands in one batch.
* To restore is what a boot does: the state is read, the kernel is empty. rtslib looks at all disks for each
  LUN that it restores.
* To save is what one change of one endpoint costs: a transaction of ours, all of the configuration with
  rtslib.
* A job that was not waited for to its end has a ">" before its time: it takes more than this, and the ratio
  is more than what is said.
* The command is measured with the start of its interpreter, and so is targetcli.

## All figures

CPU is that of the process that measures and its children, where that says anything.

{table}
"""


def page(report: Report) -> str:
    """Return the page, in Markdown."""
    return _TEXT.format(
        date=report.date,
        kernel=report.kernel,
        rtslib=report.versions.get(figures.RTSLIB, "(not measured)"),
        targetcli=report.versions.get(figures.TARGETCLI, "(not measured)"),
        endpoints=max(figure.endpoints for figure in report.figures if not figure.job.startswith("user:")),
        note=f" {report.note}" if report.note else "",
        goals=_table(figures.HEAD, figures.rows(report.figures)),
        table=_table(FIGURE_HEAD, [cells(figure) for figure in report.figures]),
    )


FIGURE_HEAD: Final = ("side", "job", "endpoints", "value", "CPU")


def cells(figure: Figure) -> tuple[str, ...]:
    """A figure in columns, as :data:`FIGURE_HEAD` has them."""
    cpu = figures.seconds(figure.cpu_s) if figure.cpu_s is not None else ""
    return figure.side, figure.job, str(figure.endpoints), figures.cell(figure), cpu


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
