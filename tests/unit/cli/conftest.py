"""The command, run in this process when it ends by itself, and in one of its own when it serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ringway.cli.main import cli, exit_status
from ringway.testing.waiting import PATIENCE_S

from .daemon import FakeDaemon

MIB = 1 << 20


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``ringway ARGUMENT…`` in an empty directory; for what ends by itself."""
    monkeypatch.chdir(tmp_path)

    def run_one(*arguments: str | Path) -> Result:
        words = [str(word) for word in arguments]
        status = exit_status(lambda: cli.main(words, prog_name="ringway", standalone_mode=False))
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run_one


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of 16 MiB."""
    return _sparse(tmp_path / "disk.img")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another of them."""
    return _sparse(tmp_path / "other.img")


def _sparse(path: Path) -> Path:
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


class Serving:
    """A program that serves, its log read line by line."""

    def __init__(self, arguments: Sequence[str | Path], folder: Path, pass_fds: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT,HUP", sys.executable, *map(str, arguments)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
        )

    def event(self, name: str) -> dict[str, Any]:
        """Read the log up to an event."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry: dict[str, Any] = json.loads(line)
            if entry.get("event") == name:
                return entry
        raise AssertionError(f"the program ended without {name}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait. :returns: exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


Start = Callable[..., Serving]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``python -m MODULE ARGUMENT…`` in the test's directory; killed at the end."""
    started: list[Serving] = []

    def start_one(*arguments: str | Path, pass_fds: Sequence[int] = ()) -> Serving:
        started.append(Serving(arguments, tmp_path, pass_fds))
        return started[-1]

    yield start_one
    for serving in started:
        serving.process.kill()
        serving.process.communicate()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """The daemon that commands ask."""
    with (
        tempfile.TemporaryDirectory(prefix="rw-") as folder,
        FakeDaemon(Path(folder) / "api.sock").serving() as served,
    ):
        monkeypatch.setenv("RINGWAY_SOCKET", served.socket)
        yield served


@pytest.fixture
def db0(daemon: FakeDaemon, run: Run) -> FakeDaemon:
    """With an endpoint of two disks."""
    assert (
        run("endpoint", "create", "db0", "--lun", "0=/srv/db0.img", "--lun", "1=ram:4G,readonly").status == 0
    )
    daemon.asked.clear()
    return daemon
