"""The eight steps of a request, and the time between them, as far as the host can know it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ringway.model import TraceSample


class Step(StrEnum):
    """A request's way, in order: the guest's part, the worker's, and back."""

    QUEUED = "queued"  #: the guest put it on the available ring
    KICKED = "kicked"  #: the guest wrote the kick eventfd
    WOKEN = "woken"  #: the worker returned from its sleep
    DEQUEUED = "dequeued"  #: the worker took its chain off the ring
    DISPATCHED = "dispatched"  #: decoded, and handed to who carries it out
    COMPLETED = "completed"  #: carried out
    ENQUEUED = "enqueued"  #: the guest can see the answer on the used ring
    NOTIFIED = "notified"  #: the call eventfd is written


#: What the worker does, or waits for, until a step.
MEANING = {
    Step.QUEUED: "on the ring, unseen",
    Step.KICKED: "kick under way",
    Step.WOKEN: "waking up",
    Step.DEQUEUED: "waits on the ring",
    Step.DISPATCHED: "checked and decoded",
    Step.COMPLETED: "carried out",
    Step.ENQUEUED: "waits for its batch",
    Step.NOTIFIED: "signal",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """The time up to a step, from the one before."""

    step: Step
    start_ns: int
    end_ns: int

    @property
    def ns(self) -> int:
        """Its length."""
        return self.end_ns - self.start_ns


def found_ns(sample: TraceSample) -> int:
    """When the worker could first have known of it: it woke up, or it looked and saw it."""
    return sample.seen_ns if sample.woken_ns is None else sample.woken_ns


def ended_ns(sample: TraceSample) -> int:
    """When the guest was told, or could see it if it wants no telling."""
    return sample.enqueued_ns if sample.notified_ns is None else sample.notified_ns


def total_ns(sample: TraceSample) -> int:
    """The host's part of it."""
    return ended_ns(sample) - found_ns(sample)


def unseen(sample: TraceSample) -> Segment | None:
    """The time in which the guest queued it (and kicked, if the worker slept).

    ``None``: its beginning lies before the trace.
    """
    if sample.absent_ns is None:
        return None
    return Segment(Step.QUEUED, sample.absent_ns, found_ns(sample))


def segments(sample: TraceSample) -> tuple[Segment, ...]:
    """What the host knows exactly: from when it found the request to the guest's being told."""
    times = [
        (Step.DEQUEUED, sample.dequeued_ns),
        (Step.DISPATCHED, sample.dispatched_ns),
        (Step.COMPLETED, sample.completed_ns),
        (Step.ENQUEUED, sample.enqueued_ns),
    ]
    if sample.notified_ns is not None:
        times.append((Step.NOTIFIED, sample.notified_ns))
    marks = [(Step.WOKEN, found_ns(sample)), *times]
    return tuple(Segment(step, start, end) for (_, start), (step, end) in pairwise(marks))
