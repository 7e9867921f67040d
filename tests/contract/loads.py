"""Verifying loads: in the foreground, or on a thread while something happens to the target."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Final, Self

from ringway import _core
from ringway.testing.frontend import BlkFrontEnd, Ring, ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S, wait_until

BLOCK: Final = 4096


def verify(driver: _core.LoadDriver, state: _core.Generations, **plan: Any) -> dict[str, int]:
    """Run a load; every request must succeed, and every block hold what was acknowledged.

    :param plan: of :meth:`_core.LoadDriver.verify`. :returns: its counts.
    """
    report: dict[str, Any] = driver.verify(state, **plan)
    assert report["errors"] == 0
    return report


class Load:
    """A verifying load over all request queues on a thread, from ``with`` on.

    It ends with the block: all that is in flight is waited for, and the whole disk is read once more. What it
    found wrong is raised then.

    :param size_bytes: of the disk that is used, from block 0.
    :param state: what the disk holds; by default nothing that is known.
    """

    def __init__(
        self,
        front: BlkFrontEnd | ScsiFrontEnd,
        *,
        size_bytes: int = 1 << 20,
        state: _core.Generations | None = None,
        **plan: Any,
    ) -> None:
        self.state = state or _core.Generations(size_bytes // BLOCK)
        self.checked = 0
        self._rings: list[Ring] = front.rings[2:] if isinstance(front, ScsiFrontEnd) else front.rings
        self._driver = front.load_driver()
        self._plan = {"size_bytes": size_bytes, "depth": 4, "requests": 2000, "flush_every": 97, **plan}
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._ending.set()
        if error is None:
            self.finish()

    def finish(self) -> None:
        """Wait for the end. :raises Exception: what the load found wrong."""
        self._ending.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the load does not end"
        if self._error is not None:
            raise self._error
        assert self.checked > 0, "nothing was checked"

    def wait_progress(self, requests: int = 200) -> None:
        """Wait until so many more requests were completed (by the rings' used indices)."""
        start = self._done()
        wait_until(lambda: self._failed() or (self._done() - start) & 0xFFFF >= requests, "more of a load")

    def _done(self) -> int:
        return sum(ring.used_index for ring in self._rings)

    def _failed(self) -> bool:
        if self._error is not None:
            raise self._error
        return False

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self.checked += verify(self._driver, self.state, **self._plan)["checked"]
            self.checked += verify(self._driver, self.state, **{**self._plan, "requests": 0})["checked"]
        except BaseException as error:  # it is raised where the load is ended
            self._error = error
