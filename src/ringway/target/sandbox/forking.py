"""fork(2), and nothing besides."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc: Final = ctypes.PyDLL(None, use_errno=True)


def bare_fork() -> int:
    """Fork a process that has one thread, without the hooks of Python and its modules.

    They make locks anew that nobody holds, and write to 180 pages for that: each would be the child's own.
    (The child has its parent's state of ``random``.)

    :returns: the child's process id, and 0 in the child. :raises OSError: there can be no child.
    """
    pid = int(_libc.fork())
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid
