"""Fabric spec files (``vhost.spec``), by which older targetcli learnt about fabrics: read and printed.

A line is ``name = value``; a value may be a list, divided by commas; ``#`` begins a comment.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from ringway.errors import UsageError

_LISTS: Final = ("features", "wwn_types")
#: The same thing under another name, as it was printed here and there.
_ALIASES: Final = {"wwn_type": "wwn_types"}
_FEATURES: Final = ("discovery_auth", "acls", "acls_auth", "auth", "nps", "nexus", "tpgts")


class FabricSpec(Struct, frozen=True):
    """What such a file says.

    :param features: what targets of the fabric have: nexus, tpgts, acls, nps, auth, discovery_auth.
    :param wwn_types: how target ports may be named: naa, iqn, eui, ib, free.
    """

    features: tuple[str, ...] = ()
    wwn_types: tuple[str, ...] = ()
    kernel_module: str | None = None
    configfs_group: str | None = None


#: The fabric that the kernel engine drives.
VHOST: Final = FabricSpec(("nexus", "tpgts"), ("naa",), "vhost_scsi", "vhost")


def parse_fabric_spec(text: str) -> FabricSpec:
    """Read a file. :raises UsageError: a line that is none, a name that is unknown, or one given twice."""
    found: dict[str, str | tuple[str, ...] | None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, value = _pair(line, number)
        if not name:
            continue
        if name not in FabricSpec.__struct_fields__:
            raise UsageError(
                f"line {number}: '{name}' is unknown",
                hint=f"there are {', '.join(FabricSpec.__struct_fields__)}",
            )
        if name in found:
            raise UsageError(f"line {number}: '{name}' was given before", hint="leave out one of them")
        found[name] = _words(value) if name in _LISTS else value or None
    spec = FabricSpec(**found)  # type: ignore[arg-type]
    if unknown := [feature for feature in spec.features if feature not in _FEATURES]:
        raise UsageError(f"'{unknown[0]}' is no feature", hint=f"there are {', '.join(_FEATURES)}")
    return spec


def print_fabric_spec(spec: FabricSpec) -> str:
    """Write it so that :func:`parse_fabric_spec` reads the same."""
    lines = [f"{name} = {', '.join(getattr(spec, name))}" for name in _LISTS if getattr(spec, name)]
    for name in ("kernel_module", "configfs_group"):
        if (value := getattr(spec, name)) is not None:
            lines.append(f"{name} = {value}")
    return "".join(f"{line}\n" for line in lines)


def _pair(line: str, number: int) -> tuple[str, str]:
    text = line.partition("#")[0].strip()
    if not text:
        return "", ""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"line {number}: '{text}' is not 'name = value'", hint="write a comment behind #")
    name = name.strip()
    return _ALIASES.get(name, name), value.strip().strip("\"'")


def _words(value: str) -> tuple[str, ...]:
    words = (word.strip().strip("\"'") for word in value.strip("()[]").split(","))
    return tuple(word for word in words if word)
