"""The kernel engine: the kernel's own target and its fabric ``vhost``, driven by paths in configfs.

``driver`` has the verbs; ``backstores``, ``ports`` and ``records`` are what it is made of; ``looks`` and
``counters`` read. Only ``host`` imports this.
"""

from ringway.engine.lio.driver import LioDriver
from ringway.engine.lio.fabric_spec import VHOST, FabricSpec, parse_fabric_spec, print_fabric_spec
from ringway.engine.lio.saveconfig import Imported, read_saveconfig, write_saveconfig
from ringway.engine.lio.settings import Settings

__all__ = [
    "VHOST",
    "FabricSpec",
    "Imported",
    "LioDriver",
    "Settings",
    "parse_fabric_spec",
    "print_fabric_spec",
    "read_saveconfig",
    "write_saveconfig",
]
