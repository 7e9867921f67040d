"""Back ends as known front ends find them: ours and, as an oracle for the front end, QEMU's own.

What a front end of ours does with qemu-storage-daemon is what it does with our target: so the two agree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.model import BackstoreSpec, DeviceKind, LunSpec, SpecKind, TargetConfig
from ringway.target.listen import listen
from ringway.target.target import Target
from ringway.testing.frontend import (
    LIBBLKIO,
    ORDERS,
    QEMU,
    SPDK,
    BlkFrontEnd,
    Buffer,
    Framing,
    GuestMemory,
    Order,
    ScsiFrontEnd,
)
from ringway.testing.session import LOG_PAGE
from ringway.testing.sockets import wait_for_socket
from ringway.testing.waiting import PATIENCE_S

from ..requests import settle

SIZE = 16 << 20
Serve = Callable[[str], str]

FRAMINGS = {
    "plain": Framing(),
    "joined": Framing(joined=True),
    "segments of 700": Framing(segment=700),
    "joined, of 1000": Framing(joined=True, segment=1000),
    "a cut header": Framing(first=7),
    "indirect": Framing(indirect=True),
    "indirect, of 512": Framing(indirect=True, segment=512),
}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a target of ours on a disk in memory, ``"blk"`` or ``"scsi"``, with two request queues."""
    targets: list[Target] = []

    def start(device: str) -> str:
        path = str(tmp_path / f"{device}.sock")
        disk = LunSpec(0, 0, BackstoreSpec(SpecKind.RAM, size_bytes=SIZE))
        targets.append(Target(TargetConfig(DeviceKind(device), (disk,), queues=2), listen(path)))
        return path

    yield start
    for target in targets:
        target.close()


@pytest.fixture
def storage_daemon(tmp_path: Path) -> Iterator[str]:
    """QEMU's vhost-user-blk back end on a disk image."""
    program = shutil.which("qemu-storage-daemon")
    assert program is not None, "qemu-storage-daemon is missing: run `make system`"
    image, path = tmp_path / "disk.img", tmp_path / "qsd.sock"
    image.touch()
    os.truncate(image, SIZE)
    node = f"file,filename={image},node-name=disk,discard=unmap"
    export = f"vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={path},writable=on,num-queues=2"
    process = subprocess.Popen([program, "--blockdev", node, "--export", export])
    try:
        wait_for_socket(path)
        yield str(path)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def check_blk(front: BlkFrontEnd, framing: Framing = FRAMINGS["plain"]) -> None:
    """Write on one queue, read on the other, look at every byte."""
    data = os.urandom(8192)
    written = front.write(24, data, framing=framing)
    assert (written.status, written.used_len) == (0, 1)
    read = front.read(24, 8192, queue=1, framing=framing)
    assert (read.status, read.used_len) == (0, 8193)
    assert read.data == data


def write_10(lba: int, blocks: int) -> bytes:
    return bytes([0x2A, 0]) + lba.to_bytes(4) + bytes([0]) + blocks.to_bytes(2) + bytes([0])


def read_10(lba: int, blocks: int) -> bytes:
    return bytes([0x28]) + write_10(lba, blocks)[1:]


def ready(front: ScsiFrontEnd) -> None:
    """Take the unit attention that a disk begins with."""
    while front.command(bytes(6)).status:
        pass


def check_scsi(front: ScsiFrontEnd, framing: Framing = FRAMINGS["plain"]) -> None:
    """As :func:`check_blk`."""
    data = os.urandom(8192)
    written = front.command(write_10(24, 16), data_out=data, framing=framing)
    assert (written.response, written.status, written.residual, written.used_len) == (0, 0, 0, 108)
    read = front.command(read_10(24, 16), data_in=8192, queue=1, framing=framing)
    assert (read.response, read.status, read.residual, read.used_len) == (0, 0, 0, 108 + 8192)
    assert read.data == data


# The front end is right: QEMU's own back end understands it


@pytest.mark.parametrize("order", [QEMU, LIBBLKIO], ids=["qemu", "libblkio"])  # it has no answer for SPDK
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_qemu_storage_daemon(storage_daemon: str, order: Order, framing: Framing) -> None:
    with BlkFrontEnd(storage_daemon, queues=2, order=order).open() as front:
        assert front.capacity * 512 == SIZE
        check_blk(front, framing)
        assert front.discard(24, 16).status == 0
        assert front.write_zeroes(24, 8).status == 0
        assert front.read(24, 512).data == bytes(512)
        assert front.flush().status == 0
        assert front.serial() == b"vhost_user_blk"


# The target is right


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_blk_in_every_order_and_framing(serve: Serve, order: Order, framing: Framing) -> None:
    with BlkFrontEnd(serve("blk"), queues=2, order=order).open() as front:
        assert front.capacity * 512 == SIZE
        check_blk(front, framing)
        assert front.flush().status == 0


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_scsi_in_every_order_and_framing(serve: Serve, order: Order, framing: Framing) -> None:
    with ScsiFrontEnd(serve("scsi"), request_queues=2, order=order).open() as front:
        ready(front)
        check_scsi(front, framing)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_front_end_that_comes_back_finds_its_disk(serve: Serve, order: Order) -> None:
    path = serve("blk")
    data = os.urandom(4096)
    with BlkFrontEnd(path, queues=2, order=order).open() as front:
        assert front.write(0, data).status == 0
        for _ in range(5):
            front.reconnect()
            assert front.read(0, 4096, queue=1).data == data
    with BlkFrontEnd(path, queues=2, order=order).open() as another:
        assert another.read(0, 4096).data == data


