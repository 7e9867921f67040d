"""Who listens at unix sockets, and who is connected: looked at without connecting.

A back end would count a connection as a front end. ``/proc/net/unix`` tells of each network namespace by
itself, and by the path that was bound: a container with a mount of its own may call it otherwise. What may
not be read is left out, and nothing raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

_OWN: Final = "/proc/net/unix"
_LISTENS: Final = 0x10000  #: __SO_ACCEPTCON
_CONNECTED: Final = "03"  #: SS_CONNECTED
#: Num RefCount Protocol Flags Type St Inode Path; the path is the listener's on accepted sockets too.
_FLAGS, _STATE, _INODE, _PATH = 3, 5, 6, 7


class Use(Struct, frozen=True):
    """What goes on at a path."""

    listener: int | None = None  #: the inode of the socket that somebody listens on
    connected: bool = False  #: somebody was accepted there, and stays
    waiting: bool = False  #: somebody was not accepted yet, or is just leaving

    def __or__(self, other: Use) -> Use:
        """What two tables say of one path."""
        listener = other.listener if self.listener is None else self.listener
        return Use(listener, self.connected or other.connected, self.waiting or other.waiting)


def use_of(path: str) -> Use:
    """Say what goes on at a path, whoever does it."""
    found = Use()
    for table in _tables():
        for fields in _rows(table):
            if fields[_PATH] == path:
                found |= _use(fields)
        # What was accepted is in the namespace of who connected, which need not be the listener's.
        if found.listener is not None and (found.connected or found.waiting):
            break
    return found


def is_listening(path: str) -> bool:
    """Whether somebody listens there: who binds makes the path, and is ready a moment later only."""
    return use_of(path).listener is not None


def connected_paths() -> frozenset[str] | None:
    """The paths of sockets that accepted a peer who is still there, in one look for all of them.

    :returns: ``None``: that cannot be told.
    """
    if not os.access(_OWN, os.R_OK):
        return None
    rows = (fields for table in _tables() for fields in _rows(table))
    return frozenset(fields[_PATH] for fields in rows if _use(fields).connected)


def _use(fields: list[str]) -> Use:
    if int(fields[_FLAGS], 16) & _LISTENS:
        return Use(listener=int(fields[_INODE]))
    connected = fields[_STATE] == _CONNECTED
    return Use(connected=connected, waiting=not connected)


def _rows(table: str) -> list[list[str]]:
    """The fields of the sockets that have a path; none if it cannot be read."""
    try:
        with open(table, errors="surrogateescape") as file:
            lines = file.read().split("\n")[1:]
    except OSError:
        return []
    rows = (line.split(maxsplit=_PATH) for line in lines)
    return [fields for fields in rows if len(fields) > _PATH]


def _tables() -> Iterator[str]:
    """The table of each network namespace that some process is in; this process's first."""
    yield _OWN
    seen = {_namespace("self")}
    for name in os.listdir("/proc"):
        namespace = _namespace(name) if name.isdigit() else None
        if namespace is not None and namespace not in seen:
            seen.add(namespace)
            yield f"/proc/{name}/net/unix"


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(f"/proc/{process}/ns/net")
    except OSError:
        return None
