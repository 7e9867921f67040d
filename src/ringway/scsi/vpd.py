"""Vital product data: one function a page, in a table. Spec: SPC-4 r37 and SBC-4 r22, Vital product data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from ringway.scsi.identity import PRODUCT, VENDOR
from ringway.scsi.unit import LogicalUnit

SUPPORTED_PAGES: Final = 0x00

#: One command moves no more: what a guest's 128 descriptors reach, and what a bounce buffer may take.
MAX_TRANSFER_BYTES: Final = 4 << 20
#: One WRITE SAME writes no more, or the other commands would wait for it.
MAX_WRITE_SAME_BYTES: Final = 32 << 20
#: Descriptors in the parameter list of one UNMAP.
MAX_UNMAP_DESCRIPTORS: Final = 256
#: The CDB has one byte for it; twice as many fit into ``_core.MAX_SLOW_DATA``.
MAX_COMPARE_AND_WRITE_BLOCKS: Final = 255

Page = Callable[[LogicalUnit], bytes]


def supported_pages(unit: LogicalUnit) -> bytes:
    """Page 00: the codes of all pages."""
    return bytes(sorted(PAGES))


def unit_serial_number(unit: LogicalUnit) -> bytes:
    """Page 80."""
    return unit.identity.serial.encode("ascii")


# Page 83

_BINARY, _ASCII = 0x1, 0x2
_UNIT, _PORT = 0x00, 0x10
_T10_VENDOR, _NAA, _RELATIVE_PORT = 0x1, 0x3, 0x4


def _designator(code_set: int, kind: int, name: bytes) -> bytes:
    return struct.pack(">BBxB", code_set, kind, len(name)) + name


def device_identification(unit: LogicalUnit) -> bytes:
    """Page 83: the unit's names, and those of the port on which it is asked.

    There is no target port group: INQUIRY says that we have none (TPGS).
    """
    who = unit.identity
    return b"".join(
        (
            _designator(_BINARY, _UNIT | _NAA, who.unit),
            _designator(_ASCII, _UNIT | _T10_VENDOR, VENDOR + PRODUCT + who.serial.encode("ascii")),
            _designator(_BINARY, _PORT | _NAA, who.port),
            _designator(_BINARY, _PORT | _RELATIVE_PORT, struct.pack(">HH", 0, 1)),
        )
    )


def extended_inquiry(unit: LogicalUnit) -> bytes:
    """Page 86: SIMPSUP, a volatile cache (V_SUP), REPORT LUNS clears its attention on all units (LUICLR)."""
    return struct.pack(">xBBB56x", 0x01, 0x01, 0x01)


def block_limits(unit: LogicalUnit) -> bytes:
    """Page B0. WSNZ: WRITE SAME of no blocks, "to the end", is refused.

    Zero means "not reported", for UNMAP "not supported".
    """
    block, discard = unit.geometry.block_bytes, unit.medium.discard
    return struct.pack(
        ">BBHIIIIIIIQ20x",
        0x01,
        MAX_COMPARE_AND_WRITE_BLOCKS,
        unit.geometry.physical_block_bytes // block,  # optimal transfer length granularity
        MAX_TRANSFER_BYTES // block,
        0,  # optimal transfer length
        0,  # maximum prefetch length
        0xFFFFFFFF if discard else 0,  # blocks of one UNMAP
        MAX_UNMAP_DESCRIPTORS if discard else 0,
        unit.geometry.discard_bytes // block if discard else 0,
        0x80000000 if discard else 0,  # UGAVALID: the granules begin at block 0
        MAX_WRITE_SAME_BYTES // block,
    )


def block_device_characteristics(unit: LogicalUnit) -> bytes:
    """Page B1: a medium that does not rotate."""
    return struct.pack(">H58x", 0x0001)


def logical_block_provisioning(unit: LogicalUnit) -> bytes:
    """Page B2: UNMAP and WRITE SAME discard (LBPU, LBPWS, LBPWS10), to zeros (LBPRZ); thin, or nothing."""
    return bytes((0, 0xE4, 0x02, 0)) if unit.medium.discard else bytes(4)


#: Page code -> the page's data behind its header.
PAGES: Final[dict[int, Page]] = {
    SUPPORTED_PAGES: supported_pages,
    0x80: unit_serial_number,
    0x83: device_identification,
    0x86: extended_inquiry,
    0xB0: block_limits,
    0xB1: block_device_characteristics,
    0xB2: logical_block_provisioning,
}
