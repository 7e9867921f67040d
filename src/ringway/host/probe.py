"""Look at a disk that nobody serves yet."""

from __future__ import annotations

import os
import stat
from collections.abc import Container

from ringway.model import BackstoreInfo, BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind

_KERNEL_ONLY = (SpecKind.PSCSI, SpecKind.TCMU)
_NAME = "probe"


def engine_for(spec: BackstoreSpec, engines: Container[EngineKind]) -> EngineKind:
    """Who could serve it, of the engines that run here: our own if it can."""
    is_kernels = spec.kind in _KERNEL_ONLY or EngineKind.USER not in engines
    return EngineKind.LIO if is_kernels else EngineKind.USER


def endpoint_of(spec: BackstoreSpec, engine: EngineKind) -> EndpointSpec:
    """An endpoint that would have this one disk; it is checked and never made."""
    return EndpointSpec(name=_NAME, engine=engine, luns=(LunSpec(0, 0, spec),))


def look(spec: BackstoreSpec, engine: EngineKind) -> BackstoreInfo:
    """Tell what it is. :raises OSError: it cannot be looked at."""
    kind, size = str(spec.kind), spec.size_bytes
    if spec.kind is SpecKind.PATH and spec.path is not None:
        kind, size = _kind_and_size(spec.path)
    return BackstoreInfo(
        name=spec.name or str(spec),
        engine=engine,
        kind=kind,
        path=spec.path,
        size_bytes=size,
        block_size=spec.block_size,
        serial=spec.serial,
    )


def _kind_and_size(path: str) -> tuple[str, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = "block" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
        return kind, os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
