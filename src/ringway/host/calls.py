"""Calls that block, on threads of their own; what hangs is not waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Calls:
    """A pool of threads. For one event loop."""

    def __init__(self, workers: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(workers, name)
        self._lock = threading.Lock()
        self._under_way = 0

    async def __call__(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call it. Whoever is cancelled meanwhile waits for nothing; the call goes on."""

        def counted() -> _T:
            self._count(1)
            try:
                return call(*args, **kwargs)
            finally:
                self._count(-1)

        return await asyncio.wrap_future(self._threads.submit(counted))

    def _count(self, change: int) -> None:
        with self._lock:
            self._under_way += change

    def close(self) -> bool:
        """Begin no more. :returns: whether none goes on; the interpreter's end would wait for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        return not self._under_way
