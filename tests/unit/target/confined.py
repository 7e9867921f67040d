"""A process that confines itself as a target does, and then tries what it may not do.

    python confined.py THREAD WHO FOLDER

THREAD is where it is tried: ``main``, ``early`` (it ran before the filter was loaded), ``late``, or ``files``
(nothing is filtered: what is left are files, sockets and rights). WHO is ``root``, or ``user`` to begin as a
user without rights. Prints one JSON object: what came of each attempt.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import queue
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringway.model import SandboxMode
from ringway.target import host
from ringway.target.sandbox import Sandbox, filters, landlock
from ringway.target.sandbox.confinement import warm_up

LIBC = ctypes.CDLL(None, use_errno=True)
IO_URING_SETUP = 425
MEMBARRIER = {"x86_64": 324, "aarch64": 283}[os.uname().machine]
REGISTER_PRIVATE_EXPEDITED = 1 << 4
SOMEBODY = 54321
PARENT = os.getppid()

#: An older kernel's Landlock misses parts; all else is there.
MODE = SandboxMode.ON if landlock.missing(landlock.abi()) is None else SandboxMode.AUTO

Attempt = Callable[[], Any]


def call(name: str, *arguments: Any) -> None:
    """A function of the C library that fails with -1."""
    if getattr(LIBC, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mapped(protection: int) -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=protection).close()


def made_executable() -> None:
    LIBC.mmap.restype = ctypes.c_void_p
    page = LIBC.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    call("mprotect", ctypes.c_void_p(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)


def refused(folder: str, endpoint: socket.socket, terminal: int) -> dict[str, Attempt]:
    """What fails, and leaves the process as it was."""
    file = f"{folder}/file"
    return {
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read its own memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
        "make a file": lambda: os.open(f"{folder}/new", os.O_WRONLY | os.O_CREAT),
        "remove a file": lambda: os.unlink(file),
        "rename a file": lambda: os.rename(file, f"{folder}/other"),
        "change a mode": lambda: os.chmod(file, 0o777),
        "look at a file": lambda: os.stat(file),
        "list a folder": lambda: os.listdir(folder),
        "make a folder": lambda: os.mkdir(f"{folder}/folder"),
        "an internet socket": lambda: socket.socket(socket.AF_INET).close(),
        "a unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "a pair of sockets": socket.socketpair,
        "connect": lambda: endpoint.connect(f"{folder}/socket"),
        "listen": endpoint.listen,
        "kill another process": lambda: os.kill(PARENT, 0),
        "become root": lambda: os.setuid(0),
        "another group": lambda: os.setgroups([0]),
        "another process": os.fork,
        "map code": lambda: mapped(mmap.PROT_READ | mmap.PROT_EXEC),
        "make memory code": made_executable,
        "set a limit": lambda: call("setrlimit", resource.RLIMIT_CORE, bytes(16)),
        "type on a terminal": lambda: fcntl.ioctl(terminal, 0x5412, b"x"),  # TIOCSTI
        "send signals from a file": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, PARENT),
        "become dumpable": lambda: call("prctl", 4, 1, 0, 0, 0),
        "change the clock": lambda: call("settimeofday", bytes(16), None),
    }


def without_filter(folder: str) -> dict[str, Attempt]:
    """What fails without the filter as well."""
    port, address = ("127.0.0.1", 9), f"\0ringway-{os.getpid()}"
    ABSTRACT.bind(address)
    ABSTRACT.listen()
    return {
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "make a file": lambda: os.open(f"{folder}/new", os.O_WRONLY | os.O_CREAT),
        "remove a file": lambda: os.unlink(f"{folder}/file"),
        "connect to a port": lambda: socket.socket(socket.AF_INET).connect(port),
        "bind a port": lambda: socket.socket(socket.AF_INET).bind(("127.0.0.1", 0)),
        "an abstract socket": lambda: socket.socket(socket.AF_UNIX).connect(address),
        "kill another process": lambda: os.kill(PARENT, 0),
        "become root": lambda: os.setuid(0),
        "another root": lambda: os.chroot("/"),
    }


def deadly() -> dict[str, Attempt]:
    """What ends the process."""
    return {
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "trace": lambda: call("ptrace", 0, 0, 0, 0),
        "read another's memory": lambda: call("process_vm_readv", PARENT, None, 0, None, 0, 0),
        "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "a namespace": lambda: call("unshare", 0x10000000),
        "another ring": lambda: call("syscall", IO_URING_SETUP, 8, bytes(120)),
    }


def allowed(folder: str) -> dict[str, Attempt]:
    """What a target does all the time."""
    return {
        "share memory": lambda: os.close(os.memfd_create("x", os.MFD_CLOEXEC)),
        "map data": lambda: mapped(mmap.PROT_READ | mmap.PROT_WRITE),
        "a thread": lambda: threading.Thread(target=print, kwargs={"end": ""}).start(),
        "an event": lambda: os.close(os.eventfd(0)),
        "a fence for all threads": lambda: call("syscall", MEMBARRIER, REGISTER_PRIVATE_EXPEDITED, 0, 0),
        "ask who a process is": lambda: expect(host.command_name(PARENT) != "?"),
        "remove what it made": lambda: host.remove(f"{folder}/made", MADE[0]),
    }


ABSTRACT = socket.socket(socket.AF_UNIX)
MADE: list[host.Identity] = []


def expect(true: bool) -> None:
    if not true:
        raise OSError(errno.EILSEQ, "not what was expected")


def outcome(attempt: Attempt) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def confined(thread: str, work: Callable[[], None]) -> None:
    """Do ``work`` in a thread of a process that gave up all it can."""
    tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    worker = threading.Thread(target=lambda: [task() for task in [tasks.get()]])
    with Sandbox(MODE) as sandbox:
        sandbox.confine()
        if thread == "early":
            worker.start()
        if thread != "files":
            sandbox.seal()
        if thread == "late":
            worker.start()
        if thread in ("main", "files"):
            work()
        else:
            tasks.put(work)
            worker.join()


def death_of(thread: str, attempt: Attempt) -> str:
    """What ended a child that tries: ``SIGSYS``, or ``survived``."""
    child = os.fork()
    if child == 0:
        confined(thread, lambda: print(outcome(attempt), file=sys.stderr))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "survived"


def main() -> None:
    thread, who, folder = sys.argv[1:]
    filters.library()
    warm_up()
    for name in ("file", "made"):
        Path(folder, name).touch()
    MADE.append(host.made(f"{folder}/made"))
    if who == "user":
        os.chmod(folder, 0o777)
        os.setgroups([])
        os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
        os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
    results: dict[str, str] = {}
    if thread == "files":
        attempts = without_filter(folder)
    else:
        results = {name: death_of(thread, attempt) for name, attempt in deadly().items()}
        attempts = {**refused(folder, socket.socket(socket.AF_UNIX), os.openpty()[0]), **allowed(folder)}
    confined(thread, lambda: results.update((name, outcome(each)) for name, each in attempts.items()))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
