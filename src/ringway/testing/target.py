"""``ringway serve`` in a process of its own: started, asked, stopped, killed and started again.

    with ServedTarget(folder, "--device", "blk", "disk.img") as target:
        with BlkFrontEnd(target.socket).open() as guest:
            ...
            target.kill()
            target.start()
            guest.reconnect()

Its log is read line by line as it comes; what fails carries the last of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ringway.errors import GuestError
from ringway.model import InfoRequest, StatisticsRequest, TargetInfo, TargetStatistics
from ringway.target.control import ControlClient
from ringway.testing.waiting import PATIENCE_S

_SHOWN: Final = 40  #: lines of log in an error
_CONTROL_SUFFIX: Final = ".ctl"


class ServedTarget:
    """A target on ``FOLDER/NAME.sock``. A context manager that starts it, and kills it at the end.

    :param folder: where it runs; its path leaves room for a socket's (107 bytes in all).
    :param arguments: of ``ringway serve``; ``--socket`` comes on top.
    :param name: tells several targets in one folder apart.
    :param timeout_s: how long anything is waited for.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str | PathLike[str],
        name: str = "target",
        timeout_s: float = PATIENCE_S,
    ) -> None:
        self.socket: Final = str(folder / f"{name}.sock")
        self._folder = folder
        self._arguments = [os.fspath(argument) for argument in arguments]
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._silent = False
        self._told = threading.Condition(threading.RLock())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            error.add_note(self._excerpt())

    # Its life

    @property
    def pid(self) -> int:
        """Of the process that serves now. :raises GuestError: there is none."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether a process serves now."""
        return self._process is not None and self._process.poll() is None

    def start(self, *more: str) -> None:
        """Start it, and wait until it listens.

        :param more: arguments for this start alone, behind the others.
        :raises GuestError: it runs already, or it ended before it listened.
        """
        if self.alive:
            raise GuestError(f"the target on {self.socket} runs already")
        self.forget_log()
        self._silent = False
        self._process = self._spawn(["serve", "--socket", self.socket, *self._arguments, *more])
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        try:
            self.wait_event("ready")
        except GuestError:
            if self._silent:  # its log has ended, and so does it: the next start finds nobody
                self._process.wait(self._timeout_s)
            raise

    def stop(self) -> int:
        """Ask it to end, as an operator does (SIGTERM). :returns: exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it without a word (SIGKILL); no effect when it does not run."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. :raises GuestError: it does not run."""
        self._running().send_signal(number)

    def wait(self) -> int:
        """Wait for its end. :returns: exit status. :raises GuestError: it goes on."""
        process, reader = self._process, self._reader
        assert process is not None, "it was never started"
        assert reader is not None
        try:
            status = process.wait(self._timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self._failed("does not end") from error
        reader.join(self._timeout_s)
        return status

    # What it says

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it logged since its last start; lines that are no JSON have a ``message`` alone."""
        with self._told:
            return [_entry(line) for line in self._lines]

    def forget_log(self) -> None:
        """Begin the log anew, so that what is waited for must come from now on."""
        with self._told:
            self._lines = []

    def wait_event(self, name: str) -> Mapping[str, Any]:
        """Wait for an event in the log. :raises GuestError: it did not come, or the target ended."""
        return self._wait_entry(lambda entry: entry.get("event") == name, f"event {name}")

    def wait_message(self, pattern: str) -> Mapping[str, Any]:
        """Wait for a message that matches. :raises GuestError: as :meth:`wait_event`."""
        return self._wait_entry(lambda entry: re.search(pattern, entry["message"]) is not None, pattern)

    # What it answers

    def control(self) -> ControlClient:
        """A client of its control socket, for a ``with`` statement."""
        return ControlClient(self.socket + _CONTROL_SUFFIX)

    def info(self) -> TargetInfo:
        """What it is now."""
        with self.control() as client:
            return client.call(InfoRequest(), TargetInfo)

    def statistics(self) -> TargetStatistics:
        """What it did since its start."""
        with self.control() as client:
            return client.call(StatisticsRequest(), TargetStatistics)

    # Inside

    def _spawn(
        self,
        arguments: Sequence[str],
        *,
        program: Sequence[str] = ("-m", "ringway"),
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env=environment,
        )

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            raise self._failed("does not run")
        return self._process

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._hear(line.rstrip("\n"))
        with self._told:
            self._silent = True
            self._told.notify_all()

    def _hear(self, line: str) -> None:
        with self._told:
            self._lines.append(line)
            self._told.notify_all()

    def _wait_entry(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> Mapping[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        with self._told:
            while True:
                found = next(filter(wanted, map(_entry, self._lines)), None)
                if found is not None:
                    return found
                if self._silent or not self._told.wait(deadline - time.monotonic()):
                    raise self._failed(f"did not say: {what}")

    def _failed(self, what: str) -> GuestError:
        return GuestError(f"the target on {self.socket} {what}\n{self._excerpt()}")

    def _excerpt(self) -> str:
        with self._told:
            lines = self._lines[-_SHOWN:]
        return "\n".join([f"the end of the log of {self.socket}:", *(f"  {line}" for line in lines)])


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) and "message" in entry else {"message": line}
