"""The page and the chart of a run: all that was measured, and the same for the same run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ringway.bench import chart, page
from ringway.bench.goals import GOALS
from ringway.bench.plan import Case
from ringway.bench.samples import Failure
from ringway.bench.text import rows, without_repeats
from ringway.errors import UsageError

from .canned import FAR, run, sample, whole_run


def test_a_page_has_each_figure_each_goal_and_what_repeats_it() -> None:
    made = whole_run()
    text = page.page(made, "performance.svg")
    assert "$ ringway bench --suite goals" in text
    assert "(performance.svg)" in text
    assert all(f"| {goal} |" in text for goal in GOALS)
    assert all(s.case.name in text and s.side in text for s in made.samples)
    assert "50 ns near" in text or "51 ns near" in text
    assert "2.60 million" in text


def test_a_page_tells_what_could_not_be_measured() -> None:
    text = page.page(run(sample(), failures=(Failure("vhost", "ram-4k-read-1x1", "it died"),)), "x.svg")
    assert "* vhost, ram-4k-read-1x1: it died" in text


def test_a_page_counts_what_was_dropped() -> None:
    text = page.page(run(sample(), sample(client_share=0.1)), "x.svg")
    assert "2 samples, 1 of them dropped" in text
    assert "| 1/2 |" in text


def test_ratios_are_against_the_peer_of_the_same_case_and_placement() -> None:
    peer = sample("vhost blk", iops=5e5)
    found = rows(run(sample(), peer, sample(round_trips_ns=FAR), sample(case=Case("ram", 1))))
    assert [(line[0], line[1], line[-2]) for line in found if line[2] == "ringway blk"] == [
        ("null-4k-read-1x32", "near", "2.00×"),
        ("null-4k-read-1x32", "far", ""),
        ("ram-4k-read-1x1", "near", ""),
    ]


def test_the_lines_of_a_table_are_as_wide_as_its_head() -> None:
    lines = [line for line in page.page(whole_run(), "x.svg").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6, 12}


def test_a_column_that_repeats_itself_is_said_once() -> None:
    assert without_repeats([("a", "1"), ("a", "2"), ("b", "3")]) == [("a", "1"), ("", "2"), ("b", "3")]


def test_a_chart_names_sides_and_loads_and_is_the_same_twice(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        chart.write(whole_run(), tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    words = {
        "".join(node.itertext()).strip() for node in ET.fromstring(text).iter() if node.tag.endswith("text")
    }
    assert {"null", "ram", "tmpfs", "disk", "ringway blk", "ringway scsi", "qemu-storage-daemon"} <= words
    assert text == (tmp_path / "two.svg").read_text()


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_a_chart_marks_what_had_no_fair_sample(tmp_path: Path, share: float) -> None:
    chart.write(run(sample(), sample("ringway scsi", client_share=share)), tmp_path / "x.svg")
    assert ("no fair sample" in (tmp_path / "x.svg").read_text()) == (share < 1.0)


def test_a_page_is_written_with_its_chart_beside_it(tmp_path: Path) -> None:
    page.write(whole_run(), tmp_path / "performance.md")
    assert "](performance.svg)" in (tmp_path / "performance.md").read_text()
    assert (tmp_path / "performance.svg").exists()


def test_what_cannot_be_drawn_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        chart.write(run(), tmp_path / "x.svg")
    with pytest.raises(UsageError, match="cannot write"):
        chart.write(whole_run(), tmp_path / "missing" / "x.svg")
