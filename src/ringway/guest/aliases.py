"""Aliases: how a device in a domain says whose it is.

libvirt keeps an alias that begins with ``ua-`` and has letters, digits, ``-`` and ``_`` only, gives it to
QEMU as the device's id, and names the device by it in its events.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ringway.model import ALIAS_PREFIX

_PLAIN: Final = re.compile(r"[^A-Za-z0-9-]")
_ESCAPE: Final = re.compile(r"_(?:([_dh])|x([0-9a-f]{2}))")
_SHORT: Final = {"_": "__", ".": "_d"}
_LONG: Final = {"_": b"_", "d": b".", "h": b"-"}


class Kind(StrEnum):
    """What a device of ours stands for."""

    ENDPOINT = "endpoint"
    PORT = "port"
    VOLUME = "volume"


#: Between prefix and name; an endpoint's name that begins like one is written with ``_h`` for that ``-``.
_INFIXES: Final = {Kind.PORT: "port-", Kind.VOLUME: "volume-"}


class Owner(Struct, frozen=True):
    """What an alias says: the kind of thing and its name."""

    kind: Kind
    name: str


def endpoint_alias(name: str) -> str:
    """Name the device of an endpoint."""
    escaped = _escaped(name)
    for infix in _INFIXES.values():
        if escaped.startswith(infix):
            escaped = f"{infix[:-1]}_h{escaped[len(infix) :]}"
    return ALIAS_PREFIX + escaped


def port_alias(name: str) -> str:
    """Name the interface of a network port."""
    return ALIAS_PREFIX + _INFIXES[Kind.PORT] + _escaped(name)


def volume_alias(name: str) -> str:
    """Name the disk of a mapped volume; any text may be a volume's name."""
    return ALIAS_PREFIX + _INFIXES[Kind.VOLUME] + _escaped(name)


def owner(alias: str | None) -> Owner | None:
    """Whose device it is; ``None`` for all that these functions did not name."""
    if alias is None or not alias.startswith(ALIAS_PREFIX):
        return None
    rest = alias.removeprefix(ALIAS_PREFIX)
    kind = next((kind for kind, infix in _INFIXES.items() if rest.startswith(infix)), Kind.ENDPOINT)
    name = _unescaped(rest.removeprefix(_INFIXES.get(kind, "")))
    return Owner(kind, name) if name and _ALIASES[kind](name) == alias else None


def spoken(alias: str) -> str:
    """What a device is, for a person: ``endpoint 'db0'``; of one that is not ours the alias."""
    whose = owner(alias)
    return f"device '{alias}'" if whose is None else f"{whose.kind} '{whose.name}'"


def look_at(alias: str) -> str:
    """The command that tells of a device of ours."""
    whose = owner(alias)
    assert whose is not None, "of ours"
    return f"ringway {whose.kind} show {whose.name}"


_ALIASES: Final = {Kind.ENDPOINT: endpoint_alias, Kind.PORT: port_alias, Kind.VOLUME: volume_alias}


def _escaped(name: str) -> str:
    return _PLAIN.sub(lambda match: _SHORT.get(match[0]) or _in_hex(match[0]), name)


def _in_hex(character: str) -> str:
    return "".join(f"_x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def _unescaped(text: str) -> str:
    """Take escapes back; what is none stays, and does not survive being escaped again."""
    plain = _ESCAPE.sub(
        lambda match: (_LONG[match[1]] if match[1] else bytes.fromhex(match[2])).decode("latin-1"), text
    )
    return plain.encode("latin-1", errors="replace").decode(errors="surrogateescape")
