"""A disk image whose medium can be seen: a file system in this process, over ``/dev/fuse``, with one file.

What is written lies in a volatile cache, as in a disk's, and reaches the medium by fsync alone, or by a write
that asks for it (O_DSYNC). Losing power at any moment would leave just what the medium holds.

It speaks version 7.31 of the kernel's protocol (linux/fuse.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Self

import pytest

from ringway.testing.waiting import PATIENCE_S

NAME: Final = "disk.img"

_ROOT: Final = 1
_FILE: Final = 2
_IN: Final = struct.Struct("=IIQQIIIHH")
_OUT: Final = struct.Struct("=IiQ")
_INIT: Final = struct.Struct("=IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("=QQQQII")
_ATTR_HEAD: Final = struct.Struct("=QII")
_OPEN: Final = struct.Struct("=QIi")
_IO: Final = struct.Struct("=QQIIQII")
_WRITTEN: Final = struct.Struct("=II")
_FALLOCATE: Final = struct.Struct("=QQQII")
_STATFS: Final = struct.Struct("=QQQQQIIII24x")

_ASYNC_DIO: Final = 1 << 15
_MAX_PAGES: Final = 1 << 22
_DIRECT_IO: Final = 1  # each read and write comes here: no page cache between
_MAX_WRITE: Final = 1 << 20
_MOUNT_FLAGS: Final = 2 | 4  # MS_NOSUID, MS_NODEV
_DETACH: Final = 2  # MNT_DETACH
_ZEROING: Final = 0x02 | 0x10  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """An errno for who asked."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class VolatileDisk:
    """One image of ``size_bytes``, mounted on a folder until the end of a ``with``.

    :ivar path: of the image. :ivar flushes: fsyncs so far.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.path: Final = folder / NAME
        self.flushes = 0
        self._folder = folder
        self._cache = bytearray(size_bytes)
        self._medium = bytearray(size_bytes)
        self._dirty: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._held: list[tuple[int, bytes]] | None = None
        self._holding = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="volatile-disk", daemon=True)

    def __enter__(self) -> Self:
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0"
        if _libc.mount(b"volatile", bytes(self._folder), b"fuse", _MOUNT_FLAGS, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number), str(self._folder))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        _libc.umount2(bytes(self._folder), _DETACH)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "somebody keeps the image open"
        os.close(self._fd)

    def medium(self, offset: int, size: int) -> bytes:
        """What would be there after a loss of power."""
        with self._lock:
            return bytes(self._medium[offset : offset + size])

    def hold_writes(self) -> None:
        """Keep the writes that come from now on unanswered, and undone."""
        with self._lock:
            self._held = []

    def wait_held(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a write is held."""
        assert self._holding.wait(timeout_s), "no write came"

    def let_go(self) -> None:
        """Do and answer the writes that are held; those that come are done at once again."""
        with self._lock:
            held, self._held = self._held or [], None
            self._holding.clear()
        for unique, body in held:
            self._answer(unique, partial(VolatileDisk._write, self, _FILE), body)

    # The file system

    def _serve(self) -> None:
        """Until it is unmounted and nobody has it open (ENODEV)."""
        while True:
            try:
                request = os.read(self._fd, _MAX_WRITE + 65536)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            self._handle(opcode, unique, node, request[_IN.size :])

    def _handle(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        if opcode in _SILENT:
            return
        if opcode == _WRITE and self._keeps(unique, body):
            return
        self._answer(unique, partial(_HANDLERS.get(opcode, _unknown), self, node), body)

    def _keeps(self, unique: int, body: bytes) -> bool:
        with self._lock:
            if self._held is None:
                return False
            self._held.append((unique, body))
            self._holding.set()
            return True

    def _answer(self, unique: int, handler: Callable[[bytes], bytes], body: bytes) -> None:
        try:
            number, answer = 0, handler(body)
        except Refused as error:
            number, answer = -error.number, b""
        with contextlib.suppress(OSError):  # ENOENT: who asked was killed meanwhile
            os.write(self._fd, _OUT.pack(_OUT.size + len(answer), number, unique) + answer)

    def _look_up(self, _node: int, name: bytes) -> bytes:
        if name.rstrip(b"\0") != NAME.encode():
            raise Refused(errno.ENOENT)
        return _ENTRY.pack(_FILE, 0, 1, 1, 0, 0) + self._attributes(_FILE)

    def _get_attributes(self, node: int, _body: bytes) -> bytes:
        return _ATTR_HEAD.pack(1, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == _ROOT else (stat.S_IFREG | 0o644, len(self._cache))
        return _ATTR.pack(node, size, size // 512, *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def _init(self, _node: int, _body: bytes) -> bytes:
        flags = _ASYNC_DIO | _MAX_PAGES
        return _INIT.pack(7, 31, 0, flags, 64, 48, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0)

    def _open(self, _node: int, _body: bytes) -> bytes:
        return _OPEN.pack(0, _DIRECT_IO, 0)

    def _read(self, _node: int, body: bytes) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(body)
        with self._lock:
            return bytes(self._cache[offset : offset + size])

    def _write(self, _node: int, body: bytes) -> bytes:
        _, offset, size, _, _, flags, _ = _IO.unpack_from(body)
        with self._lock:
            self._change(offset, body[_IO.size : _IO.size + size])
            if flags & os.O_DSYNC:
                self._medium[offset : offset + size] = self._cache[offset : offset + size]
        return _WRITTEN.pack(size, 0)

    def _allocate(self, _node: int, body: bytes) -> bytes:
        _, offset, length, mode, _ = _FALLOCATE.unpack_from(body)
        if mode & _ZEROING:
            with self._lock:
                self._change(offset, bytes(max(0, min(length, len(self._cache) - offset))))
        return b""

    def _change(self, offset: int, data: bytes) -> None:
        self._cache[offset : offset + len(data)] = data
        self._dirty.add((offset, offset + len(data)))

    def _sync(self, _node: int, _body: bytes) -> bytes:
        with self._lock:
            for start, end in self._dirty:
                self._medium[start:end] = self._cache[start:end]
            self._dirty.clear()
            self.flushes += 1
        return b""

    def _statistics(self, _node: int, _body: bytes) -> bytes:
        return _STATFS.pack(1 << 20, 1 << 20, 1 << 20, 2, 0, 4096, 255, 4096, 0)

    def _nothing(self, _node: int, _body: bytes) -> bytes:
        return b""


def _unknown(_: VolatileDisk, __: int, ___: bytes) -> bytes:
    raise Refused(errno.ENOSYS)


_WRITE: Final = 16
_SILENT: Final = frozenset({2, 36, 42})  # FORGET, INTERRUPT, BATCH_FORGET have no answer
_HANDLERS: Final = {
    1: VolatileDisk._look_up,
    3: VolatileDisk._get_attributes,
    4: VolatileDisk._get_attributes,  # SETATTR: nothing changes
    14: VolatileDisk._open,
    15: VolatileDisk._read,
    _WRITE: VolatileDisk._write,
    17: VolatileDisk._statistics,
    18: VolatileDisk._nothing,  # RELEASE
    20: VolatileDisk._sync,
    25: VolatileDisk._nothing,  # FLUSH: a close
    26: VolatileDisk._init,
    38: VolatileDisk._nothing,  # DESTROY
    43: VolatileDisk._allocate,
}


def require_fuse() -> None:
    """Skip the test where no file system can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system of our own takes root")
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no /dev/fuse")
