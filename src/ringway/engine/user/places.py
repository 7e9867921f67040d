"""Where an endpoint's sockets and files are, below the host's runtime folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from msgspec import Struct

from ringway import control
from ringway.engine.files import open_regular
from ringway.engine.user.records import SUFFIX, UNFINISHED
from ringway.errors import UsageError

MAX_SOCKET_PATH: Final = 107  #: bytes of sun_path without its terminating zero


class Places(Struct, frozen=True):
    """The folders of one host (``/run/ringway``)."""

    run: Path

    @property
    def endpoints(self) -> Path:
        """The folder of all endpoints' files."""
        return self.run / "endpoint"

    @property
    def spawner(self) -> Path:
        """Where the spawner listens."""
        return self.run / "spawner.sock"

    def of(self, name: str) -> EndpointPlaces:
        """The files of one endpoint."""
        return EndpointPlaces(self.endpoints, name)

    def names(self) -> list[str]:
        """The endpoints that have a record, in order; none when the folder cannot be read."""
        try:
            files = os.listdir(self.endpoints)
        except OSError:
            return []
        return sorted(file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX))


class EndpointPlaces(Struct, frozen=True):
    """The files of one endpoint: all of them begin with its name."""

    folder: Path
    name: str

    @property
    def socket(self) -> str:
        """Where front ends come."""
        return str(self.folder / f"{self.name}.sock")

    @property
    def control(self) -> str:
        """Where its driver comes."""
        return self.socket + control.SUFFIX

    @property
    def record(self) -> str:
        """Who serves it, and what."""
        return str(self.folder / f"{self.name}{SUFFIX}")

    @property
    def log(self) -> str:
        """What its target says; locked while there is one."""
        return str(self.folder / f"{self.name}.log")

    def check(self) -> None:
        """:raises UsageError: the name is too long for a socket in this folder."""
        length = len(os.fsencode(self.control))
        if length > MAX_SOCKET_PATH:
            raise UsageError(
                f"the name '{self.name}' is too long: its socket's path would have {length} bytes, and can "
                f"have {MAX_SOCKET_PATH}",
                hint=f"take a name of at most {len(os.fsencode(self.name)) + MAX_SOCKET_PATH - length} bytes",
            )

    def remove(self) -> None:
        """Remove all of them; nobody serves the endpoint. A socket's name on what is none is not ours."""
        for path, is_ours in (
            *((path, stat.S_ISSOCK) for path in (self.socket, self.control)),
            *((path, stat.S_ISREG) for path in (self.record, self.record + UNFINISHED, self.log)),
        ):
            with contextlib.suppress(FileNotFoundError):
                if is_ours(os.lstat(path).st_mode):
                    os.unlink(path)


def is_locked(path: str) -> bool:
    """Whether a target that lives has a log: it is locked by who writes it."""
    try:
        fd = open_regular(path)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
