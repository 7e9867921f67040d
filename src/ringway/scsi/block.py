"""Commands on blocks that are too rare, or too careful, for the data path.

Spec: SBC-4 r22, the commands by their names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ringway.scsi.hot import medium_error
from ringway.scsi.reply import CheckCondition, invalid_cdb
from ringway.scsi.sense import Condition
from ringway.scsi.table import Kind
from ringway.scsi.task import Task
from ringway.scsi.unit import DISK, LogicalUnit, Medium
from ringway.scsi.vpd import MAX_TRANSFER_BYTES

#: Bytes of the medium that are held in memory at once.
CHUNK_BYTES: Final = 1 << 20

#: The group code of an operation code, and where its CDB has the first block and their number.
_RANGE_FIELDS: Final = {0b001: ((2, 6), (7, 9)), 0b101: ((2, 6), (6, 10)), 0b100: ((2, 10), (10, 14))}

_READ: Final = Kind.READS | Kind.WAITS
_WRITE: Final = Kind.WRITES | Kind.WAITS

_BYTCHK_NONE, _BYTCHK_ALL, _BYTCHK_ONE_BLOCK = 0b00, 0b01, 0b11


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes of the medium."""

    offset: int
    length: int

    def chunks(self) -> Iterator[Extent]:
        """:returns: the range in pieces of at most CHUNK_BYTES."""
        for start in range(0, self.length, CHUNK_BYTES):
            yield Extent(self.offset + start, min(CHUNK_BYTES, self.length - start))


