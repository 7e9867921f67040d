"""Messages of any length and in any order, over a real socket to a real target: a state machine says them.

It hangs up in mid-message, comes twice, says half of something, takes no answer. The target never meets an
exception that it did not expect, loses no file descriptor, and serves the next front end.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ringway.model import BackstoreSpec, DeviceKind, LunSpec, SpecKind, TargetConfig
from ringway.target.listen import listen
from ringway.target.target import Target
from ringway.testing.frontend import BlkFrontEnd
from ringway.vhost_user.messages import HEADER, REQUESTS, Request

from .test_hostile import FDS, PAYLOADS

LONG = os.environ.get("RINGWAY_LONG") == "1"
SIZE = 1 << 20


class _Surprises(logging.Handler):
    """Keeps what was logged with a traceback: nobody expected it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The socket of a target with a disk in memory."""
    socket_path = str(tmp_path / "vhost.sock")
    disk = LunSpec(0, 0, BackstoreSpec(SpecKind.RAM, size_bytes=SIZE))
    with Target(TargetConfig(DeviceKind.BLK, (disk,), queues=2), listen(socket_path)):
        yield socket_path


def serves(path: str) -> int:
    """A front end comes, writes, reads and leaves. :returns: how many fds are open meanwhile."""
    with BlkFrontEnd(path, queues=2, queue_size=8).open() as front:
        data = os.urandom(512)
        assert front.write(8, data, queue=1).status == 0
        assert front.read(8, 512, queue=1).data == data
        return len(os.listdir("/proc/self/fd"))


fd_kinds = st.lists(st.integers(0, len(FDS) - 1), max_size=3)
messages = st.sampled_from(list(PAYLOADS)).flatmap(
    lambda request: st.tuples(st.just(request), PAYLOADS[request])
)


class AnyFrontEnd(RuleBasedStateMachine):
    """A front end without manners."""

    path: str
    fds: int
    surprises: _Surprises

    @initialize()
    def come(self) -> None:
        self.endpoint = socket.socket(socket.AF_UNIX)
        self.endpoint.connect(self.path)
        self.endpoint.setblocking(False)  # send_fds and recv_fds of Python 3.11 take no heed of flags
        self.rest = b""

    @rule(message=messages, acknowledged=st.booleans(), kinds=fd_kinds)
    def say(self, message: tuple[Request, object], acknowledged: bool, kinds: list[int]) -> None:
        self._send(self._packed(message, acknowledged), kinds)

    @rule(message=messages, kinds=fd_kinds, cut=st.integers(1, 30))
    def begin_to_say(self, message: tuple[Request, object], kinds: list[int], cut: int) -> None:
        packed = self._packed(message, True)
        self._send(packed[:cut], kinds)
        self.rest = packed[cut:]

    @precondition(lambda self: self.rest)
    @rule(kinds=fd_kinds)
    def say_the_rest(self, kinds: list[int]) -> None:
        self._send(self.rest, kinds)
        self.rest = b""

    @rule(request=st.integers(0, 60), size=st.integers(0, 5000), kinds=fd_kinds)
    def announce(self, request: int, size: int, kinds: list[int]) -> None:
        self._send(HEADER.pack(request, 9, size) + bytes(min(size, 64)), kinds)

    @rule(data=st.binary(min_size=1, max_size=64), kinds=fd_kinds)
    def babble(self, data: bytes, kinds: list[int]) -> None:
        self._send(data, kinds)

    @rule()
    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            _, fds, _, _ = socket.recv_fds(self.endpoint, 4096, 16)
            for fd in fds:
                os.close(fd)

    @rule()
    def come_again(self) -> None:
        self.endpoint.close()
        self.come()

    @rule()
    def come_twice(self) -> None:
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(self.path)

    def teardown(self) -> None:
        self.endpoint.close()
        assert serves(self.path) == self.fds
        assert self.surprises.found == []

    @staticmethod
    def _packed(message: tuple[Request, object], acknowledged: bool) -> bytes:
        request, value = message
        payload = REQUESTS[request].pack(value)
        return HEADER.pack(request, 9 if acknowledged else 1, len(payload)) + payload

    def _send(self, data: bytes, kinds: list[int]) -> None:
        fds = [FDS[kind]() for kind in kinds]
        try:
            with contextlib.suppress(ConnectionError, BlockingIOError):
                socket.send_fds(self.endpoint, [data], fds)
        finally:
            for fd in fds:
                os.close(fd)


@pytest.mark.timeout(3600 if LONG else 300)
def test_any_front_end_leaves_a_target_that_serves_the_next(path: str) -> None:
    surprises = _Surprises()
    logging.getLogger().addHandler(surprises)
    gc.collect()  # what earlier tests left open must not be closed while we count
    fds = serves(path)
    machine = type("Machine", (AnyFrontEnd,), {"path": path, "fds": fds, "surprises": surprises})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=2000 if LONG else 60,
                stateful_step_count=60 if LONG else 30,
                derandomize=not LONG,
            ),
        )
    finally:
        logging.getLogger().removeHandler(surprises)
