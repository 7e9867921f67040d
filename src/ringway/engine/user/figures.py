"""Figures of the LUNs that an endpoint has: of all of them, and of no others.

A target tells of the LUNs that had requests, also when they are gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ringway.model import EndpointSpec, LunStatistics, TargetStatistics


def figures_of(spec: EndpointSpec, told: TargetStatistics) -> TargetStatistics:
    """What was told, of each LUN in the specification's order."""
    return replace(told, luns=tuple(_rows(spec, told.luns)))


def _rows(spec: EndpointSpec, told: tuple[LunStatistics, ...]) -> Iterator[LunStatistics]:
    by_address = {(row.target, row.lun): row for row in told}
    for lun in spec.luns:
        address = lun.target, lun.lun
        yield by_address.get(address) or LunStatistics.unused(*address)
