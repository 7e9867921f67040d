"""Samples and a run as they might have been measured: what the reading parts are tested with."""

from __future__ import annotations

import msgspec

from ringway import _core
from ringway.bench.plan import Case, StoreKind, many_luns, partial_load
from ringway.bench.samples import CopyRates, Failure, Machine, Run, Sample
from ringway.bench.sides import QSD

BOUNDS = _core.latency_bucket_bounds()
NEAR, FAR = (50.0, 52.0), (400.0, 380.0)
CASE = Case("null", 32)

_GOOD = Sample(
    side="ringway blk",
    device="blk",
    case=CASE,
    iops=1e6,
    p50_ns=1000.0,
    p99_ns=2000.0,
    p999_ns=4000.0,
    cpu_ns=1000.0,
    client_share=1.0,
    target_share=1.0,
    others_share=0.0,
    stolen_share=0.0,
    round_trips_ns=NEAR,
    errors=0,
    unsent=0,
    idle_share=0.0,
    private_bytes=17 << 20,
    latency={3: 10},
)


def sample(side: str = "ringway blk", **other: object) -> Sample:
    """A fair sample of a million IOPS near, but for what is said."""
    device = None if side == "fio" else "scsi" if "scsi" in side else "blk"
    return msgspec.structs.replace(_GOOD, side=side, device=device, **other)


def run(*samples: Sample, failures: tuple[Failure, ...] = ()) -> Run:
    """A run of these on a machine that copies 2.6 million times 4 KiB a second."""
    machine = Machine("A CPU", 2, "6.18", {QSD: "10.0.2"})
    copies = [CopyRates(2.6e6, 20e3)]
    return Run(machine, "ringway bench --suite goals", "2026-11-20", list(samples), copies, list(failures))


def whole_run(iops: float = 1e6, latency_ns: float = 1000.0, cpu_ns: float = 1000.0) -> Run:
    """A run that says something of each goal: ours at these figures, the peers at 100 k IOPS and 10 µs."""
    stores: tuple[StoreKind, ...] = ("null", "ram", "tmpfs", "disk")
    cases = [Case(store, depth) for store in stores for depth in (1, 32)]
    cases += [Case("ram", 8, block_bytes=1 << 20), partial_load("tmpfs"), Case("tmpfs", 1, rate_iops=1.0)]
    cases += [Case("ram", 32, queues=2), Case("ram", 32, queues=2, workers=2)]
    cases += [case for store in ("null", "ram") for case in many_luns(store)]
    ours = {"iops": iops, "p50_ns": latency_ns, "cpu_ns": cpu_ns}
    theirs = {"iops": 1e5, "p50_ns": 10_000.0, "cpu_ns": 2000.0}
    samples = [sample(side, case=c, **ours) for c in cases for side in ("ringway blk", "ringway scsi")]
    samples += [sample(QSD, case=case, **theirs) for case in cases if case.store != "ram"]
    samples += [sample("fio", case=Case("disk", depth), **theirs) for depth in (1, 32)]
    samples.append(sample("ringway blk (poll)", case=Case("ram", 1), p50_ns=900.0))
    return run(*samples)
