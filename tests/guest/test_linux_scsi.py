"""Linux on vhost-user-scsi: several logical units of one target, four queues, sg3_utils as the judge.

One boot serves most of it, because a boot takes seconds; each check leaves the disks in a usable state.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.target.statistics import total
from ringway.testing.guest import LinuxGuest

from .linux import (
    allocated_bytes,
    check_file_system,
    check_queues,
    check_verifies,
    start_load,
    stop_load,
)
from .serving import MIB, Target, make_image

SMALL, LARGE_BLOCKS, READ_ONLY, MEMORY, LATER = 0, 1, 2, 3, 9

#: What a LUN shows of itself: bytes, logical block, physical block, read-only.
SHOWN = {
    SMALL: f"{64 * MIB} 512 4096 0",
    LARGE_BLOCKS: f"{48 * MIB} 4096 4096 0",
    READ_ONLY: f"{8 * MIB} 512 4096 1",
    MEMORY: f"{32 * MIB} 512 4096 0",
}
#: Opcodes (and service actions) that the disk has to report, hot and slow ones.
OPCODES = (
    "00 03 08 0a 12 15 1a 1b 1e 25 28 2a 2e 2f 35 41 42 4d 55 5a 88 89 8a 8e 8f 91 93"
    " 9e:10 a0 a3:c a3:d a8 aa ae af"
)
#: Exit statuses of sg3_utils.
NOT_READY, ILLEGAL_REQUEST, DATA_PROTECT, INVALID_OPCODE, MISCOMPARE, OUT_OF_RANGE = 2, 5, 7, 9, 14, 22


@dataclass(frozen=True)
class Lab:
    """A target and the guest that uses its disks."""

    folder: Path
    target: Target
    guest: LinuxGuest

    def disk(self, lun: int) -> str:
        """The device node of a LUN; Linux names disks in the order in which they answer."""
        return "/dev/" + self.guest.run(f"ls /sys/bus/scsi/devices/0:0:0:{lun}/block").strip()

    def generic(self, lun: int) -> str:
        """The character device of a LUN: nobody but its user opens it, while udev looks at a disk after each
        writer, and the kernel starts a stopped one when it looks."""
        return "/dev/" + self.guest.run(f"ls /sys/bus/scsi/devices/0:0:0:{lun}/scsi_generic").strip()

    def image(self, lun: int) -> Path:
        """The host's file behind a LUN."""
        return self.folder / f"{lun}.img"

    def sg(self, command: str, *, status: int = 0) -> str:
        """Run one of sg3_utils. :returns: what it printed."""
        output = self.guest.try_run(command)
        assert output.status == status, f"{command}: {output}"
        return output.text


def test_linux_uses_scsi_disks(run_dir: Path) -> None:
    for lun, size_mib in ((SMALL, 64), (LARGE_BLOCKS, 48), (READ_ONLY, 8), (LATER, 8)):
        make_image(run_dir / f"{lun}.img", size_mib * MIB)
    (run_dir / f"{READ_ONLY}.img").write_bytes(os.urandom(8 * MIB))
    disks = (f"{SMALL}=0.img,serial=SN0", "1=1.img,block-size=4096", "2=2.img,readonly", "3=ram:32M")
    arguments = [word for disk in disks for word in ("--lun", disk)]
    with (
        Target(run_dir, "--queues", "4", "--workers", "2", *arguments) as target,
        LinuxGuest(target.devices(queues=4, options=""), cpus=4) as guest,
    ):
        lab = Lab(run_dir, target, guest)
        for check in CHECKS:
            check(lab)
        guest.qemu.quit()
        assert target.stop() == 0


# -- what it is


def shows_its_disks(lab: Lab) -> None:
    lab.guest.settle()
    for lun, shown in SHOWN.items():
        line = lab.guest.run(f"lsblk -bdno SIZE,LOG-SEC,PHY-SEC,RO,VENDOR {lab.disk(lun)}")
        assert line.split() == [*shown.split(), "RINGWAY"]
    assert lab.guest.run(f"lsblk -dno SERIAL {lab.disk(SMALL)}").strip() == "SN0"


def has_names(lab: Lab) -> None:
    """udev's own rules make them, of what VPD page 83h says."""
    lab.guest.settle()
    expected = set()
    for lun in SHOWN:
        identification = lab.sg(f"sg_vpd --page=di {lab.disk(lun)}")
        name = re.search(r"Addressed logical unit:.*?0x([0-9a-f]{16})\n", identification, re.DOTALL)
        assert name is not None
        assert f"/wwn-0x{name[1]}\n" in lab.guest.run(f"find -L /dev/disk/by-id -samefile {lab.disk(lun)}")
        expected |= {f"scsi-3{name[1]}", f"wwn-0x{name[1]}"}
    assert set(lab.guest.run("ls /dev/disk/by-id").split()) == expected
    assert len(expected) == 2 * len(SHOWN)


