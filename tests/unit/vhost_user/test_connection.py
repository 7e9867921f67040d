"""The socket: messages whole or not at all, and not one file descriptor too many."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import ProtocolError
from ringway.vhost_user.connection import Connection, OwnedFd, peer_of
from ringway.vhost_user.messages import HEADER, MAX_PAYLOAD

Pair = tuple[socket.socket, Connection]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The peer's end as a bare socket, ours as a connection; no fd may be left over in the end."""
    before = open_fds()
    theirs, ours = socket.socketpair()
    connection = Connection(ours)
    with theirs:
        yield theirs, connection
        connection.close()
    assert open_fds() == before


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def message(request: int = 2, payload: bytes = b"", flags: int = 1) -> bytes:
    return HEADER.pack(request, flags, len(payload)) + payload


def send_fds(endpoint: socket.socket, data: bytes, count: int) -> None:
    fds = [os.eventfd(0) for _ in range(count)]
    socket.send_fds(endpoint, [data], fds)
    for fd in fds:
        os.close(fd)


def test_nothing_came(pair: Pair) -> None:
    assert pair[1].receive() is None


@given(st.binary(max_size=64), st.lists(st.integers(1, 20), min_size=1, max_size=80))
def test_a_message_in_any_pieces(payload: bytes, sizes: list[int]) -> None:
    theirs, ours = socket.socketpair()
    connection = Connection(ours)
    data, found = message(7, payload), None
    with theirs:
        while data and found is None:
            size = sizes.pop() if sizes else 1
            theirs.send(data[:size])
            data = data[size:]
            found = connection.receive()
        assert not data
        assert found is not None
        assert (found.request, found.payload) == (7, payload)
        connection.close()


def test_messages_one_after_the_other_keep_their_fds(pair: Pair) -> None:
    theirs, connection = pair
    theirs.send(message(1))
    send_fds(theirs, message(12, b"x" * 8), 1)
    theirs.send(message(3))
    for request, fds in ((1, 0), (12, 1), (3, 0)):
        found = connection.receive()
        assert found is not None
        assert (found.request, len(found.fds)) == (request, fds)
        found.close()
    assert connection.receive() is None


def test_more_fds_than_any_message_has_are_all_closed(pair: Pair) -> None:
    theirs, connection = pair
    send_fds(theirs, message(5), 253)
    found = connection.receive()
    assert found is not None
    assert len(found.fds) == 253
    found.take_fd().close()
    found.close()


def test_fds_that_come_after_the_first_byte_are_dropped(pair: Pair) -> None:
    theirs, connection = pair
    theirs.send(message(5, b"abcd")[:3])
    assert connection.receive() is None
    send_fds(theirs, message(5, b"abcd")[3:14], 1)
    assert connection.receive() is None
    send_fds(theirs, message(5, b"abcd")[14:], 2)
    found = connection.receive()
    assert found is not None
    assert (found.payload, found.fds) == (b"abcd", [])


def test_fds_of_a_message_that_never_becomes_whole_are_closed(pair: Pair) -> None:
    theirs, connection = pair
    send_fds(theirs, message(5, b"abcd")[:9], 3)
    assert connection.receive() is None


@pytest.mark.parametrize("size", [0, 5, 12, 14])
def test_a_peer_that_hangs_up(pair: Pair, size: int) -> None:
    theirs, connection = pair
    theirs.send(message(5, b"abcd")[:size])
    theirs.close()
    with pytest.raises(EOFError, match="hung up"):
        connection.receive()


def test_a_payload_without_bounds_is_refused_before_it_is_read(pair: Pair) -> None:
    theirs, connection = pair
    send_fds(theirs, HEADER.pack(5, 1, MAX_PAYLOAD + 1), 1)
    with pytest.raises(ProtocolError, match="announces 4097 bytes"):
        connection.receive()


@pytest.mark.parametrize("version", [0, 2, 3])
def test_another_version_is_refused(pair: Pair, version: int) -> None:
    pair[0].send(message(flags=version))
    with pytest.raises(ProtocolError, match=f"version {version}"):
        pair[1].receive()


def test_sending_to_a_peer_that_is_gone_is_its_end_and_no_signal(pair: Pair) -> None:
    theirs, connection = pair
    theirs.close()
    with pytest.raises(EOFError):
        connection.send(1, 4, bytes(8), [OwnedFd(os.eventfd(0))])


def test_a_peer_that_does_not_read_blocks_nobody_and_loses_nothing(pair: Pair) -> None:
    theirs, connection = pair
    ours = connection.fileno()
    copy = socket.socket(fileno=os.dup(ours))
    copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    copy.close()
    sent = 0
    while not connection.pending:
        connection.send(sent, 4, struct.pack("=Q", sent), [OwnedFd(os.eventfd(0))])
        sent += 1
    connection.send(sent, 4, struct.pack("=Q", sent), [OwnedFd(os.eventfd(0))])
    reader, found = Connection(theirs.dup()), 0
    while found <= sent:
        came = reader.receive()
        if came is None:
            connection.flush()
            continue
        assert (came.request, struct.unpack("=Q", came.payload)[0], len(came.fds)) == (found, found, 1)
        came.close()
        found += 1
    assert not connection.pending
    reader.close()


def test_a_message_without_the_fd_that_it_needs(pair: Pair) -> None:
    pair[0].send(message(21))
    found = pair[1].receive()
    assert found is not None
    with pytest.raises(ProtocolError, match="SET_BACKEND_REQ_FD came without"):
        found.take_fd()


def test_the_peer_is_named(pair: Pair) -> None:
    peer = peer_of(pair[0])
    assert peer.pid == os.getpid()
    assert str(peer.pid) in str(pair[1].peer())


def test_an_fd_has_one_owner() -> None:
    fd = OwnedFd(os.eventfd(0))
    number = fd.detach()
    fd.close()
    os.close(number)
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()
