"""seccomp: the system calls that a target makes while it serves, and no others.

A call that is not in the tables fails with EPERM: an honest path that nobody thought of is then an error of
one request, and no guest loses its disk over it. What no honest path ever does, and a stolen one begins with,
kills the process.
"""

from __future__ import annotations

import fcntl
import os
import termios
from collections.abc import Iterator
from typing import Final, NamedTuple

_PROT_EXEC: Final = 4
_AT_EMPTY_PATH: Final = 0x1000
_CLONE_THREAD: Final = 0x10000
_CLONE_NEW: Final = 0x7E020080  # all namespaces
_PR_SET_NAME: Final = 15
_FIONBIO, _FIOCLEX, _FIONCLEX = 0x5421, 0x5451, 0x5450
_BLOCK_DEVICE: Final = (0x125E, 0x1268, 0x127B, 0x80081272)  # BLKROGET, BLKSSZGET, BLKPBSZGET, BLKGETSIZE64

#: Whatever their arguments are.
ALLOWED: Final = (
    # I/O on what is open
    *("read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "pwritev2"),
    *("fsync", "fdatasync", "fallocate", "ftruncate", "fadvise64", "lseek", "fstat", "fstatfs", "close"),
    *("io_uring_enter", "io_uring_register"),  # rings are there, and restricted; none can be added
    # front ends and control clients
    *("accept4", "recvmsg", "recvfrom", "sendmsg", "sendto", "shutdown", "getsockopt", "setsockopt"),
    *("getsockname", "getpeername", "memfd_create", "pipe2"),
    *("readlink", "readlinkat"),  # of /proc/self/fd: what a front end calls an eventfd has to be one
    # waiting
    *("poll", "ppoll", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "futex"),
    *("nanosleep", "clock_nanosleep", "sched_yield", "restart_syscall", "wait4"),
    # memory, threads, signals to oneself
    *("munmap", "mremap", "madvise", "brk", "set_robust_list", "rseq", "exit", "exit_group", "membarrier"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    # clocks, numbers
    *("clock_gettime", "clock_getres", "gettimeofday", "getrandom", "getrusage", "getcpu"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getcwd", "sched_getaffinity"),
)

#: What a stolen process does first, and an honest target never.
DEADLY: Final = (
    *("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "fork", "vfork"),
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsmount"),
    *("setns", "unshare", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "open_by_handle_at"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon"),
    *("keyctl", "add_key", "request_key", "iopl", "ioperm"),
)


class Rule(NamedTuple):
    """A call is allowed if argument ``argument``, masked, is ``value``."""

    argument: int
    value: int
    mask: int = 0xFFFF_FFFF


class Tables(NamedTuple):
    """Calls that may be made, and calls that may be made if an argument is right."""

    allowed: tuple[str, ...]
    tested: tuple[tuple[str, Rule], ...]


#: What a steward does besides: looking around in /proc and /sys, removing a socket.
_LOOKING: Final = ("newfstatat", "stat", "lstat", "statx", "getdents64", "unlink", "unlinkat")


#: Stands for a target's own number in its filter; no process has it, and no other rule.
OWN_PID: Final = 0x7E57_1D00


def of_target() -> Tables:
    """What a target may do; it signals itself alone."""
    return Tables(ALLOWED, (*_tested(), ("kill", Rule(0, OWN_PID)), ("tgkill", Rule(0, OWN_PID))))


def of_steward() -> Tables:
    """What a steward may do: as a target, and read files; it signals nobody."""
    reading = Rule(2, os.O_RDONLY, os.O_ACCMODE | os.O_CREAT | os.O_TRUNC)
    tested = [(name, rule) for name, rule in _tested() if name not in _LOOKING]
    return Tables((*ALLOWED, *_LOOKING), (*tested, ("openat", reading)))


def _tested() -> Iterator[tuple[str, Rule]]:
    """Calls that are allowed with some arguments only."""
    yield from ((name, Rule(2, 0, _PROT_EXEC)) for name in ("mmap", "mprotect"))
    yield "clone", Rule(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW)
    yield "newfstatat", Rule(3, _AT_EMPTY_PATH, _AT_EMPTY_PATH)
    yield "statx", Rule(2, _AT_EMPTY_PATH, _AT_EMPTY_PATH)
    yield "prctl", Rule(0, _PR_SET_NAME)
    yield "prlimit64", Rule(2, 0, 0xFFFF_FFFF_FFFF_FFFF)  # asking, not setting
    terminal = (termios.TCGETS, termios.TIOCGWINSZ)
    yield from (("ioctl", Rule(1, request)) for request in (_FIONBIO, _FIOCLEX, _FIONCLEX, *terminal))
    yield from (("ioctl", Rule(1, request)) for request in _BLOCK_DEVICE)
    commands = [fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL]
    commands += [fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS, fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK]
    yield from (("fcntl", Rule(1, command)) for command in commands)
