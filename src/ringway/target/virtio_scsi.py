"""What is written on the rings of a virtio-scsi device. Spec: virtio 1.3, 5.6."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from ringway.scsi import lun


class Feature(IntFlag):
    """Feature bits that are offered. Spec: virtio 1.3, 5.6.3."""

    HOTPLUG = 1 << 1
    CHANGE = 1 << 2


class Response(IntEnum):
    """Response codes of requests and of task management functions. Spec: virtio 1.3, 5.6.6.1 and 5.6.6.2."""

    OK = 0  #: also: function complete
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class ControlType(IntEnum):
    """What a request on the control queue is."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class Event(IntEnum):
    """Events for the guest. Spec: virtio 1.3, 5.6.6.3."""

    TRANSPORT_RESET = 1
    PARAM_CHANGE = 3


class ResetReason(IntEnum):
    """Why a TRANSPORT_RESET."""

    RESCAN = 1
    REMOVED = 2


#: A task management request: type, subtype, LUN bytes, the command's id.
TMF_REQUEST: Final = struct.Struct("<II8sQ")
#: A request for asynchronous notifications: type, LUN bytes, the events wanted.
AN_REQUEST: Final = struct.Struct("<I8sI")
#: The events had, and a response code.
AN_RESPONSE: Final = struct.Struct("<IB")


@dataclass(frozen=True, slots=True)
class Address:
    """A target and a LUN in it; ``lun`` is as :func:`ringway.scsi.lun.decode` returns it."""

    target: int
    lun: int | None

    @classmethod
    def decode(cls, name: bytes) -> Address | None:
        """:param name: the eight LUN bytes. :returns: ``None`` when they name no target.

        Spec: virtio 1.3, 5.6.6.1. The well-known unit is ``C1 01``, of no target; Linux gives it one.
        """
        if lun.decode(name[:2]) == lun.REPORT_LUNS and not any(name[2:]):
            return cls(0, lun.REPORT_LUNS)
        return cls(name[1], lun.decode(name[2:4])) if name[0] == 1 else None

    def encode(self) -> bytes:
        """:returns: eight bytes, as a guest would write them. The LUN must be one."""
        assert self.lun is not None
        return bytes((1, self.target)) + lun.encode(self.lun) + bytes(4)
