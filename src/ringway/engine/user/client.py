"""The spawner's client: starts it when nobody listens, and tells it what to do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, NoReturn

import msgspec
from msgspec import Struct

from ringway.engine.user import orders
from ringway.engine.user.orders import (
    Add,
    Added,
    Answer,
    Born,
    Failed,
    Found,
    Order,
    Probe,
    Probed,
    Ready,
    Serve,
)
from ringway.engine.user.processes import Process
from ringway.engine.user.words import last_words
from ringway.errors import (
    RingwayError,
    TimedOutError,
    UnreachableError,
    error_from_code,
)
from ringway.model import LunInfo, LunSpec, TargetInfo

#: Seconds until a target serves: it waits for I/O of a dead predecessor, which may take ten.
READY_S: Final = 30.0
_SPAWNER_S: Final = 30.0  #: until the spawner itself listens
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred
_KILL_S: Final = 5.0
_MANAGED: Final = "INVOCATION_ID"  # systemd's mark on its services
#: What a service manager told us, and not the spawner that we start.
_MANAGERS: Final = (_MANAGED, "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_MANAGER_S: Final = 3.0
_PAUSE_S: Final = 0.05
_LINGER_S: Final = "600"  #: until a spawner that we started, and that has no target, ends by itself


class Started(Struct, frozen=True):
    """A target that serves."""

    process: Process
    info: TargetInfo | None  #: ``None``: it is to be asked


class SpawnerClient:
    """Gives orders, from any thread.

    :param path: where the spawner listens, or shall.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._starting = threading.Lock()

    def serve(self, order: Serve, *, timeout_s: float = READY_S) -> Started:
        """Start a target, and wait until it serves. On failure there is no such process.

        :raises RingwayError: why it does not serve; of one that died, its last words.
        :raises TimedOutError: it takes too long. :raises UnreachableError: there is no spawner to be had.
        """
        with self._given(order, timeout_s) as channel:
            answer, fd = self._next(channel)
            if not isinstance(answer, Born) or fd is None:
                _refuse(answer)
            process = Process(answer.identity, fd)
            try:
                return Started(process, self._ready(channel, order))
            except BaseException:
                _end(process)
                raise

    def probe(
        self, luns: tuple[LunSpec, ...], *, claim: bool = True, timeout_s: float = READY_S
    ) -> tuple[Found, ...]:
        """Open backstores as a target would. :raises RingwayError: what it would say.

        :param claim: refuse one that somebody else uses.
        """
        with self._given(Probe(luns, claim), timeout_s) as channel:
            answer, _ = self._next(channel)
            if not isinstance(answer, Probed):
                _refuse(answer)
            return answer.found

    def add(self, control: str, spec: LunSpec, *, timeout_s: float = READY_S) -> LunInfo:
        """Let a target have a LUN. :raises RingwayError: what it says, or what is wrong with the disk."""
        with self._given(Add(control, spec), timeout_s) as channel:
            answer, _ = self._next(channel)
            if not isinstance(answer, Added):
                _refuse(answer)
            return answer.info

    def pid(self) -> int | None:
        """Process id of the spawner that listens now; ``None``: none does."""
        try:
            with self._connect() as channel:
                raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
        pid, _, _ = _CREDENTIALS.unpack(raw)
        return int(pid)

    @contextlib.contextmanager
    def _given(self, order: Order, timeout_s: float) -> Iterator[socket.socket]:
        """A channel on which answers will come. :raises UnreachableError: nobody takes the order."""
        with self._reached() as channel:
            try:
                orders.send_order(channel, order)
            except OSError as error:
                raise UnreachableError(f"the spawner takes no orders: {error.strerror}") from error
            channel.settimeout(timeout_s)
            yield channel

    def _ready(self, channel: socket.socket, order: Serve) -> TargetInfo | None:
        """Wait until a target serves. :raises RingwayError: it does not."""
        answer, _ = self._next(channel)
        if isinstance(answer, Ready):
            return answer.info
        if answer is not None:
            _refuse(answer)
        words = None if order.log is None else last_words(order.log)
        raise RingwayError(f"the target died while it started: {words or 'it said nothing'}")

    def _next(self, channel: socket.socket) -> tuple[Answer | None, int | None]:
        """:raises TimedOutError: nothing came in time."""
        try:
            return orders.receive_answer(channel)
        except TimeoutError as error:
            hint = "its log, beside its socket, may say what it waits for"
            raise TimedOutError("the target does not come up in time", hint=hint) from error
        except (OSError, msgspec.MsgspecError) as error:
            raise UnreachableError(f"the spawner's answer is lost: {error}") from error

    # The spawner itself

    def _reached(self) -> socket.socket:
        """:raises UnreachableError: there is no spawner, and none can be started."""
        with contextlib.suppress(OSError):
            return self._connect()
        with self._starting:
            words = ""
            try:
                if (channel := self._waited_for()) is not None:
                    return channel
                words = self._start()
                return self._connect()
            except OSError as error:
                why = words or error.strerror
                raise UnreachableError(
                    f"the spawner cannot be started: {why}",
                    hint=f"see what this says: ringway-spawner --socket {self._path}",
                ) from error

    def _waited_for(self) -> socket.socket | None:
        """Where a service manager runs us, it runs the spawner as well, and may be starting it again."""
        deadline = time.monotonic() + (_MANAGER_S if _MANAGED in os.environ else 0.0)
        while True:
            with contextlib.suppress(OSError):
                return self._connect()
            if time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE_S)

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            channel.connect(self._path)
        except BaseException:
            channel.close()
            raise
        return channel

    def _start(self) -> str:
        """Start one that is nobody's child. :returns: what it said, if it did not start."""
        module = ["-P", "-m", "ringway.engine.user.spawner"]
        log = os.path.splitext(self._path)[0] + ".log"
        command = [sys.executable, *module, "--detach", log, "--socket", self._path, "--linger", _LINGER_S]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_SPAWNER_S,
            check=False,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in _MANAGERS},
        )
        return "" if done.returncode == 0 else done.stderr.strip().removeprefix("error: ").partition("\n")[0]


def _refuse(answer: Answer | None) -> NoReturn:
    """:raises RingwayError: what the answer says. :raises UnreachableError: nothing that makes sense."""
    if isinstance(answer, Failed):
        error = answer.error
        raise error_from_code(error.code, error.message, hint=error.hint)
    if answer is None:
        raise UnreachableError("the spawner's child ended without a word", hint="try again")
    raise UnreachableError("the spawner speaks another version", hint="end it: another one is started")


def _end(process: Process) -> None:
    """It is of no use."""
    process.signal(signal.SIGKILL)
    process.wait(_KILL_S)
