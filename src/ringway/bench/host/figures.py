"""What the host's benchmark measures, and what it says of the goals."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

OURS: Final = "ringway"
RTSLIB: Final = "rtslib"
TARGETCLI: Final = "targetcli"
#: In the environment of a side: how long one of its jobs may take.
LIMIT_S: Final = "RINGWAY_BENCH_LIMIT_S"


class Figure(msgspec.Struct, frozen=True):
    """One job of one side.

    :ivar value: seconds of wall time, or what ``unit`` says.
    :ivar cpu_s: user and system time of the process and its children; ``None`` where it does not say much.
    :ivar cut: the job was not waited for any longer: it takes more than this.
    """

    side: str
    job: str
    endpoints: int
    value: float
    unit: str = "s"
    cpu_s: float | None = None
    cut: bool = False


class JobCutError(Exception):
    """A job took longer than it may; its figure was said."""


class Report(msgspec.Struct, frozen=True):
    """One run, as it is kept.

    :ivar note: what one has to know of it, such as what else the machine did.
    """

    date: str
    kernel: str
    versions: dict[str, str]
    figures: tuple[Figure, ...]
    note: str = ""


class Goal(msgspec.Struct, frozen=True):
    """A figure of ours against one of a peer's, or against a number.

    :ivar peer: side and job; the goal is a ratio then. :ivar wanted: at least so often as fast; without a
        peer at least so much, or at most where ``most`` is set.
    """

    title: str
    job: str
    wanted: float
    peer: tuple[str, str] | None = None
    most: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What was measured of a goal; ``met`` is ``None`` when something of it was not measured."""

    title: str
    endpoints: int
    ours: str
    peer: str
    measured: str
    wanted: str
    met: bool | None


GOALS: Final = (
    Goal("create: the engine against rtslib, each as a library", "create, engine", 3, (RTSLIB, "create")),
    Goal("create: through the daemon against targetcli's batch", "create", 5, (TARGETCLI, "create")),
    Goal("restore at start", "restore", 10, (RTSLIB, "restore")),
    Goal("restore at start: an endpoint of all : one of a quarter", "restore, growth", 1.5, most=True),
    Goal("save one change", "save", 200, (RTSLIB, "save")),
    Goal("list: through the API against targetcli ls", "list, API", 100, (TARGETCLI, "ls")),
    Goal("list: the command against targetcli ls", "list, command", 20, (TARGETCLI, "ls")),
    Goal("delete: the engine against rtslib, each as a library", "delete, engine", 8, (RTSLIB, "delete")),
    Goal("daemon with kernel endpoints: memory", "daemon: memory", 100, most=True),
    Goal("daemon with kernel endpoints: CPU when idle", "daemon: idle CPU", 1, most=True),
    Goal("user engine: creations until all are there", "user: create", 50),
    Goal("user engine: memory of an idle target", "user: memory of a target", 8, most=True),
)


@contextlib.contextmanager
def measured(side: str, job: str, endpoints: int) -> Iterator[None]:
    """Measure what is done inside, and print it as a line for :func:`parse`.

    :raises JobCutError: it took longer than the environment lets it.
    """
    begin, before, cut = time.perf_counter(), os.times(), True
    try:
        with _limited(int(os.environ.get(LIMIT_S, "0"))):
            yield
        cut = False
    finally:
        seconds, after = time.perf_counter() - begin, os.times()
        used = sum(after[:4]) - sum(before[:4])
        say(Figure(side, job, endpoints, seconds, cpu_s=used, cut=cut))


@contextlib.contextmanager
def _limited(limit_s: int) -> Iterator[None]:
    """Let the block take so long at most; 0: as long as it wants."""

    def cut(*_: object) -> None:
        raise JobCutError(f"not waited for any longer than {limit_s} s")

    before = signal.signal(signal.SIGALRM, cut)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def say(figure: Figure) -> None:
    """Print a figure as a line for :func:`parse`."""
    print(f"figure {msgspec.json.encode(figure).decode()}", flush=True)


def parse(output: str) -> list[Figure]:
    """The figures among the lines that a program printed."""
    lines = (line.removeprefix("figure ") for line in output.splitlines() if line.startswith("figure "))
    return [msgspec.json.decode(line, type=Figure) for line in lines]


def verdicts(figures: Iterable[Figure]) -> list[Verdict]:
    """What a run says of each goal, in their order."""
    known = {(figure.side, figure.job): figure for figure in figures}
    return [_verdict(goal, known) for goal in GOALS]


def _verdict(goal: Goal, known: dict[tuple[str, str], Figure]) -> Verdict:
    ours = known.get((OURS, goal.job))
    peer = known.get(goal.peer) if goal.peer else None
    unit = "×" if goal.peer else f" {ours.unit}" if ours else ""
    wanted = f"{'≤' if goal.most else '≥'} {goal.wanted:g}{unit}"
    if ours is None or (goal.peer and peer is None):
        return Verdict(goal.title, 0, cell(ours), cell(peer), "", wanted, None)
    value = peer.value / ours.value if peer else ours.value
    met = value <= goal.wanted if goal.most else value >= goal.wanted
    least = "> " if peer is not None and peer.cut else ""
    return Verdict(
        goal.title, ours.endpoints, cell(ours), cell(peer), f"{least}{_number(value)}{unit}", wanted, met
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def cell(figure: Figure | None) -> str:
    """Write a figure for a person."""
    if figure is None:
        return "not measured"
    value = seconds(figure.value) if figure.unit == "s" else f"{figure.value:.3g} {figure.unit}"
    return f"> {value}" if figure.cut else value


def seconds(value: float) -> str:
    """Write a time for a person."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


HEAD: Final = ("goal", "endpoints", "ours", "theirs", "ratio", "wanted", "met")


def rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """The goals in columns, as :data:`HEAD` has them."""
    met = {True: "yes", False: "NO", None: "?"}
    return [
        (
            each.title,
            str(each.endpoints or ""),
            each.ours,
            each.peer,
            each.measured,
            each.wanted,
            met[each.met],
        )
        for each in verdicts(figures)
    ]
