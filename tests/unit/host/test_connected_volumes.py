"""Volumes that a resolver brings here for a guest, and lets go when there is none."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from ringway.errors import BusyError, RingwayError
from ringway.guest.volumes import Volume
from ringway.model import (
    BlockDevice,
    GuestSpec,
    Via,
)
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld

from ..hosts import running_host
from ..volume_files import Files, install_files
from . import helpers
from .creating import die_at, fail, state_of
from .helpers import done

pytestmark = pytest.mark.anyio


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return install_files(tmp_path / "files", monkeypatch)


def _from_store(**more: Any) -> GuestSpec:
    return GuestSpec(name="web", block_devices=(BlockDevice(id="files:root"),), **more)


@pytest.mark.parametrize("via", Via)
async def test_a_guest_has_its_volume_as_it_was_connected(tmp_path: Path, files: Files, via: Via) -> None:
    """To plan it, or to print its XML, connected the volume too, and nobody let go of it."""
    guests, world = GuestWorld(), World()
    async with running_host(state_of(tmp_path), world, guests) as host:
        plan = await host.creations.plan(_from_store(via=via))
        assert (plan.changes[-1].details, files.links()) == ((f"disk sda: {files.image}",), [])
        made = await done(host.create_guest(_from_store(via=via)))
        link = f"{made.uuid}/root.img"
        assert files.links() == [link]
        if via is Via.QEMU:
            assert guests.guests["web"].disks[0].source == f"{files.run}/{link}"
        else:
            assert world.endpoints["web"].luns[0].backstore.path == f"{files.run}/{link}"
        assert host.creations.left() == ()


@pytest.mark.parametrize("verb", ["define", "start"])
async def test_a_guest_that_is_not_made_lets_its_volume_go(tmp_path: Path, files: Files, verb: str) -> None:
    def fail_at(reached: str, _name: str) -> None:
        if reached == verb:
            raise RingwayError("no")

    async with running_host(state_of(tmp_path), World(), GuestWorld(before=fail_at)) as host:
        with pytest.raises(RingwayError, match="no"):
            await done(host.create_guest(_from_store()))
        assert (files.links(), host.creations.left()) == ([], ())


@pytest.mark.parametrize(
    ("point", "whole"),
    [("creation.begun", False), ("creation.connected", False), ("creation.defined", True)],
)
async def test_a_volume_is_let_go_for_a_daemon_that_died(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, point: str, whole: bool
) -> None:
    guests, world, state = GuestWorld(), World(), state_of(tmp_path)
    async with running_host(state, world, guests) as host:
        with monkeypatch.context() as patch:
            die_at(patch, point)
            await host.create_guest(_from_store()).ended()
        assert len(files.links()) == (point != "creation.begun")
        assert host.creations.left() == ("web",)
    async with running_host(state, world, guests) as host:
        assert host.creations.left() == ()
    assert len(files.links()) == whole


async def test_a_release_that_fails_is_tried_again(tmp_path: Path, files: Files) -> None:
    def block(_verb: str, name: str) -> None:
        """A folder in the link's place cannot be unlinked."""
        link = next(files.run.rglob("*.img"))
        link.unlink()
        link.mkdir()
        fail("start", name)

    async with running_host(state_of(tmp_path), World(), GuestWorld(before=block)) as host:
        with pytest.raises(RingwayError, match="no web"):
            await done(host.create_guest(_from_store()))
        assert host.creations.left() == ("web",)
        next(files.run.rglob("*.img")).rmdir()
        await host.creations.settle()
        assert host.creations.left() == ()


async def test_a_volume_that_an_endpoint_serves_by_now_stays(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_host(state_of(tmp_path), World(), GuestWorld()) as host:
        with monkeypatch.context() as patch:
            die_at(patch, "create.acknowledged")
            await host.create_guest(_from_store(via=Via.ENDPOINT)).ended()
        await done(host.create(host.desired.get("web").spec))  # somebody wants it for itself
        await host.creations.settle()
        assert (len(files.links()), host.creations.left()) == (1, ())


async def test_what_a_volume_is_once_it_is_connected_is_looked_at_too(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then is its path known for sure."""
    resolver = importlib.import_module("ringway_volume_files")
    elsewhere = Volume(path="/nowhere/yet", size_bytes=1 << 20)
    monkeypatch.setattr(resolver.FilesResolver, "find", lambda _self, _device: elsewhere)
    async with running_host(state_of(tmp_path), World(), GuestWorld()) as host:
        await done(host.create(helpers.spec("db0", helpers.disk(0, str(files.image)))))
        assert (await host.creations.plan(_from_store())).changes
        with pytest.raises(BusyError, match="is LUN 0:0 of endpoint 'db0'"):
            await done(host.create_guest(_from_store()))
        assert (files.links(), host.creations.left()) == ([], ())
