"""SCSI, pure: logical units and the commands that are decided in Python. It knows no virtio and no vhost.

``Target.execute`` takes a :class:`Task` and returns a :class:`Reply`, or ``RESUME``: let the data path run it
after all. One function an opcode, in a table; the families ``hot``, ``inquiry``, ``mode``, ``block``,
``report`` and ``state`` fill it. Only ``ringway.target`` imports this package.
"""

# Importing a family registers its commands.
from ringway.scsi import block, hot, inquiry, mode, report, state
from ringway.scsi.identity import Identity
from ringway.scsi.reply import RESUME, Busy, Delivery, Outcome, Reply, Status
from ringway.scsi.sense import Condition, Sense
from ringway.scsi.table import Kind
from ringway.scsi.target import Target
from ringway.scsi.task import Nexus, Task
from ringway.scsi.unit import Gate, Geometry, Host, LogicalUnit, Medium

__all__ = [
    "RESUME",
    "Busy",
    "Condition",
    "Delivery",
    "Gate",
    "Geometry",
    "Host",
    "Identity",
    "Kind",
    "LogicalUnit",
    "Medium",
    "Nexus",
    "Outcome",
    "Reply",
    "Sense",
    "Status",
    "Target",
    "Task",
    "block",
    "hot",
    "inquiry",
    "mode",
    "report",
    "state",
]
