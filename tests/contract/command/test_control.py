"""The control socket of a running target: its figures agree with what was done, LUNs change under load."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    ControlError,
    NotFoundError,
    PermissionDeniedError,
    UsageError,
)
from ringway.model import (
    BackstoreSpec,
    Done,
    DrainRequest,
    InfoRequest,
    IoEngine,
    LunAddRequest,
    LunInfo,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    QuitRequest,
    SpecKind,
    TargetInfo,
)
from ringway.testing.frontend import BlkFrontEnd, ScsiEvent, ScsiFrontEnd, lun_address
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S
from ringway.vhost_user.messages import BackendRequest

from .. import cdb
from ..devices.test_scsi import opened, ready
from ..disks import MIB, SIZE, MakeDisk
from ..loads import Load

TRANSPORT_RESET, PARAM_CHANGE = 1, 3
RESCAN, REMOVED = 1, 2
MISSED = 1 << 31
CAPACITY_CHANGED = (6, 0x2A, 0x09)
LUNS_CHANGED = (6, 0x3F, 0x0E)
POWER_ON = (6, 0x29, 0)
NO_SUCH_LUN = (5, 0x25, 0)
BAD_TARGET = 3


def served(folder: Path, engine: IoEngine, *arguments: str) -> ServedTarget:
    return ServedTarget(folder, "--io-engine", engine.value, *arguments)


def ram(target: int, lun: int, size: int = MIB) -> LunSpec:
    return LunSpec(target, lun, BackstoreSpec(SpecKind.RAM, size_bytes=size))


def ask(target: ServedTarget, request: Any, answer: Any = Done, fd: int | None = None) -> Any:
    with target.control() as client:
        return client.call(request, answer, fd=fd)


def named(target: int, lun: int) -> bytes:
    """The LUN bytes of an event: Linux takes the two middle ones for a number, as REPORT LUNS has them."""
    return lun_address(target, lun, flat=lun > 255)


def raw(target: ServedTarget, *lines: bytes) -> list[dict[str, Any]]:
    """Say lines on one connection. :returns: what each is answered."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(target.socket + ".ctl")
        with client.makefile("rwb") as stream:
            answers = []
            for line in lines:
                stream.write(line + b"\n")
                stream.flush()
                answers.append(json.loads(stream.readline()))
            return answers


# Figures


@pytest.mark.parametrize("store", ["ram", "cached"])
def test_figures_of_a_blk_disk_agree_with_what_was_done(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, store: str
) -> None:
    disk = disk_of(store)
    arguments = ["--device", "blk", "--queues", "2", "--lun", f"0={disk.argument}"]
    with served(run_dir, engine, *arguments) as target:
        assert target.statistics().luns == ()
        with BlkFrontEnd(target.socket, queues=2).open() as front:
            for queue in (0, 1, 1):
                assert front.write(8, bytes(8192), queue=queue).status == 0
            assert [front.read(8, 4096, queue=0).status for _ in range(5)] == [0] * 5
            assert front.flush().status == 0
            assert front.discard(8, 8).status == 0
            assert front.write_zeroes(8, 8).status == 0
            assert front.serial()
            assert front.read(SIZE // 512, 512).status == 1
            before = target.statistics()
            front.stop()
            after = target.statistics()
    (lun,) = before.luns
    assert (lun.target, lun.lun) == (0, 0)
    assert (lun.writes, lun.write_bytes) == (3, 3 * 8192)
    assert (lun.reads, lun.read_bytes) == (5, 5 * 4096)
    assert (lun.flushes, lun.unmaps, lun.other, lun.errors) == (1, 2, 1, 1)
    assert 0 < lun.read_latency.p50_ns <= lun.read_latency.p99_ns <= lun.read_latency.max_ns
    assert [row.requests for row in before.queues] == [11, 2]
    assert [row.running for row in before.queues] == [True, True]
    assert [row.running for row in after.queues] == [False, False]
    assert [row.in_flight for row in after.queues] == [0, 0]
    assert all(1 <= row.signals <= row.batches <= row.requests for row in after.queues)


def test_figures_of_a_scsi_target_are_those_of_each_lun(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    arguments = ["--lun", f"0={disk_of('cached').argument}", "--lun", "1:2=ram:1M"]
    with served(run_dir, engine, *arguments) as target, opened(target.socket) as front:
        while front.command(cdb.TEST_UNIT_READY, target=1, lun=2).status:
            pass
        start = {(lun.target, lun.lun): lun for lun in target.statistics().luns}
        listed = cdb.unmap_list((0, 8))
        assert front.command(cdb.write(0, 8), data_out=bytes(4096)).status == 0
        assert front.command(cdb.read(0, 2), data_in=1024, target=1, lun=2).status == 0
        assert front.command(cdb.unmap(listed), data_out=listed, target=1, lun=2).status == 0
        assert front.command(cdb.synchronize_cache()).status == 0
        assert front.command(cdb.inquiry(36), data_in=36).status == 0
        assert front.command(cdb.read(SIZE // 512, 1), data_in=512).status == cdb.CHECK_CONDITION
        end = {(lun.target, lun.lun): lun for lun in target.statistics().luns}

    def grown(address: tuple[int, int], *names: str) -> list[int]:
        return [getattr(end[address], name) - getattr(start[address], name) for name in names]

    assert sorted(end) == [(0, 0), (1, 2)]
    assert grown((0, 0), "reads", "writes", "write_bytes", "flushes", "unmaps") == [0, 1, 4096, 1, 0]
    assert grown((0, 0), "other", "errors") == [2, 1]
    assert grown((1, 2), "reads", "read_bytes", "writes", "unmaps", "errors") == [1, 1024, 0, 1, 0]


def test_info_tells_what_is_served_and_whether_somebody_is_there(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    disk = disk_of("cached", block_size=4096)
    arguments = ["--lun", f"3={disk.argument},serial=ABC,readonly", "--queues", "4", "--workers", "2"]
    with served(run_dir, engine, *arguments) as target:
        info = target.info()
        assert (info.pid, info.io_engine, info.queues, info.workers) == (target.pid, engine.value, 4, 2)
        assert not info.connected
        (lun,) = info.luns
        assert (lun.lun, lun.name, lun.size_bytes, lun.block_size) == (3, str(disk.path), SIZE, 4096)
        assert (lun.readonly, lun.mapped, lun.direct, lun.serial) == (True, False, False, "ABC")
        assert (lun.ownership, lun.epoch) == ("held", 1)
        with ScsiFrontEnd(target.socket, request_queues=4).open():
            assert target.info().connected
        target.wait_message("left: ")
        assert not target.info().connected


# LUNs


def test_luns_come_and_go_under_a_load(run_dir: Path, disk_of: MakeDisk, engine: IoEngine) -> None:
    """The guest hears of each on its event queue; the load on another LUN notices nothing."""
    arguments = ["--lun", f"0={disk_of('cached').argument}", "--queues", "3", "--workers", "2"]
    with (
        served(run_dir, engine, *arguments) as target,
        opened(target.socket, request_queues=3) as front,
    ):
        front.offer_event_buffers(16)
        driven = LoadedGuest(front)
        with Load(driven) as load:  # type: ignore[arg-type]
            for lun in (5, 300):
                load.wait_progress(50)
                added = ask(target, LunAddRequest(ram(1, lun)), LunInfo)
                assert (added.target, added.lun, added.size_bytes) == (1, lun, MIB)
                assert front.wait_event() == ScsiEvent(TRANSPORT_RESET, named(1, lun), RESCAN)
                first = front.command(cdb.TEST_UNIT_READY, target=1, lun=lun, queue=2)
                assert first.sense_key == POWER_ON
                load.wait_progress(50)
                wrote = front.command(
                    cdb.write(0, 1), target=1, lun=lun, queue=2, data_out=bytes([lun % 256]) * 512
                )
                assert wrote.status == cdb.GOOD
            told = front.command(cdb.TEST_UNIT_READY, target=1, lun=5, queue=2)
            assert told.sense_key == LUNS_CHANGED
            for lun in (5, 300):
                load.wait_progress(50)
                ask(target, LunRemoveRequest(1, lun))
                assert front.wait_event() == ScsiEvent(TRANSPORT_RESET, named(1, lun), REMOVED)
                gone = front.command(cdb.read(0, 1), target=1, lun=lun, queue=2, data_in=512)
                assert gone.response == BAD_TARGET or gone.sense_key == NO_SUCH_LUN
            load.wait_progress(50)
        assert [lun.lun for lun in target.info().luns] == [0]


class LoadedGuest:
    """The first two request queues of a front end, for a load; the third stays the test's."""

    def __init__(self, front: ScsiFrontEnd) -> None:
        self.rings = front.rings[2:4]
        self._front = front

    def load_driver(self) -> Any:
        whole = self._front.rings
        self._front.rings = whole[:4]
        try:
            return self._front.load_driver()
        finally:
            self._front.rings = whole


def test_a_lun_that_is_removed_under_its_own_load_ends_that_load_alone(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """Requests that were in flight end well or with an error; the store is closed and can be served again."""
    disk = disk_of("cached")
    spec = LunSpec(0, 1, disk.spec)
    with (
        served(run_dir, engine, "--lun", "0=ram:1M", "--queues", "2") as target,
        opened(target.socket, request_queues=2) as front,
        disk.path.open("r+b") as file,
    ):
        for _ in range(3):
            ask(target, LunAddRequest(spec), LunInfo, fd=file.fileno())
            ready(front, 0, 1)
            sent = [
                front.send_command(cdb.write(128 * n, 128), lun=1, data_out=b"w" * 65536, queue=n % 2)
                for n in range(32)
            ]
            ask(target, LunRemoveRequest(0, 1))
            last = front.command(cdb.write(0, 1), lun=1, data_out=bytes(512))
            assert last.sense_key == NO_SUCH_LUN
            ends = [front.wait_command(request) for request in sent]
            assert {end.response for end in ends} == {0}
            assert {end.sense_key for end in ends} <= {(0, 0, 0), NO_SUCH_LUN}
        ready(front)
        assert front.command(cdb.read(0, 1), data_in=512).status == cdb.GOOD
        assert set(disk.path.read_bytes()) <= {0, ord("w")}


def test_a_resize_is_an_event_and_a_unit_attention(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    disk = disk_of("cached")
    with (
        served(run_dir, engine, "--lun", "0=ram:1M", "--lun", f"1:0={disk.argument}") as target,
        opened(target.socket) as front,
    ):
        while front.command(cdb.TEST_UNIT_READY, target=1).status:
            pass
        front.offer_event_buffers(4)
        os.truncate(disk.path, 2 * SIZE)
        resized = ask(target, LunResizeRequest(1, 0), LunInfo)
        assert resized.size_bytes == 2 * SIZE
        assert front.wait_event() == ScsiEvent(PARAM_CHANGE, named(1, 0), 0x2A | 0x09 << 8)
        assert front.command(cdb.TEST_UNIT_READY, target=1).sense_key == CAPACITY_CHANGED
        capacity = front.command(cdb.READ_CAPACITY_10, target=1, data_in=8).data
        assert int.from_bytes(capacity[:4], "big") == 2 * SIZE // 512 - 1
        last = cdb.write(2 * SIZE // 512 - 1, 1)
        assert front.command(last, target=1, data_out=b"x" * 512).status == cdb.GOOD
        assert front.command(cdb.TEST_UNIT_READY).status == cdb.GOOD, "the other LUN has nothing to tell"


@pytest.mark.parametrize("store", ["mapped", "cached", "direct"])
def test_a_blk_disk_grows_under_a_load(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine, store: str
) -> None:
    disk = disk_of(store)
    arguments = ["--device", "blk", "--lun", f"0={disk.argument}", "--queues", "2"]
    with (
        served(run_dir, engine, *arguments) as target,
        BlkFrontEnd(target.socket, queues=2).open() as front,
        Load(front) as load,
    ):
        for factor in (2, 3, 4, 2):
            load.wait_progress()
            os.truncate(disk.path, factor * SIZE)
            assert ask(target, LunResizeRequest(0, 0), LunInfo).size_bytes == factor * SIZE
            assert front.wait_notice() is BackendRequest.CONFIG_CHANGE_MSG
            assert front.capacity == factor * SIZE // 512
        load.wait_progress()


def test_events_without_a_buffer_are_told_as_missed(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    """Spec: virtio 1.3, 5.6.6.3: the next event carries EVENTS_MISSED."""
    with served(run_dir, engine, "--lun", "0=ram:1M") as target, opened(target.socket) as front:
        ask(target, LunAddRequest(ram(0, 1)), LunInfo)
        ready(front)  # the worker has seen the event by now
        front.offer_event_buffers(2)
        ask(target, LunAddRequest(ram(0, 2)), LunInfo)
        assert front.wait_event() == ScsiEvent(TRANSPORT_RESET | MISSED, named(0, 2), RESCAN)
        ask(target, LunRemoveRequest(0, 2))
        assert front.wait_event() == ScsiEvent(TRANSPORT_RESET, named(0, 2), REMOVED)


def test_an_open_file_can_be_handed_over(run_dir: Path, disk_of: MakeDisk, engine: IoEngine) -> None:
    disk = disk_of("cached")
    spec = LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, path="/named/but/not/opened"))
    with served(run_dir, engine, "--lun", "0=ram:1M") as target, opened(target.socket) as front:
        with disk.path.open("r+b") as file:
            added = ask(target, LunAddRequest(spec), LunInfo, fd=file.fileno())
        assert added.size_bytes == SIZE
        ready(front, 0, 1)
        assert front.command(cdb.write(0, 1), lun=1, data_out=b"x" * 512).status == cdb.GOOD
        assert disk.path.read_bytes()[:512] == b"x" * 512


def test_what_cannot_be_done_is_refused_and_nothing_is_touched(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    disk = disk_of("cached")
    with (
        served(run_dir, engine, "--lun", f"0={disk.argument}") as target,
        opened(target.socket) as front,
        disk.path.open("r+b") as file,
        open(os.devnull, "r+b", buffering=0) as null,
    ):
        before = target.info()
        for request, fd, error in (
            (LunAddRequest(ram(0, 0)), None, ConflictError),
            (LunAddRequest(LunSpec(0, 1, disk.spec)), file.fileno(), BusyError),
            (LunAddRequest(LunSpec(0, 1, disk.spec)), None, PermissionDeniedError),
            (LunAddRequest(LunSpec(0, 1, disk.spec)), null.fileno(), BackstoreError),
            (LunRemoveRequest(0, 9), None, NotFoundError),
            (LunResizeRequest(0, 9), None, NotFoundError),
            (LunResizeRequest(0, 0, MIB), None, UsageError),
            (LunResizeRequest(0, 0), null.fileno(), ConflictError),
        ):
            with pytest.raises(error):
                ask(target, request, fd=fd)
        after = target.info()
        assert after == before
        assert front.command(cdb.read(0, 1), data_in=512).status == cdb.GOOD


def test_a_blk_target_keeps_its_one_disk(run_dir: Path, engine: IoEngine) -> None:
    with served(run_dir, engine, "--device", "blk", "ram:1M") as target:
        for request in (LunRemoveRequest(0, 0), LunAddRequest(ram(0, 1))):
            with pytest.raises(UsageError):
                ask(target, request)
        with BlkFrontEnd(target.socket).open() as front:
            assert front.read(0, 512).status == 0


# The rest


def test_drain_waits_for_what_is_in_flight_and_the_load_goes_on(
    run_dir: Path, disk_of: MakeDisk, engine: IoEngine
) -> None:
    arguments = ["--device", "blk", "--lun", f"0={disk_of('direct').argument}"]
    with (
        served(run_dir, engine, *arguments) as target,
        BlkFrontEnd(target.socket).open() as front,
        Load(front) as load,
    ):
        for _ in range(10):
            load.wait_progress(20)
            assert ask(target, DrainRequest()).complete
        load.wait_progress(20)


def test_quit_ends_it_as_a_signal_does(run_dir: Path, disk_of: MakeDisk, engine: IoEngine) -> None:
    disk = disk_of("cached")
    arguments = ["--device", "blk", "--lun", f"0={disk.argument}"]
    with served(run_dir, engine, *arguments) as target:
        with BlkFrontEnd(target.socket).open() as front:
            assert front.write(0, b"x" * 512).status == 0
            assert ask(target, QuitRequest()).complete
            assert target.wait() == 0
            assert front.hung_up()
        summary = target.wait_event("summary")
        assert summary["statistics"]["luns"][0]["writes"] == 1
        assert not Path(target.socket).exists()
        assert not Path(target.socket + ".ctl").exists()
    assert disk.path.read_bytes()[:512] == b"x" * 512


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_of_an_operator_ends_it_in_order(
    run_dir: Path, engine: IoEngine, number: signal.Signals
) -> None:
    with served(run_dir, engine, "ram:1M") as target, ScsiFrontEnd(target.socket).open() as front:
        ready(front)
        target.signal(number)
        assert target.wait() == 0
        assert target.wait_event("summary")["signal"] == number


def test_an_unknown_version_or_verb_is_refused_and_the_connection_goes_on(
    run_dir: Path, engine: IoEngine
) -> None:
    info = msgspec.json.encode(InfoRequest())
    with served(run_dir, engine, "ram:1M") as target:
        answers = raw(
            target,
            info.replace(b'"version":1', b'"version":2'),
            b'{"version":1,"verb":"explode"}',
            b'{"version":1,"verb":"info","more":1}',
            b"no JSON",
            b'{"verb":"info"}',
            info,
        )
        *refused, good = answers
        assert [answer["error"]["code"] for answer in refused] == ["control"] * 5
        assert "version 2" in refused[0]["error"]["message"]
        assert "explode" in refused[1]["error"]["message"]
        assert all(answer["error"]["hint"] or number == 2 for number, answer in enumerate(refused))
        assert good["version"] == 1
        assert msgspec.convert(good["ok"], TargetInfo).pid == target.pid
        with target.control() as client, pytest.raises(ControlError):
            client.call(InfoRequest(version=7), TargetInfo)


def test_the_control_socket_is_its_owners(run_dir: Path, engine: IoEngine) -> None:
    with served(run_dir, engine, "ram:1M") as target:
        assert os.stat(target.socket + ".ctl").st_mode & 0o777 == 0o600
        assert os.stat(target.socket).st_mode & 0o007 == 0
