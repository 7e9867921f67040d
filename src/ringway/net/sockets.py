"""Sockets of ports: what is at a path, who has it, and who gets there."""

from __future__ import annotations

import contextlib
import os
import stat

from msgspec import Struct

from ringway.errors import ConflictError, NotFoundError, PermissionDeniedError
from ringway.net.account import Account
from ringway.unix_sockets import use_of


class Seen(Struct, frozen=True, kw_only=True):
    """What there is at a path."""

    exists: bool = False  #: a socket's file
    listener: int | None = None  #: the inode of the socket that somebody listens on
    connected: bool = False


def look(path: str) -> Seen:
    """Say what there is. Nothing raises: what may not be read is not seen.

    :raises ConflictError: something that is no socket is at the path.
    """
    if not _is_socket(path):
        return Seen()
    use = use_of(path)
    return Seen(exists=True, listener=use.listener, connected=use.connected)


def owner(inode: int) -> tuple[int, str] | None:
    """Process id and name of who has a socket; ``None``: it may not be told."""
    for name in _names("/proc"):
        if name.isdigit() and _has_socket(name, f"socket:[{inode}]"):
            return int(name), _read(f"/proc/{name}/comm").strip()
    return None


def remove_stale(path: str) -> None:
    """Remove a socket's file at which nobody listens; all else is left alone."""
    with contextlib.suppress(OSError, ConflictError):
        seen = look(path)
        if seen.exists and seen.listener is None:
            os.unlink(path)


def check_folder(path: str, account: Account | None, *, writes: bool) -> None:
    """Check the folder of a socket.

    :param account: has to get there; ``None``: this process.
    :param writes: a socket is made there by whom we look for.
    :raises NotFoundError: there is no such folder.
    :raises PermissionDeniedError: the way is closed; it says where, and for whom.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise NotFoundError(f"'{folder}' is not a folder", hint=f"make it with: mkdir -p '{folder}'")
    closed = _closed(folder, account, writes)
    if closed is not None:
        name, doing = (
            (account.name if account else "this user"),
            "make sockets in" if writes else "go through",
        )
        what = doing if closed == folder else "go through"
        raise PermissionDeniedError(
            f"user '{name}', who runs QEMU, may not {what} '{closed}'",
            hint=f"chgrp it to a group of that user and chmod g+{'w' if what != 'go through' else ''}x it",
        )


def may_connect(path: str, account: Account | None) -> bool:
    """Whether somebody's rights are enough to connect to a socket that is there."""
    return _allowed(path, account, os.W_OK)


def _closed(folder: str, account: Account | None, writes: bool) -> str | None:
    """The first folder from the root on that lacks a right; the last one may need to be writable."""
    parts = folder.split("/")[1:]
    for depth in range(len(parts)):
        above = "/" + "/".join(parts[:depth])
        if not _allowed(above, account, os.X_OK):
            return above
    return None if _allowed(folder, account, os.X_OK | (os.W_OK if writes else 0)) else folder


def _allowed(path: str, account: Account | None, rights: int) -> bool:
    """As ``access``, by the mode alone for somebody else: access lists and labels are not looked at."""
    if account is None:
        return os.access(path, rights)
    if account.uid == 0:
        return True
    try:
        status = os.stat(path)
    except OSError:
        return False
    shift = 6 if status.st_uid == account.uid else 3 if status.st_gid in account.gids else 0
    return (stat.S_IMODE(status.st_mode) >> shift) & rights == rights


def _is_socket(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    if not stat.S_ISSOCK(mode):
        hint = "name another path for the port, or remove it if you can"
        raise ConflictError(f"'{path}' exists and is not a socket", hint=hint)
    return True


def _has_socket(pid: str, link: str) -> bool:
    return any(_link(f"/proc/{pid}/fd/{number}") == link for number in _names(f"/proc/{pid}/fd"))


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
