"""A SCSI target: logical units at numbers, and the dispatch of commands to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ringway.scsi import inquiry, lun, report, state
from ringway.scsi.hot import failed
from ringway.scsi.reply import Outcome, Refusal
from ringway.scsi.sense import Condition
from ringway.scsi.table import Kind, Table
from ringway.scsi.task import Nexus, Task
from ringway.scsi.unit import DISK, LogicalUnit


class Target:
    """The units behind one target number, and what answers where there is none.

    Readers see one state or the next: the map of units is replaced, never changed.
    """

    def __init__(self) -> None:
        self._units: Mapping[int, LogicalUnit] = MappingProxyType({})
        self._lock = threading.Lock()

    @property
    def units(self) -> Mapping[int, LogicalUnit]:
        """LUN -> unit, as they are now."""
        return self._units

    def get(self, number: int | None) -> LogicalUnit | None:
        """:returns: the unit at a LUN, if there is one."""
        return None if number is None else self._units.get(number)

    def add(self, number: int, unit: LogicalUnit) -> None:
        """Put a unit at a free number."""
        with self._lock:
            self._units = MappingProxyType({**self._units, number: unit})

    def remove(self, number: int) -> LogicalUnit:
        """:raises KeyError: there is none."""
        with self._lock:
            units = dict(self._units)
            unit = units.pop(number)
            self._units = MappingProxyType(units)
            return unit

    def luns(self) -> Sequence[int]:
        """:returns: the numbers that have a unit, ascending."""
        return sorted(self._units)

    def lose_nexus(self, nexus: Nexus) -> None:
        """An initiator port was reset or went away; it concerns nobody else. Spec: SAM-5 r21."""
        for unit in self._units.values():
            unit.establish(Condition.I_T_NEXUS_LOSS_OCCURRED, only=nexus)

    def power_on(self, nexus: Nexus) -> None:
        """Another guest came by ``nexus``: every unit is as after a power on. A reset alone is less: T11."""
        for unit in self._units.values():
            unit.power_on(nexus)

    def clear_attention(self, nexus: Nexus, condition: Condition) -> None:
        """Drop a unit attention of ``nexus`` on every unit."""
        for unit in self._units.values():
            unit.clear_attention(nexus, condition)

    def kind_of(self, number: int | None, cdb: bytes) -> Kind:
        """:returns: what is known of a command; nothing, if there is no such unit or command."""
        if self.get(number) is None:
            return Kind.PLAIN
        try:
            return DISK.find(cdb).kind
        except Refusal:
            return Kind.PLAIN

    def execute(self, number: int | None, task: Task, only: LogicalUnit | None = None) -> Outcome:
        """Run a command.

        :param number: the LUN; ``None``: an address that cannot have a unit.
        :param only: the unit that it is for; another at its number is as none.
        :returns: its end, or ``RESUME``: the data path is to run it.
        """
        if number == lun.REPORT_LUNS:
            return _ended(lambda: WELL_KNOWN.find(task.cdb).run(self, task))
        unit = self.get(number)
        if unit is None or only not in (None, unit):
            return _ended(lambda: ABSENT.find(task.cdb).run(self, task))
        return _ended(lambda: _run(unit, task), unit)


def _ended(run: Callable[[], Outcome], unit: LogicalUnit | None = None) -> Outcome:
    try:
        return run()
    except Refusal as refusal:
        return refusal.reply(descriptor_sense=unit is not None and unit.pages.descriptor_sense)


def _run(unit: LogicalUnit, task: Task) -> Outcome:
    """:raises Refusal: it did not run, or not to its end."""
    row = DISK.find(task.cdb)
    if task.failure:
        raise failed(row, task)
    unit.admit(row, task.nexus)
    return row.run(unit, task)


#: The commands of the REPORT LUNS well-known logical unit. Spec: SPC-4 r37, clause 8.
WELL_KNOWN: Final[Table[Target]] = Table()
#: What is answered where there is no unit. Spec: SPC-4 r37, INQUIRY and REQUEST SENSE.
ABSENT: Final[Table[Target]] = Table(unknown=Condition.LOGICAL_UNIT_NOT_SUPPORTED)


@WELL_KNOWN.command("REPORT LUNS", report.REPORT_LUNS_USAGE, allocation=report.REPORT_LUNS_ALLOCATION)
@ABSENT.command("REPORT LUNS", report.REPORT_LUNS_USAGE, allocation=report.REPORT_LUNS_ALLOCATION)
def report_luns(target: Target, task: Task) -> bytes:
    """:raises CheckCondition: an unknown SELECT REPORT."""
    return report.list_luns(target, task)


@WELL_KNOWN.command("TEST UNIT READY", "00 00 00 00 00 00")
def ready_well_known(target: Target, task: Task) -> bytes:
    """It always is."""
    return b""


@WELL_KNOWN.command("INQUIRY", inquiry.USAGE, allocation=inquiry.ALLOCATION)
def inquire_well_known(target: Target, task: Task) -> bytes:
    """:raises CheckCondition: a VPD page other than the list of them."""
    return inquiry.without_vpd(task, inquiry.WELL_KNOWN)


@ABSENT.command("INQUIRY", inquiry.USAGE, allocation=inquiry.ALLOCATION)
def inquire_absent(target: Target, task: Task) -> bytes:
    """:raises CheckCondition: a VPD page other than the list of them."""
    return inquiry.without_vpd(task, inquiry.ABSENT)


@WELL_KNOWN.command("REQUEST SENSE", state.REQUEST_SENSE_USAGE, allocation=state.REQUEST_SENSE_ALLOCATION)
def sense_well_known(target: Target, task: Task) -> bytes:
    """Nothing is ever wrong with it."""
    return state.sense_data(task, Condition.NO_ADDITIONAL_SENSE_INFORMATION)


@ABSENT.command("REQUEST SENSE", state.REQUEST_SENSE_USAGE, allocation=state.REQUEST_SENSE_ALLOCATION)
def sense_absent(target: Target, task: Task) -> bytes:
    """Say in parameter data that there is no unit."""
    return state.sense_data(task, Condition.LOGICAL_UNIT_NOT_SUPPORTED)
