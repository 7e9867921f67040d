"""The eight steps, their figures, and the pictures of them."""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.model import (
    Carrier,
    DeviceKind,
    Notice,
    Operation,
    Poll,
    SandboxInfo,
    SandboxMode,
    TargetInfo,
    TraceSample,
    Wake,
)
from ringway.trace import perfetto, svg
from ringway.trace.figures import by_operation, group, percentile
from ringway.trace.steps import Step, segments, total_ns, unseen

INFO = TargetInfo(
    ringway="1",
    pid=7,
    device=DeviceKind.SCSI,
    socket="a<b>&.sock",
    io_engine="uring",
    poll=Poll.ADAPTIVE,
    queues=1,
    workers=1,
    wwpn=None,
    connected=True,
    luns=(),
    sandbox=SandboxInfo(SandboxMode.AUTO, 1000, 0, 6, True, ()),
)
SVG = "{http://www.w3.org/2000/svg}"


def sample(**changes: Any) -> TraceSample:
    """A read that woke its worker, and was signalled."""
    fields: dict[str, Any] = {
        "queue": 2,
        "head": 0,
        "target": 0,
        "lun": 0,
        "operation": Operation.READ,
        "opcode": 0x28,
        "bytes": 4096,
        "wake": Wake.KICK,
        "carrier": Carrier.WORKER,
        "parked": False,
        "notice": Notice.SIGNALLED,
        "absent_ns": 100,
        "woken_ns": 1000,
        "seen_ns": 1010,
        "dequeued_ns": 1100,
        "dispatched_ns": 1300,
        "completed_ns": 2000,
        "enqueued_ns": 2100,
        "notified_ns": 2600,
    }
    return TraceSample(**fields | changes)


POLLED = sample(wake=Wake.POLLING, woken_ns=None, absent_ns=900)
UNTOLD = sample(notice=Notice.SUPPRESSED, notified_ns=None)


@st.composite
def samples(draw: st.DrawFn) -> TraceSample:
    """Any that a target could send."""
    gaps = draw(st.lists(st.integers(0, 10_000_000), min_size=8, max_size=8))
    times = [sum(gaps[: number + 1]) for number in range(8)]
    wake, notice = draw(st.sampled_from(Wake)), draw(st.sampled_from(Notice))
    lun = draw(st.none() | st.integers(0, 16383))
    return sample(
        operation=draw(st.sampled_from(Operation)),
        carrier=draw(st.sampled_from(Carrier)),
        queue=draw(st.integers(0, 255)),
        target=None if lun is None else 0,
        lun=lun,
        bytes=draw(st.sampled_from([0, 512, 1 << 20])),
        wake=wake,
        notice=notice,
        absent_ns=draw(st.sampled_from([None, times[0]])),
        woken_ns=None if wake is Wake.POLLING else times[1],
        seen_ns=times[2],
        dequeued_ns=times[3],
        dispatched_ns=times[4],
        completed_ns=times[5],
        enqueued_ns=times[6],
        notified_ns=times[7] if notice is Notice.SIGNALLED else None,
    )


def test_the_hosts_part_is_divided_without_a_gap() -> None:
    parts = segments(sample())
    assert [(part.step, part.ns) for part in parts] == [
        (Step.DEQUEUED, 100),
        (Step.DISPATCHED, 200),
        (Step.COMPLETED, 700),
        (Step.ENQUEUED, 100),
        (Step.NOTIFIED, 500),
    ]
    assert sum(part.ns for part in parts) == total_ns(sample()) == 1600


def test_a_guest_that_wants_no_interrupt_is_not_notified() -> None:
    assert [part.step for part in segments(UNTOLD)][-1] is Step.ENQUEUED
    assert total_ns(UNTOLD) == 1100


def test_what_the_guest_did_lies_between_two_looks() -> None:
    asleep, awake = unseen(sample()), unseen(POLLED)
    assert asleep is not None
    assert awake is not None
    assert (asleep.ns, awake.ns) == (900, 110)
    assert unseen(sample(absent_ns=None)) is None


