"""Log lines that a peer can provoke as often as it likes: some at once, then few, and a count of the rest."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

BURST: Final = 10  #: lines that may come at once
INTERVAL_S: Final = 1.0  #: then one in this time


class Throttle:
    """A token bucket before a logger. May be used from several threads.

    :param clock: seconds that never go back.
    :param burst: lines that may come at once.
    """

    def __init__(
        self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic, *, burst: int = BURST
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._burst = burst
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._filled_s = clock()
        self._unsaid = 0

    def log(self, level: int, message: str, *args: object) -> None:
        """Log a line, or count it. The count is told before the next line that is logged."""
        with self._lock:
            if not self._take():
                self._unsaid += 1
                return
            unsaid, self._unsaid = self._unsaid, 0
        if unsaid:
            self._logger.warning("%d lines about peers were not said: there were too many", unsaid)
        self._logger.log(level, message, *args)

    def _take(self) -> bool:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_s) / INTERVAL_S)
        self._filled_s = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
