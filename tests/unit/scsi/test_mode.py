"""MODE SENSE and MODE SELECT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.scsi import Delivery, Gate
from ringway.scsi.pages import CHANGEABLE, DEFAULTS

from .fake import NEXUS, OTHER, Bench, MemoryStore, pointer_of

SENSE_ALL = "1a 00 3f 00 ff 00"
CONTROL = bytes.fromhex("0a 0a 02 10 00 00 00 00 ff ff 00 00")
CACHING = bytes.fromhex("08 12 04" + "00" * 17)
D_SENSE = bytes.fromhex("0a 0a 06 10 00 00 00 00 ff ff 00 00")
SWP = bytes.fromhex("0a 0a 02 10 08 00 00 00 ff ff 00 00")


def select_6(*pages: bytes, descriptor: bytes = b"") -> tuple[bytes, bytes]:
    data = bytes((0, 0, 0x10, len(descriptor))) + descriptor + b"".join(pages)
    return bytes((0x15, 0x10, 0, 0, len(data), 0)), data


def select_10(*pages: bytes, descriptor: bytes = b"", long: bool = False) -> tuple[bytes, bytes]:
    data = bytes((0, 0, 0, 0, long, 0)) + len(descriptor).to_bytes(2) + descriptor + b"".join(pages)
    return bytes((0x55, 0x10, 0, 0, 0, 0, 0)) + len(data).to_bytes(2) + b"\0", data


def test_all_pages_with_six_bytes(bench: Bench) -> None:
    data = bench.data(SENSE_ALL)
    assert data[:4] == bytes((len(data) - 1, 0, 0x10, 8))
    assert data[4:12] == (2048).to_bytes(4) + (512).to_bytes(4)
    assert data[12:] == b"".join(DEFAULTS[code] for code in (0x01, 0x08, 0x0A, 0x1C))


def test_all_pages_with_ten_bytes_and_a_long_descriptor(bench: Bench) -> None:
    data = bench.data("5a 10 3f ff 000000 ffff 00")
    assert data[:8] == (len(data) - 2).to_bytes(2) + bytes((0, 0x10, 1, 0, 0, 16))
    assert data[8:24] == (2048).to_bytes(8) + bytes(4) + (512).to_bytes(4)
    assert data[24:] == bench.data(SENSE_ALL)[12:]


def test_dbd_leaves_the_descriptor_out(bench: Bench) -> None:
    assert bench.data("1a 08 08 00 ff 00") == bytes((23, 0, 0x10, 0)) + CACHING
    assert bench.data("5a 18 08 00 000000 ffff 00") == bytes((0, 26, 0, 0x10, 0, 0, 0, 0)) + CACHING


@pytest.mark.parametrize("page", range(0x40))
def test_pages_that_there_are(bench: Bench, page: int) -> None:
    cdb = bytes((0x1A, 8, page, 0, 255, 0))
    if page == 0x3F or page in DEFAULTS:
        assert bench.data(cdb)
    else:
        assert bench.sense(cdb) == (5, 0x24, 0)


def test_subpages(bench: Bench) -> None:
    assert bench.data("1a 08 0a ff ff 00") == bench.data("1a 08 0a 00 ff 00")
    assert pointer_of(bench.reply("1a 08 0a 01 ff 00")) == (3, None, True)


def test_current_changeable_default_and_saved_values(bench: Bench) -> None:
    bench.data(*select_6(D_SENSE))
    assert bench.data("1a 08 0a 00 ff 00")[4:] == D_SENSE
    assert bench.data("1a 08 4a 00 ff 00")[4:] == bytes.fromhex("0a 0a 04 00 08 00 00 00 00 00 00 00")
    assert bench.data("1a 08 8a 00 ff 00")[4:] == CONTROL
    assert bench.sense("1a 08 ca 00 ff 00") == (5, 0x39, 0)


def test_no_page_can_be_saved() -> None:
    assert all(page[0] < 0x40 for page in DEFAULTS.values())
    bench = Bench()
    assert pointer_of(bench.reply("15 11 00 00 00 00")) == (1, 0, True)


def test_d_sense_changes_the_format_of_sense(bench: Bench) -> None:
    bench.data(*select_10(D_SENSE))
    assert bench.reply("ff").sense == bytes.fromhex("72 05 20 00 00 00 00 00")
    bench.data(*select_10(CONTROL))
    assert bench.reply("ff").sense[0] == 0x70


def test_swp_protects_and_closes_the_gate(bench: Bench) -> None:
    bench.data(*select_6(SWP))
    assert bench.host.gates[NEXUS] is Gate.NO_WRITE
    assert bench.data(SENSE_ALL)[2] == 0x90
    assert bench.sense("2a 00 00000000 00 0001 00") == (7, 0x27, 0)
    bench.data(*select_6(CONTROL))
    assert bench.host.gates[NEXUS] is Gate.OPEN


def test_a_medium_that_cannot_be_written_is_protected() -> None:
    assert Bench(MemoryStore(writable=False)).data(SENSE_ALL)[2] == 0x90


def test_others_are_told_of_a_change_and_only_of_one(bench: Bench) -> None:
    bench.unit.join(OTHER, power_on=False)
    bench.data(*select_6(CONTROL))
    assert bench.unit.take_attention(OTHER) is None
    bench.data(*select_6(SWP))
    assert bench.sense("00", nexus=OTHER) == (6, 0x2A, 0x01)
    assert bench.unit.take_attention(NEXUS) is None


def test_a_reset_restores_the_defaults(bench: Bench) -> None:
    bench.data(*select_6(SWP))
    bench.unit.reset()
    assert not bench.unit.write_protected
    assert bench.sense("00") == (6, 0x29, 0x03)


@pytest.mark.parametrize(
    ("page", "pointer"),
    [
        (bytes.fromhex("08 12 00" + "00" * 17), (4 + 2, 2, False)),  # WCE off
        (bytes.fromhex("0a 0a 02 10 00 40 00 00 ff ff 00 00"), (4 + 5, 6, False)),  # TAS on
        (bytes.fromhex("0a 09 02 10 00 00 00 00 ff ff 00"), (4 + 1, None, False)),  # too short
        (bytes.fromhex("02 02 00 00"), (4, None, False)),  # no such page
    ],
)
def test_what_may_not_change_is_refused_with_a_pointer(
    bench: Bench, page: bytes, pointer: tuple[int, int | None, bool]
) -> None:
    reply = bench.reply(*select_6(page))
    assert (reply.sense[2], reply.sense[12]) == (5, 0x26)
    assert pointer_of(reply) == pointer


def test_nothing_is_changed_when_a_later_page_is_wrong(bench: Bench) -> None:
    assert bench.sense(*select_6(SWP, bytes.fromhex("02 00"))) == (5, 0x26, 0)
    assert not bench.unit.write_protected


@pytest.mark.parametrize(
    "descriptor",
    [bytes(8), (2048).to_bytes(4) + (512).to_bytes(4), b"\xff" * 4 + (512).to_bytes(4)],
)
def test_the_present_geometry_may_be_selected(bench: Bench, descriptor: bytes) -> None:
    assert bench.data(*select_6(SWP, descriptor=descriptor)) == b""
    assert bench.unit.write_protected


def test_a_long_descriptor_may_be_selected(bench: Bench) -> None:
    descriptor = (2048).to_bytes(8) + bytes(4) + (512).to_bytes(4)
    assert bench.data(*select_10(SWP, descriptor=descriptor, long=True)) == b""


@pytest.mark.parametrize("descriptor", [(1).to_bytes(4) + bytes(4), bytes(4) + (4096).to_bytes(4), bytes(4)])
def test_another_geometry_is_refused(bench: Bench, descriptor: bytes) -> None:
    assert bench.sense(*select_6(SWP, descriptor=descriptor)) == (5, 0x26, 0)


@pytest.mark.parametrize("size", [1, 3, 5, 12, 15])
def test_a_list_that_is_cut_short(bench: Bench, size: int) -> None:
    _, data = select_6(SWP)
    assert bench.sense(bytes((0x15, 0x10, 0, 0, size, 0)), data[:size]) == (5, 0x1A, 0)


def test_an_empty_list_changes_nothing(bench: Bench) -> None:
    assert bench.data("15 10 00 00 00 00") == b""
    assert bench.data("55 10 0000000000 0000 00") == b""


def test_pf_must_be_set(bench: Bench) -> None:
    _, data = select_6(SWP)
    assert pointer_of(bench.reply(bytes((0x15, 0, 0, 0, len(data), 0)), data)) == (1, 4, True)


def test_a_list_longer_than_the_buffer_is_an_overrun(bench: Bench) -> None:
    assert bench.reply("15 10 00 00 20 00", bytes(31)).delivery is Delivery.OVERRUN


def test_changeable_bits_belong_to_the_pages() -> None:
    assert {code: len(page) for code, page in CHANGEABLE.items()} == {
        code: len(page) for code, page in DEFAULTS.items()
    }


@given(st.binary(max_size=64), st.booleans())
def test_no_list_does_harm(data: bytes, ten: bool) -> None:
    bench = Bench()
    size = len(data)
    cdb = b"\x55\x10\0\0\0\0\0" + size.to_bytes(2) + b"\0" if ten else bytes((0x15, 0x10, 0, 0, size, 0))
    bench.reply(cdb, data)
    for code, page in bench.unit.pages.values.items():
        changed = int.from_bytes(page) ^ int.from_bytes(DEFAULTS[code])
        assert changed & ~int.from_bytes(bytes(2) + CHANGEABLE[code][2:]) == 0
