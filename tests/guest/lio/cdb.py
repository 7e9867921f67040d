"""Command descriptor blocks of these tests. Spec: SBC-4 r22, SPC-4 r37."""

from __future__ import annotations

import struct
from typing import Final

TEST_UNIT_READY: Final = bytes(6)
INQUIRY: Final = bytes.fromhex("12 00 00 00 24 00")
REPORT_LUNS: Final = struct.pack(">B5xIBB", 0xA0, 256, 0, 0)
READ_CAPACITY: Final = bytes([0x25]) + bytes(9)
SYNCHRONIZE_CACHE: Final = bytes([0x35]) + bytes(9)


def vpd(page: int) -> bytes:
    """INQUIRY of a page of vital product data."""
    return bytes([0x12, 1, page, 0, 255, 0])


def read(lba: int, blocks: int) -> bytes:
    """READ (10)."""
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write(lba: int, blocks: int) -> bytes:
    """WRITE (10)."""
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, blocks, 0)
