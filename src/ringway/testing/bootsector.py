"""A guest that is one boot sector: a tenth of a second from start to the first request on a disk.

SeaBIOS reads the sector from the first bootable disk, and the program in it goes on with the BIOS's own
driver for that disk (interrupt 13h), so that a whole virtio driver is at work without an operating system. It
ends by telling QEMU's ``isa-debug-exit`` how it went, and reports on the first serial port meanwhile.

Spec: T13 1572D (EDD-3), functions 42h and 43h; Intel SDM volume 2, 325383-082
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringway.errors import GuestError
from ringway.testing.qemu import Qemu, QemuGuest, machine
from ringway.testing.waiting import PATIENCE_S
from ringway.testing.x86 import Code, u16, u32

SECTOR_BYTES = 512
EXIT_PORT = 0xF4

_ORIGIN = 0x7C00
_BUFFER_SEGMENT = 0x1000
_COM1 = 0x3F8
_COM1_LINE_STATUS = 0x3FD
#: Where a q35 machine of QEMU's has the registers that its ACPI tables use: 32 bits, one for each slot of the
#: bus that is chosen.
_HOT_PLUG = 0xCC0
_ASKED, _EJECT, _BUS = 0x4, 0x8, 0x10
_BUSES = 32
_READ, _WRITE = 0x4200, 0x4300  # AX of interrupt 13h; AL = 0 writes without a verify

# The pattern of a block: 32-bit words that start at a mix of pass and block and grow by a constant. All steps
# are odd, so that no word comes twice in a block, and a block left over from another pass or another place is
# told apart.
_WORD_STEP = 0x9E3779B1
_PASS_STEP = 0x85EBCA6B
_BLOCK_STEP = 0xC2B2AE35


class Verdict(enum.IntEnum):
    """How a program ended, as the value that it writes to the exit port."""

    OK = 0x10
    MISMATCH = 0x11
    IO_ERROR = 0x12


@dataclass(frozen=True, slots=True)
class Copy:
    """Read ``sectors`` (at most 127) at LBA ``source``, invert every bit, write at LBA ``target``, end."""

    source: int = 1
    target: int = 2
    sectors: int = 1

    def assembled(self) -> bytes:
        """Return the boot sector."""
        code = _prologue()
        code.emit("b8", u16(_READ)).jump("e8", "transfer")  # mov ax, _READ; call transfer
        code.emit("31ff").emit("b9", u16(self.sectors * SECTOR_BYTES // 4))  # xor di, di; mov cx, words
        code.label("invert").emit("6626f715").emit("83c704")  # not dword [es:di]; add di, 4
        code.jump("e2", "invert")  # loop
        code.at("66c706", "lba", u32(self.target))  # mov dword [lba], target
        code.emit("b8", u16(_WRITE)).jump("e8", "transfer")
        code.jump("e9", "ok")
        return _epilogue(code, self.sectors, self.source)

    def expected(self, source: bytes) -> bytes:
        """Return what the target holds afterwards, given what the source held."""
        return bytes(byte ^ 0xFF for byte in source)


@dataclass(frozen=True, slots=True)
class Load:
    """Write a pattern over a range of blocks, read all of it back and compare, pass after pass.

    A dot on the serial port ends each pass. The program ends after ``passes``, or, when that is 0, with the
    pass in which a byte comes in on the serial port. A write that was confirmed and then lost ends it with
    :attr:`Verdict.MISMATCH`; the buffer is wiped before each read, so a read that moved nothing is found as
        well.

    :param first: LBA of the first block; LBA 0 holds the program itself.
    :param sectors: sectors of a block, and so of a request; at most 127.
    """

    first: int = 8
    blocks: int = 16
    sectors: int = 8
    passes: int = 0

    def assembled(self) -> bytes:
        """Return the boot sector."""
        code = _prologue()
        code.label("pass").at("66ff06", "number")  # inc dword [number]
        self._write_all(code)
        self._read_all(code)
        code.emit("ba", u16(_COM1)).emit("b02e").emit("ee")  # mov dx, COM1; mov al, '.'; out dx, al
        self._end_or_repeat(code)
        self._subroutines(code)
        return _epilogue(code, self.sectors, self.first)

    def pattern(self, number: int, block: int) -> bytes:
        """Return a block's content after a pass; passes count from 1."""
        start = number * _PASS_STEP + block * _BLOCK_STEP
        words = self._words
        return struct.pack(f"<{words}I", *((start + i * _WORD_STEP) & 0xFFFFFFFF for i in range(words)))

    def verify(self, image: Path, number: int) -> None:
        """Check what an image holds once the program ended with a pass.

        :raises GuestError: a block holds something else than that pass wrote.
        """
        for block, data in enumerate(self._blocks(image)):
            if data != self.pattern(number, block):
                raise GuestError(f"block {block} does not hold what pass {number} wrote")

    def check_whole(self, image: Path, ended: int) -> None:
        """Check an image while the program stands still, wherever in a pass it is.

        :param ended: passes that are known to have ended.
        :raises GuestError: a block is not of one pass as a whole, or its pass is not the present one or the
            one before, or lies before a pass that has ended.
        """
        latest = None
        for block, data in enumerate(self._blocks(image)):
            number = self._pass_of(block, data)
            if data != (self.pattern(number, block) if number else bytes(len(data))):
                raise GuestError(f"block {block} is torn; it begins as in pass {number}")
            if number < ended or (latest is not None and latest - number not in (0, 1)):
                raise GuestError(f"block {block} is of pass {number}; {ended} ended, block 0 is of {latest}")
            latest = number if latest is None else latest

    def _blocks(self, image: Path) -> Iterator[bytes]:
        with image.open("rb") as file:
            file.seek(self.first * SECTOR_BYTES)
            for _ in range(self.blocks):
                yield file.read(self.sectors * SECTOR_BYTES)

    def _pass_of(self, block: int, data: bytes) -> int:
        """The pass whose pattern begins like this; 0 for a block that was never written."""
        if not any(data):
            return 0
        word = int.from_bytes(data[:4], "little")
        return (word - block * _BLOCK_STEP) * pow(_PASS_STEP, -1, 1 << 32) & 0xFFFFFFFF

    @property
    def _words(self) -> int:
        return self.sectors * SECTOR_BYTES // 4

    def _write_all(self, code: Code) -> None:
        code.jump("e8", "rewind")
        code.label("write").jump("e8", "seed")
        code.label("fill").emit("66ab")  # stosd
        code.emit("6605", u32(_WORD_STEP)).jump("e2", "fill")  # add eax, step; loop
        code.emit("b8", u16(_WRITE)).jump("e8", "transfer")
        code.jump("e8", "advance").jump("75", "write")  # jne

    def _read_all(self, code: Code) -> None:
        code.jump("e8", "rewind")
        code.label("read").jump("e8", "seed").emit("6631c0").emit("f366ab")  # xor eax, eax; rep stosd
        code.emit("b8", u16(_READ)).jump("e8", "transfer")
        code.jump("e8", "seed")
        code.label("compare").emit("66af").jump("75", "mismatch")  # scasd; jne
        code.emit("6605", u32(_WORD_STEP)).jump("e2", "compare")
        code.jump("e8", "advance").jump("75", "read")

    def _end_or_repeat(self, code: Code) -> None:
        if self.passes:
            code.at("66813e", "number", u32(self.passes)).jump("74", "ok")  # cmp dword [number], passes; je
        else:
            code.emit("ba", u16(_COM1_LINE_STATUS)).emit("ec")  # mov dx, line status; in al, dx
            code.emit("a801").jump("75", "ok")  # test al, 1 (data ready); jne
        code.jump("e9", "pass")

    def _subroutines(self, code: Code) -> None:
        # The first word of the current block's pattern in eax, the buffer in es:di, its length in cx.
        code.label("seed").at("66a1", "number").emit("6669c0", u32(_PASS_STEP))  # mov eax; imul eax
        code.at("668b16", "block").emit("6669d2", u32(_BLOCK_STEP))  # mov edx, [block]; imul edx, step
        code.emit("6601d0").emit("31ff").emit("b9", u16(self._words)).emit("c3")  # add; xor di, di; mov cx
        code.label("rewind").at("66c706", "block", u32(0)).at("66c706", "lba", u32(self.first)).emit("c3")
        # On to the next block; equal when that was the last.
        code.label("advance").at("668106", "lba", u32(self.sectors)).at("66ff06", "block")  # add; inc
        code.at("66813e", "block", u32(self.blocks)).emit("c3")  # cmp


