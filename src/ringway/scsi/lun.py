"""Logical unit numbers, single level. Spec: SAM-5 r21, Logical unit number (LUN)."""

from __future__ import annotations

from typing import Final

#: The well-known logical unit that reports the others, as a number of its own kind.
REPORT_LUNS: Final = 0xC101
MAX_LUN: Final = 0x3FFF

_METHOD: Final = 0xC0
_PERIPHERAL, _FLAT = 0x00, 0x40


def encode(number: int) -> bytes:
    """:returns: the two bytes of the first level: peripheral addressing up to 255, flat beyond.

    Linux takes the two bytes of an event for the same number as those of REPORT LUNS: both come from here.
    """
    return (number if number < 256 or number == REPORT_LUNS else _FLAT << 8 | number).to_bytes(2)


def decode(first_level: bytes) -> int | None:
    """:returns: 0 to MAX_LUN, REPORT_LUNS, or ``None``: an address of a kind that we have no units at."""
    value = int.from_bytes(first_level)
    if value == REPORT_LUNS:
        return value
    method = first_level[0] & _METHOD
    if method == _FLAT:
        return value & MAX_LUN
    return value if method == _PERIPHERAL and value < 256 else None
