"""A guest is made with all that it needs, or nothing of it is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError
from ringway.guest.document import Document
from ringway.model import (
    BackstoreSpec,
    BlockDevice,
    EndpointSpec,
    EngineKind,
    Face,
    GuestSpec,
    GuestState,
    LunSpec,
    OperationState,
    PlugSpec,
    PortMode,
    PortSpec,
    SpecKind,
    Via,
    VolumeSource,
)
from ringway.net.base import Settings
from ringway.net.external import ExternalSwitch
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, SwitchWorld

from ..hosts import running_host
from . import helpers
from .creating import die_at, fail, state_of
from .helpers import done

pytestmark = pytest.mark.anyio
PORT = PortSpec(name="p0", switch="memory")


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
    async with running_host(state_of(tmp_path), World(), guests, switch) as host:
        plan = await host.creations.plan(spec)
        assert [change.object for change in plan.changes] == ["endpoint/web", "port/p0", "guest/web"]
        assert (guests.guests, switch.ports, list((tmp_path / "pool").iterdir())) == ({}, {}, [])
        made = await done(host.create_guest(spec))
        assert (made.state, [one.port for one in made.ports]) == (GuestState.RUNNING, ["p0"])
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


@pytest.mark.parametrize("verb", ["define", "start"])
async def test_a_guest_that_does_not_start_leaves_nothing(tmp_path: Path, spec: GuestSpec, verb: str) -> None:
    def fail(reached: str, name: str) -> None:
        if reached == verb:
            raise RingwayError(f"no {name}")

    guests, switch, world = GuestWorld(before=fail), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with pytest.raises(RingwayError, match="no web"):
            await done(host.create_guest(spec))
        assert (guests.guests, switch.ports, world.endpoints) == ({}, {}, {})
        assert list((tmp_path / "pool").iterdir()) == []


async def test_what_was_there_before_stays(tmp_path: Path, spec: GuestSpec) -> None:
    guests, switch = GuestWorld(before=fail), SwitchWorld()
    async with running_host(state_of(tmp_path), World(), guests, switch) as host:
        await done(host.create_port(PORT))
        with pytest.raises(RingwayError, match="no web"):
            await done(host.create_guest(spec))
        assert switch.ports.keys() == {"p0"}


async def test_what_is_there_already_is_not_made(tmp_path: Path, spec: GuestSpec) -> None:
    """A plan says so, and refuses what is there and is another."""
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    disk = replace(spec.block_devices[0], id=str(tmp_path / "root.img"))
    spec = replace(spec, block_devices=(disk,))
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        await done(host.create_guest(replace(spec, ports=())))
        await done(host.detach("web", "web", live=True, persistent=True, timeout_s=1.0))
        del guests.guests["web"]
        plan = await host.creations.plan(spec)
        assert [change.object for change in plan.changes] == ["port/p0", "guest/web"]
        await done(host.create_guest(spec))
        assert host.attachments.guest_of("web") == "web"
        del guests.guests["web"]
        await done(host.delete("web", force=True))
        await done(host.create(helpers.spec("web")))
        for doing in (host.creations.plan(spec), done(host.create_guest(spec))):
            with pytest.raises(ConflictError, match="an endpoint 'web' already"):
                await doing
        with pytest.raises(ConflictError, match="a port 'p0' already"):
            await host.creations.plan(replace(spec, name="mail", ports=(replace(PORT, mtu=9000),)))
        assert host.creations.left() == ()


@pytest.mark.parametrize("there", [None, "naa.5001405000000001"])
async def test_the_kernel_serves_a_guests_disks(tmp_path: Path, spec: GuestSpec, there: str | None) -> None:
    """By an endpoint that is there, too: what names its port has stays."""
    guests, switch, kernel = GuestWorld(), SwitchWorld(), World()
    disk = replace(spec.block_devices[0], id=str(tmp_path / "root.img"))
    spec = replace(spec, engine=EngineKind.LIO, block_devices=(disk,), ports=())
    async with running_host(state_of(tmp_path), World(), guests, switch, kernel) as host:
        if there is not None:
            lun = LunSpec(0, 0, BackstoreSpec(SpecKind.PATH, disk.id))
            made = EndpointSpec(name="web", engine=EngineKind.LIO, wwpn=there, luns=(lun,))
            await done(host.create(made))
        await done(host.create_guest(spec))
        endpoint = await host.endpoint("web")
        assert endpoint.engine is EngineKind.LIO
        assert there in (None, endpoint.wwpn)
        (attached,) = Document(guests.documents["web"]).attachments()
        assert (attached.face, attached.wwpn) == (Face.VHOST_SCSI, endpoint.wwpn)


async def test_a_volume_that_nobody_knows_is_refused_before_anything_is_made(
    tmp_path: Path, spec: GuestSpec
) -> None:
    guests, switch = GuestWorld(), SwitchWorld()
    lost = GuestSpec(name="web", block_devices=(BlockDevice(id="lost"),), ports=(PORT,))
    async with running_host(state_of(tmp_path), World(), guests, switch) as host:
        with pytest.raises(NotFoundError, match="'lost'"):
            await done(host.create_guest(lost))
        assert switch.ports == {}


@pytest.mark.parametrize("mode", list(PortMode))
async def test_no_guest_is_started_that_would_wait_for_its_switch(
    tmp_path: Path, spec: GuestSpec, mode: PortMode
) -> None:
    """libvirt would start it and wait, and the guest with it; or its start would fail."""
    guests, switch = GuestWorld(), SwitchWorld()
    spec = replace(spec, ports=(replace(PORT, mode=mode),))
    async with running_host(state_of(tmp_path), World(), guests, switch) as host:
        await done(host.create_port(spec.ports[0]))
        lost = switch.ports.pop("p0")
        with pytest.raises(ConflictError, match=r"'p0' now: .*the switch has no port 'p0'") as caught:
            await done(host.create_guest(spec))
        assert "--no-start" in str(caught.value.hint)
        assert ("stand still" in caught.value.message) is (mode is PortMode.SERVER)
        with pytest.raises(ConflictError, match="'p0' now"):
            await host.creations.plan(spec)
        switch.ports["p0"] = lost
        assert (await host.creations.plan(spec)).changes
        assert (await done(host.create_guest(spec))).state is GuestState.RUNNING


async def test_nobody_knows_when_a_switch_of_somebody_elses_connects(tmp_path: Path) -> None:
    guests = GuestWorld()
    external = ExternalSwitch(Settings(folder=tmp_path / "port"))
    spec = GuestSpec(name="web", ports=(PortSpec(name="p0"),))
    async with running_host(state_of(tmp_path), World(), guests, external) as host:
        with pytest.raises(ConflictError, match="stand still until a switch connects"):
            await done(host.create_guest(spec))
        client = replace(spec, ports=(PortSpec(name="p0", mode=PortMode.CLIENT),))
        with pytest.raises(ConflictError, match="does not listen at"):
            await done(host.create_guest(client))
        assert (await host.ports.list(), guests.guests) == ((), {})
        await done(host.create_guest(replace(spec, start=False)))
        assert guests.guests["web"].ports == {"p0"}


async def test_what_another_guest_has_is_refused_before_anything_is_made(
    tmp_path: Path, spec: GuestSpec
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    guests.add("mail")
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        await done(host.create_port(PORT))
        await done(host.plug("mail", PlugSpec(port="p0")))
        with pytest.raises(BusyError, match="guest 'mail' has port 'p0'"):
            await done(host.create_guest(spec))
    assert (set(guests.guests), world.endpoints) == ({"mail"}, {})


async def test_of_two_guests_of_one_name_one_is_made_and_keeps_what_it_has(
    tmp_path: Path, spec: GuestSpec
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        ended = await asyncio.gather(
            *(done(host.create_guest(spec)) for _ in range(2)), return_exceptions=True
        )
        assert sum(isinstance(one, ConflictError) for one in ended) == 1
        assert host.attachments.guest_of("web") == "web"
    assert (set(guests.guests), set(world.endpoints)) == ({"web"}, {"web"})


@pytest.mark.parametrize("had", [False, True], ids=["new", "port-was-there"])
@pytest.mark.parametrize(
    ("point", "whole"),
    [
        ("creation.begun", False),
        ("creation.volume", False),
        ("port.confirmed", False),
        ("create.acknowledged", False),
        ("creation.defined", True),
        ("creation.made", True),
        ("creation.confirmed", True),
        ("attachment.confirmed", True),
        ("plug.confirmed", True),
    ],
)
async def test_a_creation_that_a_daemon_died_in_is_whole_or_nothing(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch, point: str, whole: bool, had: bool
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    state, pool = state_of(tmp_path), tmp_path / "pool"
    whole = whole or (had and point == "port.confirmed")  # which it never comes to then
    async with running_host(state, world, guests, switch) as host:
        if had:
            await done(host.create_port(PORT))
        with monkeypatch.context() as patch:
            die_at(patch, point)
            await host.create_guest(spec).ended()
    async with running_host(state, world, guests, switch) as host:
        there = [one.name for one in host.desired.all()]
        holders = host.attachments.guest_of("web"), host.plugs.guest_of("p0")
        rows = host.creations.left()
    assert rows == ()
    assert (holders, there) == ((("web", "web"), ["web"]) if whole else ((None, None), []))
    assert (set(guests.guests), len(list(pool.iterdir()))) == (({"web"}, 1) if whole else (set(), 0))
    assert set(switch.ports) == ({"p0"} if whole or had else set())


async def test_a_creation_that_was_left_is_settled_before_the_next_of_its_name(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with monkeypatch.context() as patch:
            die_at(patch, "creation.volume")
            await host.create_guest(spec).ended()
        assert host.creations.left() == ("web",)
        assert (await done(host.create_guest(spec))).ports[0].port == "p0"
        assert host.creations.left() == ()


async def test_what_another_guest_got_from_an_unfinished_creation_is_its_own(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    guests.add("mail")
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with monkeypatch.context() as patch:
            die_at(patch, "create.acknowledged")
            await host.create_guest(spec).ended()
        await done(host.plug("mail", PlugSpec(port="p0")))
        await host.creations.settle()
        assert host.creations.left() == ()
        assert host.plugs.guest_of("p0") == "mail"
    assert (set(switch.ports), world.endpoints) == ({"p0"}, {})


async def test_what_was_asked_for_meanwhile_is_not_undone(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for what an unfinished creation made is told that it is there."""
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with monkeypatch.context() as patch:
            die_at(patch, "create.acknowledged")
            await host.create_guest(spec).ended()
        await done(host.create(host.desired.get("web").spec))
        await done(host.create_port(PORT))
        await host.creations.settle()
        assert host.creations.left() == ()
    assert (set(switch.ports), set(world.endpoints)) == ({"p0"}, {"web"})
    assert (tmp_path / "pool" / "web-sdb.raw").exists()  # which that endpoint serves


