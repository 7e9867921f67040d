"""``ringway trace`` and ``ringway top``: what they show, and what they say when there is nothing to show."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from ringway.cli.rates import Interval, between, percentile
from ringway.cli.trace import Recording
from ringway.errors import ControlError
from ringway.model import (
    BackstoreSpec,
    ControlRequest,
    DeviceKind,
    InfoRequest,
    Latency,
    LunSpec,
    LunStatistics,
    Poll,
    QueueStatistics,
    SandboxInfo,
    SandboxMode,
    SpecKind,
    StatisticsRequest,
    TargetConfig,
    TargetInfo,
    TargetStatistics,
    WorkerStatistics,
)
from ringway.target.control import ControlServer
from ringway.target.listen import listen
from ringway.target.target import Target
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S

from .conftest import Run

_MAIN_SCREEN = b"\x1b[?1049l"

READ = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0])
WRITE = bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 8, 0])
SANDBOX = SandboxInfo(SandboxMode.AUTO, 1000, 0, 6, True, ())
INFO = TargetInfo("0.1", 7, DeviceKind.SCSI, "x.sock", "uring", Poll.ADAPTIVE, 1, 1, None, True, (), SANDBOX)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A target on ``./disk.img.sock``, as ``ringway serve disk.img`` has it."""
    monkeypatch.chdir(tmp_path)
    config = TargetConfig(
        DeviceKind.SCSI,
        (LunSpec(0, 0, BackstoreSpec(SpecKind.RAM, size_bytes=1 << 20)),),
        poll=Poll.INTERRUPT,
    )
    with Target(config, listen("disk.img.sock"), listen("disk.img.sock.ctl", mode=0o600)) as target:
        yield target


@pytest.fixture
def guest(target: Target) -> Iterator[ScsiFrontEnd]:
    with ScsiFrontEnd("disk.img.sock").open() as front:
        while front.command(bytes(6)).status:
            pass
        yield front


@pytest.fixture
def load(guest: ScsiFrontEnd) -> Iterator[None]:
    """Reads and writes until the end of the test, on a thread."""
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            assert guest.command(READ, data_in=4096).status == 0
            assert guest.command(WRITE, data_out=bytes(4096)).status == 0

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ending.set()
    thread.join(PATIENCE_S)


# trace


@pytest.mark.parametrize("path", ["disk.img.sock", "disk.img.sock.ctl", "disk.img"])
def test_a_trace_is_a_table_of_the_eight_steps(run: Run, load: None, path: str) -> None:
    result = run("trace", path, "--count", "20", "--sample", "1")
    assert result.status == 0, result.err
    for step in ("queued", "kicked", "woken", "dequeued", "dispatched", "completed", "enqueued", "notified"):
        assert result.out.count(step) >= 2, "once in the table, once in the slowest request's"
    assert "The slowest: " in result.out


def test_a_trace_can_be_kept_and_drawn(run: Run, load: None, tmp_path: Path) -> None:
    files = ["--json", "all.json", "--svg", "way.svg", "--perfetto", "way.json"]
    assert run("trace", "disk.img.sock", "--count", "30", "--sample", "2", *files).status == 0
    record = msgspec.json.decode((tmp_path / "all.json").read_bytes(), type=Recording)
    assert (len(record.samples), record.sample, record.target.pid) == (30, 2, os.getpid())
    assert sum(group.count for group in record.groups) == 30
    assert ElementTree.parse(tmp_path / "way.svg").getroot().tag.endswith("svg")
    assert len(json.loads((tmp_path / "way.json").read_text())["traceEvents"]) > 30 * 10


def test_json_on_stdout_is_json_alone(run: Run, load: None) -> None:
    result = run("trace", "disk.img.sock", "--count", "5", "--json", "-")
    assert len(msgspec.json.decode(result.out, type=Recording).samples) == 5


def test_a_trace_without_a_guest_says_so(run: Run, target: Target) -> None:
    result = run("trace", "disk.img.sock", "--seconds", "0.1")
    assert (result.status, result.out) == (3, "")
    assert "no guest is connected" in result.err


def test_a_trace_without_traffic_says_so(run: Run, guest: ScsiFrontEnd) -> None:
    result = run("trace", "disk.img.sock", "--seconds", "0.1")
    assert result.status == 3
    assert "no request came" in result.err
    assert "hint: let the guest do some I/O" in result.err


def test_only_one_trace_at_a_time(run: Run, target: Target) -> None:
    trace = target._core.start_trace()
    result = run("trace", "disk.img.sock")
    assert result.status == 6
    trace.close()


@pytest.mark.parametrize("command", ["trace", "top"])
def test_a_wrong_socket_is_named(run: Run, tmp_path: Path, command: str) -> None:
    missing = run(command, "missing.sock")
    assert (missing.status, "'missing.sock': No such file" in missing.err) == (4, True)
    (tmp_path / "alone.img").touch()
    assert "it is no socket" in run(command, "alone.img").err
    with listen("bare.sock").socket:
        result = run(command, "bare.sock")
    assert result.status == 4
    assert "no control socket bare.sock.ctl" in result.err
    assert "back-end program" in result.err
    assert run(command, "").status == 2


