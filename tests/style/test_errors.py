"""The tree of errors: each class with its own code and documentation, drawn as it is."""

from __future__ import annotations

import re

import pytest

from ringway import errors
from ringway.errors import BusyError, RingwayError, all_errors, error_from_code

_LINE = re.compile(r"^    ((?:\|   )*)(\+-- )?(\w+) +([a-z-]+) +(\d+)", re.MULTILINE)
#: Exit statuses as the command documents them.
_STATUSES = {1, 2, 3, 4, 5, 6, 7}


def _depth(kind: type[RingwayError]) -> int:
    return len([base for base in kind.__mro__ if issubclass(base, RingwayError)]) - 1


def test_the_drawn_tree_is_the_real_one() -> None:
    own = [kind for kind in all_errors() if kind.__module__ == errors.__name__]
    drawn = [
        (match[3], match[4], int(match[5]), match[1].count("|") + bool(match[2]))
        for match in _LINE.finditer(errors.__doc__ or "")
    ]
    assert drawn == [(kind.__name__, kind.code, kind.exit_status, _depth(kind)) for kind in own]


def test_codes_are_unique_and_words() -> None:
    codes = [kind.code for kind in all_errors() if kind.__module__ == errors.__name__]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", list(all_errors()))
def test_an_error_is_documented_and_has_valid_numbers(kind: type[RingwayError]) -> None:
    assert kind.__doc__
    assert kind.exit_status in _STATUSES
    assert 400 <= kind.http_status < 600


@pytest.mark.parametrize("kind", [kind for kind in all_errors() if kind.__module__ == errors.__name__])
def test_an_error_survives_the_wire(kind: type[RingwayError]) -> None:
    back = error_from_code(kind.code, "the sentence", hint="the step")
    assert type(back) is kind
    assert (back.message, back.hint, str(back)) == ("the sentence", "the step", "the sentence")


def test_an_unknown_code_is_still_an_error() -> None:
    assert type(error_from_code("from-the-future", "x")) is RingwayError


def test_a_busy_error_names_its_holder() -> None:
    assert BusyError("x", holder="pid 1 (init)").holder == "pid 1 (init)"
