"""The project's goals, and what a run says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Final

import msgspec

from ringway.bench import fio
from ringway.bench.plan import Case, first_after_silence, many_luns, partial_load, two_workers
from ringway.bench.samples import CopyRates, Figure, Run, figures
from ringway.bench.sides import QSD

_OURS: Final = ("ringway blk", "ringway scsi")
FLOOR_SIDE: Final = "ringway blk (poll)"
#: The case under which :data:`FLOOR_SIDE` is measured: what polling a store in memory costs at least.
FLOOR_CASE: Final = Case("ram", 1)

#: What other polled targets reach on a store in memory.
_FLOOR_NS: Final = {"near": 900.0, "far": 1800.0, "unpinned": 1800.0}
_NULL_RATIO: Final = {"near": 4.5, "far": 2.4, "unpinned": 2.4}
_COPY_MARK: Final = 2.6e6
_MIB: Final = 1 << 20


class Verdict(msgspec.Struct, frozen=True):
    """What was measured of a goal.

    :ivar subject: the side and the placement that it is about.
    :ivar met: ``None``: there is no goal here, the figure explains another.
    """

    goal: str
    subject: str
    measured: str
    wanted: str
    met: bool | None


class Table:
    """Figures of a run by case, side and placement; those without a fair sample decide nothing."""

    def __init__(self, run: Run) -> None:
        fair = (row for row in figures(run.samples) if row.fair)
        self._rows = {(row.case, row.side, row.placement): row for row in fair}
        self.copies = run.copies

    def pairs(self, ours: Case, side: str, other: Case, peer: str) -> Iterator[tuple[Figure, Figure]]:
        """Our figure and the other one, for each placement that both were measured in."""
        for (case, name, placement), row in self._rows.items():
            against = self._rows.get((other, peer, placement))
            if case == ours and name == side and against is not None:
                yield row, against

    def all(self, case: Case, sides: Iterable[str] = _OURS) -> list[Figure]:
        """All figures of these sides under a case."""
        return [row for key, row in self._rows.items() if key[0] == case and key[1] in set(sides)]

    def ours(self) -> list[Figure]:
        """All figures of our sides."""
        return [row for key, row in self._rows.items() if key[1] in _OURS]

    def copy_rate(self, block: Callable[[CopyRates], float]) -> float:
        """This machine's, the median of the repeats."""
        return median(block(rates) for rates in self.copies)


Judge = Callable[[Table], Iterator[tuple[str, str, str, bool | None]]]


def _subject(row: Figure) -> str:
    return f"{row.side}, {row.placement}"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _at_least(row: Figure, ratio: float, wanted: float) -> tuple[str, str, str, bool]:
    return _subject(row), _times(ratio), f"≥ {wanted:g}×", ratio >= wanted


def _at_most(row: Figure, ratio: float, wanted: float, note: str = "") -> tuple[str, str, str, bool]:
    return _subject(row) + note, _times(ratio), f"≤ {wanted:g}×", ratio <= wanted


