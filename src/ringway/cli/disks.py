"""What a command line says of disks, read for the daemon."""

from __future__ import annotations

import os

import msgspec

from ringway.errors import UsageError
from ringway.model import BackstoreSpec, Limits, LunSpec, SpecKind
from ringway.notation import parse_lun
from ringway.units import parse_count, parse_duration, parse_size


def read_lun(text: str, *, force: bool = False) -> LunSpec:
    """Read ``[TARGET:]LUN=DISK`` for the daemon, which has another working directory.

    :raises UsageError: no such form.
    """
    spec = parse_lun(text, BackstoreSpec(SpecKind.PATH, force=force), host=True)
    return msgspec.structs.replace(spec, backstore=absolute(spec.backstore))


def absolute(spec: BackstoreSpec) -> BackstoreSpec:
    """The same with a path from the root; links stay what they are."""
    if spec.kind not in (SpecKind.PATH, SpecKind.PSCSI) or spec.path is None:
        return spec
    return msgspec.structs.replace(spec, path=os.path.abspath(spec.path))


def changed_limits(old: Limits, given: dict[str, float]) -> Limits:
    """:raises UsageError: a number is out of range."""
    try:
        return msgspec.convert({**msgspec.to_builtins(old), **given}, Limits)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"these limits are not possible: {error}",
            hint="at most 1000 M requests and 1 PB a second, and a burst of 60 s",
        ) from error


def read_limits(iops: str | None, bandwidth: str | None, burst: str | None) -> dict[str, float]:
    """The fields of :class:`Limits` that are given. :raises UsageError: no such numbers."""
    given: dict[str, float] = {}
    if iops is not None:
        given["iops"] = parse_count(iops)
    if bandwidth is not None:
        given["bytes_per_s"] = parse_size(bandwidth)
    if burst is not None:
        given["burst_s"] = parse_duration(burst)
    return given
