"""Guest memory in as many regions as there are slots: chains lie in all of them, and they go under a load."""

from __future__ import annotations

import os
import random

import pytest

from ringway.testing.frontend import BlkFrontEnd, Buffer, Chain, RefusedError
from ringway.testing.memory import Piece
from ringway.vhost_user.messages import MAX_MEM_SLOTS

from .. import cdb
from ..conftest import Serve, ServeHere
from ..disks import MakeDisk
from ..loads import Load
from ..requests import Front, front_end, make_ready

PAGE = 4096
#: Apart from each other, so that no two are one stretch, and apart from the first region.
BASE, STEP = 1 << 40, 2 * PAGE
#: Pages of one request: each in a region of its own. All but the first region make four of them.
SEGMENTS = (MAX_MEM_SLOTS - 1) // 4
SECTORS = SEGMENTS * PAGE // 512


def fill_slots(front: Front) -> list[Piece]:
    """Add regions of a page until no slot is left. :returns: what was added."""
    pieces = [front.memory.add(PAGE, at=BASE + slot * STEP) for slot in range(MAX_MEM_SLOTS - 1)]
    for piece in pieces:
        front.add_mem_reg(piece)
    return pieces


def take(front: Front, piece: Piece) -> None:
    front.rem_mem_reg(piece)
    front.memory.remove(piece)


def transfer(front: Front, sector: int, pieces: list[Piece], *, write: bool) -> None:
    """Read or write a page from or into each region, in one request."""
    ring = front.rings[-1]
    data = [Buffer(piece.region.guest_address, PAGE, not write) for piece in pieces]
    if isinstance(front, BlkFrontEnd):
        head = filled(front, int(write).to_bytes(8, "little") + sector.to_bytes(8, "little"))
        chain = ring.add_buffers([head, *data, room(front, 1)], indirect=True)
        ring.kick()
        assert ring.wait(chain).data[-1] == 0
        return
    command = (cdb.write if write else cdb.read)(sector, SECTORS).ljust(32, b"\0")
    head = filled(front, bytes([1, 0, 0x40, 0]) + bytes(4 + 8 + 3) + command)
    parts = [head, *data, room(front, 108)] if write else [head, room(front, 108), *data]
    chain = ring.add_buffers(parts, indirect=True)
    ring.kick()
    assert answer(ring.wait(chain), write) == (0, 0)


def answer(chain: Chain, write: bool) -> tuple[int, int]:
    """:returns: status and response; the header is all that a write's chain has to be written."""
    assert chain.used_len == 108 + (0 if write else SEGMENTS * PAGE)
    return chain.data[10], chain.data[11]


def filled(front: Front, content: bytes) -> Buffer:
    address = front.memory.allocate(len(content))
    front.memory.write(address, content)
    return Buffer(address, len(content), False, owned=True)


def room(front: Front, size: int) -> Buffer:
    return Buffer(front.memory.allocate(size), size, True, owned=True)


@pytest.mark.parametrize("device", ["blk", "scsi"])
@pytest.mark.parametrize("store", ["mapped", "cached"])
def test_chains_lie_in_all_regions(serve: Serve, disk_of: MakeDisk, device: str, store: str) -> None:
    """A page goes from each region to the disk, and comes back into another one."""
    with front_end(device, serve(device, disk_of(store)), queue_size=256, indirect=True).open() as front:
        make_ready(front)
        pieces = fill_slots(front)
        contents = [os.urandom(PAGE) for _ in pieces]
        for piece, content in zip(pieces, contents, strict=True):
            front.memory.write(piece.region.guest_address, content)
        random.Random(509).shuffle(order := list(range(len(pieces))))
        back = [pieces[place] for place in order]
        for write, places in ((True, pieces), (False, back)):
            for part in range(4):
                chosen = places[part * SEGMENTS :][:SEGMENTS]
                transfer(front, part * SECTORS, chosen, write=write)
        assert [front.memory.read(piece.region.guest_address, PAGE) for piece in back] == contents


@pytest.mark.parametrize("device", ["blk", "scsi"])
def test_regions_go_under_a_load_and_their_slots_are_free_again(
    serve: Serve, disk_of: MakeDisk, device: str
) -> None:
    path = serve(device, disk_of("cached"), queues=2, workers=2)
    with front_end(device, path, 2).open() as front:
        make_ready(front)
        with Load(front) as load:
            for _ in range(2):
                pieces = fill_slots(front)
                load.wait_progress()
                random.Random(front.memory.size_bytes).shuffle(pieces)
                for piece in pieces:
                    take(front, piece)
                load.wait_progress()


@pytest.mark.parametrize("device", ["blk", "scsi"])
def test_a_region_too_many_is_refused_in_words(
    serve_here: ServeHere, disk_of: MakeDisk, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The front end that cannot count is sent away, and the next one is served."""
    path = serve_here(device, disk_of("cached"))
    with front_end(device, path).open() as front:
        make_ready(front)
        fill_slots(front)
        with pytest.raises(RefusedError):
            front.add_mem_reg(front.memory.add(PAGE, at=BASE << 1))
        assert f"all {MAX_MEM_SLOTS} memory slots are taken" in caplog.text
    with front_end(device, path).open() as front:
        make_ready(front)
        pieces = fill_slots(front)
        assert len(pieces) == MAX_MEM_SLOTS - 1
