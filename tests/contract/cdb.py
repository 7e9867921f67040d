"""Command descriptor blocks, written down once. Spec: SBC-4 r22, SPC-4 r37."""

from __future__ import annotations

import struct
from typing import Final

TEST_UNIT_READY: Final = bytes(6)
READ_CAPACITY_10: Final = bytes([0x25]) + bytes(9)

GOOD: Final = 0
CHECK_CONDITION: Final = 2
OVERRUN: Final = 1

_READ: Final = {6: 0x08, 10: 0x28, 12: 0xA8, 16: 0x88}
_WRITE: Final = {6: 0x0A, 10: 0x2A, 12: 0xAA, 16: 0x8A}


def _transfer(opcode: int, size: int, lba: int, blocks: int, fua: bool) -> bytes:
    flags = 8 if fua else 0
    match size:
        case 6:
            return bytes([opcode]) + lba.to_bytes(3) + bytes([blocks % 256, 0])
        case 10:
            return struct.pack(">BBIBHB", opcode, flags, lba, 0, blocks, 0)
        case 12:
            return struct.pack(">BBIIBB", opcode, flags, lba, blocks, 0, 0)
        case _:
            return struct.pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)


def read(lba: int, blocks: int, *, size: int = 10, fua: bool = False) -> bytes:
    """READ (6), (10), (12) or (16)."""
    return _transfer(_READ[size], size, lba, blocks, fua)


def write(lba: int, blocks: int, *, size: int = 10, fua: bool = False) -> bytes:
    """WRITE (6), (10), (12) or (16)."""
    return _transfer(_WRITE[size], size, lba, blocks, fua)


def synchronize_cache(*, size: int = 10) -> bytes:
    """SYNCHRONIZE CACHE (10) or (16), of everything."""
    return bytes([0x35 if size == 10 else 0x91]) + bytes(size - 1)


def write_same(lba: int, blocks: int, *, size: int = 16, unmap: bool = False, no_data: bool = False) -> bytes:
    """WRITE SAME (10) or (16); ``no_data`` is NDOB, which (10) has not."""
    flags = (8 if unmap else 0) | (1 if no_data else 0)
    if size == 10:
        return struct.pack(">BBIBHB", 0x41, flags, lba, 0, blocks, 0)
    return struct.pack(">BBQIBB", 0x93, flags, lba, blocks, 0, 0)


def unmap(parameters: bytes) -> bytes:
    """UNMAP with a parameter list of that length."""
    return struct.pack(">BB4xBHB", 0x42, 0, 0, len(parameters), 0)


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    """The parameter list of an UNMAP of (LBA, blocks) ranges."""
    body = b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)
    return struct.pack(">HH4x", len(body) + 6, len(body)) + body


def inquiry(allocation: int, *, page: int | None = None) -> bytes:
    """INQUIRY, of a VPD page or of the standard data."""
    return struct.pack(">BBBHB", 0x12, page is not None, page or 0, allocation, 0)


def compare_and_write(lba: int, blocks: int) -> bytes:
    """COMPARE AND WRITE: data-out has what must be there, then what is to be."""
    return struct.pack(">BBQ3xBBB", 0x89, 0, lba, blocks, 0, 0)


def verify(lba: int, blocks: int) -> bytes:
    """VERIFY (10) with BYTCHK 01b: data-out is compared."""
    return struct.pack(">BBIBHB", 0x2F, 2, lba, 0, blocks, 0)


def write_and_verify(lba: int, blocks: int) -> bytes:
    """WRITE AND VERIFY (10) with BYTCHK: what was written is read back and compared."""
    return struct.pack(">BBIBHB", 0x2E, 2, lba, 0, blocks, 0)
