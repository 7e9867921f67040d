"""Sockets on paths: what may be replaced, and what may not."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from ringway.errors import BusyError, ConflictError, NotFoundError, UsageError
from ringway.target.listen import MAX_PATH_BYTES, listen

from .conftest import Spawn, python

_LISTEN = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


_LISTEN_AS_NOBODY = """
import os, sys
from ringway.errors import PermissionDeniedError
from ringway.target.listen import listen
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    listen(sys.argv[1])
except PermissionDeniedError as error:
    print(error.message, error.hint, sep="; ")
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "x.sock")


def test_a_socket_is_for_owner_and_group(path: str) -> None:
    listener = listen(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()
    assert not os.path.exists(path)


def test_the_mode_can_be_chosen(path: str) -> None:
    listener = listen(path, mode=0o600)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    listener.close()


def test_the_longest_path_works_and_one_more_byte_does_not(tmp_path: Path) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
    listen(str(tmp_path / ("x" * room))).close()
    with pytest.raises(UsageError, match=f"{MAX_PATH_BYTES + 1} bytes") as caught:
        listen(str(tmp_path / ("x" * (room + 1))))
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_an_empty_path_is_none() -> None:
    with pytest.raises(UsageError, match="is empty") as caught:
        listen("")
    assert caught.value.hint


def test_a_directory_that_may_not_be_entered_is_named(tmp_path: Path, spawn: Spawn) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    output, _ = spawn(python(_LISTEN_AS_NOBODY, closed / "x.sock")).communicate()
    assert output.decode().startswith(f"'{closed}' is not writable; take a --socket in")


def test_bytes_are_counted_and_not_letters(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        listen(str(tmp_path / ("ä" * (MAX_PATH_BYTES // 2))))


def test_a_directory_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="missing") as caught:
        listen(str(tmp_path / "missing" / "x.sock"))
    assert "mkdir" in str(caught.value.hint)


def test_a_live_process_is_named_and_left_alone(path: str, spawn: Spawn) -> None:
    process = spawn(python(_LISTEN, path))
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(BusyError) as caught:
        listen(path)
    assert f"pid {process.pid} (" in str(caught.value.holder)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_what_a_dead_process_left_is_replaced(path: str, spawn: Spawn) -> None:
    process = spawn(python(_LISTEN, path))
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert os.path.exists(path)
    listener = listen(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()


def test_a_socket_whose_queue_is_full_is_alive(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(BusyError):
            listen(path)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_socket_stays(path: str, make: object) -> None:
    assert callable(make)
    make(Path(path))
    with pytest.raises(ConflictError, match="not a socket"):
        listen(path)
    assert os.path.lexists(path)


def test_a_path_that_another_took_over_is_not_removed(path: str) -> None:
    first = listen(path)
    os.rename(path, path + ".old")
    second = listen(path)
    first.close()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)


def test_closing_twice_does_not_remove_a_successor(path: str) -> None:
    first = listen(path)
    first.close()
    second = listen(path)
    first.close()
    assert os.path.exists(path)
    second.close()
