"""Whatever a guest sends: an answer, a legal one, and never an exception."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ringway.scsi import Delivery, Geometry, Outcome, Reply, Status
from ringway.scsi import lun as luns
from ringway.scsi.reply import RESUME
from ringway.scsi.table import Kind
from ringway.scsi.target import ABSENT, WELL_KNOWN
from ringway.scsi.unit import DISK

from .fake import Bench, MemoryStore

FAILURES = (
    "range",
    "read_only",
    "no_lun",
    "field",
    "parameter",
    "overrun",
    "errno:5",
    "errno:28",
    "errno:125",
    "?",
)

opcodes = st.sampled_from([row.opcode for row in DISK])
#: Any bytes; a known command with any fields; a known command whose reserved bits are zero.
cdbs = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.builds(lambda opcode, rest: bytes((opcode,)) + rest, opcodes, st.binary(min_size=31, max_size=31)),
    st.builds(
        lambda row, noise: bytes(a & b for a, b in zip(row.usage, noise, strict=False)).ljust(32, b"\0"),
        st.sampled_from(list(DISK)),
        st.binary(min_size=15, max_size=15).map(lambda rest: b"\xff" + rest),
    ),
)


def check(cdb: bytes, outcome: Outcome, number: int | None) -> None:
    table = DISK if number == 0 else WELL_KNOWN if number == luns.REPORT_LUNS else ABSENT
    row = table.get(cdb[0], cdb[1] & 0x1F if cdb[0] in (0x9E, 0xA3) else None)
    if outcome is RESUME:
        assert row is not None
        assert row.kind & Kind.HOT
        return
    assert isinstance(outcome, Reply)
    assert bool(outcome.sense) is (outcome.status is Status.CHECK_CONDITION)
    assert not (outcome.sense and outcome.data)
    assert len(outcome.sense) in (0, 8, 16, 18, 20, 28)
    if outcome.delivery is not Delivery.COMPLETE:
        assert outcome == Reply(delivery=outcome.delivery)
    if row is not None and row.allocation is not None:
        assert len(outcome.data) <= row.allocation_length(cdb)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(
            cdbs,
            st.binary(max_size=2048),
            st.integers(0, 4096),
            st.sampled_from((0, 0, 0, 1, luns.REPORT_LUNS, None)),
            st.one_of(st.just(""), st.sampled_from(FAILURES)),
        ),
        max_size=6,
    ),
    st.booleans(),
    st.sampled_from((512, 4096)),
)
def test_any_sequence_of_commands(
    commands: list[tuple[bytes, bytes, int, int | None, str]], writable: bool, block: int
) -> None:
    """Also: the capacity stays, a protected medium stays as it is, the gate tells the truth."""
    bench = Bench(MemoryStore(16 * 4096, writable=writable), Geometry(block, 4096))
    for cdb, data, more, number, failure in commands:
        outcome = bench.run(cdb, data, data_out_size=len(data) + more, lun=number, failure=failure)
        if failure:
            assert outcome is not RESUME or number != 0
        check(cdb, outcome, number)
        assert len(bench.store.content) == 16 * 4096
        assert writable or not any(bench.store.content)
        assert all(gate is bench.unit.gate(nexus) for nexus, gate in bench.host.gates.items())
