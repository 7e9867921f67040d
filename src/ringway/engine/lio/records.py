"""Which objects in the kernel are ours: a small file for each endpoint, which a reboot makes worthless as it
does them. The folder may lie on a disk, so a file says which boot it is of.

A file is written before the first object is made and removed after the last one is gone: whatever a crash
leaves in the kernel has its file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ringway.engine import files
from ringway.errors import PermissionDeniedError, RingwayError, UsageError
from ringway.model import EndpointSpec, LunSpec


@functools.cache
def boot_id() -> str:
    """A name for the time since the host's boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Record(Struct, frozen=True):
    """An endpoint that we made or took over.

    :param places: where backstores lie that are not at the place where we would put them, by name.
    :param passing: LUNs that a change adds or takes away just now; their backstores may be there or not.
    :param adopted: its port was there, and somebody else's.
    :param boot: when it was written; of an earlier boot nothing is left in the kernel.
    """

    spec: EndpointSpec
    places: dict[str, str] = {}
    passing: tuple[LunSpec, ...] = ()
    adopted: bool = False
    boot: str = ""


class Records:
    """All of them; they are read once, and then kept in memory.

    :param folder: made when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._records = dict(_read_all(folder))
        self._by_wwpn = {record.spec.wwpn: name for name, record in self._records.items()}

    def get(self, name: str) -> Record | None:
        """The record of an endpoint."""
        return self._records.get(name)

    def owner_of(self, wwpn: str) -> str | None:
        """Name of the endpoint that has a target port."""
        return self._by_wwpn.get(wwpn)

    def all(self) -> tuple[Record, ...]:
        """Each of them, in the order of making."""
        with self._lock:
            return tuple(self._records.values())

    def place_of(self, backstore: str) -> str | None:
        """Where a backstore lies that an endpoint took over."""
        return next((record.places[backstore] for record in self.all() if backstore in record.places), None)

    def put(self, record: Record) -> None:
        """Keep it, instead of an older one of the same endpoint. :raises RingwayError: it cannot be
        written.
        """
        record = replace(record, boot=boot_id())
        name = record.spec.name
        try:
            try:
                self._write(name, record)
            except FileNotFoundError:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._write(name, record)
        except OSError as error:
            kind = PermissionDeniedError if isinstance(error, PermissionError) else RingwayError
            raise kind(
                f"what the engine makes cannot be noted in '{self._folder}': {error.strerror}",
                hint="it needs root, and some bytes free in /run",
            ) from error
        with self._lock:
            self._records[name] = record
            self._by_wwpn[record.spec.wwpn] = name

    def drop(self, name: str) -> None:
        """Forget it, and what a crash left half-written; one that is not there is fine."""
        for file in (f"{name}.json", f".{name}.new"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder / file)
        with self._lock:
            record = self._records.pop(name, None)
            if record is not None:
                self._by_wwpn.pop(record.spec.wwpn, None)

    def _write(self, name: str, record: Record) -> None:
        """In one step: a crash leaves the old file or the new one."""
        partial = f"{self._folder}/.{name}.new"
        files.write(f"{self._folder}/{name}.json", msgspec.json.encode(record), partial=partial, mode=0o600)


def _read_all(folder: Path) -> list[tuple[str, Record]]:
    """Oldest first; a file that is none of ours, of another version or of an earlier boot, is passed over."""
    found: list[tuple[str, Record]] = []
    paths = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    for path in sorted(paths, key=lambda path: path.lstat().st_mtime_ns):
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeError, RecursionError, UsageError):
            record = msgspec.json.decode(files.read(str(path)), type=Record)
            if record.boot == boot_id() and path.stem == record.spec.name:
                found.append((record.spec.name, record))
    return found
