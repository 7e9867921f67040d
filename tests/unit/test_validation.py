"""Refusals of msgspec, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from ringway.model import EndpointSpec, GuestSpec, Limits, PortSpec
from ringway.model.known import structs
from ringway.model.validation import reason

P0 = {"name": "p0"}
LUN = {"target": 0, "lun": 0, "backstore": {"kind": "ram", "size_bytes": 512}}
A_NAME = "made of letters, digits, _ . and -, 63 at most, the first a letter or a digit"
A_MAC = "six pairs of hexadecimal digits, as in 52:54:00:12:34:56"


def refusal(given: object, kind: Any) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, kind)
    return reason(caught.value, given)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"name": "p/0"}, PortSpec, f"name is 'p/0', and has to be {A_NAME}"),
        ({"name": "p0\n"}, PortSpec, f"name is 'p0\\n', and has to be {A_NAME}"),
        ({"name": "a" * 64}, PortSpec, f"name is '{'a' * 64}', and has to be of 63 characters at most"),
        ({**P0, "mac": "x"}, PortSpec, f"mac is 'x', and has to be {A_MAC}"),
        ({**P0, "mtu": "x"}, PortSpec, "mtu is 'x', and has to be a whole number or nothing"),
        ({**P0, "mode": "x"}, PortSpec, "mode cannot be 'x'"),
        ({}, PortSpec, "field 'name' is missing"),
        ({**P0, "colour": 1}, PortSpec, "unknown field 'colour'"),
        ({**P0, "options": {"a": 1}}, PortSpec, "options[...] has to be a text"),
        (3, PortSpec, "it is 3, and has to be a table"),
        ({**P0, "ports": [P0, {"name": ""}]}, GuestSpec, f"ports[1].name is '', and has to be {A_NAME}"),
        ({**P0, "vcpus": 0}, GuestSpec, "vcpus is 0, and has to be 1 at least"),
        ({**P0, "vcpus": 5000}, GuestSpec, "vcpus is 5000, and has to be 4096 at most"),
        ({**P0, "ports": [P0] * 257}, GuestSpec, "ports has to be of 256 entries at most"),
        ({**P0, "start": 1}, GuestSpec, "start is 1, and has to be true or false"),
        ({**P0, "luns": [{**LUN, "x": 1}]}, EndpointSpec, "unknown field 'x' in luns[0]"),
        ({"burst_s": -1.0}, Limits, "burst_s is -1.0, and has to be 0.0 at least"),
    ],
)
def test_a_refusal_says_where_and_what(given: object, kind: Any, words: str) -> None:
    assert refusal(given, kind) == words


def test_what_was_given_need_not_be_known() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(b'{"name": "p/0"}', type=PortSpec)
    assert reason(caught.value) == f"name has to be {A_NAME}"


def test_a_long_value_is_cut() -> None:
    assert len(refusal({"name": "/" * 9999}, PortSpec)) < 300


def test_other_errors_keep_their_words() -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(b'{"name": x', type=PortSpec)
    assert reason(caught.value) == "JSON is malformed: invalid character (byte 9)"


def patterns(info: object) -> Iterator[str]:
    """Those of a type, wherever in it."""
    if isinstance(info, inspect.StrType) and info.pattern is not None:
        yield info.pattern
    names = ("type", "key_type", "value_type", "item_type")
    inner = [getattr(info, name) for name in names if hasattr(info, name)]
    for part in (*inner, *getattr(info, "types", ()), *getattr(info, "item_types", ())):
        yield from patterns(part)


def test_every_text_of_the_model_has_words() -> None:
    """Nobody is shown a pattern."""
    infos = inspect.multi_type_info(list(structs()))
    fields = [field for info in infos for field in getattr(info, "fields", ())]
    found = {pattern for field in fields for pattern in patterns(field.type)}
    assert len(found) > 5
    for pattern in found:
        assert "^" not in reason(msgspec.ValidationError(f"Expected `str` matching regex {pattern!r}"))


def test_a_mac_is_kept_in_small_letters() -> None:
    found = msgspec.convert({**P0, "mac": "52:54:00:AB:cd:EF"}, PortSpec)
    assert found.mac == "52:54:00:ab:cd:ef"
    assert PortSpec(name="p0", mac="52:54:00:AB:CD:EF") == PortSpec(name="p0", mac="52:54:00:ab:cd:ef")
