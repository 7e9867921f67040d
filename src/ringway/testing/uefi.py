"""A disk that UEFI firmware boots: an EFI system partition with one tiny program on it.

The program is the removable-media loader that the firmware looks for, and all it does is to end QEMU through
``isa-debug-exit``. That it ran means that the firmware's own virtio driver found the disk, read its FAT and
the file.

Spec: UEFI 2.10, 3.5.1.1 (removable media); PE format (Microsoft), rev. 11; FAT specification (Microsoft),
1.03
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from ringway.errors import GuestError
from ringway.testing.bootsector import EXIT_PORT, Verdict
from ringway.testing.qemu import INSTALL_HINT, Qemu, QemuGuest, machine

_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_IMAGE_BYTES = 32 << 20
_TABLES = 2
_ROOT_ENTRIES = 512
_END_OF_CHAIN = 0xFFFF
_FOLDER, _ARCHIVE = 0x10, 0x20
_PE_BLOCK, _PE_PAGE = 0x200, 0x1000


def loader() -> bytes:
    """Return the program, a PE32+ image for x86-64: ``mov al, verdict; out port, al; jmp $``."""
    code = bytes([0xB0, Verdict.OK, 0xE6, EXIT_PORT, 0xEB, 0xFE])
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    # Machine AMD64, one section, an optional header of 160 bytes, executable with long addresses.
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 160, 0x0022)
    # The code lies, and starts, one page into the image.
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, _PE_BLOCK, 0, 0, _PE_PAGE, _PE_PAGE)
    optional += struct.pack("<QIIHHHHHHI", 0, _PE_PAGE, _PE_BLOCK, 0, 0, 0, 0, 0, 0, 0)
    # Two pages (headers, code), subsystem 10: an EFI application, with six empty data directories.
    optional += struct.pack("<IIIHHQQQQII", 2 * _PE_PAGE, _PE_BLOCK, 0, 10, 0, 0, 0, 0, 0, 0, 6) + bytes(
        6 * 8
    )
    flags = 0x60000020  # code, executable, readable
    section = struct.pack("<8sIIII12xI", b".text", len(code), _PE_PAGE, _PE_BLOCK, _PE_BLOCK, flags)
    headers = dos + coff + optional + section
    return headers.ljust(_PE_BLOCK, b"\0") + code.ljust(_PE_BLOCK, b"\0")


def write_disk(image: Path, *, block_bytes: int = 512) -> None:
    """Make an image of 32 MiB, all of it one FAT16 file system, with :func:`loader` where firmware looks.

    :param block_bytes: the logical block size that the disk will be served with.
    """
    cluster = max(block_bytes, 1024)  # 1 KiB keeps the count of clusters within FAT16's range, 4085 to 65524
    table = _padded(_table(), _IMAGE_BYTES // cluster * 2, block_bytes)
    root = _padded(_entry(b"EFI        ", _FOLDER, 2), _ROOT_ENTRIES * 32, block_bytes)
    folders = (_folder(b"BOOT       ", _FOLDER, 3, own=2), _folder(b"BOOTX64 EFI", _ARCHIVE, 4, own=3))
    data = b"".join(content.ljust(cluster, b"\0") for content in (*folders, loader()))
    head = _boot_record(block_bytes, cluster, len(table)).ljust(block_bytes, b"\0")
    with image.open("wb") as file:
        file.write(head + table * _TABLES + root + data)
        file.truncate(_IMAGE_BYTES)


class UefiGuest(QemuGuest):
    """A guest that UEFI firmware boots from the first disk that :func:`write_disk` made.

    :param devices: QEMU arguments of the disk, with ``bootindex=0``.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        exit_device = f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"
        self.qemu = Qemu(
            [
                *machine(memory_mib=256, cpus=1),
                # Without a flash for variables the firmware keeps them in memory, which is enough for one
                # boot.
                *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={find_firmware()}"),
                *("-serial", "chardev:console", "-device", exit_device),
                *devices,
            ]
        )

    def wait_booted(self, timeout_s: float = 300.0) -> None:
        """Wait until the program on the disk has run.

        :raises GuestError: it did not in time, or QEMU ended for another reason.
        """
        if self.qemu.wait(timeout_s) != Verdict.OK * 2 + 1:
            raise GuestError(f"the firmware did not boot the disk\n{self.qemu.describe()}")


def find_firmware() -> Path:
    """Return the path of the UEFI firmware.

    :raises GuestError: it is not installed; the hint names the way to get it.
    """
    if not _FIRMWARE.exists():
        raise GuestError(f"{_FIRMWARE} is not there", hint=f"{INSTALL_HINT}, or apt-get install ovmf")
    return _FIRMWARE


def _boot_record(block_bytes: int, cluster: int, table_bytes: int) -> bytes:
    jump, name = b"\xeb\x3c\x90", b"RINGWAY "
    per_cluster, per_table = cluster // block_bytes, table_bytes // block_bytes
    blocks = _IMAGE_BYTES // block_bytes
    small, large = (blocks, 0) if blocks < 1 << 16 else (0, blocks)
    record = struct.pack("<3s8sHBHB", jump, name, block_bytes, per_cluster, 1, _TABLES)
    record += struct.pack("<HHBHHHII", _ROOT_ENTRIES, small, 0xF8, per_table, 32, 64, 0, large)
    record += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0x52494E47, b"RINGWAY    ", b"FAT16   ")
    return record.ljust(510, b"\0") + b"\x55\xaa"


def _table() -> bytes:
    """Return the first entries: two reserved ones, then three chains of one cluster each."""
    return struct.pack("<5H", 0xFFF8, *[_END_OF_CHAIN] * 4)


def _folder(name: bytes, kind: int, cluster: int, *, own: int) -> bytes:
    parent = own - 1 if own > 2 else 0  # the root folder is no cluster, and is written as 0
    dots = _entry(b".          ", _FOLDER, own) + _entry(b"..         ", _FOLDER, parent)
    return dots + _entry(name, kind, cluster)


def _entry(name: bytes, kind: int, cluster: int) -> bytes:
    size = len(loader()) if kind == _ARCHIVE else 0
    midnight, first_day = 0, 0x0021  # 1980-01-01
    times = (midnight, first_day, first_day, 0, midnight, first_day)
    return struct.pack("<11sBBBHHHHHHHI", name, kind, 0, 0, *times, cluster, size)


def _padded(data: bytes, minimum: int, block_bytes: int) -> bytes:
    return data.ljust(-(-minimum // block_bytes) * block_bytes, b"\0")
