"""Which process is the guest at a target port: looked up only to name it in an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ringway.holders import process_name

_DEVICE: Final = "/dev/vhost-scsi"


def guest_of(wwpn: str) -> str:
    """Name the process that has the kernel's vhost-scsi open for a port, as far as it can be told.

    QEMU has the port's name on its command line, unless the disk was plugged in later.
    """
    pids = list(_users())
    sure = [pid for pid in pids if wwpn.encode() in _command(pid)]
    names = [process_name(pid) for pid in sure or pids]
    return " or ".join(names) if names else "a guest"


def _users() -> Iterator[int]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            if any(link == _DEVICE for link in links):
                yield int(pid)
        except OSError:  # it ended, or is not ours to look at
            continue


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
