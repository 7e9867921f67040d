"""What a test of an engine works with: a driver, a place for images, and a hand that plays the guest."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ringway.engine.base import Driver
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind

MIB = 1 << 20


@dataclass
class Bench:
    """One engine on a host of its own.

    :param start: makes a driver, as a daemon does that starts; what the one before made is still there.
    :param attach: a guest comes to an endpoint. :param detach: it goes.
    :param reboot: the host forgets what does not lie on disk.
    """

    engine: EngineKind
    folder: Path
    start: Callable[[], Driver]
    attach: Callable[[EndpointSpec], None]
    detach: Callable[[EndpointSpec], None]
    reboot: Callable[[], None]
    specs: dict[str, EndpointSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.driver = self.start()

    def restart(self) -> None:
        """The daemon goes and comes back."""
        self.driver.close()
        self.driver = self.start()

    def image(self, name: str = "disk.img", size_bytes: int = MIB) -> str:
        """Make a file for a disk."""
        path = self.folder / name
        with path.open("wb") as file:
            os.truncate(file.fileno(), size_bytes)
        return str(path)

    def spec(self, name: str = "db0", *luns: LunSpec, **fields: object) -> EndpointSpec:
        """A resolved endpoint of this engine; one RAM disk if no LUN is given."""
        spec = EndpointSpec(name=name, engine=self.engine, luns=luns or (ram(),), **fields)  # type: ignore[arg-type]
        return self.driver.resolve(spec)

    def create(self, name: str = "db0", *luns: LunSpec, **fields: object) -> EndpointSpec:
        """As a host does it: resolve, check, create."""
        spec = self.spec(name, *luns, **fields)
        self.driver.check(spec, tuple(other for other in self.specs.values() if other.name != name))
        self.driver.create(spec)
        self.specs[name] = spec
        return spec

    def names(self) -> set[str]:
        """Endpoints that are there."""
        return {info.name for info in self.driver.list()}


def ram(lun: int = 0, *, target: int = 0, size_bytes: int = MIB, **fields: object) -> LunSpec:
    """A RAM disk."""
    return LunSpec(target, lun, BackstoreSpec(SpecKind.RAM, size_bytes=size_bytes, **fields))  # type: ignore[arg-type]


def disk(path: str, lun: int = 0, *, target: int = 0, **fields: object) -> LunSpec:
    """A file or device."""
    return LunSpec(target, lun, BackstoreSpec(SpecKind.PATH, path=path, **fields))  # type: ignore[arg-type]
