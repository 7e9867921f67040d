"""Sizes, durations, counts and CPUs, as people write and read them. Binary prefixes: 4K is 4096."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from ringway.errors import UsageError

_SHIFTS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE: Final = r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?"
_SECONDS: Final = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_DURATION: Final = r"(\d+(?:\.\d+)?)\s*(us|ms|min|[smhd]?)"
_CPU_RANGE: Final = r"(\d{1,5})(?:-(\d{1,5}))?"
MAX_CPUS: Final = 1024  #: of sched_setaffinity's usual set
MAX_SIZE_BYTES: Final = (1 << 63) - 1  #: what a file offset can say


def parse_size(text: str) -> int:
    """Read a size: ``4G``, ``512 MiB``, ``1.5T``, ``4096``.

    :returns: bytes.
    :raises UsageError: no size, no whole number of bytes, or more than a file can have.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise UsageError(f"'{text}' is not a size", hint="write it as 4G, 512M, 1.5T or in plain bytes")
    size = Decimal(match[1]) * (1 << _SHIFTS[match[2].lower()])
    if size > MAX_SIZE_BYTES:
        raise UsageError(f"'{text}' is too large", hint="the largest size is 8191P")
    if size != int(size):
        raise UsageError(f"'{text}' is no whole number of bytes", hint="take a smaller unit")
    return int(size)


def parse_duration(text: str) -> float:
    """Read a duration: ``500ms``, ``30s``, ``2m``, ``1h``, or plain seconds.

    :returns: seconds.
    :raises UsageError: no duration.
    """
    match = re.fullmatch(_DURATION, text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"'{text}' is not a duration", hint="write it as 500ms, 30s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read a list of CPUs: ``0,2-4``. :raises UsageError: no such list, or a number out of range."""
    ranges = [re.fullmatch(_CPU_RANGE, part, re.ASCII) for part in text.split(",")]
    bounds = [(int(match[1]), int(match[2] or match[1])) for match in ranges if match]
    if len(bounds) < len(ranges):
        raise UsageError(f"'{text}' is no list of CPUs", hint="write it as 0,2-3")
    if any(not 0 <= low <= high < MAX_CPUS for low, high in bounds):
        raise UsageError(f"'{text}' is no list of CPUs from 0 to {MAX_CPUS - 1}", hint="write it as 0,2-3")
    return tuple(cpu for low, high in bounds for cpu in range(low, high + 1))


def format_size(size_bytes: float) -> str:
    """Write bytes for a person: ``4 GiB``, ``1.5 TiB``, ``512 B``; three figures at most."""
    value, prefix = float(size_bytes), ""
    for prefix in ("", "Ki", "Mi", "Gi", "Ti", "Pi"):
        if abs(value) < 1023.95 or prefix == "Pi":
            break
        value /= 1024
    return f"{_three_figures(value)} {prefix}B"


def format_rate(bytes_per_s: float) -> str:
    """Write a throughput: ``812 MiB/s``."""
    return f"{format_size(bytes_per_s)}/s"


def format_count(count: float) -> str:
    """Write a count for a person: ``950``, ``12.3 k``, ``1.4 M`` (decimal prefixes)."""
    value = float(count)
    for prefix in ("", " k", " M"):
        if abs(value) < 999.95:
            return f"{_three_figures(value)}{prefix}"
        value /= 1000
    return f"{_three_figures(value)} G"


def format_duration(seconds: float) -> str:
    """Write a duration: ``8.2 µs``, ``1.5 ms``, ``12.0 s``, ``3 min 5 s``, ``2 h 4 min``."""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (0.9995, 1e3, "ms"), (59.95, 1.0, "s")):
        if seconds < limit:
            return f"{_three_figures(seconds * factor)} {unit}"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _three_figures(value: float) -> str:
    """``950``, ``12.3``, ``4`` (no trailing zero)."""
    text = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}"
    return text.removesuffix(".0")
