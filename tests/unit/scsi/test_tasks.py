"""The control queue: what task management functions do to commands, wherever those are, in which order."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.scsi import Status
from ringway.scsi.tasks import SUPPORTED, TaskFunction
from ringway.target import scsi_control, virtio_scsi
from ringway.target.virtio_scsi import Response
from ringway.testing.waiting import PATIENCE_S, wait_until

from .fake import MemoryCommand
from .test_device import INQUIRY, Guest, name

(
    ABORT_TASK,
    ABORT_TASK_SET,
    CLEAR_ACA,
    CLEAR_TASK_SET,
    I_T_NEXUS_RESET,
    LUN_RESET,
    QUERY_TASK,
    QUERY_TASK_SET,
) = range(8)
CONTROL_TAG = 99
UNITS = (name(0, 0), name(0, 1), name(1, 0))
VERIFY = bytes.fromhex("2f 00 00000000 00 0001 00").ljust(32, b"\0")
COMPARE_AND_WRITE = bytes.fromhex("89 00 0000000000000000 000000 01 00 00").ljust(32, b"\0")
HEADER = Path("/usr/include/linux/virtio_scsi.h")


def tmf(guest: Guest, subtype: int, lun: bytes = name(0, 0), id: int = 0) -> Response:
    """Send a task management function. :returns: its response."""
    request = struct.pack("<II8sQ", 0, subtype, lun, id)
    return Response(control(guest, request)[0])


def control(guest: Guest, request: bytes) -> bytes:
    guest.core.responses.pop(CONTROL_TAG, None)
    guest.device.handle(MemoryCommand(kind="control", tag=CONTROL_TAG, queue=0, data_out=request))
    return response_of(guest, CONTROL_TAG)


def response_of(guest: Guest, tag: int) -> bytes:
    """Wait for the response to a control request."""
    wait_until(lambda: tag in guest.core.responses)
    return guest.core.responses[tag]


def command(tag: int, lun: bytes = name(0, 0), cdb: bytes = VERIFY, failure: str = "") -> MemoryCommand:
    """A command with ``tag`` as its id too."""
    return MemoryCommand(tag=tag, id=tag, lun=lun, cdb=cdb, failure=failure)


@pytest.fixture
def guest() -> Iterator[Guest]:
    """Disks at (0, 0), (0, 1) and (1, 0) without attentions; nothing is logged yet."""
    one = Guest()
    one.device.lun_added(0, 1, one.backstore, "SN1")
    one.device.lun_added(1, 0, one.backstore, "SN10")
    for lun in UNITS:
        one.attention(lun)
    one.core.log.clear()
    one.core.completions.clear()
    yield one
    one.backstore.store.answers.set()
    assert one.device.settled(PATIENCE_S)


def load(guest: Guest, cdb: bytes = VERIFY) -> None:
    """The store hangs. 1 to 3 use it, one of each unit; 11 to 14 wait behind them, 21 to 24 are on the hot
    path; the last two of each are of other LUNs.
    """
    store = guest.backstore.store
    store.answers.clear()
    for tag, lun in enumerate(UNITS, start=1):
        store.asked.clear()
        guest.device.handle(command(tag, lun, cdb))
        assert store.asked.wait(PATIENCE_S)
    places = [name(0, 0), name(0, 0), name(0, 1), name(1, 0)]
    guest.core.waiting.extend(command(11 + at, lun, cdb) for at, lun in enumerate(places))
    guest.device.serve_waiting()
    guest.core.in_flight.extend(command(21 + at, lun) for at, lun in enumerate(places))
    guest.core.given_up = {1, 2, 3}


def go_on(guest: Guest, *tags: int) -> None:
    """Let the store answer, and wait for commands."""
    guest.backstore.store.answers.set()
    wait_until(lambda: set(tags) <= set(guest.core.completions))


def ended(guest: Guest) -> dict[int, int]:
    """:returns: the responses of commands that ended before the function did."""
    before = guest.core.log[: guest.core.log.index(("control", CONTROL_TAG))]
    return {tag: guest.core.completions[tag].response for _, tag in before}


@pytest.mark.parametrize(
    ("subtype", "response", "about"),
    [
        (ABORT_TASK_SET, Response.ABORTED, {11, 12}),
        (CLEAR_TASK_SET, Response.ABORTED, {11, 12}),
        (LUN_RESET, Response.RESET, {11, 12}),
        (I_T_NEXUS_RESET, Response.RESET, {11, 12, 13}),
    ],
)
def test_what_it_is_about_ends_first(guest: Guest, subtype: int, response: Response, about: set[int]) -> None:
    load(guest)
    assert tmf(guest, subtype) is Response.OK
    hot = {tag + 10 for tag in about}
    assert ended(guest) == dict.fromkeys(about, response) | dict.fromkeys(hot, Response.OK)


@pytest.mark.parametrize(("id", "about"), [(12, {12}), (22, {22}), (99, set())])
def test_abort_task_is_about_one(guest: Guest, id: int, about: set[int]) -> None:
    load(guest)
    assert tmf(guest, ABORT_TASK, id=id) is Response.OK
    assert set(ended(guest)) == about


def test_abort_task_needs_the_right_lun(guest: Guest) -> None:
    load(guest)
    assert tmf(guest, ABORT_TASK, name(0, 1), id=12) is Response.OK
    assert ended(guest) == {}


def test_all_others_are_served_in_their_order(guest: Guest) -> None:
    load(guest)
    guest.core.given_up = set()
    tmf(guest, ABORT_TASK, id=11)
    go_on(guest, 1, 2, 3, 11, 12, 13, 14)
    assert [tag for _, tag in guest.core.log if tag in (1, 11, 12)] == [11, 1, 12]
    assert [guest.core.completions[tag].response for tag in (12, 13, 14)] == [Response.OK] * 3


def test_what_reads_is_aborted_while_its_medium_hangs(guest: Guest) -> None:
    """Nothing that comes of it reaches anybody, so that nobody has to wait for it."""
    load(guest)
    guest.core.given_up = set()
    assert tmf(guest, ABORT_TASK, id=1) is Response.OK
    assert ended(guest) == {1: Response.ABORTED}
    assert tmf(guest, QUERY_TASK, id=1) is Response.OK, "it is not here any more"
    assert not guest.device.settled(0, guest.core.lun_instance(0, 0)), "but it still uses the medium"
    guest.core.given_up = {1}
    go_on(guest, 2, 3)
    assert guest.device.settled(PATIENCE_S)


def test_what_writes_is_waited_for(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data may still reach the medium: the function must not say that it has ended."""
    monkeypatch.setattr(scsi_control, "DRAIN_TIMEOUT_S", 0.05)
    store = guest.backstore.store
    store.answers.clear()
    write = MemoryCommand(tag=1, id=1, cdb=COMPARE_AND_WRITE, data_out=bytes(1024), data_out_size=1024)
    guest.device.handle(write)
    assert store.asked.wait(PATIENCE_S)
    assert tmf(guest, ABORT_TASK, id=1) is Response.FAILURE
    assert tmf(guest, LUN_RESET) is Response.FAILURE
    assert guest.core.completions == {}
    monkeypatch.setattr(scsi_control, "DRAIN_TIMEOUT_S", 20.0)
    threading.Timer(0.05, store.answers.set).start()
    assert tmf(guest, ABORT_TASK, id=1) is Response.OK
    assert guest.core.completions[1].response == Response.OK


