"""Path operations on the kernel target's configfs, with the kernel's own reason in every error.

All paths are relative to ``target``: ``core/iblock_5/db0``. Any thread may call.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from ringway import faults
from ringway.engine.lio.kernel_log import now_ns, said_since
from ringway.errors import (
    BusyError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RingwayError,
    UnreachableError,
)

_PAGE: Final = 4096

_KINDS: Final[dict[int, type[RingwayError]]] = {
    errno.EBUSY: BusyError,
    errno.EEXIST: ConflictError,
    errno.ENOTEMPTY: ConflictError,
    errno.ENOENT: NotFoundError,
    errno.EACCES: PermissionDeniedError,
    errno.EPERM: PermissionDeniedError,
    errno.EROFS: PermissionDeniedError,
    errno.ENOTCONN: UnreachableError,
}
_HINTS: Final = {
    errno.EACCES: "the kernel engine needs root",
    errno.EPERM: "the kernel engine needs root",
    errno.ENOMEM: "the kernel has no memory for it; free some, or take a smaller disk",
    errno.ENOSPC: "free some space",
}


class Configfs:
    """The tree below a folder.

    :param root: usually ``/sys/kernel/config/target``.
    :param kmsg: where the kernel's reasons are read.
    """

    def __init__(self, root: Path, kmsg: Path) -> None:
        self.root = str(root)
        self._kmsg = kmsg

    def absolute(self, path: str) -> str:
        """The path that a process opens, and that a link has to name."""
        return f"{self.root}/{path}"

    def exists(self, path: str) -> bool:
        """Whether something is there. A tree that is not mounted has nothing."""
        return os.path.lexists(f"{self.root}/{path}")

    def names(self, path: str) -> list[str]:
        """What a folder holds; nothing when it is not there."""
        try:
            return os.listdir(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str) -> str:
        """An attribute's text without what ends it; lists of the kernel's have a NUL behind each line.

        :raises OSError: as the kernel answers; who reads knows what ENODEV means there.
        """
        fd = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _PAGE).decode(errors="replace").replace("\0", "").rstrip("\n")
        finally:
            os.close(fd)

    def read_or(self, path: str, default: str = "") -> str:
        """An attribute's text, or ``default`` when it cannot be read, for whatever reason."""
        try:
            return self.read(path)
        except OSError:
            return default

    def read_int(self, path: str, default: int = 0) -> int:
        """An attribute's number, or ``default`` when there is none."""
        try:
            return int(self.read(path).split()[0], 0)
        except (OSError, ValueError, IndexError):
            return default

    def write(self, path: str, text: str) -> None:
        """Set an attribute.

        :raises RingwayError: the kernel does not take it; the message has its reason.
        """
        self._ask(f"take '{_shortened(text)}' for {path}", _put, self.absolute(path), text)

    def make(self, path: str) -> bool:
        """Make a folder. :returns: whether it was not there. :raises RingwayError: the kernel refuses."""
        return not self._ask(f"make {path}", os.mkdir, self.absolute(path), fine=(errno.EEXIST,))

    def remove(self, path: str) -> bool:
        """Remove a folder. :returns: whether it was there. :raises RingwayError: the kernel refuses."""
        return not self._ask(f"remove {path}", os.rmdir, self.absolute(path), fine=(errno.ENOENT,))

    def remove_if_unused(self, path: str) -> bool:
        """Remove a folder unless somebody uses it (EBUSY), or something is in it (ENOTEMPTY).

        :returns: whether it is gone. :raises RingwayError: the kernel refuses for another reason.
        """
        fine = (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY)
        return self._ask(f"remove {path}", os.rmdir, self.absolute(path), fine=fine) in (0, errno.ENOENT)

    def is_held(self, path: str) -> bool:
        """Whether something in the kernel depends on a folder that must not be empty.

        The kernel looks for dependents before it looks for children: removing what has children fails in
        either case, with EBUSY or with ENOTEMPTY, and changes nothing.
        """
        try:
            os.rmdir(f"{self.root}/{path}")
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def link(self, path: str, target: str) -> None:
        """Map a device. :raises RingwayError: the kernel refuses."""
        self._ask(f"map {target} as {path}", os.symlink, self.absolute(target), self.absolute(path))

    def unlink(self, path: str) -> bool:
        """Remove a link. :returns: whether it was there. :raises RingwayError: the kernel refuses."""
        return not self._ask(f"unmap {path}", os.unlink, self.absolute(path), fine=(errno.ENOENT,))

    def target_of(self, path: str) -> str | None:
        """Where a link leads, relative to ``target``; ``None`` when it is none."""
        with contextlib.suppress(OSError):
            text = os.readlink(f"{self.root}/{path}")
            _, found, rest = text.partition("/core/")
            return f"core/{rest}" if found else None
        return None

    def _ask(self, what: str, call: Callable[..., None], *args: str, fine: tuple[int, ...] = ()) -> int:
        """Have the kernel change something. :returns: 0, or the error that is ``fine``."""
        faults.point("configfs")
        begin_ns = now_ns()
        try:
            call(*args)
        except OSError as error:
            if error.errno not in fine:
                self._refuse(what, error, begin_ns)
            return error.errno
        return 0

    def _refuse(self, what: str, error: OSError, begin_ns: int) -> NoReturn:
        reason = said_since(self._kmsg, begin_ns)
        message = f"the kernel does not {what}: {error.strerror}" + (f" ({reason})" if reason else "")
        kind = _KINDS.get(error.errno or 0, RingwayError)
        raise kind(message, hint=_HINTS.get(error.errno or 0)) from error


def _put(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"
