"""Measuring: sides in turn, A B A B, so that a drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from ringway.bench import fio
from ringway.bench.client import BURST, Client, Report, connected
from ringway.bench.machine import Cpus, copy_rates, cpu_time, load, private_bytes, round_trip_ns
from ringway.bench.place import Place, place
from ringway.bench.plan import Case, Setup, by_setup
from ringway.bench.samples import Failure, Run, Sample, percentile_ns
from ringway.bench.sides import Side, Started
from ringway.errors import RingwayError

_WARM_UP_S: Final = 0.1
_SETTLE_S: Final = 0.1
_IDLE_S: Final = 0.5
#: How often a sample is taken once more because somebody did not get its CPU.
_REPEATED: Final = 2
#: Requests that an offered load must make at least for its percentiles to mean something.
_OFFERED_REQUESTS: Final = 4
_SLOW_IOPS: Final = 100.0

Progress = Callable[[Sample | Failure], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    :ivar cpus: ``None``: wherever the kernel puts target and client.
    :ivar folder: for images on a disk. :ivar reference: measure fio on a disk too.
    :ivar huge_pages: guest memory of them. :ivar burst: see :class:`Client`.
    """

    cases: Sequence[Case]
    sides: Sequence[Side]
    repeats: int
    seconds: float
    cpus: Cpus | None
    folder: Path
    huge_pages: bool = False
    burst: int = BURST
    reference: bool = True


@dataclass(frozen=True, slots=True)
class _Connected:
    """A side that runs, with the client on it, and what it costs while nobody asks it for anything."""

    started: Started
    client: Client
    idle_share: float | None
    private: int | None


def measure(plan: Plan, run: Run, progress: Progress = lambda _: None) -> None:
    """Measure each case on each side that can serve it, ``repeats`` times, interleaved.

    What is measured goes into ``run`` at once, so that an interrupted run has all of it. A side that fails is
    noted and left out of that set-up; the others go on.
    """
    with place(plan.folder) as where:
        for _ in range(plan.repeats):
            run.copies.append(copy_rates(plan.cpus))
            for setup, cases in by_setup(plan.cases).items():
                with ExitStack() as stack:
                    _Round(plan, run, progress, where, setup, cases, stack).measure()


