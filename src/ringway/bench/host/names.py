"""What the endpoints of a benchmark are called, on every side alike."""

from __future__ import annotations

from typing import Final

DISK_BYTES: Final = 1 << 16


def name(number: int) -> str:
    """An endpoint's name."""
    return f"bench{number}"


def backstore(number: int) -> str:
    """A backstore's name."""
    return f"disk{number}"


def wwpn(number: int) -> str:
    """An endpoint's WWPN."""
    return f"naa.5001405{number:09x}"
