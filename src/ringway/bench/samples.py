"""What was measured, and what it amounts to: samples, machines, figures, and a run as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, Literal

import msgspec

from ringway import _core
from ringway.bench.plan import Case, DeviceKind
from ringway.errors import UsageError

Placement = Literal["near", "far", "unpinned"]

#: Whoever got less of its CPU than this was measured together with its neighbours.
FAIR_SHARE: Final = 0.9
#: CPU that the host took away, above which a sample tells of the host.
_FAIR_STEAL: Final = 0.05
#: A cache line goes to and fro in 50 to 115 ns between near CPUs, in 350 to 530 between far ones.
_NEAR_NS: Final = 200.0

_BOUNDS: Final = _core.latency_bucket_bounds()


class Sample(msgspec.Struct, frozen=True):
    """One run of one side under one case.

    Shares are CPU seconds a second: ``client_share`` of the client, ``target_share`` of all threads of the
    target, ``others_share`` what others used of its CPU, ``stolen_share`` what the host took from both CPUs.

    :ivar device: of the target; ``None``: the reference runs on the host, without a device.
    :ivar cpu_ns: CPU time of the target for each I/O; ``None`` where its process cannot be seen.
    :ivar round_trips_ns: of a cache line between the two CPUs, just before and after; empty: not pinned.
    :ivar unsent: requests of an offered load that found no free slot.
    :ivar idle_share: of the target, connected and without a request.
    :ivar private_bytes: of the target and its steward, in no shared mapping.
    :ivar latency: bucket -> requests.
    """

    side: str
    device: DeviceKind | None
    case: Case
    iops: float
    p50_ns: float
    p99_ns: float
    p999_ns: float
    cpu_ns: float | None
    client_share: float
    target_share: float
    others_share: float
    stolen_share: float
    round_trips_ns: tuple[float, ...]
    errors: int
    unsent: int
    idle_share: float | None
    private_bytes: int | None
    latency: Mapping[int, int]

    @property
    def placement(self) -> Placement:
        """How far the two CPUs were apart when it began."""
        return placement_of(self.round_trips_ns[0]) if self.round_trips_ns else "unpinned"

    @property
    def moved(self) -> bool:
        """Whether the host moved the CPUs apart or together meanwhile."""
        return len({placement_of(found) for found in self.round_trips_ns}) > 1

    @property
    def fair(self) -> bool:
        """Whether client and target had their CPUs to themselves, and those stayed where they were."""
        shares = self.client_share >= FAIR_SHARE and self.others_share <= 1 - FAIR_SHARE
        return shares and self.stolen_share <= _FAIR_STEAL and not self.moved


def placement_of(round_trip_ns: float) -> Placement:
    """How far two CPUs are apart between which a cache line takes that long."""
    return "near" if round_trip_ns < _NEAR_NS else "far"


class CopyRates(msgspec.Struct, frozen=True):
    """Plain copies of this machine in a repeat: a second, on one CPU, out of 256 MiB."""

    copies_4k: float
    copies_1m: float


class Failure(msgspec.Struct, frozen=True):
    """A side that could not be measured under a case, and why."""

    side: str
    case: str
    reason: str


class Machine(msgspec.Struct, frozen=True):
    """Where a run was made."""

    cpu: str
    cpus: int
    kernel: str
    versions: dict[str, str]


class Run(msgspec.Struct):
    """All of a run; grows while it is measured.

    :ivar command: what repeats it. :ivar day: ISO date.
    """

    machine: Machine
    command: str
    day: str
    samples: list[Sample]
    copies: list[CopyRates]
    failures: list[Failure]

    @property
    def unfair(self) -> int:
        """Samples that were dropped, for somebody did not get a CPU."""
        return sum(not sample.fair for sample in self.samples)


class Figure(msgspec.Struct, frozen=True):
    """Medians over the fair repeats of one side under one case and placement.

    :ivar samples: how many there are. :ivar fair: how many of them were; with 0 the medians are over all.
    """

    side: str
    device: DeviceKind | None
    case: Case
    placement: Placement
    iops: float
    p50_ns: float
    p99_ns: float
    p999_ns: float
    cpu_ns: float | None
    target_share: float
    idle_share: float | None
    private_bytes: int | None
    samples: int
    fair: int

    @property
    def bytes_per_s(self) -> float:
        """Of data."""
        return self.iops * self.case.block_bytes


def percentile_ns(latency: Mapping[int, int], fraction: float) -> float:
    """Latency in nanoseconds within which this fraction of all requests came back; 0 for none.

    Taken linearly within its bucket, an eighth of a power of two wide.
    """
    wanted, seen = fraction * sum(latency.values()), 0
    for bucket, count in sorted(latency.items()):
        if count and seen + count >= wanted:
            low = _BOUNDS[bucket - 1] if bucket else 0
            high = _BOUNDS[bucket] if bucket + 1 < len(_BOUNDS) else low
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return 0.0


def figure(samples: Iterable[Sample]) -> Figure:
    """Medians of the fair samples; of all when none was fair."""
    every = list(samples)
    fair = [sample for sample in every if sample.fair]
    used, first = fair or every, every[0]
    cpu, idle = _known(s.cpu_ns for s in used), _known(s.idle_share for s in used)
    private = _known(s.private_bytes for s in used)
    return Figure(
        side=first.side,
        device=first.device,
        case=first.case,
        placement=first.placement,
        iops=median(s.iops for s in used),
        p50_ns=median(s.p50_ns for s in used),
        p99_ns=median(s.p99_ns for s in used),
        p999_ns=median(s.p999_ns for s in used),
        cpu_ns=median(cpu) if cpu else None,
        target_share=median(s.target_share for s in used),
        idle_share=median(idle) if idle else None,
        private_bytes=int(median(private)) if private else None,
        samples=len(every),
        fair=len(fair),
    )


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """One figure for each case, placement and side, in the order in which they were first run.

    A sample that was not fair is left out where others of its case and side were, whatever their placement.
    """
    fair = {(sample.case, sample.side) for sample in samples if sample.fair}
    groups: dict[tuple[Case, Placement, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.case, sample.placement, sample.side), []).append(sample)
    rows = {key: figure(group) for key, group in groups.items()}
    return [row for row in rows.values() if row.fair or (row.case, row.side) not in fair]


def load_run(paths: Sequence[Path]) -> Run:
    """Read saved runs; several pieces of one machine become one.

    :raises UsageError: a file is no saved run, or they are of different machines.
    """
    pieces = [_load(path) for path in paths]
    if len({msgspec.json.encode(piece.machine) for piece in pieces}) > 1:
        raise UsageError("these runs were made on different machines, their figures do not go together")
    first = pieces[0]
    for piece in pieces[1:]:
        first.samples += piece.samples
        first.copies += piece.copies
        first.failures += piece.failures
        if piece.command not in first.command.split("\n"):
            first.command += "\n" + piece.command
    return first


def _load(path: Path) -> Run:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="name what ringway bench --save wrote"
        ) from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is no saved run: {error}", hint="ringway bench --save makes one") from error


def save_run(run: Run, path: Path) -> None:
    """Write a run as JSON. :raises UsageError: the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.encode(run) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
