"""Users, capabilities, ``no_new_privs``: what a process may by who it is.

All of it is a thread's own, so it is given up while there is one thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import resource
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from ringway.errors import NotFoundError
from ringway.target.sandbox.forking import bare_fork

#: Where a target's own user id comes from when none is named: no distribution gives out ids from here.
FIRST_OWN_ID: Final = 0x7000_0000
#: Numbers of processes are smaller; 64 users for each are below 2^31.
_MOST_PIDS: Final = 1 << 22
_SLOTS: Final = 64
_ATTEMPTS: Final = 8

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_SET_NAME = 24, 38, 47, 15
_PR_CAPBSET_READ: Final = 23
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE = 1, 2, 19
#: Effective, permitted and inheritable: the first 32, then the rest.
_CAPABILITY_SETS: Final = struct.Struct("=6I")

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is to be."""

    uid: int
    gid: int


def find_user(name: str) -> User:
    """:param name: of a user, or a number, which is a group's number as well if no user has it.

    :raises NotFoundError: there is no such user.
    """
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal() and 0 < int(name) < 2**31:
            return User(int(name), int(name))
        raise NotFoundError(
            f"there is no user '{name}'", hint="name one, or give a number that nobody has"
        ) from None
    return User(found.pw_uid, found.pw_gid)


def own_users() -> Iterator[User]:
    """Users to be: first the one that follows from this process's number.

    Another PID namespace has a process of that number as well; its target may be that user.
    """
    number = FIRST_OWN_ID + os.getpid()
    yield User(number, number)
    while True:
        other = number + os.urandom(1)[0] % _SLOTS * _MOST_PIDS
        yield User(other, other)


@contextlib.contextmanager
def own_user() -> Iterator[User]:
    """A user that no other process of this user namespace is, and none can find free until the block ends.

    This process is single-threaded; in the block it becomes that user.

    :raises OSError: not permitted, unknown to this namespace, or all that were tried are somebody's.
    """
    for user, _ in zip(own_users(), range(_ATTEMPTS), strict=False):
        with _held(user) as is_free:
            if is_free:
                yield user
                return
    raise BlockingIOError(errno.EAGAIN, "others are all users that were tried")


@contextlib.contextmanager
def _held(user: User) -> Iterator[bool]:
    """Have a child be this user for the block. :returns: whether nobody else is.

    :raises OSError: it cannot be.
    """
    answers, answer = os.pipe()
    release, let_go = os.pipe()
    child = bare_fork()
    if child == 0:
        os.close(let_go)
        _hold(user, answer, release)
    os.close(answer)
    os.close(release)
    try:
        refusal = (os.read(answers, 1) or bytes([errno.EIO]))[0]
        if refusal not in (0, errno.EAGAIN):
            raise OSError(refusal, os.strerror(refusal))
        yield refusal == 0
    finally:
        os.close(let_go)
        os.close(answers)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(child, 0)


def _hold(user: User, answer: int, release: int) -> NoReturn:
    """Be a user; the kernel counts its processes, whatever namespace they are in, and lets it have two."""
    try:
        become(user)
        drop_capabilities()
        resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
        if bare_fork() == 0:
            os._exit(0)
        os.wait()
        os.write(answer, bytes(1))
        os.read(release, 1)
    except OSError as error:  # EAGAIN: there would be three
        os.write(answer, bytes([error.errno or errno.EIO]))
    finally:
        os._exit(0)


def become(user: User) -> None:
    """Be another user, in no further group. :raises OSError: not permitted, or unknown to this namespace."""
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def empty_bounding_set() -> None:
    """No program that is started may ever have a capability. :raises OSError: not permitted (CAP_SETPCAP)."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
        number += 1


def drop_capabilities() -> None:
    """Have none: effective, permitted, inheritable or ambient. :raises OSError: the kernel refuses."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _check(_libc.capset(_capability_header(), bytes(_CAPABILITY_SETS.size)))


def capabilities() -> int:
    """:returns: mask of those that this thread may use. :raises OSError: the kernel refuses."""
    sets = ctypes.create_string_buffer(_CAPABILITY_SETS.size)
    _check(_libc.capget(_capability_header(), sets))
    _, low, _, _, high, _ = _CAPABILITY_SETS.unpack(sets.raw)
    return int(low) | int(high) << 32


def keep_capabilities(*numbers: int) -> None:
    """Have no others than these (below 32), and of these no more than now.

    :raises OSError: the kernel refuses.
    """
    kept = capabilities() & sum(1 << number for number in numbers)
    _check(_libc.capset(_capability_header(), _CAPABILITY_SETS.pack(kept, kept, 0, 0, 0, 0)))


def _capability_header() -> bytes:
    return struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)


def forbid_new_privileges() -> None:
    """No program that is started gains anything by its file's mode. :raises OSError: the kernel refuses."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents ended. :raises OSError: the kernel refuses."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def name_process(name: str) -> None:
    """What ``ps`` shows; the first fifteen characters count."""
    _check(_libc.prctl(_PR_SET_NAME, os.fsencode(name)[:15], 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