@dataclass(frozen=True, slots=True)
class LetGo:
    """Let go of each PCI device that the host asks for, as an operating system with ACPI does, without end.

    A dot on the serial port begins each look, of which there are 18 a second.
    """

    def assembled(self) -> bytes:
        """Return the boot sector."""
        code = _prologue()
        code.label("round").emit("fb").emit("f4")  # sti; hlt, until the BIOS's timer ticks
        code.emit("ba", u16(_COM1)).emit("b02e").emit("ee")  # mov dx, COM1; mov al, '.'; out dx, al
        code.emit("31c9")  # xor cx, cx
        code.label("bus").emit("ba", u16(_HOT_PLUG + _BUS))  # mov dx, bus
        code.emit("660fb7c1").emit("66ef")  # movzx eax, cx; out dx, eax
        code.emit("ba", u16(_HOT_PLUG + _ASKED)).emit("66ed")  # mov dx, asked; in eax, dx
        code.emit("6685c0").jump("74", "next")  # test eax, eax; jz
        code.emit("ba", u16(_HOT_PLUG + _EJECT)).emit("66ef")  # mov dx, eject; out dx, eax
        code.label("next").emit("41").emit("83f9", bytes([_BUSES])).jump("75", "bus")  # inc cx; cmp cx; jne
        code.jump("e9", "round")
        return _epilogue(code, 1, 0)


