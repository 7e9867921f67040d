"""The command as a program, beside a daemon with each engine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringway.testing.daemon import Daemon
from ringway.testing.waiting import PATIENCE_S

from ..daemon.conftest import fake_kernel, lio, plant, user
from ..daemon.plants import Plant

__all__ = ["fake_kernel", "lio", "plant", "user"]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


class Host:
    """A daemon that runs, and a folder in which its user types."""

    def __init__(self, plant: Plant, daemon: Daemon, folder: Path) -> None:
        self.plant = plant
        self.daemon = daemon
        self.folder = folder

    def type(self, *words: str, lines: str = "", socket: Path | None = None) -> Result:
        """Run ``ringway WORD…`` to its end."""
        return self.python("-m", "ringway", *words, lines=lines, socket=socket)

    def python(self, *words: str | Path, lines: str = "", socket: Path | None = None) -> Result:
        """Run a program of Python's that asks this daemon."""
        environment = {**os.environ, "RINGWAY_SOCKET": str(socket or self.daemon.api)}
        done = subprocess.run(
            [sys.executable, *words],
            env=environment,
            cwd=self.folder,
            input=lines,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def do(self, *words: str, lines: str = "") -> str:
        """The same for what has to go well. :returns: what it prints."""
        done = self.type(*words, lines=lines)
        assert (done.status, done.err) == (0, ""), f"ringway {' '.join(words)}: {done}"
        return done.out

    def create(self, name: str, *words: str) -> str:
        """Create an endpoint of the plant's engine."""
        disks = () if "--lun" in words else ("--lun", "0=ram:1M")
        return self.do("endpoint", "create", name, "--engine", self.plant.engine, *disks, *words)

    def image(self, name: str, size_bytes: int = 1 << 20) -> Path:
        """Make a sparse image in the folder."""
        path = self.folder / name
        path.touch()
        os.truncate(path, size_bytes)
        return path


@contextlib.contextmanager
def serving(plant: Plant, folder: Path) -> Iterator[Host]:
    """Run a daemon, for who types in ``folder``."""
    folder.mkdir()
    with plant.daemon() as daemon:
        assert daemon.start()
        yield Host(plant, daemon, folder)


@pytest.fixture
def host(plant: Plant, run_dir: Path) -> Iterator[Host]:
    """A host with each engine in turn."""
    with serving(plant, run_dir / "home") as found:
        yield found


@pytest.fixture
def user_host(user: Plant, run_dir: Path) -> Iterator[Host]:
    """A host with the user engine."""
    with serving(user, run_dir / "home") as found:
        yield found
