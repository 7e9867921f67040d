"""A store that was lost, or is an old copy: no endpoint goes for that."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError
from ringway.host.store import Store
from ringway.model import EndpointState
from ringway.testing.engine import World

from .conftest import OpenHost
from .helpers import disk, done, driver_of, ram, spec, until_state

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("how", ["deleted", "empty", "new"])
async def test_a_store_that_was_lost_is_filled_again(
    open_host: OpenHost, world: World, tmp_path: Path, how: str
) -> None:
    async with open_host() as host:
        made = [await done(host.create(spec(name, wwpn=f"naa.500000000000000{name}"))) for name in "ab"]
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    if how != "deleted":
        (tmp_path / "state.db").touch()
    if how == "new":
        Store(tmp_path / "state.db").close()
    world.connected.add("a")
    world.foreign["theirs"] = spec("theirs")
    async with open_host() as host:
        listed = [(info.name, info.state, info.spec) for info in await host.endpoints()]
        assert listed[:2] == [(info.name, EndpointState.READY, info.spec) for info in made]
        assert listed[2] == ("theirs", EndpointState.FOREIGN, None)
        with pytest.raises(NotFoundError):
            host.delete("theirs")
    async with open_host() as host:  # and the next daemon knows them
        assert [host.desired.get(name).applied for name in "ab"] == [info.spec for info in made]
        assert world.calls == [("create", "a"), ("create", "b")]
        await done(host.delete("b"))
        assert world.endpoints.keys() == {"a"}


async def test_one_that_had_died_comes_back(open_host: OpenHost, world: World) -> None:
    async with open_host():
        pass
    world.endpoints["a"] = spec("a", disk(0, "/gone"))
    world.last_words["a"] = "the light went out"
    world.missing.add("/gone")
    async with open_host() as host:
        await until_state(host, "a", EndpointState.READY)


async def test_an_old_copy_is_brought_up_to_date(open_host: OpenHost, world: World, tmp_path: Path) -> None:
    """Rows that it has not come; those that it has otherwise are as the endpoint runs; guests notice
    nothing.
    """
    async with open_host() as host:
        await done(host.create(spec("a", ram(0))))
    copy = (tmp_path / "state.db").read_bytes()
    async with open_host() as host:
        await done(host.update("a", lambda old: replace(old, luns=(*old.luns, ram(1)))))
        await done(host.create(spec("b")))
        there = dict(world.endpoints)
    (tmp_path / "state.db").write_bytes(copy)
    world.connected |= {"a", "b"}
    world.calls.clear()
    async with open_host() as host:
        assert {info.name: info.spec for info in await host.endpoints()} == there == world.endpoints
        assert (await host.endpoint("a")).generation == 2
        assert host.desired.get("a").applied == there["a"]
    assert world.calls == []


async def test_what_an_old_copy_gives_to_another_is_lost_until_it_does_not(
    open_host: OpenHost, world: World
) -> None:
    """The disk of `a` was given to `b` behind the copy; `b` runs, and `a` is only wanted."""
    async with open_host() as host:
        made = await done(host.create(spec("a", disk(0, "/d"))))
    world.endpoints = {"b": spec("b", disk(0, "/d"), wwpn=made.wwpn)}
    world.calls.clear()
    async with open_host() as host:
        lost = (await host.endpoints())[-1]
        assert (lost.name, lost.state) == ("b", EndpointState.LOST)
        assert "endpoint 'a'" in (lost.message or "")
        assert await host.endpoint("b") == lost
        assert (await host.endpoint("a")).state is not EndpointState.READY
        assert world.endpoints.keys() == {"b"}
        with pytest.raises(ConflictError, match="an endpoint 'b' that was lost"):
            await done(host.create(spec("b")))
        with pytest.raises(NotFoundError):
            host.delete("b")
        assert ("create", "a") not in world.calls
        await done(host.delete("a"))
        await host.reconciler.compare()
        assert [(i.name, i.state) for i in await host.endpoints()] == [("b", EndpointState.READY)]


async def test_what_an_old_copy_gives_to_another_keeps_its_guests_disk(
    open_host: OpenHost, world: World
) -> None:
    async with open_host() as host:
        for name in "ab":
            await done(host.create(spec(name, ram(0), *([disk(1, "/d")] if name == "b" else []))))
    a = world.endpoints["a"]
    world.endpoints["a"] = replace(a, luns=(*a.luns, *driver_of(host).resolve(spec("a", disk(1, "/d"))).luns))
    there = dict(world.endpoints)
    async with open_host() as host:
        for _ in range(2):
            await host.reconciler.compare()
            assert world.endpoints == there
        await done(host.delete("b"))
        host.reconciler.wake("a")
        await host.reconciler.compare()
        assert world.endpoints == {"a": there["a"]} == {"a": host.desired.get("a").spec}
