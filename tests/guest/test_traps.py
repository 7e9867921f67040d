"""What QEMU does that a back end does not expect; each trap has cost somebody a disk."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ringway.testing.bootsector import BootSectorGuest, Load, Verdict, install
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import migrate

from .serving import Target, both_devices, finish, go_on, make_image


def test_t1_features_that_qemu_leaks_end_the_session(run_dir: Path) -> None:
    """QEMU offers a guest packed rings and T10 PI on a SCSI adapter whatever the back end has. A guest that
    takes them is refused, in words."""
    leaks = {"packed": "RING_PACKED", "t10_pi": "T10_PI"}
    with contextlib.ExitStack() as stack:
        targets = {
            name: stack.enter_context(Target(run_dir, make_image(run_dir / name), name=name))
            for name in leaks
        }
        devices = [word for name, target in targets.items() for word in target.devices(options=f"{name}=on")]
        # It does not get as far as a shell: it waits for its disks.
        stack.callback(LinuxGuest(devices).qemu.close)
        for name, bit in leaks.items():
            targets[name].wait_message(f"acknowledged that are not offered: {bit}$")
            assert targets[name].alive


def test_t1_a_blk_disk_never_sees_packed_rings(run_dir: Path) -> None:
    """QEMU asks the back end for this bit when the device is blk, and keeps it from the guest."""
    image = make_image(run_dir / "disk.img")
    with (
        Target(run_dir, image, device="blk") as target,
        LinuxGuest(target.devices(options="packed=on")) as guest,
    ):
        packed, version_1 = 34, 32
        bits = guest.run("cat /sys/block/vda/device/features").strip()
        assert (bits[packed], bits[version_1]) == ("0", "1")
        guest.run("seq 1000 >/dev/vda && seq 1000 | cmp -n 3893 - /dev/vda")


@both_devices
def test_t3_t4_firmware_uses_one_queue_of_four(run_dir: Path, device: str) -> None:
    """SeaBIOS sets up one request ring; QEMU enables the others, which have no address. A SCSI adapter's
    status never becomes DRIVER_OK."""
    load = Load(passes=3)
    image = make_image(run_dir / "disk.img")
    install(image, load)
    with (
        Target(run_dir, image, "--queues", "4", "--workers", "2", device=device) as target,
        BootSectorGuest(target.devices(queues=4)) as guest,
    ):
        assert guest.wait() is Verdict.OK
    load.verify(image, load.passes)


@both_devices
def test_t6_a_device_starts_while_a_migration_runs(run_dir: Path, device: str) -> None:
    """The log of dirty pages comes after the rings were started with it."""
    load = Load(blocks=32, sectors=64)
    image = make_image(run_dir / "disk.img")
    install(image, load)
    with (
        Target(run_dir, image, device=device, name="source") as target,
        Target(run_dir, image, "--incoming", device=device, name="destination") as other,
        BootSectorGuest(["-S", *target.devices()]) as source,
        BootSectorGuest(other.devices(), incoming=True) as destination,
    ):
        migrate(source.qemu, destination.qemu, while_active=lambda: start_late(source))
        go_on(destination)
        finish(destination, load, image, before=source.passes())


def start_late(guest: BootSectorGuest) -> None:
    """Power the guest on, and let it work before the migration may end."""
    guest.qemu.qmp.execute("cont")
    go_on(guest)
