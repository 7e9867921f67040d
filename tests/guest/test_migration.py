"""A guest moves between two QEMUs on one image: the load goes on, and one target at a time has the disk."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.model import OwnershipState
from ringway.testing.bootsector import BootSectorGuest, Load, install
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import migrate

from .conftest import Count
from .linux import start_load, stop_load
from .serving import MIB, Target, both_devices, finish, go_on, make_image, wait_until

LOAD = Load(blocks=32, sectors=64)


@dataclass(frozen=True)
class Side:
    """A target and the guest on it."""

    target: Target
    guest: BootSectorGuest


@contextmanager
def side(run_dir: Path, device: str, name: str, *, incoming: bool) -> Iterator[Side]:
    """Start one side of a migration on the image."""
    arguments = ["--incoming"] if incoming else []
    with (
        Target(run_dir, run_dir / "disk.img", *arguments, device=device, name=name) as target,
        BootSectorGuest(target.devices(), incoming=incoming) as guest,
    ):
        yield Side(target, guest)


@pytest.fixture
def image(run_dir: Path) -> Path:
    """Return an image with a load that goes on until it is stopped."""
    path = make_image(run_dir / "disk.img")
    install(path, LOAD)
    return path


def locks(target: Target, image: Path) -> bool:
    """Tell whether a target holds locks on the image, as the kernel sees it."""
    inode = f":{image.stat().st_ino} "
    for entry in Path(f"/proc/{target.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed meanwhile
            if any("OFDLCK" in line and inode in line for line in entry.read_text().splitlines()):
                return True
    return False


def assert_owned(owner: Target, other: Target, image: Path) -> None:
    """One target has the disk, the other does not; QEMU's tools find it locked."""
    assert (owner.ownership(), locks(owner, image)) == (OwnershipState.HELD, True)
    assert other.ownership() is not OwnershipState.HELD
    assert not locks(other, image)
    assert (
        "lock"
        in subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "quit", image], capture_output=True, text=True, check=False
        ).stderr
    )


@both_devices
def test_a_guest_moves_there_and_back_under_load(
    image: Path, run_dir: Path, count: Count, device: str
) -> None:
    """Each turn, the target that the guest came to dies once: its in-flight region is new, while the rings
    are not (trap T8)."""
    done = 0
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(Target(run_dir, image, device=device, name="here"))
        there = stack.enter_context(Target(run_dir, image, "--incoming", device=device, name="there"))
        guest = stack.enter_context(BootSectorGuest(here.devices()))
        for turn in range(count(2, 20)):
            go_on(guest)
            moved = stack.enter_context(BootSectorGuest(there.devices(), incoming=True))
            assert_owned(here, there, image)
            migrate(guest.qemu, moved.qemu, run_dir / f"migration{turn}")
            go_on(moved)
            assert_owned(there, here, image)
            there.crash()
            go_on(moved)
            done += guest.passes()
            guest.qemu.quit()
            guest, here, there = moved, there, here
        finish(guest, LOAD, image, before=done)


@both_devices
def test_a_cancelled_migration_changes_nothing(image: Path, run_dir: Path, count: Count, device: str) -> None:
    """The source gave the disk up at the switchover, and takes it back."""
    with side(run_dir, device, "source", incoming=False) as source:
        for turn in range(count(2, 20)):
            with side(run_dir, device, "destination", incoming=True) as destination:
                with pytest.raises(GuestError, match="expected state: cancelled"):
                    migrate(
                        source.guest.qemu,
                        destination.guest.qemu,
                        run_dir / f"migration{turn}",
                        at_switchover=lambda: cancel(source, image),
                    )
                go_on(source.guest)
                assert_owned(source.target, destination.target, image)
        finish(source.guest, LOAD, image)


@both_devices
def test_a_migration_whose_destination_dies_changes_nothing(image: Path, run_dir: Path, device: str) -> None:
    with side(run_dir, device, "source", incoming=False) as source:
        with side(run_dir, device, "destination", incoming=True) as destination:
            with pytest.raises(GuestError, match="migration failed"):
                migrate(
                    source.guest.qemu,
                    destination.guest.qemu,
                    run_dir / "migration",
                    at_switchover=destination.guest.qemu.close,
                )
            go_on(source.guest)
            assert_owned(source.target, destination.target, image)
        finish(source.guest, LOAD, image)


@both_devices
def test_a_target_that_dies_at_the_switchover_comes_back(image: Path, run_dir: Path, device: str) -> None:
    """The guest has moved when its new target is not there; it stands still until then, and loses nothing."""
    with (
        side(run_dir, device, "source", incoming=False) as source,
        side(run_dir, device, "destination", incoming=True) as destination,
    ):
        go_on(source.guest)
        migrate(
            source.guest.qemu,
            destination.guest.qemu,
            run_dir / "migration",
            at_switchover=destination.target.kill,
        )
        destination.target.start()
        go_on(destination.guest)
        assert_owned(destination.target, source.target, image)
        finish(destination.guest, LOAD, image, before=source.guest.passes())


def cancel(source: Side, image: Path) -> None:
    """Cancel a migration once the source has let go of the disk."""
    wait_until(lambda: source.target.ownership() is OwnershipState.RELEASED, "a released disk")
    assert not locks(source.target, image)
    qmp = source.guest.qemu.qmp
    qmp.execute("migrate_cancel")
    qmp.wait_event("MIGRATION", 60.0, lambda data: bool(data["status"] == "cancelled"))


def test_linux_moves_under_load(run_dir: Path, count: Count) -> None:
    """Many requests are in flight on several queues of both devices, with indirect descriptors and event
    indexes, when each turn begins."""
    images = {device: make_image(run_dir / f"{device}.img", 16 * MIB) for device in ("scsi", "blk")}
    with contextlib.ExitStack() as stack:
        guest, targets = move_in(stack, images, "0")
        jobs = [start_load(guest, "/dev/sda"), start_load(guest, "/dev/vda")]
        for turn in range(1, count(1, 10) + 1):
            for target in targets:
                target.wait_writes(50)
            old, old_targets = guest, targets
            guest, targets = move_in(stack, images, str(turn))
            migrate(old.qemu, guest.qemu, run_dir / f"migration{turn}")
            old.qemu.quit()
            for target in old_targets:
                target.stop()
            for target in targets:
                target.wait_writes(50)
                target.crash()
                target.wait_writes(50)
        stop_load(guest, *jobs)
        assert "I/O error" not in guest.run("dmesg")


def move_in(
    stack: contextlib.ExitStack, images: dict[str, Path], turn: str
) -> tuple[LinuxGuest, list[Target]]:
    """Start one side: a target for each image, and a QEMU; the first side's guest boots."""
    incoming = ["--incoming"] if turn != "0" else []
    targets = [
        stack.enter_context(
            Target(image.parent, image, "--queues", "2", *incoming, device=device, name=f"{device}{turn}")
        )
        for device, image in images.items()
    ]
    devices = [word for target in targets for word in target.devices(queues=2, options="")]
    guest = LinuxGuest(devices, cpus=2, incoming=bool(incoming))
    return stack.enter_context(guest), targets
