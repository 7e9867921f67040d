"""Front ends come, go, come twice, and misbehave; the server serves the next one."""

from __future__ import annotations

import gc
import os
import random
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ringway.errors import UnreachableError
from ringway.testing.frontend import QEMU, SPDK, FrontEnd
from ringway.testing.recorder import RecorderDevice
from ringway.testing.waiting import PATIENCE_S
from ringway.vhost_user import Server
from ringway.vhost_user.messages import HEADER, ProtocolFeature, Request

Connect = Callable[..., FrontEnd]


def served(front: FrontEnd) -> bool:
    """Whether the server talks to this front end."""
    try:
        return bool(front.get_features())
    except UnreachableError:
        return False


def open_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_second_front_end_is_turned_away_by_name(
    connect: Connect, device: RecorderDevice, caplog: pytest.LogCaptureFixture
) -> None:
    first = connect().open()
    assert served(first)
    second = connect().connect()
    assert second.hung_up()
    assert served(first)
    assert set(device.running) == {0, 1}
    assert f"turned away pid {os.getpid()} (" in caplog.text


def test_who_says_nothing_makes_room(
    connect: Connect, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that connected and kept silent, or said half a message, kept every front end out."""
    monkeypatch.setattr("ringway.vhost_user.server._SILENCE_S", 0.0)
    caplog.set_level("INFO")
    for half in (b"", HEADER.pack(Request.GET_FEATURES, 1, 0)[:5]):
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            silent.send(half)
            front = connect().connect()
            assert served(front)
            assert silent.recv(1) == b""
            assert connect().connect().hung_up()
            assert served(front)
            front.disconnect()
    assert caplog.text.count("it said nothing") == 2


def test_a_peer_that_comes_and_goes_does_not_fill_the_log(
    device: RecorderDevice, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two lines for each connection: an unread log was full soon, and the server stood still."""
    monkeypatch.setattr("ringway.vhost_user.throttle.INTERVAL_S", 1e9)
    caplog.set_level("INFO")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with Server(listener, device):
        for _ in range(30):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
        with FrontEnd(path, queues=2, queue_size=8) as front:
            while not served(front.connect()):
                front.disconnect()
    assert len(caplog.records) == 10


def test_a_front_end_that_comes_back_finds_its_rings(connect: Connect, device: RecorderDevice) -> None:
    front = connect(order=QEMU).open()
    for _ in range(20):
        front.reconnect()  # at once: the server still has to notice that the old one left
    assert served(front)
    assert set(device.running) == device.enabled == {0, 1}
    assert device.names().count("detached") == 20


def test_who_left_with_words_unread_makes_room_all_the_same(connect: Connect, device: RecorderDevice) -> None:
    for _ in range(20):
        front = connect().connect()
        for _ in range(100):
            front.send(Request.SET_OWNER, b"")
        front.disconnect()
        following = connect().connect()
        assert served(following)
        following.disconnect()


def test_a_message_that_is_never_finished_keeps_nobody_up(connect: Connect, server: Server) -> None:
    front = connect().connect()
    assert served(front)
    endpoint = socket.socket(fileno=os.dup(front._socket().fileno()))
    with endpoint:
        endpoint.send(HEADER.pack(Request.SET_FEATURES, 1, 8) + b"half")
    server.stop()
    assert front.hung_up()


def test_a_front_end_that_takes_no_answers_holds_up_nobody_but_itself(connect: Connect) -> None:
    front = connect().connect()
    endpoint = socket.socket(fileno=os.dup(front._socket().fileno()))
    asked = 0
    with endpoint:
        endpoint.setblocking(False)
        while _try_send(endpoint, HEADER.pack(Request.GET_FEATURES, 1, 0)):
            asked += 1
    offered = {front.receive(Request.GET_FEATURES).payload for _ in range(asked)}
    assert len(offered) == 1
    front.disconnect()
    assert served(connect().connect())


def _try_send(endpoint: socket.socket, data: bytes) -> bool:
    """Give the server a while to read before it is taken for stuck."""
    try:
        endpoint.send(data)
    except BlockingIOError:
        poller = select.poll()
        poller.register(endpoint, select.POLLOUT)
        if not poller.poll(500):
            return False
        endpoint.send(data)
    return True


def test_stop_ends_the_session_from_another_thread(
    connect: Connect, device: RecorderDevice, server: Server
) -> None:
    front = connect(order=QEMU).open()
    assert served(front)
    threads = [threading.Thread(target=server.stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.wait(0)
    assert front.hung_up()
    assert device.names()[-1] == "detached"
    assert device.running == {}
    assert server.peer is None
    with pytest.raises(UnreachableError):
        connect().connect()


def test_a_server_that_was_never_started_can_be_stopped(device: RecorderDevice) -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    Server(ours, device).stop()
    theirs.close()
    assert open_fds() == before


def test_a_connected_socket_is_served_until_its_front_end_leaves(device: RecorderDevice) -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    server = Server(ours, device)
    server.start()
    with theirs, FrontEnd(theirs, queues=2, queue_size=8) as front:
        front.open()
        assert served(front)
        assert server.peer is not None
        assert server.peer.pid == os.getpid()
    assert server.wait(PATIENCE_S)
    server.stop()
    assert device.names()[-1] == "detached"
    assert open_fds() == before


def test_a_failure_to_end_a_session_does_not_end_the_server(
    connect: Connect, device: RecorderDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.failures["detached"] = OSError("no")
    connect().open().disconnect()
    assert served(connect().connect())
    assert "did not end cleanly" in caplog.text


def _leave_in_the_middle(front: FrontEnd) -> None:
    fds = [front.rings[0].kick_fd, front.memory.fd]
    with socket.socket(fileno=os.dup(front._socket().fileno())) as endpoint:
        socket.send_fds(endpoint, [HEADER.pack(Request.ADD_MEM_REG, 1, 40)], fds)


def _send_surplus_fds(front: FrontEnd) -> None:
    fds = [front.memory.fd] * 30
    for request in (Request.SET_OWNER, Request.SET_LOG_FD, Request.RESET_OWNER, Request.GET_FEATURES, 77):
        front.send(request, b"", fds)


def _replace_every_fd(front: FrontEnd) -> None:
    for _ in range(3):
        for index in range(2):
            front.set_vring_kick(index)
            front.set_vring_call(index)
            front.set_vring_err(index)
        front.set_mem_table()
        front.get_inflight_fd()
        front.set_inflight_fd()
        if front.protocol & ProtocolFeature.BACKEND_REQ:
            front.open_channel()


def _be_shown_the_door(front: FrontEnd) -> None:
    front.send(Request.SET_VRING_KICK, bytes(7), [front.memory.fd] * 5)


def _ask_and_not_listen(front: FrontEnd) -> None:
    for _ in range(5):
        front.send(Request.GET_INFLIGHT_FD, bytes(16) + b"\2\0\x08\0")


MISDEEDS = [
    _leave_in_the_middle,
    _send_surplus_fds,
    _replace_every_fd,
    _be_shown_the_door,
    _ask_and_not_listen,
]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda function: function.__name__)
def test_no_fd_is_left_over_after_a_hundred_sessions(
    device: RecorderDevice, path: Path, misdeed: Callable[[FrontEnd], None]
) -> None:
    counts = []
    for number in range(101):
        with FrontEnd(path, queues=2, queue_size=8, order=(QEMU, SPDK)[number % 2]) as front:
            front.open()
            misdeed(front)
        device.calls.clear()  # they hold regions
        if number % 100 == 0:
            counts.append(_settled_fds(path))
    assert counts[0] == counts[1]


def _settled_fds(path: Path) -> int:
    """How many fds are open while one front end, which came after all others had left, is connected."""
    with FrontEnd(path, queues=1, queue_size=8) as front:
        front.connect()
        assert served(front)
        return open_fds()


def test_random_moments_of_leaving(connect: Connect, path: Path) -> None:
    """A front end that is cut off after any of its messages."""
    steps = random.Random(4711)
    for _ in range(100):
        with FrontEnd(path, queues=2, queue_size=8) as front:
            front.connect()
            front.run(QEMU.connect[: steps.randrange(len(QEMU.connect))])
            if front.offered:
                front.run(QEMU.start[: steps.randrange(len(QEMU.start))])
    assert served(connect().open())
