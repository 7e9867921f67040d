"""A QEMU character device whose other end is ours: everything is collected, patterns can be waited for."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time

from ringway.errors import GuestError


class Stream:
    """The host's end of a socket pair; a thread collects what the guest prints.

    Nothing that was printed is lost: the pair exists before QEMU starts.

    :param name: what it is called in messages and on QEMU's command line.
    :param connected: a connection that QEMU made already, which is ours from now on; a child inherits none
        then.
    """

    def __init__(self, name: str, connected: socket.socket | None = None) -> None:
        self.name = name
        self._theirs: socket.socket | None = None
        if connected is None:
            self._ours, self._theirs = socket.socketpair()
        else:
            self._ours = connected
        self._changed = threading.Condition()
        self._collected = bytearray()
        self._read = 0
        self._closed = False
        self._thread = threading.Thread(target=self._collect, name=f"stream-{name}", daemon=True)

    def start(self) -> None:
        """Drop our copy of QEMU's end, so that its death is seen here, and begin to collect."""
        self._close_theirs()
        self._thread.start()

    def fileno_for_child(self) -> int:
        """Return the descriptor that QEMU inherits; valid until :meth:`start`."""
        assert self._theirs is not None, "it is connected already"
        return self._theirs.fileno()

    def write(self, data: bytes) -> None:
        """Send to the guest.

        :raises GuestError: QEMU is gone.
        """
        try:
            self._ours.sendall(data)
        except OSError as error:
            raise GuestError(f"{self.name}: the guest is gone") from error

    def wait_for(self, pattern: bytes, timeout_s: float) -> re.Match[bytes]:
        """Wait for a regular expression in what has not been consumed yet, and consume up to its end.

        :raises GuestError: it did not come in time, or the guest went away before.
        """
        expression = re.compile(pattern, re.DOTALL)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (match := expression.search(self._collected, self._read)) is None:
                self._wait_more(deadline, f"{pattern!r}")
            self._read = match.end()
            return match

    def take(self, count: int, timeout_s: float) -> bytes:
        """Consume exactly ``count`` bytes, waiting for them.

        :raises GuestError: they did not come in time, or the guest went away before.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._collected) - self._read < count:
                self._wait_more(deadline, f"{count} bytes")
            begin, self._read = self._read, self._read + count
            return bytes(self._collected[begin : self._read])

    def collected(self) -> bytes:
        """Return all that came since the start, consumed or not."""
        with self._changed:
            return bytes(self._collected)

    def closed(self) -> bool:
        """Tell whether the other side has hung up, so that nothing more will come."""
        with self._changed:
            return self._closed

    def tail(self, lines: int = 30) -> str:
        """Return the last lines as text, for a message."""
        text = self.collected().decode("utf-8", "replace").replace("\r", "")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Hang up and wait for the collector."""
        self._close_theirs()
        # Shut down, because closing alone does not wake a thread that is blocked in recv().
        with contextlib.suppress(OSError):  # the other side may have hung up first
            self._ours.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join()
        self._ours.close()

    def _close_theirs(self) -> None:
        if self._theirs is not None:
            self._theirs.close()

    def _wait_more(self, deadline: float, wanted: str) -> None:
        if self._closed:
            raise GuestError(f"{self.name}: the guest went away before {wanted}")
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise GuestError(f"{self.name}: no {wanted} in time")
        self._changed.wait(remaining_s)

    def _collect(self) -> None:
        while chunk := self._receive():
            with self._changed:
                self._collected += chunk
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._ours.recv(1 << 16)
        except OSError:
            return b""
