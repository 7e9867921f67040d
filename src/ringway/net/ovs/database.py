"""Transactions with Open vSwitch's database: JSON-RPC over the library ``ovs``.

Each call has a connection of its own. There is nothing to reconnect, no copy that could be stale, and a call
that waits keeps no other one waiting. The library's IDL mirrors whole tables for a single thread, which asks
for one lock over all ports.

Spec: RFC 7047, 4.1
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Any, Final

import ovs.jsonrpc
import ovs.poller
import ovs.stream

from ringway.errors import ConflictError, PermissionDeniedError, RingwayError, UnreachableError

NAME: Final = "Open_vSwitch"
Operation = dict[str, Any]
Row = dict[str, Any]
_START: Final = "start it (systemctl start openvswitch-switch), or name another in [net.switch.ovs] database"


class Database:
    """Where the database is. Any thread may call.

    :param remote: ``unix:PATH`` or ``tcp:HOST:PORT``.
    :param timeout_s: for a call; what waits for the switch itself has as much again.
    """

    def __init__(self, remote: str, timeout_s: float) -> None:
        self.remote = remote
        self.timeout_s = timeout_s

    def transact(self, *operations: Operation, timeout_s: float | None = None) -> list[Row]:
        """Do all operations, or none of them.

        :returns: what each one returned.
        :raises UnreachableError: the database is not there or does not answer; what was asked may be done.
        :raises ConflictError: there is a row of that name already.
        :raises RingwayError: it refuses.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        with self.connect(deadline) as rpc:
            request = ovs.jsonrpc.Message.create_request("transact", [NAME, *operations])
            self.check(rpc.send(request))
            reply = self.receive(rpc, deadline)
            while reply.id != request.id:
                reply = self.receive(rpc, deadline)
        return _results(reply)

    def select(self, table: str, where: list[Any], columns: list[str]) -> list[Row]:
        """The rows that fit. :raises UnreachableError: as :meth:`transact`."""
        operation = {"op": "select", "table": table, "where": where, "columns": ["_uuid", *columns]}
        rows: list[Row] = self.transact(operation)[0]["rows"]
        return rows

    @contextlib.contextmanager
    def connect(self, deadline: float) -> Iterator[ovs.jsonrpc.Connection]:
        """A connection, closed at the end. :raises UnreachableError: there is nobody."""
        left_ms = max(0, round((deadline - time.monotonic()) * 1000))
        error, stream = ovs.stream.Stream.open_block(ovs.stream.Stream.open(self.remote), left_ms)
        self.check(error)
        rpc = ovs.jsonrpc.Connection(stream)
        try:
            yield rpc
        finally:
            rpc.close()

    def receive(
        self, rpc: ovs.jsonrpc.Connection, deadline: float | None, wake: int | None = None
    ) -> ovs.jsonrpc.Message:
        """The next message; the server's own questions whether we live are answered.

        :param wake: a descriptor that ends the waiting when it can be read.
        :raises UnreachableError: none came in time, or ever will.
        :raises InterruptedError: woken.
        """
        while True:
            rpc.run()
            error, message = rpc.recv()
            if error == errno.EAGAIN:
                self._wait(rpc, deadline, wake)
                continue
            self.check(error)
            if message.method != "echo":
                return message
            self.check(rpc.send(ovs.jsonrpc.Message.create_reply(message.params, message.id)))

    def check(self, error: int) -> None:
        """:raises UnreachableError: the number is that of a failure."""
        if error in (errno.EACCES, errno.EPERM):
            hint = "run as root, or as a user that may connect to the database's socket"
            raise PermissionDeniedError(
                f"Open vSwitch's database at '{self.remote}' is closed to us", hint=hint
            )
        if error:
            reason = "it hung up" if error == ovs.jsonrpc.EOF else os.strerror(error)
            raise UnreachableError(
                f"Open vSwitch's database at '{self.remote}' cannot be reached: {reason}", hint=_START
            )

    def _wait(self, rpc: ovs.jsonrpc.Connection, deadline: float | None, wake: int | None) -> None:
        poller = ovs.poller.Poller()
        rpc.wait(poller)
        rpc.recv_wait(poller)
        if wake is not None:
            poller.fd_wait(wake, ovs.poller.POLLIN)
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise UnreachableError(
                    f"Open vSwitch's database at '{self.remote}' does not answer", hint=_START
                )
            poller.timer_wait(left_s * 1000 + 1)
        poller.block()
        if wake is not None and _readable(wake):
            raise InterruptedError


def _readable(fd: int) -> bool:
    poller = ovs.poller.SelectPoll()
    poller.register(fd, ovs.poller.POLLIN)
    return bool(poller.poll(0))


def _results(reply: ovs.jsonrpc.Message) -> list[Row]:
    """:raises RingwayError: the transaction was refused."""
    if reply.error is not None:
        raise RingwayError(f"Open vSwitch's database refuses: {reply.error}")
    for result in reply.result:
        if result is not None and "error" in result:
            reason = result.get("details") or result["error"]
            kind = ConflictError if result["error"] == "constraint violation" else RingwayError
            raise kind(f"Open vSwitch's database refuses: {reason}")
    rows: list[Row] = reply.result
    return rows
