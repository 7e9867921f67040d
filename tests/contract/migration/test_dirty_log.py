"""The dirty log of a migration: it has every page that the target changes, and no stranger's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from ringway.model import Poll
from ringway.testing.frontend import BlkFrontEnd, GuestMemory, ScsiFrontEnd
from ringway.testing.ring import Ring
from ringway.testing.session import LOG_PAGE
from ringway.testing.waiting import wait_until
from ringway.vhost_user.messages import Request

from .. import cdb
from ..conftest import Serve
from ..disks import MIB, SIZE, MakeDisk
from .guests import DEVICES, QUEUES, guest_of


def pages(*places: tuple[int, int]) -> set[int]:
    """The pages that (address, size) places touch."""
    return {
        page
        for address, size in places
        if size
        for page in range(address // LOG_PAGE, (address + size - 1) // LOG_PAGE + 1)
    }


def used_pages(*rings: Ring) -> set[int]:
    return pages(*((ring.used, 6 + 8 * ring.size) for ring in rings))


def changed_pages(memory: GuestMemory, before: bytes) -> set[int]:
    """The pages of the first region that are not as they were."""
    now = memory.read(memory.pieces[0].region.guest_address, memory.pieces[0].region.size)
    return {
        at // LOG_PAGE
        for at in range(0, len(now), LOG_PAGE)
        if now[at : at + LOG_PAGE] != before[at : at + LOG_PAGE]
    }


def prepare(front: BlkFrontEnd | ScsiFrontEnd) -> None:
    """Open, with nothing else on the used rings' pages, and let all rings rest."""
    front.memory.allocate(LOG_PAGE, align=LOG_PAGE)
    front.open()
    while isinstance(front, ScsiFrontEnd) and front.command(cdb.TEST_UNIT_READY).status:
        pass
    for index in range(len(front.rings)):
        front.set_vring_enable(index, False)


