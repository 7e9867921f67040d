"""Aliases: each name has one, and no two have the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.guest.aliases import Kind, Owner, endpoint_alias, owner, port_alias, volume_alias
from ringway.model import ALIAS_PREFIX

#: What libvirt keeps of a user's alias (``USER_ALIAS_CHARS``).
_ALLOWED = re.compile(r"ua-[A-Za-z0-9_-]+")
_MAKERS = {Kind.ENDPOINT: endpoint_alias, Kind.PORT: port_alias, Kind.VOLUME: volume_alias}
_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True) | st.sampled_from(
    ["port-a", "volume-a", "port_ha", "port", "port-", "a_d", "a.d", "a__", "port_h"]
)


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        (endpoint_alias("db0"), "ua-ringway-db0"),
        (endpoint_alias("a_b.c"), "ua-ringway-a__b_dc"),
        (endpoint_alias("port-1"), "ua-ringway-port_h1"),
        (port_alias("net.1"), "ua-ringway-port-net_d1"),
        (volume_alias("a/ä"), "ua-ringway-volume-a_x2f_xc3_xa4"),
    ],
)
def test_an_alias_is(alias: str, expected: str) -> None:
    assert alias == expected


@given(st.sampled_from(Kind), _NAMES)
def test_an_alias_names_its_owner(kind: Kind, name: str) -> None:
    alias = _MAKERS[kind](name)
    assert _ALLOWED.fullmatch(alias)
    assert owner(alias) == Owner(kind, name)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_may_name_a_volume(name: str) -> None:
    assert _ALLOWED.fullmatch(volume_alias(name))
    assert owner(volume_alias(name)) == Owner(Kind.VOLUME, name)


@given(st.text("_dhx0af-.prtv", max_size=12))
def test_what_has_an_owner_is_that_owners_alias(rest: str) -> None:
    whose = owner(ALIAS_PREFIX + rest)
    assert whose is None or _MAKERS[whose.kind](whose.name) == ALIAS_PREFIX + rest


@pytest.mark.parametrize(
    "alias", [None, "", "virtio-disk0", "ua-db0", ALIAS_PREFIX, "ua-ringway-ä", "ua-ringway-a_"]
)
def test_others_aliases_are_not_ours(alias: str | None) -> None:
    assert owner(alias) is None
