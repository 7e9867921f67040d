"""Real things to serve: images on a file system with direct I/O, and other processes that use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

MIB = 1 << 20
Spawn = Callable[[Sequence[str | Path]], "subprocess.Popen[bytes]"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of 16 MiB."""
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start processes that are killed at the end, with stdin held open."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def qemu_io() -> str:
    """The path of qemu-io, which ``make system`` installs."""
    path = shutil.which("qemu-io")
    assert path is not None, "qemu-io is missing: run `make system`"
    return path


def python(script: str, *arguments: str | Path) -> list[str]:
    """The command that runs a script in another process."""
    return [sys.executable, "-c", script, *map(str, arguments)]
