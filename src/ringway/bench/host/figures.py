"""What the host's benchmark measures, and what it says of the goals."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

OURS: Final = "ringway"
RTSLIB: Final = "rtslib"
TARGETCLI: Final = "targetcli"


class Figure(msgspec.Struct, frozen=True):
    """One job of one side.

    :ivar value: seconds of wall time, or what ``unit`` says.
    :ivar cpu_s: user and system time of the process and its children; ``None`` where it does not say much.
    """

    side: str
    job: str
    endpoints: int
    value: float
    unit: str = "s"
    cpu_s: float | None = None


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
    """Measure what is done inside, and print it as a line for :func:`parse`."""
    begin, before = time.perf_counter(), os.times()
    yield
    seconds, after = time.perf_counter() - begin, os.times()
    used = sum(after[:4]) - sum(before[:4])
    say(Figure(side, job, endpoints, seconds, cpu_s=used))


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
        return Verdict(goal.title, 0, _cell(ours), _cell(peer), "", wanted, None)
    value = peer.value / ours.value if peer else ours.value
    met = value <= goal.wanted if goal.most else value >= goal.wanted
    return Verdict(
        goal.title, ours.endpoints, _cell(ours), _cell(peer), f"{_number(value)}{unit}", wanted, met
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "not measured"
    return seconds(figure.value) if figure.unit == "s" else f"{figure.value:.3g} {figure.unit}"


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
