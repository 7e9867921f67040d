"""A migration in miniature: two targets on one image, a front end for each, and a guest that moves between.

The guest's memory is the same on both sides, as if all of it had been copied. Looked at are who owns the
image when, that the rings go on, that no write is lost, and that the dirty log has every page.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.model import IoEngine, Poll
from ringway.testing.frontend import BlkFrontEnd, FrontEnd, GuestMemory, ScsiFrontEnd
from ringway.testing.ring import Ring
from ringway.testing.session import LOG_PAGE
from ringway.testing.target import ServedTarget
from ringway.vhost_user.messages import Request

from .. import cdb
from ..conftest import Serve
from ..disks import MIB, SIZE, Disk, MakeDisk
from ..loads import Load, wait_until

pytestmark = pytest.mark.timeout(180)

QUEUES = 2
DEVICES = ["blk", "scsi"]


def served(folder: Path, engine: IoEngine, device: str, disk: Disk, name: str, *more: str) -> ServedTarget:
    options = ["--device", device, "--io-engine", engine.value, "--queues", str(QUEUES), *more]
    return ServedTarget(folder, *options, "--lun", f"0={disk.argument}", name=name)


def guest_of(device: str, path: str, **more: object) -> BlkFrontEnd | ScsiFrontEnd:
    if device == "blk":
        return BlkFrontEnd(path, queues=QUEUES, **more)  # type: ignore[arg-type]
    return ScsiFrontEnd(path, request_queues=QUEUES, **more)


def opened(device: str, path: str) -> BlkFrontEnd | ScsiFrontEnd:
    front = guest_of(device, path).open()
    while isinstance(front, ScsiFrontEnd) and front.command(cdb.TEST_UNIT_READY).status:
        pass
    return front


@contextmanager
def destination(source: BlkFrontEnd | ScsiFrontEnd, path: str) -> Iterator[FrontEnd]:
    """The other side's front end for the same guest: connected, its device reset (trap T11), not started."""
    device = "blk" if isinstance(source, BlkFrontEnd) else "scsi"
    with guest_of(device, path, memory=GuestMemory((MIB,))) as front:
        own_memory, own_rings = front.memory, front.rings
        front.memory, front.rings = source.memory, source.rings
        try:
            front.connect().run(front.order.connect)
            yield front
        finally:
            front.disconnect()
            front.memory, front.rings = own_memory, own_rings


def move(source: FrontEnd, target: FrontEnd) -> None:
    """Start the guest's rings where they stopped."""
    target.bases = list(source.bases)
    target.start()


def lock_holders(path: Path, *targets: ServedTarget) -> list[ServedTarget]:
    """Which of these processes hold byte locks on a file."""
    return [target for target in targets if target.alive and _holds(target.pid, os.stat(path))]


def _holds(pid: int, image: os.stat_result) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            same = os.path.samestat(link.stat(), image)
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
        except OSError:
            continue
        if same and re.search(r"^lock:.*OFDLCK", info, re.MULTILINE):
            return True
    return False


def check_third_party(path: Path, *, free: bool) -> None:
    """QEMU's own tools are let in, or kept out, by the locks."""
    program = shutil.which("qemu-io")
    assert program is not None, "qemu-io is missing: run `make system`"
    command = [program, "-f", "raw", "-c", "write -P 1 0 512", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) is free, done.stdout + done.stderr
    if not free:
        assert "lock" in done.stderr


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["mapped", "cached", "direct"])
def test_a_guest_moves_with_its_load_and_the_image_with_it(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str, store: str
) -> None:
    disk = disk_of(store)
    with (
        served(run_dir, engine, device, disk, "source") as source,
        served(run_dir, engine, device, disk, "destination", "--incoming") as target,
        opened(device, source.socket) as here,
        destination(here, target.socket) as there,
        Load(here) as load,
    ):
        load.wait_progress()
        here.start_log()
        load.wait_progress()
        assert lock_holders(disk.path, source, target) == [source]
        assert target.info().luns[0].ownership == "released"
        here.stop()
        assert here.dirty_pages()
        move(here, there)
        load.wait_progress()
        assert lock_holders(disk.path, source, target) == [target]
        assert [each.info().luns[0].ownership for each in (source, target)] == ["released", "held"]
        assert target.info().luns[0].epoch == 1
        check_third_party(disk.path, free=False)
        assert source.stop() == 0
        load.wait_progress()


