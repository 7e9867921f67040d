"""No disk is had twice: by an endpoint, and by a guest whose QEMU opens it."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import BusyError, RingwayError, UnreachableError
from ringway.model import (
    BackstoreSpec,
    BlockDevice,
    DiskType,
    EndpointSpec,
    EngineKind,
    GuestDisk,
    GuestSpec,
    LunSpec,
    SpecKind,
    Via,
)
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, MemoryHypervisor

from ..hosts import running_host
from . import helpers
from .helpers import done

pytestmark = pytest.mark.anyio


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What is in it is no disk of a guest's."""
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def link(image: Path) -> Path:
    """The same file under another name."""
    os.link(image, image.parent / "b.img")
    return image.parent / "b.img"


def guest(disk: Path | str, name: str = "web", **more: object) -> GuestSpec:
    spec = GuestSpec(name=name, block_devices=(BlockDevice(id="x"),), volumes={"x": str(disk)}, start=False)
    return replace(spec, **more)


def has(path: Path, **more: object) -> GuestDisk:
    disk = GuestDisk(target="sda", bus="scsi", device="disk", source=str(path))
    return replace(disk, **more)


@pytest.mark.parametrize("via", Via)
@pytest.mark.parametrize("by_id", [False, True])
async def test_a_file_that_an_endpoint_serves_is_refused_by_whatever_name(
    state: Path, image: Path, link: Path, *, via: Via, by_id: bool
) -> None:
    """It went past the check as a path; then QEMU's lock spoke, or with the kernel's engine nobody."""
    guests, world = GuestWorld(), World()
    spec = guest(link, via=via)
    if by_id:
        spec = replace(spec, block_devices=(BlockDevice(id=str(link)),), volumes={})
    async with running_host(state, world, guests) as host:
        await done(host.create(helpers.spec("db0", helpers.disk(0, str(image)))))
        for doing in (host.creations.plan(spec), done(host.create_guest(spec))):
            with pytest.raises(BusyError, match="is LUN 0:0 of endpoint 'db0'; two would destroy") as refused:
                await doing
            assert "attach GUEST db0" in (refused.value.hint or "")
        assert (guests.guests, set(world.endpoints), host.creations.left()) == ({}, {"db0"}, ())
        await done(host.delete("db0"))
        assert (await done(host.create_guest(spec))).name == "web"


async def test_a_backstore_by_its_name_is_refused_too(state: Path, image: Path) -> None:
    async with running_host(state, World(), GuestWorld()) as host:
        await done(host.create(helpers.spec("db0", helpers.disk(0, str(image)))))
        serial = (await host.backstores())[0].serial
        named = replace(guest(image), block_devices=(BlockDevice(id=serial),), volumes={})
        with pytest.raises(BusyError, match="is LUN 0:0 of endpoint 'db0'"):
            await host.creations.plan(named)


async def test_both_may_read(state: Path, image: Path) -> None:
    lun = LunSpec(0, 0, BackstoreSpec(SpecKind.PATH, path=str(image), readonly=True))
    async with running_host(state, World(), GuestWorld()) as host:
        await done(host.create(helpers.spec("iso", lun)))
        medium = BlockDevice(id="x", type=DiskType.CDROM)
        await done(host.create_guest(replace(guest(image), block_devices=(medium,))))
        with pytest.raises(BusyError, match="of endpoint 'iso'"):
            await done(host.create_guest(guest(image, "mail")))


async def test_what_the_store_does_not_know_serves_as_well(state: Path, image: Path) -> None:
    """A foreign endpoint of the kernel's, or one of ours that was lost."""
    world = World()
    world.endpoints["old"] = helpers.spec("old", helpers.disk(0, str(image)))
    async with running_host(state, world, GuestWorld()) as host:
        await host.desired.remove("old")
        with pytest.raises(BusyError, match="is served by old/0:0"):
            await host.creations.plan(guest(image))


