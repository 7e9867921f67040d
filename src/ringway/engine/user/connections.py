"""Which sockets somebody is connected to: one look for all of them."""

from __future__ import annotations

from typing import Final

_CONNECTED: Final = b"03"  # SS_CONNECTED, as unix(7) has it
_STATE, _PATH = 5, 7


def connected_paths() -> frozenset[str] | None:
    """The paths of sockets that accepted a peer who is still there; ``None``: that cannot be told."""
    try:
        with open("/proc/net/unix", "rb") as table:
            lines = table.readlines()[1:]
    except OSError:
        return None
    fields = (line.rstrip(b"\n").split(None, _PATH) for line in lines)
    return frozenset(
        each[_PATH].decode(errors="surrogateescape")
        for each in fields
        if len(each) > _PATH and each[_STATE] == _CONNECTED
    )
