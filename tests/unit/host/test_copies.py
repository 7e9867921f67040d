"""Two guests that show the same thing of ours: one of them has it, the other is a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringway.errors import BusyError, GuestError, PermissionDeniedError
from ringway.guest.base import GuestEvent, GuestEventKind
from ringway.host.host import Host
from ringway.model import AttachmentState, AttachSpec, GuestInfo, PlugSpec, PortSpec
from ringway.testing.hypervisor import GuestWorld, MemoryGuest, MemoryHypervisor, SwitchWorld

from .conftest import OpenHost
from .helpers import FROM_BOTH, done, spec, until

pytestmark = pytest.mark.anyio


def _clone(guests: GuestWorld, name: str) -> MemoryGuest:
    """A copy of guest 'web', as ``virt-clone`` makes one: other name, other UUID, our aliases."""
    web, clone = guests.guests["web"], guests.add(name, running=False)
    clone.kept, clone.ports = dict(web.kept), set(web.ports)
    guests.tell(GuestEvent(GuestEventKind.DEFINED, name, uuid=clone.uuid))
    return clone


def _foreign(host: Host) -> list[str]:
    """What was told of things that are another guest's."""
    return [event.message for event in host.events._last if event.kind == "guest.foreign"]


async def test_a_copy_of_a_guest_does_not_have_its_endpoints_and_ports(
    start: OpenHost, guests: GuestWorld, switch: SwitchWorld
) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        await done(host.create_port(PortSpec(name="p0", switch="memory")))
        await done(host.plug("web", PlugSpec(port="p0")))
        clone = _clone(guests, "copy")  # which is before 'web' in the alphabet
        await until(lambda: len(_foreign(host)) == 2)
        guests.tell(GuestEvent(GuestEventKind.DEFINED, "copy", uuid=clone.uuid))
        found = host.view(await host.guests.show("copy"))
        for state, message in (
            *((one.state, one.message) for one in found.attachments),
            *((one.state, one.message) for one in found.ports),
        ):
            assert state is AttachmentState.FOREIGN
            assert "guest 'web'" in (message or "")
        with pytest.raises(BusyError, match="attached to guest 'web'"):
            await done(host.attach("copy", AttachSpec(endpoint="db0")))
    async with start() as host:  # also by a daemon that finds both
        assert (host.attachments.guest_of("db0"), host.plugs.guest_of("p0")) == ("web", "web")
        assert len(_foreign(host)) == 2
        await done(host.detach("copy", "db0", **FROM_BOTH))
        await done(host.unplug("copy", "p0", **FROM_BOTH))
        assert (host.attachments.guest_of("db0"), host.plugs.guest_of("p0")) == ("web", "web")
        assert (clone.kept, clone.ports, list(web.kept), web.ports) == ({}, set(), ["db0"], {"p0"})
        assert switch.guests == {"p0": web.uuid}


async def test_a_copy_has_them_when_its_original_is_gone(start: OpenHost, guests: GuestWorld) -> None:
    web = guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        _clone(guests, "copy")
        await until(lambda: len(_foreign(host)) == 1)
        del guests.guests["web"]
        guests.tell(GuestEvent(GuestEventKind.UNDEFINED, "web", uuid=web.uuid))
        await until(lambda: host.attachments.guest_of("db0") == "copy")


async def test_of_two_that_nobody_knows_the_one_that_runs_has_it(
    start: OpenHost, guests: GuestWorld, tmp_path: Path
) -> None:
    guests.add("web")
    async with start() as host:
        await done(host.create(spec("db0")))
        await done(host.attach("web", AttachSpec(endpoint="db0")))
        _clone(guests, "copy")
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    async with start() as host:
        await until(lambda: host.attachments.guest_of("db0") == "web")


async def test_a_guest_that_is_ill_keeps_no_daemon_from_starting_and_hides_no_other(
    start: OpenHost, guests: GuestWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests.add("web")
    guests.add("ill")
    async with start() as host:
        for name, guest in (("db0", "web"), ("db1", "ill")):
            await done(host.create(spec(name)))
            await done(host.attach(guest, AttachSpec(endpoint=name)))
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    ill = guests.guests["ill"].uuid
    show = MemoryHypervisor.show

    def refuse(self: MemoryHypervisor, guest: str) -> GuestInfo:
        if guest == ill:
            raise GuestError("its monitor does not answer")
        return show(self, guest)

    monkeypatch.setattr(MemoryHypervisor, "show", refuse)
    async with start() as host:
        await until(lambda: host.attachments.guest_of("db0") == "web")
        assert host.attachments.guest_of("db1") is None
    monkeypatch.setattr(MemoryHypervisor, "guests", _not_permitted)
    async with start() as host:
        assert host.attachments.guest_of("db0") == "web"


def _not_permitted(_: MemoryHypervisor) -> tuple[GuestInfo, ...]:
    raise PermissionDeniedError("libvirt does not let us in")
