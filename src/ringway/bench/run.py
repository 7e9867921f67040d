"""Measuring: cases and sides in turn, A B A B, so that a drift of the machine hits all alike."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ringway.bench.plan import BLOCK_BYTES, Case, Sample, percentile_ns
from ringway.bench.sides import SIZE_BYTES, Side, running
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.memory import GuestMemory

_WARM_UP_S: Final = 0.2
_IDLE_S: Final = 0.5
_MEMORY_BYTES: Final = 64 << 20
_TEST_UNIT_READY: Final = bytes(6)


def measure(
    cases: Sequence[Case],
    sides: Sequence[Side],
    *,
    repeats: int,
    seconds: float,
    cpus: tuple[int, int] | None,
    progress: Callable[[Sample], None] = lambda _: None,
) -> list[Sample]:
    """Run each case on each side that can serve it, ``repeats`` times, interleaved.

    :param cpus: of the target and of the client; ``None``: wherever the kernel puts them.
    :raises RingwayError: a side does not start, or falls silent.
    """
    samples = []
    with _workplace() as (folder, image):
        for _ in range(repeats):
            for case in cases:
                for side in (side for side in sides if case.store in side.stores):
                    samples.append(_sample(case, side, folder, image, seconds, cpus))
                    progress(samples[-1])
    return samples


@contextmanager
def _workplace() -> Iterator[tuple[Path, Path]]:
    """A folder in memory, with an image whose pages are all there."""
    with tempfile.TemporaryDirectory(prefix="ringway-", dir="/dev/shm") as name:
        image = Path(name) / "disk.img"
        with image.open("wb") as file:
            chunk = os.urandom(1 << 20)
            for _ in range(SIZE_BYTES >> 20):
                file.write(chunk)
        yield Path(name), image


def _sample(
    case: Case, side: Side, folder: Path, image: Path, seconds: float, cpus: tuple[int, int] | None
) -> Sample:
    target_cpu, client_cpu = cpus or (None, None)
    with (
        running(side, case.store, folder, image, target_cpu) as (socket, pid),
        _front_end(side, socket) as front,
    ):
        driver = front.load_driver()

        def load(run_s: float) -> dict[str, int | float | list[int]]:
            return driver.run(
                seconds=run_s,
                block_bytes=BLOCK_BYTES,
                depth=case.depth,
                size_bytes=SIZE_BYTES,
                cpu=client_cpu,
            )

        load(_WARM_UP_S)
        before = _cpu_seconds(pid)
        report = load(seconds)
        busy = _cpu_seconds(pid) - before
        return _judged(case, side, report, busy, _idle_share(pid))


def _judged(
    case: Case, side: Side, report: dict[str, int | float | list[int]], busy_s: float, idle_share: float
) -> Sample:
    latency, elapsed = report["latency"], report["seconds"]
    requests, cpu_s = report["requests"], report["cpu_seconds"]
    assert isinstance(latency, list)
    assert not isinstance(elapsed, list)
    assert not isinstance(requests, list)
    assert not isinstance(cpu_s, list)
    return Sample(
        side=side.name,
        case=case,
        iops=requests / elapsed,
        p50_ns=percentile_ns(latency, 0.5),
        p99_ns=percentile_ns(latency, 0.99),
        client_share=cpu_s / elapsed,
        target_share=busy_s / elapsed,
        idle_share=idle_share,
        latency=latency,
    )


@contextmanager
def _front_end(side: Side, socket: Path) -> Iterator[ScsiFrontEnd | BlkFrontEnd]:
    memory = GuestMemory([_MEMORY_BYTES])
    if side.device == "blk":
        with BlkFrontEnd(socket, memory=memory).open() as front:
            yield front
        return
    with ScsiFrontEnd(socket, memory=memory).open() as scsi:
        while scsi.command(_TEST_UNIT_READY).status:
            pass  # the power-on unit attention
        yield scsi


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process (``/proc/PID/schedstat`` has the first one alone)."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def _idle_share(pid: int) -> float:
    """CPU seconds a second of a target whose front end is connected and asks for nothing."""
    time.sleep(0.1)
    before, start = _cpu_seconds(pid), time.monotonic()
    time.sleep(_IDLE_S)
    return (_cpu_seconds(pid) - before) / (time.monotonic() - start)