@given(samples())
def test_segments_cover_the_total(one: TraceSample) -> None:
    assert sum(part.ns for part in segments(one)) == total_ns(one)


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.99, 10), (1.0, 10), (0.1, 1), (0.11, 2)])
def test_a_percentile_is_one_of_the_values(share: float, value: int) -> None:
    assert percentile(list(range(1, 11)), share) == value


def test_groups_are_of_one_operation_in_a_fixed_order() -> None:
    write = sample(operation=Operation.WRITE)
    groups = by_operation([write, sample(), write])
    assert [(operation, len(members)) for operation, members in groups.items()] == [
        (Operation.READ, 1),
        (Operation.WRITE, 2),
    ]


def test_figures_have_all_eight_steps_and_say_what_is_a_bound() -> None:
    figures = group(Operation.READ, [sample(), POLLED, POLLED, UNTOLD])
    rows = {row.step: row for row in figures.steps}
    assert list(rows) == list(Step)
    queued = rows[Step.QUEUED]
    assert (queued.bound, queued.p50_ns) == (True, 110)
    assert not any(row.bound for step, row in rows.items() if step is not Step.QUEUED)
    assert (rows[Step.KICKED].count, rows[Step.WOKEN].count) == (2, 2)
    assert rows[Step.COMPLETED].p50_ns == 700
    assert (rows[Step.NOTIFIED].count, rows[Step.NOTIFIED].max_ns) == (3, 500)
    assert "25% the driver wants none" in rows[Step.NOTIFIED].note
    assert figures.total_max_ns == 1600


# Perfetto


@given(st.lists(samples(), max_size=12))
def test_trace_events_have_their_documented_shape(several: list[TraceSample]) -> None:
    document = perfetto.document(several, INFO)
    assert document["displayTimeUnit"] in ("ms", "ns")
    open_slices: dict[tuple[str, str], list[str]] = {}
    last: dict[str, float] = {}
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            continue
        assert event["ts"] >= last.get(event["id"], 0.0)
        last[event["id"]] = event["ts"]
        stack = open_slices.setdefault((event["cat"], event["id"]), [])
        if event["ph"] == "b":
            stack.append(event["name"])
        else:
            assert event["ph"] == "e"
            assert stack.pop() == event["name"]
    assert len(open_slices) == len(several)
    assert not any(open_slices.values())


def test_a_request_is_a_slice_with_its_steps_inside() -> None:
    events = perfetto.document([sample()], INFO)["traceEvents"]
    begins = [event["name"] for event in events if event["ph"] == "b"]
    assert begins == ["read 4096", "queued", "dequeued", "dispatched", "completed", "enqueued", "notified"]
    assert next(event for event in events if event["name"] == "completed")["ts"] == 1.3


# SVG


@given(st.lists(samples(), max_size=40))
def test_a_picture_is_well_formed_and_stays_in_its_frame(several: list[TraceSample]) -> None:
    root = ElementTree.fromstring(svg.picture(several, 'a "title" <&>'))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in root.iter(f"{SVG}rect"):
        x, y = float(box.get("x", 0)), float(box.get("y", 0))
        assert 0 <= x <= x + float(box.get("width", 0)) <= width + 1
        assert 0 <= y <= y + float(box.get("height", 0)) <= height + 1


def test_a_panel_has_a_row_for_each_request_and_a_bar_for_each_step() -> None:
    root = ElementTree.fromstring(svg.picture([sample(), POLLED, UNTOLD], "t"))
    tips = Counter((tip.text or "").split(":")[0] for tip in root.iter(f"{SVG}title"))
    assert (tips["dequeued"], tips["completed"], tips["notified"]) == (3, 3, 2)
    assert tips["queued in here"] == 1
    assert "read · 3 sampled" in [text.text for text in root.iter(f"{SVG}text")]


def test_of_many_requests_the_fastest_and_the_slowest_are_drawn() -> None:
    many = [sample(notified_ns=2600 + 10 * number) for number in range(1000)]
    labels = [text.text for text in ElementTree.fromstring(svg.picture(many, "t")).iter(f"{SVG}text")]
    assert "1.6 µs" in labels
    assert "11.6 µs" in labels


def test_without_samples_the_picture_says_so() -> None:
    assert "no request was sampled" in svg.picture([], "t")
