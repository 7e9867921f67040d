"""Both transports on real sockets: who answers, who does not, and who may not be asked."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.client import AsyncClient, Client, Request, Response, candidates
from ringway.client.sockets import AsyncSocketTransport, SocketTransport
from ringway.errors import ControlError, PermissionDeniedError, TimedOutError, UnreachableError
from ringway.testing.waiting import PATIENCE_S

HEAD = b"HTTP/1.1 200 OK\r\n"
Serve = Callable[[list[bytes]], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve one connection: read a request, say these pieces, hang up. :returns: the socket's path."""
    threads = []

    def answer(listener: socket.socket, pieces: list[bytes], hold: threading.Event) -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
            if not pieces:
                hold.wait(PATIENCE_S)

    hold = threading.Event()

    def start(pieces: list[bytes]) -> str:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path := str(tmp_path / "api.sock"))
        listener.listen()
        threads.append(threading.Thread(target=answer, args=(listener, pieces, hold)))
        threads[-1].start()
        return path

    yield start
    hold.set()
    for thread in threads:
        thread.join(PATIENCE_S)


def send(kind: str, path: str, timeout_s: float = 10.0) -> Response:
    request = Request("GET", "/1.0")
    if kind == "blocking":
        return SocketTransport(path, timeout_s).send(request)
    return asyncio.run(AsyncSocketTransport(path, timeout_s).send(request))


both = pytest.mark.parametrize("kind", ["blocking", "awaiting"])


@both
def test_an_answer_comes_in_pieces(serve: Serve, kind: str) -> None:
    path = serve([HEAD[:7], HEAD[7:] + b"transfer-encoding: chunked\r\n\r\n2\r", b"\n{}\r\n0\r\n\r\n"])
    assert send(kind, path) == Response(200, b"{}")


@both
def test_an_answer_that_ends_early_is_a_daemon_that_hung_up(serve: Serve, kind: str) -> None:
    path = serve([HEAD + b"content-length: 5\r\n\r\n{}"])
    with pytest.raises(UnreachableError, match="hung up before"):
        send(kind, path)


@both
def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(serve: Serve, kind: str) -> None:
    path = serve([])
    with pytest.raises(TimedOutError, match=r"within 0\.05 s"):
        send(kind, path, 0.05)


@both
def test_something_else_on_the_socket_is_named(serve: Serve, kind: str) -> None:
    path = serve([b'{"version": 1, "error": {}}\r\n\r\n'])
    with pytest.raises(ControlError, match="does not speak HTTP"):
        send(kind, path)


@both
def test_nobody_is_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnreachableError, match="ringwayd is not there") as caught:
        send(kind, str(tmp_path / "none.sock"))
    assert "systemctl start ringwayd" in str(caught.value.hint)


@both
def test_somebody_was_there(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "left.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with pytest.raises(UnreachableError, match=r"nobody listens on '.*left\.sock'"):
        send(kind, path)


@both
def test_a_path_that_is_too_long_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnreachableError, match="cannot be connected to"):
        send(kind, str(tmp_path / ("x" * 120)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@both
def test_who_may_not_is_told_which_group_may(kind: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="rw-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder) / "api.sock"
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o660)
        path.parent.chmod(0o755)
        told = as_nobody(lambda: send(kind, str(path)))
    assert told == f"you may not use ringwayd's socket|usermod -aG {grp.getgrgid(os.getgid()).gr_name}"


def as_nobody(work: Callable[[], Any]) -> str:
    """Run ``work`` in a child without privilege. :returns: the beginnings of its error."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            work()
        except PermissionDeniedError as error:
            hint = str(error.hint).partition(": ")[2].partition(" $")[0]
            os.write(writer, f"{error.message.partition(' ' + chr(39))[0]}|{hint}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as told:
        return told.read()


def test_events_come_over_a_socket(serve: Serve) -> None:
    event = b'{"sequence":1,"time":"t","kind":"k","object":"o"}\n'
    with Client(serve([HEAD + b"\r\n" + event[:9], event[9:] + b"\n", event])).events.follow() as events:
        assert [event.kind for event in events] == ["k", "k"]


def test_events_are_awaited_over_a_socket(serve: Serve) -> None:
    event = b'{"sequence":1,"time":"t","kind":"k","object":"o"}\n'
    path = serve([HEAD + b"\r\n" + event, event])

    async def follow() -> list[str]:
        return [event.kind async for event in AsyncClient(path).events.follow()]

    assert asyncio.run(follow()) == ["k", "k"]


def test_where_the_daemon_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGWAY_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    system = ("/run/ringway/api.sock", "/run/ringway/ro.sock")
    assert candidates() == (*system, "/run/user/7/ringway/api.sock")
    monkeypatch.setenv("RINGWAY_SOCKET", "/x")
    assert candidates() == ("/x",)
    assert candidates("/y") == ("/y",)
