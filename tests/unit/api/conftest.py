"""The application over a host on engines in memory: asked directly, and through real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from ringway.api.app import build
from ringway.api.doors import Door, open_doors
from ringway.api.server import Server
from ringway.host import places
from ringway.host.config import ApiConfig
from ringway.host.host import Host
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, SwitchWorld

from ..hosts import running_host
from .asking import Asker

Start = Callable[[], AbstractAsyncContextManager[Asker]]


def _guests() -> GuestWorld:
    """One, called 'web'."""
    found = GuestWorld()
    found.add("web")
    return found


@pytest.fixture
def start(tmp_path: Path, world: World) -> Start:
    """Begin a host, and ask its application as somebody who may change things."""

    @contextlib.asynccontextmanager
    async def begin() -> AsyncIterator[Asker]:
        async with running_host(tmp_path, world, _guests(), SwitchWorld()) as host:
            yield Asker(build(host), host)

    return begin


class Served:
    """A host that serves on sockets in a folder."""

    def __init__(self, host: Host, doors: list[Door], folder: Path) -> None:
        self.host = host
        self.doors = doors
        self.api = folder / "run" / "api.sock"
        self.read_only = folder / "run" / "ro.sock"


@pytest.fixture
def serve(tmp_path: Path, world: World) -> Callable[[], AbstractAsyncContextManager[Served]]:
    """Begin a host, and let it serve; eight connections fit through each door."""

    @contextlib.asynccontextmanager
    async def begin() -> AsyncIterator[Served]:
        where = places.below(tmp_path)
        where.make()
        async with running_host(where.state, world, _guests(), SwitchWorld()) as host:
            doors = open_doors(where, ApiConfig(connections=8))
            server = Server(build(host), doors)
            serving = asyncio.create_task(server.run_until_stopped())
            try:
                yield Served(host, doors, tmp_path)
            finally:
                host.events.close()
                server.stop()
                await serving
                for door in doors:
                    door.remove()

    return begin
