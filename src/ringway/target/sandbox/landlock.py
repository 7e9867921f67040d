"""Landlock: give up, for good, to open files, to use TCP ports, and to reach processes outside.

Everything that the running kernel can be told to forbid is forbidden; nothing is excepted. What is open stays
usable. The numbers are those of Linux's ``uapi/linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same on all architectures
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION

#: For each ABI that brought some: how many rights on files there are, to TCP ports, and kinds of scopes.
_RIGHTS: Final = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}

_libc: Final = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The kernel's version of Landlock; 0: it has none, or it is switched off."""
    try:
        return _syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return 0
        raise


def missing(version: int) -> str | None:
    """:returns: what a kernel of this ABI cannot forbid, in words; ``None``: it can forbid all of it."""
    if version == 0:
        return "Landlock (opening files)"
    if version < 4:
        return f"Landlock's TCP ports, abstract sockets and signals (ABI {version}, 6 has them)"
    if version < 6:
        return f"Landlock's abstract sockets and signals (ABI {version}, 6 has them)"
    return None


def restrict_self(version: int) -> int:
    """Forbid all that this ABI knows, to this thread and those that it starts.

    ``no_new_privs`` must be set.

    :returns: the ABI whose rules are in force: the newest one that is known here.
    :raises OSError: the kernel refuses; then nothing is forbidden.
    """
    used = max(known for known in _RIGHTS if known <= version)
    files, ports, scopes = _RIGHTS[used]
    fields = [(1 << count) - 1 for count in (files, ports, scopes)]
    while fields[-1] == 0:
        fields.pop()  # a kernel that does not know a field may refuse the longer structure
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return used


def _syscall(number: int, *arguments: bytes | int | None) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
