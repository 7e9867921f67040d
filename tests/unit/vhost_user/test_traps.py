"""Traps of known front ends, numbered as all over this project; each test names its own.

* T1: QEMU offers guests feature bits that the back end never had, and they come back acknowledged.
* T2: QEMU's in-flight description is 24 bytes, not 20, and it takes no other size for an answer.
* T3: QEMU's vhost-user-scsi never sends SET_STATUS(DRIVER_OK).
* T4: SET_VRING_ENABLE comes for rings that have no address.
* T5: SET_INFLIGHT_FD comes before memory and rings.
* T6: a device that starts while logging is on is kicked before its log is known; only ENABLE follows.
* T7: after a back end died, SET_VRING_BASE is the used index; the in-flight region knows what was taken.
* T8: after a migration a fresh in-flight region meets a ring that is not fresh.
* T9: GET_VRING_BASE is waited for in QEMU's main loop, and must not be answered before the drain.
* T11: RESET_DEVICE comes with every guest reset, and for a migration's destination while the source runs.
* T12: REM_MEM_REG brings an fd that nobody needs.

T7 and T8 go on in the core, which has tests of its own.
"""

from __future__ import annotations

import os

import pytest

from ringway.testing.frontend import QEMU
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user.messages import (
    INFLIGHT,
    LOG_ALL,
    PROTOCOL_FEATURES,
    Inflight,
    ProtocolFeature,
    Request,
)

from .helpers import REPLY_ACK, Connect, greeted, prepared, refused, settle


def test_trap_t1_features_that_were_not_offered_are_named_and_end_the_session(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    front = connect().connect()
    offered = front.get_features()
    front.set_features(offered | 1 << 34 | 1 << 35)
    assert front.hung_up()
    assert "acknowledged that are not offered: RING_PACKED, IN_ORDER" in caplog.text


def test_trap_t1_is_a_nak_for_a_front_end_that_waits(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect())
    refused(front, Request.SET_FEATURES, front.offered | 1 << 34)
    assert device.acknowledged == front.features & ~PROTOCOL_FEATURES


@pytest.mark.parametrize("padding", [b"", bytes(4)], ids=["20 bytes", "24 bytes"])
def test_trap_t2_an_inflight_description_is_answered_in_its_own_size(
    connect: Connect, padding: bytes
) -> None:
    front = greeted(connect())
    reply = front.exchange(Request.GET_INFLIGHT_FD, Inflight(0, 0, 2, 128, padding))
    assert reply is not None
    made = INFLIGHT.unpack(reply.payload)
    assert len(reply.payload) == 20 + len(padding)
    assert (made.queues, made.queue_size, made.mmap_offset) == (2, 128, 0)
    found = os.pread(reply.fd.fileno(), made.mmap_size + 1, 0)
    reply.close()
    assert found == bytes(made.mmap_size)


def test_trap_t3_rings_run_though_driver_ok_never_comes(connect: Connect, device: RecorderDevice) -> None:
    front = connect(order=QEMU).open()
    assert front.ask(Request.GET_STATUS) == 11  # no DRIVER_OK (4)
    assert set(device.running) == device.enabled == {0, 1}


def test_trap_t4_a_ring_is_enabled_before_it_has_an_address(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect())
    for index in range(2):
        front.set_vring_enable(index, True)
    prepared(front, 1)
    front.set_vring_kick(1)
    settle(front)
    assert device.enabled == {0, 1}
    assert set(device.running) == {1}


def test_trap_t5_an_inflight_region_comes_before_memory_and_rings(
    connect: Connect, device: RecorderDevice
) -> None:
    front = greeted(connect())
    front.get_inflight_fd()
    front.set_inflight_fd()
    prepared(front)
    front.set_vring_kick(0)
    settle(front)
    (start,) = [call for call in device.calls if call[0] == "start_ring"]
    assert start[3] is not None


def test_trap_t6_a_ring_starts_with_logging_on_before_the_log_is_known(
    connect: Connect, device: RecorderDevice
) -> None:
    front = connect(order=QEMU).connect()
    front.run(QEMU.connect)
    front.prepare_log()
    front.start()
    settle(front)
    names = device.names()
    assert device.acknowledged & LOG_ALL
    assert device.running[0].log_address == front.rings[0].used
    started, logged = names.index("start_ring"), names.index("set_log")
    assert started < logged < device.calls.index(("enable_ring", 0, True))


def test_trap_t7_a_ring_goes_on_at_the_used_index_with_the_old_inflight_region(
    connect: Connect, device: RecorderDevice
) -> None:
    front = connect(order=QEMU).open()
    front.memory.write(front.rings[0].used + 2, (300).to_bytes(2, "little"))
    device.calls.clear()
    front.reconnect()
    settle(front)
    start = next(call for call in device.calls if call[:2] == ("start_ring", 0))
    assert start[2].base == 300
    assert start[3] is not None
    assert front.sent.count(Request.GET_INFLIGHT_FD) == 1


def test_trap_t8_a_fresh_inflight_region_comes_with_a_ring_that_is_not_fresh(
    connect: Connect, device: RecorderDevice
) -> None:
    front = connect(order=QEMU)
    front.bases = [42, 0]
    front.open()
    settle(front)
    start = next(call for call in device.calls if call[:2] == ("start_ring", 0))
    assert (start[2].base, start[3] is None) == (42, False)
    assert front.inflight_bytes() == bytes(len(front.inflight_bytes()))


def test_trap_t9_get_vring_base_answers_after_the_drain_and_only_then(
    connect: Connect, device: RecorderDevice
) -> None:
    front = connect().open()
    settle(front)
    device.stop_at = {0: 5}
    assert front.get_vring_base(0) == 5
    assert ("stop_ring", 0) in device.calls
    assert set(device.running) == {1}


@pytest.mark.parametrize(
    ("request_", "value"), [(Request.RESET_DEVICE, None), (Request.SET_STATUS, 0)], ids=["device", "status"]
)
def test_trap_t11_a_reset_stops_the_rings_and_is_no_more_than_an_event(
    connect: Connect, device: RecorderDevice, request_: Request, value: int | None
) -> None:
    front = connect(order=QEMU).open()
    settle(front)
    memory = device.memory
    device.calls.clear()
    front.ask(request_, value)
    assert front.ask(Request.GET_STATUS) == 0
    stops = [("stop_ring", 0), ("enable_ring", 0, False), ("stop_ring", 1), ("enable_ring", 1, False)]
    assert device.calls == [*stops, ("reset",)]
    assert device.memory == memory  # front ends do not share it anew
    front.set_vring_num(0)
    front.set_vring_addr(0)
    settle(front)
    assert not device.running  # the kick was forgotten
    front.bases = [0, 0]
    front.start()
    settle(front)
    assert set(device.running) == device.enabled == {0, 1}


def test_trap_t12_the_stray_fd_of_rem_mem_reg_is_closed(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect(), ProtocolFeature.CONFIGURE_MEM_SLOTS | REPLY_ACK)
    front.share_memory()
    settle(front)
    piece = front.memory.add(0x7620, at=1 << 30)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        front.add_mem_reg(piece)
        front.rem_mem_reg(piece)
    settle(front)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(device.memory) == 1
