"""What samples amount to: percentiles, medians, samples that are dropped, runs that are put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ringway.bench.plan import Case
from ringway.bench.samples import Failure, figures, load_run, percentile_ns, save_run
from ringway.errors import UsageError

from .canned import BOUNDS, CASE, FAR, NEAR, run, sample


def test_a_percentile_lies_in_the_bucket_that_reaches_it() -> None:
    latency = {0: 98, 9: 1, 20: 1}
    assert percentile_ns(latency, 0.49) == BOUNDS[0] / 2
    assert BOUNDS[8] < percentile_ns(latency, 0.99) <= BOUNDS[9]
    assert percentile_ns(latency, 1.0) == BOUNDS[20]


def test_the_last_bucket_has_no_end() -> None:
    assert percentile_ns({len(BOUNDS) - 1: 5}, 0.5) == BOUNDS[-2]


def test_no_requests_have_no_percentile() -> None:
    assert percentile_ns({}, 0.5) == 0


@pytest.mark.parametrize(
    "spoilt",
    [
        {"client_share": 0.89},
        {"others_share": 0.11},
        {"stolen_share": 0.06},
        {"round_trips_ns": (50.0, 400.0)},
        {"round_trips_ns": (400.0, 50.0)},
    ],
)
def test_a_sample_is_dropped_for_each_reason(spoilt: dict[str, Any]) -> None:
    assert sample().fair
    assert sample(round_trips_ns=FAR).fair
    assert not sample(**spoilt).fair


def test_dropped_samples_count_only_when_there_are_no_others() -> None:
    spoilt = sample(iops=2.0, client_share=0.5)
    (row,) = figures([sample(iops=10.0), spoilt, sample(iops=14.0)])
    assert (row.iops, row.samples, row.fair) == (12, 3, 2)
    (row,) = figures([spoilt])
    assert (row.iops, row.samples, row.fair) == (2, 1, 0)


def test_a_dropped_sample_of_another_placement_makes_no_figure() -> None:
    rows = figures([sample(), sample(round_trips_ns=FAR, client_share=0.5)])
    assert [(row.placement, row.fair) for row in rows] == [("near", 1)]


def test_near_and_far_are_figures_of_their_own() -> None:
    rows = figures([sample(iops=6.0), sample(iops=2.0, round_trips_ns=FAR), sample(iops=8.0)])
    assert [(row.placement, row.iops) for row in rows] == [("near", 7), ("far", 2)]
    assert figures([sample(round_trips_ns=())])[0].placement == "unpinned"


def test_each_case_and_side_has_a_figure_in_the_order_of_the_runs() -> None:
    other = Case("ram", 1)
    samples = [sample("a"), sample("b"), sample("a", case=other), sample("a"), sample("b")]
    assert [(row.side, row.case, row.samples) for row in figures(samples)] == [
        ("a", CASE, 2),
        ("b", CASE, 2),
        ("a", other, 1),
    ]


def test_what_a_process_out_of_sight_costs_is_not_known() -> None:
    (row,) = figures([sample(cpu_ns=None, idle_share=None, private_bytes=None)])
    assert (row.cpu_ns, row.idle_share, row.private_bytes) == (None, None, None)


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    path, made = tmp_path / "run.json", run(sample(), failures=(Failure("a", "b", "c"),))
    save_run(made, path)
    assert load_run([path]) == made


def test_pieces_of_one_machine_become_one_run(tmp_path: Path) -> None:
    pieces = [run(sample("a")), run(sample("b"), failures=(Failure("c", "d", "e"),)), run(sample("c"))]
    pieces[2].command = "ringway bench --case 'x*'"
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    for piece, path in zip(pieces, paths, strict=True):
        save_run(piece, path)
    whole = load_run(paths)
    assert [s.side for s in whole.samples] == ["a", "b", "c"]
    assert whole.command == "ringway bench --suite goals\nringway bench --case 'x*'"
    assert (len(whole.copies), len(whole.failures)) == (3, 1)


def test_runs_of_two_machines_do_not_go_together(tmp_path: Path) -> None:
    other = run()
    other.machine = msgspec.structs.replace(other.machine, cpus=64)
    save_run(run(), tmp_path / "a")
    save_run(other, tmp_path / "b")
    with pytest.raises(UsageError, match="different machines"):
        load_run([tmp_path / "a", tmp_path / "b"])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"samples": 5}')
    with pytest.raises(UsageError, match="is no saved run"):
        load_run([tmp_path / "other.json"])
    with pytest.raises(UsageError, match="cannot read"):
        load_run([tmp_path / "missing.json"])
    with pytest.raises(UsageError, match="cannot write"):
        save_run(run(), tmp_path)


def test_placements_of_the_near_sample_are_what_was_measured() -> None:
    assert sample().round_trips_ns == NEAR
    assert not sample().moved