def load_rings(front: BlkFrontEnd | ScsiFrontEnd) -> None:
    """Put requests of all kinds into the request queues, which rest: nobody looks at them yet."""
    if isinstance(front, BlkFrontEnd):
        for queue in range(QUEUES):
            front.send_request(0, 0, data_in=64 << 10, queue=queue)
            front.send_request(0, 8, data_in=4096, queue=queue)
            front.send_request(1, 16, data_out=b"w" * 8192, queue=queue)
            front.send_request(4, queue=queue)
            front.send_request(8, data_in=20, queue=queue)
            front.send_request(0, SIZE // 512, data_in=4096, queue=queue)
            front.send_request(99, data_in=5000, queue=queue)
        return
    for queue in range(QUEUES):
        front.send_command(cdb.read(0, 128), data_in=64 << 10, queue=queue)
        front.send_command(cdb.read(0, 1), data_in=9000, queue=queue)
        front.send_command(cdb.write(16, 16), data_out=b"w" * 8192, queue=queue)
        front.send_command(cdb.synchronize_cache(), queue=queue)
        front.send_command(cdb.inquiry(255), data_in=255, queue=queue)
        front.send_command(cdb.read(SIZE // 512, 8), data_in=4096, queue=queue)
        front.send_command(cdb.read(0, 1), target=7, data_in=4096, queue=queue)


def serve_loaded(front: BlkFrontEnd | ScsiFrontEnd) -> None:
    """Let the target at the requests, and see all of them done without writing a byte of guest memory."""
    rings = [ring for ring in front.rings if ring.in_flight]
    before = [(ring, ring.used_index + len(ring.in_flight)) for ring in rings]
    for index in range(len(front.rings)):
        front.set_vring_enable(index, True)
    for ring, end in before:
        ring.kick(force=True)
        wait_until(partial(_is_at, ring, end), "all requests")


def _is_at(ring: Ring, used_index: int) -> bool:
    return ring.used_index == used_index


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "mapped", "cached", "direct"])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
@pytest.mark.parametrize("poll", [Poll.ADAPTIVE, Poll.POLL])
def test_every_page_that_the_target_changes_is_logged_and_no_stranger(
    serve: Serve, disk_of: MakeDisk, device: str, store: str, event_idx: bool, poll: Poll
) -> None:
    """Held against a copy of all of guest memory. May be marked: buffers for the device, and used rings."""
    disk = disk_of(store, block_size=None if store == "direct" else 512)
    more = {} if event_idx else {"features": 1 << 32 | 1 << 9}
    with guest_of(device, serve(device, disk, queues=QUEUES, poll=poll), **more) as front:
        prepare(front)
        load_rings(front)
        front.start_log()
        places = [
            (buffer.address, buffer.size)
            for ring in front.rings
            for chain in ring.in_flight.values()
            for buffer in chain.buffers
            if buffer.writable
        ]
        before = front.memory.read(0, front.memory.pieces[0].region.size)
        serve_loaded(front)
        front.stop()
        logged, changed = front.dirty_pages(), changed_pages(front.memory, before)
        assert len(changed) > 20
        assert changed <= logged, f"changed, but not logged: {sorted(changed - logged)}"
        allowed = pages(*places) | used_pages(*front.rings)
        assert logged <= allowed, f"logged, but a stranger's: {sorted(logged - allowed)}"


def test_a_used_index_is_logged_when_its_elements_lie_on_other_pages(serve: Serve, disk_of: MakeDisk) -> None:
    """A worker that never sleeps never asks for kicks, which would have marked the whole ring."""
    size = 1024
    with BlkFrontEnd(serve("blk", disk_of("ram"), poll=Poll.POLL), queue_size=size).open() as front:
        ring = front.rings[0]
        for _ in range(600):
            assert front.flush().status == 0
        front.start_log()
        front.dirty_pages()
        assert front.flush().status == 0
        front.stop()
        first, last = ring.used // LOG_PAGE, (ring.used + 4 + 8 * 600) // LOG_PAGE
        assert first < last
        assert {first, last} <= front.dirty_pages()
        assert ring.size == size


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_logged_unless_it_is_asked_for(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """A log alone is not the wish to have it written; LOG_ALL is, and a ring's flag."""
    with guest_of(device, serve(device, disk_of("cached"), queues=QUEUES)) as front:
        prepare(front)
        front.prepare_log()
        front.set_log_base()
        load_rings(front)
        serve_loaded(front)
        front.stop()
        assert front.dirty_pages() == set()


@pytest.mark.parametrize("device", DEVICES)
def test_a_used_ring_is_logged_where_its_front_end_says(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """The log address is a guest address of its own, and each ring has its own wish."""
    elsewhere = 3000 * LOG_PAGE
    with guest_of(device, serve(device, disk_of("cached"), queues=QUEUES)) as front:
        prepare(front)
        front.start_log()
        last = len(front.rings) - 1
        for index, ring in enumerate(front.rings):
            address = ring.address(index, log=index == last)
            front.ask(Request.SET_VRING_ADDR, replace(address, log=elsewhere), need_reply=True)
        front.dirty_pages()
        load_rings(front)
        serve_loaded(front)
        front.stop()
        logged = front.dirty_pages()
        assert elsewhere // LOG_PAGE in logged
        assert not logged & used_pages(*front.rings)


def test_a_log_that_ends_before_memory_does_is_no_harm(serve: Serve, disk_of: MakeDisk) -> None:
    with BlkFrontEnd(serve("blk", disk_of("ram"))).open() as front:
        whole = front.memory
        front.memory = GuestMemory((MIB,))  # the log is made for this
        front.prepare_log()
        front.memory.close()
        front.memory = whole
        front.set_log_base()
        front.set_features(need_reply=True)
        front.set_vring_addr(0, need_reply=True)
        beyond = front.memory.allocate(2 * MIB)
        assert beyond + 2 * MIB > MIB
        assert front.read(0, MIB).status == 0
        assert max(front.dirty_pages()) < MIB // LOG_PAGE
