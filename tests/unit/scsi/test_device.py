"""The virtio-scsi face: commands, LUNs that come and go, events, and errors of our own."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway import _core
from ringway.errors import ProtocolError, UsageError
from ringway.target.scsi_device import ScsiDevice
from ringway.target.virtio_scsi import Address, Event, Feature, ResetReason, Response
from ringway.testing.waiting import wait_until

from .fake import WWPN, Completion, MemoryBackstore, MemoryCommand, MemoryCore, MemoryGeometry, MemoryStore

INQUIRY = bytes.fromhex("12 00 00 00 24 00").ljust(32, b"\0")
READ = bytes.fromhex("28").ljust(32, b"\0")
TEST_UNIT_READY = bytes(32)
W_LUN = bytes.fromhex("c101000000000000")
ALL = Feature.HOTPLUG | Feature.CHANGE


def name(target: int, lun: int) -> bytes:
    return bytes((1, target, 0x40 | lun >> 8, lun & 0xFF, 0, 0, 0, 0))


class Guest:
    """A device with a disk at (0, 0) whose power-on attention is taken, and a line for each command."""

    def __init__(self, *, incoming: bool = False) -> None:
        self.core = MemoryCore()
        self.broken: list[tuple[int, str]] = []
        self.device = ScsiDevice(
            self.core, WWPN, incoming=incoming, broken=lambda queue, why: self.broken.append((queue, why))
        )
        self.backstore = MemoryBackstore()
        self.device.lun_added(0, 0, self.backstore, "SN0")
        self.tag = 0

    def send(self, cdb: bytes, lun: bytes = name(0, 0), *, data_out: bytes = b"", failure: str = "") -> int:
        self.tag += 1
        self.device.handle(
            MemoryCommand(
                tag=self.tag,
                lun=lun,
                cdb=cdb,
                data_out=data_out,
                data_out_size=len(data_out),
                failure=failure,
            )
        )
        wait_until(lambda: any(tag == self.tag for _, tag in self.core.log))
        return self.tag

    def run(
        self, cdb: bytes, lun: bytes = name(0, 0), *, data_out: bytes = b"", failure: str = ""
    ) -> Completion:
        return self.core.completions[self.send(cdb, lun, data_out=data_out, failure=failure)]

    def attention(self, lun: bytes = name(0, 0)) -> tuple[int, int] | None:
        """Take the oldest unit attention. :returns: its code, or ``None``: TEST UNIT READY went on."""
        tag = self.send(TEST_UNIT_READY, lun)
        if ("resume", tag) in self.core.log:
            return None
        sense = self.core.completions[tag].sense
        assert sense[2] == 6
        return sense[12], sense[13]


@pytest.fixture
def guest() -> Guest:
    one = Guest()
    assert one.attention() == (0x29, 0)
    return one


# Commands


def test_a_command_is_completed(guest: Guest) -> None:
    done = guest.run(INQUIRY)
    assert (done.response, done.status, done.sense) == (Response.OK, 0, b"")
    assert done.data[8:15] == b"RINGWAY"
    assert len(done.data) == 36


def test_a_hot_command_is_resumed(guest: Guest) -> None:
    tag = guest.send(READ)
    assert guest.core.log[-1] == ("resume", tag)
    assert tag not in guest.core.completions


def test_sense_comes_with_check_condition(guest: Guest) -> None:
    done = guest.run(b"\xff" + bytes(31))
    assert (done.response, done.status, len(done.sense)) == (Response.OK, 2, 18)


@pytest.mark.parametrize(
    ("failure", "response"), [("overrun", Response.OVERRUN), ("errno:125", Response.ABORTED)]
)
def test_what_the_transport_ends(guest: Guest, failure: str, response: Response) -> None:
    assert guest.run(READ, failure=failure) == Completion(response)


@pytest.mark.parametrize("lun", [name(1, 0), bytes(8), bytes((2, 0, 0, 0, 0, 0, 0, 0)), b"\xff" * 8])
def test_a_target_that_is_not_there(guest: Guest, lun: bytes) -> None:
    for cdb in (INQUIRY, READ, TEST_UNIT_READY):
        assert guest.run(cdb, lun, failure="no_lun") == Completion(Response.BAD_TARGET)


def test_a_lun_that_is_not_there(guest: Guest) -> None:
    for lun in (name(0, 1), name(0, 16383), bytes((1, 0, 0x80, 0, 0, 0, 0, 0))):
        assert guest.run(INQUIRY, lun).data[0] == 0x7F
        assert guest.run(READ, lun, failure="no_lun").sense[12] == 0x25


def test_both_ways_to_write_a_lun(guest: Guest) -> None:
    guest.device.lun_added(0, 5, guest.backstore, "SN5")
    for first in (0x00, 0x40):
        assert guest.run(INQUIRY, bytes((1, 0, first, 5, 0, 0, 0, 0))).data[0] == 0


@pytest.mark.parametrize("lun", [W_LUN, bytes.fromhex("0100c10100000000")])
def test_the_well_known_unit(guest: Guest, lun: bytes) -> None:
    """Alone it names no target and gets the first; Linux writes it as a LUN of one."""
    report = bytes.fromhex("a0 00 02 00 00 00 00 00 00 ff 00 00").ljust(32, b"\0")
    assert guest.run(report, lun).data == (16).to_bytes(4) + bytes(4) + bytes(8) + W_LUN


@given(st.binary(min_size=8, max_size=8))
def test_any_lun_bytes_get_an_answer(lun: bytes) -> None:
    guest = Guest()
    assert guest.run(INQUIRY, lun).response in (Response.OK, Response.BAD_TARGET)


@pytest.mark.parametrize(("target", "lun"), [(0, 0), (255, 255), (3, 256), (0, 16383)])
def test_addresses_survive_the_way(target: int, lun: int) -> None:
    address = Address(target, lun)
    assert Address.decode(address.encode()) == address


def test_a_range_is_locked_and_unlocked(guest: Guest) -> None:
    compare_and_write = (b"\x89" + bytes(12) + b"\x01").ljust(32, b"\0")
    assert guest.run(compare_and_write, data_out=bytes(512) + b"N" * 512).status == 0
    assert guest.backstore.store.content[:512] == b"N" * 512
    assert guest.core.lock_calls == [(0, 0, 0, 512, True)]
    assert guest.run(compare_and_write, data_out=bytes(1024)).status == 2
    assert guest.core.locks == {}


def test_a_stop_waits_for_what_is_in_flight_on_the_unit(guest: Guest) -> None:
    guest.device.lun_added(0, 1, guest.backstore, "SN1")
    guest.core.in_flight = [MemoryCommand(tag=71), MemoryCommand(tag=72, lun=name(0, 1))]
    guest.run(bytes.fromhex("1b 00 00 00 00 00").ljust(32, b"\0"))
    assert {71, 72} & set(guest.core.completions) == {71}


def test_a_range_that_cannot_be_locked_is_busy(guest: Guest) -> None:
    guest.core.locked_out = True
    done = guest.run((b"\x89" + bytes(12) + b"\x01").ljust(32, b"\0"), data_out=bytes(1024))
    assert (done.response, done.status) == (Response.OK, 8)


def test_the_gate_is_published_in_the_words_of_the_core() -> None:
    guest = Guest()
    assert guest.core.gates == {(0, 0): _core.GATE_ATTENTION}
    guest.attention()
    assert guest.core.gates == {(0, 0): 0}
    guest.device.lun_added(0, 1, MemoryBackstore(MemoryStore(writable=False)), "SN1")
    assert guest.core.gates[0, 1] == _core.GATE_ATTENTION | _core.GATE_NO_WRITE


# Errors of our own


class BadStore(MemoryStore):
    """A store with an error in it."""

    def read(self, offset: int, length: int) -> bytes:
        raise ZeroDivisionError


def test_an_error_of_ours_costs_one_command(caplog: pytest.LogCaptureFixture) -> None:
    guest = Guest()
    guest.device.lun_added(0, 1, MemoryBackstore(BadStore()), "SN1")
    guest.attention(name(0, 1))
    verify = bytes.fromhex("2f 00 00000000 00 0001 00").ljust(32, b"\0")
    with caplog.at_level(logging.ERROR):
        done = guest.run(verify, name(0, 1))
    assert (done.status, done.sense[2], done.sense[12:14]) == (2, 4, b"\x44\x00")
    assert "2f 00" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert guest.run(INQUIRY, name(0, 1)).status == 0


def test_an_error_of_ours_costs_one_function(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    guest.core.drain = None  # type: ignore[assignment,method-assign]
    request = bytes((0, 0, 0, 0, 1, 0, 0, 0)) + name(0, 0) + bytes(8)
    guest.device.handle(MemoryCommand(kind="control", tag=77, queue=0, data_out=request))
    wait_until(lambda: bool(guest.core.responses))
    assert guest.core.responses == {77: bytes((Response.FAILURE,))}
    assert "control failed: queue 0" in caplog.text


def test_an_error_in_a_callback_is_logged(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    guest.broken = None  # type: ignore[assignment]
    guest.device.handle(MemoryCommand(kind="broken", queue=3))
    assert "broken failed: queue 3" in caplog.text


def test_without_a_callback_a_broken_queue_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ScsiDevice(MemoryCore(), WWPN).handle(MemoryCommand(kind="broken", queue=3, failure="a loop in a chain"))
    assert "queue 3 was stopped: a loop in a chain" in caplog.text


def test_a_queue_that_broke_is_reported(guest: Guest) -> None:
    guest.device.handle(MemoryCommand(kind="broken", queue=3, failure="a loop in a chain"))
    assert guest.broken == [(3, "a loop in a chain")]


# LUNs


def test_before_a_guest_nobody_is_told(guest: Guest) -> None:
    guest.device.lun_added(0, 1, guest.backstore, "SN1")
    guest.device.lun_resized(0, 1, MemoryBackstore(MemoryStore(2 << 20)))
    guest.device.lun_removed(0, 1)
    assert guest.core.events == []
    assert guest.attention() is None


@pytest.mark.parametrize("features", [0, Feature.HOTPLUG, Feature.CHANGE, ALL])
def test_events_are_those_that_were_negotiated(guest: Guest, features: int) -> None:
    guest.device.acknowledged(features | 1 << 32)
    guest.device.lun_added(0, 300, guest.backstore, "SN1")
    guest.device.lun_resized(0, 0, MemoryBackstore(MemoryStore(2 << 20)))
    guest.device.lun_removed(0, 300)
    flat = bytes.fromhex("0100412c00000000")
    expected = [
        (Feature.HOTPLUG, (Event.TRANSPORT_RESET, flat, ResetReason.RESCAN)),
        (Feature.CHANGE, (Event.PARAM_CHANGE, bytes((1, 0, 0, 0, 0, 0, 0, 0)), 0x092A)),
        (Feature.HOTPLUG, (Event.TRANSPORT_RESET, flat, ResetReason.REMOVED)),
    ]
    assert guest.core.events == [event for feature, event in expected if features & feature]


def test_the_other_units_of_the_target_tell_of_a_new_one(guest: Guest) -> None:
    guest.device.lun_added(1, 0, guest.backstore, "SN10")
    guest.attention(name(1, 0))
    guest.device.acknowledged(0)
    guest.device.lun_added(0, 1, guest.backstore, "SN1")
    assert guest.attention() == (0x3F, 0x0E)
    assert guest.attention(name(0, 1)) == (0x29, 0)
    assert guest.attention(name(0, 1)) is None
    assert guest.attention(name(1, 0)) is None


def test_a_unit_is_there_when_the_guest_hears_of_it() -> None:
    guest, seen = Guest(), list[int]()
    guest.device.acknowledged(ALL)
    core_event = guest.core.post_event

    def post_event(event: int, lun: bytes, reason: int) -> None:
        seen.append(guest.run(INQUIRY, lun).data[0])
        core_event(event, lun, reason)

    guest.core.post_event = post_event  # type: ignore[method-assign]
    guest.device.lun_added(0, 1, guest.backstore, "SN1")
    guest.device.lun_removed(0, 1)
    assert seen == [0, 0x7F]


def test_a_removed_lun_is_gone_and_its_target_with_the_last(guest: Guest) -> None:
    guest.device.lun_added(0, 1, guest.backstore, "SN1")
    guest.device.lun_removed(0, 1)
    assert guest.run(INQUIRY, name(0, 1)).data[0] == 0x7F
    guest.device.lun_removed(0, 0)
    assert guest.run(INQUIRY).response == Response.BAD_TARGET
    assert guest.device.units == {}


def test_a_resize_is_told(guest: Guest) -> None:
    guest.device.lun_resized(0, 0, MemoryBackstore(MemoryStore(2 << 20)))
    assert guest.attention() == (0x2A, 0x09)
    assert guest.run(bytes.fromhex("25").ljust(32, b"\0")).data[:4] == (4095).to_bytes(4)


def test_a_serial_number_that_cannot_be_shown(guest: Guest) -> None:
    with pytest.raises(UsageError):
        guest.device.lun_added(0, 1, guest.backstore, "é")
    assert set(guest.device.units) == {(0, 0)}


def test_sizes_are_those_of_the_backstore(guest: Guest) -> None:
    backstore = MemoryBackstore(geometry=MemoryGeometry(4096, 16384, 65536))
    guest.device.lun_added(0, 1, backstore, "SN1")
    limits = guest.run(bytes.fromhex("12 01 b0 00 ff 00").ljust(32, b"\0"), name(0, 1)).data
    assert (int.from_bytes(limits[6:8]), int.from_bytes(limits[28:32])) == (4, 16)


# Front ends


def test_reset_is_a_nexus_loss_and_no_more(guest: Guest) -> None:
    """Trap T11: what was set stays set."""
    swp = bytes.fromhex("00001000 0a0a021008000000ffff0000")
    guest.run(bytes.fromhex("15 10 00 00 10 00").ljust(32, b"\0"), data_out=swp)
    assert guest.device.units[0, 0].write_protected
    guest.device.reset()
    assert guest.device.units[0, 0].write_protected
    assert guest.attention() == (0x29, 0x07)
    assert guest.attention() is None


def test_a_migrated_guest_is_not_told_of_a_power_on() -> None:
    guest = Guest(incoming=True)
    assert guest.attention() is None
    guest.device.acknowledged(ALL)
    guest.device.lun_added(0, 1, guest.backstore, "SN1")
    assert guest.attention(name(0, 1)) == (0x29, 0)


def test_state_survives_a_front_end(guest: Guest) -> None:
    guest.device.acknowledged(ALL)
    guest.device.lun_resized(0, 0, MemoryBackstore(MemoryStore(2 << 20)))
    guest.device.acknowledged(ALL)
    assert guest.attention() == (0x2A, 0x09)


def test_there_is_no_configuration_space(guest: Guest) -> None:
    assert (guest.device.has_config, guest.device.config()) == (False, b"")
    with pytest.raises(ProtocolError):
        guest.device.set_config(0, b"\0")


def test_the_features_are_those_of_virtio() -> None:
    """Linux: include/uapi/linux/virtio_scsi.h, VIRTIO_SCSI_F_HOTPLUG and _CHANGE."""
    assert ScsiDevice.features == 1 << 1 | 1 << 2


@pytest.mark.parametrize(
    "cdb", [TEST_UNIT_READY, bytes.fromhex("2f 00 00000000 00 0001 00").ljust(32, b"\0")]
)
def test_a_command_for_a_unit_that_is_gone_is_not_for_the_next_one_at_its_address(
    guest: Guest, cdb: bytes
) -> None:
    """What had waited in the ring ran on whatever disk had come there."""
    gone = guest.core.lun_instance(0, 0)
    guest.device.lun_removed(0, 0)
    del guest.core.instances[0, 0]
    guest.core.instances[0, 0] = gone + 7
    guest.device.lun_added(0, 0, MemoryBackstore(), "SN1")
    guest.device.handle(MemoryCommand(tag=50, cdb=cdb, instance=gone))
    wait_until(lambda: 50 in guest.core.completions)
    assert guest.core.completions[50].sense[2] == 5
    assert tuple(guest.core.completions[50].sense[12:14]) == (0x25, 0), "LOGICAL UNIT NOT SUPPORTED"
    assert guest.attention() == (0x29, 0), "the next one was not touched"
