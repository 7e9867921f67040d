"""Sizes, durations and counts."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway import units
from ringway.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4kb", 4096),
        ("512M", 512 << 20),
        ("4G", 4 << 30),
        (" 4 G ", 4 << 30),
        ("1.5T", 3 << 39),
        ("0.5K", 512),
        ("8191P", 8191 << 50),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1", "1e9", "4X", "4GG", "1.G", ".5G", "0x10", "1 2", "4G,", "٤G", "8192P", "1.3", "0.0001K"],
)
def test_what_is_no_size_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_size(text)
    assert caught.value.hint


@given(st.integers(0, units.MAX_SIZE_BYTES))
def test_plain_bytes_are_themselves(size: int) -> None:
    assert units.parse_size(str(size)) == size


@given(st.integers(0, 8191), st.sampled_from("KMGTP"))
def test_a_prefix_is_a_power_of_1024(count: int, prefix: str) -> None:
    assert units.parse_size(f"{count}{prefix}") == count << 10 * ("KMGTP".index(prefix) + 1)


@given(st.text())
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 0 <= units.parse_size(text) <= units.MAX_SIZE_BYTES


@given(st.integers(0, units.MAX_SIZE_BYTES))
def test_a_written_size_is_near_and_can_be_read(size: int) -> None:
    text = units.format_size(size)
    number, unit = text.split(" ")
    assert len(number.replace(".", "")) <= 4
    back = float(number) * 1024 ** (["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit))
    assert back == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (1023, "1023 B"), (4 << 30, "4 GiB")],
)
def test_sizes_are_written_as_people_do(size: int, text: str) -> None:
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("30", 30), ("2m", 120), ("2min", 120), ("1h", 3600), ("10us", 1e-5)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1 2s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (120e-9, "120 ns"),
        (8.2e-6, "8.2 µs"),
        (1.5e-3, "1.5 ms"),
        (0.9999, "1 s"),
        (12, "12 s"),
        (185, "3 min 5 s"),
        (7440, "2 h 4 min"),
    ],
)
def test_durations_are_written_as_people_do(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3 k"), (999_960, "1 M"), (1.4e6, "1.4 M"), (2e9, "2 G")],
)
def test_counts_are_written_as_people_do(count: float, text: str) -> None:
    assert units.format_count(count) == text
