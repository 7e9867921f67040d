"""A small synchronous client of QEMU's monitor protocol."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from ringway.errors import GuestError
from ringway.testing.waiting import PATIENCE_S

Message = dict[str, Any]


class Qmp:
    """One monitor connection over a connected socket.

    Events that arrive while a command is waited for are kept in order until somebody asks for them.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._events: list[Message] = []

    def negotiate(self, timeout_s: float) -> None:
        """Take the greeting and leave capabilities mode."""
        self._next(time.monotonic() + timeout_s)
        self.execute("qmp_capabilities", timeout_s=timeout_s)

    def execute(
        self, command: str, *, timeout_s: float = PATIENCE_S, fds: Sequence[int] = (), **arguments: Any
    ) -> Any:
        """Run a command; underscores in argument names stand for hyphens.

        :param fds: sent along; they stay open here.
        :returns: what QEMU put in ``return``.
        :raises GuestError: QEMU refused (its own description is the message), went away or did not answer in
            time.
        """
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        try:
            socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], fds)
        except OSError as error:
            raise GuestError(f"QMP {command}: QEMU is gone") from error
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._next(deadline)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise GuestError(f"QMP {command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait_event(
        self, name: str, timeout_s: float, matches: Callable[[Message], bool] = lambda _data: True
    ) -> Message:
        """Wait for an event, dropping the ones before it.

        :param matches: looks at the event's data.
        :returns: the event's data.
        :raises GuestError: it did not come in time, or QEMU went away.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._events.pop(0) if self._events else self._next(deadline)
            data: Message = message.get("data", {})
            if message.get("event") == name and matches(data):
                return data

    def _next(self, deadline: float) -> Message:
        while b"\n" not in self._received:
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            self._received += self._receive()
        line, self._received = self._received.split(b"\n", 1)
        message: Message = json.loads(line)
        return message

    def _receive(self) -> bytes:
        try:
            chunk = self._connection.recv(1 << 16)
        except TimeoutError as error:
            raise GuestError("QMP: QEMU did not answer in time") from error
        except OSError as error:
            raise GuestError("QMP: QEMU is gone") from error
        if not chunk:
            raise GuestError("QMP: QEMU is gone")
        return chunk
