"""What the tests of the kernel engine share: a driver, its endpoints, disks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ringway.engine.lio import LioDriver, Settings
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

MIB: Final = 1 << 20


def driver(folder: Path) -> LioDriver:
    """Make a driver that notes in a folder what is its own."""
    return LioDriver(Settings(runtime=folder / "run"))


def image(folder: Path, name: str = "disk.img") -> Path:
    """Make a file of 1 MiB with nothing repeated in it."""
    path = folder / name
    path.write_bytes(os.urandom(MIB))
    return path


def lun(path: Path, number: int = 0, **fields: object) -> LunSpec:
    """A file as a LUN of target 0."""
    return LunSpec(0, number, BackstoreSpec(SpecKind.PATH, path=str(path), **fields))  # type: ignore[arg-type]


def endpoint(engine: LioDriver, name: str, *luns: LunSpec, **fields: object) -> EndpointSpec:
    """Check and make an endpoint. :returns: its specification, as a host keeps it."""
    spec = engine.resolve(EndpointSpec(name=name, engine=EngineKind.LIO, luns=luns, **fields))  # type: ignore[arg-type]
    engine.check(spec, ())
    engine.create(spec)
    return spec


def front_end(spec: EndpointSpec) -> VhostScsiFrontEnd:
    """Attach to it."""
    assert spec.wwpn is not None
    return VhostScsiFrontEnd(spec.wwpn, tag=0).open()
