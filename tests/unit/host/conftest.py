"""A host on engines that are dictionaries, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from ringway.host.host import Host
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, SwitchWorld

from ..hosts import running_host

OpenHost = Callable[[], AbstractAsyncContextManager[Host]]


@pytest.fixture
def open_host(tmp_path: Path, world: World) -> OpenHost:
    """Start a host on the same state and the same world, as often as wanted."""
    return lambda: running_host(tmp_path, world)


@pytest.fixture
def guests() -> GuestWorld:
    return GuestWorld()


@pytest.fixture
def switch() -> SwitchWorld:
    return SwitchWorld()


@pytest.fixture
def start(tmp_path: Path, guests: GuestWorld, switch: SwitchWorld) -> OpenHost:
    """Start a host on the same worlds, as often as wanted."""
    world = World()

    return lambda: running_host(tmp_path, world, guests, switch)
