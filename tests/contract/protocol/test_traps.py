"""What front ends do that a specification does not tell: a test for each, at the level of a whole target."""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

import pytest

from ringway.model import IoEngine
from ringway.testing.frontend import QEMU, SPDK, BlkFrontEnd, GuestMemory, RefusedError, ScsiFrontEnd
from ringway.testing.memory import Piece
from ringway.testing.session import FrontEnd
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import wait_until
from ringway.vhost_user.messages import MemoryRegion, Request, VringState

from .. import cdb
from ..conftest import Serve
from ..disks import MIB, MakeDisk
from ..hostile.test_hostile import wait_error
from ..loads import Load
from ..requests import front_end, make_ready, read, send_read, wait, write

DEVICES = ["blk", "scsi"]
PAGE = 4096
T10_PI, RING_PACKED, VERSION_1 = 1 << 3, 1 << 34, 1 << 32
CONTROL_PAGE = 0x0A
WRITE_PROTECTED = (7, 0x27, 0)
NEXUS_LOSS = (6, 0x29, 0x07)


def pass_through_workers(front: FrontEnd) -> None:
    """Come back once each worker had a turn: whatever it would have done, it has done."""
    for _ in range(2):
        for index in range(len(front.rings)):
            front.set_vring_call(index)
        front.get_features()


@pytest.mark.parametrize("bit", [T10_PI, RING_PACKED], ids=["T10_PI", "RING_PACKED"])
def test_t1_a_feature_that_was_not_offered_is_not_taken(serve: Serve, disk_of: MakeDisk, bit: int) -> None:
    """QEMU passes bits on to the guest that the back end does not have."""
    with ScsiFrontEnd(serve("scsi", disk_of("ram"))).open() as front:
        make_ready(front)
        with pytest.raises(RefusedError):
            front.set_features(front.features | bit, need_reply=True)
        write(front, 0, b"x" * 512)


