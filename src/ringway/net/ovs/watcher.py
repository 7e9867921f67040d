"""A thread that hears of changes of our interfaces, and calls by the port's name."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any, Final

import ovs.jsonrpc

from ringway.errors import RingwayError
from ringway.net.base import Notify
from ringway.net.ovs.database import NAME, Database
from ringway.net.ovs.rows import MARK
from ringway.net.ovs.values import as_map

_COLUMNS: Final = ["external_ids", "link_state", "error", "mtu", "type", "options"]
_AGAIN_S: Final = 1.0
_GONE: Final[dict[str, Any]] = {}  #: the change of a row that is not there any more


class Watcher:
    """Runs from its making to :meth:`close`. A database that goes away is tried again, and all ports are
    told of."""

    def __init__(self, database: Database, notify: Notify) -> None:
        self._database = database
        self._notify = notify
        self._ports: dict[str, str] = {}  # UUID of the row: the port's name
        self._stopped = threading.Event()
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="ovs-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Doing so again changes nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        os.close(self._waker)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(RingwayError, InterruptedError):
                self._follow()
            for port in self._ports.values():
                self._notify(port)
            self._stopped.wait(_AGAIN_S)

    def _follow(self) -> None:
        """Until the connection ends.

        :raises RingwayError: it did. :raises InterruptedError: we are to stop.
        """
        deadline = time.monotonic() + self._database.timeout_s
        with self._database.connect(deadline) as rpc:
            request = ovs.jsonrpc.Message.create_request(
                "monitor", [NAME, None, {"Interface": {"columns": _COLUMNS}}]
            )
            self._database.check(rpc.send(request))
            while True:
                message = self._database.receive(rpc, None, self._wake)
                if message.id == request.id:
                    there = (message.result or {}).get("Interface", {})
                    self._take(dict.fromkeys(self._ports, _GONE) | there)
                elif message.method == "update":
                    self._take(message.params[1].get("Interface", {}))

    def _take(self, changes: dict[str, dict[str, Any]]) -> None:
        """Tell of the ports in an update; what lost our mark, or is gone, is told of a last time."""
        for uuid, change in changes.items():
            row = change.get("new")
            name = as_map(row["external_ids"]).get(MARK) if row and "external_ids" in row else None
            known = self._ports.pop(uuid, None)
            if name is not None:
                self._ports[uuid] = name
            for port in {name, known} - {None}:
                self._notify(str(port))
