"""The command line that a run carries with it."""

from __future__ import annotations

from ringway.cli.bench import repeating


def test_where_the_output_went_is_no_part_of_what_repeats_a_run() -> None:
    words = [
        "bench",
        "--save",
        "a.json",
        "--suite",
        "goals",
        "--page=b.md",
        "-o",
        "json",
        "--case",
        "tmpfs-*",
    ]
    assert repeating(words) == "ringway bench --suite goals --case 'tmpfs-*'"
