"""Endpoints are attached, once each, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import (
    BusyError,
    ConflictError,
    NotFoundError,
    RingwayError,
    TimedOutError,
    UnreachableError,
    UsageError,
)
from ringway.guest.base import GuestEvent, GuestEventKind, Wish
from ringway.model import (
    AttachmentState,
    AttachSpec,
    Face,
    PlugSpec,
    PortSpec,
)
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld
from ringway.testing.waiting import PATIENCE_S

from ..hosts import running_host
from .conftest import OpenHost
from .helpers import FROM_BOTH, DiedError, die_at, done, fail, spec, until

pytestmark = pytest.mark.anyio


async def test_an_endpoint_is_attached_and_detached(start: OpenHost, guests: GuestWorld) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        info = await done(host.attach("web", AttachSpec(endpoint="db0")))
        assert (info.state, info.live, info.persistent) == (AttachmentState.ATTACHED, True, True)
        assert host.attachments.guest_of("db0") == "web"
        again = await done(host.attach(web.uuid, AttachSpec(endpoint="db0")))
        assert again == info
        assert (await host.attachments.plan("web", AttachSpec(endpoint="db0"))).changes == ()
        await done(host.detach("web", "db0", **FROM_BOTH))
        assert (web.live, web.kept, host.attachments.guest_of("db0")) == ({}, {}, None)
        with pytest.raises(NotFoundError, match="no endpoint 'db0'"):
            await done(host.detach("web", "db0", **FROM_BOTH))


async def test_what_is_left_of_a_creation_is_no_endpoint_to_attach(
    tmp_path: Path, guests: GuestWorld
) -> None:
    """It goes as soon as the engine lets it: a guest would have been left with one that is not there."""
    web = guests.add("web")
    async with running_host(tmp_path, World(before=fail), guests) as host:
        with pytest.raises(RingwayError):
            await done(host.create(spec("db0")))
        with pytest.raises(ConflictError, match="being made or deleted"):
            await done(host.attach("web", AttachSpec(endpoint="db0")))
    assert web.kept == {}


@pytest.mark.parametrize(("running", "persistent"), [(True, False), (False, True)])
async def test_an_attachment_is_for_what_there_is_of_a_guest(
    start: OpenHost, guests: GuestWorld, running: bool, persistent: bool
) -> None:
    web = guests.add("web", running=running, persistent=persistent)
    async with start() as host:
        await done(host.create(spec("db0")))
        wrong = AttachSpec(endpoint="db0", live=not running or None, persistent=not persistent or None)
        with pytest.raises(ConflictError):
            await done(host.attach("web", wrong))
        nothing = AttachSpec(endpoint="db0", live=False, persistent=False)
        with pytest.raises(UsageError):
            await done(host.attach("web", nothing))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
    assert (bool(web.live), bool(web.kept)) == (running, persistent)


async def test_an_endpoint_is_one_guests(start: OpenHost, guests: GuestWorld) -> None:
    guests.add("web")
    guests.add("mail")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        with pytest.raises(BusyError, match="attached to guest 'web'"):
            await done(host.attach("mail", AttachSpec(endpoint="db0")))
        with pytest.raises(BusyError, match="attached to guest 'web'"):
            await done(host.delete("db0"))
        await done(host.delete("db0", force=True))
    assert guests.guests["web"].live == guests.guests["web"].kept == {}


async def test_force_takes_the_disks_of_a_guest_that_does_not_let_go(
    start: OpenHost, guests: GuestWorld
) -> None:
    """Its next start does not look for them, and an endpoint of the same name is nobody's."""
    web = guests.add("web")
    web.holds = {"db0"}
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        await done(host.delete("db0", force=True))
        assert (list(web.live), list(web.kept)) == (["db0"], [])
        await done(host.create(spec("db0")))
        await done(host.delete("db0"))


