"""REPORT LUNS, SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS, LOG SENSE, against the table."""

from __future__ import annotations

import re

import pytest

from ringway.scsi import lun as luns
from ringway.scsi.reply import RESUME
from ringway.scsi.table import Kind, Row
from ringway.scsi.target import ABSENT, WELL_KNOWN
from ringway.scsi.unit import DISK, LogicalUnit

from .conftest import Decoder
from .fake import Bench, pointer_of

ROWS = list(DISK)
W_LUN = bytes.fromhex("c101000000000000")

# What a disk has to have: operation code, service action, bytes of the CDB.
COMMANDS = {
    (0x00, None): 6,
    (0x03, None): 6,
    (0x08, None): 6,
    (0x0A, None): 6,
    (0x12, None): 6,
    (0x15, None): 6,
    (0x1A, None): 6,
    (0x1B, None): 6,
    (0x1E, None): 6,
    (0x25, None): 10,
    (0x28, None): 10,
    (0x2A, None): 10,
    (0x2E, None): 10,
    (0x2F, None): 10,
    (0x35, None): 10,
    (0x41, None): 10,
    (0x42, None): 10,
    (0x4D, None): 10,
    (0x55, None): 10,
    (0x5A, None): 10,
    (0x88, None): 16,
    (0x89, None): 16,
    (0x8A, None): 16,
    (0x8E, None): 16,
    (0x8F, None): 16,
    (0x91, None): 16,
    (0x93, None): 16,
    (0x9E, 0x10): 16,
    (0xA0, None): 12,
    (0xA3, 0x0C): 12,
    (0xA3, 0x0D): 12,
    (0xA8, None): 12,
    (0xAA, None): 12,
    (0xAE, None): 12,
    (0xAF, None): 12,
}


def opcodes(
    bench: Bench, option: int, opcode: int = 0, action: int = 0, *, timeouts: bool = False, size: int = 0xFFFF
) -> bytes:
    return bench.data(opcodes_cdb(option, opcode, action, timeouts=timeouts, size=size))


def opcodes_cdb(
    option: int, opcode: int = 0, action: int = 0, *, timeouts: bool = False, size: int = 0xFFFF
) -> bytes:
    head = bytes((0xA3, 0x0C, timeouts << 7 | option, opcode))
    return head + action.to_bytes(2) + size.to_bytes(4) + bytes(2)


def name(row: Row[LogicalUnit]) -> str:
    return row.name


# The table


def test_the_table_has_every_command() -> None:
    assert {(row.opcode, row.service_action): len(row.usage) for row in ROWS} == COMMANDS


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_sg3_utils_knows_each_command_by_its_name(sg: Decoder, row: Row[LogicalUnit]) -> None:
    text = sg("sg_decode_sense", "--cdb", *row.usage.hex(" ").split())
    # It leaves the 10 out of the names that came before the 16.
    words = [re.sub(r"[^a-z0-9]+", " ", each.lower()).strip() for each in (text, row.name)]
    assert words[0].removesuffix(" 10") == words[1].removesuffix(" 10").replace(
        "medium removal", words[0][-14:]
    )


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_the_usage_data_fit_the_command(row: Row[LogicalUnit]) -> None:
    assert {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}[row.opcode >> 5] == len(row.usage)
    assert row.usage[-1] == 0, "no bit of CONTROL is evaluated"
    if row.allocation is not None:
        assert set(row.usage[row.allocation]) == {0xFF}


def test_who_is_exempt_from_unit_attentions() -> None:
    assert {row.name for row in ROWS if row.kind & Kind.EXEMPT} == {"INQUIRY", "REPORT LUNS", "REQUEST SENSE"}


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_naca_is_refused(bench: Bench, row: Row[LogicalUnit]) -> None:
    control = len(row.usage) - 1
    cdb = bytearray(32)
    cdb[0], cdb[1], cdb[control] = row.opcode, row.service_action or 0, 0x04
    assert pointer_of(bench.reply(bytes(cdb))) == (control, 2, True)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.kind & Kind.HOT], ids=name)
def test_a_bit_outside_of_the_usage_data_is_refused(bench: Bench, row: Row[LogicalUnit]) -> None:
    """But for the obsolete LUN field, group number and CONTROL; a wrong service action is another command."""
    size = len(row.usage)
    group = {10: 6, 12: 10, 16: 14}.get(size)
    for byte in range(1, size - 1):
        for bit in range(8):
            protected = size > 6 and row.kind & (Kind.READS | Kind.WRITES)
            if row.usage[byte] >> bit & 1 or byte == group or (byte == 1 and bit > 4 and not protected):
                continue
            if byte == 1 and bit < 5 and row.service_action is not None:
                continue
            cdb = bytearray(32)
            cdb[0], cdb[1] = row.opcode, row.service_action or 0
            cdb[byte] |= 1 << bit
            assert pointer_of(bench.reply(bytes(cdb))) == (byte, bit, True), (byte, bit)


def test_firmware_that_writes_the_lun_into_byte_1_is_served(bench: Bench) -> None:
    assert bench.data("12 20 00 00ff 00")
    assert bench.data("25 e0")


# REPORT SUPPORTED OPERATION CODES


def test_all_commands(bench: Bench) -> None:
    data = opcodes(bench, 0)
    assert int.from_bytes(data[:4]) == len(data) - 4 == 8 * len(ROWS)
    listed = [data[at : at + 8] for at in range(4, len(data), 8)]
    assert [(each[0], int.from_bytes(each[2:4]) if each[5] & 1 else None) for each in listed] == list(
        COMMANDS
    )
    assert [int.from_bytes(each[6:8]) for each in listed] == list(COMMANDS.values())


