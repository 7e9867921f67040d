"""What is measured: cases, samples, and what the samples amount to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, Literal

import msgspec

from ringway import _core

StoreKind = Literal["null", "ram", "tmpfs"]
DeviceKind = Literal["scsi", "blk"]

#: A sample whose target or client got less of its CPU than this tells of the neighbours, not of the target.
FAIR_SHARE: Final = 0.9
BLOCK_BYTES: Final = 4096

_BOUNDS = _core.latency_bucket_bounds()


class Case(msgspec.Struct, frozen=True):
    """One load: 4 KiB random reads at a queue depth on a kind of store."""

    store: StoreKind
    depth: int


class Sample(msgspec.Struct, frozen=True):
    """One run of one side under one case.

    ``target_share`` and ``client_share`` are CPU seconds a second; ``idle_share`` is the target's, connected
    and without a request. ``latency`` has counts for the buckets of ``_core.latency_bucket_bounds``.
    """

    side: str
    case: Case
    iops: float
    p50_ns: int
    p99_ns: int
    client_share: float
    target_share: float
    idle_share: float
    latency: list[int]


class Figure(msgspec.Struct, frozen=True):
    """Medians over the repeats of one side under one case."""

    side: str
    case: Case
    iops: float
    p50_ns: float
    p99_ns: float
    idle_share: float
    samples: int
    unfair: int


def percentile_ns(latency: Sequence[int], fraction: float) -> int:
    """Upper bound in nanoseconds of the bucket that holds this fraction of all requests; 0 for none."""
    wanted, seen = fraction * sum(latency), 0
    for bound, count in zip(_BOUNDS, latency, strict=True):
        seen += count
        if count and seen >= wanted:
            return bound
    return 0


def is_fair(sample: Sample) -> bool:
    """Whether the client had its CPU to itself (a target may sleep, a polling client never does)."""
    return sample.client_share >= FAIR_SHARE


def figure(samples: Iterable[Sample]) -> Figure:
    """Medians of the fair samples; of all when none was fair (``unfair`` then equals ``samples``)."""
    every = list(samples)
    fair = [sample for sample in every if is_fair(sample)] or every
    return Figure(
        side=fair[0].side,
        case=fair[0].case,
        iops=median(sample.iops for sample in fair),
        p50_ns=median(sample.p50_ns for sample in fair),
        p99_ns=median(sample.p99_ns for sample in fair),
        idle_share=median(sample.idle_share for sample in fair),
        samples=len(every),
        unfair=sum(not is_fair(sample) for sample in every),
    )


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """One figure for each case and side, in the order in which they were first run."""
    keys = dict.fromkeys((sample.case, sample.side) for sample in samples)
    return [figure(s for s in samples if (s.case, s.side) == key) for key in keys]
