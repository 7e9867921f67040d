"""The control socket: its language, and clients that do not speak it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import BusyError, ControlError, NotFoundError, UnreachableError
from ringway.model import (
    BackstoreSpec,
    ControlRequest,
    Done,
    DrainRequest,
    LunAddRequest,
    LunRemoveRequest,
    LunSpec,
    QuitRequest,
    SpecKind,
)
from ringway.target import control
from ringway.target.control import ControlClient, ControlServer, decode_request
from ringway.target.listen import listen
from ringway.testing.waiting import PATIENCE_S


class Recorder:
    """A handler that keeps what it was asked, and what was in the file that came along."""

    def __init__(self) -> None:
        self.requests: list[ControlRequest] = []
        self.contents: list[bytes | None] = []
        self.answer: Any = Done()

    def __call__(self, request: ControlRequest, fd: int | None) -> msgspec.Struct:
        self.requests.append(request)
        self.contents.append(None if fd is None else os.pread(fd, 64, 0))
        if isinstance(self.answer, Exception):
            raise self.answer
        answer: msgspec.Struct = self.answer() if callable(self.answer) else self.answer
        return answer


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "x.ctl")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def server(path: str, recorder: Recorder) -> Iterator[ControlServer]:
    server = ControlServer(listen(path, mode=0o600), recorder)
    yield server
    server.close()


def raw(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE_S)
    client.connect(path)
    return client


def ask(client: socket.socket, line: bytes) -> dict[str, Any]:
    client.sendall(line + b"\n")
    with client.makefile("rb") as answers:
        answer: dict[str, Any] = json.loads(answers.readline())
    return answer


def test_a_request_is_answered(path: str, server: ControlServer, recorder: Recorder) -> None:
    with ControlClient(path) as client:
        assert client.call(DrainRequest(2.5), Done) == Done()
        assert client.call(LunRemoveRequest(0, 1), Done) == Done()
    assert recorder.requests == [DrainRequest(2.5), LunRemoveRequest(0, 1)]


def test_the_language_is_what_the_manual_says(path: str, server: ControlServer, recorder: Recorder) -> None:
    with raw(path) as client:
        assert ask(client, b'{"version":1,"verb":"quit"}') == {"version": 1, "ok": {"complete": True}}
    assert recorder.requests == [QuitRequest()]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"[]",
        b'{"version":1}',
        b'{"verb":"info"}',
        b'{"version":1,"verb":"fly"}',
        b'{"version":2,"verb":"info"}',
        b'{"version":1,"verb":"info","extra":1}',
        b'{"version":1,"verb":"lun-remove","target":0,"lun":99999}',
        b'{"version":1,"verb":"lun-remove","target":-1,"lun":0}',
        b'{"version":1,"verb":"drain","timeout_s":1e9}',
        b"\xff\xfe",
        b"[" * 20000,
    ],
)
def test_nonsense_is_answered_with_an_error_and_the_connection_lives(
    path: str, server: ControlServer, recorder: Recorder, line: bytes
) -> None:
    with raw(path) as client:
        answer = ask(client, line)
        assert answer["error"]["code"] == "control"
        assert answer["error"]["message"]
        assert recorder.requests == []
        assert "ok" in ask(client, b'{"version":1,"verb":"info"}')


def test_an_unknown_verb_is_named() -> None:
    with pytest.raises(ControlError, match="'fly'"):
        decode_request(b'{"version":1,"verb":"fly"}')


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(ControlError, match="version 7"):
        decode_request(b'{"version":7,"verb":"info"}')


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_control_error(line: bytes) -> None:
    with contextlib.suppress(ControlError):
        decode_request(line)


def test_an_error_keeps_its_class(path: str, server: ControlServer, recorder: Recorder) -> None:
    with ControlClient(path) as client:
        recorder.answer = NotFoundError("there is no LUN 3", hint="look at info")
        with pytest.raises(NotFoundError, match="no LUN 3") as caught:
            client.call(LunRemoveRequest(0, 3), Done)
        assert caught.value.hint == "look at info"
        recorder.answer = BusyError("in use", holder="pid 1")
        with pytest.raises(BusyError, match="in use"):
            client.call(LunRemoveRequest(0, 3), Done)


def test_a_fault_of_ours_is_an_answer_too(path: str, server: ControlServer, recorder: Recorder) -> None:
    recorder.answer = ZeroDivisionError("oops")
    with raw(path) as client:
        assert ask(client, b'{"version":1,"verb":"info"}')["error"]["code"] == "failed"


def test_a_file_rides_along(path: str, server: ControlServer, recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"content")
    request = LunAddRequest(LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, "disk")))
    with ControlClient(path) as client, open(tmp_path / "disk", "rb") as file:
        client.call(request, Done, fd=file.fileno())
        client.call(request, Done)
    assert recorder.requests == [request, request]
    assert recorder.contents == [b"content", None]


def test_fds_that_nobody_takes_are_closed(path: str, server: ControlServer) -> None:
    reader, writer = os.pipe()
    with raw(path) as client:
        socket.send_fds(client, [b'{"version":1,"verb":"info"}\n'], [writer] * 5)
        os.close(writer)
        client.recv(4096)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(4096) == b""
    assert os.read(reader, 1) == b"", "the end of the pipe: nobody has its other side any more"
    os.close(reader)


def test_a_line_without_an_end_is_cut_off(path: str, server: ControlServer) -> None:
    with raw(path) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"x" * (control.MAX_LINE * 1000))
    with ControlClient(path) as client:
        client.call(QuitRequest(), Done)


def test_silent_clients_do_not_keep_others_out_for_long(
    path: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.05)
    server = ControlServer(listen(path), recorder)
    silent = [raw(path) for _ in range(control.MAX_CLIENTS)]
    for client in silent:
        assert client.recv(1) == b"", "hung up after its time"
    monkeypatch.undo()
    with ControlClient(path) as patient:
        patient.call(QuitRequest(), Done)
    for client in silent:
        client.close()
    server.close()


def test_too_many_clients_are_turned_away(path: str, server: ControlServer) -> None:
    clients = [raw(path) for _ in range(control.MAX_CLIENTS)]
    for client in clients:
        ask(client, b'{"version":1,"verb":"info"}')
    with raw(path) as surplus:
        assert surplus.recv(1) == b""
    for client in clients:
        client.close()


def test_what_was_asked_before_the_end_is_answered(path: str, recorder: Recorder) -> None:
    server = ControlServer(listen(path), recorder)
    asked, go_on = threading.Event(), threading.Event()

    def answer() -> Done:
        asked.set()
        assert go_on.wait(PATIENCE_S)
        return Done()

    recorder.answer = answer
    with raw(path) as client:
        client.sendall(b'{"version":1,"verb":"quit"}\n')
        assert asked.wait(PATIENCE_S)
        closing = threading.Thread(target=server.close)
        closing.start()
        go_on.set()
        assert json.loads(client.recv(4096)) == {"version": 1, "ok": {"complete": True}}
        closing.join()
    assert not os.path.exists(path)


def test_the_socket_is_its_owners(path: str, server: ControlServer) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_target_that_is_not_there_is_unreachable(path: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        ControlClient(path)
    assert caught.value.hint