def test_a_medium_that_hangs_holds_up_nobody_but_itself(guest: Guest) -> None:
    """One thread did all of it: INQUIRY and functions of other units waited behind a VERIFY."""
    store = guest.backstore.store
    store.answers.clear()
    guest.device.handle(command(1))
    assert store.asked.wait(PATIENCE_S)
    guest.device.handle(command(2, cdb=INQUIRY))
    guest.device.handle(command(3, name(0, 1), INQUIRY))
    assert list(guest.core.completions) == [2, 3]
    assert tmf(guest, LUN_RESET, name(0, 1)) is Response.OK
    assert tmf(guest, QUERY_TASK, id=1) is Response.FUNCTION_SUCCEEDED
    guest.device.lun_removed(1, 0)
    assert guest.device.settled(0, guest.core.lun_instance(1, 0))
    assert not guest.device.settled(0, guest.core.lun_instance(0, 0))


def test_a_function_that_waits_holds_up_no_other_units(guest: Guest) -> None:
    go, drain = threading.Event(), guest.core.drain

    def wait_and_drain(**scope: int | None) -> bool:
        assert scope["lun"] != 0 or go.wait(PATIENCE_S)
        return drain(**scope)  # type: ignore[arg-type]

    guest.core.drain = wait_and_drain  # type: ignore[assignment,method-assign]
    for tag in (97, 98):
        request = struct.pack("<II8sQ", 0, LUN_RESET, name(0, 0), 0)
        guest.device.handle(MemoryCommand(kind="control", tag=tag, queue=0, data_out=request))
    assert tmf(guest, LUN_RESET, name(0, 1)) is Response.OK
    assert tmf(guest, LUN_RESET, name(0, 9)) is Response.INCORRECT_LUN
    assert set(guest.core.responses) == {CONTROL_TAG}
    go.set()
    assert [response_of(guest, tag) for tag in (97, 98)] == [bytes((Response.OK,))] * 2
    assert [tag for word, tag in guest.core.log if tag in (97, 98)] == [97, 98]


