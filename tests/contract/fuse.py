"""A file on a FUSE file system of one file, which answers as a test wants: short, wrong, late, or not at all.

It needs root and /dev/fuse.
"""

from __future__ import annotations

import errno
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ringway.testing.fuse import (
    DEAF,
    FALLOCATE_IN,
    IO_IN,
    ROOT,
    Mount,
    Op,
    Request,
    attributes_reply,
    entry_reply,
    open_reply,
    statfs_reply,
    write_reply,
)

#: What becomes of a read, write, flush or discard.
#: ``None``: it is done; a negative errno; bytes at most; or HANG.
Rule = Callable[[str, int, int], int | None]
HANG: Final = 1 << 60

_FILE: Final = 2
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
        self._mount = Mount(folder, self._handle)
        self._thread = threading.Thread(target=self._mount.serve, daemon=True)
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
        self._mount.unmount()
        self.go_on()
        self._mount.close()

    # The protocol

    def _handle(self, request: Request) -> None:
        op, unique, node, body = request
        answer = self._mount.answer
        if op in self.unknown:
            self._mount.fail(unique, errno.ENOSYS)
            return
        match op:
            case _ if op in DEAF:  # who hangs is deaf
                return
            case Op.LOOKUP if body.rstrip(b"\0") == b"disk":
                answer(unique, entry_reply(_FILE, *self._shape(_FILE)))
            case Op.LOOKUP:
                self._mount.fail(unique, errno.ENOENT)
            case Op.GETATTR | Op.SETATTR:
                answer(unique, attributes_reply(node, *self._shape(node)))
            case Op.OPEN | Op.OPENDIR:
                answer(unique, open_reply(direct_io=op == Op.OPEN))
            case Op.READ | Op.WRITE | Op.FSYNC | Op.FALLOCATE:
                self._do(op, unique, body)
            case Op.STATFS:
                answer(unique, statfs_reply())
            case Op.RELEASE | Op.FLUSH | Op.RELEASEDIR:
                answer(unique)
            case _:
                self._mount.fail(unique, errno.ENOSYS)

    def _do(self, opcode: int, unique: int, body: bytes) -> None:
        offset = size = 0
        if opcode in (Op.READ, Op.WRITE):
            _, offset, size, *_ = IO_IN.unpack_from(body)
        elif opcode == Op.FALLOCATE:
            _, offset, size, _ = FALLOCATE_IN.unpack_from(body)
        kind = _KINDS[Op(opcode)]
        verdict = self.rule(kind, offset, size)
        if verdict == HANG:
            with self._lock:
                self._hung.append(lambda: self._finish(kind, unique, offset, size, body))
        elif verdict is not None and verdict < 0:
            self._mount.fail(unique, -verdict)
        else:
            self._finish(kind, unique, offset, size if verdict is None else min(size, verdict), body)

    def _finish(self, kind: str, unique: int, offset: int, size: int, body: bytes) -> None:
        match kind:
            case "read":
                self._mount.answer(unique, bytes(self.content[offset : offset + size]))
            case "write":
                data = body[IO_IN.size : IO_IN.size + size]
                self.content[offset : offset + len(data)] = data
                self._mount.answer(unique, write_reply(len(data)))
            case "discard":
                self.content[offset : offset + size] = bytes(size)
                self._mount.answer(unique)
            case _:
                self._mount.answer(unique)

    def _shape(self, node: int) -> tuple[int, int]:
        """Mode and size."""
        return (stat.S_IFDIR | 0o755, 0) if node == ROOT else (stat.S_IFREG | 0o644, len(self.content))


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
