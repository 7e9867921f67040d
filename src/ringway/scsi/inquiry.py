"""INQUIRY: what a logical unit is. Spec: SPC-4 r37, INQUIRY."""

from __future__ import annotations

import struct
from typing import Final

from ringway.scsi import vpd
from ringway.scsi.identity import PRODUCT, REVISION, VENDOR
from ringway.scsi.reply import invalid_cdb
from ringway.scsi.table import Kind
from ringway.scsi.task import Task
from ringway.scsi.unit import DISK, LogicalUnit

USAGE: Final = "12 01 FF FFFF 00"
ALLOCATION: Final = slice(3, 5)

DIRECT_ACCESS: Final = 0x00
WELL_KNOWN: Final = 0x1E
ABSENT: Final = 0x7F  #: qualifier 3: the target cannot have a unit here; type 1F: none

_SPC_4: Final = 0x06
_HISUP, _FORMAT_2 = 0x10, 0x02
_CMDQUE: Final = 0x02
#: Version descriptors: SAM-5, SPC-4 and SBC-3, no version claimed.
_STANDARDS: Final = struct.pack(">3H", 0x00A0, 0x0460, 0x04C0)


def standard_data(peripheral: int) -> bytes:
    """:returns: 96 bytes of standard INQUIRY data.

    :param peripheral: peripheral qualifier and device type.
    """
    head = struct.pack(">BxBBBxxB", peripheral, _SPC_4, _HISUP | _FORMAT_2, 96 - 5, _CMDQUE)
    return (head + VENDOR + PRODUCT + REVISION).ljust(58, b"\0") + _STANDARDS.ljust(38, b"\0")


@DISK.command("INQUIRY", USAGE, Kind.EXEMPT, allocation=ALLOCATION)
def inquiry(unit: LogicalUnit, task: Task) -> bytes:
    """:raises CheckCondition: a VPD page that we do not have."""
    page = vpd.PAGES.get(task.cdb[2])
    if not task.bits(1, 0):
        return without_vpd(task, DIRECT_ACCESS)
    if page is None:
        raise invalid_cdb(2)
    return page_data(DIRECT_ACCESS, task.cdb[2], page(unit))


def without_vpd(task: Task, peripheral: int) -> bytes:
    """INQUIRY for what has no vital product data but the list of them.

    :raises CheckCondition: a page code.
    """
    if task.cdb[2]:
        raise invalid_cdb(2)
    if task.bits(1, 0):
        return page_data(peripheral, vpd.SUPPORTED_PAGES, bytes([vpd.SUPPORTED_PAGES]))
    return standard_data(peripheral)


def page_data(peripheral: int, code: int, body: bytes) -> bytes:
    """:returns: a VPD page with its header."""
    return struct.pack(">BBH", peripheral, code, len(body)) + body
