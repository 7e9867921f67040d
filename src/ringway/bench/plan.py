"""What is measured: cases, each with a name that a pattern can select, and suites of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Final, Literal, get_args

import msgspec

from ringway.errors import NotFoundError

StoreKind = Literal["null", "ram", "tmpfs", "disk"]
DeviceKind = Literal["scsi", "blk"]
Suite = Literal["quick", "goals", "full"]

STORES: Final[tuple[StoreKind, ...]] = get_args(StoreKind)
DEVICES: Final[tuple[DeviceKind, ...]] = get_args(DeviceKind)
SUITES: Final[tuple[Suite, ...]] = get_args(Suite)
#: Bytes of all disks of a target together: more than the caches of a CPU hold.
STORE_BYTES: Final = 256 << 20
#: Requests of an open loop that may be in flight.
_OPEN_DEPTH: Final = 32

_SIZES: Final = {512: "512", 4096: "4k", 1 << 20: "1m"}
_PATTERNS: Final = {100: "read", 0: "write", 25: "r25w75", 75: "r75w25"}


class Setup(msgspec.Struct, frozen=True):
    """What a target has to be started with: cases that share it run against one process."""

    store: StoreKind
    queues: int
    luns: int
    workers: int

    @property
    def disk_bytes(self) -> int:
        """Size of each disk: many small ones and one large one span the same memory."""
        return STORE_BYTES // self.luns


class Case(msgspec.Struct, frozen=True):
    """One load: random requests on a kind of store.

    :ivar depth: requests in flight for each queue. :ivar luns: disks of the target, taken in turn.
    :ivar batch: slots that must be free before any is filled, and completions that are taken before that.
    :ivar rate_iops: offered load, evenly spaced, latency counted from when a request was due; 0: closed loop.
    """

    store: StoreKind
    depth: int = 1
    block_bytes: int = 4096
    read_percent: int = 100
    queues: int = 1
    luns: int = 1
    workers: int = 1
    batch: int = 1
    rate_iops: float = 0.0

    @property
    def name(self) -> str:
        """As ``tmpfs-4k-read-1x32``: store, block size, pattern, queues and depth, and what is unusual."""
        load = f"{self.queues}x{self.depth}" if not self.rate_iops else f"{self.rate_iops:.0f}iops"
        unusual = [("batch", self.batch), ("luns", self.luns), ("workers", self.workers)]
        return "-".join(
            [self.store, _SIZES[self.block_bytes], _PATTERNS[self.read_percent], load]
            + [f"{word}{number}" for word, number in unusual if number > 1]
        )

    @property
    def setup(self) -> Setup:
        """What it asks of a target."""
        return Setup(self.store, self.queues, self.luns, self.workers)

    @property
    def buffer_bytes(self) -> int:
        """Guest memory that its requests take."""
        return self.queues * self.depth * max(self.block_bytes, 4096)


def _basic(stores: Iterable[StoreKind]) -> list[Case]:
    """4 KiB and 512 B at depth 1, 32 and 4×64, and 1 MiB at depth 8, in all mixes."""
    small = [
        (bytes_, queues, depth) for bytes_ in (4096, 512) for queues, depth in ((1, 1), (1, 32), (4, 64))
    ]
    return [
        Case(store, depth, block_bytes=bytes_, read_percent=percent, queues=queues)
        for store in stores
        for bytes_, queues, depth in [*small, (1 << 20, 1, 8)]
        for percent in _PATTERNS
    ]


def _lio(stores: Iterable[StoreKind]) -> list[Case]:
    """The profile of LIO's vHost page: 1 MiB, depth 64, batches of 4 and 32, both mixes, up to 32 LUNs."""
    return [
        Case(store, 64, block_bytes=1 << 20, read_percent=percent, batch=batch, luns=luns)
        for store, percent, batch, luns in product(stores, (25, 75), (4, 32), (1, 16, 32))
    ]


def _offered(store: StoreKind, rate_iops: float) -> Case:
    return Case(store, _OPEN_DEPTH, rate_iops=rate_iops)


def first_after_silence(store: StoreKind) -> Case:
    """One request a second: each is the first after a second of silence."""
    return Case(store, 1, rate_iops=1.0)


def partial_load(store: StoreKind) -> Case:
    """10 k IOPS offered."""
    return _offered(store, 10_000.0)


def many_luns(store: StoreKind) -> tuple[Case, Case]:
    """One LUN and 32 LUNs."""
    return Case(store, 32), Case(store, 32, luns=32)


def two_workers(store: StoreKind) -> tuple[Case, Case]:
    """Two queues on one worker, and on two."""
    return Case(store, 32, queues=2), Case(store, 32, queues=2, workers=2)


def _goals() -> list[Case]:
    loads = [Case(store, depth) for store, depth in product(STORES, (1, 32))]
    return [
        *loads,
        Case("ram", 8, block_bytes=1 << 20),
        partial_load("tmpfs"),
        first_after_silence("tmpfs"),
        *many_luns("null"),
        *many_luns("ram"),
        *two_workers("ram"),
    ]


def _quick() -> list[Case]:
    return [Case(store, depth) for store, depth in product(STORES, (1, 32))]


def suite(name: Suite) -> list[Case]:
    """The cases of a suite, each once, those of one set-up side by side."""
    cases = {"quick": _quick, "goals": _goals, "full": _full}[name]()
    return [case for group in by_setup(cases).values() for case in group]


def _full() -> list[Case]:
    more = [case(store) for store in STORES for case in (partial_load, first_after_silence)]
    return [*_goals(), *_basic(STORES), *_lio(STORES), *more]


def select(patterns: Sequence[str], cases: Iterable[Case]) -> list[Case]:
    """The cases whose names match one of the patterns.

    :raises NotFoundError: a pattern matches none.
    """
    every = list(cases)
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in every):
            raise NotFoundError(f"no case is named {pattern}", hint="ringway bench --list shows all")
    return [case for case in every if any(fnmatchcase(case.name, pattern) for pattern in patterns)]


def by_setup(cases: Iterable[Case]) -> dict[Setup, list[Case]]:
    """Cases by what they ask of a target, each once, in the order in which they came."""
    groups: dict[Setup, list[Case]] = {}
    for case in dict.fromkeys(cases):
        groups.setdefault(case.setup, []).append(case)
    return groups
