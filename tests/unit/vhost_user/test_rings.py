"""When rings start, rest, stop and go on."""

from __future__ import annotations

import struct

import pytest

from ringway.testing.frontend import ORDERS, QEMU, SPDK, Order
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user.messages import (
    NO_FD,
    PROTOCOL_FEATURES,
    ProtocolFeature,
    Request,
    VringFd,
    VringState,
)

from .helpers import REPLY_ACK, Connect, greeted, prepared, refused, settle


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_rings_run_after_every_known_order(
    connect: Connect, device: RecorderDevice, order: Order
) -> None:
    front = connect(order=order).open()
    settle(front)
    assert set(device.running) == device.enabled == {0, 1}
    ring = front.rings[1]
    user = front.memory.user
    setup = device.running[1]
    assert (setup.size, setup.base, setup.log_address) == (8, 0, None)
    assert (setup.descriptors, setup.available, setup.used) == tuple(
        map(user, (ring.descriptors, ring.available, ring.used))
    )
    assert device.acknowledged == front.features & ~PROTOCOL_FEATURES
    assert [region.size_bytes for region in device.memory] == [16 << 20]


@pytest.mark.parametrize("order", [QEMU, SPDK], ids=["qemu", "spdk"])
def test_the_rings_stop_where_the_device_says(connect: Connect, device: RecorderDevice, order: Order) -> None:
    front = connect(order=order).open()
    device.stop_at = {0: 7, 1: 65535}
    assert front.stop() == [7, 65535]
    assert not device.running
    front.start()
    settle(front)
    assert [setup.base for setup in device.running.values()] == [7, 65535]


def test_qemu_has_its_inflight_region_used(connect: Connect, device: RecorderDevice) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    starts = [call for call in device.calls if call[0] == "start_ring"]
    assert all(inflight is not None for _, _, _, inflight in starts)


def test_a_ring_starts_when_the_last_thing_comes_whatever_it_is(
    connect: Connect, device: RecorderDevice
) -> None:
    front = greeted(connect())
    front.set_vring_kick(0)
    front.set_vring_addr(0)
    front.set_vring_num(0)
    settle(front)
    assert not device.running
    front.set_mem_table()
    settle(front)
    assert set(device.running) == {0}


def test_without_protocol_features_all_rings_are_enabled(connect: Connect, device: RecorderDevice) -> None:
    front = connect().connect()
    front.set_features(front.get_features() & ~PROTOCOL_FEATURES)
    settle(front)
    assert device.enabled == {0, 1}


def test_with_protocol_features_no_ring_is_enabled_unasked(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect())
    prepared(front).set_vring_kick(0)
    settle(front)
    assert (set(device.running), device.enabled) == ({0}, set())
    front.set_vring_enable(0, True)
    front.ask(Request.RESET_OWNER)
    settle(front)
    assert device.enabled == set()


def test_after_get_vring_base_a_ring_rests_until_it_is_kicked_anew(
    connect: Connect, device: RecorderDevice
) -> None:
    front = prepared(greeted(connect()))
    front.set_vring_kick(0)
    device.stop_at = {0: 9}
    assert front.get_vring_base(0) == 9
    front.set_vring_addr(0)
    settle(front)
    assert not device.running
    front.set_vring_kick(0)
    settle(front)
    assert device.running[0].base == 9


def test_a_ring_that_never_ran_answers_its_base(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect())
    front.bases = [77, 0]
    front.set_vring_base(0)
    assert front.get_vring_base(0) == 77
    assert "stop_ring" not in device.names()


def test_rings_without_fds_are_polled_and_do_not_interrupt(connect: Connect, device: RecorderDevice) -> None:
    front = prepared(greeted(connect()))
    front.ask(Request.SET_VRING_CALL, VringFd(0, False))
    front.send(Request.SET_VRING_KICK, struct.pack("=Q", NO_FD | 0))
    settle(front)
    assert (device.running[0].kick_fd, device.running[0].call_fd) == (None, None)


