"""Lines that nobody reads hold up nobody."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ringway import logs
from ringway.logs import MAX_FILE, MAX_WAITING, QueuedHandler, write_line
from ringway.testing.waiting import PATIENCE_S


class Reader:
    """Takes lines when it is let."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.busy = threading.Event()
        self.go_on = threading.Event()

    def take(self, line: str) -> None:
        """Wait, and take a line."""
        self.busy.set()
        self.go_on.wait()
        self.lines.append(line)


def say(handler: logging.Handler, text: str) -> None:
    handler.handle(logging.LogRecord("ringway", logging.INFO, "", 0, text, (), None))


def test_a_stuck_reader_holds_up_nobody_and_learns_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who logged waited for a full pipe, and all that it held with it: the session, the slow path."""
    reader = Reader()
    handler = QueuedHandler(reader.take)
    handler.start()
    say(handler, "0")
    reader.busy.wait()
    for number in range(1, MAX_WAITING + 3):
        say(handler, str(number))
    monkeypatch.setattr(logs, "_FLUSH_S", 0.01)
    handler.flush()
    assert reader.lines == []
    monkeypatch.setattr(logs, "_FLUSH_S", 30.0)
    reader.go_on.set()
    handler.flush()
    *kept, notice = reader.lines
    assert kept == [str(number) for number in range(MAX_WAITING)]
    assert notice == "3 lines of log were dropped: nobody read them in time"


def test_a_line_that_cannot_be_written_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FLUSH_S", 30.0)
    written: list[str] = []

    def write(line: str) -> None:
        if line == "bad":
            raise BrokenPipeError
        written.append(line)

    handler = QueuedHandler(write)
    handler.start()
    for line in ("bad", "good"):
        say(handler, line)
    handler.flush()
    assert written == ["good"]


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    code = (
        "import logging; from ringway import logs; logs.log_directly()\n"
        "log = logging.getLogger('ringway.x')\n"
        "for number in range(3000): log.info('%d %s', number, 'x' * 1000)"
    )
    path = tmp_path / "log"
    with path.open("ab") as file:
        subprocess.run([sys.executable, "-c", code], stderr=file, check=True, timeout=PATIENCE_S)
    assert 0 < path.stat().st_size < MAX_FILE + 2000
    *_, last = path.read_text().splitlines()
    assert json.loads(last)["message"].startswith("2999 ")


def test_a_line_is_written_whole_to_a_pipe_that_does_not_block() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    line = "x" * 300_000

    def write() -> None:
        write_line(writer, line)
        os.close(writer)

    with open(reader, "rb") as out:
        thread = threading.Thread(target=write)
        thread.start()
        assert out.read() == line.encode() + b"\n"
        thread.join()
