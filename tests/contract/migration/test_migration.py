"""A migration in miniature: two targets on one image, a front end for each, and a guest that moves between.

The guest's memory is the same on both sides, as if all of it had been copied. Looked at are who owns the
image when, that the rings go on, and that no write is lost.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ringway.errors import GuestError
from ringway.model import IoEngine
from ringway.testing.frontend import FrontEnd
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S, wait_until

from .. import cdb
from ..disks import Disk, MakeDisk
from ..loads import Load
from .guests import DEVICES, destination, guest_of, opened, served


class Sides(NamedTuple):
    """A guest with a load on a disk, and where it can go."""

    disk: Disk
    source: ServedTarget
    target: ServedTarget
    here: FrontEnd
    there: FrontEnd
    load: Load


TwoSides = Callable[..., AbstractContextManager[Sides]]


@pytest.fixture
def two_sides(run_dir: Path, disk_of: MakeDisk, engine: IoEngine) -> TwoSides:
    """``two_sides("blk", "mapped")``: two targets on one disk, a front end at each, a load on the first."""

    @contextmanager
    def start(device: str, store: str = "cached") -> Iterator[Sides]:
        disk = disk_of(store)
        with (
            served(run_dir, engine, device, disk, "source") as source,
            served(run_dir, engine, device, disk, "destination", "--incoming") as target,
            opened(device, source.socket) as here,
            destination(here, target.socket) as there,
            Load(here) as load,
        ):
            yield Sides(disk, source, target, here, there, load)

    return start


def move(source: FrontEnd, target: FrontEnd) -> None:
    """Start the guest's rings where they stopped."""
    target.bases = list(source.bases)
    target.start()


def lock_holders(path: Path, *targets: ServedTarget) -> list[ServedTarget]:
    """Which of these processes hold byte locks on a file."""
    return [target for target in targets if target.alive and _holds(target.pid, os.stat(path))]


def _holds(pid: int, image: os.stat_result) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            same = os.path.samestat(link.stat(), image)
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
        except OSError:
            continue
        if same and re.search(r"^lock:.*OFDLCK", info, re.MULTILINE):
            return True
    return False


def check_third_party(path: Path, *, free: bool) -> None:
    """QEMU's own tools are let in, or kept out, by the locks."""
    program = shutil.which("qemu-io")
    assert program is not None, "qemu-io is missing: run `make system`"
    command = [program, "-f", "raw", "-c", "write -P 1 0 512", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode == 0) is free, done.stdout + done.stderr
    if not free:
        assert "lock" in done.stderr


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["mapped", "cached", "direct"])
def test_a_guest_moves_with_its_load_and_the_image_with_it(
    two_sides: TwoSides, device: str, store: str
) -> None:
    with two_sides(device, store) as (disk, source, target, here, there, load):
        load.wait_progress()
        here.start_log()
        load.wait_progress()
        assert lock_holders(disk.path, source, target) == [source]
        assert target.info().luns[0].ownership == "released"
        here.stop()
        assert here.dirty_pages()
        move(here, there)
        load.wait_progress()
        assert lock_holders(disk.path, source, target) == [target]
        assert [each.info().luns[0].ownership for each in (source, target)] == ["released", "held"]
        assert target.info().luns[0].epoch == 1
        check_third_party(disk.path, free=False)
        assert source.stop() == 0
        load.wait_progress()


@pytest.mark.parametrize("device", DEVICES)
def test_a_destination_that_starts_early_waits_for_the_source(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str
) -> None:
    """Its first enabled kick makes it ask; not a byte is read or written before the source has drained."""
    disk = disk_of("cached")
    with (
        served(run_dir, engine, device, disk, "source") as source,
        served(run_dir, engine, device, disk, "destination", "--incoming") as target,
        opened(device, source.socket) as here,
        guest_of(device, target.socket) as other,
    ):
        other.open()
        early = other.rings[-1].submit(*request_of(device, 0))
        target.wait_message("waiting for")
        assert target.info().luns[0].ownership == "wanted"
        with Load(here) as load:
            load.wait_progress()
            assert lock_holders(disk.path, source, target) == [source]
            assert other.rings[-1].used_index == 0
            here.start_log()
            load.wait_progress()
        here.stop()
        other.rings[-1].wait(early)
        assert lock_holders(disk.path, source, target) == [target]


