"""A host on engine, guests and switch that are dictionaries."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from ringway.engine.base import Driver
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
    kernel: World | None = None,
) -> AsyncIterator[Host]:
    """A host that has begun; the next one in this folder, on these worlds, takes over what it had.

    :param guests: without it the host has no libvirt.
    :param switch: what its switch 'memory' has, or another one.
    :param kernel: what its kernel's engine has, if there is one.
    """
    with Store(folder / "state.db") as store:
        host = Host(
            _engines(world, kernel),
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


def _engines(world: World, kernel: World | None) -> dict[EngineKind, Driver]:
    found: dict[EngineKind, Driver] = {EngineKind.USER: MemoryDriver(world)}
    if kernel is not None:
        found[EngineKind.LIO] = MemoryDriver(kernel, EngineKind.LIO)
    return found


def _switches(switch: SwitchWorld | Switch | None) -> dict[str, Switch]:
    if isinstance(switch, SwitchWorld):
        switch = MemorySwitch(switch)
    return {} if switch is None else {switch.name: switch}
