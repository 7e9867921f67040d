"""How tests wait: for something that is bound to come, as long as a host may need that is busy otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ringway.errors import TimedOutError

#: Seconds until what does not come is given up. A wait that succeeds costs nothing of them, and emulated
#: guests beside each other on two processors can be thirty times as slow as one alone.
PATIENCE_S: Final = 180.0
_SHORTEST_S, _LONGEST_S = 0.0005, 0.05


def wait_until(condition: Callable[[], bool], what: str = "it", timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition, looking often at first and less so later.

    :raises TimedOutError: it does not come true in time.
    """
    deadline, pause_s = time.monotonic() + timeout_s, _SHORTEST_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOutError(f"in vain: {what} did not come in {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_S)
