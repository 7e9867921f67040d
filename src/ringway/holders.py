"""Who else uses a file or a block device: looked up only to name them in an error.

Everything here reads ``/proc`` and ``/sys``; what may not be read is left out, and nothing raises.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Final

_LOCK_LINE: Final = re.compile(r"^lock:\s+\d+: (?:OFDLCK|POSIX|FLOCK)", re.MULTILINE)
_OCTAL: Final = re.compile(r"\\([0-7]{3})")

_principal: int | None = None  # who this process looks for


def stand_in_for(pid: int) -> None:
    """Look as another process would, for which this one does so: it is the one that errors call itself."""
    global _principal
    _principal = pid


def _self() -> int:
    return os.getpid() if _principal is None else _principal


def process_name(pid: int) -> str:
    """``"pid 4711 (qemu-system-x86)"``, or what to call this process itself."""
    if pid == _self():
        return "another disk of this target"
    comm = _read(f"/proc/{pid}/comm").strip()
    return f"pid {pid} ({comm})" if comm else f"pid {pid}"


def lock_holder(fd: int) -> str | None:
    """Name a process that holds a lock on this file through another open file description.

    A process shows its locks in ``/proc/PID/fdinfo``; OFD locks have no process of their own.
    """
    own = os.fstat(fd)
    for pid, link, info in _open_files():
        if _same_file(link, own) and _LOCK_LINE.search(_read(info)):
            return process_name(pid)
    return None


def opener(path_stat: os.stat_result) -> str | None:
    """Name a process other than this one that has a file or device open."""
    for pid, link, _ in _open_files():
        if pid != _self() and _same_file(link, path_stat):
            return process_name(pid)
    return None


def device_user(device: int) -> str | None:
    """What keeps a block device busy: a mount, swap, or a device built on it, on it or on one of its
    partitions.

    :param device: its number (``st_rdev``).
    :returns: ``"mounted at /srv"``, ``"used as swap"``, ``"held by dm-0"``, or ``None``.
    """
    for number in _with_partitions(device):
        if user := _mounted(number) or _swap(number) or _held(number):
            return user
    return None


def file_user(own: os.stat_result) -> str | None:
    """What uses a file without a lock: a loop device, or swap."""
    for name in _names("/sys/block"):
        if _is_same_path(_read(f"/sys/block/{name}/loop/backing_file").rstrip("\n"), own):
            return f"attached as /dev/{name}"
    return "used as swap" if any(_is_same_path(name, own) for name in _swaps()) else None


def _read(path: str) -> str:
    """A small file's text; empty when it may not be read or is gone."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _open_files() -> Iterator[tuple[int, str, str]]:
    """All (pid, fd link, fdinfo) of all processes, this one last: somebody else is the better answer."""
    own, looking = str(_self()), str(os.getpid())  # who only looks has what it was handed for that
    pids = [name for name in _names("/proc") if name.isdigit() and name not in (own, looking)]
    for pid in [*pids, own]:
        for number in _names(f"/proc/{pid}/fd"):
            yield int(pid), f"/proc/{pid}/fd/{number}", f"/proc/{pid}/fdinfo/{number}"


def _names(folder: str) -> list[str]:
    """A folder's entries; none when it may not be read or is gone."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _same_file(link: str, own: os.stat_result) -> bool:
    """Whether an fd link leads to a file (or to the same block device under any name)."""
    try:
        other = os.stat(link)
    except OSError:
        return False
    if stat.S_ISBLK(own.st_mode):
        return stat.S_ISBLK(other.st_mode) and other.st_rdev == own.st_rdev
    return os.path.samestat(own, other)


def _is_same_path(name: str, own: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(name), own)
    except OSError:
        return False


def _sysfs(device: int) -> str:
    return f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"


def _with_partitions(device: int) -> Iterator[int]:
    """The device, then its partitions."""
    yield device
    for name in sorted(_names(_sysfs(device))):
        part = f"{_sysfs(device)}/{name}"
        major, _, minor = _read(f"{part}/dev").strip().partition(":")
        if major and minor and os.path.exists(f"{part}/partition"):
            yield os.makedev(int(major), int(minor))


def _mounted(device: int) -> str | None:
    """Compare each mount's device number, and its source's (btrfs shows an anonymous number)."""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        source = fields[fields.index("-") + 2]
        if fields[2] == f"{os.major(device)}:{os.minor(device)}" or _rdev(_unescape(source)) == device:
            return f"mounted at {_unescape(fields[4])}"
    return None


def _swap(device: int) -> str | None:
    return "used as swap" if any(_rdev(name) == device for name in _swaps()) else None


def _swaps() -> list[str]:
    """Paths of the swap areas in use."""
    return [_unescape(line.split()[0]) for line in _read("/proc/swaps").splitlines()[1:]]


def _held(device: int) -> str | None:
    names = _names(f"{_sysfs(device)}/holders")
    return f"held by {min(names)}" if names else None


def _rdev(path: str) -> int | None:
    """Number of the block device at a path; ``None`` when it is none."""
    try:
        status = os.stat(path) if path.startswith("/") else None
    except OSError:
        return None
    return status.st_rdev if status is not None and stat.S_ISBLK(status.st_mode) else None


def _unescape(text: str) -> str:
    """Undo the octal escapes of ``/proc``."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
