"""Values of OVSDB's columns, in both directions. Spec: RFC 7047, 5.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_map(value: Any) -> dict[str, str]:
    """A map of strings."""
    return dict(value[1])


def as_set(value: Any) -> tuple[Any, ...]:
    """A set; one that has a single member is written as that."""
    members = value[1] if isinstance(value, list) and value[0] == "set" else [value]
    return tuple(member[1] if isinstance(member, list) else member for member in members)


def as_one(value: Any) -> Any:
    """What a column holds at most one of; ``None``: nothing."""
    members = as_set(value)
    return members[0] if members else None


def to_map(values: Mapping[str, str]) -> list[Any]:
    """As it is written."""
    return ["map", [[key, value] for key, value in values.items()]]


def to_set(values: tuple[Any, ...]) -> list[Any]:
    """As it is written; its members are already."""
    return ["set", list(values)]


def to_uuid(uuid: str) -> list[str]:
    """As it is written: of a row that is there."""
    return ["uuid", uuid]


def is_row(uuid: str) -> list[Any]:
    """The condition that a row is that one."""
    return [["_uuid", "==", to_uuid(uuid)]]


def put(column: str, values: Mapping[str, str]) -> list[list[Any]]:
    """Mutations that set keys of a map, and leave the others as they are."""
    keys = to_set(tuple(values))
    return [[column, "delete", keys], [column, "insert", to_map(values)]]
