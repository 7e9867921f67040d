"""Plain disks are given and taken, and nobody gets what another writes to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError, TimedOutError, UsageError
from ringway.host.host import Host
from ringway.model import BlockDevice, DiskBus, DiskSpec, DiskType, GuestDisk, VolumeSource
from ringway.testing.hypervisor import GuestWorld

from ..volume_files import install_files
from .conftest import OpenHost
from .helpers import FROM_BOTH, disk, done, spec

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where disks are: not in the daemon's own folder."""
    return tmp_path_factory.mktemp("disks")


@pytest.fixture
def image(folder: Path) -> str:
    """A volume."""
    path = folder / "v1.img"
    path.write_bytes(bytes(MIB))
    return str(path)


def wish(path: str, name: str = "v1", *, live: bool | None = None, **fields: Any) -> DiskSpec:
    """A disk on a path, as it is asked for."""
    return DiskSpec(block_device=BlockDevice(id=name, **fields), volumes={name: path}, live=live)


def own(path: str) -> GuestDisk:
    """A disk that a guest has from others."""
    return GuestDisk(target="vda", bus="virtio", device="disk", source=path, live=True, persistent=True)


async def ours(host: Host, guest: str = "web") -> list[GuestDisk]:
    return [each for each in (await host.guests.show(guest)).disks if each.volume]


