"""Sockets of other processes."""

from __future__ import annotations

import socket
from pathlib import Path

from ringway.testing.sockets import is_listening


def test_a_socket_that_is_bound_is_no_socket_that_listens(tmp_path: Path) -> None:
    """A client came between the two, and was refused."""
    path = str(tmp_path / "a b.sock")
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path)
        assert not is_listening(path)
        own.listen()
        assert is_listening(path)
        assert not is_listening(str(tmp_path))
    assert not is_listening(path)
