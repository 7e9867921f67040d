"""The kernel engine: the kernel's own target and its fabric ``vhost``, driven by paths in configfs.

``driver`` has the verbs. ``choices`` and ``checks`` come before a change; ``assembly`` makes it, of
``ports`` and ``backstores``, through ``configfs``; ``records`` note what is ours. ``looks``, ``sightings``
and ``counters`` read; ``adoption``, ``foreign_media`` and ``saveconfig`` deal with what other tools made.
``modules`` is the kernel itself. Only ``host`` imports this.
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