async def test_of_two_that_come_at_once_one_gets_it(start: OpenHost, guests: GuestWorld) -> None:
    guests.add("web")
    guests.add("mail")
    async with start() as host:
        await done(host.create(spec("db0")))
        both = [host.attach(name, AttachSpec(endpoint="db0")) for name in ("web", "mail")]
        ended = await asyncio.gather(*map(done, both), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["AttachmentInfo", "BusyError"]


async def test_what_the_guest_refuses_leaves_no_row(start: OpenHost, guests: GuestWorld) -> None:
    guests.add("web")
    guests.before = lambda verb, name: fail(verb, name) if verb == "attach" else None
    async with start() as host:
        await done(host.create(spec("db0")))
        with pytest.raises(RingwayError, match="no"):
            await done(host.attach("web", AttachSpec(endpoint="db0")))
        await done(host.delete("db0"))


async def test_what_cannot_be_taken_back_is_told_and_taken_back_later(
    start: OpenHost, guests: GuestWorld
) -> None:
    web = guests.add("web")
    guests.before = lambda verb, name: fail(verb, name) if verb in ("attach", "detach") else None
    async with start() as host:
        await done(host.create(spec("db0")))
        with pytest.raises(RingwayError) as caught:
            await done(host.attach("web", AttachSpec(endpoint="db0")))
        assert caught.value.message == "no; what was done so far is taken back later"
        web.live["db0"] = web.kept["db0"] = Wish(endpoint="db0", face=Face.VHOST_USER_SCSI)
        guests.before = lambda _verb, _name: None
        await host.attachments.settle(unconfirmed=True)
        assert (web.live, web.kept, host.attachments.guest_of("db0")) == ({}, {}, None)


async def test_a_guest_that_does_not_let_go_has_it_still(start: OpenHost, guests: GuestWorld) -> None:
    web = guests.add("web")
    web.holds.add("db0")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        with pytest.raises(TimedOutError):
            await done(host.detach("web", "db0", **FROM_BOTH))
        (info,) = host.attachments.view(await host.guests.show("web")).attachments
        assert info.state is AttachmentState.ATTACHED
        assert host.attachments.guest_of("db0") == "web"


async def test_an_attachment_of_which_nobody_was_told_is_taken_back(
    start: OpenHost, guests: GuestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        monkeypatch.setattr("ringway.host.rows.Rows._try", _nothing)
        monkeypatch.setattr("ringway.faults.point", die_at("attachment.made"))
        with contextlib.suppress(asyncio.CancelledError, RingwayError, DiedError):
            await done(host.attach("web", AttachSpec(endpoint="db0")))
        assert web.live
        monkeypatch.undo()
    async with start() as host:
        assert (web.live, web.kept, host.attachments.guest_of("db0")) == ({}, {}, None)


async def _nothing(*_: object) -> None:
    pass


@pytest.mark.parametrize("gone", ["detached", "undefined"])
async def test_what_others_took_away_is_noticed(start: OpenHost, guests: GuestWorld, gone: str) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        if gone == "detached":
            web.live.clear()
            web.kept.clear()
            event = GuestEvent(GuestEventKind.DEVICE_REMOVED, "web", "ua-ringway-db0")
        else:
            del guests.guests["web"]
            event = GuestEvent(GuestEventKind.UNDEFINED, "web")
        guests.tell(event)
        await until(lambda: host.attachments.guest_of("db0") is None)
        await done(host.delete("db0"))


@pytest.mark.parametrize("kind", [GuestEventKind.STARTED, GuestEventKind.RESUMED, GuestEventKind.DEFINED])
async def test_a_guest_that_comes_from_another_host_is_known_with_what_it_has(
    start: OpenHost, guests: GuestWorld, kind: GuestEventKind
) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        del guests.guests["web"]
        guests.tell(GuestEvent(GuestEventKind.UNDEFINED, "web", uuid=web.uuid))
        await until(lambda: host.attachments.guest_of("db0") is None)
        guests.guests["web"] = web
        web.arriving = True  # libvirt tells of it before it answers
        guests.tell(GuestEvent(kind, "web", uuid=web.uuid))
        await asyncio.sleep(0.05)
        assert host.attachments.guest_of("db0") is None
        web.arriving = False
        await until(lambda: host.attachments.guest_of("db0") == "web")
        with pytest.raises(BusyError, match="attached to guest 'web'"):
            await done(host.delete("db0"))


async def test_what_others_took_away_meanwhile_is_noticed_at_a_start(
    start: OpenHost, guests: GuestWorld
) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
    web.live.clear()
    async with start() as host:
        assert host.attachments.guest_of("db0") == "web"  # its next start has it
    web.kept.clear()
    async with start() as host:
        assert host.attachments.guest_of("db0") is None


async def test_what_a_device_left_behind_goes_when_it_is_heard_of_or_at_a_start(
    start: OpenHost, guests: GuestWorld
) -> None:
    """Also of an endpoint that was deleted by force, of which there is no row; what fails is done again."""
    web = guests.add("web")
    web.left = {"db0"}
    guests.before = lambda verb, name: fail(verb, name) if verb == "tidy" else None
    async with start() as host:
        assert web.left == {"db0"}
        guests.before = lambda _verb, _name: None
        await host.attachments.settle(unconfirmed=True)
        assert not web.left
        web.left = {"db1"}
        await host.attachments.settle(unconfirmed=True)
        assert web.left == {"db1"}  # nothing says so, and guests are not asked all the time
        guests.tell(GuestEvent(GuestEventKind.DEVICE_REMOVED, "web", "ua-ringway-db1", web.uuid))
        await until(lambda: not web.left)
        web.left = {"db2"}
    async with start():
        assert not web.left


async def test_a_plan_changes_nothing(start: OpenHost, guests: GuestWorld) -> None:
    web = guests.add("web")
    web.shared_memory = False
    async with start() as host:
        await done(host.create(spec("db0")))
        with pytest.raises(ConflictError, match="not shared"):
            await host.attachments.plan("web", AttachSpec(endpoint="db0"))
        plan = await host.attachments.plan("web", AttachSpec(endpoint="db0", fix_memory=True))
        assert plan.changes[0].details == ("attach db0 now", "attach db0 at its next start")
        await done(host.create_port(PortSpec(name="p0", switch="memory")))
        with pytest.raises(ConflictError, match="not shared"):
            await host.plugs.plan("web", PlugSpec(port="p0"))
        plan = await host.plugs.plan("web", PlugSpec(port="p0", fix_memory=True, live=False))
        assert plan.changes[0].details == ("plug p0 at its next start",)
        assert web.live == {}


async def test_a_host_without_libvirt_says_so(tmp_path: Path) -> None:
    async with running_host(tmp_path, World()) as host:
        with pytest.raises(UnreachableError, match="knows no guests"):
            await host.guests.list()
        assert (await host.info(read_only=False)).checks == ()


async def test_what_a_guest_had_is_not_taken_back_when_it_is_attached_again(
    start: OpenHost, guests: GuestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0", persistent=False)))
        monkeypatch.setattr("ringway.faults.point", die_at("attachment.confirmed"))
        operation = host.attach("web", AttachSpec(endpoint="db0"))
        with contextlib.suppress(DiedError):
            await operation.ended()
        monkeypatch.undo()
    async with start() as host:
        assert host.attachments.guest_of("db0") == "web"
        guests.before = fail
        with pytest.raises(RingwayError):
            await done(host.attach("web", AttachSpec(endpoint="db0")))
    assert "db0" in web.live


async def test_an_endpoint_is_mended_while_its_guest_takes_its_time(
    start: OpenHost, guests: GuestWorld
) -> None:
    guests.add("web")
    mended, waiting = threading.Event(), threading.Event()

    def wait(verb: str, _name: str) -> None:
        if verb == "detach":
            waiting.set()
            assert mended.wait(PATIENCE_S)

    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        guests.before = wait
        detaching = host.detach("web", "db0", **FROM_BOTH)
        await until(waiting.is_set)
        await done(host.update("db0", lambda old: replace(old, queues=old.queues + 1)))
        with pytest.raises(BusyError, match="is just on its way"):
            await done(host.delete("db0", force=True))
        mended.set()
        await done(detaching)


async def test_a_guest_that_goes_while_its_endpoint_is_worked_on_is_noticed(
    start: OpenHost, guests: GuestWorld
) -> None:
    guests.add("web")
    guests.add("mail")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        del guests.guests["web"]
        await done(host.attach("mail", AttachSpec(endpoint="db0")))  # before anybody told of it
        del guests.guests["mail"]
        await done(host.delete("db0"))


async def test_a_guest_that_got_another_name_is_still_heard(start: OpenHost, guests: GuestWorld) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        web.name = "shop"
        guests.tell(GuestEvent(GuestEventKind.DEFINED, "shop", uuid=web.uuid))
        await until(lambda: host.attachments.guest_of("db0") == "shop")
        web.live.clear()
        web.kept.clear()
        guests.tell(GuestEvent(GuestEventKind.DEVICE_REMOVED, "shop", "ua-ringway-db0", web.uuid))
        await until(lambda: host.attachments.guest_of("db0") is None)


async def test_what_is_forced_goes_also_without_libvirt_or_a_guest_that_answers(
    start: OpenHost, tmp_path: Path, guests: GuestWorld
) -> None:
    web = guests.add("web")
    web.holds = {"db0"}
    async with start() as host:
        for name in ("db0", "db1"):
            await done(host.create(spec(name)))
            await done(host.attach("web", AttachSpec(endpoint=name)))
        await done(host.delete("db0", force=True))
        assert (set(web.live), set(web.kept)) == ({"db0", "db1"}, {"db1"})
    async with running_host(tmp_path, World()) as host:
        await done(host.delete("db1", force=True))
        assert host.attachments.guest_of("db1") is None


async def test_attachments_outlive_the_loss_of_the_store(
    start: OpenHost, guests: GuestWorld, tmp_path: Path
) -> None:
    guests.add("web")
    guests.add("mail")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    async with start() as host:
        await until(lambda: host.attachments.guest_of("db0") == "web")
        with pytest.raises(BusyError, match="guest 'web'"):
            await done(host.attach("mail", AttachSpec(endpoint="db0")))


async def test_a_plan_refuses_what_would_be_refused(start: OpenHost, guests: GuestWorld) -> None:
    guests.add("web")
    guests.add("mail")
    port = PortSpec(name="p0", switch="memory")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        await done(host.create_port(port))
        await done(host.plug("web", PlugSpec(port="p0")))
        assert (await host.ports.plan_creation(port)).changes == ()
        with pytest.raises(ConflictError, match="a port 'p0' already"):
            await host.ports.plan_creation(replace(port, queues=2))
        with pytest.raises(BusyError, match="guest 'web'"):
            await host.plugs.plan("mail", PlugSpec(port="p0"))
        with pytest.raises(BusyError, match="guest 'web'"):
            host.ports.plan_deletion("p0")
        with pytest.raises(BusyError, match="guest 'web'"):
            host.plan_deletion("db0")
        assert host.plan_deletion("db0", force=True).changes
        plan = await host.attachments.plan_taking("web", "db0", live=False)
        assert plan.changes[0].details == ("detach db0 from its next start",)
        plan = await host.plugs.plan_taking("web", "p0", persistent=False)
        assert plan.changes[0].details == ("unplug p0 from the guest that runs",)
