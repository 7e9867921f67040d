"""Sockets of other processes, awaited without coming to them."""

from __future__ import annotations

from pathlib import Path

from ringway.testing.waiting import wait_until
from ringway.unix_sockets import is_listening


def wait_for_socket(path: str | Path) -> None:
    """Wait until a process listens on a path. A back end serves one front end: it is no use to try.

    :raises TimedOutError: none does in time.
    """
    wait_until(lambda: is_listening(str(path)), f"somebody who listens at {path}")
