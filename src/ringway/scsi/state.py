"""Commands on the state of a unit: REQUEST SENSE, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL.

Spec: SPC-4 r37 and SBC-4 r22, the commands by their names.
"""

from __future__ import annotations

from typing import Final

from ringway.scsi.hot import medium_error
from ringway.scsi.sense import Condition, Sense
from ringway.scsi.table import Kind
from ringway.scsi.task import Task
from ringway.scsi.unit import DISK, LogicalUnit

REQUEST_SENSE_USAGE: Final = "03 01 0000 FF 00"
REQUEST_SENSE_ALLOCATION: Final = slice(4, 5)


@DISK.command("REQUEST SENSE", REQUEST_SENSE_USAGE, Kind.EXEMPT, allocation=REQUEST_SENSE_ALLOCATION)
def request_sense(unit: LogicalUnit, task: Task) -> bytes:
    """:returns: the oldest unit attention, which is reported by that; else the state that the unit is in."""
    condition = unit.take_attention(task.nexus)
    if condition is None and unit.stopped:
        condition = Condition.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED
    return sense_data(task, condition or Condition.NO_ADDITIONAL_SENSE_INFORMATION)


def sense_data(task: Task, condition: Condition) -> bytes:
    """:returns: parameter data for REQUEST SENSE, in the format that its DESC bit asks for."""
    return Sense(condition).encode(descriptor=bool(task.bits(1, 0)))


@DISK.command("START STOP UNIT", "1B 01 00 00 05 00", Kind.WAITS)
def start_stop_unit(unit: LogicalUnit, task: Task) -> bytes:
    """Start or stop. IMMED changes nothing: it is done when it is answered.

    :raises Refusal: the flush before a stop failed; the unit is stopped all the same.
    """
    if task.bits(4, 0):
        unit.start()
        return b""
    try:
        unit.stop(flush=not task.bits(4, 2))
    except OSError as error:
        raise medium_error(error.errno, writing=True) from error
    return b""


@DISK.command("PREVENT ALLOW MEDIUM REMOVAL", "1E 00 0000 01 00")
def prevent_allow_medium_removal(unit: LogicalUnit, task: Task) -> bytes:
    """Agree to both: a disk of ours has no door."""
    return b""
