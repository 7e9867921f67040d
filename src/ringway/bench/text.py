"""Figures in words and columns: what a terminal and a page show alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ringway.bench.plan import STORES, Case
from ringway.bench.samples import Figure, Run, figures
from ringway.bench.sides import QSD

HEAD: Final = (
    "case",
    "CPUs",
    "side",
    "kIOPS",
    "GB/s",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "CPU µs an I/O",
    "ratio",
    "fair",
)
#: Columns of text; the others are numbers.
WORDS: Final = 3


def rows(run: Run, peer: str | None = None) -> list[tuple[str, ...]]:
    """The figures of a run by case, each with the ratio of its IOPS to the peer's.

    :param peer: name of the side that others are compared with; by default the first that is none of ours.
    """
    every = sorted(figures(run.samples), key=lambda row: (STORES.index(row.case.store), row.case.name))
    against = peer or peer_of(run)
    peers = {(row.case, row.placement): row for row in every if row.side == against}
    return [_cells(row, peers.get((row.case, row.placement))) for row in every]


def peer_of(run: Run) -> str | None:
    """The side that ours are compared with: qemu-storage-daemon, or else the first that is none of ours."""
    others = [s.side for s in run.samples if s.device is not None and not s.side.startswith("ringway ")]
    return QSD if QSD in others else next(iter(others), None)


def _cells(row: Figure, peer: Figure | None) -> tuple[str, ...]:
    ratio = (
        f"{row.iops / peer.iops:.2f}×" if peer and peer.side != row.side and not row.case.rate_iops else ""
    )
    return (
        row.case.name,
        row.placement,
        row.side,
        f"{row.iops / 1e3:.{_digits(row.iops / 1e3)}f}",
        f"{row.bytes_per_s / 1e9:.2f}",
        *(f"{value / 1e3:.{_digits(value / 1e3)}f}" for value in (row.p50_ns, row.p99_ns, row.p999_ns)),
        f"{row.cpu_ns / 1e3:.3f}" if row.cpu_ns is not None else "",
        ratio,
        f"{row.fair}/{row.samples}",
    )


def _digits(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0


def summary(run: Run) -> str:
    """How many samples there are, and what was dropped."""
    text = f"{len(run.samples)} samples"
    if run.unfair:
        text += f", {run.unfair} of them dropped: client or target did not have its CPU, or the CPUs moved"
    return text


def weak(run: Run) -> Sequence[Case]:
    """Cases of which some side has no fair sample."""
    return list(dict.fromkeys(row.case for row in figures(run.samples) if not row.fair))


GOAL_HEAD: Final = ("goal", "of", "measured", "wanted", "met")
MET: Final = {True: "yes", False: "NO", None: ""}


def without_repeats(lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The same lines; a first column that says what the line before it said is empty."""
    before = ["", *(line[0] for line in lines)]
    return [
        ("" if line[0] == last else line[0], *line[1:]) for line, last in zip(lines, before, strict=False)
    ]
