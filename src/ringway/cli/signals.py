"""Wait for a target's end or for a signal, without waking up in between."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Iterator
from typing import Final

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """A socket that becomes readable when this process is asked to stop."""

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver
        self.received: signal.Signals | None = None

    def wait(self, target: int, timeout_s: float | None) -> bool:
        """Wait for a signal, or until the file descriptor ``target`` is readable.

        :returns: whether it is time to go.
        """
        ready = select.select([target, self._receiver.fileno()], [], [], timeout_s)[0]
        if self._receiver.fileno() in ready:
            self.received = signal.Signals(self._receiver.recv(1)[0])
        return bool(ready)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Turn SIGTERM, SIGINT and SIGHUP into readiness until the block is left. For the main thread.

    What is ignored stays so: ``nohup`` means it.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    with receiver, sender:
        old_fd = signal.set_wakeup_fd(sender.fileno())
        wanted = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
        old = {number: signal.signal(number, lambda *_: None) for number in wanted}
        try:
            yield StopSignals(receiver)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)
