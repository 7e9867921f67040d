"""Lines that peers provoke: some at once, then few, and none uncounted."""

from __future__ import annotations

import logging

import pytest

from ringway.vhost_user.throttle import BURST, INTERVAL_S, Throttle


def test_what_is_too_much_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    throttle = Throttle(logging.getLogger("ringway.vhost_user"), lambda: now)
    for number in range(BURST + 5):
        throttle.log(logging.WARNING, "line %d", number)
    assert caplog.messages == [f"line {number}" for number in range(BURST)]
    caplog.clear()
    now += INTERVAL_S
    throttle.log(logging.WARNING, "again")
    throttle.log(logging.WARNING, "too soon")
    assert caplog.messages == ["5 lines about peers were not said: there were too many", "again"]


def test_a_long_silence_saves_up_no_more_than_a_burst(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    throttle = Throttle(logging.getLogger("ringway.vhost_user"), lambda: now)
    now += 1000 * INTERVAL_S
    for _ in range(2 * BURST):
        throttle.log(logging.WARNING, "line")
    assert len(caplog.messages) == BURST