def reads_what_is_there(lab: Lab) -> None:
    expected = hashlib.sha256(lab.image(READ_ONLY).read_bytes()).hexdigest()
    assert lab.guest.run(f"sha256sum {lab.disk(READ_ONLY)}").split()[0] == expected


def refuses_to_write_what_is_read_only(lab: Lab) -> None:
    disk = lab.disk(READ_ONLY)
    before = lab.image(READ_ONLY).read_bytes()
    assert lab.guest.try_run(f"dd if=/dev/zero of={disk} bs=4k count=1 oflag=direct").status != 0
    write_10 = f"sg_raw -s 512 -i /dev/zero {lab.generic(READ_ONLY)} 2a 00 00 00 00 00 00 00 01 00"
    text = lab.sg(write_10, status=DATA_PROTECT)
    assert "Write protected" in text
    assert "WP=1" in lab.sg(f"sg_modes --page=8 {disk}")
    assert lab.image(READ_ONLY).read_bytes() == before


# -- what it does


def holds_file_systems(lab: Lab) -> None:
    for lun in (SMALL, LARGE_BLOCKS, MEMORY):
        check_file_system(lab.guest, lab.disk(lun))


def keeps_what_fio_writes(lab: Lab) -> None:
    for lun in (SMALL, LARGE_BLOCKS, MEMORY):
        check_verifies(lab.guest, lab.disk(lun))


def uses_all_queues(lab: Lab) -> None:
    check_queues(lab.guest, lab.target, lab.disk(SMALL), range(2, 6))


def gives_back_what_is_discarded(lab: Lab) -> None:
    for lun in (SMALL, LARGE_BLOCKS):
        disk, image = lab.disk(lun), lab.image(lun)
        lab.guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=16 oflag=direct")
        assert allocated_bytes(image) >= 16 * MIB
        lab.guest.run(f"mkfs.ext4 -qF {disk} && mount {disk} /mnt && fstrim /mnt && umount /mnt")
        assert allocated_bytes(image) < 12 * MIB
        lab.guest.run(f"/usr/sbin/blkdiscard -f {disk}")
        assert allocated_bytes(image) == 0
        # dd's own messages come before or after the count, as it happens.
        assert lab.guest.run(f"dd if={disk} bs=1M count=16 2>/dev/null | tr -d '\\0' | wc -c") == "0\n"


def sleeps_while_the_guest_does(lab: Lab) -> None:
    """A worker that polled would make thousands of turns a second."""
    lab.guest.run("sleep 1")
    before = lab.target.statistics()
    lab.guest.run("sleep 2")
    after = lab.target.statistics()
    requests = sum(queue.requests for queue in after.queues) - sum(queue.requests for queue in before.queues)
    loops = sum(worker.loops for worker in after.workers) - sum(worker.loops for worker in before.workers)
    assert loops <= 10 * requests + 10


# -- sg3_utils