@pytest.mark.parametrize("device", DEVICES)
def test_a_destination_that_starts_early_waits_for_the_source(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str
) -> None:
    """Its first enabled kick makes it ask; not a byte is read or written before the source has drained."""
    disk = disk_of("cached")
    with (
        served(run_dir, engine, device, disk, "source") as source,
        served(run_dir, engine, device, disk, "destination", "--incoming") as target,
        opened(device, source.socket) as here,
        guest_of(device, target.socket) as other,
    ):
        other.open()
        early = other.rings[-1].submit(*request_of(device, 0))
        target.wait_message("waiting for")
        assert target.info().luns[0].ownership == "wanted"
        with Load(here) as load:
            load.wait_progress()
            assert lock_holders(disk.path, source, target) == [source]
            assert other.rings[-1].used_index == 0
            here.start_log()
            load.wait_progress()
        here.stop()
        other.rings[-1].wait(early)
        assert lock_holders(disk.path, source, target) == [target]


def request_of(device: str, sector: int) -> tuple[list[bytes], list[int]]:
    """A read of a block, as parts of a chain."""
    if device == "blk":
        return [bytes(8) + sector.to_bytes(8, "little")], [4096, 1]
    header = bytes([1, 0, 0x40, 0]) + bytes(4) + (99).to_bytes(8, "little") + bytes(3)
    return [header + cdb.read(sector, 8).ljust(32, b"\0")], [108, 4096]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", ["mapped", "cached"])
def test_the_source_takes_its_image_back_when_the_destination_never_starts(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str, store: str
) -> None:
    disk = disk_of(store)
    with (
        served(run_dir, engine, device, disk, "source") as source,
        served(run_dir, engine, device, disk, "destination", "--incoming") as target,
        opened(device, source.socket) as here,
        destination(here, target.socket) as there,
        Load(here) as load,
    ):
        for _ in range(3):
            load.wait_progress()
            here.start_log()
            load.wait_progress()
            here.stop()
            wait_released(source)
            assert lock_holders(disk.path, source, target) == []
            here.logging = False
            here.start()
            load.wait_progress()
            assert lock_holders(disk.path, source, target) == [source]
        assert source.info().luns[0].epoch == 4
        there.disconnect()
        assert target.stop() == 0
        load.wait_progress()


def wait_released(target: ServedTarget) -> None:
    """A release flushes first, and its front end does not wait for that."""
    wait_until(lambda: target.info().luns[0].ownership == "released", "the release")


@pytest.mark.parametrize("device", DEVICES)
def test_a_source_that_dies_leaves_its_image_to_the_destination(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str
) -> None:
    disk = disk_of("cached")
    with (
        served(run_dir, engine, device, disk, "source") as source,
        served(run_dir, engine, device, disk, "destination", "--incoming") as target,
        opened(device, source.socket) as here,
        destination(here, target.socket) as there,
        Load(here) as load,
    ):
        load.wait_progress()
        here.start_log()
        load.wait_progress()
        here.stop()
        source.kill()
        move(here, there)
        load.wait_progress()
        assert lock_holders(disk.path, target) == [target]


@pytest.mark.parametrize("device", DEVICES)
def test_a_guest_goes_there_and_back_and_survives_a_crash_in_between(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, device: str
) -> None:
    """Trap T8: the fresh in-flight region of the destination starts at the ring's used index, not at zero."""
    disk = disk_of("cached")
    with (
        served(run_dir, engine, device, disk, "source") as source,
        served(run_dir, engine, device, disk, "destination", "--incoming") as target,
        opened(device, source.socket) as here,
        destination(here, target.socket) as there,
        Load(here) as load,
    ):
        load.wait_progress()
        here.start_log()
        here.stop()
        move(here, there)
        for _ in range(3):
            load.wait_progress()
            target.kill()
            target.start()
            there.reconnect()
        load.wait_progress()
        there.start_log()
        load.wait_progress()
        there.stop()
        here.logging = False
        move(there, here)
        load.wait_progress()
        assert lock_holders(disk.path, source, target) == [source]
        assert source.info().luns[0].epoch == 2


def test_nobody_else_gets_the_image_while_a_target_serves_it(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    disk = disk_of("cached")
    rival = served(run_dir, engine, "blk", disk, "rival")
    with served(run_dir, engine, "blk", disk, "source") as source:
        check_third_party(disk.path, free=False)
        with pytest.raises(GuestError, match=f"in use: pid {source.pid} "):
            rival.start()
        assert source.stop() == 0
    check_third_party(disk.path, free=True)
    with rival:
        check_third_party(disk.path, free=False)


def test_a_stop_that_is_no_migration_keeps_the_image(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """A guest that is paused or rebooted stops its rings too, but logs nothing."""
    disk = disk_of("cached")
    with (
        served(run_dir, engine, "blk", disk, "source") as source,
        opened("blk", source.socket) as front,
    ):
        front.stop()
        assert lock_holders(disk.path, source) == [source]
        front.reset()
        assert lock_holders(disk.path, source) == [source]
        assert source.info().luns[0].epoch == 1


# The dirty log


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