def _null(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    case = Case("null", 32)
    for side in _OURS:
        for row, peer in table.pairs(case, side, case, QSD):
            yield _at_least(row, row.iops / peer.iops, _NULL_RATIO[row.placement])


def _tmpfs(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    case = Case("tmpfs", 32)
    for side in _OURS:
        for row, peer in table.pairs(case, side, case, QSD):
            yield _at_least(row, row.iops / peer.iops, 5)


def _latency(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    case = Case("tmpfs", 1)
    for side in _OURS:
        for row, peer in table.pairs(case, side, case, QSD):
            yield _at_most(row, row.p50_ns / peer.p50_ns, 0.25)
        for row in table.all(case, [side]):
            limit = 1.2 * _FLOOR_NS[row.placement]
            yield _subject(row), _us(row.p50_ns), f"≤ {_us(limit)}", row.p50_ns <= limit
        for row, floor in table.pairs(case, side, FLOOR_CASE, FLOOR_SIDE):
            yield f"{_subject(row)}: of our own polled RAM", _times(row.p50_ns / floor.p50_ns), "", None


def _ram(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    wanted = 1.3e6 * table.copy_rate(lambda rates: rates.copies_4k) / _COPY_MARK
    for row in table.all(Case("ram", 32), ["ringway scsi"]):
        yield _subject(row), _millions(row.iops), f"≥ {_millions(wanted)}", row.iops >= wanted


def _large(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    copies = table.copy_rate(lambda rates: rates.copies_1m)
    for row in table.all(Case("ram", 8, block_bytes=_MIB)):
        yield _at_least(row, row.iops / copies, 0.9)


def _disk(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    for depth in (1, 32):
        case = Case("disk", depth)
        for side in _OURS:
            for row, reference in table.pairs(case, side, case, fio.NAME):
                yield _noted(_at_least(row, row.iops / reference.iops, 0.95), f"depth {depth}, IOPS")
                if row.cpu_ns is not None and reference.cpu_ns:
                    ratio = row.cpu_ns / reference.cpu_ns
                    yield _noted(_at_most(row, ratio, 1.3), f"depth {depth}, CPU an I/O")


def _noted(verdict: tuple[str, str, str, bool], note: str) -> tuple[str, str, str, bool]:
    subject, measured, wanted, met = verdict
    return f"{subject}: {note}", measured, wanted, met


def _partial(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    case = partial_load("tmpfs")
    for side in _OURS:
        for row, peer in table.pairs(case, side, case, QSD):
            if row.cpu_ns is not None and peer.cpu_ns:
                yield _at_most(row, row.cpu_ns / peer.cpu_ns, 1, ": CPU an I/O")
            yield _at_most(row, row.p50_ns / peer.p50_ns, 0.5, ": p50")


def _first(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    case = first_after_silence("tmpfs")
    for side in _OURS:
        for row, peer in table.pairs(case, side, case, QSD):
            yield _at_most(row, row.p50_ns / peer.p50_ns, 1)


def _luns(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    for store in ("null", "ram"):
        one, many = many_luns(store)
        for row, single in table.pairs(many, "ringway scsi", one, "ringway scsi"):
            yield _noted(_at_least(row, row.iops / single.iops, 0.97), f"{store}, IOPS")
            if row.cpu_ns and single.cpu_ns:
                # the fewer CPU the better: one over many
                yield _noted(_at_least(row, single.cpu_ns / row.cpu_ns, 0.97), f"{store}, I/Os a CPU second")


def _workers(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    one, two = two_workers("ram")
    for side in _OURS:
        for row, single in table.pairs(two, side, one, side):
            if row.cpu_ns is not None and single.cpu_ns:
                yield _at_most(row, row.cpu_ns / single.cpu_ns, 1.05)


def _without_store(row: Figure) -> float | None:
    """Private memory of a target whose store is not in it."""
    return row.private_bytes if row.case.store != "ram" else None


def _idle(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    for side, shares in _by_side(table, lambda row: row.idle_share):
        worst = max(shares)
        yield side, f"{worst * 100:.3f} %", "< 0.1 %", worst < 0.001


def _private(table: Table) -> Iterator[tuple[str, str, str, bool | None]]:
    for side, sizes in _by_side(table, _without_store):
        yield side, f"{max(sizes) / _MIB:.1f} MiB", "≤ 25 MiB", max(sizes) <= 25 * _MIB


def _by_side(table: Table, value: Callable[[Figure], float | None]) -> Iterator[tuple[str, Sequence[float]]]:
    for side in _OURS:
        values = [value(row) for row in table.ours() if row.side == side]
        known = [found for found in values if found is not None]
        if known:
            yield side, known


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e3:.2f} µs"


def _millions(iops: float) -> str:
    return f"{iops / 1e6:.2f} M IOPS"


GOALS: Final[dict[str, Judge]] = {
    "4 KiB depth 32, null, against qemu-storage-daemon's null-co: ≥ 2.4× far, ≥ 4.5× near": _null,
    "4 KiB depth 32, file in tmpfs, against qemu-storage-daemon with io_uring: ≥ 5×": _tmpfs,
    "4 KiB depth 1, p50, file in tmpfs, adaptive: ≤ 0.25× of qemu-storage-daemon; ≤ 1.2× of a polled RAM "
    "target's floor (1.8 µs far, 0.9 µs near)": _latency,
    "4 KiB depth 32, ram, scsi: ≥ 1.3 M IOPS × (this machine's plain copy rate of 4 KiB ÷ 2.6 M/s)": _ram,
    "1 MiB depth 8, ram: ≥ 0.9× of the plain copy rate": _large,
    "file on disk, O_DIRECT, depth 1 and 32: IOPS ≥ 0.95× of fio io_uring on the host, and CPU an I/O ≤ 1.3× "
    "of fio's": _disk,
    "CPU an I/O at 10 k IOPS offered, 4 KiB, adaptive: ≤ qemu-storage-daemon's, at half its p50": _partial,
    "first I/O after a second of silence: ≤ qemu-storage-daemon's": _first,
    "32 LUNs against 1 LUN: ≥ 0.97×, both IOPS and CPU an I/O": _luns,
    "two workers against one: CPU an I/O ≤ 1.05×": _workers,
    "idle CPU, connected: < 0.1 % of a core": _idle,
    "private memory of a target (guest and mapped store excluded): ≤ 25 MiB": _private,
}


def verdicts(run: Run) -> list[Verdict]:
    """What a run says of each goal, by placement of the CPUs; nothing of what it did not measure."""
    table = Table(run)
    judged = ((goal, found) for goal, judge in GOALS.items() if run.samples for found in judge(table))
    return [Verdict(goal, *found) for goal, found in judged]
