"""How often endpoints were started again, in a file that goes with the host: daemons come and go."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_log: Final = logging.getLogger(__name__)


class _Kept(Struct, frozen=True):
    """The file; of another boot it counts for nothing, for its folder may lie on a disk."""

    boot: str
    restarts: dict[str, int]


class Restarts:
    """The counts. What cannot be read or written down is counted all the same, in this life.

    :param path: of the file; ``None``: there is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._boot = _BOOT.read_text(encoding="ascii").strip()
        self._of = _read(path, self._boot) if path is not None else {}

    def of(self, name: str) -> int:
        """Since the endpoint's creation, or the host's boot."""
        return self._of.get(name, 0)

    def count(self, name: str) -> None:
        """One more."""
        self._of[name] = self.of(name) + 1
        self._write()

    def forget(self, name: str) -> None:
        """The endpoint is gone."""
        if self._of.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        """Whole or not at all."""
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(_Kept(self._boot, self._of)))
            new.rename(self._path)
        except OSError as error:
            _log.warning("restarts cannot be noted in '%s': %s", self._path, error.strerror)


def _read(path: Path, boot: str) -> dict[str, int]:
    with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        return kept.restarts if kept.boot == boot else {}
    return {}
