"""Limits of a LUN: kept, changed while a guest waits, and in nobody's way when something has to end.

How exactly a rate is kept is the schedule's own test (``limit.rs``, on a clock of its own). Here a guest may
get no more than its limit on any host, however loaded.
"""

from __future__ import annotations

import time
from typing import Final

import pytest
from tests.contract import cdb
from tests.contract.conftest import Serve
from tests.contract.disks import MakeDisk
from tests.contract.loads import Load

from ringway.errors import ControlError, NotFoundError
from ringway.model import Limits, LunInfo, LunLimitRequest
from ringway.target.control import ControlClient
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.waiting import wait_until

BURST_S: Final = 0.010
MANY: Final = 40  #: as many as fit into a ring
CRAWL: Final = Limits(iops=1)  #: a second each


def limit(path: str, limits: Limits, lun: int = 0) -> LunInfo:
    with ControlClient(f"{path}.ctl") as client:
        return client.call(LunLimitRequest(0, lun, limits), LunInfo)


def taken(serve: Serve) -> int:
    queue = serve.target.statistics().queues[0]
    return queue.requests + queue.in_flight


@pytest.mark.parametrize("store", ["ram", "direct"])
@pytest.mark.parametrize(
    ("limits", "depth", "block"),
    [(Limits(iops=500), 1, 4096), (Limits(iops=4000), 32, 512), (Limits(bytes_per_s=8 << 20), 8, 65536)],
    ids=["depth-1", "depth-32", "bytes"],
)
def test_no_more_is_done_than_allowed(
    serve: Serve, disk_of: MakeDisk, store: str, limits: Limits, depth: int, block: int
) -> None:
    path = serve("blk", disk_of(store, size=8 << 20), queues=2, workers=2)
    with BlkFrontEnd(path, queues=2).open() as front:
        assert limit(path, limits).limits == limits
        begin = time.monotonic()
        report = front.load_driver().run(
            seconds=0.5, block_bytes=block, depth=depth, size_bytes=8 << 20, read_percent=50
        )
        passed = time.monotonic() - begin + BURST_S
    allowed = (limits.iops or limits.bytes_per_s / block) * passed
    done = report["requests"]
    assert isinstance(done, int)
    assert 0 < done <= allowed + 1


@pytest.mark.parametrize("store", ["ram", "direct"])
def test_a_limit_that_is_lifted_lets_go_on_what_waits(serve: Serve, disk_of: MakeDisk, store: str) -> None:
    """The last of these would wait for forty seconds."""
    path = serve("blk", disk_of(store))
    with BlkFrontEnd(path).open() as front:
        limit(path, CRAWL)
        waiting = [front.send_request(0, sector=number, data_in=512) for number in range(MANY)]
        assert limit(path, Limits()).limits == Limits()
        assert all(front.wait_request(request).status == 0 for request in waiting)


def test_limits_come_and_go_under_a_load_that_verifies(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("cached"), queues=2, workers=2)
    with ScsiFrontEnd(path, request_queues=2).open() as front:
        front.command(cdb.TEST_UNIT_READY)
        with Load(front) as load:
            for limits in (
                Limits(iops=2000),
                Limits(),
                Limits(iops=50, burst_s=1.0),
                Limits(bytes_per_s=10 << 20),
            ):
                limit(path, limits)
                load.wait_progress(20)
            limit(path, Limits())


def test_a_ring_that_stops_is_drained_without_a_limit(serve: Serve, disk_of: MakeDisk) -> None:
    """As for a migration: the switchover waits for nothing that a limit holds up."""
    path = serve("blk", disk_of("direct"))
    with BlkFrontEnd(path).open() as front:
        limit(path, CRAWL)
        waiting = [front.send_request(0, sector=number, data_in=512) for number in range(MANY)]
        wait_until(lambda: taken(serve) == MANY, "all are taken")
        front.stop()
        assert all(front.wait_request(request).status == 0 for request in waiting)


def test_a_reset_ends_what_waits(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"))
    with ScsiFrontEnd(path).open() as front:
        front.command(cdb.TEST_UNIT_READY)
        limit(path, CRAWL)
        waiting = [front.send_command(cdb.read(number, 1), data_in=512) for number in range(MANY)]
        assert front.task_management(5) == 0  # LOGICAL_UNIT_RESET
        answers = [front.wait_command(request) for request in waiting]
        assert {answer.response for answer in answers} <= {0, 4}  # done before, or RESET
        assert sum(answer.response == 4 for answer in answers) >= 30


def test_a_disk_that_is_removed_gives_back_what_waits(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"), disk_of("ram"))
    with ScsiFrontEnd(path).open() as front:
        for lun in (0, 1):
            front.command(cdb.TEST_UNIT_READY, lun=lun)
        limit(path, CRAWL, lun=1)
        waiting = [front.send_command(cdb.read(number, 1), lun=1, data_in=512) for number in range(MANY)]
        serve.target.remove_lun(0, 1)
        answers = [front.wait_command(request) for request in waiting]
        assert sum(answer.response != 0 or answer.status != 0 for answer in answers) >= 30
        front.command(cdb.TEST_UNIT_READY)  # LUNs have changed
        assert front.command(cdb.read(0, 1), data_in=512).status == cdb.GOOD


def test_another_disk_is_not_held_up(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"), disk_of("direct"))
    with ScsiFrontEnd(path).open() as front:
        for lun in (0, 1):
            front.command(cdb.TEST_UNIT_READY, lun=lun)
        limit(path, CRAWL)
        waiting = [front.send_command(cdb.read(number, 1), data_in=512) for number in range(MANY)]
        for number in range(100):
            assert front.command(cdb.read(number, 1), lun=1, data_in=512).status == cdb.GOOD
        limit(path, Limits())
        assert all(front.wait_command(request).status == cdb.GOOD for request in waiting)


def test_what_is_no_limit_is_refused(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"))
    with pytest.raises(NotFoundError, match="there is no LUN 7"):
        limit(path, Limits(iops=1), lun=7)
    for wrong in (Limits(iops=-1), Limits(burst_s=1e9)):
        with pytest.raises(ControlError):
            limit(path, wrong)
