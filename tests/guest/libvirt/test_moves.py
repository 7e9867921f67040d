"""libvirt moves a guest with a disk of ours from one host to another, each with its own ringwayd."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ringway.errors import BusyError, GuestError
from ringway.testing.domain import DomainGuest
from ringway.testing.guest import Job
from ringway.testing.waiting import wait_until

from ..conftest import Count
from ..linux import check_blocks, start_load, stop_load
from ..serving import both_devices, make_image
from .sides import Side, two_sides

Sides = tuple[Side, Side]
#: What an administrator may ask of ``virsh migrate`` besides.
WAYS = (
    (),
    ("--parallel", "--parallel-connections=2"),
    ("--auto-converge",),
    ("--compressed",),
    ("--tunnelled",),
)
REFUSED = {
    "--postcopy": "vhost-user backend not capable of postcopy",
    "--copy-storage-all": "must not have null value",  # libvirt's way to say that it has no such node
}
DISKS = {"scsi": "/dev/sda", "blk": "/dev/vda"}


@pytest.fixture
def sides(run_dir: Path, capabilities: Path) -> Iterator[Sides]:
    """Two hosts."""
    with two_sides(run_dir, capabilities) as sides:
        yield sides


@pytest.fixture
def web0(sides: Sides, run_dir: Path) -> Iterator[DomainGuest]:
    """A guest of the left one, which does not run yet."""
    guest = DomainGuest(sides[0].libvirtd, "web0", run_dir)
    guest.define()
    try:
        yield guest
    finally:
        guest.close()


def wait_known(left: Side, arrived: Side) -> None:
    """Wait until a guest is its new host's, which knows what it has, and its old one's no more."""
    wait_until(lambda: (left.guests(), arrived.guests()) == ({}, {"web0": ["db0"]}), "a guest that moved")
    assert (left.ownership(), arrived.ownership()) == ("released", "held")

    def refused_by_name() -> bool:
        """The daemon hears of it a moment after libvirt lists it; until then somebody is connected."""
        with pytest.raises(BusyError) as caught:
            arrived.daemon.ask("DELETE", "/1.0/endpoints/db0")
        return "attached to guest 'web0'" in caught.value.message

    wait_until(refused_by_name, "an endpoint that is known as the guest's")


def check_stays(here: Side, there: Side) -> None:
    """The guest goes on where it is; the other host has neither guest nor disk."""
    here.wait_writes()
    wait_until(lambda: there.guests() == {}, "the end of a guest that did not come")
    assert here.guests() == {"web0": ["db0"]}
    assert (here.ownership(), there.ownership()) == ("held", "released")


def finish(guest: DomainGuest, job: Job, image: Path) -> None:
    """End a load. :raises GuestError: the guest, or what it wrote, is not well."""
    stop_load(guest, job)
    assert "I/O error" not in guest.run("dmesg")
    check_blocks(image)


@pytest.fixture
def image(run_dir: Path) -> Path:
    """What both sides serve."""
    return make_image(run_dir / "db0.img")


def serve(here: Side, there: Side, image: Path, device: str = "scsi") -> None:
    """Have the endpoint on both sides; the guest has it at its start."""
    made = here.serve(image, device=device)
    there.daemon.ask("POST", "/1.0/endpoints", {**made["spec"], "incoming": True})
    assert (here.ownership(), there.ownership()) == ("held", "released")


def start_with_load(guest: DomainGuest, here: Side, device: str = "scsi") -> Job:
    """Start a guest that works on its disk."""
    here.attach()
    guest.start_domain()
    guest.wait_ready()
    job = start_load(guest, DISKS[device])
    here.wait_writes()
    return job


@both_devices
def test_a_guest_moves_there_and_back_under_load(
    sides: Sides, web0: DomainGuest, image: Path, device: str, count: Count
) -> None:
    here, there = sides
    serve(here, there, image, device)
    job = start_with_load(web0, here, device)
    for options in itertools.islice(itertools.cycle(WAYS), count(2, 20)):
        web0.migrate(there.libvirtd, *options)
        here, there = there, here
        here.wait_writes()
        wait_known(there, here)
    finish(web0, job, image)


def test_a_guest_that_cannot_move_goes_on_where_it_is(sides: Sides, web0: DomainGuest, image: Path) -> None:
    here, there = sides
    serve(here, there, image)
    job = start_with_load(web0, here)
    for option, reason in REFUSED.items():
        with pytest.raises(GuestError, match=reason):
            web0.migrate(there.libvirtd, option)
        check_stays(here, there)
    for spoil in (lose_the_other_qemu, call_off):
        with under_way(web0, here, there) as moving:
            assert (here.guests(), there.guests()) == ({"web0": ["db0"]}, {"web0": []})
            with pytest.raises(BusyError, match="'web0' is on its way here"):
                there.daemon.ask("GET", "/1.0/guests/web0")
            spoil(here, there)
            with pytest.raises(GuestError, match="virsh migrate"):
                moving.result()
        check_stays(here, there)
    move_before_its_endpoint(web0, here, there)
    there.wait_writes()
    wait_known(here, there)
    finish(web0, job, image)


def lose_the_other_qemu(_: Side, there: Side) -> None:
    there.host.run("kill", "-9", str(there.libvirtd.guest_pid("web0")))


def call_off(here: Side, _: Side) -> None:
    here.libvirtd.virsh("domjobabort", "web0")


@contextlib.contextmanager
def under_way(guest: DomainGuest, here: Side, there: Side) -> Iterator[Future[None]]:
    """In the block, memory is copied; that would take minutes."""
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(guest.migrate, there.libvirtd, "--bandwidth", "1")
        try:
            wait_until(lambda: here.copies() or moving.done(), "a guest that moves")
            yield moving
        except BaseException:
            call_off(here, there)
            raise


def move_before_its_endpoint(guest: DomainGuest, here: Side, there: Side) -> None:
    """The other host has no such endpoint yet: QEMU waits there, and the guest goes on here."""
    spec = there.endpoint()["spec"]
    there.daemon.ask("DELETE", "/1.0/endpoints/db0")
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(guest.migrate, there.libvirtd)
        wait_until(there.has_qemu, "the other QEMU")
        here.wait_writes()
        there.daemon.ask("POST", "/1.0/endpoints", spec)
        moving.result()


def test_targets_that_die_on_the_way_come_back(sides: Sides, web0: DomainGuest, image: Path) -> None:
    """Their ringwayds start them again, QEMU connects again, and the guest moves."""
    here, there = sides
    serve(here, there, image)
    job = start_with_load(web0, here)
    with under_way(web0, here, there) as moving:
        for side in sides:
            side.crash()
        here.wait_writes()
        here.libvirtd.virsh("migrate-setspeed", "web0", "1000")
        moving.result()
    there.wait_writes()
    wait_known(here, there)
    finish(web0, job, image)


def test_neither_daemon_is_needed_on_the_way(sides: Sides, web0: DomainGuest, image: Path) -> None:
    """They know where the guest is once they are back."""
    here, there = sides
    serve(here, there, image)
    job = start_with_load(web0, here)
    for side in sides:
        side.daemon.stop()
    web0.migrate(there.libvirtd)
    for side in sides:
        side.daemon.start()
    there.wait_writes()
    wait_known(here, there)
    finish(web0, job, image)


def test_a_disk_that_libvirt_does_not_know_of_keeps_its_guest(
    sides: Sides, web0: DomainGuest, image: Path
) -> None:
    """It came while the guest ran: the other QEMU does not know what to do with its state."""
    here, there = sides
    serve(here, there, image)
    web0.start_domain()
    web0.wait_ready()
    attached = here.attach()
    assert (attached["live"], attached["migratable"]) == (True, False)
    wait_until(lambda: "sda" in web0.run("ls /sys/block"), "the disk")
    job = start_load(web0, DISKS["scsi"])
    here.wait_writes()
    with pytest.raises(GuestError, match="load of migration failed"):
        web0.migrate(there.libvirtd)
    check_stays(here, there)
    finish(web0, job, image)
