"""Backoff, locks, specifications, events and fault points: the parts of a host by themselves."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ringway.errors import NotFoundError, PermissionDeniedError, RingwayError, UsageError
from ringway.host import specs
from ringway.host.backoff import LONGEST_S, WINDOW_S, Backoff
from ringway.host.events import KEPT, WAITING, Events, Kind
from ringway.host.locks import Locks
from ringway.host.operations import as_ringway_error
from ringway.host.probe import engine_for
from ringway.host.restarts import Restarts
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, Limits, LunSpec, SpecKind
from ringway.testing.waiting import PATIENCE_S

from .helpers import disk, ram, spec

# Errors


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFoundError),
        (errno.EACCES, PermissionDeniedError),
        (errno.EPERM, PermissionDeniedError),
        (errno.EIO, RingwayError),
    ],
)
def test_what_the_kernel_refuses_is_no_fault_of_ours(number: int, kind: type[RingwayError]) -> None:
    told = as_ringway_error(OSError(number, os.strerror(number), "/x"))
    assert type(told) is kind
    assert (told.message, told.hint) == (f"'/x': {os.strerror(number)}", None)


def test_what_went_wrong_besides_is_told_once() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/x")
    for _ in range(2):
        error.add_note("it is taken back later")
    told = as_ringway_error(error)
    assert told.message == "'/x': No space left on device; it is taken back later"


# Backoff


def test_the_first_deaths_cost_less_than_a_second() -> None:
    backoff = Backoff()
    delays = [backoff.died(100.0 + number, "x") for number in range(3)]
    assert delays[0] == 0
    assert all(delay < 1 for delay in delays)
    assert not backoff.is_degraded(102.0)


def test_the_fourth_in_a_minute_is_degraded_and_tried_every_ten_seconds() -> None:
    backoff = Backoff()
    delays = [backoff.died(float(number), "last words") for number in range(20)]
    assert set(delays[3:]) == {LONGEST_S}
    assert LONGEST_S <= 10
    assert backoff.is_degraded(19.0)
    assert (backoff.wait_s(19.0), backoff.wait_s(24.0), backoff.wait_s(29.0)) == (10.0, 5.0, 0.0)
    assert backoff.message == "last words"


def test_a_minute_of_good_conduct_makes_it_well() -> None:
    backoff = Backoff()
    for number in range(10):
        backoff.died(float(number), None)
    assert backoff.is_degraded(9.0 + WINDOW_S - 3)
    assert not backoff.is_degraded(9.0 + WINDOW_S)
    assert backoff.died(100.0, None) == 0


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
def test_it_is_never_longer_than_ten_seconds(times: list[float]) -> None:
    backoff = Backoff()
    assert all(0 <= backoff.died(when, None) <= 10 for when in sorted(times))


# Restarts


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"boot": 1}', '{"boot": "another", "restarts": {"a": 7}}', "\udcff"]
)
def test_restarts_of_another_boot_or_of_nonsense_count_for_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "restarts.json"
    path.write_text(text, errors="surrogateescape")
    restarts = Restarts(path)
    assert restarts.of("a") == 0
    restarts.count("a")
    restarts.count("a")
    assert Restarts(path).of("a") == 2
    restarts.forget("a")
    assert Restarts(path).of("a") == 0


def test_restarts_that_cannot_be_written_down_are_counted_all_the_same(tmp_path: Path) -> None:
    restarts = Restarts(tmp_path / "gone" / "restarts.json")
    restarts.count("a")
    assert restarts.of("a") == 1


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("restarts.new", "restarts.json"):
        (tmp_path / name).symlink_to(victim)
    restarts = Restarts(tmp_path / "restarts.json")
    restarts.count("a")
    assert victim.read_text() == "precious"
    assert Restarts(tmp_path / "restarts.json").of("a") == 1


# Locks


@pytest.mark.anyio
async def test_one_name_waits_and_another_does_not() -> None:
    locks, order = Locks(), list[str]()

    async def work(name: str, label: str, *, pause: bool) -> None:
        async with locks.hold(name):
            order.append(f"{label} in")
            await asyncio.sleep(0.02 if pause else 0)
            order.append(f"{label} out")

    await asyncio.gather(work("a", "1", pause=True), work("a", "2", pause=True), work("b", "3", pause=False))
    assert order.index("3 out") < order.index("1 out") < order.index("2 in")
    assert not locks.is_held("a")
    assert locks._locks == {}


@pytest.mark.anyio
async def test_who_gives_up_waiting_leaves_the_lock_alone() -> None:
    locks = Locks()

    async def wait() -> None:
        async with locks.hold("a"):
            raise AssertionError

    async with locks.hold("a"):
        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert locks.is_held("a")
    assert locks._locks == {}


# Specifications


def luns() -> st.SearchStrategy[tuple[LunSpec, ...]]:
    """LUNs at some of five addresses, each on one of two disks."""
    one = st.builds(disk, st.integers(0, 4), st.sampled_from(["/a", "/b"]))
    return st.lists(one, unique_by=lambda lun: lun.lun).map(tuple)


@given(luns(), luns(), st.sets(st.integers(0, 4)))
def test_half_of_a_change_has_what_is_there_and_nothing_else(
    old: tuple[LunSpec, ...], new: tuple[LunSpec, ...], there: set[int]
) -> None:
    addresses = {(0, lun) for lun in there}
    found = specs.half_done(EndpointSpec(name="a", luns=old), EndpointSpec(name="a", luns=new), addresses)
    known = {(lun.target, lun.lun) for lun in (*old, *new)}
    assert {(lun.target, lun.lun) for lun in found.luns} == addresses & known
    assert all(lun in (*old, *new) for lun in found.luns)


@given(luns(), luns())
def test_differences_are_empty_only_between_equals(
    old: tuple[LunSpec, ...], new: tuple[LunSpec, ...]
) -> None:
    before, after = EndpointSpec(name="a", luns=old), EndpointSpec(name="a", luns=new)
    same = specs.by_address(old) == specs.by_address(new)
    assert (list(specs.differences(before, after)) == []) == same


def test_what_is_left_open_is_inherited_and_what_is_said_is_not() -> None:
    named = replace(disk(0, "/a").backstore, name="n", serial="s")
    old = spec("a", replace(disk(0, "/a"), backstore=named), wwpn="naa.5000000000000001")
    assert specs.inherit(old, spec("a", disk(0, "/a"))) == old
    moved = specs.inherit(old, spec("a", disk(0, "/b"), wwpn="naa.5000000000000002"))
    assert (moved.wwpn, moved.luns[0].backstore.serial) == ("naa.5000000000000002", None)
    with pytest.raises(UsageError):
        specs.inherit(old, spec("a", engine=EngineKind.LIO))


def test_a_lun_is_found_replaced_and_taken_by_its_address() -> None:
    old = spec("a", ram(0), ram(1))
    limited = replace(ram(1), limits=Limits(iops=5))
    assert specs.replace_lun(old, (0, 1), limited).luns == (ram(0), limited)
    assert specs.replace_lun(old, (0, 0), None).luns == (ram(1),)
    assert list(specs.differences(old, specs.replace_lun(old, (0, 1), limited))) == [
        "lun 0:1: limits no iops, no B/s, 0 s burst -> 5 iops, no B/s, 0 s burst"
    ]
    with pytest.raises(NotFoundError):
        specs.replace_lun(old, (0, 7), None)
    with pytest.raises(UsageError, match="same target"):
        specs.with_lun(old, ram(1))


# Events


@pytest.mark.anyio
async def test_events_are_numbered_and_a_slow_reader_sees_a_gap() -> None:
    events = Events()
    slow = events.listen()
    first = asyncio.ensure_future(anext(slow))
    await asyncio.sleep(0)
    for number in range(WAITING + 50):
        events.tell(Kind.READY, f"endpoint/{number}")
    assert (await first).sequence == 1
    assert [(await anext(slow)).sequence for _ in range(WAITING - 1)] == list(range(2, WAITING + 1))
    last = asyncio.ensure_future(anext(slow))
    await asyncio.sleep(0)
    events.tell(Kind.READY, "endpoint/x")
    assert (await last).sequence == WAITING + 51
    events.close()
    assert [event async for event in slow] == []


@pytest.mark.anyio
async def test_the_last_thousand_can_be_read_again() -> None:
    events = Events()
    for number in range(KEPT + 10):
        events.tell(Kind.READY, f"endpoint/{number}")
    reader = events.listen(since=0)
    assert (await anext(reader)).sequence == 11
    await reader.aclose()  # type: ignore[attr-defined]


# Fault points


@pytest.mark.parametrize(("fault", "survived"), [("b:2", 3), ("any:2", 1), ("c:1", 4), ("", 4)])
def test_a_process_dies_at_its_fault_point(fault: str, survived: int) -> None:
    code = "from ringway import faults\nfor n in 'abab':\n faults.point(n)\n print(n, flush=True)"
    environment = {**os.environ, "RINGWAY_FAULT": fault}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.split() == list("abab")[:survived]
    assert done.returncode == (0 if survived == 4 else -signal.SIGKILL)


def test_a_disk_is_looked_at_for_an_engine_that_runs_here() -> None:
    image, scsi = BackstoreSpec(SpecKind.PATH, "a.img"), BackstoreSpec(SpecKind.PSCSI, "1:0:0:0")
    both = (EngineKind.USER, EngineKind.LIO)
    assert engine_for(image, both) is EngineKind.USER
    assert engine_for(image, (EngineKind.LIO,)) is EngineKind.LIO
    assert engine_for(scsi, both) is EngineKind.LIO