@pytest.mark.parametrize("device", DEVICES)
def test_t3_rings_run_without_driver_ok(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """vhost-user-scsi never says it; the order of QEMU ends with FEATURES_OK."""
    with front_end(device, serve(device, disk_of("ram"))).open() as front:
        assert front.ask(Request.GET_STATUS) & 4 == 0
        make_ready(front)
        write(front, 0, b"x" * 512)


def test_t4_enable_comes_for_rings_that_have_no_address(serve: Serve, disk_of: MakeDisk) -> None:
    """SeaBIOS sets up one of QEMU's rings; all are enabled."""
    path = serve("scsi", disk_of("ram"), queues=2)
    with ScsiFrontEnd(path, request_queues=2) as front:
        front.connect().run(QEMU.connect)
        front.set_features()
        front.share_memory()
        only = 2
        for step in (
            front.set_vring_num,
            front.set_vring_base,
            front.set_vring_addr,
            front.set_vring_kick,
            front.set_vring_call,
        ):
            step(only)
        for index in range(len(front.rings)):
            front.set_vring_enable(index, True)
        make_ready(front)
        write(front, 0, b"x" * 512)
        assert [row.running for row in serve.target.statistics().queues] == [False, False, True, False]
        for index in range(len(front.rings)):
            front.set_vring_enable(index, False)
        assert front.get_vring_base(only) == front.rings[only].used_index


@pytest.mark.parametrize("device", DEVICES)
def test_t6_a_ring_rests_until_it_is_enabled(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """With logging on from the start, the log comes after the kick: what is served before goes unlogged."""
    with front_end(device, serve(device, disk_of("cached"))) as front:
        front.memory.allocate(PAGE, align=PAGE)
        front.connect().run(QEMU.connect)
        front.prepare_log()
        *before, log, enable = QEMU.start
        assert (log, enable) == (Request.SET_LOG_BASE, (Request.SET_VRING_ENABLE,))
        front.run(before)
        early = send_read(front, 0)
        early.ring.kick(force=True)
        pass_through_workers(front)
        assert early.ring.used_index == 0
        front.run([log, enable])
        wait(front, early)
        make_ready(front)
        assert early.ring.used // PAGE in front.dirty_pages()


@pytest.mark.parametrize("device", DEVICES)
def test_a_disabled_ring_rests_and_goes_on_where_it_was(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    with front_end(device, serve(device, disk_of("cached"), queues=2), 2).open() as front:
        make_ready(front)
        index = len(front.rings) - 1
        for _ in range(5):
            front.set_vring_enable(index, False)
            waiting = [send_read(front, 0, queue=1) for _ in range(3)]
            before = front.rings[index].used_index
            front.rings[index].kick(force=True)
            pass_through_workers(front)
            assert front.rings[index].used_index == before
            write(front, 0, b"o" * PAGE, queue=0)
            front.set_vring_enable(index, True)
            assert all(wait(front, request)[1] == b"o" * PAGE for request in waiting)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "cached"])
def test_t8_a_fresh_region_begins_at_the_rings_used_index(
    serve: Serve, disk_of: MakeDisk, device: str, store: str
) -> None:
    """After a migration the region is new and the ring is not: from zero, recovery drops live entries."""
    path = serve(device, disk_of(store))
    with front_end(device, path).open() as first:
        make_ready(first)
        for _ in range(7):
            write(first, 0, b"x" * PAGE)
        bases = list(first.stop())
        assert bases[-1] >= 7
        first.disconnect()
        with front_end(device, path, memory=GuestMemory((MIB,))) as second:
            unused_memory, unused_rings = second.memory, second.rings
            second.memory, second.rings, second.bases = first.memory, first.rings, bases
            second.open()
            queue_bytes = -(-(16 + 16 * second.queue_size) // 64) * 64
            regions = second.inflight_bytes()
            index = len(second.rings) - 1
            (used_index,) = struct.unpack_from("=H", regions, index * queue_bytes + 14)
            assert used_index == bases[index]
            make_ready(second)
            for _ in range(3):
                write(second, 0, b"y" * PAGE)
                second.reconnect()
                make_ready(second)
            assert read(second, 0) == b"y" * PAGE
            second.disconnect()
            second.memory, second.rings = unused_memory, unused_rings


def test_t11_a_reset_leaves_the_state_of_luns_alone(serve: Serve, disk_of: MakeDisk) -> None:
    """RESET_DEVICE comes with every reboot, and on a migration's destination: an I_T nexus event at most."""
    with ScsiFrontEnd(serve("scsi", disk_of("ram"), disk_of("ram"))).open() as front:
        for lun in (0, 1):
            while front.command(cdb.TEST_UNIT_READY, lun=lun).status:
                pass
        write(front, 0, b"x" * 512)
        protect = bytes([CONTROL_PAGE, 10, 2, 0x10, 8, 0, 0, 0, 0xFF, 0xFF, 0, 0])
        select = bytes([0x15, 0x10, 0, 0, 4 + len(protect), 0])
        assert front.command(select, data_out=bytes(4) + protect).status == cdb.GOOD
        stop_unit = bytes([0x1B, 0, 0, 0, 0, 0])
        assert front.command(stop_unit, lun=1).status == cdb.GOOD
        front.reset()
        front.start()
        assert front.command(cdb.TEST_UNIT_READY).sense_key == NEXUS_LOSS
        assert front.command(cdb.TEST_UNIT_READY).status == cdb.GOOD
        refused = front.command(cdb.write(0, 1), data_out=b"y" * 512)
        assert refused.sense_key == WRITE_PROTECTED, "a mode page was reset"
        assert front.command(cdb.read(0, 1), data_in=512).data == b"x" * 512
        assert front.command(cdb.TEST_UNIT_READY, lun=1).sense_key == NEXUS_LOSS
        assert front.command(cdb.TEST_UNIT_READY, lun=1).sense_key[:2] == (2, 4), "a stopped unit started"


def test_t11_a_destinations_reset_does_nothing_to_the_guest_that_still_runs_elsewhere(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """It is reset before the guest is there, and must not greet it with a unit attention."""
    disk = disk_of("cached")
    arguments = ["--io-engine", engine.value, "--lun", f"0={disk.argument}"]
    with (
        ServedTarget(run_dir, *arguments, name="source") as source,
        ServedTarget(run_dir, *arguments, "--incoming", name="destination") as target,
        ScsiFrontEnd(source.socket).open() as here,
        ScsiFrontEnd(target.socket) as there,
    ):
        make_ready(here)
        there.connect().run(QEMU.connect)
        assert Request.RESET_DEVICE in there.sent
        assert here.command(cdb.TEST_UNIT_READY).status == cdb.GOOD
        here.start_log()
        here.stop()
        there.start()
        assert there.command(cdb.TEST_UNIT_READY).status == cdb.GOOD


@pytest.mark.parametrize("device", DEVICES)
def test_t12_a_stray_fd_of_a_removed_region_is_closed(run_dir: Path, engine: IoEngine, device: str) -> None:
    with (
        ServedTarget(run_dir, "--device", device, "--io-engine", engine.value, "ram:1M") as target,
        front_end(device, target.socket).open() as front,
    ):
        make_ready(front)

        def cycle() -> None:
            piece = front.memory.add(0x7620, at=1 << 40)
            front.add_mem_reg(piece)
            front.rem_mem_reg(piece, stray_fd=True)
            front.memory.remove(piece)
            front.get_features()  # it has done all that it was told before

        cycle()
        before = open_files(target)
        for _ in range(20):
            cycle()
        wait_until(lambda: open_files(target) == before, f"{before} open files again")


def open_files(target: ServedTarget) -> int:
    return len(os.listdir(f"/proc/{target.pid}/fd"))


@pytest.mark.parametrize("device", DEVICES)
def test_front_ends_that_come_and_go_leave_nothing_behind(
    run_dir: Path, engine: IoEngine, device: str
) -> None:
    """No file, no mapping, no thread."""

    def holdings() -> tuple[int, int, int]:
        memory = Path(f"/proc/{target.pid}/maps").read_text().count("memfd:")
        return open_files(target), memory, len(os.listdir(f"/proc/{target.pid}/task"))

    def settled() -> tuple[int, int, int]:
        """What is held when nothing changes any more: the control client's thread ends after its answer."""
        looks = [holdings()]
        while len(looks) < 5:
            time.sleep(0.05)
            looks = [*looks, holdings()] if holdings() == looks[-1] else [holdings()]
        return looks[-1]

    def visit() -> None:
        with front_end(device, target.socket, 2).open() as front:
            make_ready(front)
            front.start_log()
            write(front, 0, b"x" * PAGE, queue=1)
        wait_until(lambda: not target.info().connected, "the front end to be gone")

    arguments = ["--device", device, "--io-engine", engine.value, "--queues", "2", "ram:1M"]
    with ServedTarget(run_dir, *arguments) as target:
        visit()
        before = settled()
        for _ in range(20):
            visit()
        wait_until(lambda: holdings() == before, f"what it holds to become {before} again")


def test_the_second_front_end_is_turned_away_with_a_log_line(run_dir: Path, engine: IoEngine) -> None:
    with ServedTarget(run_dir, "--device", "blk", "--io-engine", engine.value, "ram:1M") as target:
        with BlkFrontEnd(target.socket).open() as first:
            for order in (QEMU, SPDK):
                with BlkFrontEnd(target.socket, order=order) as second:
                    assert second.connect().hung_up()
            target.wait_message(rf"turned away pid {os.getpid()} .*: pid {os.getpid()} .* is being served")
            write(first, 0, b"x" * PAGE)
        with BlkFrontEnd(target.socket).open() as next_one:
            assert read(next_one, 0) == b"x" * PAGE


# Memory that changes under running rings


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "mapped", "cached", "direct"])
def test_memory_is_added_and_taken_under_a_load(
    serve: Serve, disk_of: MakeDisk, device: str, store: str
) -> None:
    path = serve(device, disk_of(store), queues=2, workers=2)
    with front_end(device, path, 2).open() as front:
        make_ready(front)
        with Load(front) as load:
            for number in range(50):
                load.wait_progress(20)
                piece = front.memory.add(MIB, at=(1 << 40) + number * 2 * MIB)
                front.add_mem_reg(piece)
                load.wait_progress(20)
                front.rem_mem_reg(piece)
                front.memory.remove(piece)
            load.wait_progress(20)


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_table_is_sent_again_under_a_load(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """As SPDK's initiator, and QEMU without slots, do at each change."""
    path = serve(device, disk_of("cached"), queues=2, workers=2)
    with front_end(device, path, 2).open() as front:
        make_ready(front)
        with Load(front) as load:
            for number in range(20):
                load.wait_progress(20)
                piece = front.memory.add(MIB, at=(1 << 40) + number * 2 * MIB)
                front.set_mem_table()
                load.wait_progress(20)
                front.memory.remove(piece)
                front.set_mem_table()


class InPieces:
    """A front end whose last ring lies in a region of its own."""

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        whole = front.memory.pieces[0]
        start, end = front.rings[-1].descriptors, whole.region.size // 2
        self.pieces = [
            self._piece(whole, *ends) for ends in ((0, start), (start, end), (end, whole.region.size))
        ]

    def _piece(self, whole: Piece, start: int, end: int) -> Piece:
        region = MemoryRegion(start, end - start, self.front.memory.user(start), start)
        return Piece(whole.fd, whole.map, region)

    def open(self) -> Piece:
        """:returns: the last ring's region."""
        front = self.front
        front.connect().run(front.order.connect)
        for piece in self.pieces:
            front.add_mem_reg(piece)
        front.run([step for step in front.order.start if step is not Request.ADD_MEM_REG])
        return self.pieces[1]


@pytest.mark.parametrize("device", DEVICES)
def test_a_region_that_is_taken_from_under_a_ring_stops_that_ring_alone(
    run_dir: Path, engine: IoEngine, device: str
) -> None:
    """It is named, and it goes on when its memory is there again."""
    arguments = ["--device", device, "--io-engine", engine.value, "--queues", "2", "ram:4M"]
    with ServedTarget(run_dir, *arguments) as target, front_end(device, target.socket, 2) as front:
        index = len(front.rings) - 1
        # Everything but the last ring's three parts lies beyond the middle, which is the others'.
        under = InPieces(front).open()
        front.memory.allocate(front.memory.pieces[0].region.size // 2)
        make_ready(front)
        write(front, 0, b"x" * PAGE, queue=1)
        front.rem_mem_reg(under)
        target.wait_message(rf"ring {index}\b")
        assert wait_error(front.rings[index], front.timeout_s)
        write(front, 0, b"y" * PAGE, queue=0)
        assert read(front, 0, queue=0) == b"y" * PAGE
        waiting = send_read(front, 0, queue=1)
        front.rings[index].kick(force=True)
        front.add_mem_reg(under)
        assert wait(front, waiting) == (0, b"y" * PAGE)


# Rings that stop


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["ram", "mapped", "cached", "direct"])
def test_get_vring_base_waits_for_what_is_in_flight(
    serve: Serve, disk_of: MakeDisk, device: str, store: str
) -> None:
    """After it the target touches guest memory no more: all is done, or none of it was taken."""
    path = serve(device, disk_of(store), queues=2)
    with front_end(device, path, 2).open() as front:
        make_ready(front)
        ring = front.rings[-1]
        index = len(front.rings) - 1
        for _ in range(20):
            sent = [send_read(front, 0, 65536, queue=1, kick=False) for _ in range(16)]
            ring.kick()
            base = front.get_vring_base(index)
            frozen = front.memory.read(ring.used, 6 + 8 * ring.size)
            data = [front.memory.read(each.address, each.size) for r in sent for each in r.chain.buffers]
            assert ring.used_index == base
            pass_through_workers(front)
            assert front.memory.read(ring.used, 6 + 8 * ring.size) == frozen
            again = [front.memory.read(each.address, each.size) for r in sent for each in r.chain.buffers]
            assert again == data
            front.set_vring_base(index)
            front.set_vring_kick(index)
            assert [wait(front, request)[0] for request in sent] == [0] * 16


def test_get_vring_base_of_a_ring_that_never_ran_answers_its_base(serve: Serve, disk_of: MakeDisk) -> None:
    with BlkFrontEnd(serve("blk", disk_of("ram"), queues=2), queues=2) as front:
        front.connect().run(QEMU.connect)
        front.ask(Request.SET_VRING_BASE, VringState(1, 777))
        assert front.get_vring_base(1) == 777
        assert front.get_vring_base(0) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_indices_wrap_around(serve: Serve, disk_of: MakeDisk, device: str) -> None:
    """A ring that begins just below 65536, with a base to match."""
    path = serve(device, disk_of("cached"))
    with front_end(device, path, queue_size=8) as front:
        for ring in front.rings:
            ring.publish(0xFFF0)
            front.memory.write(ring.used + 2, (0xFFF0).to_bytes(2, "little"))
            ring._seen_index = ring._kicked_index = 0xFFF0
        front.bases = [0xFFF0] * len(front.rings)
        front.open()
        make_ready(front)
        for number in range(40):
            write(front, 0, bytes([number]) * 512)
            assert read(front, 0, 512) == bytes([number]) * 512
            if number % 7 == 0:
                front.reconnect()
                make_ready(front)
        assert front.rings[-1].used_index < 0xFFF0


@pytest.mark.parametrize("device", DEVICES)
def test_a_target_that_is_closed_leaves_no_thread_behind(
    serve: Serve, disk_of: MakeDisk, device: str
) -> None:
    """Programs open and close several in one process."""
    before = set(threading.enumerate())
    with front_end(device, serve(device, disk_of("ram"))).open() as front:
        make_ready(front)
        write(front, 0, b"x" * PAGE)
        serve.target.close()
        assert front.hung_up()
    assert {thread.name for thread in threading.enumerate() if thread not in before} == set()
