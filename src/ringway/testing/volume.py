"""A volume that a BIOS boots: GRUB before the first partition, and a file system with a kernel in that.

It is what an installed system's disk is, and neither a mount nor a loop device is needed to make it.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from ringway.errors import GuestError
from ringway.testing import initramfs
from ringway.testing.initramfs import find_program
from ringway.testing.kernel import Kernel, command_line

#: Where the file system is in a volume.
PARTITION_BYTES: Final = 1 << 20
_SECTOR_BYTES: Final = 512
_GRUB: Final = Path("/usr/lib/grub/i386-pc")
_PACKAGE: Final = "grub-pc-bin"
_MODULES: Final = ("biosdisk", "part_msdos", "ext2", "linux", "serial", "terminal")
_TABLE: Final = 446  #: of partitions, in the first sector: 64 bytes, and a signature
_CONFIGURATION: Final = """\
serial --unit=0
terminal_output serial
set root=(hd0,msdos1)
linux /boot/vmlinuz {parameters}
initrd /boot/initrd
boot
"""


def write_volume(image: Path, kernel: Kernel) -> None:
    """Make an image whose kernel finds its first root file system beside it, and starts the agent of
    :mod:`~ringway.testing.initramfs`.

    :raises GuestError: a program is missing on this host; the hint names the way to get it.
    """
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        folder = Path(name)
        boot = folder / "root" / "boot"
        boot.mkdir(parents=True)
        shutil.copyfile(kernel.folder / "vmlinuz", boot / "vmlinuz")
        shutil.copyfile(initramfs.build(kernel), boot / "initrd")
        size_kib = sum(file.stat().st_size for file in boot.iterdir()) * 9 // 8 // 1024
        _write_loader(image, folder, sectors=size_kib * 1024 // _SECTOR_BYTES)
        _format(image, folder / "root", size_kib)


def _write_loader(image: Path, folder: Path, *, sectors: int) -> None:
    """Write what the BIOS starts, and a table with one partition of so many sectors."""
    code = folder / "core.img"
    configuration = folder / "grub.cfg"
    configuration.write_text(_CONFIGURATION.format(parameters=command_line()))
    mkimage = find_program("grub-mkimage", "grub-common")
    options = ("-O", "i386-pc", "-p", "/boot/grub", "-c", configuration, "-o", code)
    subprocess.run([mkimage, *options, *_MODULES], check=True)
    # Active, of Linux's type; heads and cylinders say that they say nothing.
    numbers = (PARTITION_BYTES // _SECTOR_BYTES, sectors)
    partition = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", *numbers)
    first = _first_sector()
    head = first[:_TABLE] + partition.ljust(64, b"\0") + first[_TABLE + 64 :] + code.read_bytes()
    if len(head) > PARTITION_BYTES:
        raise GuestError(f"a boot loader of {len(head)} bytes")
    image.write_bytes(head)


def _first_sector() -> bytes:
    path = _GRUB / "boot.img"
    if not path.exists():
        raise GuestError(f"{path} is not installed", hint=f"run `make system`, or apt-get install {_PACKAGE}")
    return path.read_bytes()


def _format(image: Path, root: Path, size_kib: int) -> None:
    """Make the file system, with what it has, and without checksums: GRUB 2.06 cannot read their seed."""
    with image.open("r+b") as file:
        file.truncate(PARTITION_BYTES + size_kib * 1024)
    mkfs = find_program("mkfs.ext4", "e2fsprogs")
    options = ("-qF", "-O", "^has_journal,^metadata_csum", "-m", "0", "-E", f"offset={PARTITION_BYTES}")
    subprocess.run([mkfs, *options, "-d", root, image, f"{size_kib}k"], check=True)
