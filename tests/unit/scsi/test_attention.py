"""The queue of unit attentions, and who gets one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ringway.scsi import Condition, Gate, Geometry, Identity, LogicalUnit, Reply
from ringway.scsi.attention import add
from ringway.scsi.reply import RESUME
from ringway.scsi.sense import Key

from .fake import NEXUS, OTHER, WWPN, Bench, MemoryHost, MemoryStore

POWER_ON = Condition.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
RESET = Condition.BUS_DEVICE_RESET_FUNCTION_OCCURRED
LOSS = Condition.I_T_NEXUS_LOSS_OCCURRED
LUNS = Condition.REPORTED_LUNS_DATA_HAS_CHANGED
CAPACITY = Condition.CAPACITY_DATA_HAS_CHANGED
ATTENTIONS = [condition for condition in Condition if condition.key is Key.UNIT_ATTENTION]

TEST_UNIT_READY = "00 00 00 00 00 00"
INQUIRY = "12 00 00 00 24 00"
REPORT_LUNS = "a0 00 00 00 00 00 00 00 01 00 00 00"
REQUEST_SENSE = "03 00 00 00 fc 00"


def test_attentions_keep_their_order() -> None:
    assert add(add(add((), CAPACITY), LUNS), CAPACITY) == (CAPACITY, LUNS)


def test_a_stronger_reset_replaces_a_weaker_one() -> None:
    assert add((LUNS, LOSS), RESET) == (LUNS, RESET)
    assert add((POWER_ON, LUNS), LOSS) == (POWER_ON, LUNS)


@given(st.lists(st.sampled_from(ATTENTIONS)))
def test_a_queue_has_each_condition_once_and_one_reset(conditions: list[Condition]) -> None:
    pending: tuple[Condition, ...] = ()
    for condition in conditions:
        pending = add(pending, condition)
    assert len(set(pending)) == len(pending)
    assert sum(condition in (POWER_ON, RESET, LOSS) for condition in pending) <= 1
    assert {c for c in pending if c.code[0] != 0x29} == {c for c in conditions if c.code[0] != 0x29}


def test_each_is_reported_once_and_in_order(bench: Bench) -> None:
    bench.unit.establish(LUNS)
    bench.unit.resized()
    assert bench.sense(TEST_UNIT_READY) == (6, 0x3F, 0x0E)
    assert bench.sense(TEST_UNIT_READY) == (6, 0x2A, 0x09)
    assert bench.run(TEST_UNIT_READY) is RESUME


def test_inquiry_and_report_luns_run_and_leave_it_pending(bench: Bench) -> None:
    bench.unit.resized()
    assert bench.data(INQUIRY)
    assert bench.data(REPORT_LUNS)
    assert bench.sense(TEST_UNIT_READY) == (6, 0x2A, 0x09)


def test_request_sense_reports_it_as_data(bench: Bench) -> None:
    bench.unit.resized()
    assert bench.data(REQUEST_SENSE)[2:14:10] + bench.data(REQUEST_SENSE)[12:14] == bytes((6, 0x2A, 0, 0))
    assert bench.run(TEST_UNIT_READY) is RESUME


def test_report_luns_clears_the_attention_of_all_units(bench: Bench) -> None:
    second = bench.add(1)
    second.take_attention(NEXUS)
    for unit in (bench.unit, second):
        unit.establish(LUNS)
    bench.data(REPORT_LUNS)
    assert bench.run(TEST_UNIT_READY) is RESUME
    assert bench.run(TEST_UNIT_READY, lun=1) is RESUME


def test_a_failed_report_luns_clears_nothing(bench: Bench) -> None:
    bench.unit.establish(LUNS)
    assert bench.sense("a0 00 07 00 00 00 00 00 01 00 00 00") == (5, 0x24, 0)
    assert bench.sense(TEST_UNIT_READY) == (6, 0x3F, 0x0E)


def test_an_unknown_command_takes_none(bench: Bench) -> None:
    bench.unit.resized()
    assert bench.sense("ff") == (5, 0x20, 0)
    assert bench.sense(TEST_UNIT_READY) == (6, 0x2A, 0x09)


def test_a_command_that_already_ran_takes_none(bench: Bench) -> None:
    bench.unit.resized()
    assert bench.sense("28 00", failure="range") == (5, 0x21, 0)
    assert bench.sense(TEST_UNIT_READY) == (6, 0x2A, 0x09)


def test_nexuses_have_queues_of_their_own(bench: Bench) -> None:
    bench.unit.join(OTHER, power_on=False)
    bench.unit.resized()
    assert bench.sense(TEST_UNIT_READY, nexus=OTHER) == (6, 0x2A, 0x09)
    assert bench.sense(TEST_UNIT_READY) == (6, 0x2A, 0x09)


def test_a_lost_nexus_concerns_nobody_else(bench: Bench) -> None:
    bench.unit.join(OTHER, power_on=False)
    bench.target.lose_nexus(OTHER)
    assert bench.run(TEST_UNIT_READY) is RESUME
    assert bench.sense(TEST_UNIT_READY, nexus=OTHER) == (6, 0x29, 0x07)


def test_power_on_is_told_unless_the_state_came_along() -> None:
    for power_on, pending in ((True, POWER_ON), (False, None)):
        unit = LogicalUnit(
            MemoryStore(), MemoryHost(), Identity.derive(WWPN, "1"), Bench().target, Geometry()
        )
        unit.join(NEXUS, power_on=power_on)
        assert unit.take_attention(NEXUS) is pending


def test_the_gate_follows_each_change(bench: Bench) -> None:
    gates = bench.host.gates
    assert gates[NEXUS] is Gate.OPEN
    bench.unit.resized()
    assert gates[NEXUS] is Gate.ATTENTION
    bench.sense(TEST_UNIT_READY)
    assert gates[NEXUS] is Gate.OPEN
    bench.unit.establish(LUNS)
    bench.unit.establish(CAPACITY)
    bench.data(REPORT_LUNS)
    assert gates[NEXUS] is Gate.ATTENTION
    bench.data(REQUEST_SENSE)
    assert gates[NEXUS] is Gate.OPEN


@given(
    st.lists(
        st.sampled_from(
            [
                *(lambda unit, condition=condition: unit.establish(condition) for condition in ATTENTIONS),
                lambda unit: unit.take_attention(NEXUS),
                lambda unit: unit.clear_attention(NEXUS, LUNS),
                lambda unit: unit.stop(flush=True),
                lambda unit: unit.start(),
                lambda unit: unit.reset(),
                lambda unit: unit.replace_medium(MemoryStore(512, writable=False)),
                lambda unit: unit.replace_medium(MemoryStore(1024)),
            ]
        ),
        max_size=30,
    )
)
def test_the_gate_never_disagrees(changes: list[object]) -> None:
    bench = Bench()
    for change in changes:
        change(bench.unit)  # type: ignore[operator]
        assert bench.host.gates[NEXUS] is bench.unit.gate(NEXUS)
        blocked = isinstance(bench.unit.gate(NEXUS), Gate) and Gate.ATTENTION in bench.unit.gate(NEXUS)
        if not blocked:
            assert bench.run(TEST_UNIT_READY) is RESUME
    bench.unit.start()
    while bench.unit.take_attention(NEXUS):
        pass
    assert isinstance(bench.run("2a 00"), Reply) is (Gate.NO_WRITE in bench.unit.gate(NEXUS))
