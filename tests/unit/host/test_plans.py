"""A host is made as a file says."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ringway.errors import BackstoreError, BusyError, NotFoundError, RingwayError, UsageError
from ringway.host.config import DaemonConfig
from ringway.model import Action, HostConfig
from ringway.testing.engine import World

from .conftest import OpenHost
from .helpers import disk, done, ram, spec

pytestmark = pytest.mark.anyio


async def test_apply_makes_a_file_true(open_host: OpenHost, world: World) -> None:
    config = HostConfig(endpoint=(spec("a", ram(0)), spec("b", disk(0, "/x"))))
    async with open_host() as host:
        await done(host.create(spec("c", disk(0, "/x"))))
        plan = host.plan(config, prune=True)
        assert [(c.action, c.name) for c in plan.changes] == [
            (Action.DELETE, "c"),
            (Action.CREATE, "a"),
            (Action.CREATE, "b"),
        ]
        assert await done(host.apply(config, prune=True)) == plan
        assert world.endpoints.keys() == {"a", "b"}
        again = host.plan(host.export(), prune=True)
        assert {change.action for change in again.changes} == {Action.KEEP}
        more = HostConfig(endpoint=(spec("a", ram(0), ram(1)),))
        assert [c.details for c in host.plan(more, prune=False).changes] == [("lun 0:1: add ram",)]
        await done(host.apply(more, prune=False))
        assert len(world.endpoints["a"].luns) == 2


async def test_apply_is_atomic_for_each_endpoint(open_host: OpenHost, world: World) -> None:
    world.missing.add("/gone")
    config = HostConfig(endpoint=(spec("a"), spec("b", ram(0), disk(1, "/gone")), spec("c")))
    async with open_host() as host:
        with pytest.raises(RingwayError, match="endpoint 'b': '/gone' does not exist"):
            await done(host.apply(config, prune=False))
        assert world.endpoints.keys() == {"a", "c"}
        twice = HostConfig(endpoint=(spec("a"), spec("a")))
        with pytest.raises(UsageError, match="twice"):
            host.plan(twice, prune=False)


async def test_apply_takes_from_a_guest_what_is_forced(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        for name in "abc":
            await done(host.create(spec(name, ram(0), ram(1))))
        world.connected |= {"a", "b"}
        there = dict(world.endpoints)
        less = HostConfig(endpoint=(spec("a", ram(0)), spec("c", ram(0))))
        with pytest.raises(BusyError, match=r"endpoint '.': .* in use by a guest \(and 1 more: a, b\)"):
            await done(host.apply(less, prune=True))
        assert (world.endpoints["a"], world.endpoints["b"]) == (there["a"], there["b"])
        assert [lun.lun for lun in world.endpoints["c"].luns] == [0]
        await done(host.apply(less, prune=True, force=True))
        assert {name: len(found.luns) for name, found in world.endpoints.items()} == {"a": 1, "c": 1}


async def test_apply_ends_whatever_else_is_begun(
    open_host: OpenHost, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts counted as operations: at the limit it stopped in the middle, and some of it went on."""
    monkeypatch.setattr("ringway.host.operations.MAX_RUNNING", 1)
    refused: list[str] = []
    async with open_host() as host:
        loop = asyncio.get_running_loop()

        async def begin_another() -> None:
            with pytest.raises(BusyError) as caught:
                host.create(spec("z"))
            refused.append(caught.value.message)

        def before(_verb: str, _name: str) -> None:
            asyncio.run_coroutine_threadsafe(begin_another(), loop).result()

        world.before = before
        await done(host.apply(HostConfig(endpoint=tuple(map(spec, "abc"))), prune=False))
        await done(host.create(spec("d")))
    assert world.endpoints.keys() == {"a", "b", "c", "d"}
    assert refused == ["1 operations are running"] * 4


async def test_apply_goes_on_without_what_has_gone_meanwhile(open_host: OpenHost, world: World) -> None:
    """As many as may go on at once wait until the last of all is deleted by somebody else."""
    async with open_host() as host:
        loop = asyncio.get_running_loop()
        names = [f"e{number}" for number in range(DaemonConfig().parallel + 1)]
        for name in names:
            await done(host.create(spec(name)))

        async def delete_last() -> None:
            with contextlib.suppress(NotFoundError):
                await done(host.delete(names[-1]))

        def before(verb: str, name: str) -> None:
            if verb == "delete" and name != names[-1]:
                asyncio.run_coroutine_threadsafe(delete_last(), loop).result()

        world.before = before
        with pytest.raises(NotFoundError, match=f"no endpoint '{names[-1]}'"):
            await done(host.apply(HostConfig(endpoint=(spec("new"),)), prune=True))
    assert world.endpoints.keys() == {"new"}


async def test_a_dry_run_checks_and_changes_nothing(open_host: OpenHost, world: World) -> None:
    world.missing.add("/gone")
    async with open_host() as host:
        plan = await host.plan_creation(spec("a"))
        assert [change.action for change in plan.changes] == [Action.CREATE]
        with pytest.raises(BackstoreError):
            await host.plan_creation(spec("a", disk(0, "/gone")))
        assert world.calls == []
        assert host.operations.list() == ()
