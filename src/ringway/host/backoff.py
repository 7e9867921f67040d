"""When a target that died is started again.

The first deaths cost less than a second. Who dies more than three times in a minute is degraded, and is tried
every ten seconds, for ever: a guest is never stranded.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
DELAYS_S: Final = (0.0, 0.2, 0.7)  #: behind the first, second and third death of a window
LONGEST_S: Final = 10.0
MAX_DEATHS: Final = len(DELAYS_S)


class Backoff:
    """The deaths of one endpoint. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._not_before = 0.0
        self.is_owed = False  #: a start that has not come off yet
        self.message: str | None = None  #: why it died last

    def died(self, now_s: float, message: str | None) -> float:
        """Note a death, or an attempt that failed.

        :returns: how long to wait until the next attempt.
        """
        self._deaths.append(now_s)
        self.message = message or self.message
        self.is_owed = True
        recent = self._recent(now_s)
        delay = LONGEST_S if recent > MAX_DEATHS else DELAYS_S[recent - 1]
        self._not_before = now_s + delay
        return delay

    def started(self) -> None:
        """Note a start that came off."""
        self.is_owed = False

    def wait_s(self, now_s: float) -> float:
        """How long it is until the next attempt is due; 0 when it is."""
        return max(0.0, self._not_before - now_s)

    def is_degraded(self, now_s: float) -> bool:
        """Whether it died too often lately to be called well."""
        return self._recent(now_s) > MAX_DEATHS

    def _recent(self, now_s: float) -> int:
        return sum(now_s - death <= WINDOW_S for death in self._deaths)
