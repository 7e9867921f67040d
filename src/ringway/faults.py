"""Places at which a process of ours kills itself, for the tests of what it leaves behind.

``RINGWAY_FAULT=create.committed:3`` lets the third passing of that point be the last thing that happens;
``any:40`` the fortieth of whatever point. Without the variable a point is a call that returns.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "RINGWAY_FAULT"
_ANY: Final = "any"


def _from(text: str) -> Callable[[str], None]:
    """What happens at a point. :raises ValueError: ``text`` is not ``NAME:COUNT``."""
    if not text:
        return lambda _name: None
    wanted, _, count = text.partition(":")
    left = int(count)
    lock = threading.Lock()

    def pass_by(name: str) -> None:
        nonlocal left
        if wanted in (name, _ANY):
            with lock:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    return pass_by


point: Final = _from(os.environ.get(VARIABLE, ""))
"""Pass a fault point by its name."""
