"""Traces of served targets: every step is there and in order, and nothing is left on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ringway import _core
from ringway.errors import BusyError, ControlError, NotFoundError, UsageError
from ringway.model import (
    Carrier,
    Done,
    IoEngine,
    Notice,
    Operation,
    Poll,
    StatisticsRequest,
    TargetStatistics,
    TraceBatch,
    TraceFetchRequest,
    TraceSample,
    TraceStartRequest,
    TraceStopRequest,
    Wake,
)
from ringway.target.control import ControlClient
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S, wait_until

from .. import cdb
from ..conftest import Serve, ServeHere
from ..disks import MakeDisk
from ..requests import Front, front_end, make_ready, read, send_read, wait, write

INQUIRY = 0x12


class Tracer:
    """A client that traces until the end of its ``with`` block."""

    def __init__(self, path: str, **wanted: Any) -> None:
        self.client = ControlClient(f"{path}.ctl")
        self.samples: list[TraceSample] = []
        self.dropped = 0
        try:
            self.client.call(TraceStartRequest(**wanted), Done)
        except BaseException:
            self.client.close()
            raise

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        with self.client, contextlib.suppress(ControlError):  # a test ended it itself
            self.client.call(TraceStopRequest(), Done)

    def fetch(self) -> None:
        batch = self.client.call(TraceFetchRequest(), TraceBatch)
        self.samples += batch.samples
        self.dropped = batch.dropped

    def wait(self, count: int) -> list[TraceSample]:
        """Fetch until so many are there: answers are shown to the guest a moment before they are sampled."""

        def there() -> bool:
            self.fetch()
            return len(self.samples) >= count

        wait_until(there, f"{count} samples")
        assert len(self.samples) == count
        return self.samples


@contextlib.contextmanager
def connected(path: str, device: str, queues: int = 1) -> Iterator[Front]:
    with front_end(device, path, queues).open() as front:
        make_ready(front)
        yield front


def assert_in_order(sample: TraceSample) -> None:
    """The eight steps: the guest's lie in an interval, the rest are there and never run backwards."""
    times = [
        sample.absent_ns,
        sample.woken_ns,
        sample.seen_ns,
        sample.dequeued_ns,
        sample.dispatched_ns,
        sample.completed_ns,
        sample.enqueued_ns,
        sample.notified_ns,
    ]
    known = [time for time in times if time is not None]
    assert known == sorted(known)
    assert (sample.wake is Wake.POLLING) == (sample.woken_ns is None)
    assert (sample.notice is Notice.SIGNALLED) == (sample.notified_ns is not None)


@pytest.mark.parametrize("device", ["scsi", "blk"])
@pytest.mark.parametrize("store", ["ram", "mapped", "cached"])
def test_every_step_is_there_and_in_order(
    serve: Serve, disk_of: MakeDisk, engine: IoEngine, device: str, store: str
) -> None:
    path = serve(device, disk_of(store))
    with connected(path, device) as front, Tracer(path) as tracer:
        write(front, 0, bytes(8192))
        assert read(front, 0) == bytes(4096)
        samples = tracer.wait(2)
    for sample in samples:
        assert_in_order(sample)
    carrier = Carrier.KERNEL if store == "cached" else Carrier.WORKER
    assert [(s.operation, s.bytes, s.carrier) for s in samples] == [
        (Operation.WRITE, 8192, carrier),
        (Operation.READ, 4096, carrier),
    ]
    assert {(s.target, s.lun, s.queue, s.parked) for s in samples} == {(0, 0, 2 * (device == "scsi"), False)}
    assert [s.opcode for s in samples] == ([0x2A, 0x28] if device == "scsi" else [1, 0])


