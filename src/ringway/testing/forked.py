"""Confined targets by the dozen: forked by a process that has imported everything, in some milliseconds each.

    with TargetForker() as forker:
        target = forker.serve(config, path)
        ...
        target.close()

Each has given up all that ``ringway serve`` gives up (see ``ringway.target.sandbox``).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from types import TracebackType
from typing import Final, NoReturn, Self

import msgspec

from ringway.errors import GuestError, RingwayError, error_from_code
from ringway.model import (
    Done,
    ErrorRecord,
    InfoRequest,
    LunInfo,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    QuitRequest,
    SandboxMode,
    StatisticsRequest,
    TargetConfig,
    TargetInfo,
    TargetStatistics,
)
from ringway.target.control import ControlClient
from ringway.target.listen import listen
from ringway.target.sandbox import Sandbox
from ringway.target.target import Target

_MAX_MESSAGE: Final = 1 << 16
_TIMEOUT_S: Final = 30.0


class Order(msgspec.Struct, frozen=True):
    """What to serve, and where; the control socket is beside it."""

    config: TargetConfig
    path: str


class Outcome(msgspec.Struct, frozen=True):
    """What came of an order."""

    pid: int
    error: ErrorRecord | None = None


class ForkedTarget:
    """A target in a process of its own: what can be asked of a ``Target``, over its control socket."""

    def __init__(self, path: str, pid: int) -> None:
        self.pid = pid
        self._path = f"{path}.ctl"
        self._process = os.pidfd_open(pid)

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
        if self._process < 0:
            return
        with contextlib.suppress(RingwayError), self._control() as client:
            client.call(QuitRequest(), Done)
        ended = _wait_readable(self._process)
        if not ended:
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        os.close(self._process)
        self._process = -1
        if not ended:
            raise GuestError(f"the target on {self._path} did not end when it was asked to")

    def _control(self) -> ControlClient:
        return ControlClient(self._path)


class TargetForker:
    """The process that forks them. A context manager; targets that were not closed are killed with it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_TIMEOUT_S)
        command = [sys.executable, "-m", "ringway.testing.forked", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_TIMEOUT_S)

    def serve(self, config: TargetConfig, path: str) -> ForkedTarget:
        """Start a target, and wait until it listens. :raises RingwayError: why it does not."""
        self._channel.send(msgspec.json.encode(Order(config, path)))
        outcome = msgspec.json.decode(self._channel.recv(_MAX_MESSAGE), type=Outcome)
        if outcome.error is not None:
            raise error_from_code(outcome.error.code, outcome.error.message, hint=outcome.error.hint)
        return ForkedTarget(path, outcome.pid)


def _wait_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(_TIMEOUT_S * 1000))


# The other process


def _fork_for_ever(channel: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a target
    while message := channel.recv(_MAX_MESSAGE):
        if os.fork() == 0:
            _be_target(channel, msgspec.json.decode(message, type=Order))


def _be_target(channel: socket.socket, order: Order) -> NoReturn:
    """Serve until asked to quit."""
    status = 1
    try:
        with Sandbox(SandboxMode.AUTO) as sandbox:
            status = _serve(channel, order, sandbox)
    except RingwayError as error:
        record = ErrorRecord(error.code, error.message, error.hint)
        channel.send(msgspec.json.encode(Outcome(os.getpid(), record)))
    finally:
        os._exit(status)


def _serve(channel: socket.socket, order: Order, sandbox: Sandbox) -> int:
    endpoint, control = listen(order.path), listen(f"{order.path}.ctl", mode=0o600)
    with Target(order.config, endpoint, control, sandbox) as target:
        channel.send(msgspec.json.encode(Outcome(os.getpid())))
        channel.close()
        target.wait()
    return int(target.failed)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as end:
        _fork_for_ever(end)
