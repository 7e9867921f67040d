"""What goes on at a socket is told without coming to it, whichever network namespace it is in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringway.unix_sockets import Use, connected_paths, is_listening, use_of

_SWITCH = """
import socket, sys
own = socket.socket(socket.AF_UNIX)
own.bind(sys.argv[1])
own.listen()
print("listens", flush=True)
sys.stdin.readline()
accepted, _ = own.accept()
print("accepted", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path() -> Iterator[str]:
    """Where a socket can be; the way there has a space."""
    with tempfile.TemporaryDirectory(prefix="rw-") as folder:
        yield f"{folder}/with space.sock"


def test_who_is_connected_is_told_by_the_kernel(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        assert use_of(path) == Use()
        listener.bind(path)
        listener.listen()
        inode = os.fstat(listener.fileno()).st_ino
        assert use_of(path) == Use(listener=inode)
        client.connect(path)
        assert use_of(path) == Use(listener=inode, waiting=True)
        assert path not in (connected_paths() or ())
        accepted, _ = listener.accept()
        with accepted:
            assert use_of(path) == Use(listener=inode, connected=True)
            assert path in (connected_paths() or ())
        assert use_of(path) == Use(listener=inode)
        assert path not in (connected_paths() or ())


def test_a_socket_that_is_bound_is_no_socket_that_listens(path: str) -> None:
    """A client came between the two, and was refused."""
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path)
        assert not is_listening(path)
        own.listen()
        assert is_listening(path)
        assert not is_listening(str(Path(path).parent))
    assert not is_listening(path)


@contextmanager
def _elsewhere(path: str) -> Iterator[subprocess.Popen[str]]:
    """A switch with a network namespace of its own, which listens."""
    command = ["unshare", "--net", sys.executable, "-c", _SWITCH, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listens\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace is made by root")
def test_a_namespace_of_ones_own_hides_nothing(path: str) -> None:
    with _elsewhere(path) as switch, socket.socket(socket.AF_UNIX) as client:
        assert switch.stdin is not None
        assert switch.stdout is not None
        assert path not in Path("/proc/net/unix").read_text()
        alone = use_of(path)
        assert alone == Use(listener=alone.listener)
        assert alone.listener is not None
        client.connect(path)
        print(file=switch.stdin, flush=True)
        assert switch.stdout.readline() == "accepted\n"
        assert use_of(path) == Use(listener=alone.listener, connected=True)
        assert path in (connected_paths() or ())
