"""The command that a user is told after a LUN has grown of which nobody tells the guest, as the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

from ringway.host.changes import rescan
from ringway.testing.guest import LinuxGuest

from .serving import MIB, Target, make_image

LUNS = (0, 44, 300)  # 44 is what 300 would be in eight bits
FLAT = 0x4000 | 300  # as Linux calls it, unless it is told otherwise
TOLD_OF_NOTHING = "param_change=off"


def test_a_rescan_finds_the_disk_that_was_meant_and_no_other(run_dir: Path) -> None:
    for lun in LUNS:
        make_image(run_dir / f"{lun}.img", MIB)
    arguments = [word for lun in LUNS for word in ("--lun", f"{lun}={lun}.img")]
    with (
        Target(run_dir, *arguments) as target,
        LinuxGuest(target.devices(options=TOLD_OF_NOTHING)) as guest,
    ):
        guest.run("echo '0 0 300' >/sys/class/scsi_host/host0/scan")  # as REPORT LUNS of the kernel's has it
        old = dict.fromkeys((0, 44, 300, FLAT), MIB)
        assert sizes(guest) == old
        for lun in LUNS:
            os.truncate(run_dir / f"{lun}.img", 2 * MIB)
            assert target.resize_lun(lun) == 2 * MIB
        assert sizes(guest) == old
        guest.run(rescan((0, 300)))
        assert sizes(guest) == {**old, 300: 2 * MIB, FLAT: 2 * MIB}
        guest.run("echo 1 >/sys/class/scsi_device/0:0:0:300/device/delete")
        os.truncate(run_dir / "300.img", 3 * MIB)
        target.resize_lun(300)
        guest.run(rescan((0, 300)))
        assert sizes(guest) == {0: MIB, 44: MIB, FLAT: 3 * MIB}
        guest.run(rescan((0, 44)))
        assert sizes(guest) == {0: MIB, 44: 2 * MIB, FLAT: 3 * MIB}


def sizes(guest: LinuxGuest) -> dict[int, int]:
    """What disks the guest has, by the last number of their names there, in bytes."""
    guest.settle()
    text = guest.run(
        "for disk in /sys/class/scsi_device/*; do echo ${disk##*:} $(cat $disk/device/block/*/size); done"
    )
    pairs = (line.split() for line in text.splitlines())
    return {int(number): int(sectors) * 512 for number, sectors in pairs}
