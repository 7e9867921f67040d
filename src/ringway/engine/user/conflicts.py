"""Who else wants what an endpoint wants, of all that the host is to serve."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ringway.errors import BusyError, ConflictError
from ringway.model import EndpointSpec, LunSpec

Key = tuple[str, int, int]


def refuse_conflicts(spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
    """:raises ConflictError: another endpoint has its WWPN.

    :raises BusyError: another endpoint has one of its backstores, and not both only read; it is named.
    """
    others = tuple(other for other in others if other.name != spec.name)
    for other in others:
        if spec.wwpn is not None and spec.wwpn == other.wwpn:
            raise ConflictError(
                f"endpoint '{other.name}' has the name {spec.wwpn}", hint="leave --wwpn out: one is chosen"
            )
    used = {key: (lun, other) for other in others for lun in other.luns for key in _keys(lun)}
    for lun in spec.luns:
        for key in _keys(lun):
            if key in used:
                _refuse_shared(lun, *used[key])


def _refuse_shared(lun: LunSpec, theirs: LunSpec, other: EndpointSpec) -> None:
    if lun.backstore.readonly and theirs.backstore.readonly:
        return
    raise BusyError(
        f"'{lun.backstore}' is LUN {theirs.target}:{theirs.lun} of endpoint '{other.name}'",
        holder=f"endpoint {other.name}",
        hint="remove it there first, or serve it with readonly in both",
    )


def _keys(lun: LunSpec) -> Iterator[Key]:
    """What makes a path the same as another: the file or the device that it leads to, while that is there."""
    path = lun.backstore.path
    if path is None:
        return
    try:
        status = os.stat(path)
    except OSError:
        yield os.path.normpath(path), 0, 0
        return
    if stat.S_ISBLK(status.st_mode):
        yield "", status.st_rdev, 0
    else:
        yield "", status.st_dev, status.st_ino
