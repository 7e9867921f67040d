"""Small files of the runtime folder: read as what they should be, written whole, no link followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

MAX_BYTES: Final = 1 << 26


def open_regular(path: str) -> int:
    """Open a file for reading. :raises OSError: it is not there, a link, or no file: a FIFO would hang."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file", path)
    return fd


def read(path: str) -> bytes:
    """:raises OSError: as :func:`open_regular`, or it is longer than any file of ours."""
    with open(open_regular(path), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, "too long for a record", path)
    return data


def write(path: str, data: bytes, *, partial: str, mode: int) -> None:
    """Whole or not at all. :param partial: its name until then. :raises OSError: no room, or no right."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
