"""Hosts of one's own, side by side on this one: each has its name, its network, its processes, its mounts.

    with SmallHost("left", {folder / "left": folder / "here"}) as left, SmallHost("right") as right:
        connect(left, right)
        left.run("ping", "-c1", "right")

They share the file systems of this host, apart from what is bound to another place, and its kernel. To make
one takes root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ringway.errors import GuestError
from ringway.testing.waiting import PATIENCE_S

Popen = Callable[..., "subprocess.Popen[bytes]"]
"""As :class:`subprocess.Popen`; where its processes live is up to it."""

_NOTHING: Final[Mapping[Path, Path]] = {}
_CLONE_NEWPID: Final = 0x20000000
_LINK: Final = "eth0"
_libc: Final = ctypes.CDLL(None, use_errno=True)

#: The first process: takes leave of orphans, and ends when its starter hangs up, and all others with it.
_INIT: Final = "exec 3<&0; echo ready; cat <&3 >/dev/null & wait"


class SmallHost:
    """One of them. A context manager; all its processes end with it, and with this process.

    :param name: its host name.
    :param mounts: what is bound to which place.
    """

    def __init__(self, name: str, mounts: Mapping[Path, Path] = _NOTHING) -> None:
        self.name = name
        self._mounts = mounts
        self._init: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int:
        """Of a process of this host that is in all of its namespaces but that of processes."""
        assert self._init is not None, "it does not run"
        return self._init.pid

    def __enter__(self) -> Self:
        script = ["umount --all --lazy --types fuse"]  # who serves those waits until nobody has them
        script += [f"echo {shlex.quote(self.name)} >/proc/sys/kernel/hostname", "ip link set lo up"]
        script += [shlex.join(["mount", "--bind", str(a), str(b)]) for a, b in self._mounts.items()]
        unshare = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        command = [*unshare, "sh", "-euc", "; ".join([*script, _INIT])]
        self._init = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._init.stdout is not None
        if self._init.stdout.readline() != b"ready\n":
            self.close()
            raise GuestError(f"a host '{self.name}' cannot be made", hint="that takes root, and iproute2")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all of its processes; again is fine."""
        for child in self._children:
            child.kill()
            child.wait(PATIENCE_S)  # a host does not end before its dead are buried
        self._children = []
        if self._init is not None:
            self._init.communicate(timeout=PATIENCE_S)
            self._init = None

    def popen(
        self, command: Sequence[str], *, cwd: Path | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process there; its number is the one that it has here."""
        where = f"--wdns={cwd or Path.cwd()}"
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", where, "--"]
        with self._births():
            child = subprocess.Popen([*enter, *command], **options)
        self._children.append(child)
        return child

    def run(self, *command: str) -> str:
        """Run a program there. :returns: its output. :raises GuestError: it failed."""
        with self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate(timeout=PATIENCE_S)
        if process.returncode != 0:
            raise GuestError(f"{shlex.join(command)} on {self.name}: {output.decode().strip()}")
        return output.decode()

    @contextlib.contextmanager
    def _births(self) -> Iterator[None]:
        """In the block, this thread's children are processes of that host."""
        with open(f"/proc/{self.pid}/ns/pid_for_children") as there, open("/proc/self/ns/pid") as here:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(here.fileno())


def connect(*hosts: SmallHost) -> None:
    """Lay a cable between two hosts, and let them know each other by name."""
    left, right = hosts
    peer = ["peer", "name", _LINK, "netns", str(right.pid)]
    command = ["ip", "link", "add", _LINK, "netns", str(left.pid), "type", "veth", *peer]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    names = "".join(f"10.0.0.{number} {host.name}\n" for number, host in enumerate(hosts, 1))
    for number, host in enumerate(hosts, 1):
        host.run("ip", "address", "add", f"10.0.0.{number}/24", "dev", _LINK)
        host.run("ip", "link", "set", _LINK, "up")
        host.run("sh", "-euc", _NAMES, "sh", f"127.0.0.1 localhost\n{names}")


#: Nothing of this host's own file is changed.
_NAMES: Final = 'file=$(mktemp); printf %s "$1" >"$file"; mount --bind "$file" /etc/hosts; rm "$file"'


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWPID) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
