"""A ``ringwayd`` of one's own: started, asked, killed and started again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from ringway.errors import GuestError, error_from_code
from ringway.faults import VARIABLE
from ringway.testing.small_host import Popen
from ringway.testing.waiting import PATIENCE_S

_NOTHING: Final[Mapping[str, str]] = {}


class Daemon:
    """The program in a folder. A context manager that ends it.

    :param folder: short enough for sockets in it.
    :param fault: where it shall kill itself (:mod:`ringway.faults`).
    :param environment: what it is told besides.
    :param popen: starts it, on a host of its own for one.
    :param here: where the folder is for the daemon itself, if that is another place than for us.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fault: str = "",
        environment: Mapping[str, str] = _NOTHING,
        popen: Popen = subprocess.Popen,
        here: Path | None = None,
    ) -> None:
        self.folder = folder
        self._popen = popen
        self._here = here or folder
        self.fault = fault
        self._environment = environment
        self.words: list[str] = []  #: what it told its service manager
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "daemon.log"
        self._manager: socket.socket | None = None

    @property
    def api(self) -> Path:
        """The socket that changes things."""
        return self.folder / "run" / "api.sock"

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it said on stderr, in all its lives."""
        return self._log.read_text() if self._log.exists() else ""

    def configure(self, text: str) -> None:
        """Write its configuration."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "ringway.toml").write_text(text)

    def start(self, *, wait: bool = True) -> bool:
        """Start it, and wait until it is ready.

        :returns: whether that came; not if it died at its fault point before.
        :raises GuestError: it ended otherwise, or took too long.
        """
        told = {VARIABLE: self.fault, "NOTIFY_SOCKET": str(self.folder / "notify"), **self._environment}
        environment = {**os.environ, **told}
        command = [sys.executable, "-m", "ringway.cli.daemon", "--directory", str(self._here)]
        manager = self._listen()
        with self._log.open("ab") as log:
            self._process = self._popen(command, stderr=log, env=environment)
            return self._ready(manager) if wait else True

    def _listen(self) -> socket.socket:
        """Be its service manager."""
        path = self.folder / "notify"
        path.unlink(missing_ok=True)
        self._close_manager()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.settimeout(PATIENCE_S)
        self._manager.bind(str(path))
        return self._manager

    def _close_manager(self) -> None:
        if self._manager is not None:
            self._manager.close()

    def next_word(self) -> str:
        """What it tells its service manager next."""
        assert self._manager is not None
        return self._manager.recv(4096).decode()

    def _ready(self, manager: socket.socket) -> bool:
        assert self._process is not None
        end = os.pidfd_open(self._process.pid)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([manager.fileno(), end], [], [], left)
                if manager.fileno() in ready:
                    self.words.append(manager.recv(4096).decode())
                    if "READY=1" in self.words[-1]:
                        return True
                elif end in ready:
                    return self._died()
        finally:
            os.close(end)
        raise GuestError(f"ringwayd is not ready after {PATIENCE_S} s: {self.log[-2000:]}")

    def _died(self) -> bool:
        assert self._process is not None
        if self._process.wait() != -signal.SIGKILL:
            raise GuestError(f"ringwayd ended with {self._process.returncode}: {self.log[-2000:]}")
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Let it die without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def wait_dead(self) -> int:
        """Wait for its end. :returns: its status."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Ask it to end. :returns: its status."""
        assert self._process is not None
        self._process.terminate()
        return self.wait_dead()

    def die_at(self, point: str, method: str, path: str, body: object = None) -> None:
        """Ask for something that it does not survive, and start the next one.

        :raises subprocess.TimeoutExpired: it does.
        """
        self.stop()
        self.fault = f"{point}:1"
        self.start()
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.ask(method, path, body)
        self.wait_dead()
        self.fault = ""
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        self._close_manager()

    # The API

    def ask(self, method: str, path: str, body: object = None, *, read_only: bool = False) -> Any:
        """Ask over a connection of its own, and read the answer's JSON.

        :raises RingwayError: the daemon's own. :raises OSError: it is not there, or went away.
        """
        where = self.folder / "run" / "ro.sock" if read_only else self.api
        connection = _Connection(str(where))
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            raw = response.read()
        except http.client.HTTPException as error:
            raise ConnectionResetError(f"it hung up: {error!r}") from error
        finally:
            connection.close()
        return _decoded(response.status, raw)

    def names(self) -> dict[str, str]:
        """The endpoints that are ours, and their states."""
        return {info["name"]: info["state"] for info in self.ask("GET", "/1.0/endpoints")}

    def events(self) -> Generator[Any, None, None]:
        """All events that are kept, and the ones to come. Close it in the end."""
        connection = _Connection(str(self.api))
        try:
            connection.request("GET", "/1.0/events?since=0")
            for line in connection.getresponse():
                yield json.loads(line)
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP to a path."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """:raises OSError: nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _decoded(status: int, raw: bytes) -> Any:
    """:raises RingwayError: the answer is an error."""
    answer = json.loads(raw)
    if status < 400:
        return answer
    error = answer["error"]
    raise error_from_code(error["code"], error["message"], hint=error["hint"])
