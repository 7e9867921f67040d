"""What the parts of the fake kernel share: its log, its modules, where it keeps reservations."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from pathlib import Path

RELEASE = os.uname().release


class State:
    """One per fake kernel.

    :ivar modules: names of the modules that are loaded.
    :ivar dbroot: the folder in which reservations that outlive power loss are kept.
    """

    def __init__(self, modules: set[str], dbroot: Path) -> None:
        self.modules = modules
        self.dbroot = dbroot
        self.indexes = itertools.count(1)
        self._log: deque[str] = deque(maxlen=64)
        self._lines = itertools.count(1)

    def complain(self, text: str) -> None:
        """Write an error to the kernel's log."""
        self._log.append(f"3,{next(self._lines)},{time.monotonic_ns() // 1000},-;{text}\n")

    def log(self) -> str:
        """The last records, as ``/dev/kmsg`` gives them."""
        return "".join(self._log)[-3500:]