def request_of(device: str, sector: int) -> tuple[list[bytes], list[int]]:
    """A read of a block, as parts of a chain."""
    if device == "blk":
        return [bytes(8) + sector.to_bytes(8, "little")], [4096, 1]
    header = bytes([1, 0, 0x40, 0]) + bytes(4) + (99).to_bytes(8, "little") + bytes(3)
    return [header + cdb.read(sector, 8).ljust(32, b"\0")], [108, 4096]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["mapped", "cached"])
def test_the_source_takes_its_image_back_when_the_destination_never_starts(
    two_sides: TwoSides, device: str, store: str
) -> None:
    with two_sides(device, store) as (disk, source, target, here, there, load):
        for _ in range(3):
            load.wait_progress()
            here.start_log()
            load.wait_progress()
            here.stop()
            wait_released(source)
            assert lock_holders(disk.path, source, target) == []
            here.logging = False
            here.start()
            load.wait_progress()
            assert lock_holders(disk.path, source, target) == [source]
        assert source.info().luns[0].epoch == 4
        there.disconnect()
        assert target.stop() == 0
        load.wait_progress()


def wait_released(target: ServedTarget) -> None:
    """A release flushes first, and its front end does not wait for that."""
    wait_until(lambda: target.info().luns[0].ownership == "released", "the release")


@pytest.mark.parametrize("device", DEVICES)
def test_a_source_that_dies_leaves_its_image_to_the_destination(two_sides: TwoSides, device: str) -> None:
    with two_sides(device) as (disk, source, target, here, there, load):
        load.wait_progress()
        here.start_log()
        load.wait_progress()
        here.stop()
        source.kill()
        move(here, there)
        load.wait_progress()
        assert lock_holders(disk.path, target) == [target]


@pytest.mark.parametrize("device", DEVICES)
def test_a_guest_goes_there_and_back_and_survives_a_crash_in_between(
    two_sides: TwoSides, device: str
) -> None:
    """Trap T8: the fresh in-flight region of the destination starts at the ring's used index, not at zero."""
    with two_sides(device) as (disk, source, target, here, there, load):
        load.wait_progress()
        here.start_log()
        here.stop()
        move(here, there)
        for _ in range(3):
            load.wait_progress()
            target.kill()
            target.start()
            there.reconnect()
        load.wait_progress()
        there.start_log()
        load.wait_progress()
        there.stop()
        here.logging = False
        move(there, here)
        load.wait_progress()
        assert lock_holders(disk.path, source, target) == [source]
        assert source.info().luns[0].epoch == 2


def test_nobody_else_gets_the_image_while_a_target_serves_it(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    disk = disk_of("cached")
    rival = served(run_dir, engine, "blk", disk, "rival")
    with served(run_dir, engine, "blk", disk, "source") as source:
        check_third_party(disk.path, free=False)
        with pytest.raises(GuestError, match=f"in use: pid {source.pid} "):
            rival.start()
        assert source.stop() == 0
    check_third_party(disk.path, free=True)
    with rival:
        check_third_party(disk.path, free=False)


def test_a_stop_that_is_no_migration_keeps_the_image(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """A guest that is paused or rebooted stops its rings too, but logs nothing."""
    disk = disk_of("cached")
    with (
        served(run_dir, engine, "blk", disk, "source") as source,
        opened("blk", source.socket) as front,
    ):
        front.stop()
        assert lock_holders(disk.path, source) == [source]
        front.reset()
        assert lock_holders(disk.path, source) == [source]
        assert source.info().luns[0].epoch == 1
