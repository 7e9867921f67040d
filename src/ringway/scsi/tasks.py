"""Task management functions: which there are. Spec: SAM-5 r21, clause 7."""

from __future__ import annotations

from enum import Flag
from typing import Final


class TaskFunction(Flag):
    """Each function at its bit of the REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS data, bytes 0 and 1."""

    ABORT_TASK = 0x8000
    ABORT_TASK_SET = 0x4000
    CLEAR_ACA = 0x2000
    CLEAR_TASK_SET = 0x1000
    LOGICAL_UNIT_RESET = 0x0800
    QUERY_TASK = 0x0400
    QUERY_TASK_SET = 0x0002
    I_T_NEXUS_RESET = 0x0001


#: There is no ACA to clear, for no command may ask for one.
SUPPORTED: Final = ~TaskFunction.CLEAR_ACA


def encode(functions: TaskFunction) -> bytes:
    """:returns: two bytes."""
    return functions.value.to_bytes(2)
