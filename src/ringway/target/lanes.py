"""Threads on demand for what may wait: one for each key that has work, so that none waits for another's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

#: Jobs of a key that may wait: a guest that goes on asking a medium that hangs must not fill our memory.
MOST_WAITING: Final = 1024

KeyT = TypeVar("KeyT", bound=Hashable)
JobT = TypeVar("JobT")


@dataclass(slots=True)
class _Lane(Generic[JobT]):
    """The jobs of one key, oldest first."""

    waiting: deque[JobT] = field(default_factory=deque)
    running: JobT | None = None


class Lanes(Generic[KeyT, JobT]):
    """Runs jobs: those of one key one after the other, those of different keys at the same time.

    A thread lives while its key has jobs. All methods may be called from any thread.

    :param name: of the threads.
    :param run: does a job, on the thread of its key.
    :param failed: told of an exception that ``run`` raised; the next job is run all the same.
    """

    def __init__(
        self, name: str, run: Callable[[JobT], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._name = name
        self._run = run
        self._failed = failed
        self._changed = threading.Condition()  # guards the lanes
        self._lanes: dict[KeyT, _Lane[JobT]] = {}

    def put(self, key: KeyT, job: JobT) -> bool:
        """Have a job done. :returns: false: it will not be done: no thread can be had, or too many wait."""
        with self._changed:
            if (lane := self._lanes.get(key)) is not None:
                if fits := len(lane.waiting) < MOST_WAITING:
                    lane.waiting.append(job)
                return fits
            lane = self._lanes[key] = _Lane(deque((job,)))
            thread = threading.Thread(target=self._serve, args=(key, lane), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                del self._lanes[key]
                return False
            return True

    def remove(self, wanted: Callable[[JobT], bool]) -> list[JobT]:
        """Take jobs away that wait. :returns: them, in their order for each key."""
        removed: list[JobT] = []
        with self._changed:
            for lane in self._lanes.values():
                removed += filter(wanted, lane.waiting)
                lane.waiting = deque(job for job in lane.waiting if not wanted(job))
        return removed

    def waiting(self) -> list[JobT]:
        """:returns: the jobs that wait."""
        with self._changed:
            return [job for lane in self._lanes.values() for job in lane.waiting]

    def running(self) -> list[JobT]:
        """:returns: the jobs that are being done."""
        with self._changed:
            return self._jobs()

    def settled(self, timeout_s: float, about: Callable[[JobT], bool] = lambda _: True) -> bool:
        """Wait for the jobs that are being done now. :returns: whether they have ended in time."""
        with self._changed:
            before = [job for job in self._jobs() if about(job)]
            return self._changed.wait_for(lambda: not self._any_runs(before), timeout_s)

    def _jobs(self) -> list[JobT]:
        return [lane.running for lane in self._lanes.values() if lane.running is not None]

    def _any_runs(self, jobs: list[JobT]) -> bool:
        return any(job is running for running in self._jobs() for job in jobs)

    def _serve(self, key: KeyT, lane: _Lane[JobT]) -> None:
        while (job := self._next(key, lane)) is not None:
            try:
                self._run(job)
            except BaseException as error:  # a panic of the core is no Exception
                self._failed(error)
            finally:
                with self._changed:
                    lane.running = None
                    self._changed.notify_all()

    def _next(self, key: KeyT, lane: _Lane[JobT]) -> JobT | None:
        with self._changed:
            if lane.waiting:
                lane.running = lane.waiting.popleft()
                return lane.running
            del self._lanes[key]
            self._changed.notify_all()
            return None
