"""Ports are made, and plugged in, once each, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ringway.errors import (
    BusyError,
    ConflictError,
    RingwayError,
    UsageError,
)
from ringway.host.events import Kind
from ringway.model import (
    PlugSpec,
    PortMode,
    PortSpec,
    PortState,
)
from ringway.testing.hypervisor import GuestWorld, SwitchWorld

from .conftest import OpenHost
from .helpers import FROM_BOTH, DiedError, die_at, done, fail

pytestmark = pytest.mark.anyio


def port(name: str, **more: object) -> PortSpec:
    return PortSpec(name=name, switch="memory", **more)  # type: ignore[arg-type]


async def test_a_port_is_made_plugged_and_deleted(
    start: OpenHost, guests: GuestWorld, switch: SwitchWorld
) -> None:
    web = guests.add("web")
    async with start() as host:
        made = await done(host.create_port(port("p0")))
        assert (made.state, made.mac) == (PortState.READY, "52:54:00:00:00:00")
        assert await done(host.create_port(port("p0"))) == made
        with pytest.raises(ConflictError, match="'p0' already"):
            await done(host.create_port(port("p0", mtu=9000)))
        with pytest.raises(ConflictError, match="address of port 'p0'"):
            await done(host.create_port(port("p1", mac=made.mac)))
        plugged = await done(host.plug("web", PlugSpec(port="p0")))
        assert (plugged.guest, web.ports) == ("web", {"p0"})
        assert (await host.plugs.plan("web", PlugSpec(port="p0"))).changes == ()
        assert switch.guests == {"p0": web.uuid}
        with pytest.raises(BusyError, match="plugged into guest 'web'"):
            await done(host.delete_port("p0"))
        await done(host.unplug("web", "p0", **FROM_BOTH))
        assert (await host.ports.show("p0")).guest is None
        assert (await host.plugs.plan("web", PlugSpec(port="p0"))).changes
        assert switch.guests == {}
        await done(host.plug("web", PlugSpec(port="p0")))
        await done(host.delete_port("p0", force=True))
        assert (await host.ports.list(), web.ports, switch.ports) == ((), set(), {})


async def test_a_port_is_forgotten_by_force_when_its_switch_has_gone(
    start: OpenHost, guests: GuestWorld, switch: SwitchWorld
) -> None:
    """What is in the switch is left to its owner; the name can be had again."""
    guests.add("web")
    async with start() as host:
        await done(host.create_port(port("p0")))
        await done(host.plug("web", PlugSpec(port="p0")))
        switch.before = fail
        with pytest.raises(RingwayError, match="no"):
            await done(host.delete_port("p0", force=False))
        await done(host.delete_port("p0", force=True))
        assert await host.ports.list() == ()
        told = [event for event in host.events._last if event.kind is Kind.PORT_DELETED]
        assert [event.message for event in told] == [
            "port 'p0' is forgotten; what its switch has of it stays: no"
        ]
    assert list(switch.ports) == ["p0"]


async def test_a_port_shares_memory_if_it_is_asked_to(start: OpenHost, guests: GuestWorld) -> None:
    web = guests.add("web")
    web.shared_memory = False
    async with start() as host:
        await done(host.create_port(port("p0")))
        with pytest.raises(ConflictError, match="not shared"):
            await done(host.plug("web", PlugSpec(port="p0")))
        await done(host.plug("web", PlugSpec(port="p0", fix_memory=True)))
        assert web.ports == {"p0"}


async def test_a_port_is_one_guests(start: OpenHost, guests: GuestWorld) -> None:
    guests.add("web")
    guests.add("mail")
    async with start() as host:
        await done(host.create_port(port("p0")))
        await done(host.plug("web", PlugSpec(port="p0")))
        with pytest.raises(BusyError, match="plugged into guest 'web'"):
            await done(host.plug("mail", PlugSpec(port="p0")))


async def test_a_guest_that_runs_is_not_made_to_wait_for_a_switch(
    start: OpenHost, guests: GuestWorld, switch: SwitchWorld
) -> None:
    """QEMU that listens at a port stands still until its switch connects."""
    guests.add("web")
    async with start() as host:
        await done(host.create_port(port("p0")))
        lost = switch.ports.pop("p0")
        with pytest.raises(ConflictError, match="stand still"):
            await done(host.plug("web", PlugSpec(port="p0")))
        switch.ports["p0"] = lost
        assert (await done(host.plug("web", PlugSpec(port="p0")))).guest == "web"
        await done(host.create_port(port("p1", mode=PortMode.CLIENT)))
        assert (await done(host.plug("web", PlugSpec(port="p1")))).guest == "web"


async def test_a_port_that_its_switch_refuses_leaves_nothing(start: OpenHost, switch: SwitchWorld) -> None:
    async with start() as host:
        with pytest.raises(UsageError, match="no driver for the switch 'snabb'"):
            await done(host.create_port(PortSpec(name="p0", switch="snabb")))
        switch.before = lambda verb, _name: fail(verb, "") if verb == "create" else None
        with pytest.raises(RingwayError, match="no"):
            await done(host.create_port(port("p0")))
        assert await host.ports.list() == ()


async def test_ports_survive_a_restart_and_the_loss_of_the_switch(
    start: OpenHost, switch: SwitchWorld
) -> None:
    async with start() as host:
        before = await done(host.create_port(port("p0")))
    switch.ports.clear()
    async with start() as host:
        assert await host.ports.show("p0") == before
        assert switch.ports.keys() == {"p0"}


async def test_of_two_ports_with_one_address_the_second_is_refused(
    start: OpenHost, switch: SwitchWorld
) -> None:
    mac = "52:54:00:00:00:99"
    async with start() as host:
        ports = [PortSpec(name=name, switch="memory", mac=mac) for name in ("p0", "p1")]
        ended = await asyncio.gather(
            *(done(host.create_port(port)) for port in ports), return_exceptions=True
        )
        assert sum(isinstance(one, ConflictError) for one in ended) == 1
    assert len(switch.ports) == 1


async def test_a_port_that_a_guest_had_is_not_taken_back_when_it_is_plugged_in_again(
    start: OpenHost, guests: GuestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create_port(PortSpec(name="p0", switch="memory")))
        await done(host.plug("web", PlugSpec(port="p0")))
        monkeypatch.setattr("ringway.faults.point", die_at("plug.confirmed"))
        with contextlib.suppress(DiedError):
            await host.plug("web", PlugSpec(port="p0")).ended()
        monkeypatch.undo()
    async with start() as host:
        assert (await host.ports.show("p0")).guest == "web"
    assert web.ports == {"p0"}


async def test_a_port_of_a_guest_that_is_gone_or_does_not_answer_can_go(
    start: OpenHost, guests: GuestWorld, switch: SwitchWorld
) -> None:
    guests.add("web")
    mail = guests.add("mail")
    async with start() as host:
        await done(host.create_port(PortSpec(name="p0", switch="memory")))
        await done(host.plug("web", PlugSpec(port="p0")))
        del guests.guests["web"]
        await done(host.plug("mail", PlugSpec(port="p0")))  # before anybody told of it
        guests.before = fail
        await done(host.delete_port("p0", force=True))
    assert (switch.ports, mail.ports) == ({}, {"p0"})
