"""A guest is made with all that it needs, or nothing of it is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError
from ringway.model import BlockDevice, GuestSpec, GuestState, PlugSpec, PortSpec, Via, VolumeSource
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, SwitchWorld

from ..hosts import running_host
from .helpers import done

pytestmark = pytest.mark.anyio
PORT = PortSpec(name="p0", switch="memory")


def fail(verb: str, name: str) -> None:
    if verb == "create":
        raise RingwayError(f"no {name}")


def _state(folder: Path) -> Path:
    """What is in it is no disk of a guest's."""
    (folder / "state").mkdir()
    return folder / "state"


@pytest.fixture
def spec(tmp_path: Path) -> GuestSpec:
    """A guest with a disk that is there, one that is made, and a port; an endpoint serves the disks."""
    image = tmp_path / "root.img"
    image.write_bytes(bytes(1 << 20))
    (tmp_path / "pool").mkdir()
    blank = BlockDevice(source=VolumeSource.BLANK, size_bytes=1 << 20)
    return GuestSpec(
        name="web",
        block_devices=(BlockDevice(id="root", boot_index=0), blank),
        volumes={"root": str(image)},
        pools={"": str(tmp_path / "pool")},
        ports=(PORT,),
        via=Via.ENDPOINT,
    )


async def test_a_guest_has_what_was_asked_for(tmp_path: Path, spec: GuestSpec) -> None:
    guests, switch = GuestWorld(), SwitchWorld()
    async with running_host(_state(tmp_path), World(), guests, switch) as host:
        plan = await host.creations.plan(spec)
        assert [change.object for change in plan.changes] == ["endpoint/web", "port/p0", "guest/web"]
        assert (guests.guests, switch.ports, list((tmp_path / "pool").iterdir())) == ({}, {}, [])
        made = await done(host.create_guest(spec))
        assert (made.state, made.ports) == (GuestState.RUNNING, ("p0",))
        assert [one.endpoint for one in made.attachments] == ["web"]
        endpoint = await host.endpoint("web")
        assert endpoint.luns[0].path == spec.volumes["root"]
        assert len(list((tmp_path / "pool").iterdir())) == 1
        document = guests.documents["web"]
        port = await host.ports.show("p0")
        assert port.mac in document
        assert port.socket in document
        with pytest.raises(ConflictError, match="a guest 'web' already"):
            await done(host.create_guest(spec))
        with pytest.raises(ConflictError, match="attached to guest 'web'"):
            await done(host.delete("web"))


async def test_a_guest_that_does_not_start_leaves_nothing(tmp_path: Path, spec: GuestSpec) -> None:
    guests, switch, world = GuestWorld(before=fail), SwitchWorld(), World()
    async with running_host(_state(tmp_path), world, guests, switch) as host:
        with pytest.raises(RingwayError, match="no web"):
            await done(host.create_guest(spec))
        assert (guests.guests, switch.ports, world.endpoints) == ({}, {}, {})
        assert list((tmp_path / "pool").iterdir()) == []


async def test_what_was_there_before_stays(tmp_path: Path, spec: GuestSpec) -> None:
    guests, switch = GuestWorld(before=fail), SwitchWorld()
    async with running_host(_state(tmp_path), World(), guests, switch) as host:
        await done(host.create_port(PORT))
        with pytest.raises(RingwayError, match="no web"):
            await done(host.create_guest(spec))
        assert switch.ports.keys() == {"p0"}


async def test_a_volume_that_nobody_knows_is_refused_before_anything_is_made(
    tmp_path: Path, spec: GuestSpec
) -> None:
    guests, switch = GuestWorld(), SwitchWorld()
    lost = GuestSpec(name="web", block_devices=(BlockDevice(id="lost"),), ports=(PORT,))
    async with running_host(_state(tmp_path), World(), guests, switch) as host:
        with pytest.raises(NotFoundError, match="'lost'"):
            await done(host.create_guest(lost))
        assert switch.ports == {}


async def test_what_another_guest_has_is_refused_before_anything_is_made(
    tmp_path: Path, spec: GuestSpec
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    guests.add("mail")
    async with running_host(_state(tmp_path), world, guests, switch) as host:
        await done(host.create_port(PORT))
        await done(host.plug("mail", PlugSpec(port="p0")))
        with pytest.raises(BusyError, match="guest 'mail' has port 'p0'"):
            await done(host.create_guest(spec))
    assert (set(guests.guests), world.endpoints) == ({"mail"}, {})


async def test_of_two_guests_of_one_name_one_is_made_and_keeps_what_it_has(
    tmp_path: Path, spec: GuestSpec
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(_state(tmp_path), world, guests, switch) as host:
        ended = await asyncio.gather(
            *(done(host.create_guest(spec)) for _ in range(2)), return_exceptions=True
        )
        assert sum(isinstance(one, ConflictError) for one in ended) == 1
        assert host.attachments.guest_of("web") == "web"
    assert (set(guests.guests), set(world.endpoints)) == ({"web"}, {"web"})
