"""What a path leads to, under whatever name: two paths with one medium are one disk."""

from __future__ import annotations

import os
import stat

Identity = tuple[int, int, int]
"""Of a file or device: kind, device, inode."""


def identify(path: str) -> Identity | None:
    """Look at what is there now; ``None`` when there is nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISBLK(status.st_mode):
        return (1, status.st_rdev, 0)
    return (0, status.st_dev, status.st_ino)


def medium(path: str) -> Identity | str:
    """The same; where there is nothing yet, or no more, the path without links."""
    return identify(path) or os.path.realpath(path)
