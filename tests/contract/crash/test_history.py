"""The oracle finds what it is there for, and nothing else."""

from __future__ import annotations

import pytest

from ..history import BLOCK, ZEROS, Contradiction, History, content

ONE, TWO, THREE = content(1), content(2), content(3)


def written(history: History, data: bytes, block: int = 0) -> None:
    history.acknowledge(history.submit({block: data}))


def reads(history: History, data: bytes, block: int = 0) -> None:
    history.saw(history.look([block]), {block: data})


def test_a_lost_write_is_found() -> None:
    history = History(1)
    reads(history, ZEROS)
    written(history, ONE)
    with pytest.raises(Contradiction, match="word 0: zero, and not change 1"):
        reads(history, ZEROS)


def test_a_write_that_comes_after_a_later_one_is_found() -> None:
    history = History(1)
    written(history, ONE)
    written(history, TWO)
    with pytest.raises(Contradiction, match="change 1"):
        reads(history, ONE)


def test_a_write_in_flight_may_be_there_or_not_until_it_is_acknowledged() -> None:
    history = History(1)
    change = history.submit({0: ONE})
    reads(history, ZEROS)
    reads(history, ONE)
    reads(history, ZEROS)
    history.acknowledge(change)
    with pytest.raises(Contradiction):
        reads(history, ZEROS)


def test_writes_in_flight_together_may_lie_in_any_order_but_do_not_change_afterwards() -> None:
    history = History(1)
    first, second = history.submit({0: ONE}), history.submit({0: TWO})
    history.acknowledge(second)
    history.acknowledge(first)
    reads(history, TWO)
    with pytest.raises(Contradiction):
        reads(history, ONE)


def test_a_write_that_is_older_than_both_of_two_is_gone() -> None:
    history = History(1)
    written(history, THREE)
    for change in [history.submit({0: ONE}), history.submit({0: TWO})]:
        history.acknowledge(change)
    with pytest.raises(Contradiction):
        reads(history, THREE)


def test_a_read_may_see_what_was_written_while_it_was_under_way() -> None:
    history = History(1)
    look = history.look([0])
    written(history, ONE)
    written(history, TWO)
    history.saw(look, {0: ONE})
    reads(history, TWO)


def test_pieces_are_legal_of_writes_in_flight_together_only() -> None:
    torn = ONE[: BLOCK // 2] + TWO[BLOCK // 2 :]
    history = History(2)
    changes = [history.submit({0: data, 1: data}) for data in (ONE, TWO)]
    reads(history, torn)
    for change in changes:
        history.acknowledge(change)
    reads(history, torn, block=1)
    written(history, THREE)
    with pytest.raises(Contradiction, match="word 0: change 1"):
        reads(history, torn)


def test_a_block_at_another_blocks_place_is_found() -> None:
    history = History(2)
    written(history, ONE, block=0)
    with pytest.raises(Contradiction):
        reads(history, ONE, block=1)


def test_what_promises_to_be_stable_must_lie_on_the_medium() -> None:
    history = History(1)
    change = history.submit({0: ONE})
    history.acknowledge(change)
    history.holds(change, {0: ONE})
    with pytest.raises(Contradiction):
        history.holds(change, {0: ZEROS})


def test_a_repeated_block_has_a_pattern_of_its_own() -> None:
    assert content(7, repeat=512) == content(7)[:512] * 8
