"""What the tests with guests share: a target, a way to its devices, images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ringway.model import (
    BackstoreSpec,
    Done,
    LunInfo,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    OwnershipState,
    SpecKind,
)
from ringway.target.statistics import total
from ringway.testing.bootsector import BootSectorGuest, Load, Verdict
from ringway.testing.qemu import vhost_user_blk, vhost_user_scsi
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import wait_until

MIB = 1 << 20
BOOT = "bootindex=0"

both_devices = pytest.mark.parametrize("device", ["scsi", "blk"])


class Target(ServedTarget):
    """``ringway serve``, with the verbs of its control socket.

    :param disks: DISK, or options of ``ringway serve``.
    """

    def __init__(self, folder: Path, *disks: str | Path, device: str = "scsi", name: str = "target") -> None:
        super().__init__(folder, "--device", device, *disks, name=name)
        self._connect = {"scsi": vhost_user_scsi, "blk": vhost_user_blk}[device]

    def devices(self, *, queues: int = 1, options: str = BOOT) -> Sequence[str]:
        """QEMU's arguments for its device."""
        path = Path(self.socket)
        return self._connect(path, name=path.stem, queues=queues, reconnect_ms=20, options=options)

    def wait_writes(self, count: int) -> None:
        """Wait until it has written so often since its start. :raises TimedOutError: it did not in time."""
        wait_until(lambda: total(self.statistics().luns, "writes") >= count, f"{count} writes")

    def crash(self) -> None:
        """Die, and come back."""
        self.kill()
        self.start()

    def ownership(self) -> OwnershipState:
        """Of its first disk."""
        return self.info().luns[0].ownership

    def wait_ownership(self, state: OwnershipState) -> None:
        """Wait until its first disk is held, wanted or released. :raises TimedOutError: not in time."""
        wait_until(lambda: self.ownership() is state, f"a disk that is {state}")

    def add_lun(self, lun: int, path: Path) -> None:
        """Show a further image to the guest."""
        spec = LunSpec(0, lun, BackstoreSpec(SpecKind.PATH, path=str(path)))
        with self.control() as client:
            client.add_lun(spec)

    def remove_lun(self, lun: int) -> None:
        """Take a LUN away from the guest."""
        with self.control() as client:
            client.call(LunRemoveRequest(0, lun), Done)

    def resize_lun(self, lun: int = 0) -> int:
        """Let it look at an image's size again. :returns: bytes."""
        with self.control() as client:
            return client.call(LunResizeRequest(0, lun), LunInfo).size_bytes


def go_on(guest: BootSectorGuest, passes: int = 2) -> None:
    """Wait until a load ended further passes; the last of two has begun after the call.

    :raises GuestError: it did not in time, or ended before.
    """
    goal = guest.passes() + passes
    while guest.passes() < goal:
        guest.wait_passes(1)


def finish(guest: BootSectorGuest, load: Load, image: Path, *, before: int = 0) -> None:
    """End a load, and look at what it left.

    :param before: passes that ended in other QEMUs.
    :raises GuestError: the image does not hold what the last pass wrote.
    """
    guest.stop()
    assert guest.wait() is Verdict.OK
    load.verify(image, before + guest.passes())


def make_image(path: Path, size_bytes: int = 8 * MIB) -> Path:
    """Make a sparse image, or make one larger. :returns: its path."""
    with path.open("ab") as file:
        os.truncate(file.fileno(), size_bytes)
    return path
