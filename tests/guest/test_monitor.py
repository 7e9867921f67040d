"""What an operator does to a running guest: pause, reset, more memory, a second QEMU by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing.bootsector import BootSectorGuest, Load, Verdict, install

from .conftest import Count
from .serving import Target, both_devices, finish, go_on, make_image

LOAD = Load(blocks=32, sectors=64)


@pytest.fixture
def image(run_dir: Path) -> Path:
    """Return an image with a load that goes on until it is stopped."""
    path = make_image(run_dir / "disk.img")
    install(path, LOAD)
    return path


@both_devices
def test_a_guest_is_paused_under_load(image: Path, run_dir: Path, count: Count, device: str) -> None:
    """Each pause stops the rings where they are, and drains them."""
    with (
        Target(run_dir, image, device=device) as target,
        BootSectorGuest(target.devices()) as guest,
    ):
        for _ in range(count(10, 200)):
            go_on(guest, 1)
            guest.qemu.qmp.execute("stop")
            assert all(queue.in_flight == 0 for queue in target.statistics().queues)
            guest.qemu.qmp.execute("cont")
        finish(guest, LOAD, image)


@both_devices
def test_a_guest_is_reset_under_load(image: Path, run_dir: Path, count: Count, device: str) -> None:
    with (
        Target(run_dir, image, device=device) as target,
        BootSectorGuest(target.devices()) as guest,
    ):
        for _ in range(count(5, 50)):
            go_on(guest, 1)
            guest.qemu.reset()
        go_on(guest)
        guest.stop()
        assert guest.wait() is Verdict.OK


@both_devices
def test_memory_is_plugged_in_under_load(image: Path, run_dir: Path, device: str) -> None:
    """The back end is told of each region by itself, while requests are in flight."""
    with (
        Target(run_dir, image, device=device) as target,
        BootSectorGuest(["-m", "64M,slots=4,maxmem=1G", *target.devices()]) as guest,
    ):
        for slot in range(4):
            go_on(guest, 1)
            plug = guest.qemu.qmp.execute
            plug("object-add", qom_type="memory-backend-memfd", id=f"m{slot}", size=64 << 20, share=True)
            plug("device_add", driver="pc-dimm", id=f"d{slot}", memdev=f"m{slot}")
        go_on(guest)
        finish(guest, LOAD, image)


@both_devices
def test_a_second_front_end_is_turned_away(image: Path, run_dir: Path, device: str) -> None:
    with (
        Target(run_dir, image, device=device) as target,
        BootSectorGuest(target.devices()) as guest,
    ):
        go_on(guest)
        with pytest.raises(GuestError):
            BootSectorGuest(target.devices()).wait(1)
        target.wait_message("turned away .* is being served")
        go_on(guest)
        finish(guest, LOAD, image)
