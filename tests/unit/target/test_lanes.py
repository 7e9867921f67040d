"""Threads on demand, in real ones."""

from __future__ import annotations

import threading

from ringway.target.lanes import MOST_WAITING, Lanes
from ringway.testing.waiting import PATIENCE_S


def test_a_key_whose_job_hangs_takes_so_many_more_and_others_go_on() -> None:
    """A guest could let a medium that hung hold as many of its commands as its rings have room for."""
    hanging, done = threading.Event(), threading.Semaphore(0)

    def run(job: int) -> None:
        if job == 0:
            hanging.wait()
        done.release()

    lanes: Lanes[str, int] = Lanes("test", run, lambda error: None)
    assert lanes.put("a", 0)
    while not lanes.running():
        pass
    assert [lanes.put("a", job) for job in range(1, MOST_WAITING + 2)] == [True] * MOST_WAITING + [False]
    assert lanes.put("b", 1)
    assert done.acquire(timeout=PATIENCE_S)
    hanging.set()
    assert all(done.acquire(timeout=PATIENCE_S) for _ in range(MOST_WAITING + 1))
    assert lanes.settled(PATIENCE_S)
    assert lanes.put("a", 1)
