"""What a target says of itself: its LUNs, commands, task management functions and logs.

Spec: SPC-4 r37, the commands by their names, and Log parameters.
"""

from __future__ import annotations

import struct
from typing import Final

from ringway.scsi import lun
from ringway.scsi.reply import invalid_cdb
from ringway.scsi.sense import Condition
from ringway.scsi.table import SERVICE_ACTION_OPCODES, Kind, Row
from ringway.scsi.task import Task
from ringway.scsi.tasks import SUPPORTED, encode
from ringway.scsi.unit import DISK, Inventory, LogicalUnit

REPORT_LUNS_USAGE: Final = "A0 00 FF 000000 FFFFFFFF 00 00"
REPORT_LUNS_ALLOCATION: Final = slice(6, 10)


@DISK.command("REPORT LUNS", REPORT_LUNS_USAGE, Kind.EXEMPT, allocation=REPORT_LUNS_ALLOCATION)
def report_luns(unit: LogicalUnit, task: Task) -> bytes:
    """:raises CheckCondition: an unknown SELECT REPORT."""
    return list_luns(unit.inventory, task)


def list_luns(inventory: Inventory, task: Task) -> bytes:
    """The units, the well-known unit, or both; the nexus knows the inventory then."""
    selected = task.cdb[2]
    if selected > 2:
        raise invalid_cdb(2)
    inventory.clear_attention(task.nexus, Condition.REPORTED_LUNS_DATA_HAS_CHANGED)
    units = () if selected == 1 else inventory.luns()
    known = (lun.REPORT_LUNS,) if selected else ()
    names = b"".join(lun.encode(each).ljust(8, b"\0") for each in (*units, *known))
    return struct.pack(">I4x", len(names)) + names


# REPORT SUPPORTED OPERATION CODES

_NOT_SUPPORTED, _SUPPORTED = 0b001, 0b011
#: A command timeouts descriptor that names no time-out.
_TIMEOUTS: Final = struct.pack(">H10x", 10)


@DISK.command("REPORT SUPPORTED OPERATION CODES", "A3 0C 87 FF FFFF FFFFFFFF 00 00", allocation=slice(6, 10))
def report_supported_operation_codes(unit: LogicalUnit, task: Task) -> bytes:
    """Answer from the table of commands.

    :raises CheckCondition: an unknown REPORTING OPTIONS, or one that does not fit the operation code.
    """
    with_timeouts, option = bool(task.bits(2, 7)), task.bits(2, 0, 3)
    if option == 0:
        rows = b"".join(_command_descriptor(row, with_timeouts) for row in DISK)
        return struct.pack(">I", len(rows)) + rows
    if option > 3:
        raise invalid_cdb(2, 2)
    return _one_command(_asked_for(task, option), with_timeouts)


def _command_descriptor(row: Row[LogicalUnit], with_timeouts: bool) -> bytes:
    flags = with_timeouts << 1 | (row.service_action is not None)
    head = struct.pack(">BxHxBH", row.opcode, row.service_action or 0, flags, len(row.usage))
    return head + (_TIMEOUTS if with_timeouts else b"")


def _asked_for(task: Task, option: int) -> Row[LogicalUnit] | None:
    """:raises CheckCondition: option 1 takes no service action, option 2 must have one; 3 takes either."""
    opcode, action = task.cdb[3], task.number(4, 6)
    has_actions = opcode in SERVICE_ACTION_OPCODES
    if (option == 1 and has_actions) or (option == 2 and not has_actions and DISK.get(opcode, None)):
        raise invalid_cdb(3)
    if option == 3 and action and not has_actions:
        return None
    return DISK.get(opcode, action if has_actions else None)


def _one_command(row: Row[LogicalUnit] | None, with_timeouts: bool) -> bytes:
    if row is None:
        return struct.pack(">xBH", _NOT_SUPPORTED, 0)
    head = struct.pack(">xBH", with_timeouts << 7 | _SUPPORTED, len(row.usage))
    return head + row.usage + (_TIMEOUTS if with_timeouts else b"")


# REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS


@DISK.command(
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "A3 0D 80 000000 FFFFFFFF 00 00", allocation=slice(6, 10)
)
def report_supported_task_management_functions(unit: LogicalUnit, task: Task) -> bytes:
    """REPD asks for the extended form, which has time-outs: none."""
    functions = encode(SUPPORTED)
    return functions + (b"\0\x0c" + bytes(12) if task.bits(2, 7) else b"\0\0")


# LOG SENSE

_SUPPORTED_LOG_PAGES: Final = 0x00
_ALL_SUBPAGES: Final = 0xFF


@DISK.command("LOG SENSE", "4D 00 FF FF 00 FFFF FFFF 00", allocation=slice(7, 9))
def log_sense(unit: LogicalUnit, task: Task) -> bytes:
    """List the log pages, of which this list is the only one; with subpages FF, and their subpages.

    :raises CheckCondition: any other page.
    """
    page, subpage = task.bits(2, 0, 6), task.cdb[3]
    if page != _SUPPORTED_LOG_PAGES:
        raise invalid_cdb(2, 5)
    if task.number(5, 7):
        raise invalid_cdb(5)
    if subpage == 0:
        return struct.pack(">BBHB", page, 0, 1, _SUPPORTED_LOG_PAGES)
    if subpage != _ALL_SUBPAGES:
        raise invalid_cdb(3)
    listed = bytes((_SUPPORTED_LOG_PAGES, 0, _SUPPORTED_LOG_PAGES, _ALL_SUBPAGES))
    return struct.pack(">BBH", 0x40 | page, subpage, len(listed)) + listed
