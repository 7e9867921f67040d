"""Memory, logs and in-flight regions: what is mapped, kept, refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest

from ringway.testing.frontend import SPDK, GuestMemory
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user.messages import (
    INFLIGHT,
    Inflight,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringFd,
)

from .helpers import BAD_MEMORY, REPLY_ACK, Connect, greeted, prepared, refused, settle


def test_regions_that_stay_keep_their_mapping(connect: Connect, device: RecorderDevice) -> None:
    memory = GuestMemory([1 << 20, 0x7620])
    front = greeted(connect(memory=memory, order=SPDK))
    front.set_mem_table()
    settle(front)
    first, second = device.memory
    memory.add(4096, at=1 << 32)
    memory.remove(memory.pieces[1])
    front.set_mem_table()
    settle(front)
    assert device.memory[0] is first
    assert second not in device.memory
    assert [region.guest_address for region in device.memory] == [0, 1 << 32]


def test_rings_in_a_region_that_goes_stop_and_go_on_when_it_comes_back(
    connect: Connect, device: RecorderDevice
) -> None:
    front = greeted(connect(), ProtocolFeature.CONFIGURE_MEM_SLOTS | REPLY_ACK)
    front.share_memory()
    prepared(front).set_vring_kick(0)
    other = front.memory.add(4096, at=1 << 32)
    front.add_mem_reg(other)
    settle(front)
    assert device.names().count("start_ring") == 1  # a region that is none of its business
    device.calls.clear()
    device.stop_at = {0: 3}
    piece = front.memory.pieces[0]
    front.rem_mem_reg(piece)
    settle(front)
    assert device.names() == ["stop_ring", "set_memory"]
    front.add_mem_reg(piece)
    settle(front)
    assert device.running[0].base == 3


def test_rem_mem_reg_goes_by_addresses_and_size_alone(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect())
    piece = front.memory.pieces[0]
    row = piece.region
    front.add_mem_reg(piece)
    refused(front, Request.REM_MEM_REG, MemoryRegion(row.guest_address, row.size - 1, row.user_address, 0))
    other_offset = MemoryRegion(row.guest_address, row.size, row.user_address, 4096)
    front.ask(Request.REM_MEM_REG, other_offset, need_reply=True)
    assert device.memory == ()


def test_overlapping_regions_are_refused_and_the_old_map_stays(
    connect: Connect, device: RecorderDevice
) -> None:
    front = prepared(greeted(connect()))
    front.set_vring_kick(0)
    settle(front)
    before = device.memory
    device.failures["set_memory"] = ValueError("regions overlap")
    refused(front, Request.ADD_MEM_REG, MemoryRegion(0, 4096, 1 << 33, 0), (front.memory.fd,))
    del device.failures["set_memory"]
    assert device.memory == before
    assert set(device.running) == {0}


def test_a_table_with_another_number_of_fds_is_refused(connect: Connect) -> None:
    front = greeted(connect())
    row, fd = front.memory.pieces[0].region, front.memory.fd
    refused(front, Request.SET_MEM_TABLE, (row,))
    refused(front, Request.SET_MEM_TABLE, (row,), (fd, fd))


def test_there_are_509_slots_and_no_more(connect: Connect, device: RecorderDevice) -> None:
    front = greeted(connect(), ProtocolFeature.CONFIGURE_MEM_SLOTS | REPLY_ACK)
    fd = front.memory.fd
    for slot in range(509):
        front.ask(Request.ADD_MEM_REG, MemoryRegion(slot << 20, 4096, 1 << 40 | slot << 20, 0), [fd])
    refused(front, Request.ADD_MEM_REG, MemoryRegion(1 << 35, 4096, 1 << 41, 0), (fd,))
    assert len(device.memory) == 509


@pytest.mark.parametrize("make", BAD_MEMORY.values(), ids=BAD_MEMORY)
@pytest.mark.parametrize("request_", [Request.ADD_MEM_REG, Request.SET_INFLIGHT_FD], ids=lambda r: r.name)
def test_fds_that_are_no_memory_are_refused(
    connect: Connect, make: Callable[[], int], request_: Request
) -> None:
    front = greeted(connect())
    values = {
        Request.ADD_MEM_REG: MemoryRegion(0, 1 << 16, 1 << 40, 0),
        Request.SET_INFLIGHT_FD: Inflight(1 << 16, 0, 2, 8),
    }
    fd = make()
    try:
        refused(front, request_, values[request_], (fd,))
    finally:
        os.close(fd)


@pytest.mark.parametrize("make", BAD_MEMORY.values(), ids=BAD_MEMORY)
def test_a_log_that_is_no_memory_ends_the_session(connect: Connect, make: Callable[[], int]) -> None:
    front = greeted(connect(), ProtocolFeature.LOG_SHMFD | REPLY_ACK)
    fd = make()
    try:
        front.send(Request.SET_LOG_BASE, struct.pack("=QQ", 1 << 16, 0), [fd])
    finally:
        os.close(fd)
    assert front.hung_up()


@pytest.mark.parametrize("region", [(0, 0, 0, 0), (1 << 63, 1 << 63, 0, 0), (0, 4096, (1 << 64) - 1, 0)])
def test_regions_that_make_no_sense_are_refused(connect: Connect, region: tuple[int, int, int, int]) -> None:
    front = greeted(connect())
    refused(front, Request.ADD_MEM_REG, MemoryRegion(*region), (front.memory.fd,))


@pytest.mark.parametrize(("queues", "size"), [(0, 8), (3, 8), (2, 0), (65535, 32768), (2, 65535)])
def test_inflight_regions_for_what_does_not_exist(connect: Connect, queues: int, size: int) -> None:
    front = greeted(connect())
    front.send(Request.GET_INFLIGHT_FD, INFLIGHT.pack(Inflight(0, 0, queues, size)))
    assert front.hung_up()


def test_the_inflight_memory_cannot_be_shrunk_under_us(connect: Connect) -> None:
    front = greeted(connect())
    reply = front.exchange(Request.GET_INFLIGHT_FD, Inflight(0, 0, 2, 8))
    assert reply is not None
    with pytest.raises(PermissionError):
        os.ftruncate(reply.fd.fileno(), 0)
    reply.close()


@pytest.mark.parametrize("make", [BAD_MEMORY["a directory"], BAD_MEMORY["read-only"]])
def test_files_are_no_eventfds(connect: Connect, make: Callable[[], int]) -> None:
    front = greeted(connect())
    fd = make()
    try:
        refused(front, Request.SET_VRING_KICK, VringFd(0, True), (fd,))
    finally:
        os.close(fd)