@dataclass(slots=True)
class _Round:
    """One repeat of the cases that share a set-up. Targets are started when first asked for."""

    plan: Plan
    run: Run
    progress: Progress
    where: Place
    setup: Setup
    cases: Sequence[Case]
    stack: ExitStack
    running: dict[str, _Connected] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def measure(self) -> None:
        for case in self.cases:
            for side in self.plan.sides:
                if side.serves(case) and side.name not in self.failed:
                    self._attempt(side.name, case, partial(self._sample, side, case))
            if self.plan.reference and fio.serves(case) and fio.installed():
                self._attempt(fio.NAME, case, partial(self._reference, case))

    def _attempt(self, side: str, case: Case, sample: Callable[[], Sample]) -> None:
        """Take a sample until it is fair, a few times at most; each is kept."""
        try:
            for _ in range(1 + _REPEATED):
                found = sample()
                self.run.samples.append(found)
                self.progress(found)
                if found.fair:
                    return
        except (RingwayError, OSError, ValueError) as error:
            failure = Failure(side, case.name, self._reason(side, error))
            self.run.failures.append(failure)
            self.failed.add(side)
            self.progress(failure)

    def _reason(self, side: str, error: Exception) -> str:
        death = self.running[side].started.death() if side in self.running else None
        return f"{death}: {error}" if death else str(error)

    def _reference(self, case: Case) -> Sample:
        image = self.where.image(self.setup, fio.NAME, 0)
        return fio.sample(case, image, self._seconds(case), self.plan.cpus)

    def _sample(self, side: Side, case: Case) -> Sample:
        if not side.polls:
            if side.name not in self.running:
                self.running[side.name] = self.stack.enter_context(self._connect(side))
            return self._driven(side, case, self.running[side.name])
        with self._connect(side) as alone:
            return self._driven(side, case, alone)

    @contextmanager
    def _connect(self, side: Side) -> Iterator[_Connected]:
        cpu = self.plan.cpus.target if self.plan.cpus else None
        room = max(case.buffer_bytes for case in self.cases)
        with (
            side.running(self.setup, self.where, cpu) as started,
            connected(
                started.socket,
                side.device,
                self.setup,
                room,
                huge_pages=self.plan.huge_pages,
                burst=self.plan.burst,
            ) as client,
        ):
            if self.setup.store == "ram":
                client.fill(self.setup.luns)
            client.run(self.cases[0], _WARM_UP_S, self.plan.cpus.client if self.plan.cpus else None)
            idle = _idle_share(started.pid)
            yield _Connected(started, client, idle, private_bytes(started.pid) if started.pid else None)

    def _driven(self, side: Side, case: Case, on: _Connected) -> Sample:
        cpus, pid = self.plan.cpus, on.started.pid
        client_cpu = cpus.client if cpus else None
        if case.rate_iops == 0:
            on.client.run(case, _WARM_UP_S, client_cpu)
        round_trip = round_trip_ns(cpus)
        before, machine_before = cpu_time(pid) if pid else None, load(cpus)
        report = on.client.run(case, self._seconds(case), client_cpu)
        used, machine = cpu_time(pid).used_since(before) if before else None, load(cpus)
        trips = (*round_trip, *round_trip_ns(cpus))
        stolen = machine.stolen_s - machine_before.stolen_s
        return _judged(side, case, report, on, used, machine.busy_s - machine_before.busy_s, stolen, trips)

    def _seconds(self, case: Case) -> float:
        if not 0 < case.rate_iops < _SLOW_IOPS:
            return self.plan.seconds
        return max(self.plan.seconds, (_OFFERED_REQUESTS - 0.5) / case.rate_iops)


def _judged(
    side: Side,
    case: Case,
    report: Report,
    on: _Connected,
    used_ns: int | None,
    busy_s: float,
    stolen_s: float,
    round_trips_ns: tuple[float, ...],
) -> Sample:
    latency, seconds = report["latency"], report["seconds"]
    requests, client_s, errors, unsent = (_number(report[key]) for key in _NUMBERS)
    assert isinstance(latency, list)
    assert not isinstance(seconds, list)
    counts = {bucket: count for bucket, count in enumerate(latency) if count}
    return Sample(
        side=side.name,
        device=side.device,
        case=case,
        iops=requests / seconds,
        p50_ns=percentile_ns(counts, 0.5),
        p99_ns=percentile_ns(counts, 0.99),
        p999_ns=percentile_ns(counts, 0.999),
        cpu_ns=used_ns / max(requests, 1) if used_ns is not None else None,
        client_share=client_s / seconds,
        target_share=(used_ns or 0) / 1e9 / seconds,
        others_share=max(0.0, busy_s - used_ns / 1e9) / seconds if used_ns is not None else 0.0,
        stolen_share=stolen_s / seconds,
        round_trips_ns=round_trips_ns,
        errors=int(errors),
        unsent=int(unsent),
        idle_share=on.idle_share,
        private_bytes=on.private,
        latency=counts,
    )


_NUMBERS: Final = ("requests", "cpu_seconds", "errors", "unsent")


def _number(value: float | list[int]) -> float:
    assert not isinstance(value, list)
    return value


def _idle_share(pid: int) -> float | None:
    """CPU seconds a second of a target whose front end is connected and asks for nothing."""
    if not pid:
        return None
    time.sleep(_SETTLE_S)
    before, start = cpu_time(pid), time.monotonic()
    time.sleep(_IDLE_S)
    used = cpu_time(pid).used_since(before)
    return used / 1e9 / (time.monotonic() - start)