def test_all_commands_with_timeouts(bench: Bench) -> None:
    data = opcodes(bench, 0, timeouts=True)
    listed = [data[at : at + 20] for at in range(4, len(data), 20)]
    assert len(data) == 4 + 20 * len(ROWS)
    assert all(each[5] & 2 and each[8:] == b"\0\x0a" + bytes(10) for each in listed)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_each_row_is_reported_as_it_is(bench: Bench, row: Row[LogicalUnit]) -> None:
    option = 1 if row.service_action is None else 2
    data = opcodes(bench, option, row.opcode, row.service_action or 0)
    assert data == b"\0\x03" + len(row.usage).to_bytes(2) + row.usage
    assert opcodes(bench, 3, row.opcode, row.service_action or 0) == data
    timed = opcodes(bench, option, row.opcode, row.service_action or 0, timeouts=True)
    assert timed == b"\0\x83" + data[2:] + b"\0\x0a" + bytes(10)


@pytest.mark.parametrize("opcode", range(256))
def test_what_is_reported_is_what_is_known(bench: Bench, opcode: int) -> None:
    """An operation code is unknown if and only if it is reported so."""
    reply = bench.run(bytes((opcode,)))
    unknown = reply is not RESUME and reply.sense[12:13] == b"\x20"
    supported = opcodes(bench, 3, opcode)[1] & 7 == 3
    if opcode in (0x9E, 0xA3):
        assert (unknown, supported) == (False, False)
    else:
        assert unknown is not supported


def test_options_that_do_not_fit(bench: Bench) -> None:
    for option, opcode in ((1, 0x9E), (1, 0xA3), (2, 0x28)):
        assert pointer_of(bench.reply(opcodes_cdb(option, opcode))) == (3, None, True)
    for option in (4, 5, 6, 7):
        assert pointer_of(bench.reply(opcodes_cdb(option))) == (2, 2, True)


def test_what_is_not_supported(bench: Bench) -> None:
    for option, opcode, action in ((1, 0x7F, 0), (2, 0x9E, 0x12), (2, 0xFE, 1), (3, 0x28, 1), (3, 0xA3, 0)):
        assert opcodes(bench, option, opcode, action) == bytes((0, 1, 0, 0))


def test_unknown_service_actions_are_a_wrong_field(bench: Bench) -> None:
    assert pointer_of(bench.reply("9e 1f")) == (1, 4, True)


# REPORT LUNS


@pytest.mark.parametrize(("select", "numbers"), [(0, [0, 300]), (1, [W_LUN]), (2, [0, 300, W_LUN])])
@pytest.mark.parametrize("at", [0, 7, luns.REPORT_LUNS, None])
def test_report_luns(bench: Bench, select: int, numbers: list[int | bytes], at: int | None) -> None:
    """Every LUN answers for its target, there or not."""
    bench.add(300)
    names = {0: bytes(8), 300: bytes.fromhex("412c000000000000"), W_LUN: W_LUN}
    data = bench.data(bytes((0xA0, 0, select, 0, 0, 0, 0, 0, 1, 0, 0, 0)), lun=at)
    assert data == (8 * len(numbers)).to_bytes(4) + bytes(4) + b"".join(names[each] for each in numbers)


def test_report_luns_is_cut_and_still_says_how_much_there_is(bench: Bench) -> None:
    bench.add(1)
    assert bench.data("a0 00 00 00 00 00 00000010 00 00") == (16).to_bytes(4) + bytes(12)


# The units that are no disks


def test_the_well_known_unit(bench: Bench) -> None:
    assert {row.name for row in WELL_KNOWN} == {"REPORT LUNS", "INQUIRY", "TEST UNIT READY", "REQUEST SENSE"}
    assert bench.data("00", lun=luns.REPORT_LUNS) == b""
    assert bench.data("03 00 00 00 fc 00", lun=luns.REPORT_LUNS)[2] == 0
    assert bench.sense("28", lun=luns.REPORT_LUNS) == (5, 0x20, 0)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_where_there_is_no_unit(bench: Bench, row: Row[LogicalUnit]) -> None:
    cdb = bytes((row.opcode, row.service_action or 0)).ljust(32, b"\0")
    if ABSENT.get(row.opcode, row.service_action):
        assert bench.data(cdb, lun=3) == b""
    else:
        assert bench.sense(cdb, lun=3, failure="no_lun" if row.kind & Kind.HOT else "") == (5, 0x25, 0)


def test_request_sense_says_that_there_is_no_unit(bench: Bench) -> None:
    assert bench.data("03 00 00 00 12 00", lun=3)[2:14:10] == bytes((5, 0x25))
    assert bench.data("03 01 00 00 12 00", lun=3)[:4] == bytes((0x72, 5, 0x25, 0))


# The rest


def test_task_management_functions(bench: Bench) -> None:
    """ABORT TASK and SET, CLEAR TASK SET, LU RESET, QUERY TASK; QUERY TASK SET, I_T NEXUS RESET."""
    assert bench.data("a3 0d 00 000000 000000ff 00 00") == bytes((0xDC, 0x03, 0, 0))
    assert bench.data("a3 0d 80 000000 000000ff 00 00") == bytes((0xDC, 0x03, 0, 12)) + bytes(12)


def test_log_pages(bench: Bench) -> None:
    assert bench.data("4d 00 40 00 00 0000 00ff 00") == bytes((0, 0, 0, 1, 0))
    assert bench.data("4d 00 40 ff 00 0000 00ff 00") == bytes((0x40, 0xFF, 0, 4, 0, 0, 0, 0xFF))
    for cdb in ("4d 00 4d 00 00 0000 00ff 00", "4d 00 40 01", "4d 00 40 00 00 0001", "4d 01 40"):
        assert bench.sense(cdb) == (5, 0x24, 0)
