"""What both of our sides need: a daemon's API, clients at once, and looks at processes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ringway.model import EndpointSpec
from ringway.testing.daemon import Daemon

CLIENTS: Final = 8
_PSS: Final = re.compile(r"^Pss: +(\d+) kB", re.MULTILINE)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
T = TypeVar("T")


class Api:
    """A daemon, as a client with a connection for each request sees it. Any thread may ask."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def create(self, spec: EndpointSpec) -> Any:
        """Make an endpoint, and wait until it is ready. :returns: what the daemon says of it."""
        return self._daemon.ask("POST", "/1.0/endpoints?wait=600", msgspec.to_builtins(spec))

    def delete(self, name: str) -> None:
        """Delete an endpoint, and wait until it is gone."""
        self._daemon.ask("DELETE", f"/1.0/endpoints/{name}?wait=600")

    def list(self) -> Any:
        """All endpoints, in whole."""
        return self._daemon.ask("GET", "/1.0/endpoints")


def each(work: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
    """Do something for each number, by several threads. :raises Exception: what one of them raised."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(work, numbers))


def proportional_set(pid: int) -> int:
    """Bytes of memory of a process; what it shares counts by share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(match[1]) for match in _PSS.finditer(text)) * 1024


def processor_s(pid: int) -> float:
    """CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
