"""What the session's tests share: front ends that have come some of the way."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from ringway.testing.frontend import FrontEnd, RefusedError
from ringway.vhost_user.messages import ProtocolFeature, Request

Connect = Callable[..., FrontEnd]
REPLY_ACK = ProtocolFeature.REPLY_ACK


def settle(front: FrontEnd) -> None:
    """Ask for something, so that all that was said before is done."""
    front.get_features()


def greeted(front: FrontEnd, protocol: ProtocolFeature = REPLY_ACK) -> FrontEnd:
    """A front end that negotiated features, and nothing else."""
    front.connect().get_features()
    front.set_features()
    front.set_protocol_features(protocol)
    return front


def prepared(front: FrontEnd, index: int = 0) -> FrontEnd:
    """All that a ring needs but the kick."""
    front.set_mem_table()
    front.set_vring_num(index)
    front.set_vring_base(index)
    front.set_vring_addr(index)
    return front


def refused(front: FrontEnd, request: Request, value: object = None, fds: tuple[int, ...] = ()) -> None:
    """Say it and be told no, while the session goes on."""
    with pytest.raises(RefusedError):
        front.ask(request, value, fds, need_reply=True)
    settle(front)


def a_pipe() -> int:
    """The read end of a pipe that nobody writes to."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader


BAD_MEMORY: dict[str, Callable[[], int]] = {
    "a pipe": a_pipe,
    "a directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "read-only": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "an eventfd": lambda: os.eventfd(0),
    "a path": lambda: os.open("/", os.O_PATH),
    "too short": lambda: os.memfd_create("short"),
}
