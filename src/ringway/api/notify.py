"""Words to systemd, and the sockets that it hands over. See sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

_FIRST: Final = 3


def notify(*words: str) -> None:
    """Tell the service manager, if one listens: ``READY=1``, ``STATUS=…``. Never raises, never waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto("\n".join(words).encode(), address.replace("@", "\0", 1))
        except OSError:
            return  # it went away; it will say so itself


def watchdog_s(environment: MutableMapping[str, str] = os.environ) -> float | None:
    """How often it wants to hear of us, halved so that one word may be late. ``None``: it does not."""
    microseconds = environment.get("WATCHDOG_USEC")
    if microseconds is None or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6


def handed_over(environment: MutableMapping[str, str] = os.environ) -> dict[str, socket.socket]:
    """Take the sockets that were opened for this process, by the names of their units; children get none."""
    count, pid = environment.pop("LISTEN_FDS", "0"), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()):
        return {}
    found = {}
    for fd, name in zip(range(_FIRST, _FIRST + int(count)), names, strict=False):
        os.set_inheritable(fd, False)
        found[name] = socket.socket(fileno=fd)
    return found
