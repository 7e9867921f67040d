"""The two sockets: made by us or by systemd, and who may come by each."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import socket
from pathlib import Path
from typing import Final

from ringway.api.notify import handed_over
from ringway.errors import PermissionDeniedError, UsageError
from ringway.host.config import ApiConfig
from ringway.host.places import Places

_BACKLOG: Final = 128
_MAX_PATH: Final = 107
NAMES: Final = {"api": False, "ro": True}  #: FileDescriptorName of systemd's units -> only for looking
_log: Final = logging.getLogger(__name__)


class Door:
    """A listening socket. ``inside``: how many connections are open."""

    def __init__(self, listener: socket.socket, *, read_only: bool, most: int, path: Path | None) -> None:
        self.socket = listener
        self.read_only = read_only
        self.most = most
        self.inside = 0
        self._path = path

    @property
    def address(self) -> str:
        """What its connections have as their own name."""
        return str(self.socket.getsockname())

    def remove(self) -> None:
        """Take away the path that we made. Idempotent."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def open_doors(places: Places, config: ApiConfig) -> list[Door]:
    """Take what systemd hands over, and make what it does not.

    The caller holds the daemon's lock: a path that is there is a dead daemon's.

    :raises UsageError: a path is too long for a socket. :raises PermissionDeniedError: the folder is closed.
    """
    given = handed_over()
    doors = [
        Door(given[name], read_only=read_only, most=config.connections, path=None)
        for name, read_only in NAMES.items()
        if name in given
    ]
    groups = {"api": (places.api, config.admin_group), "ro": (places.read_only, config.read_group)}
    for name, (path, group) in groups.items():
        if name not in given:
            listener = _made(path, None if places.private else group)
            doors.append(Door(listener, read_only=NAMES[name], most=config.connections, path=path))
    return doors


def _made(path: Path, group: str | None) -> socket.socket:
    """Bind as the user's own, then open it for the group."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise UsageError(f"the path '{path}' is too long for a socket", hint="take a shorter --directory")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # bind makes the path so
        listener.bind(str(path))
        path.chmod(0o600)
        if group is not None:
            _give(path, group)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise PermissionDeniedError(f"no socket can be made at '{path}': {error.strerror}") from error
    return listener


def _give(path: Path, group: str) -> None:
    """Open a socket for a group; one that does not exist opens it for nobody."""
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        _log.warning("there is no group '%s': only root can use %s", group, path)
        return
    path.chmod(0o660)
