"""A tree of folders, attributes and links as configfs shows one, served over FUSE.

An attribute computes its text when it is read and acts when it is written; a folder may be made by its user,
and then comes with all that is in it. Errors are ``OSError`` with the kernel's number.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ringway.testing.fuse import (
    DEAF,
    IO_IN,
    ROOT,
    Mount,
    Op,
    Request,
    attributes_reply,
    directory_entry,
    entry_reply,
    open_reply,
    statfs_reply,
    write_reply,
)

PAGE: Final = 4096
Show = Callable[[], str]
Store = Callable[[str], None]


def refuse(number: int) -> OSError:
    """An error to raise."""
    return OSError(number, os.strerror(number))


class Node:
    """Anything with a name. ``number`` is its inode, from the first time that somebody asked for it."""

    number = 0
    mode = 0
    size = 0


class Attribute(Node):
    """A file of one page. Without ``show`` it cannot be read, without ``store`` not be written."""

    size = PAGE

    def __init__(self, show: Show | None = None, store: Store | None = None) -> None:
        self.show = show
        self.store = store
        self.mode = stat.S_IFREG | (0o444 if show else 0) | (0o200 if store else 0)


def fixed(text: str) -> Attribute:
    """An attribute that always reads the same."""
    return Attribute(lambda: text)


class Link(Node):
    """A symbolic link to a folder of the tree; ``target`` is what it reads."""

    mode = stat.S_IFLNK | 0o777

    def __init__(self, folder: Folder, target: str) -> None:
        self.folder = folder
        self.target = target


class Folder(Node):
    """A group. Attributes are made when somebody looks at one; user-made children are kept in :attr:`made`.

    :ivar dependents: who holds it (``configfs_depend_item``): it cannot be removed meanwhile.
    :ivar linked: links that lead here: it cannot be removed meanwhile.
    """

    mode = stat.S_IFDIR | 0o755

    def __init__(self) -> None:
        self.made: dict[str, Node] = {}
        self.dependents = 0
        self.linked = 0
        self._shown: dict[str, Node] = {}

    def default(self, name: str) -> Node | None:
        """Make a child that the kernel put here; called once a name, when it is first looked at."""
        return None

    def defaults(self) -> Mapping[str, int]:
        """Names and modes of the children that the kernel put here."""
        return {}

    def child(self, name: str) -> Node:
        """:raises OSError: ENOENT."""
        if node := self.made.get(name) or self._shown.get(name) or self.default(name):
            if name not in self.made:
                self._shown[name] = node
            return node
        raise refuse(errno.ENOENT)

    def names(self) -> dict[str, int]:
        """Every child's name and mode."""
        return {**self.defaults(), **{name: node.mode for name, node in self.made.items()}}

    def mkdir(self, name: str) -> Folder:
        """:raises OSError: EPERM: nobody makes folders here."""
        raise refuse(errno.EPERM)

    def symlink(self, name: str, target: Folder) -> None:
        """:raises OSError: EPERM: nobody makes links here."""
        raise refuse(errno.EPERM)

    def dropped(self) -> None:
        """It has just been removed."""

    def unlinked(self, link: Link) -> None:
        """A link of it has just been removed."""

    def check_removable(self) -> None:
        """:raises OSError: EBUSY: somebody needs it; ENOTEMPTY: something was made in it.

        In this order: who is held answers EBUSY even when it is full.
        """
        if self.dependents or self.linked:
            raise refuse(errno.EBUSY)
        if self.holds():
            raise refuse(errno.ENOTEMPTY)

    def holds(self) -> bool:
        """Whether something was made in it, or in what the kernel put in it."""
        return bool(self.made) or any(
            node.holds() for node in self._shown.values() if isinstance(node, Folder)
        )

    def rmdir(self, name: str) -> None:
        """:raises OSError: ENOENT, EPERM (the kernel put it here), or as :meth:`check_removable`."""
        node = self.child(name)
        if name not in self.made or not isinstance(node, Folder):
            raise refuse(errno.EPERM)
        node.check_removable()
        del self.made[name]
        node.dropped()

    def unlink(self, name: str) -> None:
        """:raises OSError: ENOENT, or EPERM: it is no link."""
        link = self.child(name)
        if not isinstance(link, Link):
            raise refuse(errno.EPERM)
        del self.made[name]
        link.folder.linked -= 1
        self.unlinked(link)


class Group(Folder):
    """A folder of which all children are known: attributes and groups by name."""

    def __init__(self, **children: Node | Mapping[str, Node]) -> None:
        super().__init__()
        self._shown = {
            name: node if isinstance(node, Node) else Group(**node) for name, node in children.items()
        }

    def defaults(self) -> Mapping[str, int]:
        """All of them."""
        return {name: node.mode for name, node in self._shown.items()}