@pytest.mark.parametrize("start", [False, True])
async def test_an_endpoint_gets_no_disk_of_a_guest_that_runs(
    state: Path, image: Path, link: Path, *, start: bool
) -> None:
    guests = GuestWorld()
    wanted = helpers.spec("db0", helpers.disk(0, str(link)))
    async with running_host(state, World(), guests) as host:
        await done(host.create_guest(guest(image, start=start)))
        if start:
            for doing in (host.plan_creation(wanted), done(host.create(wanted))):
                with pytest.raises(BusyError, match="is disk sda of guest 'web', which runs") as refused:
                    await doing
                assert "ringway guest detach web sda" in (refused.value.hint or "")
            await done(host.create(helpers.spec("db0")))
            second = helpers.disk(1, str(link))
            with pytest.raises(BusyError, match="is disk sda of guest 'web'"):
                await done(host.update("db0", partial(replace, luns=(helpers.ram(0), second))))
        else:
            await done(host.create(wanted))


async def test_who_looks_whether_a_disk_could_be_served_is_told(state: Path, image: Path) -> None:
    guests = GuestWorld()
    guests.add("web").disks = (has(image),)
    async with running_host(state, World(), guests) as host:
        with pytest.raises(BusyError, match="is disk sda of guest 'web'"):
            await host.probe(BackstoreSpec(SpecKind.PATH, path=str(image)))


async def test_whoever_forces_it_has_it(state: Path, image: Path) -> None:
    guests = GuestWorld()
    guests.add("web").disks = (has(image),)
    forced = LunSpec(0, 0, BackstoreSpec(SpecKind.PATH, path=str(image), force=True))
    async with running_host(state, World(), guests) as host:
        assert (await done(host.create(helpers.spec("db0", forced)))).name == "db0"


async def test_what_is_no_file_of_this_host_is_nobodys(
    state: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    guests = GuestWorld()
    guests.add("web").disks = (has(image, source="a.img"), has(image, source=None))
    async with running_host(state, World(), guests) as host:
        await done(host.create(helpers.spec("db0", helpers.disk(0, str(image)))))


async def test_the_kernels_engine_gets_no_disk_of_a_guest_that_will_start(state: Path, image: Path) -> None:
    """It locks nothing, so nothing would stop the guest."""
    guests = GuestWorld()
    guests.add("web", running=False).disks = (has(image),)
    spec = EndpointSpec(name="db0", engine=EngineKind.LIO, luns=(helpers.disk(0, str(image)),))
    async with running_host(state, World(), guests) as host:
        with pytest.raises(BusyError, match="is disk sda of guest 'web';"):
            await host.disks.refuse_opened(spec, spec.luns)
        await host.disks.refuse_opened(replace(spec, engine=EngineKind.USER), spec.luns)


async def test_an_endpoint_does_not_wait_for_libvirt(
    state: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: MemoryHypervisor) -> None:
        raise UnreachableError("libvirt is gone")

    async with running_host(state, World(), GuestWorld()) as host:
        monkeypatch.setattr(MemoryHypervisor, "guests", gone)
        assert (await done(host.create(helpers.spec("db0", helpers.disk(0, str(image)))))).name == "db0"


@pytest.mark.parametrize("first", ["guest", "endpoint"])
async def test_of_two_that_come_at_once_at_most_one_has_the_disk(
    state: Path, image: Path, link: Path, first: str
) -> None:
    """Neither is there when the other looks."""
    guests, world = GuestWorld(), World()
    async with running_host(state, world, guests) as host:
        spec = helpers.spec("db0", helpers.disk(0, str(link)))
        if first == "guest":
            doing = [host.create_guest(guest(image, start=True)), host.create(spec)]
        else:
            doing = [host.create(spec), host.create_guest(guest(image, start=True))]
        ended = await asyncio.gather(*map(done, doing), return_exceptions=True)
        assert {type(each) for each in ended if isinstance(each, RingwayError)} == {BusyError}, ended
        assert len(guests.guests) + len(world.endpoints) < 2


async def test_of_two_guests_of_one_disk_the_first_is_made(state: Path, image: Path, link: Path) -> None:
    guests = GuestWorld()
    async with running_host(state, World(), guests) as host:
        specs = guest(image, start=True), guest(link, "mail", start=True)
        ended = await asyncio.gather(*(done(host.create_guest(one)) for one in specs), return_exceptions=True)
        assert [type(each) for each in ended if isinstance(each, RingwayError)] == [BusyError]
        (made,) = guests.guests
        with pytest.raises(BusyError, match=f"is disk sda of guest '{made}', which runs"):
            await done(host.create_guest(guest(link, "third")))
