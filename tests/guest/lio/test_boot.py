"""A guest in the guest boots from the kernel's endpoint."""

from __future__ import annotations

import os
from pathlib import Path

from ringway.testing.bootsector import BootSectorGuest, Copy, Verdict, install
from ringway.testing.configfs import VhostEndpoint, file_backstore
from ringway.testing.qemu import vhost_scsi

MIB = 1 << 20
WWPN = "naa.5001405a1b2c3d4e"


def test_a_boot_sector_reads_and_writes(tmp_path: Path) -> None:
    """SeaBIOS reads it through vhost-scsi, and it copies a block: QEMU in software, twice over."""
    image, program = tmp_path / "disk.img", Copy(source=1, target=9)
    image.write_bytes(os.urandom(MIB))
    install(image, program)
    before = image.read_bytes()
    VhostEndpoint(WWPN).make("naa.5001405000000001").link(0, file_backstore(image, MIB))
    with BootSectorGuest(vhost_scsi(WWPN, options="bootindex=0")) as guest:
        assert guest.wait() is Verdict.OK
    assert image.read_bytes()[9 * 512 : 10 * 512] == program.expected(before[512:1024])
