"""Linux interfaces that Python has no call for: statx, fstatfs, block-device ioctls, OFD locks.

Thin and typed; no policy. ``tests/unit/target/test_kernel.py`` checks the numbers against the kernel's
headers.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

TMPFS_MAGIC: Final = 0x01021994
RAMFS_MAGIC: Final = 0x858458F6
HUGETLBFS_MAGIC: Final = 0x958458F6

BLKROGET: Final = 0x125E
BLKSSZGET: Final = 0x1268
BLKPBSZGET: Final = 0x127B
BLKGETSIZE64: Final = 0x80081272

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

STATX_DIOALIGN: Final = 0x2000
STATX_ATTR_DAX: Final = 0x200000
_AT_EMPTY_PATH: Final = 0x1000

_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class DirectAlignment:
    """What O_DIRECT asks of buffers and offsets, in bytes; zero: the file system has no direct I/O."""

    memory: int
    offset: int


def _call(name: str, *args: object) -> None:
    """Call a libc function that returns -1 on failure. :raises OSError: it failed."""
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def file_system_magic(fd: int) -> int:
    """``f_type`` of the file system that a file is on. :raises OSError: fstatfs failed."""
    buffer = ctypes.create_string_buffer(256)
    _call("fstatfs", fd, buffer)
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF


def _statx(fd: int, mask: int) -> bytes:
    """:returns: ``struct statx``. :raises OSError: statx failed."""
    buffer = ctypes.create_string_buffer(256)
    _call("statx", fd, b"", _AT_EMPTY_PATH, ctypes.c_uint(mask), buffer)
    return buffer.raw


def is_dax(fd: int) -> bool:
    """Whether a file's pages are the medium itself (STATX_ATTR_DAX)."""
    record = _statx(fd, 0)
    attributes, known = (struct.unpack_from("=Q", record, offset)[0] for offset in (8, 56))
    return bool(attributes & known & STATX_ATTR_DAX)


def direct_alignment(fd: int) -> DirectAlignment | None:
    """What the kernel says of direct I/O to this file; ``None`` when it does not say (before Linux 6.1)."""
    record = _statx(fd, STATX_DIOALIGN)
    if not struct.unpack_from("=I", record, 0)[0] & STATX_DIOALIGN:
        return None
    return DirectAlignment(*struct.unpack_from("=II", record, 152))


def access_mode(fd: int) -> int:
    """O_RDONLY, O_WRONLY or O_RDWR."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


def is_readable(fd: int) -> bool:
    """Whether what is open can be read: not if it was opened for writing, or as a mere place (O_PATH)."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_WRONLY


def is_same_description(one: int, other: int) -> bool:
    """Whether two descriptors are of one open file: then they share their position, which is moved."""
    os.lseek(one, 0, os.SEEK_SET)
    os.lseek(other, 1, os.SEEK_SET)
    return os.lseek(one, 0, os.SEEK_CUR) == 1


def appends(fd: int) -> bool:
    """Whether each write goes to the end of the file, wherever it was meant to go."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def set_status_flags(fd: int, *, direct: bool) -> None:
    """Switch O_DIRECT, and O_NONBLOCK off: with it, io_uring would fail reads that have to wait for the
    medium.

    :raises OSError: the file system has no direct I/O.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_NONBLOCK | os.O_DIRECT)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | (os.O_DIRECT if direct else 0))


def direct_read_works(fd: int, offset: int) -> bool:
    """Try a direct read at ``offset`` of as many bytes: what works is what the medium asks for."""
    with mmap.mmap(-1, max(offset, mmap.PAGESIZE)) as page, memoryview(page) as view, view[:offset] as buffer:
        try:
            os.preadv(fd, [buffer], offset)
        except OSError:
            return False
    return True


def _ioctl_number(fd: int, request: int, width: str) -> int:
    """An ioctl that writes one number. :raises OSError: not for this device."""
    value = array.array(width, [0])
    fcntl.ioctl(fd, request, value, True)
    return value[0]


def block_device_size(fd: int) -> int:
    """Bytes of a block device (its inode's size is always zero)."""
    return _ioctl_number(fd, BLKGETSIZE64, "Q")


def logical_sector(fd: int) -> int:
    """Bytes of the smallest unit that a block device addresses."""
    return _ioctl_number(fd, BLKSSZGET, "i")


def physical_sector(fd: int) -> int:
    """Bytes of the smallest unit that a block device writes without reading first."""
    return _ioctl_number(fd, BLKPBSZGET, "I")


def is_read_only_device(fd: int) -> bool:
    """Whether the kernel refuses writes to a block device."""
    return bool(_ioctl_number(fd, BLKROGET, "i"))


def takes_punch_hole(fd: int, beyond: int) -> bool:
    """Whether a file's holes can be punched: tried behind its end, where nothing is."""
    try:
        _call(
            "fallocate",
            fd,
            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            ctypes.c_int64(beyond),
            ctypes.c_int64(mmap.PAGESIZE),
        )
    except OSError:
        return False
    return True


def ofd_lock_shared(fd: int, start: int) -> None:
    """Take a shared lock on one byte.

    :raises BlockingIOError: held exclusively. :raises OSError: no locks here.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, start, 1, 0))


def ofd_unlock(fd: int, start: int, length: int) -> None:
    """Give up all locks on a range."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def ofd_is_locked_by_others(fd: int, start: int) -> bool:
    """Whether another open file description holds any lock on a byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
