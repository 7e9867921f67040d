"""Where a benchmark works: sockets and images in memory, images on a disk; all gone at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringway.bench.plan import Setup

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Two folders that belong to a run.

    Each side has images of its own: some would refuse a disk that another has open.
    """

    memory: Path
    disk: Path

    def socket(self, side: str) -> Path:
        """Where a side listens."""
        return self.memory / f"{_file_name(side)}.sock"

    def image(self, setup: Setup, side: str, lun: int) -> Path:
        """A file of a side's, full of random bytes, so that no store can leave out or share any of it."""
        folder = self.disk if setup.store == "disk" else self.memory
        path = folder / f"{_file_name(side)}-{setup.disk_bytes >> 20}m-{lun}.img"
        if not path.exists():
            _fill(path, setup.disk_bytes)
        return path


@contextmanager
def place(disk_folder: Path) -> Iterator[Place]:
    """Make the folders."""
    with (
        tempfile.TemporaryDirectory(prefix="ringway-", dir="/dev/shm") as memory,
        tempfile.TemporaryDirectory(prefix="ringway-", dir=disk_folder) as disk,
    ):
        yield Place(Path(memory), Path(disk))


def _file_name(side: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in side)


def _fill(path: Path, size: int) -> None:
    chunk, unfinished = os.urandom(_CHUNK), path.with_suffix(".new")
    with unfinished.open("wb") as file:
        for _ in range(size // _CHUNK):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