def test_an_older_target_is_named(run: Run) -> None:
    def old(request: ControlRequest, _fd: int | None) -> msgspec.Struct:
        if isinstance(request, InfoRequest):
            return INFO
        if isinstance(request, StatisticsRequest):
            return TargetStatistics(1.0, (), (), ())
        raise ControlError("the verb is not known", hint="this target knows info")

    server = ControlServer(listen("old.sock.ctl"), old)
    result = run("trace", "old.sock")
    server.close()
    assert result.status == 1
    assert "the verb is not known" in result.err
    assert "hint: start it again with this version" in result.err


# top


def test_top_shows_an_interval(run: Run, load: None) -> None:
    result = run("top", "disk.img.sock", "--once", "--interval", "0.2")
    assert result.status == 0, result.err
    assert "a guest is connected" in result.out
    for name in ("0:0", "p99.9", "requests/s", "kicks/s", "slow path/s", "CPU"):
        assert name in result.out


def test_top_is_a_stream_of_json_for_programs(run: Run, load: None) -> None:
    result = run("top", "disk.img.sock", "--once", "--json", "--interval", "0.2")
    rates = msgspec.json.decode(result.out, type=Interval)
    assert rates.connected
    (lun,) = rates.luns
    assert lun.reads_per_s > 0
    assert lun.p50_ns is not None
    assert rates.queues[2].requests_per_s > 0


@pytest.mark.parametrize("option", ["--json", "--svg", "--perfetto"])
def test_a_file_that_cannot_be_written_is_refused_before_the_trace(run: Run, option: str) -> None:
    result = run("trace", "disk.img.sock", option, "missing/way")
    assert result.status == 2, "nobody was asked for a trace: there is no target"
    assert "'missing' is not a directory" in result.err


def test_top_of_an_idle_target_says_so(run: Run, target: Target) -> None:
    result = run("top", "disk.img.sock", "--once", "--interval", "0.05")
    assert "no guest is connected, and nothing was asked for" in result.out


def test_q_ends_top_and_gives_the_terminal_back(target: Target) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "ringway", "top", "disk.img.sock", "--interval", "0.05"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.PIPE) as process:
        os.close(slave)
        _read_until(master, b"worker")
        os.write(master, b"q")
        _drain(master)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(master)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back_as_it_was(target: Target, number: signal.Signals) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "ringway", "top", "disk.img.sock", "--interval", "0.05"]
    command = ["env", "--default-signal=INT,HUP", *command]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.PIPE) as process:
        _read_until(master, b"worker")
        process.send_signal(number)
        _read_until(master, _MAIN_SCREEN)
        assert process.wait(PATIENCE_S) == 0
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def _read_until(fd: int, wanted: bytes) -> None:
    seen, deadline = b"", time.monotonic() + PATIENCE_S
    while wanted not in seen:
        assert select.select([fd], [], [], deadline - time.monotonic())[0], seen
        seen += os.read(fd, 4096)


def _drain(fd: int) -> None:
    """Read what is left, so that the other side can write it."""
    deadline = time.monotonic() + PATIENCE_S
    while select.select([fd], [], [], deadline - time.monotonic())[0]:
        try:
            if not os.read(fd, 4096):
                return
        except OSError:  # the other side is closed
            return


def counters(uptime_s: float, **lun: int | Latency) -> TargetStatistics:
    fields = dict.fromkeys(
        ("reads", "writes", "flushes", "unmaps", "other", "errors", "read_bytes", "write_bytes"), 0
    )
    histograms = {"read_latency": Latency(), "write_latency": Latency()}
    return TargetStatistics(
        uptime_s,
        (LunStatistics(target=0, lun=0, **{**fields, **histograms, **lun}),),  # type: ignore[arg-type]
        (QueueStatistics(0, 10, 4, 5, int(20 * uptime_s), 3, True, 2),),
        (WorkerStatistics(0, 99, 1, 2, 3, int(uptime_s * 5e8)),),
    )


def test_an_interval_is_the_difference_of_two_looks() -> None:
    before = counters(10.0, reads=100, read_latency=Latency(histogram=((128, 100),)))
    after = counters(
        12.0, reads=110, writes=4, errors=1, read_latency=Latency(histogram=((128, 100), (512, 10)))
    )
    rates = between(INFO, before, after)
    (lun,), (queue,), (worker,) = rates.luns, rates.queues, rates.workers
    assert (rates.seconds, lun.reads_per_s, lun.writes_per_s, lun.errors) == (2.0, 5.0, 2.0, 1)
    assert (lun.p50_ns, lun.p999_ns) == (512, 512), "what was slow or fast before does not count"
    assert (queue.requests_per_s, queue.in_flight, queue.batch) == (20.0, 3, 0.0)
    assert worker.cpu == 0.5


def test_a_lun_that_came_anew_counts_from_zero() -> None:
    before = counters(1.0, reads=1000, read_latency=Latency(histogram=((128, 1000),)))
    after = counters(2.0, reads=3, read_latency=Latency(histogram=((256, 3),)))
    (lun,) = between(INFO, before, after).luns
    assert (lun.reads_per_s, lun.p50_ns) == (3.0, 256)


def test_percentiles_of_nothing_are_none() -> None:
    assert percentile({}, 0.5) is None
    assert percentile({128: 0}, 0.5) is None
    assert percentile({128: 99, 4096: 1}, 0.99) == 128
    assert percentile({128: 99, 4096: 1}, 0.999) == 4096
