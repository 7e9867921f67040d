"""``ringway bench`` end to end: both sides are started, driven and compared."""

from __future__ import annotations

import json
import subprocess
import sys

BENCH = [sys.executable, "-m", "ringway", "bench", "--seconds", "0.05", "--repeats", "1", "--no-pin"]


def test_the_table_has_a_row_for_each_side_with_the_ratio_to_the_peer() -> None:
    run = subprocess.run(
        [*BENCH, "--store", "null", "--depth", "32"], capture_output=True, text=True, timeout=50, check=True
    )
    rows = [line for line in run.stdout.splitlines() if "null" in line]
    assert len(rows) == 3
    assert sum("×" in row for row in rows) == 2


def test_json_has_every_sample_with_its_histogram() -> None:
    run = subprocess.run(
        [*BENCH, "--store", "ram", "--depth", "1", "--device", "scsi", "--peer", "none", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    (sample,) = json.loads(run.stdout)
    assert sample["side"] == "ringway scsi"
    assert sum(sample["latency"]) > 0


def test_a_depth_out_of_range_is_a_usage_error() -> None:
    run = subprocess.run([*BENCH, "--depth", "0"], capture_output=True, text=True, timeout=50, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
