"""What a command line says of disks, read for the daemon."""

from __future__ import annotations

import os

import msgspec

from ringway.model import BackstoreSpec, Limits, LunSpec, SpecKind
from ringway.notation import parse_limits, parse_lun


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


def changed_limits(old: Limits, iops: str | None, bandwidth: str | None, burst: str | None) -> Limits:
    """``old`` with those that are given. :raises UsageError: no such form, or a number out of range."""
    given = parse_limits(iops, bandwidth, burst)
    fields = {"iops": iops, "bytes_per_s": bandwidth, "burst_s": burst}
    changed = {name: getattr(given, name) for name, text in fields.items() if text is not None}
    return msgspec.structs.replace(old, **changed)
