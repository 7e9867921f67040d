"""Who is at the other end of a connection, and what he may do: SO_PEERCRED, and the socket he came by."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from ringway.logs import log_event

STATE_KEY: Final = "ringway.access"
_CREDENTIALS: Final = struct.Struct("3i")


class Peer(Struct, frozen=True):
    """The process that connected."""

    uid: int
    gid: int
    pid: int
    command: str


class Access(Struct, frozen=True):
    """What a connection may do. ``peer`` is missing where no socket is: tests of the application alone."""

    read_only: bool
    peer: Peer | None = None


def peer_of(connection: Any) -> Peer:
    """Ask the kernel. :raises OSError: the connection is gone."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(uid, gid, pid, _command(pid))


def _command(pid: int) -> str:
    """The process's name; empty when it is gone already."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def access_of(scope: Mapping[str, Any]) -> Access:
    """What the connection of a request may do; one that nobody vouched for may look."""
    found = scope.get("state", {}).get(STATE_KEY)
    return found if isinstance(found, Access) else Access(read_only=True)


def log_change(peer: Peer | None, verb: str, thing: str, result: str, **more: str) -> None:
    """Write who wanted to change what, and what came of it."""
    who = {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid, "command": peer.command} if peer else {}
    log_event("change", f"{verb} {thing}: {result}", verb=verb, object=thing, result=result, **who, **more)
