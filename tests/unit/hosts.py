"""A host on an engine that is a dictionary."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from ringway.host.config import DaemonConfig
from ringway.host.host import Host
from ringway.host.store import Store
from ringway.model import EngineKind
from ringway.testing.engine import MemoryDriver, World


@contextlib.asynccontextmanager
async def running_host(folder: Path, world: World) -> AsyncIterator[Host]:
    """A host that has begun; the next one in this folder, on this world, takes over what it had."""
    with Store(folder / "state.db") as store:
        drivers = {EngineKind.USER: MemoryDriver(world)}
        restarts = folder / "restarts.json"
        host = Host(drivers, store, DaemonConfig(reconcile_s=3600), restarts=restarts)
        await host.start()
        try:
            yield host
        finally:
            await host.close()
