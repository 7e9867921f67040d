"""libvirt moves a guest with a disk of ours from one host to another, each with its own ringwayd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.testing.domain import DomainGuest

from ..conftest import Count
from ..linux import check_blocks, start_load, stop_load
from ..serving import both_devices, make_image, wait_until
from .sides import Side, two_sides

Sides = tuple[Side, Side]
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


def wait_moved(left: Side, arrived: Side) -> None:
    """Wait until a guest is its new host's, which knows what it has, and its old one's no more."""
    wait_until(lambda: (left.guests(), arrived.guests()) == ({}, {"web0": ["db0"]}), "a guest that moved")
    assert left.daemon.ask("GET", "/1.0/endpoints/db0")["connected"] is False


@both_devices
def test_a_guest_moves_there_and_back_under_load(
    sides: Sides, web0: DomainGuest, run_dir: Path, device: str, count: Count
) -> None:
    here, there = sides
    image = make_image(run_dir / "db0.img")
    made = here.serve(image, device=device)
    there.serve(image, device=device, wwpn=made["wwpn"], incoming=True)
    assert (here.ownership(), there.ownership()) == ("held", "released")
    here.attach()
    web0.start_domain()
    web0.wait_ready()
    job = start_load(web0, DISKS[device])
    here.wait_writes()
    for _ in range(count(2, 20)):
        web0.migrate(there.libvirtd)
        here, there = there, here
        here.wait_writes()
        assert (here.ownership(), there.ownership()) == ("held", "released")
        wait_moved(there, here)
    stop_load(web0, job)
    assert "I/O error" not in web0.run("dmesg")
    check_blocks(image)
