"""Goals against runs that meet them, miss them, or say nothing of them."""

from __future__ import annotations

import pytest

from ringway.bench.goals import GOALS, verdicts
from ringway.bench.plan import Case
from ringway.bench.sides import QSD

from .canned import FAR, run, sample, whole_run


def test_a_run_of_the_suite_says_something_of_each_goal() -> None:
    assert {found.goal for found in verdicts(whole_run())} == set(GOALS)


def test_fast_targets_meet_what_slow_ones_miss() -> None:
    fast = verdicts(whole_run(iops=3e6, latency_ns=500.0, cpu_ns=300.0))
    assert [found for found in fast if found.met is False] == []
    slow = {
        found.goal
        for found in verdicts(whole_run(iops=1e4, latency_ns=1e5, cpu_ns=1e5))
        if found.met is False
    }
    relative = {goal for goal in GOALS if goal.startswith(("32 LUNs", "two workers", "idle", "private"))}
    assert slow == set(GOALS) - relative


def test_a_run_without_samples_says_nothing() -> None:
    assert verdicts(run()) == []


@pytest.mark.parametrize(
    ("trips", "ratio", "met"), [((50.0,), 4.4, False), (FAR, 2.4, True), (FAR, 2.3, False)]
)
def test_the_ratio_that_is_wanted_depends_on_the_placement(
    trips: tuple[float, ...], ratio: float, met: bool
) -> None:
    peer = sample(QSD, round_trips_ns=trips)
    found = verdicts(run(sample(iops=ratio * peer.iops, round_trips_ns=trips), peer))
    assert [v.met for v in found if "null-co" in v.goal] == [met]


def test_near_is_not_compared_with_far() -> None:
    found = verdicts(run(sample(), sample(QSD, round_trips_ns=FAR)))
    assert [v for v in found if "null-co" in v.goal] == []


def test_dropped_samples_decide_nothing() -> None:
    found = verdicts(run(sample(client_share=0.5), sample(QSD)))
    assert [v for v in found if "null-co" in v.goal] == []


def test_what_many_luns_and_workers_cost_is_relative() -> None:
    one, many = Case("ram", 32), Case("ram", 32, luns=32)
    both = run(sample("ringway scsi", case=one), sample("ringway scsi", case=many, iops=0.9e6, cpu_ns=1000.0))
    luns = {v.subject.split(": ")[1]: v.met for v in verdicts(both) if v.goal.startswith("32 LUNs")}
    assert luns == {"ram, IOPS": False, "ram, I/Os a CPU second": True}


def test_memory_of_a_store_is_not_the_targets_own() -> None:
    big = sample(case=Case("ram", 32), private_bytes=300 << 20)
    found = verdicts(run(big, sample(private_bytes=20 << 20)))
    assert [(v.measured, v.met) for v in found if v.goal.startswith("private")] == [("20.0 MiB", True)]


def test_an_idle_target_that_polls_misses_its_goal() -> None:
    found = verdicts(run(sample(idle_share=0.002), sample(idle_share=0.0, case=Case("ram", 1))))
    assert [(v.measured, v.met) for v in found if v.goal.startswith("idle")] == [("0.200 %", False)]
