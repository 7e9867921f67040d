"""Who QEMU runs as: its rights decide which sockets it can make, and which it can connect to."""

from __future__ import annotations

import os
import pwd

from msgspec import Struct

from ringway.errors import NotFoundError


class Account(Struct, frozen=True, kw_only=True):
    """Who QEMU runs as."""

    name: str
    uid: int
    gid: int
    gids: tuple[int, ...]  #: all of them

    @classmethod
    def named(cls, name: str) -> Account:
        """Look a user up. :raises NotFoundError: there is none of that name."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            hint = "name the user that libvirt runs QEMU as ('user' in /etc/libvirt/qemu.conf)"
            raise NotFoundError(f"there is no user '{name}'", hint=hint) from None
        gids = tuple(os.getgrouplist(name, entry.pw_gid))
        return cls(name=name, uid=entry.pw_uid, gid=entry.pw_gid, gids=gids)
