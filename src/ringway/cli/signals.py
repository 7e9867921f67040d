"""Wait for a target's end or for a signal, without waking up in between."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Final

_log: Final = logging.getLogger(__name__)
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """A pipe that becomes readable when this process is asked to stop."""

    def __init__(self, receiver: int) -> None:
        self._receiver = receiver
        self.received: signal.Signals | None = None
        self._ending = False
        self._told = False

    def wait(self, target: int, timeout_s: float | None) -> bool:
        """Wait for a signal, or until the file descriptor ``target`` is readable.

        :returns: whether it is time to go.
        """
        poller = select.poll()  # select() knows no descriptor above 1023
        for fd in (target, self._receiver):
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(None if timeout_s is None else timeout_s * 1000)]
        if self._receiver in ready:
            self.received = signal.Signals(os.read(self._receiver, 1)[0])
        self._ending = bool(ready)
        return self._ending

    def ignore(self, number: int, _frame: object) -> None:
        """Say once that a signal changes nothing any more: what is in flight is finished first."""
        if self._ending and not self._told:
            self._told = True
            name = signal.Signals(number).name
            _log.warning("%s: the target ends already; only SIGKILL ends it sooner", name)


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: what it made is taken away. For the main thread.

    What is ignored stays so: ``nohup`` means it.
    """
    wanted = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    old = {number: signal.signal(number, signal.default_int_handler) for number in wanted}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold what ends a program back until the yielded function is called, or the block is left.

    What is made in between cannot be lost by who has to take it away.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)

    def let_come() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield let_come
    finally:
        let_come()


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Turn SIGTERM, SIGINT and SIGHUP into readiness until the block is left. For the main thread.

    What is ignored stays so: ``nohup`` means it. Close what is served within the block: further signals do
    not cut that short.
    """
    receiver, sender = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old_fd = signal.set_wakeup_fd(sender)
    wanted = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    signals = StopSignals(receiver)
    old = {number: signal.signal(number, signals.ignore) for number in wanted}
    try:
        yield signals
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(receiver)
        os.close(sender)
