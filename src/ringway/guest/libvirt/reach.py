"""Whether QEMU, as the user that libvirt runs it as, gets to a socket."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import time
from pathlib import Path
from typing import Final

from lxml import etree
from msgspec import Struct

from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError
from ringway.guest.aliases import look_at, spoken
from ringway.unix_sockets import Use, use_of

_LABEL: Final = re.compile(r"\+?([\w.-]+):\+?([\w.-]+)")
_HANG_UP_S: Final = 3.0  #: until a back end has noticed that its front end went


class User(Struct, frozen=True):
    """Who QEMU runs as."""

    uid: int
    groups: frozenset[int]

    @property
    def name(self) -> str:
        """A name, or the number that has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"user {self.uid}"

    @property
    def group_names(self) -> list[str]:
        """Of its groups, those that have one."""
        found = (entry.gr_name for entry in grp.getgrall() if entry.gr_gid in self.groups)
        return sorted(found)


def user_of(xml: str) -> User | None:
    """Read it from a domain's XML (its label of the model ``dac``) or from libvirt's capabilities.

    :returns: ``None`` if it is not said.
    """
    root = etree.fromstring(xml.encode())
    labels = root.xpath(
        "string(/domain/seclabel[@model='dac']/label | //secmodel[model='dac']/baselabel[@type='kvm'])"
    )
    match = _LABEL.fullmatch(str(labels).strip())
    return _user(match[1], match[2]) if match else None


def _user(user: str, group: str) -> User | None:
    try:
        uid = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        return None
    return User(uid, frozenset({gid, *_further_groups(uid)}))


def _further_groups(uid: int) -> list[int]:
    """Groups that libvirt gives QEMU besides: those of the user."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(entry.pw_name, entry.pw_gid)


def check_free(path: str, alias: str) -> None:
    """Refuse a socket at which QEMU would wait for ever, and its guest with it.

    :param alias: the device that is to connect there.
    :raises NotFoundError: nobody listens there.
    :raises BusyError: somebody is connected already, and stays; a back end serves one front end.
    """
    deadline = time.monotonic() + _HANG_UP_S
    while (use := use_of(path)).listener is None or use.connected or use.waiting:
        if use == Use():
            raise NotFoundError(
                f"nobody listens at {path}, for {spoken(alias)}", hint=f"see: {look_at(alias)}"
            )
        if time.monotonic() > deadline:
            raise BusyError(
                f"somebody is connected to {spoken(alias)} already, at {path}",
                hint=f"take it away there first; see: {look_at(alias)}",
            )
        time.sleep(0.02)


def check_socket(path: str, user: User | None) -> None:
    """:raises ConflictError: ``user`` does not get to a socket; the message names what is in the way."""
    if user is not None and user.uid != 0 and Path(path).exists():
        _check_way(Path(path), user)


def check_folder(path: str, user: User | None) -> None:
    """Refuse a place where QEMU could not make a socket.

    :raises NotFoundError: the folder is not there.
    :raises ConflictError: ``user`` may not write there, or does not get there.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", hint=f"mkdir -p {folder}")
    if user is not None and user.uid != 0:
        _check_way(folder, user)


def _check_way(path: Path, user: User) -> None:
    """:raises ConflictError: ``user`` may not pass a folder on the way, or not write at its end."""
    for folder in reversed(path.parents):
        if not _may(folder, user, stat.S_IXOTH):
            raise _blocked(user, "pass", folder, f"chmod o+x {folder}, or let sockets lie elsewhere")
    if not _may(path, user, stat.S_IWOTH):
        raise _blocked(user, "write to", path, _opening(path, user))


def _opening(path: Path, user: User) -> str:
    """How to let a user write, and nobody else."""
    if not user.group_names:
        return f"chown {user.uid} {path}"
    group = user.group_names[0]
    now = f"chgrp {group} {path} && chmod g+w {path}"
    return (
        now if path.is_dir() else f'{now}; for all endpoints: group = "{group}" below [user] in ringway.toml'
    )


def _may(path: Path, user: User, right: int) -> bool:
    if _has_list(path):
        return True  # the mode says nothing then
    status = path.stat()
    shift = 6 if status.st_uid == user.uid else 3 if status.st_gid in user.groups else 0
    return bool(status.st_mode >> shift & right)


def _has_list(path: Path) -> bool:
    """Whether an access control list, which is not read here, decides."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _blocked(user: User, verb: str, path: Path, hint: str) -> RingwayError:
    return ConflictError(f"QEMU runs as {user.name}, who may not {verb} {path}", hint=hint)