class TreeServer:
    """Serve a tree at a mount point. One request at a time, as if under one lock.

    :param prefix: where the tree begins in what links say: a link to PREFIX/a/b leads to a/b.
    """

    def __init__(self, mountpoint: Path, root: Folder) -> None:
        self._prefix = str(mountpoint).rstrip("/") + "/"
        root.number = ROOT
        self._root = root
        self._nodes: dict[int, Node] = {ROOT: root}
        self._looks: dict[int, int] = {}
        self._open: dict[int, list[bytes]] = {}
        self._last = ROOT
        self._handle_number = 0
        self._verbs: dict[int, Callable[[Node, bytes], bytes]] = {
            Op.LOOKUP: lambda node, body: self._entry(_folder(node).child(_text(body))),
            Op.GETATTR: lambda node, _: self._attributes(node),
            Op.SETATTR: lambda node, _: self._attributes(node),
            Op.READLINK: lambda node, _: _link(node).target.encode(),
            Op.SYMLINK: self._symlink,
            Op.MKDIR: lambda node, body: self._entry(_folder(node).mkdir(_text(body[8:]))),
            Op.UNLINK: _unlink,
            Op.RMDIR: _rmdir,
            Op.OPEN: _open,
            Op.READ: _read,
            Op.WRITE: _write,
            Op.OPENDIR: self._open_folder,
            Op.READDIR: self._read_folder,
            Op.STATFS: lambda _, __: statfs_reply(),
            Op.RELEASE: lambda _, __: b"",
            Op.RELEASEDIR: self._close_folder,
        }
        self.mount = Mount(mountpoint, self._handle, name="fake-kernel")

    def _handle(self, request: Request) -> None:
        if request.op in DEAF:
            self._forget(request)
            return
        try:
            verb = self._verbs.get(request.op)
            if verb is None:
                raise refuse(errno.ENOSYS)
            answer = verb(self._nodes[request.node], request.body)
        except OSError as error:
            self.mount.fail(request.unique, error.errno or errno.EIO)
        else:
            self.mount.answer(request.unique, answer)

    def _entry(self, node: Node) -> bytes:
        if not node.number:
            self._last += 1
            node.number = self._last
        self._nodes[node.number] = node
        self._looks[node.number] = self._looks.get(node.number, 0) + 1
        return entry_reply(node.number, node.mode, node.size)

    def _attributes(self, node: Node) -> bytes:
        return attributes_reply(node.number, node.mode, node.size)

    def _forget(self, request: Request) -> None:
        """The kernel does not remember nodes any more: nor need we."""
        if request.op == Op.FORGET:
            pairs = [(request.node, int.from_bytes(request.body[:8], "little"))]
        elif request.op == Op.BATCH_FORGET:
            pairs = list(struct.iter_unpack("<QQ", request.body[8:]))
        else:
            pairs = []
        for number, looks in pairs:
            left = self._looks[number] = self._looks.get(number, 0) - looks
            if left <= 0 and number != ROOT:
                del self._looks[number]
                self._nodes.pop(number, None)

    def _open_folder(self, node: Node, _: bytes) -> bytes:
        """Who reads a folder gets what was in it when it was opened, whatever comes and goes meanwhile."""
        self._handle_number += 1
        names = {".": stat.S_IFDIR, "..": stat.S_IFDIR, **_folder(node).names()}
        self._open[self._handle_number] = [
            directory_entry(number, name.encode(), mode)
            for number, (name, mode) in enumerate(names.items(), 1)
        ]
        return open_reply(direct_io=False, handle=self._handle_number)

    def _read_folder(self, _: Node, body: bytes) -> bytes:
        handle, offset, size, *_rest = IO_IN.unpack_from(body)
        answer = bytearray()
        for entry in itertools.islice(self._open[handle], offset, None):
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return bytes(answer)

    def _close_folder(self, _: Node, body: bytes) -> bytes:
        self._open.pop(int.from_bytes(body[:8], "little"), None)
        return b""

    def _symlink(self, node: Node, body: bytes) -> bytes:
        name, target, _ = (part.decode() for part in body.split(b"\0"))
        folder = _folder(node)
        folder.symlink(name, self._resolve(target))
        return self._entry(folder.child(name))

    def _resolve(self, target: str) -> Folder:
        """:raises OSError: ENOENT, or EPERM: it leads out of the tree."""
        if not target.startswith(self._prefix):
            raise refuse(errno.EPERM)
        node: Node = self._root
        for name in target[len(self._prefix) :].split("/"):
            node = _folder(node).child(name)
        return _folder(node)


def _text(body: bytes) -> str:
    return body.rstrip(b"\0").decode()


def _folder(node: Node) -> Folder:
    if not isinstance(node, Folder):
        raise refuse(errno.ENOTDIR)
    return node


def _link(node: Node) -> Link:
    if not isinstance(node, Link):
        raise refuse(errno.EINVAL)
    return node


def _unlink(node: Node, body: bytes) -> bytes:
    _folder(node).unlink(_text(body))
    return b""


def _rmdir(node: Node, body: bytes) -> bytes:
    _folder(node).rmdir(_text(body))
    return b""


def _open(node: Node, body: bytes) -> bytes:
    """Attributes are refused by their mode, root's or not."""
    access = int.from_bytes(body[:4], "little") & os.O_ACCMODE
    if isinstance(node, Attribute) and (
        (access != os.O_WRONLY and node.show is None) or (access != os.O_RDONLY and node.store is None)
    ):
        raise refuse(errno.EACCES)
    return open_reply(direct_io=True)


def _read(node: Node, body: bytes) -> bytes:
    assert isinstance(node, Attribute)
    assert node.show is not None
    _, offset, size, *_ = IO_IN.unpack_from(body)
    return node.show().encode()[offset : offset + size]


def _write(node: Node, body: bytes) -> bytes:
    """A store gets a page at most; what is beyond is lost without a word."""
    assert isinstance(node, Attribute)
    assert node.store is not None
    _, _, size, *_ = IO_IN.unpack_from(body)
    node.store(body[IO_IN.size : IO_IN.size + min(size, PAGE - 1)].decode(errors="replace"))
    return write_reply(size)
