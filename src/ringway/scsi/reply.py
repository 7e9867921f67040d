"""How a command ends: a reply, handed back to the data path, or refused on the way by an exception."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, Literal

from ringway.scsi.sense import Condition, FieldPointer, Sense


class Status(IntEnum):
    """Status codes. Spec: SAM-5 r21, Status codes."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08


class Delivery(Enum):
    """Whether the command reached its end at all; the transport has its own codes for it."""

    COMPLETE = "complete"
    OVERRUN = "overrun"  #: the initiator's buffer is smaller than the transfer that the CDB asks for
    ABORTED = "aborted"  #: cancelled on the way


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished command. Status, sense and data mean something only when the delivery is complete."""

    status: Status = Status.GOOD
    data: bytes = b""
    sense: bytes = b""
    delivery: Delivery = Delivery.COMPLETE


class _Resume(Enum):
    RESUME = "resume"


#: Nothing stands in the way of a hot command: the data path may run it.
RESUME: Final = _Resume.RESUME
Resume = Literal[_Resume.RESUME]
Outcome = Reply | Resume


class Refusal(Exception):
    """Ends a command from wherever it is raised."""

    @abstractmethod
    def reply(self, *, descriptor_sense: bool) -> Reply:
        """What the initiator gets."""


class CheckCondition(Refusal):
    """The command ends with CHECK CONDITION and this sense."""

    def __init__(
        self, condition: Condition, *, information: int | None = None, pointer: FieldPointer | None = None
    ) -> None:
        super().__init__(condition.name)
        self.sense = Sense(condition, information, pointer)

    def reply(self, *, descriptor_sense: bool) -> Reply:
        """The sense, in the format that the unit is set to."""
        return Reply(Status.CHECK_CONDITION, sense=self.sense.encode(descriptor=descriptor_sense))


class Busy(Refusal):
    """Others hold what the command needs; the initiator tries again."""

    def reply(self, *, descriptor_sense: bool) -> Reply:
        """BUSY status has no sense."""
        return Reply(Status.BUSY)


class Undelivered(Refusal):
    """The transport ends the command, not the device server."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(delivery.value)
        self.delivery = delivery

    def reply(self, *, descriptor_sense: bool) -> Reply:
        """No status: the command did not get as far."""
        return Reply(delivery=self.delivery)


def invalid_cdb(byte: int, bit: int | None = None) -> CheckCondition:
    """A field of the CDB is wrong, and this is where it begins."""
    return CheckCondition(Condition.INVALID_FIELD_IN_CDB, pointer=FieldPointer(byte, bit))


def invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    """A field of the parameter list is wrong, and this is where it begins."""
    return CheckCondition(
        Condition.INVALID_FIELD_IN_PARAMETER_LIST, pointer=FieldPointer(byte, bit, in_cdb=False)
    )
