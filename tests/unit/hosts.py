"""A host on engine, guests and switch that are dictionaries."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from ringway.host.config import DaemonConfig
from ringway.host.host import Host
from ringway.host.store import Store
from ringway.model import EngineKind
from ringway.net.base import Switch
from ringway.testing.engine import MemoryDriver, World
from ringway.testing.hypervisor import GuestWorld, MemoryHypervisor, MemorySwitch, SwitchWorld


@contextlib.asynccontextmanager
async def running_host(
    folder: Path,
    world: World,
    guests: GuestWorld | None = None,
    switch: SwitchWorld | Switch | None = None,
) -> AsyncIterator[Host]:
    """A host that has begun; the next one in this folder, on these worlds, takes over what it had.

    :param guests: without it the host has no libvirt.
    :param switch: what its switch 'memory' has, or another one.
    """
    with Store(folder / "state.db") as store:
        host = Host(
            {EngineKind.USER: MemoryDriver(world)},
            store,
            DaemonConfig(reconcile_s=3600),
            restarts=folder / "restarts.json",
            hypervisor=MemoryHypervisor(guests) if guests is not None else None,
            switches=_switches(switch),
        )
        await host.start()
        try:
            yield host
        finally:
            await host.close()


def _switches(switch: SwitchWorld | Switch | None) -> dict[str, Switch]:
    if isinstance(switch, SwitchWorld):
        switch = MemorySwitch(switch)
    return {} if switch is None else {switch.name: switch}
