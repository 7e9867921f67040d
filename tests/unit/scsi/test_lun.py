"""Logical unit numbers in their two bytes."""

from __future__ import annotations

import pytest

from ringway.scsi import lun


@pytest.mark.parametrize(
    ("first_level", "number"),
    [
        ("0000", 0),
        ("00ff", 255),
        ("4000", 0),
        ("4005", 5),
        ("4100", 256),
        ("7fff", 16383),
        ("c101", lun.REPORT_LUNS),
        ("0101", None),
        ("8000", None),
        ("c102", None),
    ],
)
def test_decoding(first_level: str, number: int | None) -> None:
    assert lun.decode(bytes.fromhex(first_level)) == number


def test_every_number_survives_the_way() -> None:
    numbers = (*range(lun.MAX_LUN + 1), lun.REPORT_LUNS)
    assert all(lun.decode(lun.encode(number)) == number for number in numbers)


def test_small_numbers_are_peripheral_and_large_ones_flat() -> None:
    assert (lun.encode(255), lun.encode(256)) == (b"\x00\xff", b"\x41\x00")
