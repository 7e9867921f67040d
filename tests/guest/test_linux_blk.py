"""Linux on vhost-user-blk: one boot with three disks, each with a target of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ringway.testing.guest import LinuxGuest

from .linux import allocated_bytes, check_file_system, check_queues, check_verifies
from .serving import MIB, Target, make_image

SMALL, LARGE_BLOCKS, READ_ONLY = "small", "large", "fixed"

#: What a disk shows of itself: bytes, logical block, physical block, read-only; and its serial number.
SHOWN = {
    SMALL: f"{64 * MIB} 512 4096 0 SN-small",
    LARGE_BLOCKS: f"{48 * MIB} 4096 4096 0 SN-large",
    READ_ONLY: f"{8 * MIB} 512 4096 1 SN-fixed",
}
QUEUES = {SMALL: 4, LARGE_BLOCKS: 1, READ_ONLY: 1}
OPTIONS = {SMALL: ["--queues", "4"], LARGE_BLOCKS: ["--block-size", "4096"], READ_ONLY: ["--readonly"]}


@dataclass(frozen=True)
class Lab:
    """A guest with three disks, and the target of each."""

    folder: Path
    targets: dict[str, Target]
    guest: LinuxGuest

    def disk(self, name: str) -> str:
        """The device node of a disk; QEMU's order of devices is the guest's."""
        return f"/dev/vd{'abc'[list(SHOWN).index(name)]}"

    def image(self, name: str) -> Path:
        """The host's file behind a disk."""
        return self.folder / f"{name}.img"


def test_linux_uses_blk_disks(run_dir: Path) -> None:
    with ExitStack() as stack:
        targets = {name: stack.enter_context(serve(run_dir, name)) for name in SHOWN}
        devices = [word for name in SHOWN for word in targets[name].devices(queues=QUEUES[name], options="")]
        guest = stack.enter_context(LinuxGuest(devices, cpus=4))
        lab = Lab(run_dir, targets, guest)
        for check in CHECKS:
            check(lab)
        guest.qemu.quit()
        assert [target.stop() for target in targets.values()] == [0, 0, 0]


def serve(folder: Path, name: str) -> Target:
    """Make an image with something in it, and its target."""
    image = make_image(folder / f"{name}.img", int(SHOWN[name].split()[0]))
    with image.open("r+b") as file:
        file.write(os.urandom(MIB))
    return Target(folder, image, "--serial", f"SN-{name}", *OPTIONS[name], device="blk", name=name)


# -- what they are


def shows_its_disks(lab: Lab) -> None:
    lab.guest.settle()
    for name, shown in SHOWN.items():
        line = lab.guest.run(f"lsblk -bdno SIZE,LOG-SEC,PHY-SEC,RO,SERIAL {lab.disk(name)}")
        assert line.split() == shown.split()
        assert lab.guest.run(f"readlink -f /dev/disk/by-id/virtio-SN-{name}").strip() == lab.disk(name)


def reads_what_is_there(lab: Lab) -> None:
    for name in SHOWN:
        expected = hashlib.sha256(lab.image(name).read_bytes()).hexdigest()
        assert lab.guest.run(f"sha256sum {lab.disk(name)}").split()[0] == expected


def refuses_to_write_what_is_read_only(lab: Lab) -> None:
    before = lab.image(READ_ONLY).read_bytes()
    written = lab.guest.try_run(f"dd if=/dev/zero of={lab.disk(READ_ONLY)} bs=4k count=1 oflag=direct")
    assert written.status != 0
    assert lab.image(READ_ONLY).read_bytes() == before


# -- what they do


def holds_file_systems(lab: Lab) -> None:
    for name in (SMALL, LARGE_BLOCKS):
        check_file_system(lab.guest, lab.disk(name))


def keeps_what_fio_writes(lab: Lab) -> None:
    for name in (SMALL, LARGE_BLOCKS):
        check_verifies(lab.guest, lab.disk(name))


def uses_all_queues(lab: Lab) -> None:
    check_queues(lab.guest, lab.targets[SMALL], lab.disk(SMALL), range(4))


