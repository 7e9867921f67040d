"""The machine below a benchmark: what it is, what its CPUs do for a process, and what it can do at best."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ringway import _core
from ringway.bench.samples import CopyRates, Machine
from ringway.errors import UsageError

_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Columns of /proc/stat: user, nice, system; not interrupts, which nobody asked for.
_BUSY_COLUMNS: Final = (1, 2, 3)
_STEAL_COLUMN: Final = 8
_SIZE: Final = re.compile(r"(\w+):\s+(\d+) kB")
_ITS_OWN: Final = ("Private_Clean", "Private_Hugetlb")
_MAPPING: Final = re.compile(r"[0-9a-f]+-[0-9a-f]+ (...)([ps]) ")
_VERSION: Final = re.compile(r"\d+\.\d+(\.\d+)?")
_COPY_S: Final = 0.15
#: Block size and buffers: as many as the goals' cases have in flight.
_COPIES: Final = ((4096, 32), (1 << 20, 8))


class Cpus(msgspec.Struct, frozen=True):
    """The CPUs that target and client are pinned to."""

    target: int
    client: int


class CpuTime(msgspec.Struct, frozen=True):
    """CPU time of the threads of a process, in nanoseconds: used, and waited for."""

    used: dict[int, int]
    waited: dict[int, int]

    def used_since(self, before: CpuTime) -> int:
        """Used between two moments, by the threads that are there at the second."""
        return _growth(before.used, self.used)

    def waited_since(self, before: CpuTime) -> int:
        """Waited for a CPU between two moments."""
        return _growth(before.waited, self.waited)


def _growth(before: dict[int, int], after: dict[int, int]) -> int:
    return sum(value - before.get(thread, 0) for thread, value in after.items())


class Load(msgspec.Struct, frozen=True):
    """Seconds since the host booted: used by tasks on the target's CPU, stolen from both CPUs."""

    busy_s: float
    stolen_s: float


def load(cpus: Cpus | None) -> Load:
    """What the kernel counted so far; nothing without CPUs."""
    if cpus is None:
        return Load(0.0, 0.0)
    rows = {row[0]: row for row in map(str.split, Path("/proc/stat").read_text().splitlines()) if row}
    target, client = rows[f"cpu{cpus.target}"], rows[f"cpu{cpus.client}"]
    busy = sum(int(target[column]) for column in _BUSY_COLUMNS)
    return Load(busy / _TICKS, sum(int(row[_STEAL_COLUMN]) for row in (target, client)) / _TICKS)


def cpu_time(pid: int) -> CpuTime:
    """CPU time of a process so far, kernel workers that belong to it (io-wq) included.

    :raises OSError: there is no such process.
    """
    used, waited = {}, {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (thread / "schedstat").read_text().split()
        except OSError:  # it ended meanwhile
            continue
        used[int(thread.name)], waited[int(thread.name)] = int(fields[0]), int(fields[1])
    return CpuTime(used, waited)


def private_bytes(pid: int) -> int | None:
    """Memory of a process and its children (a target's steward), without shared mappings (a guest's memory, a
    mapped store).

    What they have in common since the fork counts once; what other programs map as well does not count.

    :returns: ``None`` when it may not be seen.
    """
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(_private_bytes(Path(f"/proc/{each}/smaps").read_text()) for each in (pid, *children))
    except OSError:
        return None


def _private_bytes(smaps: str) -> int:
    written = "Pss_Dirty" if "Pss_Dirty:" in smaps else "Private_Dirty"  # Linux 6.0 has the first
    total, private = 0, False
    for line in smaps.splitlines():
        if head := _MAPPING.match(line):
            private = head[2] == "p"
        elif private and (size := _SIZE.match(line)) and size[1] in {written, *_ITS_OWN}:
            total += int(size[2]) << 10
    return total


def two_cpus() -> Cpus:
    """Two CPUs that this process may use. :raises UsageError: there is one only."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise UsageError(
            "a benchmark needs two CPUs, one for the target and one for the client, and there is one",
            hint="--no-pin measures nevertheless; both then wait for each other, and the figures mean little",
        )
    return Cpus(usable[0], usable[1])


def check_cpus(cpus: Cpus) -> None:
    """Refuse CPUs that this process may not use. :raises UsageError: it may not."""
    usable = os.sched_getaffinity(0)
    if missing := {cpus.target, cpus.client} - usable:
        names, others = (", ".join(map(str, sorted(found))) for found in (missing, usable))
        raise UsageError(f"cannot run on CPU {names}", hint=f"this process may use {others}")


@contextmanager
def running_on(cpu: int | None) -> Iterator[None]:
    """Keep this thread on a CPU, so that what it starts runs there from its first instruction on."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def busy(cpu: int | None) -> Iterator[None]:
    """Keep a CPU busy with a process that does nothing else."""
    if cpu is None:
        yield
        return
    with running_on(cpu):
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def round_trip_ns(cpus: Cpus | None) -> tuple[float, ...]:
    """How long a cache line takes from one CPU to the other and back, now; empty without CPUs."""
    return (_core.cache_line_ns((cpus.client, cpus.target)),) if cpus else ()


def copy_rates(cpus: Cpus | None) -> CopyRates:
    """Measure plain copies on the target's CPU: a store in memory cannot be faster with them."""
    cpu = cpus.target if cpus else None
    small, large = (
        _core.copies_per_second(block_bytes=size, buffers=buffers, cpu=cpu, seconds=_COPY_S)
        for size, buffers in _COPIES
    )
    return CopyRates(small, large)


def this_machine() -> Machine:
    """Describe where this runs."""
    programs = ["qemu-storage-daemon", "fio"]
    versions = {name: version for name in programs if (version := _version(name))}
    kernel = _VERSION.match(platform.release())
    return Machine(_cpu_model(), os.cpu_count() or 1, kernel[0] if kernel else platform.release(), versions)


def _version(program: str) -> str | None:
    if shutil.which(program) is None:
        return None
    run = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    found = _VERSION.search(run.stdout)
    return found[0] if found else None


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
