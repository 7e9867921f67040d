"""FUSE as a process speaks it that answers for a mount: requests come in, answers go out, in any order.

What the requests mean is up to who handles them. It needs root and /dev/fuse. Spec: Linux 6.12, linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = 1
DIRECT_IO: Final = 1
MAX_WRITE: Final = 1 << 20
FOREVER_S: Final = 1 << 30

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH = 1, 2
_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("<6Q10I")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_OUT: Final = struct.Struct("<QIi")
_STATFS_OUT: Final = struct.Struct("<5Q4I24x")
_DIRENT: Final = struct.Struct("<QQII")
IO_IN: Final = struct.Struct("<QQIIQII")
FALLOCATE_IN: Final = struct.Struct("<QQQI4x")


class Op(IntEnum):
    """Requests, as in linux/fuse.h."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    BATCH_FORGET = 42
    FALLOCATE = 43


#: Requests that have no answer.
DEAF: Final = (Op.FORGET, Op.INTERRUPT, Op.BATCH_FORGET)


class Request(NamedTuple):
    """What somebody wants of the mount; ``body`` follows the header."""

    op: int
    unique: int
    node: int
    body: bytes


class Mount:
    """A folder whose file system this process is.

    :param handle: called with each request; it answers now or later, by :meth:`answer` or :meth:`fail`.
    :raises OSError: it cannot be mounted.
    """

    def __init__(self, folder: Path, handle: Callable[[Request], None], *, name: str = "ringway") -> None:
        self._folder = os.fsencode(folder)
        self._handle = handle
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _LIBC.mount(name.encode(), self._folder, b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number))

    def serve(self) -> None:
        """Take requests until somebody unmounts."""
        while (message := self._take()) is not None:
            _, opcode, unique, node, *_ = _IN.unpack_from(message)
            if opcode == Op.INIT:
                out = _INIT_OUT.pack(7, 31, 1 << 20, 0, 64, 48, MAX_WRITE, 1, 256, 0, 0)
                self.answer(unique, out)
            else:
                self._handle(Request(opcode, unique, node, message[_IN.size :]))

    def _take(self) -> bytes | None:
        while True:
            try:
                return os.read(self._fd, MAX_WRITE + 65536)
            except OSError as error:
                # ENOENT: the request was interrupted before we had it
                if error.errno not in (errno.ENOENT, errno.EINTR):
                    return None

    def answer(self, unique: int, payload: bytes = b"") -> None:
        """Say that it is done. Who asked may be gone, which is fine."""
        with contextlib.suppress(OSError):
            os.write(self._fd, _OUT.pack(_OUT.size + len(payload), 0, unique) + payload)

    def fail(self, unique: int, number: int) -> None:
        """Say that it failed with an errno."""
        with contextlib.suppress(OSError):
            os.write(self._fd, _OUT.pack(_OUT.size, -number, unique))

    def unmount(self) -> None:
        """End :meth:`serve`; who still waits gets an error."""
        unmount(self._folder)

    def close(self) -> None:
        """Forget the device; to be called when nothing is answered any more."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def unmount(folder: bytes | Path) -> None:
    """Take a mount away, whoever serves it, and if nobody does. A folder where nothing is mounted is fine."""
    _LIBC.umount2(os.fsencode(folder), _MNT_FORCE | _MNT_DETACH)


def attributes(node: int, mode: int, size: int) -> bytes:
    """What ``stat`` shows of a node that is root's."""
    links = 2 if stat.S_ISDIR(mode) else 1
    return _ATTR.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)


def entry_reply(node: int, mode: int, size: int, *, valid_s: int = 1000) -> bytes:
    """Answer to LOOKUP, MKDIR and SYMLINK."""
    return _ENTRY.pack(node, 0, valid_s, valid_s, 0, 0) + attributes(node, mode, size)


def attributes_reply(node: int, mode: int, size: int, *, valid_s: int = 1000) -> bytes:
    """Answer to GETATTR and SETATTR."""
    return _ATTR_OUT.pack(valid_s, 0, 0) + attributes(node, mode, size)


def open_reply(*, direct_io: bool, handle: int = 0) -> bytes:
    """Answer to OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, DIRECT_IO if direct_io else 0, 0)


def write_reply(size: int) -> bytes:
    """Answer to WRITE."""
    return struct.pack("<II", size, 0)


def statfs_reply() -> bytes:
    """Answer to STATFS: a file system without figures."""
    return _STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)


def directory_entry(offset: int, name: bytes, mode: int) -> bytes:
    """One name in the answer to READDIR; ``offset`` is where the next one goes on."""
    head = _DIRENT.pack(offset, offset, len(name), stat.S_IFMT(mode) >> 12)
    return (head + name).ljust((len(head) + len(name) + 7) & ~7, b"\0")