def _extent(unit: LogicalUnit, lba: int, blocks: int) -> Extent:
    """:raises CheckCondition: beyond the end. A range of no blocks may lie just at the end."""
    if lba + blocks > unit.blocks:
        raise CheckCondition(Condition.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    return Extent(lba * unit.geometry.block_bytes, blocks * unit.geometry.block_bytes)


def _range_fields(task: Task) -> tuple[tuple[int, int], tuple[int, int]]:
    return _RANGE_FIELDS[task.cdb[0] >> 5]


def _cdb_extent(unit: LogicalUnit, task: Task) -> Extent:
    """:raises CheckCondition: beyond the end, or more than MAXIMUM TRANSFER LENGTH allows.

    The limit holds without data as well (BYTCHK 00b): all others wait while the medium is read.
    """
    lba, blocks = _range_fields(task)
    extent = _extent(unit, task.number(*lba), task.number(*blocks))
    if extent.length > MAX_TRANSFER_BYTES:
        raise invalid_cdb(blocks[0])
    return extent


def _transfer(task: Task, size: int) -> bytes:
    """:returns: ``size`` bytes of data-out. :raises Refusal: they are not there."""
    _, (length_field, _) = _range_fields(task)
    return task.take_data_out(size, length_field=length_field)


def read_medium(medium: Medium, extent: Extent) -> bytes:
    """:raises Refusal: the medium failed."""
    try:
        return medium.read(extent.offset, extent.length)
    except OSError as error:
        raise medium_error(error.errno, writing=False) from error


def write_medium(medium: Medium, offset: int, data: bytes, *, fua: bool) -> None:
    """:raises Refusal: the medium failed."""
    try:
        medium.write(offset, data, fua=fua)
    except OSError as error:
        raise medium_error(error.errno, writing=True) from error


def first_difference(one: bytes, other: bytes) -> int | None:
    """:returns: the first index at which two strings of the same length differ, or ``None``."""
    if one == other:
        return None
    low, high = 0, len(one)  # equal before low, different before high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _require_equal(found: bytes, expected: bytes, *, position: int = 0) -> None:
    """:raises CheckCondition: MISCOMPARE, with the first differing byte's offset in the transfer."""
    difference = first_difference(found, expected)
    if difference is not None:
        miscompare = Condition.MISCOMPARE_DURING_VERIFY_OPERATION
        raise CheckCondition(miscompare, information=position + difference)


# VERIFY


@DISK.command("VERIFY (10)", "2F 16 FFFFFFFF 00 FFFF 00", _READ)
@DISK.command("VERIFY (16)", "8F 16 FFFFFFFFFFFFFFFF FFFFFFFF 00 00", _READ)
@DISK.command("VERIFY (12)", "AF 16 FFFFFFFF FFFFFFFF 00 00", _READ)
def verify(unit: LogicalUnit, task: Task) -> bytes:
    """Read the medium, and compare it with what the initiator sent, if it sent something.

    :raises Refusal: a miscompare, a medium error, a range beyond the end, more data-out than we carry.
    """
    extent = _cdb_extent(unit, task)
    _compare(unit.medium, extent, _expected(unit, task, extent))
    return b""


def _expected(unit: LogicalUnit, task: Task, extent: Extent) -> bytes:
    """:returns: what to compare with: all of it, one block that repeats, or nothing. Spec: BYTCHK field."""
    if extent.length == 0:
        return b""
    sizes = {
        _BYTCHK_NONE: 0,
        _BYTCHK_ALL: extent.length,
        _BYTCHK_ONE_BLOCK: unit.geometry.block_bytes,
    }
    size = sizes.get(task.bits(1, 1, 2))
    if size is None:
        raise invalid_cdb(1, 2)
    return _transfer(task, size)


def _compare(medium: Medium, extent: Extent, expected: bytes) -> None:
    """Read an extent; compare it with ``expected``, repeated as often as it fits, unless that is empty.

    :raises Refusal: a miscompare, or a medium error.
    """
    for chunk in extent.chunks():
        found, position = read_medium(medium, chunk), chunk.offset - extent.offset
        if expected:
            _require_equal(found, _repeated(expected, position, chunk.length), position=position)


def _repeated(pattern: bytes, position: int, length: int) -> bytes:
    """:returns: ``length`` bytes at ``position`` of a pattern without end. Both are whole blocks."""
    if position + length <= len(pattern):
        return pattern[position : position + length]
    return pattern * (length // len(pattern))


# WRITE AND VERIFY


@DISK.command("WRITE AND VERIFY (10)", "2E 12 FFFFFFFF 00 FFFF 00", _WRITE)
@DISK.command("WRITE AND VERIFY (16)", "8E 12 FFFFFFFFFFFFFFFF FFFFFFFF 00 00", _WRITE)
@DISK.command("WRITE AND VERIFY (12)", "AE 12 FFFFFFFF FFFFFFFF 00 00", _WRITE)
def write_and_verify(unit: LogicalUnit, task: Task) -> bytes:
    """Write through to the medium, read it back, and compare if BYTCHK says so (it has one bit here).

    Other writes of the range wait, or theirs would be taken for a miscompare.

    :raises Refusal: as VERIFY; Busy when others held the range for too long, and nothing is written.
    """
    extent = _cdb_extent(unit, task)
    data = _transfer(task, extent.length)
    if data:
        medium = unit.medium
        with unit.host.lock_range(extent.offset, extent.length, reads=False):
            write_medium(medium, extent.offset, data, fua=True)
            _compare(medium, extent, data if task.bits(1, 1) else b"")
    return b""


# COMPARE AND WRITE


@DISK.command("COMPARE AND WRITE", "89 18 FFFFFFFFFFFFFFFF 000000 FF 00 00", _WRITE)
def compare_and_write(unit: LogicalUnit, task: Task) -> bytes:
    """Write if the blocks are what the initiator believes, as one step to all others.

    :raises Refusal: a miscompare, or Busy; nothing is written in either case.
    """
    extent = _extent(unit, task.number(2, 10), task.number(13, 14))
    data = task.take_data_out(2 * extent.length, length_field=13)
    expected, new = data[: extent.length], data[extent.length :]
    if new:
        medium = unit.medium
        with unit.host.lock_range(extent.offset, extent.length, reads=True):
            _require_equal(read_medium(medium, extent), expected)
            write_medium(medium, extent.offset, new, fua=bool(task.bits(1, 3)))
    return b""


# READ CAPACITY


@DISK.command("READ CAPACITY (10)", "25 00 00000000 0000 00 00")
def read_capacity_10(unit: LogicalUnit, task: Task) -> bytes:
    """A last block that four bytes do not hold is told as all ones: ask READ CAPACITY (16)."""
    return struct.pack(">II", min(unit.blocks - 1, 0xFFFFFFFF), unit.geometry.block_bytes)


@DISK.command("READ CAPACITY (16)", "9E 10 0000000000000000 FFFFFFFF 00 00", allocation=slice(10, 14))
def read_capacity_16(unit: LogicalUnit, task: Task) -> bytes:
    """Discarded blocks read as zeros (LBPRZ), if blocks can be discarded at all (LBPME)."""
    provisioning = 0xC000 if unit.medium.discard else 0
    exponent = unit.geometry.physical_exponent
    return struct.pack(">QIxBH16x", unit.blocks - 1, unit.geometry.block_bytes, exponent, provisioning)
