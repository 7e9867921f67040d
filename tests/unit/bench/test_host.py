"""The host's benchmark: lines, goals, the page; and peers that cannot be had."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ringway.bench.host import peers
from ringway.bench.host.figures import (
    GOALS,
    LIMIT_S,
    OURS,
    RTSLIB,
    TARGETCLI,
    Figure,
    JobCutError,
    Report,
    measured,
    parse,
    verdicts,
)
from ringway.bench.host.page import page
from ringway.errors import NotFoundError


def test_a_figure_survives_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with measured(OURS, "create", 7):
        print("other words")
    (figure,) = parse(capsys.readouterr().out)
    assert (figure.side, figure.job, figure.endpoints, figure.unit) == (OURS, "create", 7, "s")
    assert figure.cpu_s is not None


@pytest.mark.parametrize(("theirs", "met"), [(30.0, True), (9.9, False)])
def test_a_ratio_decides(theirs: float, met: bool) -> None:
    run = [Figure(OURS, "restore", 100, 1.0), Figure(RTSLIB, "restore", 100, theirs)]
    verdict = next(each for each in verdicts(run) if each.title == "restore at start")
    assert (verdict.met, verdict.measured) == (met, f"{theirs:.3g}×")


def test_a_job_that_takes_too_long_is_cut_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_S, "1")
    with pytest.raises(JobCutError), measured(RTSLIB, "restore", 7):
        subprocess.run(["sleep", "60"], check=True)
    (figure,) = parse(capsys.readouterr().out)
    assert figure.cut
    run = [Figure(OURS, "restore", 7, figure.value / 20), figure]
    verdict = next(each for each in verdicts(run) if each.title == "restore at start")
    assert (verdict.met, verdict.measured, verdict.peer[:2]) == (True, "> 20×", "> ")


@pytest.mark.parametrize(("mib", "met"), [(8.0, True), (8.1, False)])
def test_a_limit_decides(mib: float, met: bool) -> None:
    found = verdicts([Figure(OURS, "user: memory of a target", 200, mib, unit="MiB")])
    (verdict,) = [each for each in found if each.endpoints]
    assert verdict.met is met


def test_what_was_not_measured_decides_nothing() -> None:
    assert {each.met for each in verdicts([Figure(OURS, "restore", 100, 1.0)])} == {None}


def test_the_page_has_all_goals_and_figures() -> None:
    run = (Figure(OURS, "create", 100, 0.5, cpu_s=0.25), Figure(TARGETCLI, "create", 100, 60.0))
    text = page(Report("2026-01-01", "6.12.1", {TARGETCLI: "1:2.1.53"}, run))
    assert all(f"| {goal.title} |" in text for goal in GOALS)
    assert "| ringway | create | 100 | 500 ms | 250 ms |" in text
    assert "| 120× | ≥ 5× | yes |" in text


def test_a_peer_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGWAY_PEERS", str(tmp_path / "peers"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(NotFoundError) as missing:
        peers.rtslib()
    assert missing.value.hint
    assert not (tmp_path / "peers" / f"rtslib-{peers.RTSLIB_VERSION}").exists()
