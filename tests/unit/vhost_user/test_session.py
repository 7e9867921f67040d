"""Acknowledgements, the configuration space, the way back, and a device that fails."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import pytest

from ringway.errors import UnreachableError
from ringway.testing.frontend import LIBBLKIO, QEMU, RefusedError
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user import Server
from ringway.vhost_user.messages import (
    STATE,
    U64,
    BackendRequest,
    Flag,
    ProtocolFeature,
    Request,
    VringState,
)

from .helpers import Connect, a_pipe, greeted, refused, settle


def test_need_reply_means_nothing_before_it_was_negotiated(connect: Connect) -> None:
    front = connect().connect()
    front.send(Request.SET_OWNER, b"", flags=Flag.NEED_REPLY)
    assert front.get_features()  # the next reply is this one's


def test_a_request_with_its_own_reply_is_answered_once(connect: Connect) -> None:
    front = greeted(connect())
    assert front.ask(Request.GET_FEATURES, need_reply=True) == front.offered
    assert front.ask(Request.GET_QUEUE_NUM, need_reply=True) == 2


def test_a_request_with_its_own_reply_has_no_nak(connect: Connect) -> None:
    front = greeted(connect())
    front.send(Request.GET_VRING_BASE, STATE.pack(VringState(2, 0)), flags=Flag.NEED_REPLY)
    assert front.hung_up()


def test_an_unknown_request_is_refused_or_else_ignored(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    front = greeted(connect())
    front.send(99, b"any", flags=Flag.NEED_REPLY)
    assert U64.unpack(front.receive(99).payload) == 1
    front.send(98, b"any")
    front.send(Request.IOTLB_MSG, bytes(32))
    settle(front)
    assert "refused request 98: it is not known here" in caplog.text
    assert "refused IOTLB_MSG" in caplog.text


def test_a_flood_of_unknown_requests_does_not_flood_the_log(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    front = greeted(connect())
    for number in range(500):
        front.send(1000 + number, b"")
    settle(front)
    assert 100 <= sum("refused" in record.message for record in caplog.records) < 200


def test_who_comes_back_may_not_complain_anew(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """The count was of a connection: a front end that reconnected could fill the disk all the same."""
    for _ in range(10):
        front = greeted(connect())
        for number in range(50):
            front.send(1000 + number, b"")
        settle(front)
        front.close()
    assert 100 <= sum("refused" in record.message for record in caplog.records) < 200


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_malformed_request_ends_the_session_though_a_nak_was_asked_for(connect: Connect, size: int) -> None:
    front = greeted(connect())
    front.send(Request.SET_FEATURES, bytes(size), flags=Flag.NEED_REPLY)
    assert front.hung_up()


def test_protocol_features_that_were_not_offered_end_the_session(connect: Connect) -> None:
    front = connect().connect()
    front.ask(Request.SET_PROTOCOL_FEATURES, int(ProtocolFeature.PAGEFAULT))
    assert front.hung_up()


@pytest.mark.parametrize(("kind", "config"), [("blk", True), ("scsi", False)])
def test_config_is_offered_to_blk_alone(
    connect: Connect, device: RecorderDevice, kind: str, config: bool
) -> None:
    device.has_config = kind == "blk"
    offered = ProtocolFeature(connect().connect().ask(Request.GET_PROTOCOL_FEATURES))
    assert bool(offered & ProtocolFeature.CONFIG) is config
    assert offered & ~ProtocolFeature.CONFIG == (
        ProtocolFeature.MQ
        | ProtocolFeature.LOG_SHMFD
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.INFLIGHT_SHMFD
        | ProtocolFeature.RESET_DEVICE
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
        | ProtocolFeature.STATUS
    )


def test_the_number_of_queues_and_slots(connect: Connect, device: RecorderDevice) -> None:
    device.queue_number = 17
    front = connect().connect()
    assert front.ask(Request.GET_QUEUE_NUM) == 17  # MQ was not negotiated: SPDK asks all the same
    assert front.ask(Request.GET_MAX_MEM_SLOTS) == 509


@pytest.mark.parametrize(("offset", "size"), [(0, 256), (0, 60), (8, 4), (59, 10), (100, 156), (256, 0)])
def test_any_piece_of_the_configuration_space(
    connect: Connect, device: RecorderDevice, offset: int, size: int
) -> None:
    front = greeted(connect())
    assert front.get_config(offset, size) == device.config().ljust(256, b"\0")[offset : offset + size]


def test_spdk_asks_for_268_bytes_and_gets_them(connect: Connect) -> None:
    front = greeted(connect())
    front.send(Request.GET_CONFIG, struct.pack("=III", 0, 256, 0) + bytes(256))
    assert len(front.receive(Request.GET_CONFIG).payload) == 268


def test_beyond_the_configuration_space_there_is_an_empty_answer(connect: Connect) -> None:
    front = greeted(connect())
    front.send(Request.GET_CONFIG, struct.pack("=III", 1, 256, 0))
    assert front.receive(Request.GET_CONFIG).payload == b""


def test_the_configuration_is_written_where_it_may(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect())
    front.set_config(32, b"\1", need_reply=True)
    assert front.get_config(32, 1) == b"\1"
    with pytest.raises(RefusedError):
        front.set_config(31, b"\1\1", need_reply=True)
    front.set_config(0, b"\1", need_reply=False)  # a guest's mistake does not end its session
    assert front.get_config(0, 1) == b"\0"


def test_a_piece_shorter_than_it_says_ends_the_session(connect: Connect) -> None:
    front = greeted(connect())
    front.send(Request.SET_CONFIG, struct.pack("=III", 32, 1, 0))
    assert front.hung_up()


def test_a_changed_configuration_is_announced(connect: Connect, server: Server) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    for _ in range(3):
        server.config_changed()
        assert front.wait_notice() is BackendRequest.CONFIG_CHANGE_MSG
        assert len(front.get_config()) == 256


def test_a_front_end_that_never_takes_notices_holds_nobody_up(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    while "takes no CONFIG_CHANGE_MSG" not in caplog.text:
        server.config_changed()
    assert len(front.get_config()) == 256


def test_a_notice_that_the_front_end_refuses_is_logged(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    for _ in range(2):
        server.config_changed()
        front.wait_notice(result=1)
    assert caplog.text.count("refused a notice: 1") == 1  # the second answer is read with the third notice


def test_without_a_channel_a_change_is_not_announced(connect: Connect, server: Server) -> None:
    server.config_changed()
    front = connect(order=LIBBLKIO).open()
    server.config_changed()
    assert len(front.get_config()) == 256


@pytest.mark.parametrize("make", [a_pipe, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()])
def test_a_channel_must_be_a_stream_socket(connect: Connect, make: Callable[[], int]) -> None:
    front = greeted(connect())
    fd = make()
    before = len(os.listdir("/proc/self/fd"))
    try:
        refused(front, Request.SET_BACKEND_REQ_FD, None, (fd,))
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(fd)


def test_a_broken_ring_is_told_of_on_its_err_fd(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    server.ring_broken(1, "a chain that never ends")
    assert os.eventfd_read(front.rings[1].err_fd) == 1
    assert "ring 1 is broken: a chain that never ends" in caplog.text
    with pytest.raises(BlockingIOError):
        os.eventfd_read(front.rings[0].err_fd)


def test_an_err_fd_that_is_full_blocks_nobody(connect: Connect, server: Server) -> None:
    front = connect(order=QEMU).open()
    os.eventfd_write(front.rings[0].err_fd, (1 << 64) - 2)
    os.set_blocking(front.rings[0].err_fd, True)
    settle(front)
    server.ring_broken(0, "again")
    settle(front)


def test_a_device_that_fails_ends_the_session_and_nothing_else(
    connect: Connect, device: RecorderDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.failures["set_features"] = OSError(errno.EIO, "the disk fell off")
    front = connect().connect()
    front.set_features(front.get_features())
    assert front.hung_up()
    assert "the disk fell off" in caplog.text
    del device.failures["set_features"]
    settle(connect().open())


def test_leaving_stops_rings_drops_memory_and_says_so(
    connect: Connect, device: RecorderDevice, server: Server
) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    device.calls.clear()
    device.failures["stop_ring"] = OSError(errno.EIO, "it will not stop")
    front.disconnect()
    server.stop()
    assert device.calls[-3:] == [("set_log", None), ("set_memory", ()), ("detached",)]
    assert device.names().count("stop_ring") == 2
    assert device.enabled == set()


def test_the_helpers_that_say_so_do(connect: Connect) -> None:
    """``hung_up`` and ``ask`` can fail: the tests above would not notice otherwise."""
    front = greeted(connect())
    front.timeout_s = 0.05
    assert not front.hung_up()
    front.disconnect()
    with pytest.raises(UnreachableError):
        settle(front)
