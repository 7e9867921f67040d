"""Who else wants what an endpoint wants, of all that the host is to serve."""

from __future__ import annotations

from ringway.errors import BusyError, ConflictError
from ringway.media import medium
from ringway.model import EndpointSpec, LunSpec


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
    used = {
        medium(path): (lun, other) for other in others for lun in other.luns if (path := lun.backstore.path)
    }
    for lun in spec.luns:
        if lun.backstore.path and (theirs := used.get(medium(lun.backstore.path))):
            _refuse_shared(lun, *theirs)


def _refuse_shared(lun: LunSpec, theirs: LunSpec, other: EndpointSpec) -> None:
    if lun.backstore.readonly and theirs.backstore.readonly:
        return
    raise BusyError(
        f"'{lun.backstore}' is LUN {theirs.target}:{theirs.lun} of endpoint '{other.name}'",
        holder=f"endpoint {other.name}",
        hint="remove it there first, or serve it with readonly in both",
    )
