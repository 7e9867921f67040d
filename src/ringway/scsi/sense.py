"""Sense data: why a command did not do what it was asked.

Spec: SPC-4 r37, Sense data; the codes are T10's list of additional sense codes (asc-num.txt).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


class Key(IntEnum):
    """Sense keys: what kind of thing happened."""

    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    MISCOMPARE = 0xE


class Condition(Enum):
    """(sense key, additional sense code, qualifier). A member's name is T10's text for the code."""

    NO_ADDITIONAL_SENSE_INFORMATION = (Key.NO_SENSE, 0x00, 0x00)
    LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED = (Key.NOT_READY, 0x04, 0x02)
    WRITE_ERROR = (Key.MEDIUM_ERROR, 0x0C, 0x00)
    UNRECOVERED_READ_ERROR = (Key.MEDIUM_ERROR, 0x11, 0x00)
    PARAMETER_LIST_LENGTH_ERROR = (Key.ILLEGAL_REQUEST, 0x1A, 0x00)
    MISCOMPARE_DURING_VERIFY_OPERATION = (Key.MISCOMPARE, 0x1D, 0x00)
    INVALID_COMMAND_OPERATION_CODE = (Key.ILLEGAL_REQUEST, 0x20, 0x00)
    LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = (Key.ILLEGAL_REQUEST, 0x21, 0x00)
    INVALID_FIELD_IN_CDB = (Key.ILLEGAL_REQUEST, 0x24, 0x00)
    LOGICAL_UNIT_NOT_SUPPORTED = (Key.ILLEGAL_REQUEST, 0x25, 0x00)
    INVALID_FIELD_IN_PARAMETER_LIST = (Key.ILLEGAL_REQUEST, 0x26, 0x00)
    WRITE_PROTECTED = (Key.DATA_PROTECT, 0x27, 0x00)
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = (Key.DATA_PROTECT, 0x27, 0x07)
    POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED = (Key.UNIT_ATTENTION, 0x29, 0x00)
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = (Key.UNIT_ATTENTION, 0x29, 0x03)
    I_T_NEXUS_LOSS_OCCURRED = (Key.UNIT_ATTENTION, 0x29, 0x07)
    MODE_PARAMETERS_CHANGED = (Key.UNIT_ATTENTION, 0x2A, 0x01)
    CAPACITY_DATA_HAS_CHANGED = (Key.UNIT_ATTENTION, 0x2A, 0x09)
    SAVING_PARAMETERS_NOT_SUPPORTED = (Key.ILLEGAL_REQUEST, 0x39, 0x00)
    REPORTED_LUNS_DATA_HAS_CHANGED = (Key.UNIT_ATTENTION, 0x3F, 0x0E)
    INTERNAL_TARGET_FAILURE = (Key.HARDWARE_ERROR, 0x44, 0x00)

    @property
    def key(self) -> Key:
        """The sense key."""
        return self.value[0]

    @property
    def code(self) -> tuple[int, int]:
        """Additional sense code and qualifier."""
        return self.value[1:]


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """Which field of a CDB, or of a parameter list, was wrong. Spec: SPC-4 r37, Field
    pointer sense key specific data."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True

    def encode(self) -> bytes:
        """The three sense-key specific bytes."""
        bit = 0 if self.bit is None else 0x08 | self.bit
        return struct.pack(">BH", 0x80 | self.in_cdb << 6 | bit, min(self.byte, 0xFFFF))


_FIXED: Final = 0x70
_DESCRIPTOR: Final = 0x72


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense data, before it is put into one of its two formats.

    :param information: the INFORMATION field, whose meaning depends on the command (a byte offset, a block).
    """

    condition: Condition
    information: int | None = None
    pointer: FieldPointer | None = None

    def encode(self, *, descriptor: bool) -> bytes:
        """:returns: fixed (18 bytes) or descriptor format (8 to 28 bytes)."""
        return self._descriptor() if descriptor else self._fixed()

    def _fixed(self) -> bytes:
        # What needs more than four bytes is not valid in this format.
        valid = self.information is not None and self.information <= 0xFFFFFFFF
        information = (self.information or 0) if valid else 0
        specific = self.pointer.encode() if self.pointer else bytes(3)
        head = struct.pack(">BxBIB4x", valid << 7 | _FIXED, self.condition.key, information, 10)
        return head + bytes(self.condition.code) + b"\0" + specific

    def _descriptor(self) -> bytes:
        descriptors = b""
        if self.information is not None:
            descriptors += struct.pack(">BBBxQ", 0x00, 0x0A, 0x80, self.information)
        if self.pointer is not None:
            descriptors += struct.pack(">BBxx3sx", 0x02, 0x06, self.pointer.encode())
        code = bytes(self.condition.code)
        return struct.pack(">BB2s3xB", _DESCRIPTOR, self.condition.key, code, len(descriptors)) + descriptors