@pytest.mark.parametrize("order", [QEMU, SPDK], ids=["qemu", "spdk"])
def test_rings_stop_and_go_on_where_they_stood(serve: Serve, order: Order) -> None:
    with BlkFrontEnd(serve("blk"), queues=2, queue_size=4, order=order).open() as front:
        for round_ in range(1, 8):
            check_blk(front)
            assert front.stop() == [round_, round_]
            waiting = front.send_request(0, 24, data_in=512)
            assert front.rings[0].collect() == []
            front.start()
            assert front.wait_request(waiting).status == 0
            assert front.read(24, 512, queue=1).status == 0
            front.reset()
            front.start()
            for _ in range(round_):
                check_blk(front)


def test_qemu_resets_the_device_and_begins_anew(serve: Serve) -> None:
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU).open() as front:
        for _ in range(3):
            check_blk(front)
            front.reset()
            assert [ring.used_index for ring in front.rings] == [0, 0]
            front.start()
        check_blk(front)


def test_requests_that_were_in_flight_are_run_again(serve: Serve) -> None:
    """Trap T7: the front end goes on at the used index, the region knows what was taken beyond it."""
    data = os.urandom(4096)
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU).open() as front:
        for number in range(50):
            requests = [
                front.send_request(1, 8 * block, data_out=data, queue=number % 2) for block in range(16)
            ]
            front.reconnect()
            assert [front.wait_request(request).status for request in requests] == [0] * 16


def test_libblkio_adds_and_takes_memory_while_rings_run(serve: Serve) -> None:
    memory = GuestMemory(user_base=0)
    with BlkFrontEnd(serve("blk"), queues=2, order=LIBBLKIO, memory=memory).open() as front:
        for number in range(20):
            piece = memory.add(0x7620, at=0x1_0000_0000 + number * 0x1_0000)
            front.add_mem_reg(piece)
            check_blk(front)
            _read_into(front, piece.region.guest_address, 0x7600)
            assert memory.read(piece.region.guest_address, 8192) == front.read(24, 8192).data
            front.rem_mem_reg(piece)
            memory.remove(piece)
        check_blk(front)


def _read_into(front: BlkFrontEnd, address: int, size: int) -> None:
    """Read sector 24 on into guest memory that the caller chose."""
    ring, memory = front.rings[0], front.memory
    header, status = memory.allocate(16), memory.allocate(1)
    memory.write(header, bytes(8) + (24).to_bytes(8, "little"))
    buffers = [Buffer(header, 16, False), Buffer(address, size, True), Buffer(status, 1, True)]
    chain = ring.add_buffers(buffers)
    ring.kick()
    assert ring.wait(chain).data[-1] == 0


def test_memory_in_many_regions_of_odd_sizes(serve: Serve) -> None:
    memory = GuestMemory([8 << 20, 0x7620, 1 << 20, 0x1234], gap=0x10000, base=0x4000, mmap_offset=4096)
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU, memory=memory).open() as front:
        check_blk(front)
        for piece in memory.pieces[1:]:
            _read_into(front, piece.region.guest_address, 0x1200)
            assert memory.read(piece.region.guest_address, 0x1200) == front.read(24, 0x1200).data


def _pages(*places: tuple[int, int]) -> set[int]:
    """The pages that (address, size) places touch."""
    return {
        page
        for address, size in places
        for page in range(address // LOG_PAGE, (address + size - 1) // LOG_PAGE + 1)
    }


@pytest.mark.parametrize("moment", ["under a running ring", "from the start"])
def test_every_page_that_is_written_is_logged_and_no_other(serve: Serve, moment: str) -> None:
    """The log holds data, status byte and used ring; trap T6 is the start with logging on."""
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU).open() as front:
        if moment == "from the start":
            front.stop()
            front.prepare_log()
            front.start()
        else:
            front.start_log()
        request = front.send_request(0, 0, data_in=64 << 10, queue=1)
        written = [(buffer.address, buffer.size) for buffer in request.chain.buffers if buffer.writable]
        front.wait_request(request)
        front.stop()  # now the log is complete
        used, *rings = (_pages((ring.used, 6 + 8 * ring.size)) for ring in reversed(front.rings))
        assert _pages(*written) | used <= front.dirty_pages() <= _pages(*written).union(used, *rings)


def test_logging_ends_when_a_migration_fails(serve: Serve) -> None:
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU).open() as front:
        front.start_log()
        check_blk(front)
        front.stop_log()
        check_blk(front)
        assert front.dirty_pages()
        check_blk(front)
        front.stop()
        assert front.dirty_pages() == set()


def test_without_event_idx_the_flags_decide(serve: Serve) -> None:
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU, features=1 << 32).open() as front:
        assert not any(ring.event_idx for ring in front.rings)
        check_blk(front)
        ring = front.rings[0]
        ring.set_interrupts(False)
        settle(front)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(ring.call_fd)  # the last request's: it may come after the used index shows it
        request = front.send_request(0, 24, data_in=512)
        while not request.chain.done:
            ring.collect()
        settle(front)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(ring.call_fd)
        ring.set_interrupts(True)
        check_blk(front)


def test_a_load_driver_takes_over_the_queues(serve: Serve) -> None:
    with BlkFrontEnd(serve("blk"), queues=2, order=QEMU).open() as front:
        check_blk(front)
        report = front.load_driver().run(
            seconds=0.05, block_bytes=4096, depth=4, size_bytes=SIZE, read_percent=50
        )
        assert report["errors"] == 0
        assert report["requests"]