def test_the_slow_path_is_named(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"))
    with connected(path, "scsi") as front, Tracer(path) as tracer:
        assert isinstance(front, ScsiFrontEnd)
        assert front.command(cdb.inquiry(36), data_in=36).status == 0
        assert front.task_management(5) in (0, 10)  # LOGICAL UNIT RESET, of the control queue
        slow, control = tracer.wait(2)
    assert_in_order(slow)
    assert (slow.carrier, slow.operation, slow.opcode) == (Carrier.PYTHON, Operation.OTHER, INQUIRY)
    assert_in_order(control)
    assert (control.carrier, control.operation, control.queue) == (Carrier.PYTHON, Operation.CONTROL, 0)


def test_one_request_of_each_stretch_is_sampled(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("blk", disk_of("ram"))
    with connected(path, "blk") as front, Tracer(path, sample=10) as tracer:
        for _ in range(100):
            read(front, 0)
        tracer.wait(10)
        for _ in range(20):
            read(front, 0)
        tracer.wait(12)


def test_a_polling_worker_needs_no_kick_and_a_sleeping_one_does(serve: Serve, disk_of: MakeDisk) -> None:
    awake = serve("blk", disk_of("ram"), poll=Poll.POLL)
    with connected(awake, "blk") as front, Tracer(awake) as tracer:
        read(front, 0)
        (polled,) = tracer.wait(1)
    assert polled.wake is Wake.POLLING
    asleep = serve("blk", disk_of("ram"), poll=Poll.INTERRUPT)
    with connected(asleep, "blk") as front, Tracer(asleep) as tracer:

        def was_kicked() -> bool:  # the worker may still be awake when the first request comes
            read(front, 0)
            tracer.fetch()
            return any(sample.wake is Wake.KICK for sample in tracer.samples)

        wait_until(was_kicked, "a request that wakes its worker")
    for sample in (polled, *tracer.samples):
        assert_in_order(sample)


def test_a_queue_or_a_lun_can_be_traced_alone(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"), disk_of("ram"), queues=2, workers=2)

    def load(front: ScsiFrontEnd) -> None:
        for queue in (0, 1):
            for lun in (0, 1):
                command = cdb.read(0, 1)
                while front.command(command, data_in=512, lun=lun, queue=queue).status:
                    pass

    with ScsiFrontEnd(path, request_queues=2).open() as front:
        load(front)
        with Tracer(path, queue=3) as tracer:
            load(front)
            assert {sample.queue for sample in tracer.wait(2)} == {3}
        with Tracer(path, lun=1) as tracer:
            load(front)
            assert {sample.lun for sample in tracer.wait(2)} == {1}
    with pytest.raises(NotFoundError, match="no LUN 0:7"):
        Tracer(path, lun=7)
    with pytest.raises(UsageError, match="queue 9"):
        Tracer(path, queue=9)


def test_a_full_ring_drops_and_counts(serve: Serve, disk_of: MakeDisk) -> None:
    bare = serve.bare("blk", disk_of("ram"))
    with bare.front_end() as front:
        trace = bare.core.start_trace(capacity=4)
        for _ in range(20):
            read(front, 0)
        wait_until(lambda: trace.dropped == 16, "16 samples without room")
        assert len(trace.take(100)) == 4
        read(front, 0)
        wait_until(lambda: len(trace.take(100)) == 1, "room again")
        trace.close()
        assert trace.take(100) == []


def test_what_waits_for_a_lock_is_told_so(serve: Serve, disk_of: MakeDisk) -> None:
    bare = serve.bare("blk", disk_of("ram"))
    with bare.front_end() as front:
        trace = bare.core.start_trace()
        lock = bare.core.lock_range(0, 0, 0, 4096)
        assert lock is not None
        request = send_read(front, 0)
        write(front, 8192, bytes(512))
        bare.core.unlock_range(0, 0, lock)
        assert wait(front, request)[0] == 0
        rows: list[dict[str, Any]] = []

        def both() -> bool:
            rows.extend(trace.take(10))
            return len(rows) == 2

        wait_until(both, "two samples")
        trace.close()
    samples = msgspec.convert(rows, list[TraceSample])
    assert {(s.operation, s.parked) for s in samples} == {(Operation.WRITE, False), (Operation.READ, True)}
    for sample in samples:
        assert_in_order(sample)


@pytest.mark.parametrize("store", ["ram", "cached"])
def test_traces_come_and_go_under_load(serve_here: ServeHere, disk_of: MakeDisk, store: str) -> None:
    """Requests that were under way when a trace began or ended are none of the next one's."""
    path = serve_here("scsi", disk_of(store))
    core: _core.Device = serve_here.target._core
    with connected(path, "scsi") as front:
        driver = front.load_driver()
        for interval in (1, 3, 1000):
            trace = core.start_trace(interval=interval, capacity=100_000)
            report = driver.run(seconds=0.05, block_bytes=4096, depth=16, size_bytes=1 << 20)
            trace.close()
            trace = core.start_trace(interval=interval, capacity=1 << 20)
            report = driver.run(seconds=0.05, block_bytes=4096, depth=16, size_bytes=1 << 20)
            assert isinstance(report["requests"], int)
            samples = msgspec.convert(trace.take(1 << 20), list[TraceSample])
            assert report["errors"] == 0
            wanted = report["requests"] // interval
            assert wanted - 17 <= len(samples) + trace.dropped <= wanted + 1
            for sample in samples:
                assert_in_order(sample)
            trace.close()


def test_a_trace_goes_on_when_guests_come_and_go(serve: Serve, disk_of: MakeDisk) -> None:
    """Each ring begins at index 0 again: its requests are not taken for those of the one before."""
    path = serve("blk", disk_of("ram"))
    with Tracer(path) as tracer:
        for _ in range(3):
            with connected(path, "blk") as front:
                for _ in range(5):
                    read(front, 0)
        samples = tracer.wait(15)
    for sample in samples:
        assert_in_order(sample)
    seen = [sample.seen_ns for sample in samples]
    assert seen == sorted(seen)


def test_one_trace_at_a_time_and_it_ends_with_its_client(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("blk", disk_of("ram"))
    with Tracer(path) as first:
        with pytest.raises(BusyError, match="traced already"):
            Tracer(path)
        with ControlClient(f"{path}.ctl") as other:
            with pytest.raises(ControlError, match="no trace was begun"):
                other.call(TraceFetchRequest(), TraceBatch)
            with pytest.raises(ControlError, match="no trace was begun"):
                other.call(TraceStopRequest(), Done)
        first.client.call(TraceStopRequest(), Done)
        with Tracer(path):
            pass
        wait_until(lambda: _can_trace(path), "the end of a trace whose client hung up")


def test_a_killed_command_leaves_no_trace_on(run_dir: Path) -> None:
    with ServedTarget(run_dir, "--device", "blk", "--lun", "0=ram:1M") as target:
        command = [sys.executable, "-m", "ringway", "trace", "--seconds", "60", target.socket]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            target.wait_message("trace-start")
            with pytest.raises(BusyError):
                Tracer(target.socket)
        finally:
            process.kill()
            process.wait(PATIENCE_S)
        wait_until(lambda: _can_trace(target.socket), "the end of a trace whose client was killed")


def _can_trace(path: str) -> bool:
    try:
        with Tracer(path):
            return True
    except BusyError:
        return False


def test_counters_can_be_subtracted(serve: Serve, disk_of: MakeDisk) -> None:
    path = serve("scsi", disk_of("ram"))

    def look() -> TargetStatistics:
        with ControlClient(f"{path}.ctl") as client:
            return client.call(StatisticsRequest(), TargetStatistics)

    with connected(path, "scsi") as front:
        assert isinstance(front, ScsiFrontEnd)
        write(front, 0, bytes(512))
        before = look()
        for _ in range(5):
            read(front, 0)
        assert front.command(cdb.inquiry(36), data_in=36).status == 0
        after = look()
    (old,), (new,) = before.luns, after.luns
    assert (new.reads - old.reads, new.writes - old.writes, new.other - old.other) == (5, 0, 1)
    assert sum(count for _, count in new.read_latency.histogram) == new.reads
    assert after.queues[2].slow_commands - before.queues[2].slow_commands == 1
