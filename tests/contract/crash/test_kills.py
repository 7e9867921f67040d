"""The target dies at each point of a request's way, under a load that looks at everything, and comes back.

Each kill is at a fault point of the core, and is confirmed to have happened there. What must hold is in
``history.py``; what is asked, in ``crash_load.py``. Only the kernel and the front end outlive a target.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from ringway import _core
from ringway.errors import UnreachableError
from ringway.testing.faulty import CLASSES, POINTS, Fault, FaultyTarget
from ringway.testing.frontend import BlkFrontEnd, BlkRequest, ScsiFrontEnd
from ringway.testing.orders import EVENT_IDX, QEMU
from ringway.testing.session import DEVICE_FEATURES

from ..conftest import Count
from ..crash_load import SIZE, CrashLoad
from ..disks import MakeDisk
from ..requests import Front, make_ready
from ..volatile import VolatileDisk, require_fuse

pytestmark = pytest.mark.timeout(600)

#: Of the n-th request of its class: small enough that a life is short, large enough for full rings.
_MOST: Final = 40


@dataclass(frozen=True, slots=True)
class Setting:
    """What is killed, and how it is talked to."""

    device: str
    engine: str
    store: str
    queues: int
    event_idx: bool
    indirect: bool

    def __str__(self) -> str:
        ring = ("event_idx" if self.event_idx else "flags") + ("-indirect" if self.indirect else "")
        return f"{self.device}-{self.engine}-{self.store.replace(' ', '_')}-{self.queues}-{ring}"


SETTINGS: Final = (
    Setting("blk", "uring", "mapped", 2, True, True),
    Setting("scsi", "epoll", "mapped", 2, False, True),
    Setting("blk", "epoll", "cached", 1, True, False),
    Setting("scsi", "uring", "cached", 3, True, True),
    Setting("blk", "uring", "direct", 3, False, True),
    Setting("scsi", "uring", "direct", 1, True, False),
    Setting("blk", "uring", "volatile", 2, True, False),
    Setting("scsi", "uring", "volatile", 2, False, False),
    Setting("blk", "epoll", "volatile", 2, False, True),
    Setting("scsi", "epoll", "volatile", 1, True, True),
)

PLACES: Final = tuple(itertools.product(POINTS, CLASSES))


def places(setting: int, kills: int) -> Iterator[tuple[str, str]]:
    """The points and classes of one setting's share of so many kills.

    All settings together have each place once before one of them has it twice; each further round moves every
    place to another setting.
    """
    for number in range(kills):
        round_, place = divmod(number, len(PLACES))
        if (place + round_) % len(SETTINGS) == setting:
            yield PLACES[place]


def test_every_place_is_met() -> None:
    few = [place for setting in range(len(SETTINGS)) for place in places(setting, 50)]
    assert len(few) == 50
    assert set(few) == set(PLACES)
    for setting in range(len(SETTINGS)):
        assert set(places(setting, 500)) == set(PLACES)


def test_the_shipped_core_has_no_fault_points(run_dir: Path) -> None:
    """It is told of one and does not care."""
    with FaultyTarget(Path(_core.__file__), run_dir, "--device", "blk", "ram:1M") as target:
        target.kill()
        target.start_with(Fault("popped", "read", 1))
        with BlkFrontEnd(target.socket).open() as front:
            assert front.read(0, 512).status == 0
        assert target.alive


@contextlib.contextmanager
def disk_on(store: str, disk_of: MakeDisk) -> Iterator[tuple[str, VolatileDisk | None]]:
    """An image. :returns: how the command names it, and what shows its medium."""
    if store != "volatile":
        yield disk_of(store, size=SIZE).argument, None
        return
    require_fuse()
    with tempfile.TemporaryDirectory(prefix="rw-") as name, VolatileDisk(Path(name), SIZE) as disk:
        yield f"{disk.path},mapped=off", disk


def front_end(setting: Setting, path: str) -> Front:
    transport = QEMU.features if setting.event_idx else QEMU.features & ~EVENT_IDX
    if setting.device == "blk":
        features = transport | DEVICE_FEATURES
        return BlkFrontEnd(path, queues=setting.queues, features=features, indirect=setting.indirect)
    features = transport | 0b110  # HOTPLUG, CHANGE
    queues = setting.queues
    return ScsiFrontEnd(path, request_queues=queues, features=features, indirect=setting.indirect)


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=map(str, SETTINGS))
def test_a_target_is_killed_at_each_point_of_a_requests_way(
    run_dir: Path, disk_of: MakeDisk, faulty_core: Path, number: int, count: Count
) -> None:
    """Nothing is lost, nothing acknowledged early, nothing done after a later one, nobody left waiting."""
    setting, chance = SETTINGS[number], random.Random(number)
    options = ["--device", setting.device, "--io-engine", setting.engine, "--queues", str(setting.queues)]
    with contextlib.ExitStack() as stack:
        argument, medium = stack.enter_context(disk_on(setting.store, disk_of))
        lun = ["--workers", str(min(2, setting.queues)), "--lun", f"0={argument}"]
        target = stack.enter_context(FaultyTarget(faulty_core, run_dir, *options, *lun))
        front = front_end(setting, target.socket)
        stack.callback(front.close)
        front.open()
        make_ready(front)
        load = CrashLoad(front, seed=number, medium=medium.medium if medium else None)
        target.kill()
        for point, request_class in places(number, count(50, 500)):
            target.start_with(Fault(point, request_class, chance.randint(1, _MOST)))
            with contextlib.suppress(UnreachableError):  # it runs again what is marked, and may die of that
                front.reconnect()
                load.run_until(target.deathbed, request_class)
            target.cause_of_death()
        target.start_with(None)
        front.reconnect()
        load.finish()
        assert all(not ring.in_flight for ring in front.rings)
        assert load.done > 0


def test_a_fresh_region_takes_its_used_index_from_the_ring(run_dir: Path, faulty_core: Path) -> None:
    """A guest that was moved has rings that are not at zero, and a region that nobody used.

    A back end that took the region's zero for its used index would believe, after a death at ``published``,
    that its last batch were all the requests ever, and forget one that is in flight: that of head 0.
    """
    require_fuse()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rw-"))
        disk = stack.enter_context(VolatileDisk(Path(folder), SIZE))
        options = ["--device", "blk", "--io-engine", "uring", "--lun", f"0={disk.path},direct"]
        target = stack.enter_context(FaultyTarget(faulty_core, run_dir, *options))
        front = stack.enter_context(BlkFrontEnd(target.socket, queue_size=16, indirect=True).open())
        for _ in range(37):
            assert front.write(0, b"x" * 4096).status == 0
        front.stop()
        front.disconnect()
        front.forget_inflight()
        target.kill()
        target.start_with(Fault("published", "read", 1))
        front.open()
        disk.hold_writes()
        writes: list[BlkRequest] = []
        while 0 not in front.rings[0].in_flight:
            writes.append(front.send_request(1, 8 * (1 + len(writes)), data_out=b"y" * 4096))
        disk.wait_held()
        read = front.send_request(0, data_in=4096)
        target.wait_fault()
        disk.let_go()  # its threads cannot die before
        target.cause_of_death()
        target.start_with(None)
        front.reconnect()
        assert [front.wait_request(request).status for request in [*writes, read]] == [0] * (len(writes) + 1)
