"""MODE SENSE and MODE SELECT, of six and of ten bytes. Spec: SPC-4 r37, and its Mode parameters."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ringway.scsi.pages import CHANGEABLE, DEFAULTS, ModePages
from ringway.scsi.reply import CheckCondition, invalid_cdb, invalid_parameter
from ringway.scsi.sense import Condition
from ringway.scsi.task import Task
from ringway.scsi.unit import DISK, LogicalUnit

_ALL_PAGES, _ALL_SUBPAGES = 0x3F, 0xFF
_CURRENT, _CHANGEABLE, _DEFAULT = 0, 1, 2
_WP, _DPOFUA = 0x80, 0x10
_LONGLBA: Final = 0x01


# MODE SENSE


@DISK.command("MODE SENSE (6)", "1A 08 FF FF FF 00", allocation=slice(4, 5))
def mode_sense_6(unit: LogicalUnit, task: Task) -> bytes:
    """:raises CheckCondition: no such page, or saved values."""
    descriptor, pages = _block_descriptor(unit, task, long=False), _pages(unit, task)
    size = 3 + len(descriptor) + len(pages)
    return struct.pack(">BxBB", size, _device_specific(unit), len(descriptor)) + descriptor + pages


@DISK.command("MODE SENSE (10)", "5A 18 FF FF 000000 FFFF 00", allocation=slice(7, 9))
def mode_sense_10(unit: LogicalUnit, task: Task) -> bytes:
    """LLBAA allows a long block descriptor. :raises CheckCondition: no such page, or saved values."""
    long = bool(task.bits(1, 4))
    descriptor, pages = _block_descriptor(unit, task, long=long), _pages(unit, task)
    flags = _LONGLBA if long and descriptor else 0
    size = 6 + len(descriptor) + len(pages)
    head = struct.pack(">HxBBxH", size, _device_specific(unit), flags, len(descriptor))
    return head + descriptor + pages


def _device_specific(unit: LogicalUnit) -> int:
    """DPO and FUA are understood. Spec: SBC-4 r22, Mode parameters."""
    return _DPOFUA | (_WP if unit.write_protected else 0)


def _block_descriptor(unit: LogicalUnit, task: Task, *, long: bool) -> bytes:
    """:returns: 16 or 8 bytes, or none if DBD is set."""
    if task.bits(1, 3):
        return b""
    if long:
        return struct.pack(">Q4xI", unit.blocks, unit.geometry.block_bytes)
    return struct.pack(">II", min(unit.blocks, 0xFFFFFFFF), unit.geometry.block_bytes)


def _pages(unit: LogicalUnit, task: Task) -> bytes:
    """:returns: the pages that the CDB asks for, with the values that it asks for.

    :raises CheckCondition: no such page or subpage; saved values, which we do not have.
    """
    page, subpage = task.bits(2, 0, 6), task.cdb[3]
    if subpage not in (0, _ALL_SUBPAGES):
        raise invalid_cdb(3)
    if page not in (*DEFAULTS, _ALL_PAGES):
        raise invalid_cdb(2, 5)
    choices = {_CURRENT: unit.pages.values, _CHANGEABLE: CHANGEABLE, _DEFAULT: DEFAULTS}
    values = choices.get(task.bits(2, 6, 2))
    if values is None:
        raise CheckCondition(Condition.SAVING_PARAMETERS_NOT_SUPPORTED)
    return b"".join(values[code] for code in sorted(values) if page in (code, _ALL_PAGES))


# MODE SELECT


@DISK.command("MODE SELECT (6)", "15 10 0000 FF 00")
def mode_select_6(unit: LogicalUnit, task: Task) -> bytes:
    """:raises Refusal: see :func:`_select`; nothing is changed then."""
    data = task.take_data_out(task.cdb[4], length_field=4)
    return _select(unit, task, data, header=4, descriptor=data[3] if len(data) > 3 else 0, long=False)


@DISK.command("MODE SELECT (10)", "55 10 0000000000 FFFF 00")
def mode_select_10(unit: LogicalUnit, task: Task) -> bytes:
    """:raises Refusal: see :func:`_select`; nothing is changed then."""
    data = task.take_data_out(task.number(7, 9), length_field=7)
    long = len(data) > 4 and bool(data[4] & _LONGLBA)
    return _select(unit, task, data, header=8, descriptor=int.from_bytes(data[6:8]), long=long)


def _select(unit: LogicalUnit, task: Task, data: bytes, *, header: int, descriptor: int, long: bool) -> bytes:
    """Change the pages: all that the list has, or none.

    :param header: bytes before the block descriptors. :param descriptor: bytes of those.
    :raises CheckCondition: a list cut short, another geometry, an unknown page, or a bit that may not change.
    """
    if not task.bits(1, 4):
        raise invalid_cdb(1, 4)  # PF: pages of the vendor's own, which we do not have
    if not data:
        return b""
    if len(data) < header + descriptor:
        raise CheckCondition(Condition.PARAMETER_LIST_LENGTH_ERROR)
    _check_descriptor(unit, data[header : header + descriptor], header, long=long)
    pages = unit.pages
    for offset, page in _split(data, header + descriptor):
        pages = _change(pages, offset, page)
    unit.change_pages(pages, task.nexus)
    return b""


def _check_descriptor(unit: LogicalUnit, descriptor: bytes, offset: int, *, long: bool) -> None:
    """:raises CheckCondition: it is none, or says other than what is: the geometry cannot be selected."""
    if not descriptor:
        return
    if len(descriptor) != (16 if long else 8):
        raise invalid_parameter(offset - 1)
    half = len(descriptor) // 2
    blocks, block_bytes = int.from_bytes(descriptor[:half]), int.from_bytes(descriptor[half + 1 :])
    # No blocks, and all ones, mean "as it is".
    if blocks not in (0, unit.blocks, (1 << 8 * half) - 1) or block_bytes not in (
        0,
        unit.geometry.block_bytes,
    ):
        raise invalid_parameter(offset)


def _split(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """:returns: (offset, page) of each page in a list. :raises CheckCondition: the last one is cut short."""
    while start < len(data):
        page = data[start : start + 2 + data[start + 1]] if start + 1 < len(data) else b""
        if len(page) < 2 or len(page) < 2 + page[1]:
            raise CheckCondition(Condition.PARAMETER_LIST_LENGTH_ERROR)
        yield start, page
        start += len(page)


def _change(pages: ModePages, offset: int, page: bytes) -> ModePages:
    """:raises CheckCondition: no page of ours, or it differs where it may not."""
    page = bytes((page[0] & 0x7F, *page[1:]))  # PS is reserved here
    current = pages.values.get(page[0])
    if current is None:
        raise invalid_parameter(offset)
    if len(page) != len(current):
        raise invalid_parameter(offset + 1)
    if wrong := pages.unchangeable_bit(page):
        raise invalid_parameter(offset + wrong[0], wrong[1])
    return pages.change(page)
