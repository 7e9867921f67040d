"""Records, processes and last words of the user engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.engine.user import records
from ringway.engine.user.figures import figures_of
from ringway.engine.user.places import MAX_SOCKET_PATH, Places, is_locked
from ringway.engine.user.processes import Identity, Process
from ringway.engine.user.records import Record
from ringway.engine.user.watch import Watch
from ringway.engine.user.words import last_words
from ringway.errors import UsageError
from ringway.model import (
    BackstoreSpec,
    EndpointSpec,
    Latency,
    LunSpec,
    LunStatistics,
    SpecKind,
    TargetStatistics,
)
from ringway.testing.waiting import PATIENCE_S


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def found(process: subprocess.Popen[bytes]) -> Process:
    one = Process.find(Identity.of(process.pid))
    assert one is not None
    return one


def test_a_process_is_known_until_it_ends(child: subprocess.Popen[bytes]) -> None:
    one = found(child)
    assert (one.pid, one.alive) == (child.pid, True)
    assert not one.wait(0.001)
    one.signal(signal.SIGKILL)
    assert one.wait(PATIENCE_S)
    assert Process.find(one.identity) is None, "it ended, even if nobody waited for it"
    one.signal(signal.SIGKILL)
    child.wait(PATIENCE_S)
    assert Process.find(one.identity) is None
    with pytest.raises(ProcessLookupError):
        Identity.of(child.pid)


@pytest.mark.parametrize("other", [{"started": 1}, {"boot": "another"}])
def test_a_number_that_was_given_out_again_is_another_process(
    child: subprocess.Popen[bytes], other: dict[str, object]
) -> None:
    assert Process.find(replace(Identity.of(child.pid), **other)) is None


def test_a_process_is_found_whatever_it_is_called() -> None:
    """Its name stands before its start time, and may have parentheses and spaces."""
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (', 0, 0, 0); print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert Identity.of(process.pid).started >= Identity.of(os.getpid()).started
        process.kill()


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = str(tmp_path / "db0.json")
    record = Record(process=Identity(1, 2, "boot"), spec=EndpointSpec(name="db0"))
    assert records.read(path) is None
    records.write(path, record)
    changed = replace(record, pending=EndpointSpec(name="db0", queues=2))
    records.write(path, changed)
    assert records.read(path) == changed
    with pytest.raises(OSError, match="No such file"):
        records.write(str(tmp_path / "gone" / "db0.json"), record)
    assert os.listdir(tmp_path) == ["db0.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1", b'{"version": 2}'])
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert records.read(str(tmp_path / "x.json")) is None


def test_a_record_of_a_later_version_is_none(tmp_path: Path) -> None:
    path = str(tmp_path / "x.json")
    records.write(path, Record(process=Identity(1, 2, "boot"), spec=EndpointSpec(name="x"), version=2))
    assert records.read(path) is None


def line(level: str, message: str, **more: str) -> str:
    return json.dumps({"level": level, "message": message, **more}) + "\n"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", None),
        (line("info", "serving"), None),
        (line("error", "before") + line("info", "x", event="starting"), None),
        (
            line("info", "x", event="starting")
            + line("warning", "a")
            + line("info", "b")
            + line("error", "c"),
            "a; c",
        ),
        (
            line("critical", "it failed", exception="Traceback:\n  x\nValueError: no"),
            "it failed: ValueError: no",
        ),
        (
            "thread 'w' panicked\n" + line("critical", "killed by SIGABRT"),
            "thread 'w' panicked; killed by SIGABRT",
        ),
        ("".join(line("error", str(number)) for number in range(9)), "5; 6; 7; 8"),
        (line("info", "x" * 40_000) + line("error", "the end"), "the end"),
        ('[1]\n{"level": "error"}\n', "[1]"),
    ],
)
def test_last_words(tmp_path: Path, log: str, words: str | None) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert (last_words(str(path)) or "").endswith(words or "")
    assert (last_words(str(path)) is None) == (words is None)


def test_who_wrote_nothing_has_no_last_words(tmp_path: Path) -> None:
    assert last_words(str(tmp_path / "none")) is None


def test_the_longest_name_is_found_out_before_anything_is_made() -> None:
    folder = Path("/run/ringway")
    room = MAX_SOCKET_PATH - len("/run/ringway/endpoint/.sock.ctl")
    Places(folder).of("x" * room).check()
    with pytest.raises(UsageError, match="too long") as refusal:
        Places(folder).of("x" * (room + 1)).check()
    assert refusal.value.hint == f"take a name of at most {room} bytes"


def test_a_log_is_locked_by_who_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert not is_locked(str(path))
    path.touch()
    assert not is_locked(str(path))
    code = f"import fcntl; f = open({str(path)!r}); fcntl.flock(f, 2); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert is_locked(str(path))
        other.kill()


class Ears:
    """Hears names, and waits for them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.heard = threading.Event()

    def notify(self, name: str) -> None:
        """As an engine calls it; the first name is too much for it."""
        self.names.append(name)
        self.heard.set()
        if len(self.names) == 1:
            raise ValueError("too much")

    def wait(self) -> None:
        """Until one more was heard."""
        assert self.heard.wait(PATIENCE_S)
        self.heard.clear()


def test_ends_are_told_once_whenever_they_come_and_whoever_fails() -> None:
    command = [sys.executable, "-c", "input()"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    ears, watch = Ears(), Watch()
    for number, process in enumerate(processes):
        watch.add(f"db{number}", found(process))
    processes[0].kill()
    processes[0].wait()
    watch.start(ears.notify)
    ears.wait()
    watch.forget("db1")
    for process in processes[1:]:
        process.kill()
        process.wait()
        process.stdin.close()  # type: ignore[union-attr]
    processes[0].stdin.close()  # type: ignore[union-attr]
    ears.wait()
    watch.close()
    watch.close()
    assert ears.names == ["db0", "db2"]


def test_figures_are_of_the_luns_that_there_are() -> None:
    null = BackstoreSpec(SpecKind.NULL, size_bytes=512)
    spec = EndpointSpec(name="db0", luns=(LunSpec(0, 1, null), LunSpec(2, 0, null)))
    told = [
        LunStatistics(*address, 5, 0, 0, 0, 0, 0, 0, 0, Latency(), Latency()) for address in ((0, 0), (2, 0))
    ]
    figures = figures_of(spec, TargetStatistics(1.0, tuple(told), (), ()))
    assert [(lun.target, lun.lun, lun.reads) for lun in figures.luns] == [(0, 1, 0), (2, 0, 5)]
