"""Filters of system calls: made of tables by libseccomp, in a process that ends, and loaded.

The library's binding, what it imports to find the library, and what the library keeps would stay in memory
for good: 1 MiB for each target. What is left here is a program for the kernel, of some kilobytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from types import ModuleType
from typing import Any, Final, NoReturn

import msgspec

from ringway.target.sandbox import syscalls
from ringway.target.sandbox.syscalls import DEADLY, OWN_PID, Rule, Tables

_SET_MODE_FILTER: Final = 1
#: TSYNC: all threads. SPEC_ALLOW: no others' code runs here, so older kernels keep their speed.
_FLAGS: Final = 1 << 0 | 1 << 2
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: the last is its number

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Filter(msgspec.Struct, frozen=True):
    """A filter that can be loaded.

    :ivar code: instructions of classic BPF. :ivar loader: number of the call that loads it.
    """

    code: bytes
    loader: int

    def of_process(self, pid: int) -> Filter:
        """The same with a process's number in the place of ``OWN_PID``. :raises OSError: it has no place."""
        program = [list(each) for each in _INSTRUCTION.iter_unpack(self.code)]
        places = [instruction for instruction in program if instruction[3] == OWN_PID]
        if not places:
            raise OSError(errno.EIO, "the filter tests no process")
        for instruction in places:
            instruction[3] = pid
        return Filter(b"".join(_INSTRUCTION.pack(*each) for each in program), self.loader)

    def load(self) -> None:
        """Filter all threads of this process, for good. It needs ``no_new_privs``.

        :raises OSError: the kernel refuses.
        """
        text = ctypes.create_string_buffer(self.code, len(self.code))
        program = _Program(len(self.code) // _INSTRUCTION.size, ctypes.cast(text, ctypes.c_void_p))
        words = (self.loader, _SET_MODE_FILTER, _FLAGS)
        result = _libc.syscall(*map(ctypes.c_long, words), ctypes.byref(program))
        if result != 0:  # a thread that could not be told is a positive number
            number = ctypes.get_errno() if result < 0 else errno.EBUSY
            raise OSError(number, os.strerror(number))


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


class _Refusal(msgspec.Struct, frozen=True):
    number: int
    text: str


class Filters(msgspec.Struct, frozen=True):
    """What a target and its steward load; the target's is to have its number put in."""

    target: Filter
    steward: Filter


def prepare() -> Filters:
    """Make both, for this process or for any that it forks. :raises OSError: as :func:`made`."""
    return Filters(*made(syscalls.of_target(), syscalls.of_steward()))


def made(*tables: Tables) -> list[Filter]:
    """Have a child make a filter of each.

    :raises OSError: libseccomp is not there, knows no filters for this machine, or there can be no child.
    """
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:
        _make_and_end(answer, tables)
    os.close(answer)
    with open(answers, "rb") as stream:
        data = stream.read()
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
        os.waitpid(child, 0)
    try:
        return msgspec.msgpack.decode(data, type=list[Filter])
    except msgspec.DecodeError:
        _raise_refusal(data)


def _raise_refusal(data: bytes) -> NoReturn:
    try:
        refusal = msgspec.msgpack.decode(data, type=_Refusal)
    except msgspec.DecodeError as error:
        raise OSError(errno.EIO, "the process that makes the filter died") from error
    raise OSError(refusal.number, refusal.text)


def _make_and_end(answer: int, tables: tuple[Tables, ...]) -> NoReturn:
    """The child's part."""
    try:
        try:
            found: Any = [_make(library(), each) for each in tables]
        except OSError as error:
            found = _Refusal(error.errno or errno.EIO, error.strerror or str(error))
        with open(answer, "wb") as stream:
            stream.write(msgspec.msgpack.encode(found))
    finally:
        os._exit(0)


def library() -> ModuleType:
    """libseccomp's binding. Finding the library starts programs: not for a confined process.

    :raises OSError: the library is not installed.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise OSError(errno.ENOENT, "libseccomp is not installed") from error
    module: ModuleType = pyseccomp
    return module


def _make(lib: ModuleType, tables: Tables) -> Filter:
    rules = lib.SyscallFilter(lib.ERRNO(errno.EPERM))
    rules.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)

    def add(action: int, name: str, *comparisons: object) -> None:
        number = lib.resolve_syscall(lib.Arch.NATIVE, name)
        if number >= 0:  # else the library is older than this call, or it is another machine's
            rules.add_rule(action, number, *comparisons)

    for name in tables.allowed:
        add(lib.ALLOW, name)
    for name, rule in tables.tested:
        add(lib.ALLOW, name, _comparison(lib, rule))
    for name in DEADLY:
        add(lib.KILL_PROCESS, name)
    # its flags lie in memory, where no filter sees them: the C library takes clone then
    add(lib.ERRNO(errno.ENOSYS), "clone3")
    return Filter(_code(rules), lib.resolve_syscall(lib.Arch.NATIVE, "seccomp"))


def _comparison(lib: ModuleType, rule: Rule) -> object:
    return lib.Arg(rule.argument, lib.MASKED_EQ, rule.mask, rule.value)


def _code(rules: Any) -> bytes:
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
