"""Commands of the data path that come by: sent back, or told why they failed."""

from __future__ import annotations

import errno

import pytest

from ringway.scsi import Delivery, Reply, Status
from ringway.scsi.reply import RESUME
from ringway.scsi.table import Kind, Row
from ringway.scsi.unit import DISK, LogicalUnit

from .fake import Bench, pointer_of

HOT = [row for row in DISK if row.kind & Kind.HOT]
READ, WRITE, FLUSH = "28", "2a", "35"


def name(row: Row[LogicalUnit]) -> str:
    return row.name


def test_what_is_hot() -> None:
    assert {row.opcode for row in HOT} == set(
        bytes.fromhex("00 08 0a 28 2a 35 41 42 88 8a 91 93 a8 aa"),
    )


@pytest.mark.parametrize("row", HOT, ids=name)
def test_nothing_in_the_way(bench: Bench, row: Row[LogicalUnit]) -> None:
    assert bench.run(bytes((row.opcode,))) is RESUME


@pytest.mark.parametrize(
    ("failure", "sense"),
    [
        ("range", (5, 0x21, 0)),
        ("read_only", (7, 0x27, 0)),
        ("field", (5, 0x24, 0)),
        ("parameter", (5, 0x26, 0)),
        ("a word of tomorrow", (4, 0x44, 0)),
        ("errno:", (4, 0x44, 0)),
    ],
)
def test_failures(bench: Bench, failure: str, sense: tuple[int, int, int]) -> None:
    assert bench.sense(WRITE, failure=failure) == sense


@pytest.mark.parametrize(
    ("cdb", "number", "sense"),
    [
        (READ, errno.EIO, (3, 0x11, 0)),
        (READ, errno.ENOSPC, (3, 0x11, 0)),
        (WRITE, errno.EIO, (3, 0x0C, 0)),
        (WRITE, errno.ENOSPC, (7, 0x27, 7)),
        (FLUSH, errno.EIO, (3, 0x0C, 0)),
        (FLUSH, errno.ENOSPC, (7, 0x27, 7)),
    ],
)
def test_errnos(bench: Bench, cdb: str, number: int, sense: tuple[int, int, int]) -> None:
    reply = bench.reply(cdb, failure=f"errno:{number}")
    assert (reply.sense[2], *reply.sense[12:14]) == sense
    assert not reply.sense[0] & 0x80, "no block is named that guests would count as done up to"


def test_failures_of_the_transport(bench: Bench) -> None:
    assert bench.reply(READ, failure="overrun") == Reply(delivery=Delivery.OVERRUN)
    assert bench.reply(READ, failure=f"errno:{errno.ECANCELED}") == Reply(delivery=Delivery.ABORTED)


def test_a_unit_that_the_data_path_does_not_know_yet_is_busy(bench: Bench) -> None:
    assert bench.reply(READ, failure="no_lun") == Reply(Status.BUSY)


@pytest.mark.parametrize(
    ("cdb", "pointer"),
    [("28 20", (1, 5, True)), ("8a 80", (1, 7, True)), ("42 01", (1, 0, True)), ("93 10", (1, 4, True))],
)
def test_a_refused_field_is_pointed_at(bench: Bench, cdb: str, pointer: tuple[int, int, bool]) -> None:
    assert pointer_of(bench.reply(cdb, failure="field")) == pointer


def test_a_stopped_unit_still_tells_of_a_command_that_ran_before(bench: Bench) -> None:
    bench.data("1b 00 00 00 00 00")
    assert bench.sense(READ, failure="range") == (5, 0x21, 0)
