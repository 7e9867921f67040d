"""A server with a recorder behind it, and a front end before it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.testing.frontend import FrontEnd
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user import Server


@pytest.fixture
def device() -> RecorderDevice:
    return RecorderDevice()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vhost.sock"


@pytest.fixture
def server(device: RecorderDevice, path: Path) -> Iterator[Server]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    with Server(listener, device) as server:
        yield server


@pytest.fixture
def connect(server: Server, path: Path) -> Iterator[Callable[..., FrontEnd]]:
    """Make front ends; keywords are :class:`FrontEnd`'s. They are closed after the test."""
    made: list[FrontEnd] = []

    def make(**more: object) -> FrontEnd:
        made.append(FrontEnd(path, **{"queues": 2, "queue_size": 8, **more}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for front in made:
        front.close()
