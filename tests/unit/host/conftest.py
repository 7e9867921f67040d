"""A host on engines that are dictionaries, in a folder of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from ringway.host.config import DaemonConfig
from ringway.host.host import Host
from ringway.host.store import Store
from ringway.model import EngineKind
from ringway.testing.engine import MemoryDriver, World

OpenHost = Callable[[], AbstractAsyncContextManager[Host]]


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the daemon runs in."""
    return "asyncio"


@pytest.fixture
def world() -> World:
    """What the engine has; it outlives hosts."""
    return World()


@pytest.fixture
def open_host(tmp_path: Path, world: World) -> OpenHost:
    """Start a host on the same state and the same world, as often as wanted."""

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Host]:
        with Store(tmp_path / "state.db") as store:
            drivers = {EngineKind.USER: MemoryDriver(world)}
            host = Host(drivers, store, DaemonConfig(reconcile_s=3600))
            await host.start()
            try:
                yield host
            finally:
                await host.close()

    return start
