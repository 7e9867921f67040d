"""The queue of unit attentions that one nexus has on one logical unit."""

from __future__ import annotations

from typing import Final

from ringway.scsi.sense import Condition

#: Events that reset state, the strongest first: each includes what those behind it say.
#: Spec: SAM-5 r21, Unit attention conditions.
_RESETS: Final = (
    Condition.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
    Condition.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    Condition.I_T_NEXUS_LOSS_OCCURRED,
)

Attentions = tuple[Condition, ...]


def add(pending: Attentions, new: Condition) -> Attentions:
    """Queue a condition behind the others.

    Nothing changes when the same or a stronger one waits already; weaker ones are replaced. So no guest can
    make a queue longer than there are conditions.
    """
    if new in pending or any(_is_stronger(old, new) for old in pending):
        return pending
    return (*(old for old in pending if not _is_stronger(new, old)), new)


def _is_stronger(one: Condition, other: Condition) -> bool:
    return one in _RESETS and other in _RESETS and _RESETS.index(one) < _RESETS.index(other)