def test_a_kick_without_the_fd_that_it_announces_is_refused(connect: Connect, device: RecorderDevice) -> None:
    front = prepared(greeted(connect()))
    refused(front, Request.SET_VRING_KICK, VringFd(0, True))
    assert not device.running


def test_a_new_kick_fd_restarts_a_running_ring_where_it_stands(
    connect: Connect, device: RecorderDevice
) -> None:
    front = prepared(greeted(connect()))
    front.set_vring_kick(0)
    device.stop_at = {0: 12}
    front.set_vring_kick(0)
    settle(front)
    assert device.names()[-3:] == ["start_ring", "stop_ring", "start_ring"]
    assert device.running[0].base == 12


def test_a_new_call_fd_reaches_a_running_ring(connect: Connect, device: RecorderDevice) -> None:
    front = prepared(greeted(connect()))
    front.set_vring_call(0)
    assert "set_ring_call" not in device.names()
    front.set_vring_kick(0)
    front.set_vring_call(0)
    front.ask(Request.SET_VRING_CALL, VringFd(0, False))
    settle(front)
    (_, _, first), (_, _, second) = [call for call in device.calls if call[0] == "set_ring_call"]
    assert isinstance(first, int)
    assert second is None


def test_migration_turns_logging_on_and_off_under_a_running_ring(
    connect: Connect, device: RecorderDevice
) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    device.calls.clear()
    front.start_log()
    settle(front)
    assert device.log is not None
    assert device.names() == ["set_log", "set_features", "set_ring_log", "set_ring_log"]
    assert ("set_ring_log", 1, front.rings[1].used) in device.calls
    device.calls.clear()
    front.stop_log()
    settle(front)
    assert device.calls[:2] == [("set_ring_log", 0, None), ("set_ring_log", 1, None)]
    assert device.names()[2:] == ["set_features", "set_log"]
    assert device.log is None
    assert set(device.running) == {0, 1}


def test_set_log_base_is_answered_with_the_area(connect: Connect) -> None:
    front = greeted(connect(), ProtocolFeature.LOG_SHMFD | REPLY_ACK)
    front.prepare_log()
    front.set_log_base()
    front.ask(Request.SET_LOG_FD, None, [front.rings[0].call_fd], need_reply=True)
    settle(front)


def test_a_running_ring_cannot_be_moved_resized_or_rebased(connect: Connect, device: RecorderDevice) -> None:
    front = prepared(greeted(connect()))
    front.set_vring_kick(0)
    refused(front, Request.SET_VRING_ADDR, front.rings[1].address(0))
    refused(front, Request.SET_VRING_NUM, VringState(0, 4))
    refused(front, Request.SET_VRING_BASE, VringState(0, 1))
    assert set(device.running) == {0}


@pytest.mark.parametrize("size", [0, 3, 65536, 0xFFFFFFFF])
def test_a_size_that_no_ring_has(connect: Connect, size: int) -> None:
    refused(greeted(connect()), Request.SET_VRING_NUM, VringState(0, size))


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (Request.SET_VRING_NUM, VringState(2, 8)),
        (Request.SET_VRING_BASE, VringState(0, 65536)),
        (Request.SET_VRING_ENABLE, VringState(0xFFFFFFFF, 1)),
        (Request.SET_VRING_KICK, VringFd(255, False)),
    ],
)
def test_rings_and_indexes_that_do_not_exist(connect: Connect, request_: Request, value: object) -> None:
    refused(greeted(connect()), request_, value)


def test_features_change_under_a_running_ring_only_while_it_rests(
    connect: Connect, device: RecorderDevice
) -> None:
    front = prepared(greeted(connect()))
    front.set_vring_kick(0)
    settle(front)
    device.calls.clear()
    front.set_features(front.features & ~(1 << 29))
    settle(front)
    assert device.names() == ["stop_ring", "set_features", "start_ring"]


def test_a_ring_that_the_device_refuses_is_refused(connect: Connect, device: RecorderDevice) -> None:
    device.failures["start_ring"] = ValueError("misaligned")
    front = prepared(greeted(connect()))
    refused(front, Request.SET_VRING_KICK, VringFd(0, False))
