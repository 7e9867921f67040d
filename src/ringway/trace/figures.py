"""Samples in groups, and how long each step took in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from ringway.model import Carrier, Notice, Operation, TraceSample, Wake
from ringway.trace.steps import Step, segments, total_ns, unseen

_WordT = TypeVar("_WordT", Carrier, Notice)

_CARRIERS: Final = {
    Carrier.WORKER: "on the worker",
    Carrier.KERNEL: "by the kernel",
    Carrier.PYTHON: "in Python",
}
_NOTICES: Final = {
    Notice.SIGNALLED: "signalled",
    Notice.SUPPRESSED: "the driver wants none",
    Notice.NO_CALL: "no eventfd to call",
}


class StepFigures(msgspec.Struct, frozen=True):
    """How long a step took after the one before it, in nanoseconds.

    ``count`` samples have it. ``bound``: the times are upper bounds, the true ones are not visible to the
    host. ``note`` says what numbers cannot.
    """

    step: Step
    count: int
    p50_ns: int | None = None
    p99_ns: int | None = None
    max_ns: int | None = None
    bound: bool = False
    note: str = ""


class Group(msgspec.Struct, frozen=True):
    """All samples of one operation. The eight steps, and then the host's whole part as ``total``."""

    operation: Operation
    count: int
    steps: tuple[StepFigures, ...]
    total_p50_ns: int
    total_p99_ns: int
    total_max_ns: int


def by_operation(samples: Iterable[TraceSample]) -> dict[Operation, list[TraceSample]]:
    """Samples of each operation that there is, in the order of :class:`Operation`."""
    groups: defaultdict[Operation, list[TraceSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.operation].append(sample)
    return {operation: groups[operation] for operation in Operation if operation in groups}


def group(operation: Operation, samples: Sequence[TraceSample]) -> Group:
    """Figures of samples of one operation; at least one."""
    times: defaultdict[Step, list[int]] = defaultdict(list)
    for sample in samples:
        for segment in segments(sample):
            times[segment.step].append(segment.ns)
    known = {step: _figures(step, values, note=_note(step, samples)) for step, values in times.items()}
    known |= _guests_part(samples)
    totals = sorted(map(total_ns, samples))
    return Group(
        operation,
        len(samples),
        tuple(known.get(step, StepFigures(step, 0, note=_note(step, samples))) for step in Step),
        percentile(totals, 0.5),
        percentile(totals, 0.99),
        totals[-1],
    )


def percentile(ordered: Sequence[int], share: float) -> int:
    """The least value that this share of all does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _guests_part(samples: Sequence[TraceSample]) -> dict[Step, StepFigures]:
    """Queued, kicked and woken: what the guest did is known to lie between two looks at the ring."""
    polled = [sample for sample in samples if sample.wake is Wake.POLLING]
    bounds = [segment.ns for segment in map(unseen, polled) if segment is not None]
    slept = len(samples) - len(polled)
    kicked = sum(sample.wake is Wake.KICK for sample in samples)
    queued = _figures(Step.QUEUED, bounds, bound=True, note="before the look that found it" if bounds else "")
    return {
        Step.QUEUED: msgspec.structs.replace(queued, count=len(samples)),
        Step.KICKED: StepFigures(Step.KICKED, kicked, note=_share(kicked, samples, "needed a kick")),
        Step.WOKEN: StepFigures(Step.WOKEN, slept, note=_share(slept, samples, "ended a sleep")),
    }


def _figures(step: Step, times: list[int], *, bound: bool = False, note: str = "") -> StepFigures:
    if not times:
        return StepFigures(step, 0, note=note)
    ordered = sorted(times)
    marks = (percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1])
    return StepFigures(step, len(ordered), *marks, bound=bound, note=note)


def _share(count: int, samples: Sequence[TraceSample], what: str) -> str:
    return f"{count / len(samples):.0%} {what}"


def _note(step: Step, samples: Sequence[TraceSample]) -> str:
    match step:
        case Step.COMPLETED:
            parked = sum(sample.parked for sample in samples)
            waits = f"; {parked} waited for a lock or for room" if parked else ""
            return _shares(_CARRIERS, Counter(sample.carrier for sample in samples)) + waits
        case Step.NOTIFIED:
            return _shares(_NOTICES, Counter(sample.notice for sample in samples))
    return ""


def _shares(words: dict[_WordT, str], counts: Counter[_WordT]) -> str:
    whole = counts.total()
    return ", ".join(f"{counts[key] / whole:.0%} {word}" for key, word in words.items() if counts[key])