async def test_a_volume_that_is_not_here_is_not_attached(
    start: OpenHost, guests: GuestWorld, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its resolver tells a path, at which there may be another's volume until it has connected this one."""
    install_files(folder, monkeypatch)
    guests.add("web")
    ask = DiskSpec(block_device=BlockDevice(id="files:root"))
    async with start() as host:
        with pytest.raises(UsageError, match="'files:root' is not on this host"):
            await host.plain.plan("web", ask)
        with pytest.raises(UsageError, match="'files:root' is not on this host"):
            await done(host.attach_disk("web", ask))
        assert await ours(host) == []


async def test_a_disk_is_attached_and_detached(start: OpenHost, guests: GuestWorld, image: str) -> None:
    guests.add("web").disks = (own("/srv/root.img"),)
    async with start() as host:
        plan = await host.plain.plan("web", wish(image))
        assert plan.changes[0].details == ("attach v1 now", "attach v1 at its next start")
        assert await ours(host) == []
        info = await done(host.attach_disk("web", wish(image)))
        assert (info.target, info.volume, info.source, info.serial) == ("sda", "v1", image, "v1")
        assert (info.live, info.persistent) == (True, True)
        assert await ours(host) == [info]
        assert await done(host.attach_disk("web", wish(image))) == info
        assert (await host.plain.plan("web", wish(image))).changes == ()
        plan = await host.plain.plan_taking("web", "v1")
        assert plan.changes[0].details == (
            "detach v1 from the guest that runs",
            "detach v1 from its next start",
        )
        await done(host.detach_disk("web", "v1", **FROM_BOTH))
        assert await ours(host) == []
        with pytest.raises(NotFoundError, match="no disk 'v1'"):
            await done(host.detach_disk("web", "v1", **FROM_BOTH))
        told = host.events.listen(0)
        kinds = [(await anext(told)).kind for _ in range(host.events.sequence)]
        assert [kind for kind in kinds if kind.startswith("guest.")] == [
            "guest.attached",
            "guest.attached",
            "guest.detached",
        ]


@pytest.mark.parametrize("name", ["v1", "sda", "ua-ringway-volume-the_x20tag", "the tag"])
async def test_a_disk_goes_by_all_its_names(
    start: OpenHost, guests: GuestWorld, image: str, name: str
) -> None:
    guests.add("web")
    async with start() as host:
        await done(host.attach_disk("web", wish(image, tag="the tag")))
        await done(host.detach_disk("web", name, **FROM_BOTH))
        assert await ours(host) == []


async def test_a_name_that_two_disks_have_takes_neither(
    start: OpenHost, guests: GuestWorld, image: str, folder: Path
) -> None:
    """A volume may be called as another disk's target is."""
    guests.add("web")
    (folder / "v2.img").write_bytes(bytes(MIB))
    async with start() as host:
        await done(host.attach_disk("web", wish(image)))
        await done(host.attach_disk("web", wish(str(folder / "v2.img"), "sda")))
        with pytest.raises(ConflictError, match=r"several disks .* 'sda'") as caught:
            await done(host.detach_disk("web", "sda", **FROM_BOTH))
        assert "ua-ringway-volume-v1" in (caught.value.hint or "")
        await done(host.detach_disk("web", "sdb", **FROM_BOTH))
        assert [each.volume for each in await ours(host)] == ["v1"]


async def test_a_disk_of_others_is_theirs(start: OpenHost, guests: GuestWorld) -> None:
    guests.add("web").disks = (own("/srv/root.img"),)
    async with start() as host:
        with pytest.raises(ConflictError, match="not ours to take") as caught:
            await done(host.detach_disk("web", "vda", **FROM_BOTH))
        assert caught.value.hint == "it is: virsh detach-disk web vda"


async def test_the_half_that_is_missing_is_added_in_the_same_place(
    start: OpenHost, guests: GuestWorld, image: str
) -> None:
    """As a daemon leaves it that died between the two."""
    guests.add("web")
    async with start() as host:
        info = await done(host.attach_disk("web", wish(image, live=True)))
        half = DiskSpec(block_device=BlockDevice(id="v1"), volumes={"v1": image}, persistent=False)
        await done(host.detach_disk("web", "v1", live=False, persistent=True, timeout_s=1.0))
        assert not (await ours(host))[0].persistent
        assert (await host.plain.plan("web", half)).changes == ()
        plan = await host.plain.plan("web", wish(image))
        assert plan.changes[0].details == ("attach v1 at its next start",)
    async with start() as host:
        assert await done(host.attach_disk("web", wish(image))) == info


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
async def test_what_an_endpoint_serves_is_no_guests_whatever_it_is_called(
    start: OpenHost, guests: GuestWorld, image: str, folder: Path, link: str
) -> None:
    guests.add("web")
    other = folder / "other.img"
    path = image if link == "same" else str(other)
    if link == "symbolic":
        other.symlink_to(image)
    elif link == "hard":
        other.hardlink_to(image)
    async with start() as host:
        await done(host.create(spec("db0", disk(0, image))))
        for verb in (host.plain.plan("web", wish(path)), done(host.attach_disk("web", wish(path)))):
            with pytest.raises(BusyError, match="LUN 0:0 of endpoint 'db0'"):
                await verb
        assert await ours(host) == []
        await done(host.delete("db0"))
        await done(host.attach_disk("web", wish(path)))


async def test_what_a_guest_has_is_no_others_and_its_own_once(
    start: OpenHost, guests: GuestWorld, image: str, folder: Path
) -> None:
    guests.add("web")
    guests.add("mail").disks = (own(image),)
    (folder / "link.img").symlink_to(image)
    path = str(folder / "link.img")
    async with start() as host:
        with pytest.raises(BusyError, match="disk vda of guest 'mail', which runs") as caught:
            await done(host.attach_disk("web", wish(path)))
        assert "virsh detach-disk mail vda" in (caught.value.hint or "")
        guests.guests["mail"].disks = ()
        await done(host.attach_disk("web", wish(path)))
        with pytest.raises(ConflictError, match="so is the guest's disk 'sda', which it has"):
            await done(host.attach_disk("web", wish(path, "v2")))
        with pytest.raises(BusyError, match="disk sda of guest 'web', which runs") as caught:
            await done(host.attach_disk("mail", wish(image)))
        assert "ringway guest detach web sda" in (caught.value.hint or "")


async def test_what_all_only_read_is_for_all(start: OpenHost, guests: GuestWorld, image: str) -> None:
    for name in ("web", "mail"):
        guests.add(name)
    async with start() as host:
        for name in ("web", "mail"):
            await done(host.attach_disk(name, wish(f"{image},readonly")))
        guests.add("writer")
        with pytest.raises(BusyError, match="which runs"):
            await done(host.attach_disk("writer", wish(image, bus=DiskBus.VIRTIO)))


async def test_of_two_guests_that_ask_at_once_one_gets_it(
    start: OpenHost, guests: GuestWorld, image: str
) -> None:
    for name in ("web", "mail"):
        guests.add(name)
    async with start() as host:
        both = [host.attach_disk(name, wish(image)) for name in ("web", "mail")]
        ended = await asyncio.gather(*map(done, both), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["BusyError", "GuestDisk"]


async def test_of_two_disks_that_come_at_once_each_has_its_name(
    start: OpenHost, guests: GuestWorld, folder: Path
) -> None:
    guests.add("web")
    names = [f"v{number}" for number in range(4)]
    for name in names:
        (folder / name).write_bytes(bytes(MIB))
    async with start() as host:
        asked = [host.attach_disk("web", wish(str(folder / name), name)) for name in names]
        ended = await asyncio.gather(*map(done, asked))
    assert sorted(each.target for each in ended) == ["sda", "sdb", "sdc", "sdd"]


async def test_what_cannot_be_is_refused_before_the_guest_is_touched(
    start: OpenHost, guests: GuestWorld, image: str
) -> None:
    web = guests.add("web")
    blank = DiskSpec(block_device=BlockDevice(source=VolumeSource.BLANK, size_bytes=MIB))
    nothing = DiskSpec(block_device=BlockDevice(id="v1"), live=False, persistent=False)
    refused: list[tuple[str, DiskSpec, type[RingwayError], str]] = [
        ("nobody", wish(image), NotFoundError, "no guest 'nobody'"),
        ("web", blank, UsageError, "none is made for it"),
        ("web", nothing, UsageError, "neither"),
        ("web", DiskSpec(block_device=BlockDevice(id="v1")), NotFoundError, "nobody knows"),
        ("web", wish(f"{image}.not"), NotFoundError, "is not at"),
        ("web", wish(image, type=DiskType.LUN), UsageError, "cannot be a LUN: it is a file"),
    ]
    async with start() as host:
        for guest, asked, kind, words in refused:
            with pytest.raises(kind, match=words):
                await done(host.attach_disk(guest, asked))
    assert web.disks == ()


async def test_a_guest_that_does_not_let_go_has_it_still(
    start: OpenHost, guests: GuestWorld, image: str
) -> None:
    guests.add("web").holds.add("v1")
    async with start() as host:
        await done(host.attach_disk("web", wish(image)))
        with pytest.raises(TimedOutError):
            await done(host.detach_disk("web", "v1", **FROM_BOTH))
        assert [each.volume for each in await ours(host)] == ["v1"]
