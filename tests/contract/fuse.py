"""A file on a FUSE file system of one file, which answers as a test wants: short, wrong, late, or not at all.

The protocol is spoken here in the few words that this takes. It needs root and /dev/fuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final

import pytest

#: What becomes of a read, write, flush or discard.
#: ``None``: it is done; a negative errno; bytes at most; or HANG.
Rule = Callable[[str, int, int], int | None]
HANG: Final = 1 << 60

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH = 1, 2
_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("<6Q10I")
_IO_IN: Final = struct.Struct("<QQIIQII")
_FALLOCATE_IN: Final = struct.Struct("<QQQI4x")
_ROOT, _FILE = 1, 2
_DIRECT_IO: Final = 1
_MAX_WRITE: Final = 1 << 20


class Op(IntEnum):
    """Requests, as in linux/fuse.h."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    INTERRUPT = 36
    BATCH_FORGET = 42
    FALLOCATE = 43


_KINDS: Final = {Op.READ: "read", Op.WRITE: "write", Op.FSYNC: "flush", Op.FALLOCATE: "discard"}


class FuseDisk:
    """The file and who answers for it. :attr:`rule` may be changed at any time.

    :ivar unknown: requests that a server of this kind does not know.
    :ivar waiting: requests that hang now.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self.rule: Rule = lambda _what, _offset, _size: None
        self.unknown: frozenset[Op] = frozenset()
        self.path = folder / "disk"
        self._folder = folder
        self._hung: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _LIBC.mount(b"ringway", os.fsencode(folder), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that hang now."""
        with self._lock:
            return len(self._hung)

    def hang(self, *what: str) -> None:
        """Answer no request of these kinds from now on."""
        self.rule = lambda kind, _offset, _size: HANG if kind in what else None

    def go_on(self) -> None:
        """Answer, also what hangs."""
        self.rule = lambda _what, _offset, _size: None
        with self._lock:
            hung, self._hung = self._hung, []
        for answer in hung:
            answer()

    def close(self) -> None:
        """Unmount; who still waits gets an error."""
        _LIBC.umount2(os.fsencode(self._folder), _MNT_FORCE | _MNT_DETACH)
        self.go_on()
        with contextlib.suppress(OSError):
            os.close(self._fd)

    # The protocol

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._fd, _MAX_WRITE + 65536)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted before we had it
                    continue
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(message)
            if opcode in self.unknown:
                self._fail(unique, errno.ENOSYS)
            else:
                self._handle(opcode, unique, node, message[_IN.size :])

    def _handle(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        match opcode:
            case Op.FORGET | Op.INTERRUPT | Op.BATCH_FORGET:  # these have no answer: who hangs is deaf
                return
            case Op.INIT:
                out = _INIT_OUT.pack(7, 31, 1 << 20, 0, 64, 48, _MAX_WRITE, 1, 256, 0, 0)
                self._answer(unique, out)
            case Op.LOOKUP:
                name = body.rstrip(b"\0")
                entry = struct.pack("<QQQQII", _FILE, 0, 1000, 1000, 0, 0) + self._attributes(_FILE)
                if name == b"disk":
                    self._answer(unique, entry)
                else:
                    self._fail(unique, errno.ENOENT)
            case Op.GETATTR | Op.SETATTR:
                self._answer(unique, struct.pack("<QII", 1000, 0, 0) + self._attributes(node))
            case Op.OPEN | Op.OPENDIR:
                self._answer(unique, struct.pack("<QIi", 0, _DIRECT_IO if opcode == Op.OPEN else 0, 0))
            case Op.READ | Op.WRITE | Op.FSYNC | Op.FALLOCATE:
                self._do(opcode, unique, body)
            case Op.STATFS:
                self._answer(unique, struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0))
            case Op.RELEASE | Op.FLUSH | Op.RELEASEDIR:
                self._answer(unique, b"")
            case _:
                self._fail(unique, errno.ENOSYS)

    def _do(self, opcode: int, unique: int, body: bytes) -> None:
        offset = size = 0
        if opcode in (Op.READ, Op.WRITE):
            _, offset, size, *_ = _IO_IN.unpack_from(body)
        elif opcode == Op.FALLOCATE:
            _, offset, size, _ = _FALLOCATE_IN.unpack_from(body)
        kind = _KINDS[Op(opcode)]
        verdict = self.rule(kind, offset, size)
        if verdict == HANG:
            with self._lock:
                self._hung.append(lambda: self._finish(kind, unique, offset, size, body))
        elif verdict is not None and verdict < 0:
            self._fail(unique, -verdict)
        else:
            self._finish(kind, unique, offset, size if verdict is None else min(size, verdict), body)

    def _finish(self, kind: str, unique: int, offset: int, size: int, body: bytes) -> None:
        match kind:
            case "read":
                self._answer(unique, bytes(self.content[offset : offset + size]))
            case "write":
                data = body[_IO_IN.size : _IO_IN.size + size]
                self.content[offset : offset + len(data)] = data
                self._answer(unique, struct.pack("<II", len(data), 0))
            case "discard":
                self.content[offset : offset + size] = bytes(size)
                self._answer(unique, b"")
            case _:
                self._answer(unique, b"")

    def _attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == _ROOT else (stat.S_IFREG | 0o644, len(self.content))
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _answer(self, unique: int, payload: bytes) -> None:
        with contextlib.suppress(OSError):  # who asked is gone
            os.write(self._fd, _OUT.pack(_OUT.size + len(payload), 0, unique) + payload)

    def _fail(self, unique: int, number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, _OUT.pack(_OUT.size, -number, unique))


@contextmanager
def fuse_disk(folder: Path, size_bytes: int = 4 << 20) -> Iterator[FuseDisk]:
    """A disk on a mount of its own. The test is skipped where that cannot be had."""
    folder.mkdir()
    try:
        disk = FuseDisk(folder, size_bytes)
    except OSError as error:
        pytest.skip(f"no FUSE file system can be mounted here: {error.strerror}")
    try:
        yield disk
    finally:
        disk.close()