def test_what_is_dead_is_not_done(guest: Guest) -> None:
    """It waited behind one that hangs when its ring was stopped, and was done after the ring's next start."""
    load(guest)
    waits = MemoryCommand(tag=15, id=15, cdb=VERIFY, dead=True)
    guest.device.handle(waits)
    go_on(guest, 11, 12, 13, 14)
    assert guest.device.settled(PATIENCE_S)
    guest.device.handle(command(16))
    wait_until(lambda: 16 in guest.core.completions)
    assert 15 not in guest.core.completions


def test_a_thread_that_cannot_start_costs_one_command(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        guest.device.handle(command(1))
        assert guest.core.completions[1].status == Status.BUSY
        assert tmf(guest, LUN_RESET) is Response.FAILURE
    guest.device.handle(command(2))
    wait_until(lambda: 2 in guest.core.completions)
    assert tmf(guest, LUN_RESET) is Response.OK


@pytest.mark.parametrize(
    ("subtype", "response"), [(ABORT_TASK_SET, Response.ABORTED), (LUN_RESET, Response.RESET)]
)
def test_a_cancelled_command_that_fails_to_us_ends_too(
    guest: Guest, subtype: int, response: Response
) -> None:
    load(guest)
    guest.core.gives_up = {22}
    assert tmf(guest, subtype) is Response.OK
    assert ended(guest)[22] == response


def test_a_command_that_does_not_end_fails_the_function(guest: Guest) -> None:
    load(guest)
    guest.core.stuck = {22}
    assert tmf(guest, LUN_RESET) is Response.FAILURE
    assert guest.attention() is None, "nothing is reset"


@pytest.mark.parametrize(
    ("subtype", "attentions"),
    [
        (ABORT_TASK, [None, None, None]),
        (ABORT_TASK_SET, [None, None, None]),
        (CLEAR_TASK_SET, [None, None, None]),
        (LUN_RESET, [(0x29, 3), None, None]),
        (I_T_NEXUS_RESET, [(0x29, 7), (0x29, 7), None]),
    ],
)
def test_what_is_reset(guest: Guest, subtype: int, attentions: list[tuple[int, int] | None]) -> None:
    tmf(guest, subtype)
    assert [guest.attention(lun) for lun in UNITS] == attentions


def test_a_unit_that_is_removed_meanwhile_is_not_missed(guest: Guest) -> None:
    drain = guest.core.drain

    def remove_and_drain(**scope: int | None) -> bool:
        for target, lun in list(guest.device.units):
            guest.device.lun_removed(target, lun)
        return drain(**scope)  # type: ignore[arg-type]

    guest.core.drain = remove_and_drain  # type: ignore[assignment,method-assign]
    assert tmf(guest, LUN_RESET) is Response.OK


def test_a_lun_reset_restores_modes_and_starts(guest: Guest) -> None:
    unit = guest.device.units[0, 0]
    unit.stop(flush=False)
    tmf(guest, LUN_RESET)
    assert not unit.stopped


@pytest.mark.parametrize(
    ("id", "response"),
    [
        (11, Response.FUNCTION_SUCCEEDED),
        (21, Response.FUNCTION_SUCCEEDED),
        (13, Response.OK),
        (99, Response.OK),
    ],
)
def test_query_task(guest: Guest, id: int, response: Response) -> None:
    load(guest)
    assert tmf(guest, QUERY_TASK, id=id) is response
    assert ended(guest) == {}
    go_on(guest, 11, 12, 13, 14)


def test_query_task_set(guest: Guest) -> None:
    assert tmf(guest, QUERY_TASK_SET) is Response.OK
    guest.core.in_flight.append(command(21))
    assert tmf(guest, QUERY_TASK_SET) is Response.FUNCTION_SUCCEEDED
    assert tmf(guest, QUERY_TASK_SET, name(0, 1)) is Response.OK
    guest.core.in_flight.clear()
    load(guest)
    assert tmf(guest, QUERY_TASK_SET, name(0, 1)) is Response.FUNCTION_SUCCEEDED


@pytest.mark.parametrize(
    "subtype", [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, QUERY_TASK, QUERY_TASK_SET]
)
def test_a_lun_that_is_not_there(guest: Guest, subtype: int) -> None:
    assert tmf(guest, subtype, name(0, 7)) is Response.INCORRECT_LUN
    assert tmf(guest, subtype, bytes.fromhex("c101000000000000")) is Response.INCORRECT_LUN


def test_a_nexus_reset_is_the_targets(guest: Guest) -> None:
    assert tmf(guest, I_T_NEXUS_RESET, name(0, 7)) is Response.OK
    assert guest.attention() == (0x29, 7)


@pytest.mark.parametrize("subtype", [*range(2), *range(3, 8)])
def test_a_target_that_is_not_there(guest: Guest, subtype: int) -> None:
    assert tmf(guest, subtype, name(9, 0)) is Response.BAD_TARGET
    assert tmf(guest, subtype, bytes(8)) is Response.BAD_TARGET


@pytest.mark.parametrize("subtype", [CLEAR_ACA, 8, 0xFFFFFFFF])
def test_what_is_rejected(guest: Guest, subtype: int) -> None:
    load(guest)
    assert tmf(guest, subtype) is Response.FUNCTION_REJECTED
    assert ended(guest) == {}


def test_what_is_rejected_is_what_is_not_reported(guest: Guest) -> None:
    for subtype, function in enumerate(scsi_control._FUNCTIONS):
        assert (tmf(guest, subtype) is Response.FUNCTION_REJECTED) is (function not in SUPPORTED)
    assert set(scsi_control._FUNCTIONS) == set(TaskFunction)


@pytest.mark.parametrize("kind", [1, 2])
def test_asynchronous_notifications_are_none(guest: Guest, kind: int) -> None:
    def ask(lun: bytes) -> bytes:
        return control(guest, struct.pack("<I8sI", kind, lun, 0xFFFFFFFF))

    assert ask(name(0, 0)) == bytes(4) + b"\0"
    assert ask(name(0, 7)) == bytes(4) + bytes((Response.INCORRECT_LUN,))
    assert ask(name(9, 0)) == bytes(4) + bytes((Response.BAD_TARGET,))


@pytest.mark.parametrize(
    "request_", [b"", b"\0\0\0", bytes(23), bytes((1, 0, 0, 0)) + bytes(11), bytes((3, 0, 0, 0)) + bytes(60)]
)
def test_malformed_requests_fail(guest: Guest, request_: bytes) -> None:
    assert control(guest, request_) == bytes((Response.FAILURE,))


@given(st.binary(max_size=40), st.integers(0, 3))
def test_any_request_gets_a_response(rest: bytes, kind: int) -> None:
    guest = Guest()
    response = control(guest, bytes((kind, 0, 0, 0)) + rest)
    assert Response(response[-1]) in Response
    assert len(response) in (1, 5)


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers (apt-get install linux-libc-dev)")
def test_the_numbers_are_those_of_linux() -> None:
    words = [
        line.split() for line in HEADER.read_text().splitlines() if line.startswith("#define VIRTIO_SCSI_")
    ]
    numbers = [line for line in words if len(line) == 3 and line[2][0].isdigit()]
    linux = {line[1].removeprefix("VIRTIO_SCSI_"): int(line[2], 0) for line in numbers}
    ours = {f"S_{each.name}": each.value for each in Response}
    ours |= {f"F_{each.name}": (each.value or 0).bit_length() - 1 for each in virtio_scsi.Feature}
    ours |= {f"T_{each.name}": each.value for each in (*virtio_scsi.ControlType, *virtio_scsi.Event)}
    ours |= {f"EVT_RESET_{each.name}": each.value for each in virtio_scsi.ResetReason}
    ours |= {f"T_TMF_{each.name}": subtype for subtype, each in enumerate(scsi_control._FUNCTIONS)}
    assert ours == {name: linux[name] for name in ours}