async def test_a_file_that_somebody_made_meanwhile_is_neither_used_nor_removed(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    theirs = tmp_path / "pool" / "web-sdb.raw"

    def reach(name: str) -> None:
        if name == "creation.begun":
            theirs.write_bytes(b"theirs")

    monkeypatch.setattr("ringway.faults.point", reach)
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with pytest.raises(ConflictError, match="is there already"):
            await done(host.create_guest(spec))
        assert host.creations.left() == ()
    assert theirs.read_bytes() == b"theirs"


async def test_a_creation_can_be_cancelled_until_it_makes_something(tmp_path: Path, spec: GuestSpec) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        early = host.create_guest(spec)
        early.cancel()
        await early.ended()
        assert early.state is OperationState.CANCELLED
        assert (guests.guests, switch.ports, host.creations.left()) == ({}, {}, ())
        refusals: list[str] = []
        progress: list[float] = []

        def cancel(_verb: str, _name: str) -> None:
            with pytest.raises(ConflictError, match="cannot be cancelled any more"):
                late.cancel()
            refusals.append(late.info().step)
            progress.append(late.info().progress)

        switch.before = guests.before = cancel
        late = host.create_guest(spec)
        await late.ended()
        assert late.state is OperationState.DONE
        assert refusals[-1] == "starting the guest"
        assert progress == sorted(progress)


async def test_the_steps_of_a_creation_are_no_operations(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many operations as there can be, what one began is finished all the same."""
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    monkeypatch.setattr("ringway.host.operations.MAX_RUNNING", 1)
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        assert (await done(host.create_guest(spec))).ports[0].port == "p0"
        assert [one.description for one in host.operations.list()] == ["create guest web"]


async def test_an_empty_file_that_somebody_made_meanwhile_is_not_removed(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another guest's new volume, which has no data yet either."""
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    theirs = tmp_path / "pool" / "web-sdb.raw"

    def reach(name: str) -> None:
        if name == "creation.begun":
            theirs.touch()

    monkeypatch.setattr("ringway.faults.point", reach)
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with pytest.raises(ConflictError, match="is there already"):
            await done(host.create_guest(spec))
        assert host.creations.left() == ()
    assert theirs.exists()


@pytest.mark.parametrize("force", [False, True])
async def test_what_a_creation_has_made_is_not_deleted_under_its_hands(
    tmp_path: Path, spec: GuestSpec, force: bool
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        loop = asyncio.get_running_loop()
        refused: list[RingwayError] = []

        async def delete() -> None:
            for deletion in (host.delete("web", force=force), host.delete_port("p0", force=force)):
                with pytest.raises(BusyError, match="on its way to guest 'web'") as caught:
                    await done(deletion)
                refused.append(caught.value)

        def reach(verb: str, _name: str) -> None:
            if verb == "define":  # on a thread
                asyncio.run_coroutine_threadsafe(delete(), loop).result()

        guests.before = reach
        await done(host.create_guest(spec))
        assert (len(refused), set(world.endpoints), set(switch.ports)) == (2, {"web"}, {"p0"})
        assert (host.attachments.guest_of("web"), host.plugs.guest_of("p0")) == ("web", "web")


async def test_an_undoing_that_a_switch_refuses_is_tried_again(tmp_path: Path, spec: GuestSpec) -> None:
    """The port was forgotten, and stayed in the switch for ever."""

    def refuse(verb: str, name: str) -> None:
        if verb == "delete":
            raise RingwayError(f"no {verb} of {name}")

    guests, switch = GuestWorld(before=fail), SwitchWorld()
    async with running_host(state_of(tmp_path), World(), guests, switch) as host:
        switch.before = refuse
        with pytest.raises(RingwayError, match="no web"):
            await done(host.create_guest(spec))
        assert (set(switch.ports), len(host.creations.left())) == ({"p0"}, 1)
        switch.before = lambda _verb, _name: None
        await host.creations.settle()
        assert (switch.ports, host.creations.left()) == ({}, ())


async def test_the_undoing_of_what_was_left_is_not_cancelled(
    tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests, switch, world = GuestWorld(), SwitchWorld(), World()
    async with running_host(state_of(tmp_path), world, guests, switch) as host:
        with monkeypatch.context() as patch:
            die_at(patch, "create.acknowledged")
            await host.create_guest(spec).ended()
        refusals: list[str] = []

        def cancel(verb: str, _name: str) -> None:
            if verb == "delete" and not refusals:
                with pytest.raises(ConflictError, match="cannot be cancelled any more"):
                    operation.cancel()
                refusals.append(verb)

        switch.before = cancel
        operation = host.create_guest(spec)
        assert (await done(operation)).state is GuestState.RUNNING
        assert refusals == ["delete"]
