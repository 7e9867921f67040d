"""Where the sockets of ports are: a folder of ours unless one was named, open to QEMU's user."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from ringway.errors import PermissionDeniedError
from ringway.model import PortMode, PortSpec, socket_of
from ringway.net import sockets
from ringway.net.base import Settings


def default_socket(spec: PortSpec, settings: Settings) -> str:
    """The socket of a port for which none was named."""
    return str(settings.folder / f"{spec.name}.sock")


def check_place(spec: PortSpec, settings: Settings) -> None:
    """Check that QEMU can make the socket, or get to it. Our own folder is still to be made, it may be.

    :raises NotFoundError: the folder is not there. :raises PermissionDeniedError: it is closed to QEMU.
    :raises ConflictError: something that is no socket is in its place.
    """
    path = socket_of(spec)
    if not is_ours(path, settings) or settings.folder.exists():
        sockets.check_folder(path, settings.account, writes=spec.mode is PortMode.SERVER)
    elif settings.folder.parent.exists():
        sockets.check_folder(str(settings.folder), settings.account, writes=False)
    sockets.look(path)


def make_place(spec: PortSpec, settings: Settings) -> None:
    """Make the folder, if it is ours, and open it to QEMU's user.

    :raises PermissionDeniedError: it cannot be made.
    """
    if not is_ours(socket_of(spec), settings) or settings.folder.exists():
        return
    try:
        _make(settings.folder, settings)
    except OSError as error:
        raise PermissionDeniedError(f"'{settings.folder}' cannot be made: {error.strerror}") from error


def open_socket(path: str, settings: Settings) -> None:
    """Let QEMU's user connect to a socket that a switch made, as far as it is ours to allow."""
    if settings.account is None or os.geteuid() or sockets.may_connect(path, settings.account):
        return
    with contextlib.suppress(OSError):
        _give(path, settings.account.gid)


def _give(path: str, gid: int) -> None:
    """Open a socket, and nothing else: who may write in the folder may put a link in its place."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            held = f"/proc/self/fd/{fd}"
            os.chown(held, -1, gid)
            os.chmod(held, 0o660)
    finally:
        os.close(fd)


def forget_socket(spec: PortSpec, settings: Settings) -> None:
    """Remove what a QEMU that ended left in our folder. Nobody may listen there."""
    if spec.socket is not None and is_ours(spec.socket, settings):
        sockets.remove_stale(spec.socket)


def is_ours(path: str, settings: Settings) -> bool:
    """Whether a socket lies in the folder that the driver makes."""
    return os.path.dirname(path) == str(settings.folder)


def _make(folder: Path, settings: Settings) -> None:
    """Set-group-ID: sockets get the group too, and a switch that is in it may connect."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.account is not None and os.geteuid() == 0:
        os.chown(folder, -1, settings.account.gid)
        os.chmod(folder, 0o2771)
    else:
        os.chmod(folder, 0o755)
