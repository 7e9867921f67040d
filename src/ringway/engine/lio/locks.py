"""Locks by name, which are there for as long as somebody holds or wants them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator


class Locks:
    """Any thread may hold any number of them, all at once."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._wanted: dict[str, int] = {}
        self._locks: dict[str, threading.Lock] = {}

    @contextlib.contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """Wait for all of them; taken in one order, nobody waits for ever."""
        with contextlib.ExitStack() as held:
            for name in sorted(set(names)):
                lock = self._want(name)
                held.callback(self._leave, name)
                held.enter_context(lock)
            yield

    @contextlib.contextmanager
    def try_hold(self, name: str) -> Iterator[bool]:
        """Hold it if it is free now. :returns: whether it was."""
        lock = self._want(name)
        held = lock.acquire(blocking=False)
        try:
            yield held
        finally:
            if held:
                lock.release()
            self._leave(name)

    def _want(self, name: str) -> threading.Lock:
        with self._guard:
            self._wanted[name] = self._wanted.get(name, 0) + 1
            return self._locks.setdefault(name, threading.Lock())

    def _leave(self, name: str) -> None:
        with self._guard:
            self._wanted[name] -= 1
            if not self._wanted[name]:
                del self._wanted[name], self._locks[name]
