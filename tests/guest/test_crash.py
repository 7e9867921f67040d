"""The target dies under a load and comes back: QEMU connects again, and no confirmed write is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringway.testing.bootsector import BootSectorGuest, Load, install
from ringway.testing.faulty import POINTS, Fault, FaultyTarget
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import vhost_user_blk, vhost_user_scsi

from .conftest import Count
from .linux import start_load, stop_load
from .serving import MIB, Target, both_devices, finish, go_on, make_image


@both_devices
@pytest.mark.parametrize("how", ["", ",mapped=on", ",direct"])
def test_a_load_survives_kills(run_dir: Path, count: Count, device: str, how: str) -> None:
    load = Load(sectors=16)
    image = make_image(run_dir / "disk.img")
    install(image, load)
    with (
        Target(run_dir, f"{image}{how}", device=device) as target,
        BootSectorGuest(target.devices()) as guest,
    ):
        for _ in range(count(3, 50)):
            go_on(guest, 1)
            target.crash()
        go_on(guest)
        finish(guest, load, image)


def test_linux_survives_kills(run_dir: Path, count: Count) -> None:
    """Two targets of one guest, both under load with many requests in flight, die in turn."""
    scsi, blk = (make_image(run_dir / name, 16 * MIB) for name in ("scsi.img", "blk.img"))
    with (
        Target(run_dir, scsi, "--queues", "2", name="scsi") as first,
        Target(run_dir, blk, "--queues", "2", device="blk", name="blk") as second,
        LinuxGuest(
            [*first.devices(queues=2, options=""), *second.devices(queues=2, options="")], cpus=2
        ) as guest,
    ):
        jobs = [start_load(guest, "/dev/sda"), start_load(guest, "/dev/vda")]
        for _ in range(count(4, 40)):
            for target in (first, second):
                target.wait_writes(50)
                target.crash()
        for target in (first, second):
            target.wait_writes(50)
        stop_load(guest, *jobs)
        told = guest.run("dmesg")
        assert "I/O error" not in told
        assert told.count("Power-on or device reset occurred") == 1  # at boot: nothing was lost since


@both_devices
def test_linux_survives_a_death_at_each_point_of_a_write(
    run_dir: Path, faulty_core: Path, device: str
) -> None:
    """QEMU hands the in-flight region on, and the guest's own driver misses no interrupt."""
    image = make_image(run_dir / "disk.img", 16 * MIB)
    connect, disk = {"scsi": (vhost_user_scsi, "/dev/sda"), "blk": (vhost_user_blk, "/dev/vda")}[device]
    with FaultyTarget(faulty_core, run_dir, "--device", device, image) as target:
        path = Path(target.socket)
        devices = connect(path, name=path.stem, queues=1, reconnect_ms=20, options="")
        with LinuxGuest(devices, cpus=2) as guest:
            job = start_load(guest, disk)
            target.kill()
            for point in POINTS:
                target.start_with(Fault(point, "write", 20))
                target.cause_of_death()
            target.start_with(None)
            stop_load(guest, job)
            assert "I/O error" not in guest.run("dmesg")
