"""``ringway bench`` end to end: sides are started, driven, compared, and may fail."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ringway.bench.machine import Cpus, two_cpus
from ringway.bench.plan import Case, select, suite
from ringway.bench.run import Plan, measure
from ringway.bench.samples import Failure, Machine, Run, Sample
from ringway.bench.sides import OurTarget, RunningPeer, Side
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import wait_until

BENCH = [sys.executable, "-m", "ringway", "bench"]
SHORT = ["--seconds", "0.05", "--repeats", "1"]
NULL = ["--case", "null-4k-read-1x32"]


def bench(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*BENCH, *arguments], capture_output=True, text=True, timeout=250, check=False, **more
    )


def samples(*arguments: str) -> list[dict[str, Any]]:
    """What a run measures, without CPUs of its own: the tests beside it use them too."""
    run = bench(*SHORT, "--no-pin", "-o", "json", *arguments)
    assert run.returncode == 0, run.stderr
    # the last of each: on a busy machine samples are dropped and taken again
    found = json.loads(run.stdout)["samples"]
    return list({(sample["side"], json.dumps(sample["case"])): sample for sample in found}.values())


def plan(cases: Sequence[Case], sides: Sequence[Side], folder: Path, cpus: Cpus | None = None) -> Plan:
    return Plan(cases, sides, repeats=1, seconds=0.1, cpus=cpus, folder=folder)


def empty_run() -> Run:
    return Run(Machine("", 1, "", {}), "", "", [], [], [])


def by_name(*names: str) -> list[Case]:
    return select(names, suite("full"))


def test_the_table_has_a_row_for_each_side_with_the_ratio_to_the_peer() -> None:
    run = bench(*SHORT, "--no-pin", *NULL)
    rows = [line for line in run.stdout.splitlines() if "null-4k" in line]
    assert len(rows) == 3
    assert sum("×" in row for row in rows) == 2


def test_each_device_is_driven_with_mixes_queues_and_sizes() -> None:
    names = ["ram-512-r25w75-4x64", "ram-1m-r75w25-1x8", "null-1m-r25w75-1x64-batch32", "tmpfs-4k-write-1x32"]
    found = samples("--peer", "none", *(word for name in names for word in ("--case", name)))
    assert {sample["side"] for sample in found} == {"ringway scsi", "ringway blk"}
    assert len(found) == 2 * len(names)
    for sample in found:
        assert sample["errors"] == 0
        assert 0 < sample["p50_ns"] <= sample["p99_ns"] <= sample["p999_ns"]
        assert sample["cpu_ns"] > 0
        assert sample["private_bytes"] > 1 << 20


def test_many_disks_are_driven_through_one_scsi_device() -> None:
    (sample,) = samples("--peer", "none", "--case", "null-4k-read-1x32-luns32")
    assert (sample["side"], sample["errors"]) == ("ringway scsi", 0)


def test_an_offered_load_is_counted_whole() -> None:
    for sample in samples("--case", "tmpfs-4k-read-10000iops"):
        assert sum(sample["latency"].values()) + sample["unsent"] == 500


def test_a_disk_is_measured_beside_fio(tmp_path: Path) -> None:
    found = {s["side"]: s for s in samples("--folder", str(tmp_path), "--case", "disk-4k-read-1x1")}
    assert set(found) == {"ringway scsi", "ringway blk", "qemu-storage-daemon", "fio"}
    assert all(sample["iops"] > 0 and sample["cpu_ns"] > 0 for sample in found.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["scsi", "blk"])
def test_a_peer_that_runs_is_measured_through_its_socket(device: str, tmp_path: Path) -> None:
    with ServedTarget(tmp_path, "--device", device, "--lun", "0=ram:64M") as peer:
        found = samples(
            *("--peer", "none", "--peer-socket", peer.socket, "--peer-device", device, "--device", device),
            *("--case", "ram-4k-read-1x32"),
        )
        assert len(found) == 2
        assert found[0]["side"] == f"ringway {device}"
        assert found[1]["side"] == f"{Path(os.readlink(f'/proc/{peer.pid}/exe')).name} {device}"
        assert found[1]["cpu_ns"] > 0
        assert sum(row.reads for row in peer.statistics().luns) > 0


def test_a_saved_run_makes_table_page_and_chart_again(tmp_path: Path) -> None:
    saved, page = tmp_path / "run.json", tmp_path / "page.md"
    first = bench(*SHORT, "--no-pin", *NULL, "--save", str(saved), "--page", str(page), "--peer", "none")
    assert first.returncode == 0, first.stderr
    written, chart = page.read_text(), (tmp_path / "page.svg").read_bytes()
    again = bench("--from", str(saved), "--page", str(page), "--svg", str(tmp_path / "other.svg"))
    assert again.stdout == first.stdout
    assert page.read_text() == written
    assert (tmp_path / "other.svg").read_bytes() == chart


# What does not go well


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--case", "nvme-*"], 3, "no case is named nvme-*"),
        (["--cpus", "0"], 2, "is not two CPUs"),
        (["--cpus", "1,1"], 2, "is not two CPUs"),
        (["--cpus", "0,9999"], 2, "cannot run on CPU 9999"),
        (["--peer-socket", "/nonexistent/x.sock", *NULL], 4, "cannot reach a target on /nonexistent/x.sock"),
        (["--folder", "/nonexistent", *NULL], 2, "/nonexistent is no folder"),
        (["--save", "/nonexistent/run.json", *NULL], 2, "'/nonexistent' is not a directory"),
        (["--from", "/nonexistent"], 2, "cannot read /nonexistent"),
        (["--only-peer", "--peer", "none"], 2, "there is nothing to measure"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], status: int, message: str) -> None:
    run = bench(*arguments)
    assert run.returncode == status
    assert run.stderr.startswith("error: ")
    assert message in run.stderr


def test_without_the_peers_program_there_is_a_hint(tmp_path: Path) -> None:
    run = bench(*SHORT, *NULL, env={**os.environ, "PATH": str(tmp_path)})
    assert run.returncode == 3
    assert "qemu-storage-daemon is not installed" in run.stderr
    assert "--peer none" in run.stderr


def test_one_cpu_is_too_few_for_two_sides() -> None:
    cpu = min(os.sched_getaffinity(0))
    run = bench(*SHORT, *NULL, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
    assert run.returncode == 2
    assert "needs two CPUs" in run.stderr
    assert "--no-pin" in run.stderr


def test_a_peer_that_dies_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    cases, run = by_name("ram-4k-read-1x1", "ram-4k-read-1x32", "ram-4k-write-1x1"), empty_run()
    with ServedTarget(tmp_path, "--device", "blk", "--lun", "0=ram:64M") as peer:
        sides: list[Side] = [RunningPeer(Path(peer.socket), "blk", "ram", "peer"), OurTarget("blk")]

        def kill(found: Sample | Failure) -> None:
            if found.side == "peer":
                peer.kill()

        measure(plan(cases, sides, tmp_path), run, kill)
    assert list(dict.fromkeys(s.case for s in run.samples if s.side == "ringway blk")) == cases
    assert [failure.side for failure in run.failures] == ["peer"]
    assert len([sample for sample in run.samples if sample.side == "peer"]) == 1


def test_what_could_not_be_measured_is_told_and_the_rest_shown(tmp_path: Path) -> None:
    with ServedTarget(tmp_path, "--device", "scsi", "--lun", "0=ram:64M") as peer:
        run = bench(
            *(*SHORT, "--no-pin", "--peer", "none", "--device", "blk", "--peer-socket", peer.socket),
            *("--peer-device", "scsi", "--case", "ram-4k-read-4x64"),
        )
    assert run.returncode == 7
    assert "ram-4k-read-4x64: " in run.stderr
    assert "error: not everything could be measured" in run.stderr
    assert "ringway blk" in run.stdout


def test_a_sample_is_repeated_while_others_use_the_targets_cpu(tmp_path: Path) -> None:
    """What takes half of a CPU leaves no fair sample, so that the bound is reached; each of them is kept."""
    cpus, run = two_cpus(), empty_run()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burner:
        os.sched_setaffinity(burner.pid, {cpus.target})
        measure(plan(by_name("null-4k-read-1x32"), [OurTarget("blk")], tmp_path, cpus), run)
        burner.kill()
    assert [sample.fair for sample in run.samples] == [False] * 3
    assert run.failures == []


def test_ctrl_c_shows_what_was_measured_so_far() -> None:
    terminal, theirs = pty.openpty()
    command = [
        *BENCH,
        "--seconds",
        "0.05",
        "--repeats",
        "1000",
        "--no-pin",
        "--peer",
        "none",
        "-o",
        "json",
        *NULL,
    ]
    with (
        os.fdopen(terminal, "rb", buffering=0) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process,
    ):
        os.close(theirs)
        while b"IOPS" not in progress.read(4096):
            pass
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=250)
    assert process.returncode == 130
    assert json.loads(output)["samples"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_run_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    command = [*BENCH, *SHORT[:2], "--repeats", "1000", "--no-pin", "--folder", str(tmp_path)]
    command = ["env", "--default-signal=HUP", *command, "--peer", "none", "--case", "disk-4k-read-1x1"]
    with (
        os.fdopen(terminal, "rb", buffering=0) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process,
    ):
        os.close(theirs)
        while b"IOPS" not in progress.read(4096):
            pass
        wait_until(lambda: bool(served_by(process.pid)), "a target")
        targets = served_by(process.pid)
        process.send_signal(number)
        process.communicate(timeout=250)
    assert process.returncode == 130
    assert not any(Path(f"/proc/{target}").exists() for target in targets)
    assert not list(tmp_path.iterdir())


def served_by(pid: int) -> list[int]:
    """The targets that a process has started."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if b"serve" in command_line(child)]


def command_line(pid: int) -> bytes:
    """Nothing, if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_huge_pages_are_used_or_missed_aloud() -> None:
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    run = bench(*SHORT, "--no-pin", "--huge-pages", "--peer", "none", "--device", "blk", *NULL)
    if free >= 16:
        assert run.returncode == 0, run.stderr
    else:
        assert run.returncode == 7
        assert "no memory for the guest" in run.stderr
