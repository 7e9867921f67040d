"""What samples amount to: percentiles, medians, and samples that the neighbours spoilt."""

from __future__ import annotations

import msgspec

from ringway import _core
from ringway.bench.plan import Case, Sample, figures, percentile_ns

BOUNDS = _core.latency_bucket_bounds()
CASE = Case("null", 32)


def counts(**buckets: int) -> list[int]:
    latency = [0] * len(BOUNDS)
    for name, count in buckets.items():
        latency[int(name.removeprefix("b"))] = count
    return latency


def sample(side: str = "ours", iops: float = 1.0, share: float = 1.0, case: Case = CASE) -> Sample:
    return Sample(
        side=side,
        case=case,
        iops=iops,
        p50_ns=100,
        p99_ns=200,
        client_share=share,
        target_share=1.0,
        idle_share=0.0,
        latency=counts(b0=1),
    )


def test_a_percentile_is_the_bound_of_the_bucket_that_reaches_it() -> None:
    latency = counts(b0=98, b9=1, b20=1)
    assert percentile_ns(latency, 0.5) == BOUNDS[0]
    assert percentile_ns(latency, 0.99) == BOUNDS[9]
    assert percentile_ns(latency, 1.0) == BOUNDS[20]


def test_no_requests_have_no_percentile() -> None:
    assert percentile_ns(counts(), 0.5) == 0


def test_unfair_samples_count_only_when_there_are_no_others() -> None:
    samples = [sample(iops=10), sample(iops=2, share=0.5), sample(iops=14)]
    (figure,) = figures(samples)
    assert (figure.iops, figure.samples, figure.unfair) == (12, 3, 1)
    (figure,) = figures([sample(iops=2, share=0.5)])
    assert (figure.iops, figure.unfair) == (2, 1)


def test_each_case_and_side_has_a_figure_in_the_order_of_the_runs() -> None:
    other = Case("ram", 1)
    samples = [sample("a"), sample("b"), sample("a", case=other), sample("a"), sample("b")]
    assert [(row.side, row.case, row.samples) for row in figures(samples)] == [
        ("a", CASE, 2),
        ("b", CASE, 2),
        ("a", other, 1),
    ]


def test_samples_survive_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode([sample()]), type=list[Sample]) == [sample()]