def answers_inquiries(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    assert "version=0x06  [SPC-4]" in lab.sg(f"sg_inq {disk}")
    pages = lab.sg(f"sg_vpd --all {disk}")
    for page in (
        "Unit serial number: SN0",
        "Compare",
        "Relative target port: 0x1",
        "Non-rotating",
        "LBPU): 1",
    ):
        assert page.lower() in pages.lower(), page
    lab.sg(f"sg_raw -r 96 {disk} 12 01 b6 00 60 00", status=ILLEGAL_REQUEST)


def lists_its_commands(lab: Lab) -> None:
    text = lab.sg(f"sg_opcodes --no-inquiry {lab.disk(SMALL)}")
    rows = re.findall(r"^ ([0-9a-f]{2})  +([0-9a-f]{1,2})?  +\d+ ", text, re.MULTILINE)
    listed = {f"{opcode}:{action}" if action else opcode for opcode, action in rows}
    assert listed == set(OPCODES.split())
    assert lab.sg(f"sg_opcodes --no-inquiry --tmf {lab.disk(SMALL)}").count("\n    ") == 7


def lists_its_units(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    assert re.findall(r"^    ([0-9a-f]{16})", lab.sg(f"sg_luns {disk}"), re.MULTILINE) == [
        f"{lun:04x}000000000000" for lun in SHOWN
    ]
    assert "c101000000000000" in lab.sg(f"sg_luns --select=1 {disk}")


def tells_its_capacity_and_modes(lab: Lab) -> None:
    assert f"Device size: {64 * MIB} bytes" in lab.sg(f"sg_readcap --long {lab.disk(SMALL)}")
    assert "Logical block length=4096 bytes" in lab.sg(f"sg_readcap {lab.disk(LARGE_BLOCKS)}")
    modes = lab.sg(f"sg_modes --all {lab.disk(SMALL)}")
    for page in ("Read-Write error recovery", "Caching", "Control", "Informational exceptions"):
        assert f"{page}" in modes


def is_ready_until_stopped(lab: Lab) -> None:
    disk = lab.generic(SMALL)
    assert "with 0 errors" in lab.sg(f"sg_turs --number=3 {disk}")
    assert "No Sense" in lab.sg(f"sg_requests {disk}")
    lab.sg(f"sg_start --stop {disk}")
    lab.sg(f"sg_turs {disk}", status=NOT_READY)
    lab.sg(f"sg_start --start {disk}")
    lab.sg(f"sg_turs {disk}")


def verifies(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    random_blocks(lab, "/tmp/right", "/tmp/wrong")
    lab.guest.run(f"dd if=/tmp/right of={disk} bs=4k seek=1000 oflag=direct")
    for long in ("", "--16"):
        compare = f"sg_verify {long} --lba=8000 --count=8 --ebytchk=1 --ndo=4096 --in"
        lab.sg(f"sg_verify {long} --lba=8000 --count=8 {disk}")
        lab.sg(f"{compare}=/tmp/right {disk}")
        lab.sg(f"{compare}=/tmp/wrong {disk}", status=MISCOMPARE)
    lab.sg(f"sg_verify --lba={128 * 1024 - 1} --count=2 {disk}", status=OUT_OF_RANGE)
    lab.sg(f"sg_write_verify --lba=8000 --num=8 --in=/tmp/wrong --ilen=4096 {disk}")
    lab.sg(f"{compare}=/tmp/wrong {disk}")


def compares_and_writes(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    random_blocks(lab, "/tmp/old", "/tmp/new")
    swap = f"sg_compare_and_write --lba=8000 --num=8 --xferlen=8192 --in=/tmp/both {disk}"
    lab.guest.run(f"dd if=/tmp/old of={disk} bs=4k seek=1000 oflag=direct; cat /tmp/old /tmp/new >/tmp/both")
    lab.sg(swap)
    lab.guest.run(f"dd if={disk} bs=4k skip=1000 count=1 iflag=direct 2>/dev/null | cmp - /tmp/new")
    # One byte other than what is compared with.
    lab.guest.run(
        "head -c 1000 /tmp/new >/tmp/both; printf '\\001' | cat - /tmp/old >/tmp/tail\n"
        "[ \"$(dd if=/tmp/new bs=1 skip=1000 count=1 2>/dev/null | od -An -tx1)\" != ' 01' ] ||"
        " printf '\\002' | cat - /tmp/old >/tmp/tail\n"
        "cat /tmp/tail >>/tmp/both; cat /tmp/old /tmp/old >>/tmp/both"
    )
    assert "byte offset: 1000" in lab.sg(swap, status=MISCOMPARE)
    lab.guest.run(f"dd if={disk} bs=4k skip=1000 count=1 iflag=direct 2>/dev/null | cmp - /tmp/new")


def unmaps_and_repeats(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    random_blocks(lab, "/tmp/old", "/tmp/new")
    read = f"dd if={disk} bs=4k skip=1000 count=2 iflag=direct 2>/dev/null"
    lab.guest.run(f"cat /tmp/old /tmp/old | dd of={disk} bs=4k seek=1000 oflag=direct iflag=fullblock")
    lab.sg(f"sg_unmap --force --lba=8000 --num=8 {disk}")
    lab.guest.run(f"(head -c 4096 /dev/zero; cat /tmp/old) >/tmp/both; {read} | cmp - /tmp/both")
    for long in ("--10", "--16"):
        lab.guest.run(
            "head -c 512 /dev/urandom >/tmp/block; for i in $(seq 16); do cat /tmp/block; done >/tmp/all"
        )
        lab.sg(f"sg_write_same {long} --lba=8000 --num=16 --in=/tmp/block --xferlen=512 {disk}")
        lab.guest.run(f"{read} | cmp - /tmp/all")
    lab.sg(f"sg_write_same --16 --unmap --lba=8000 --num=16 {disk}")
    assert lab.guest.run(f"{read} | tr -d '\\0' | wc -c") == "0\n"


def answers_nonsense(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    assert "Invalid command" in lab.sg(f"sg_raw {disk} ff 00 00 00 00 00 00 00 00 00", status=INVALID_OPCODE)
    text = lab.sg(f"sg_raw -r 96 {disk} 12 02 00 00 60 00", status=ILLEGAL_REQUEST)
    assert "Error in Command: byte 1 bit 1" in text
    far = "88 00 ff ff ff ff ff ff ff ff 00 00 00 08 00 00"
    lab.sg(f"sg_raw -r 4k {disk} {far}", status=OUT_OF_RANGE)
    lab.sg(f"sg_raw {disk} 12 00 00 00 00 00")
    # 8 KiB into a buffer of 4 KiB is the HBA's error, and no byte more is written.
    lab.sg(f"sg_raw -r 4k {disk} 88 00 00 00 00 00 00 00 00 00 00 00 00 10 00 00", status=99)
    lab.sg(f"sg_turs {disk}")


def resets_under_load(lab: Lab) -> None:
    disk = lab.disk(SMALL)
    writes = total(lab.target.statistics().luns, "writes")
    load = start_load(lab.guest, disk)
    told = "dmesg | grep -c 'Power-on or device reset occurred'"
    before = int(lab.guest.run(told))
    lab.target.wait_writes(writes + 50)
    for _ in range(3):
        lab.sg(f"sg_reset --device {disk}")
    stop_load(lab.guest, load)
    assert int(lab.guest.run(told)) > before


# -- changes


def sees_units_come_grow_and_go(lab: Lab) -> None:
    """No rescan is asked for: events tell the guest."""
    image = lab.image(LATER)
    lab.target.add_lun(LATER, image)
    lab.guest.run(f"while [ ! -e /sys/bus/scsi/devices/0:0:0:{LATER}/block ]; do usleep 10000; done")
    disk = lab.disk(LATER)
    check_verifies(lab.guest, disk)
    make_image(image, 24 * MIB)
    assert lab.target.resize_lun(LATER) == 24 * MIB
    lab.guest.run(f"while [ $(blockdev --getsize64 {disk}) != {24 * MIB} ]; do usleep 10000; done")
    lab.guest.run(f"dd if=/dev/urandom of={disk} bs=1M seek=23 count=1 oflag=direct")
    assert allocated_bytes(image) >= MIB
    lab.target.remove_lun(LATER)
    lab.guest.run(f"while [ -e /sys/bus/scsi/devices/0:0:0:{LATER} ]; do usleep 10000; done")
    with pytest.raises(GuestError):
        lab.disk(LATER)
    assert f"{LATER:04x}0000" not in lab.sg(f"sg_luns {lab.disk(SMALL)}")


def works_after_a_reset_of_the_guest(lab: Lab) -> None:
    lab.guest.run(f"seq 100000 | dd of={lab.disk(SMALL)} bs=4k iflag=fullblock conv=fsync")
    lab.guest.reset()
    lab.guest.run(
        f"seq 100000 >/tmp/numbers; cmp -n $(stat -c %s /tmp/numbers) {lab.disk(SMALL)} /tmp/numbers"
    )
    shows_its_disks(lab)
    has_names(lab)
    check_verifies(lab.guest, lab.disk(MEMORY))


def stores_what_is_flushed(lab: Lab) -> None:
    """The host reads what the guest wrote, where the guest wrote it."""
    lab.guest.run(f"seq 1000 | dd of={lab.disk(SMALL)} bs=4k iflag=fullblock conv=fsync")
    expected = "".join(f"{number}\n" for number in range(1, 1001)).encode()
    assert lab.image(SMALL).read_bytes()[: len(expected)] == expected


def random_blocks(lab: Lab, *paths: str) -> None:
    """Make files of 4 KiB in the guest."""
    lab.guest.run("\n".join(f"head -c 4096 /dev/urandom >{path}" for path in paths))


CHECKS: tuple[Callable[[Lab], None], ...] = (
    shows_its_disks,
    has_names,
    reads_what_is_there,
    refuses_to_write_what_is_read_only,
    holds_file_systems,
    keeps_what_fio_writes,
    uses_all_queues,
    gives_back_what_is_discarded,
    sleeps_while_the_guest_does,
    answers_inquiries,
    lists_its_commands,
    lists_its_units,
    tells_its_capacity_and_modes,
    is_ready_until_stopped,
    verifies,
    compares_and_writes,
    unmaps_and_repeats,
    answers_nonsense,
    resets_under_load,
    sees_units_come_grow_and_go,
    works_after_a_reset_of_the_guest,
    stores_what_is_flushed,
)
