"""An engine that hangs holds up itself, and a look that took long overrides nothing that is newer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ringway.errors import UnreachableError
from ringway.host import actual, hypervisors, operations
from ringway.model import EndpointInfo, EndpointState
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, MemoryHypervisor
from ringway.testing.waiting import PATIENCE_S

from .conftest import OpenHost
from .helpers import done, driver_of, spec

pytestmark = pytest.mark.anyio


class Gate:
    """Lets calls through when it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_by(self) -> None:
        """Wait until it is open."""
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)

    async def wait_reached(self) -> None:
        """Until somebody waits."""
        while not self.reached.is_set():
            await asyncio.sleep(0.005)


async def test_an_old_list_overrides_nothing_newer(
    open_host: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_host() as host:
        await done(host.create(spec("old")))
        gate, driver = Gate(), driver_of(host)
        look = driver.list

        def slow_list() -> tuple[EndpointInfo, ...]:
            found = look()
            gate.pass_by()
            return found

        monkeypatch.setattr(driver, "list", slow_list)
        looking = asyncio.create_task(host.actual.refresh())
        await gate.wait_reached()
        monkeypatch.setattr(driver, "list", look)
        await done(host.create(spec("new")))
        await done(host.delete("old"))
        gate.opened.set()
        await looking
        listed = {info.name: info.state for info in await host.endpoints()}
        assert listed == {"new": EndpointState.READY}
        assert {info.name for info in host.actual.all_seen(driver.kind)} == {"new"}


async def test_a_list_does_not_wait_for_an_engine_that_hangs(
    open_host: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actual, "PATIENCE_S", 0.05)
    monkeypatch.setattr(actual, "MAX_AGE_S", 0.0)
    async with open_host() as host:
        await done(host.create(spec("a")))
        gate = Gate()
        look = driver_of(host).list

        def hanging_list() -> tuple[EndpointInfo, ...]:
            gate.pass_by()
            return look()

        monkeypatch.setattr(driver_of(host), "list", hanging_list)
        assert [info.name for info in await host.endpoints()] == ["a"]
        gate.opened.set()


async def test_a_change_that_hangs_holds_up_neither_others_nor_the_end(
    open_host: OpenHost, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "CLOSING_S", 0.05)
    gate = Gate()

    def hang(_verb: str, name: str) -> None:
        if name == "stuck":
            gate.pass_by()

    world.before = hang
    async with open_host() as host:
        stuck = host.create(spec("stuck"))
        await gate.wait_reached()
        assert (await done(host.create(spec("other")))).state is EndpointState.READY
        assert not await host.close()
        gate.opened.set()
        await stuck.ended()


async def test_libvirt_that_hangs_holds_up_neither_looks_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, world = Gate(), GuestWorld()
    monkeypatch.setattr(hypervisors, "_LOOK_S", 0.05)
    monkeypatch.setattr(hypervisors, "_PROBE_S", 0.05)
    for verb in ("guests", "probe"):
        monkeypatch.setattr(MemoryHypervisor, verb, lambda _self: gate.pass_by())
    guests = hypervisors.Guests(MemoryHypervisor(world))
    try:
        with pytest.raises(UnreachableError, match="has not answered"):
            await guests.list()
        (check,) = await guests.probe()
        assert not check.ok
        assert not await guests.close()
    finally:
        gate.opened.set()
