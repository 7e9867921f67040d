"""The table of commands: it finds the handler of a CDB, checks the CDB's fields, and describes itself.

What a row says of a CDB is what REPORT SUPPORTED OPERATION CODES tells an initiator: there is no second list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import Final, Generic, TypeVar

from ringway.scsi.reply import RESUME, CheckCondition, Outcome, Reply, Resume, invalid_cdb
from ringway.scsi.sense import Condition
from ringway.scsi.task import Task

UnitT = TypeVar("UnitT")
Handler = Callable[[UnitT, Task], "bytes | Resume"]
HandlerT = TypeVar("HandlerT", bound=Callable[..., "bytes | Resume"])

#: SERVICE ACTION IN (16), MAINTENANCE IN: the low five bits of byte 1 say which command it is.
SERVICE_ACTION_OPCODES: Final = frozenset({0x9E, 0xA3})
_SERVICE_ACTION: Final = 0x1F
_NACA: Final = 0x04
#: Byte 1 began with the LUN up to SCSI-2. Firmware still writes it there.
_OBSOLETE_LUN: Final = 0xE0
#: Where SBC keeps the GROUP NUMBER of a CDB of so many bytes: a hint, which we do not take.
_GROUP_NUMBER: Final = {10: 6, 12: 10, 16: 14}


class Kind(Flag):
    """What must be known of a command before it runs."""

    PLAIN = 0
    HOT = auto()  #: the data path runs it
    EXEMPT = auto()  #: runs in spite of a unit attention and leaves it pending
    READS = auto()  #: reads the medium
    WRITES = auto()  #: changes the medium
    WAITS = auto()  #: waits here, for the medium or for others' requests, and so for as long as those like


#: The commands that a stopped unit refuses.
NEEDS_READY: Final = Kind.HOT | Kind.READS | Kind.WRITES


@dataclass(frozen=True, slots=True)
class Row(Generic[UnitT]):
    """One command.

    :param usage: CDB usage data: operation code, service action, a one for each bit that is evaluated; as
        long as the CDB. Spec: SPC-4 r37, REPORT SUPPORTED OPERATION CODES.
    :param allocation: the bytes of the CDB that hold the allocation length.
    """

    name: str
    usage: bytes
    handler: Handler[UnitT]
    kind: Kind
    allocation: slice | None

    @property
    def opcode(self) -> int:
        """The operation code."""
        return self.usage[0]

    @property
    def service_action(self) -> int | None:
        """The service action, for operation codes that have them."""
        return self.usage[1] & _SERVICE_ACTION if self.opcode in SERVICE_ACTION_OPCODES else None

    @property
    def has_protection_field(self) -> bool:
        """Whether byte 1 begins with RDPROTECT, WRPROTECT or VRPROTECT."""
        return len(self.usage) > 6 and bool(self.kind & (Kind.READS | Kind.WRITES))

    def check_control(self, cdb: bytes) -> None:
        """:raises CheckCondition: NACA is set. It asks for ACA, which we do not do (INQUIRY: NORMACA)."""
        control = len(self.usage) - 1
        if cdb[control] & _NACA:
            raise invalid_cdb(control, _NACA.bit_length() - 1)

    def check_fields(self, cdb: bytes) -> None:
        """Refuse bits that mean something we would not do.

        :raises CheckCondition: with a pointer to the first wrong bit.
        """
        for byte, used in enumerate(self.usage[:-1]):
            if wrong := cdb[byte] & ~used & ~self._ignored(byte):
                raise invalid_cdb(byte, wrong.bit_length() - 1)

    def _ignored(self, byte: int) -> int:
        if byte in (0, _GROUP_NUMBER.get(len(self.usage))):
            return 0xFF
        return _OBSOLETE_LUN if byte == 1 and not self.has_protection_field else 0

    def run(self, unit: UnitT, task: Task) -> Outcome:
        """Check the CDB and call the handler; cut its data to the allocation length.

        The data path checks the fields of hot commands itself, and comes back with those that it refuses.

        :raises Refusal: the command is not done, or not done in full.
        """
        self.check_control(task.cdb)
        if not self.kind & Kind.HOT:
            self.check_fields(task.cdb)
        data = self.handler(unit, task)
        if data is RESUME:
            return RESUME
        return Reply(data=data if self.allocation is None else data[: self.allocation_length(task.cdb)])

    def allocation_length(self, cdb: bytes) -> int:
        """:returns: bytes that the initiator made room for; 0 when the command has no such field."""
        return int.from_bytes(cdb[self.allocation]) if self.allocation else 0


class Table(Generic[UnitT]):
    """Commands by operation code and service action.

    :param unknown: what is wrong with a command that the table does not have.
    """

    def __init__(self, unknown: Condition = Condition.INVALID_COMMAND_OPERATION_CODE) -> None:
        self._unknown = unknown
        self._rows: dict[int, dict[int | None, Row[UnitT]]] = {}

    def command(
        self, name: str, usage: str, kind: Kind = Kind.PLAIN, *, allocation: slice | None = None
    ) -> Callable[[HandlerT], HandlerT]:
        """Register the decorated function as a command's handler.

        It takes unit and task; it returns data-in (of any length) or ``RESUME``, or raises ``Refusal``.

        :param usage: hexadecimal, see :class:`Row`.
        """

        def register(handler: HandlerT) -> HandlerT:
            row: Row[UnitT] = Row(name, bytes.fromhex(usage), handler, kind, allocation)
            actions = self._rows.setdefault(row.opcode, {})
            assert row.service_action not in actions, f"{name}: two rows for one command"
            actions[row.service_action] = row
            return handler

        return register

    def __iter__(self) -> Iterator[Row[UnitT]]:
        """All rows, by operation code and service action."""
        for opcode in sorted(self._rows):
            yield from sorted(self._rows[opcode].values(), key=lambda row: row.service_action or 0)

    def get(self, opcode: int, service_action: int | None) -> Row[UnitT] | None:
        """:param service_action: ``None`` for operation codes that have none."""
        return self._rows.get(opcode, {}).get(service_action)

    def find(self, cdb: bytes) -> Row[UnitT]:
        """:raises CheckCondition: no such operation code, or no such service action."""
        actions = self._rows.get(cdb[0])
        if actions is None:
            raise CheckCondition(self._unknown)
        row = actions.get(cdb[1] & _SERVICE_ACTION if cdb[0] in SERVICE_ACTION_OPCODES else None)
        if row is None:
            raise invalid_cdb(1, 4)
        return row
