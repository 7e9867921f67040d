"""Archives that a kernel unpacks into its first root file system.

Spec: Linux 6.12, Documentation/driver-api/early-userspace/buffer-format.rst
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass(slots=True)
class Archive:
    """A ``newc`` archive in memory, owned by root throughout. Parent folders are made as they are needed."""

    _entries: list[bytes] = field(default_factory=list)
    _paths: set[str] = field(default_factory=set)

    def file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file; the first of two at the same path stays."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link; the first of two at the same path stays."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str) -> None:
        """Add a folder."""
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._paths

    def packed(self) -> bytes:
        """Return the finished archive."""
        return b"".join([*self._entries, _entry(0, "TRAILER!!!", 0, b"")])

    def _add(self, path: str, mode: int, content: bytes) -> None:
        path = path.strip("/")
        if not path or path in self._paths:
            return
        self.folder(path.rpartition("/")[0])
        self._paths.add(path)
        self._entries.append(_entry(len(self._entries) + 1, path, mode, content))


def _entry(inode: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    uid = gid = mtime = major = minor = special_major = special_minor = checksum = 0
    of_inode = (inode, mode, uid, gid, 1, mtime, len(content))
    of_device = (major, minor, special_major, special_minor)
    numbers = (*of_inode, *of_device, len(name), checksum)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _aligned(header + name) + _aligned(content)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