def gives_back_what_is_discarded(lab: Lab) -> None:
    for name in (SMALL, LARGE_BLOCKS):
        disk, image = lab.disk(name), lab.image(name)
        lab.guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=16 oflag=direct")
        assert allocated_bytes(image) >= 16 * MIB
        lab.guest.run(f"mkfs.ext4 -qF {disk} && mount {disk} /mnt && fstrim /mnt && umount /mnt")
        assert allocated_bytes(image) < 12 * MIB
        lab.guest.run(f"/usr/sbin/blkdiscard -f {disk}")
        assert allocated_bytes(image) == 0


def writes_zeroes(lab: Lab) -> None:
    """WRITE ZEROES: no data is sent, and only what was named is zero afterwards."""
    for name in (SMALL, LARGE_BLOCKS):
        disk, target = lab.disk(name), lab.targets[name]
        lab.guest.run(
            f"head -c {3 * MIB} /dev/urandom >/tmp/data; dd if=/tmp/data of={disk} bs=1M oflag=direct"
        )
        before = target.statistics().luns[0].write_bytes
        lab.guest.run(f"/usr/sbin/blkdiscard --force --zeroout --offset {MIB} --length {MIB} {disk}")
        assert target.statistics().luns[0].write_bytes == before
        lab.guest.run(
            f"(head -c {MIB} /tmp/data; head -c {MIB} /dev/zero; tail -c {MIB} /tmp/data) >/tmp/expected\n"
            f"head -c {3 * MIB} {disk} | cmp - /tmp/expected"
        )


def switches_the_write_cache(lab: Lab) -> None:
    """Write-through: no flush is needed any more, and the guest sends none; back again it does."""
    kind = f"/sys/block/{lab.disk(SMALL).removeprefix('/dev/')}/cache_type"
    assert lab.guest.run(f"cat {kind}") == "write back\n"
    assert flushes_of_a_synchronous_write(lab) > 0
    lab.guest.run(f"echo 'write through' >{kind}")
    assert lab.guest.run(f"cat {kind}") == "write through\n"
    assert flushes_of_a_synchronous_write(lab) == 0
    lab.guest.run(f"echo 'write back' >{kind}")
    assert flushes_of_a_synchronous_write(lab) > 0


def flushes_of_a_synchronous_write(lab: Lab) -> int:
    """Write a block and have it made stable. :returns: how many flushes the target saw."""
    before = lab.targets[SMALL].statistics().luns[0].flushes
    lab.guest.run(f"dd if=/dev/urandom of={lab.disk(SMALL)} bs=4k count=1 conv=fsync")
    return lab.targets[SMALL].statistics().luns[0].flushes - before


# -- changes


def sees_a_disk_grow(lab: Lab) -> None:
    """No rescan is asked for: the configuration changes, and the guest is told."""
    disk, image = lab.disk(SMALL), lab.image(SMALL)
    make_image(image, 80 * MIB)
    assert lab.targets[SMALL].resize_lun() == 80 * MIB
    lab.guest.run(f"while [ $(blockdev --getsize64 {disk}) != {80 * MIB} ]; do usleep 10000; done")
    lab.guest.run(f"dd if=/dev/zero of={disk} bs=1M seek=79 count=1 oflag=direct")


def works_after_a_reset_of_the_guest(lab: Lab) -> None:
    lab.guest.run(f"seq 100000 | dd of={lab.disk(SMALL)} bs=4k iflag=fullblock conv=fsync")
    lab.guest.reset()
    lab.guest.run(
        f"seq 100000 >/tmp/numbers; cmp -n $(stat -c %s /tmp/numbers) {lab.disk(SMALL)} /tmp/numbers"
    )
    for name in (SMALL, LARGE_BLOCKS):
        check_verifies(lab.guest, lab.disk(name))


CHECKS: tuple[Callable[[Lab], None], ...] = (
    shows_its_disks,
    reads_what_is_there,
    refuses_to_write_what_is_read_only,
    holds_file_systems,
    keeps_what_fio_writes,
    uses_all_queues,
    gives_back_what_is_discarded,
    writes_zeroes,
    switches_the_write_cache,
    sees_a_disk_grow,
    works_after_a_reset_of_the_guest,
)
