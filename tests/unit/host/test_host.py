"""Endpoints are made, changed, deleted and kept, whatever happens in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import BackstoreError, BusyError, ConflictError, NotFoundError, RingwayError, UsageError
from ringway.host import backoff
from ringway.host.events import Kind
from ringway.model import EndpointSpec, EndpointState, Event, Limits, OperationState
from ringway.testing.engine import World
from ringway.testing.waiting import PATIENCE_S

from .conftest import OpenHost
from .helpers import disk, done, driver_of, ram, spec, until_state

pytestmark = pytest.mark.anyio


async def test_create_list_delete(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        made = await done(host.create(spec("db0")))
        assert (made.state, made.generation, made.restarts) == (EndpointState.READY, 1, 0)
        assert made.spec.wwpn == made.wwpn is not None
        assert [info.name for info in await host.endpoints()] == ["db0"]
        assert [info.used_by for info in await host.backstores()] == [("db0/0:0",)]
        await done(host.delete("db0"))
        assert await host.endpoints() == ()
        assert world.endpoints == {}
        with pytest.raises(NotFoundError):
            host.delete("db0")


async def test_an_equal_endpoint_is_fine_and_another_is_refused(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        first = await done(host.create(spec("a")))
        assert await done(host.create(spec("a"))) == first
        assert [verb for verb, _ in world.calls] == ["create"]
        with pytest.raises(ConflictError, match="'a' already"):
            await done(host.create(spec("a", ram(1))))
        with pytest.raises(ConflictError, match="the WWPN of endpoint 'a'"):
            await done(host.create(spec("b", wwpn=first.wwpn)))


async def test_what_was_chosen_survives_a_restart(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        before = await done(host.create(spec("a")))
    world.endpoints.clear()  # a reboot
    async with open_host() as host:
        assert (await host.endpoint("a")).spec == before.spec
        assert world.endpoints["a"] == before.spec
        assert (await host.endpoint("a")).restarts == 0


async def test_a_creation_that_fails_leaves_nothing(open_host: OpenHost, world: World) -> None:
    def refuse(verb: str, _name: str) -> None:
        if verb == "create":
            raise BackstoreError("no room")

    world.before = refuse
    async with open_host() as host:
        with pytest.raises(BackstoreError, match="no room"):
            await done(host.create(spec("a")))
        assert await host.endpoints() == ()
        assert world.calls[-1] == ("delete", "a")
    async with open_host() as host:
        assert await host.endpoints() == ()


async def test_two_that_want_one_disk_at_once_get_it_once(open_host: OpenHost) -> None:
    async with open_host() as host:
        operations = [host.create(spec(name, disk(0, "/dev/x"))) for name in ("a", "b", "c")]
        for operation in operations:
            await operation.ended()
        failed = [operation.error for operation in operations if operation.error]
        assert len(failed) == 2
        assert all(isinstance(error, BusyError) for error in failed)
        assert len(await host.endpoints()) == 1


async def test_different_endpoints_are_made_at_once_and_one_in_turn(
    open_host: OpenHost, world: World
) -> None:
    together = threading.Barrier(3)
    running: list[str] = []

    def meet(verb: str, name: str) -> None:
        if verb == "create":
            together.wait(PATIENCE_S)  # breaks, and fails the test, unless all three come at once
        else:
            assert name not in running
            running.append(name)
            threading.Event().wait(0.01)
            running.remove(name)

    world.before = meet
    async with open_host() as host:
        await asyncio.gather(*(done(host.create(spec(name))) for name in "abc"))
        changes = [host.update("a", partial(_limited, iops=iops)) for iops in range(1, 9)]
        await asyncio.gather(*(done(change) for change in changes))
        assert (await host.endpoint("a")).generation == 9


def _limited(old: EndpointSpec, iops: int) -> EndpointSpec:
    return replace(old, luns=(replace(old.luns[0], limits=Limits(iops=iops)),))


async def test_an_update_that_fails_changes_nothing(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        before = await done(host.create(spec("a")))

        def refuse(verb: str, _name: str) -> None:
            if verb == "update":
                raise RingwayError("no")

        world.before = refuse
        with pytest.raises(RingwayError, match="no"):
            await done(host.update("a", lambda old: spec("a", *old.luns, ram(1))))
        assert (await host.endpoint("a")).spec == before.spec
        assert (await host.endpoint("a")).generation == 1
        with pytest.raises(UsageError, match="engine"):
            await done(host.update("a", lambda old: spec("a", engine="lio")))


async def test_a_change_keeps_what_it_does_not_name(open_host: OpenHost) -> None:
    async with open_host() as host:
        before = await done(host.create(spec("a", ram(0), ram(1))))
        after = await done(host.update("a", lambda _old: spec("a", ram(0), ram(2))))
        assert after.wwpn == before.wwpn
        assert after.spec.luns[0] == before.spec.luns[0]
        assert [lun.lun for lun in after.luns] == [0, 2]


async def test_a_guest_keeps_its_disk(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        await done(host.create(spec("a", ram(0), ram(1))))
        world.connected.add("a")
        with pytest.raises(BusyError):
            await done(host.delete("a"))
        assert (await host.endpoint("a")).state is EndpointState.READY
        with pytest.raises(BusyError):
            await done(host.update("a", lambda _old: spec("a", ram(0))))
        await done(host.update("a", lambda _old: spec("a", ram(0)), force=True))
        await done(host.delete("a", force=True))
        assert world.endpoints == {}


async def test_resize_of_what_has_no_size_of_its_own(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        await done(host.create(spec("a", ram(0), disk(1, "/x"))))
        await done(host.resize("a", (0, 0), 1 << 30))
        assert (await host.endpoint("a")).spec.luns[0].backstore.size_bytes == 1 << 30  # type: ignore[union-attr]
        await done(host.resize("a", (0, 1), None))
        with pytest.raises(UsageError, match="size of its own"):
            await done(host.resize("a", (0, 1), 4096))
        with pytest.raises(NotFoundError, match="9:9"):
            host.resize("a", (9, 9), None)
        assert world.calls.count(("resize", "a")) == 2


# Deaths


async def test_what_dies_comes_back(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        await done(host.create(spec("a")))
        driver_of(host).die("a", "out of memory")
        while (await host.endpoint("a")).restarts != 1:
            await asyncio.sleep(0.01)
        await until_state(host, "a", EndpointState.READY)
        assert (await host.endpoint("a")).message is None
    async with open_host() as host:  # a new daemon counts on
        assert (await host.endpoint("a")).restarts == 1
        driver_of(host).die("a")
        while (await host.endpoint("a")).restarts != 2:
            await asyncio.sleep(0.01)
        await done(host.delete("a"))
        await done(host.create(spec("a")))
        assert (await host.endpoint("a")).restarts == 0


async def test_what_keeps_dying_is_degraded_and_tried_again(
    open_host: OpenHost, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "LONGEST_S", 0.05)
    monkeypatch.setattr(backoff, "DELAYS_S", (0.0, 0.01, 0.02))
    async with open_host() as host:
        seen = _collect(host.events.listen())
        await done(host.create(spec("a")))

        def refuse(verb: str, _name: str) -> None:
            if verb == "create":
                raise RingwayError("the disk is gone")

        world.before = refuse
        driver_of(host).die("a")
        await until_state(host, "a", EndpointState.DEGRADED)
        while len([call for call in world.calls if call[0] == "create"]) < 8:
            await asyncio.sleep(0.01)
        assert (await host.endpoint("a")).message == "the disk is gone"
        assert host.degraded() == 1
        world.before = lambda _verb, _name: None
        while (await host.endpoint("a")).restarts != 1:
            await asyncio.sleep(0.01)
        assert world.endpoints != {}
        assert (await host.endpoint("a")).state is EndpointState.DEGRADED  # for a minute of good conduct
        await done(host.delete("a"))
        host.events.close()
    kinds = [event.kind for event in await seen]
    assert kinds.count(Kind.DEGRADED) == 1
    assert kinds.index(Kind.DIED) < kinds.index(Kind.DEGRADED) < kinds.index(Kind.RESTARTED)


def _collect(events: AsyncIterator[Event]) -> asyncio.Task[list[Event]]:
    async def collect() -> list[Event]:
        return [event async for event in events]

    return asyncio.create_task(collect())


# Crashes: a host that begins on what another left behind


async def test_what_nobody_was_told_of_is_taken_back(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        await host.desired.insert(spec("half"))
        world.endpoints["half"] = spec("half")
    async with open_host() as host:
        assert await host.endpoints() == ()
        assert world.endpoints == {}


async def test_a_deletion_goes_on_and_one_that_cannot_is_forgotten(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        for name in ("free", "used", "forced"):
            await done(host.create(spec(name)))
            await host.desired.mark_deleted(host.desired.get(name), force=name == "forced")
        world.connected |= {"used", "forced"}
    async with open_host() as host:
        assert [(info.name, info.state) for info in await host.endpoints()] == [("used", EndpointState.READY)]
        assert world.endpoints.keys() == {"used"}


@pytest.mark.parametrize("arrived", [0, 1, 2])
async def test_a_change_goes_on_where_it_was(open_host: OpenHost, world: World, arrived: int) -> None:
    """Of two disks that come and one that goes, some had their turn."""
    async with open_host() as host:
        made = await done(host.create(spec("a", ram(0))))
        old = made.spec
        new = spec("a", ram(1), ram(2), wwpn=made.wwpn)
        await host.desired.put(host.desired.get("a"), spec=new, generation=2)
        world.endpoints["a"] = spec("a", *old.luns, *new.luns[:arrived])
    async with open_host() as host:
        info = await host.endpoint("a")
        assert info.spec == new == world.endpoints["a"]
        assert host.desired.get("a").applied == new


async def test_a_change_that_was_cut_short_takes_no_disk_from_a_guest(
    open_host: OpenHost, world: World
) -> None:
    async with open_host() as host:
        made = await done(host.create(spec("a", ram(0), ram(1))))
        less = spec("a", made.spec.luns[0], wwpn=made.wwpn)
        await host.desired.put(host.desired.get("a"), spec=less, generation=2)
    world.connected.add("a")
    async with open_host() as host:
        assert (await host.endpoint("a")).spec == made.spec == world.endpoints["a"]


async def test_a_disk_is_an_endpoints_until_its_removal_is_confirmed(open_host: OpenHost) -> None:
    """A guest that uses it may have the removal refused."""
    async with open_host() as host:
        made = await done(host.create(spec("a", ram(0), disk(1, "/d"))))
        less = spec("a", made.spec.luns[0], wwpn=made.wwpn)
        wanted = await host.desired.put(host.desired.get("a"), spec=less)
        with pytest.raises(BusyError, match="endpoint 'a'"):
            await done(host.create(spec("b", disk(0, "/d"))))
        await host.desired.put(wanted, applied=less)
        await done(host.create(spec("b", disk(0, "/d"))))


async def test_a_creation_that_is_taken_back_takes_no_disk_from_a_guest(
    open_host: OpenHost, world: World
) -> None:
    """Nobody was told of it, and yet somebody has found it: now it is told of."""
    world.connected.add("a")
    async with open_host() as host:
        world.endpoints["a"] = (await host.desired.insert(spec("a"))).spec
    async with open_host() as host:
        assert world.endpoints.keys() == {"a"}
        await until_state(host, "a", EndpointState.READY)
        assert host.desired.get("a").applied == world.endpoints["a"]


async def test_a_lun_that_somebody_took_comes_back(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        made = await done(host.create(spec("a", ram(0), ram(1))))
        world.endpoints["a"] = spec("a", made.spec.luns[0])
        host.reconciler.wake("a")
        while world.endpoints["a"] != made.spec:
            await asyncio.sleep(0.01)


async def test_an_engine_that_cannot_be_asked_is_no_death(
    open_host: OpenHost, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_host() as host:
        await done(host.create(spec("a")))

        def fail() -> None:
            raise RingwayError("configfs is not mounted")

        monkeypatch.setattr(driver_of(host), "list", fail)
        calls = list(world.calls)
        await host.reconciler.compare()
        assert [info.name for info in await host.endpoints()] == ["a"]
        assert world.calls == calls


# Operations


async def test_an_operation_that_has_not_begun_can_be_cancelled(open_host: OpenHost) -> None:
    async with open_host() as host:
        early = host.create(spec("a"))
        early.cancel()
        with pytest.raises(ConflictError, match="was cancelled"):
            await done(early)
        assert (host.operations.running, early.state) == (0, OperationState.CANCELLED)
        assert host.desired.find("a") is None


async def test_an_operation_is_cancelled_before_it_changes_anything(
    open_host: OpenHost, world: World
) -> None:
    release = threading.Event()
    world.before = lambda _verb, _name: _wait(release)
    async with open_host() as host:
        first = host.create(spec("a"))
        while not world.calls:
            await asyncio.sleep(0.01)
        second = host.create(spec("a", ram(5)))
        await asyncio.sleep(0)
        with pytest.raises(ConflictError, match="any more"):
            first.cancel()
        second.cancel()
        await second.ended()
        assert second.state is OperationState.CANCELLED
        release.set()
        await done(first)
        with pytest.raises(ConflictError, match="ended"):
            first.cancel()
        assert [info.state for info in host.operations.list()] == [
            OperationState.CANCELLED,
            OperationState.DONE,
        ]


def _wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


async def test_the_last_thousand_operations_are_kept(open_host: OpenHost) -> None:
    async def nothing(_operation: object) -> None: ...

    async with open_host() as host:
        operations = [host.operations.start("nothing", nothing) for _ in range(1000)]
        with pytest.raises(BusyError):
            host.operations.start("nothing", nothing)
        for operation in operations:
            await operation.ended()
        await done(host.operations.start("nothing", nothing))
        assert len(host.operations.list()) == 1000
        with pytest.raises(NotFoundError):
            host.operations.get(operations[0].id)


async def test_a_fault_of_ours_is_an_error_that_says_so(
    open_host: OpenHost, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_verb: str, _name: str) -> None:
        raise ZeroDivisionError("oh")

    world.before = break_down
    async with open_host() as host:
        with pytest.raises(RingwayError, match="ZeroDivisionError") as caught:
            await done(host.create(spec("a")))
        assert "report it" in (caught.value.hint or "")


async def test_a_disk_that_others_serve_is_refused(open_host: OpenHost, world: World) -> None:
    async with open_host() as host:
        await done(host.create(spec("a", disk(0, "/dev/x"))))
        world.foreign["theirs"] = spec("theirs", disk(0, "/dev/x"))
        await done(host.update("a", lambda old: replace(old, luns=(*old.luns, ram(1)))))
        world.foreign["theirs"] = spec("theirs", disk(0, "/dev/y"))
        with pytest.raises(BusyError, match="theirs"):
            await done(host.create(spec("b", disk(0, "/dev/y"))))
        with pytest.raises(BusyError, match="theirs"):
            await done(host.update("a", lambda old: replace(old, luns=(*old.luns, disk(2, "/dev/y")))))
        with pytest.raises(BusyError, match="theirs"):
            await host.probe(disk(0, "/dev/y").backstore)
        assert [lun.lun for lun in world.endpoints["a"].luns] == [0, 1]
    async with open_host() as host:
        assert (await host.endpoint("a")).state is EndpointState.READY


async def test_what_the_host_keeps_is_no_disk(open_host: OpenHost, tmp_path: Path) -> None:
    """A guest could have written its own endpoints."""
    link = tmp_path / ".." / tmp_path.name / "state.db"
    async with open_host() as host:
        for path in (tmp_path / "state.db", link):
            with pytest.raises(UsageError, match="own folder"):
                await done(host.create(spec("db0", disk(0, str(path)))))
        assert await host.endpoints() == ()
