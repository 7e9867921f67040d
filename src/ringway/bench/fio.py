"""The reference for files on a disk: fio with io_uring on the host, on a file like the targets' own."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ringway.bench.machine import Cpus, busy, cpu_time, load, round_trip_ns, running_on
from ringway.bench.plan import Case
from ringway.bench.samples import Sample
from ringway.errors import RingwayError

NAME: Final = "fio"
_PERCENTILES: Final = {"p50": "50.000000", "p99": "99.000000", "p999": "99.900000"}
_GRACE_S: Final = 30.0
_MIDDLE: Final = (0.4, 0.9)


def installed() -> bool:
    """Whether there is a fio."""
    return shutil.which("fio") is not None


def serves(case: Case) -> bool:
    """Whether fio can do the like: a closed loop on one file, from one thread."""
    return case.store == "disk" and case.setup.luns == case.setup.queues == 1 and not case.rate_iops


def command(case: Case, image: Path, seconds: float) -> list[str]:
    """What does to a file what the client does to a disk."""
    return [
        "fio",
        "--name=reference",
        "--output-format=json",
        "--ioengine=io_uring",
        "--direct=1",
        "--rw=randrw",
        f"--rwmixread={case.read_percent}",
        f"--bs={case.block_bytes}",
        f"--iodepth={case.depth}",
        f"--iodepth_batch_submit={case.batch}",
        "--filename=" + str(image).replace(":", "\\:"),
        "--time_based",
        "--thread",
        f"--runtime={max(1, round(seconds * 1000))}ms",
        "--norandommap",
        "--lat_percentiles=1",
        f"--percentile_list={':'.join(_PERCENTILES.values())}",
    ]


def sample(case: Case, image: Path, seconds: float, cpus: Cpus | None) -> Sample:
    """Run fio on the target's CPU, while the client's is as busy as a client would keep it.

    Otherwise fio alone would have that CPU for the disk's interrupts, and its host another.

    :raises RingwayError: it fails.
    """
    line = command(case, image, seconds)
    before = round_trip_ns(cpus)
    with busy(cpus.client if cpus else None):
        start = load(cpus)
        with running_on(cpus.target if cpus else None):
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        waited = _waited(process.pid, seconds)
        output, _ = process.communicate(timeout=_GRACE_S)
        stolen_s = load(cpus).stolen_s - start.stolen_s
    if process.returncode:
        raise RingwayError(f"fio failed: {output.strip()[-300:]}")
    trips = (*before, *round_trip_ns(cpus))
    return parse(output[output.index("{") :], case, trips, waited, stolen_s / seconds)


def _waited(pid: int, seconds: float) -> float:
    """Share of the time that its threads waited for their CPU in the middle of the run."""
    start, end = (seconds * part for part in _MIDDLE)
    time.sleep(start)
    before = cpu_time(pid)
    time.sleep(end - start)
    return cpu_time(pid).waited_since(before) / 1e9 / (end - start)


def parse(
    text: str, case: Case, round_trips_ns: tuple[float, ...], others_share: float, stolen_share: float
) -> Sample:
    """What fio measured. CPU an I/O: its user and system time over its requests."""
    job = msgspec.json.decode(text)["jobs"][0]
    seconds = job["job_runtime"] / 1000
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    cpu_share = (job["usr_cpu"] + job["sys_cpu"]) / 100
    quantiles = _quantiles(job)
    return Sample(
        side=NAME,
        device=None,
        case=case,
        iops=requests / seconds,
        p50_ns=quantiles["p50"],
        p99_ns=quantiles["p99"],
        p999_ns=quantiles["p999"],
        cpu_ns=cpu_share * seconds * 1e9 / max(requests, 1),
        client_share=1.0,
        target_share=cpu_share,
        others_share=others_share,
        stolen_share=stolen_share,
        round_trips_ns=round_trips_ns,
        errors=job["error"],
        unsent=0,
        idle_share=None,
        private_bytes=None,
        latency={},
    )


def _quantiles(job: dict[str, Any]) -> dict[str, float]:
    """Of the direction that has more requests; from submission to completion, as the client has it."""
    most = max((job["read"], job["write"]), key=lambda direction: int(direction["total_ios"]))
    found = most["lat_ns"]["percentile"]
    return {name: float(found[key]) for name, key in _PERCENTILES.items()}
