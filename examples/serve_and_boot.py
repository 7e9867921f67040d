"""Serve an image from this process, boot a Linux guest on it, and say what the target did.

    truncate -s 1G disk.img
    python examples/serve_and_boot.py disk.img 'lsblk /dev/sda' 'mkfs.ext4 -q /dev/sda'

The guest is the tests' own: a Debian kernel with a root file system in memory (``make system`` fetches what
it needs). It runs in software emulation.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ringway.model import BackstoreSpec, DeviceKind, LunSpec, SpecKind, TargetConfig
from ringway.target.listen import listen
from ringway.target.target import Target
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import vhost_user_scsi


def serve(image: str, socket: Path) -> Target:
    """Serve an image as target 0, LUN 0. :raises RingwayError: it cannot be served; the message says why."""
    disk = LunSpec(target=0, lun=0, backstore=BackstoreSpec(SpecKind.PATH, path=image))
    return Target(TargetConfig(device=DeviceKind.SCSI, luns=(disk,)), listen(str(socket)))


def main(image: str, *commands: str) -> None:
    """Run each command in the guest and print its output; then the target's counters."""
    with tempfile.TemporaryDirectory(prefix="ringway-") as folder:
        socket = Path(folder) / "disk.sock"
        with serve(image, socket) as target, LinuxGuest(vhost_user_scsi(socket)) as guest:
            for command in commands:
                print(f"guest# {command}\n{guest.run(command)}", end="", flush=True)
            for lun in target.statistics().luns:
                print(f"LUN {lun.lun}: {lun.reads} reads, {lun.writes} writes, {lun.flushes} flushes")


if __name__ == "__main__":
    main(*sys.argv[1:])
