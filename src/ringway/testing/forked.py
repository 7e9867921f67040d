"""Confined targets by the dozen, from a spawner of their own: some milliseconds each.

    with TargetForker() as forker:
        target = forker.serve(config, path)
        ...
        target.close()

Each has given up all that ``ringway serve`` gives up (see ``ringway.target.sandbox``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from types import TracebackType
from typing import Self

from ringway.engine.user.client import SpawnerClient
from ringway.engine.user.orders import Serve
from ringway.engine.user.processes import Process
from ringway.errors import GuestError, RingwayError
from ringway.model import (
    Done,
    InfoRequest,
    LunInfo,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    QuitRequest,
    StatisticsRequest,
    TargetConfig,
    TargetInfo,
    TargetStatistics,
)
from ringway.target.control import ControlClient
from ringway.testing.waiting import PATIENCE_S


class ForkedTarget:
    """A target in a process of its own: what can be asked of a ``Target``, over its control socket."""

    def __init__(self, path: str, process: Process) -> None:
        self.pid = process.pid
        self._path = f"{path}.ctl"
        self._process = process

    def info(self) -> TargetInfo:
        """What it is now."""
        with self._control() as client:
            return client.call(InfoRequest(), TargetInfo)

    def statistics(self) -> TargetStatistics:
        """What it did since its start."""
        with self._control() as client:
            return client.call(StatisticsRequest(), TargetStatistics)

    def add_lun(self, spec: LunSpec) -> LunInfo:
        """Open a disk, and let the target serve it."""
        with self._control() as client:
            return client.add_lun(spec)

    def remove_lun(self, target: int, lun: int) -> None:
        """Take a LUN away."""
        with self._control() as client:
            client.call(LunRemoveRequest(target, lun), Done)

    def resize_lun(self, target: int, lun: int, *, size_bytes: int | None = None) -> LunInfo:
        """Let it look at a LUN's size again."""
        with self._control() as client:
            return client.call(LunResizeRequest(target, lun, size_bytes), LunInfo)

    def close(self) -> None:
        """Ask it to end, and wait for that. Idempotent. :raises GuestError: it goes on."""
        if not self._process.alive:
            return
        with contextlib.suppress(RingwayError), self._control() as client:
            client.call(QuitRequest(), Done)
        if not self._process.wait(PATIENCE_S):
            self._process.signal(signal.SIGKILL)
            raise GuestError(f"the target on {self._path} did not end when it was asked to")

    def _control(self) -> ControlClient:
        return ControlClient(self._path)


class TargetForker:
    """The spawner that they come from. A context manager; targets that were not closed are killed with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rw-")
        self._spawner = SpawnerClient(f"{self._folder.name}/spawner.sock")
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self._started:
            process.signal(signal.SIGKILL)
        if (pid := self._spawner.pid()) is not None:
            os.kill(pid, signal.SIGTERM)
        self._folder.cleanup()

    def serve(self, config: TargetConfig, path: str) -> ForkedTarget:
        """Start a target, and wait until it listens. :raises RingwayError: why it does not."""
        started = self._spawner.serve(Serve(config=config, socket=path), timeout_s=PATIENCE_S)
        self._started = [process for process in self._started if process.alive]
        self._started.append(started.process)
        return ForkedTarget(path, started.process)