Program = Copy | Load | LetGo


def install(image: Path, program: Program) -> None:
    """Write a program into the first sector of an image, which has to exist; the rest stays as it is."""
    with image.open("r+b") as file:
        file.write(program.assembled())


class BootSectorGuest(QemuGuest):
    """A guest of 64 MiB that boots from the first disk and runs the program in its first sector.

    :param devices: QEMU arguments of the disk, with ``bootindex=0``.
    :param incoming: start as the destination of a migration.
    """

    def __init__(self, devices: Sequence[str], *, incoming: bool = False) -> None:
        self.qemu = Qemu(
            [
                *machine(memory_mib=64, cpus=1),
                *("-serial", "chardev:console"),
                *("-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
                *(("-incoming", "defer") if incoming else ()),
                *devices,
            ]
        )

    def wait(self, timeout_s: float = PATIENCE_S) -> Verdict:
        """Wait for the program's end.

        :raises GuestError: it did not end in time, or QEMU ended for another reason.
        """
        status = self.qemu.wait(timeout_s)
        try:
            return Verdict(status >> 1)  # isa-debug-exit leaves twice the value plus one
        except ValueError as error:
            raise GuestError(f"no verdict from the boot sector\n{self.qemu.describe()}") from error

    def wait_passes(self, count: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a :class:`Load` has ended ``count`` further passes in this QEMU.

        :raises GuestError: it did not in time, or ended before; then the message holds the verdict.
        """
        try:
            self.qemu.console.take(count, timeout_s)
        except GuestError as error:
            if not self.qemu.console.closed():
                raise
            raise GuestError(f"{self.wait().name} after {self.passes()} passes") from error

    def passes(self) -> int:
        """Return how many passes a :class:`Load` has ended in this QEMU."""
        return self.qemu.console.collected().count(b".")

    def stop(self) -> None:
        """Ask a :class:`Load` without a number of passes to end with the current one."""
        self.qemu.console.write(b"q")


def _prologue() -> Code:
    code = Code(_ORIGIN)
    code.emit("31c0").emit("8ed8").emit("8ed0").emit("bc", u16(_ORIGIN))  # ax, ds, ss = 0; sp = origin
    code.at("8816", "drive")  # mov [drive], dl
    code.emit("b8", u16(_BUFFER_SEGMENT)).emit("8ec0").emit("fc")  # mov ax, segment; mov es, ax; cld
    return code


def _epilogue(code: Code, sectors: int, lba: int) -> bytes:
    """Append what every program ends with: the transfer, the three ends, the variables, the signature."""
    code.label("transfer").at("8a16", "drive").at("be", "packet").emit("cd13")  # mov dl; mov si; int
    code.jump("72", "io_error").emit("c3")  # jc; ret
    code.label("ok").emit("b0", bytes([Verdict.OK])).jump("eb", "exit")  # mov al, verdict; jmp
    code.label("mismatch").emit("b0", bytes([Verdict.MISMATCH])).jump("eb", "exit")
    code.label("io_error").emit("b0", bytes([Verdict.IO_ERROR]))
    code.label("exit").emit("e6", bytes([EXIT_PORT]))  # out port, al
    code.label("halt").emit("f4").jump("eb", "halt")  # hlt; jmp
    code.label("drive").emit("00")
    code.label("number").emit("", u32(0))
    code.label("block").emit("", u32(0))
    # Disk address packet: size, reserved, sectors, offset, segment, LBA.
    code.label("packet").emit("1000", u16(sectors), u16(0), u16(_BUFFER_SEGMENT))
    code.label("lba").emit("", u32(lba), u32(0))
    program = code.assembled()
    if len(program) > SECTOR_BYTES - 2:
        raise ValueError(f"a boot sector of {len(program)} bytes")
    return program.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"
