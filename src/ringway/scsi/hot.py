"""The commands that the data path runs by itself, and what is said when it could not.

They come here because of the gate, and go back as soon as they may run. Spec: SBC-4 r22.
"""

from __future__ import annotations

import errno
from typing import Final

from ringway.scsi.reply import RESUME, Busy, CheckCondition, Delivery, Refusal, Resume, Undelivered
from ringway.scsi.sense import Condition
from ringway.scsi.table import Kind, Row
from ringway.scsi.task import Task
from ringway.scsi.unit import DISK, LogicalUnit

_READ: Final = Kind.HOT | Kind.READS
_WRITE: Final = Kind.HOT | Kind.WRITES


@DISK.command("TEST UNIT READY", "00 00 00 00 00 00", Kind.HOT)
@DISK.command("READ (6)", "08 1F FF FF FF 00", _READ)
@DISK.command("WRITE (6)", "0A 1F FF FF FF 00", _WRITE)
@DISK.command("READ (10)", "28 18 FFFFFFFF 00 FFFF 00", _READ)
@DISK.command("WRITE (10)", "2A 18 FFFFFFFF 00 FFFF 00", _WRITE)
@DISK.command("SYNCHRONIZE CACHE (10)", "35 02 FFFFFFFF 00 FFFF 00", Kind.HOT)
@DISK.command("WRITE SAME (10)", "41 08 FFFFFFFF 00 FFFF 00", _WRITE)
@DISK.command("UNMAP", "42 00 00000000 00 FFFF 00", _WRITE)
@DISK.command("READ (16)", "88 18 FFFFFFFFFFFFFFFF FFFFFFFF 00 00", _READ)
@DISK.command("WRITE (16)", "8A 18 FFFFFFFFFFFFFFFF FFFFFFFF 00 00", _WRITE)
@DISK.command("SYNCHRONIZE CACHE (16)", "91 02 FFFFFFFFFFFFFFFF FFFFFFFF 00 00", Kind.HOT)
@DISK.command("WRITE SAME (16)", "93 09 FFFFFFFFFFFFFFFF FFFFFFFF 00 00", _WRITE)
@DISK.command("READ (12)", "A8 18 FFFFFFFF FFFFFFFF 00 00", _READ)
@DISK.command("WRITE (12)", "AA 18 FFFFFFFF FFFFFFFF 00 00", _WRITE)
def run_hot(unit: LogicalUnit, task: Task) -> Resume:
    """Let the data path go on: the unit has nothing against it."""
    return RESUME


#: What the words of ``_core.Command.failure`` mean to an initiator.
_FAILURES: Final = {
    "range": Condition.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
    "read_only": Condition.WRITE_PROTECTED,
    "field": Condition.INVALID_FIELD_IN_CDB,
    "parameter": Condition.INVALID_FIELD_IN_PARAMETER_LIST,
}


def failed(row: Row[LogicalUnit], task: Task) -> Refusal:
    """Say why the data path failed a command; unit attentions stay pending, for it did run.

    :raises CheckCondition: it refused a field, and the table knows which.
    """
    if task.failure == "overrun":
        return Undelivered(Delivery.OVERRUN)
    if task.failure == "no_lun":  # known here and not there: it comes or goes just now
        return Busy()
    if task.failure == "field":
        row.check_fields(task.cdb)
    word, _, number = task.failure.partition(":")
    if word == "errno" and number.isdecimal():
        return medium_error(int(number), writing=not row.kind & Kind.READS)
    return CheckCondition(_FAILURES.get(word, Condition.INTERNAL_TARGET_FAILURE))


def medium_error(number: int | None, *, writing: bool) -> Refusal:
    """What an errno of the medium is to an initiator.

    No block is named: a guest would take all before it for done.
    """
    if number == errno.ECANCELED:
        return Undelivered(Delivery.ABORTED)
    if writing and number in (errno.ENOSPC, errno.EDQUOT):
        # Spec: SBC-4 r22, Logical block provisioning: resource exhaustion.
        return CheckCondition(Condition.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)
    return CheckCondition(Condition.WRITE_ERROR if writing else Condition.UNRECOVERED_READ_ERROR)
