"""Words to systemd, and the sockets that it hands over. See sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

_FIRST: Final = 3


class Manager:
    """The service manager, if there is one. What it told us in the environment is taken out: children have
    nothing to tell it.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        microseconds, pid = environment.pop("WATCHDOG_USEC", None), environment.pop("WATCHDOG_PID", None)
        #: How often it wants to hear of us, halved so that one word may be late. ``None``: it does not.
        self.watchdog_s = (
            int(microseconds) / 2e6 if microseconds and pid in (None, str(os.getpid())) else None
        )

    def tell(self, *words: str) -> None:
        """Say ``READY=1``, ``STATUS=…``, if somebody listens. Never raises, never waits."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(words).encode(), self._address)
            except OSError:
                return  # it went away; it will say so itself


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
