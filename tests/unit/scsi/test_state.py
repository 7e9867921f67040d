"""REQUEST SENSE, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, and media that change under the unit."""

from __future__ import annotations

import errno

import pytest

from ringway.scsi import Gate
from ringway.scsi.reply import RESUME

from .fake import NEXUS, OTHER, Bench, MemoryStore, sense_of

START = "1b 00 00 00 01 00"
STOP = "1b 00 00 00 00 00"
NOT_READY = (2, 0x04, 0x02)


def test_request_sense_of_a_unit_that_is_well(bench: Bench) -> None:
    assert bench.data("03 00 00 00 fc 00") == bytes.fromhex("70 00 00 00000000 0a 00000000 0000 00 000000")
    assert bench.data("03 01 00 00 fc 00") == bytes.fromhex("72 00 0000 00000000")
    assert bench.data("03 00 00 00 04 00") == bytes.fromhex("70 00 00 00")


def test_request_sense_has_its_format_from_the_cdb(bench: Bench) -> None:
    bench.unit.resized()
    assert bench.data("03 01 00 00 fc 00") == bytes.fromhex("72 06 2a 09 00000000")


def test_a_stopped_unit_is_not_ready(bench: Bench) -> None:
    assert bench.data(STOP) == b""
    assert bench.host.gates[NEXUS] is Gate.ATTENTION
    for cdb in ("00", "28 00", "2a 00", "35 00", "42 00", "2f 00", "89 00"):
        assert bench.sense(cdb) == NOT_READY
    assert bench.data("03 00 00 00 fc 00")[2:14:10] == bytes((2, 0x04))
    assert bench.data("1a 08 08 00 ff 00")
    assert bench.data(START) == b""
    assert bench.host.gates[NEXUS] is Gate.OPEN
    assert bench.run("00") is RESUME


def test_a_stop_ends_what_is_in_flight_and_then_flushes(bench: Bench) -> None:
    bench.data(STOP)
    assert bench.host.drained == [{NEXUS: Gate.ATTENTION}]
    assert bench.store.calls == ["flush"]


def test_no_flush(bench: Bench) -> None:
    bench.data("1b 00 00 00 04 00")
    assert bench.store.calls == []


def test_a_stop_that_cannot_flush(bench: Bench) -> None:
    bench.store.fail_with["flush"] = errno.EIO
    assert bench.sense(STOP) == (3, 0x0C, 0)
    assert bench.unit.stopped


@pytest.mark.parametrize("cdb", ["1b 00 00 00 02 00", "1b 00 00 00 10 00", "1b 00 00 01 00 00"])
def test_there_is_nothing_to_eject_and_no_power_condition(bench: Bench, cdb: str) -> None:
    assert bench.sense(cdb) == (5, 0x24, 0)
    assert not bench.unit.stopped


def test_a_reset_starts_the_unit(bench: Bench) -> None:
    bench.data(STOP)
    bench.unit.reset()
    assert bench.sense("00") == (6, 0x29, 0x03)
    assert bench.run("00") is RESUME


def test_a_nexus_loss_leaves_state_alone(bench: Bench) -> None:
    bench.data(STOP)
    bench.target.lose_nexus(NEXUS)
    assert bench.sense("00") == (6, 0x29, 0x07)
    assert bench.sense("00") == NOT_READY


def test_another_guest_finds_the_unit_as_after_a_power_on(bench: Bench) -> None:
    """What its predecessor stopped and protected, it found stopped and protected."""
    swp = bytes.fromhex("00000000 0a 0a 02 10 08 00 00 00 ff ff 00 00")
    bench.data("15 10 00 00 10 00", swp)
    bench.data(STOP)
    bench.unit.resized()
    bench.unit.join(OTHER, power_on=False)
    bench.target.power_on(NEXUS)
    for nexus in (NEXUS, OTHER):
        assert bench.sense("00", nexus=nexus) == (6, 0x29, 0)
        assert bench.host.gates[nexus] is Gate.OPEN
        assert bench.run("2a 00", nexus=nexus) is RESUME


def test_removal_can_be_prevented_and_allowed(bench: Bench) -> None:
    assert bench.data("1e 00 00 00 01 00") == bench.data("1e 00 00 00 00 00") == b""
    assert bench.sense("1e 00 00 00 02 00") == (5, 0x24, 0)


def test_a_medium_of_another_size_is_told(bench: Bench) -> None:
    assert bench.unit.replace_medium(MemoryStore(2 << 20))
    assert sense_of(bench.reply("00")) == (6, 0x2A, 0x09)
    assert bench.data("25")[:4] == (4095).to_bytes(4)


def test_a_medium_of_the_same_size_is_not(bench: Bench) -> None:
    assert not bench.unit.replace_medium(MemoryStore())
    assert bench.run("00") is RESUME


def test_a_medium_that_cannot_be_written_closes_the_gate(bench: Bench) -> None:
    bench.unit.replace_medium(MemoryStore(writable=False))
    assert bench.host.gates[NEXUS] is Gate.NO_WRITE
    assert bench.sense("8a") == (7, 0x27, 0)
