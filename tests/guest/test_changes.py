"""What changes under a guest that works: its memory comes and goes, its disks grow and shrink.

One boot, a disk of each kind, and a load that verifies on both: no request may fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing.guest import Job, LinuxGuest
from ringway.testing.qmp import Qmp
from ringway.testing.waiting import wait_until

from .conftest import Count
from .journey import devices_of, writes
from .linux import start_load, stop_load
from .serving import MIB, Target, make_image

#: The load's part of a disk lies within its smallest size.
SIZES_MIB = (16, 48, 12)
DISKS = {"scsi": "sda", "blk": "vda"}
#: What x86 Linux takes and gives at once.
BLOCK_MIB = 128
BLOCKS = 4
MEMORY = ["-m", f"{BLOCKS * BLOCK_MIB}M,slots=4,maxmem=8G"]
#: Memory that can be taken away again: nothing of the kernel's is put there.
PARAMETERS = ["memhp_default_state=online_movable"]
VIRTIO_MEM = [
    *("-object", "memory-backend-memfd,id=spare,size=2G,share=on,reserve=off"),
    *("-device", "virtio-mem-pci,id=vm0,memdev=spare,requested-size=0,dynamic-memslots=on"),
]
ONLINE_BLOCKS = "cat /sys/devices/system/memory/memory*/online | grep -c 1"


@dataclass(frozen=True)
class Lab:
    """A guest, its targets by kind, and its loads."""

    folder: Path
    targets: dict[str, Target]
    guest: LinuxGuest
    jobs: list[Job]

    @property
    def qmp(self) -> Qmp:
        """QEMU's monitor."""
        return self.guest.qemu.qmp

    def go_on(self) -> None:
        """Wait until both loads have done so much that they use their memory anew."""
        for target in self.targets.values():
            target.wait_writes(writes(target) + 50)
        assert all(job.running() for job in self.jobs)

    def wait_memory(self, blocks: int) -> None:
        """Wait until the guest has so many blocks of memory online."""
        self.guest.run(f"while [ $({ONLINE_BLOCKS}) != {blocks} ]; do usleep 10000; done")

    def regions(self) -> set[int]:
        """In how many pieces the targets have guest memory mapped."""
        return {mapped_pieces(target.pid) for target in self.targets.values()}

    def wait_regions(self, count: int) -> None:
        """Wait until each target has so many."""
        wait_until(lambda: self.regions() == {count}, f"{count} mapped pieces of guest memory")


def mapped_pieces(pid: int) -> int:
    """Mappings of QEMU's memory backends in a process."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:memory-backend-memfd ")


@pytest.mark.timeout(1200)
def test_a_guest_changes_under_load(run_dir: Path, count: Count) -> None:
    with ExitStack() as stack:
        targets = {
            device: stack.enter_context(
                Target(
                    run_dir,
                    make_image(run_dir / f"{device}.img", SIZES_MIB[0] * MIB),
                    *("--queues", "2"),
                    device=device,
                    name=device,
                )
            )
            for device in DISKS
        }
        devices = [*MEMORY, *VIRTIO_MEM, *devices_of(targets.values(), queues=2, options="")]
        guest = stack.enter_context(
            LinuxGuest(devices, cpus=2, memory_mib=BLOCKS * BLOCK_MIB, parameters=PARAMETERS)
        )
        jobs = [start_load(guest, f"/dev/{disk}") for disk in DISKS.values()]
        lab = Lab(run_dir, targets, guest, jobs)
        for _ in range(count(1, 10)):
            for change in CHANGES:
                change(lab)
        stop_load(guest, *jobs)
        assert "I/O error" not in guest.run("dmesg")


def plugs_and_unplugs_dimms(lab: Lab) -> None:
    """The load's buffers lie in what is taken away, and move out of it."""
    before = max(lab.regions())
    for number in range(2):
        lab.qmp.execute(
            "object-add",
            qom_type="memory-backend-memfd",
            id=f"m{number}",
            size=BLOCK_MIB * MIB,
            share=True,
        )
        lab.qmp.execute("device_add", driver="pc-dimm", id=f"d{number}", memdev=f"m{number}")
        lab.wait_memory(BLOCKS + number + 1)
        lab.wait_regions(before + number + 1)
        lab.go_on()
    for number in range(2):
        unplug(lab, f"d{number}")
        lab.qmp.execute("object-del", id=f"m{number}")
        lab.wait_regions(before + 1 - number)
        lab.go_on()
    lab.wait_memory(BLOCKS)


def unplug(lab: Lab, device: str) -> None:
    """Ask the guest for a DIMM until it gives it: it refuses while it cannot move a page."""
    while device in (each["data"]["id"] for each in lab.qmp.execute("query-memory-devices")):
        with suppress(GuestError):  # it is being given
            lab.qmp.execute("device_del", id=device)
        lab.guest.run("usleep 200000")


def grows_and_shrinks_by_virtio_mem(lab: Lab) -> None:
    """Regions come with the first block of each, and go with the last."""
    before = max(lab.regions())
    resize_memory(lab, 2 * BLOCK_MIB)
    lab.wait_regions(before + 1)
    lab.go_on()
    resize_memory(lab, 0)
    lab.wait_regions(before)
    lab.go_on()


def resize_memory(lab: Lab, mib: int) -> None:
    """Ask the guest to use so much of the spare memory, and wait until it does."""
    lab.qmp.execute("qom-set", path="vm0", property="requested-size", value=mib * MIB)
    wait_until(
        lambda: bool(lab.qmp.execute("qom-get", path="vm0", property="size") == mib * MIB),
        f"{mib} MiB of spare memory in use",
    )


def disks_grow_and_shrink(lab: Lab) -> None:
    """By an event and a unit attention, or by a change of the configuration: nobody asks for a rescan."""
    for device, disk in DISKS.items():
        for size_mib in (*SIZES_MIB[1:], SIZES_MIB[0]):
            os.truncate(lab.folder / f"{device}.img", size_mib * MIB)
            assert lab.targets[device].resize_lun() == size_mib * MIB
            sectors = size_mib * MIB // 512
            lab.guest.run(f"while [ $(cat /sys/block/{disk}/size) != {sectors} ]; do usleep 10000; done")
            read = f"dd if=/dev/{disk} of=/dev/null bs=1M iflag=direct skip"
            lab.guest.run(f"{read}={size_mib - 1} count=1")
            assert lab.guest.run(f"{read}={size_mib} count=1 2>&1 | head -n 1").startswith("0+0")
        lab.go_on()


CHANGES: tuple[Callable[[Lab], None], ...] = (
    disks_grow_and_shrink,
    plugs_and_unplugs_dimms,
    grows_and_shrinks_by_virtio_mem,
)
