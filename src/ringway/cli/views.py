"""How LUNs are shown, in lists of them and below their endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ringway.cli.format import Column, View, printable
from ringway.model import Limits, LunStatus
from ringway.units import format_count, format_duration, format_rate, format_size

EndpointLun = tuple[str, LunStatus]
"""A LUN, behind the name of its endpoint."""


def address_text(found: EndpointLun) -> str:
    """``TARGET:LUN``."""
    return f"{found[1].target}:{found[1].lun}"


def _limits(found: EndpointLun) -> str | None:
    return limits_text(found[1].limits) or None


def limits_text(limits: Limits) -> str:
    """``5 k/s, 200 MiB/s, burst 10 s``; empty: there are none."""
    parts = [f"{format_count(limits.iops)}/s"] if limits.iops else []
    parts += [format_rate(limits.bytes_per_s)] if limits.bytes_per_s else []
    return ", ".join(
        [*parts, f"burst {format_duration(limits.burst_s)}"] if limits.burst_s and parts else parts
    )


def _options(found: EndpointLun) -> str | None:
    lun = found[1]
    waits = [str(lun.ownership)] if lun.ownership is not None and lun.ownership != "held" else []
    return ",".join([*(["readonly"] if lun.readonly else []), *waits]) or None


def _encoded(found: EndpointLun) -> Any:
    import msgspec

    return {"endpoint": found[0], **msgspec.to_builtins(found[1])}


LUNS: Final = View[EndpointLun](
    {
        "endpoint": Column(lambda found: found[0]),
        "lun": Column(address_text),
        "backstore": Column(lambda found: found[1].backstore),
        "kind": Column(lambda found: found[1].kind),
        "size": Column(lambda found: found[1].size_bytes, format_size, right=True),
        "block": Column(lambda found: found[1].block_size, right=True),
        "path": Column(lambda found: found[1].path),
        "options": Column(_options),
        "limits": Column(_limits),
        "serial": Column(lambda found: found[1].serial),
        "readonly": Column(lambda found: found[1].readonly, lambda readonly: "yes" if readonly else "no"),
        "iops": Column(lambda found: found[1].limits.iops, right=True),
        "bandwidth": Column(lambda found: found[1].limits.bytes_per_s, format_rate, right=True),
        "burst": Column(lambda found: found[1].limits.burst_s, format_duration, right=True),
    },
    ("endpoint", "lun", "kind", "size", "path", "options", "limits"),
    lambda found: f"{found[0]}/{address_text(found)}",
    _encoded,
)


def describe_lun(found: EndpointLun) -> Iterator[str]:
    """All about a disk, for a person."""
    for name, column in LUNS.columns.items():
        value = column.value(found)
        if value is not None and name not in ("options", "limits"):
            yield f"{name:<10} {printable(column.text(value))}"
