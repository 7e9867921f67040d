"""Targets that live and that no record names: their folder was removed under them, or their record was lost.

A target's stderr is its log, whose path names folder and endpoint, also when it is there no more.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringway import holders
from ringway.engine.user.endpoint import Endpoint
from ringway.engine.user.places import EndpointPlaces, Places, is_locked
from ringway.engine.user.processes import Identity, Process
from ringway.engine.user.records import Record
from ringway.errors import BusyError
from ringway.model import DeviceKind, EndpointInfo, EndpointSpec, EndpointState, EngineKind
from ringway.unix_sockets import connected_paths

TARGET: Final = "ringway-target"  #: what such a process is called
_LOG: Final = ".log"


class Strays:
    """Those of one host. From any thread. Another user's processes are not seen."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._found: dict[str, Process] | None = None

    def all(self) -> dict[str, Process]:
        """By endpoint, as they were found at the last look at all processes, and live."""
        with self._lock:
            if self._found is None:
                self._found = dict(_find(self._places.endpoints))
            self._found = {name: process for name, process in self._found.items() if process.alive}
            return dict(self._found)

    def find(self, name: str) -> Process | None:
        """That of an endpoint; looks at all processes again when none is known."""
        if (known := self.all().get(name)) is None:
            with self._lock:
                self._found = None
            known = self.all().get(name)
        return known


def adopt(places: EndpointPlaces, process: Process, spec: EndpointSpec) -> Endpoint | None:
    """Give a target whose record was lost a new one, which says what it serves.

    :param spec: what it should serve. :returns: ``None``: nobody can talk to it, for its files are gone.
    :raises RingwayError: it does not answer.
    """
    if not is_locked(places.log):
        return None
    found = Endpoint(places, Record(process=process.identity, spec=spec, pending=spec), process)
    return found if found.look().pid == process.pid else None


def end(places: EndpointPlaces, process: Process, *, force: bool = False) -> None:
    """Have one end. :param force: even while a guest is served.

    :raises BusyError: a guest is. :raises TimedOutError: it does not end.
    """
    if not force and places.socket in (connected_paths() or ()):
        raise BusyError(
            f"a guest uses a target of '{places.name}' (pid {process.pid}) that has lost its files",
            holder=holders.process_name(process.pid),
            hint=f"it is replaced when the guest lets go, or at once after: kill {process.pid}",
        )
    nothing = EndpointSpec(name=places.name)
    Endpoint(places, Record(process=process.identity, spec=nothing), process).end()


def describe(places: EndpointPlaces, process: Process) -> EndpointInfo:
    """What can be told of one."""
    return EndpointInfo(
        name=places.name,
        engine=EngineKind.USER,
        device=DeviceKind.SCSI,
        state=EndpointState.LOST,
        wwpn=None,
        socket=places.socket,
        pid=process.pid,
        connected=places.socket in (connected_paths() or ()),
        message=f"its target runs, and what it serves is not known: to be rid of it, kill {process.pid}",
    )


def _find(folder: Path) -> Iterator[tuple[str, Process]]:
    """All targets whose files are, or were, in a folder, by endpoint. A look at each process of the host."""
    where = Path(os.path.realpath(folder))
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_target(name):
            with contextlib.suppress(OSError):
                process = Process.find(Identity.of(int(name)))
                log = process.log if process is not None else None
                if process is not None and log is not None and _is_in(log.path, where):
                    yield log.path.stem, process


def _is_in(log: Path, folder: Path) -> bool:
    return log.parent == folder and log.suffix == _LOG


def _is_target(number: str) -> bool:
    try:
        with open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n") == TARGET
    except OSError:
        return False
