"""A host for the user engine: a runtime folder, drivers of it, images; all of it ends with the test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringway.engine.user import UserDriver
from ringway.engine.user.client import SpawnerClient
from ringway.engine.user.places import Places
from ringway.model import BackstoreSpec, DeviceKind, EndpointSpec, LunSpec, SpecKind
from ringway.testing.processes import kill
from ringway.testing.waiting import wait_until

SIZE = 1 << 20


class UserHost:
    """A context manager. What is left at its end is deleted; files that stay then are a fault."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rw-")
        self.folder = Path(self._folder.name)
        self.places = Places(self.folder / "run")
        self._drivers: list[UserDriver] = []
        self.first = self.driver()

    def driver(self, **more: Any) -> UserDriver:
        """One that knows nothing of the others."""
        driver = UserDriver(self.places.run, **more)
        self._drivers.append(driver)
        return driver

    def image(self, name: str = "disk", size_bytes: int = SIZE) -> Path:
        """A sparse image, made unless it is there."""
        path = self.folder / name
        if not path.exists():
            path.touch()
            os.truncate(path, size_bytes)
        return path

    def spec(self, name: str = "db0", *disks: BackstoreSpec, **more: Any) -> EndpointSpec:
        """Disks as LUNs 0, 1, …, by default an image of that name; resolved."""
        of = disks or (file_disk(self.image(name)),)
        luns = tuple(LunSpec(0, number, disk) for number, disk in enumerate(of))
        return self.first.resolve(EndpointSpec(name=name, luns=luns, **more))

    def blk(self, name: str = "db0") -> EndpointSpec:
        """An endpoint of one image."""
        return self.spec(name, device=DeviceKind.BLK)

    def files(self) -> list[str]:
        """What endpoints have in the runtime folder."""
        return sorted(os.listdir(self.places.endpoints)) if self.places.endpoints.exists() else []

    @property
    def spawner(self) -> int | None:
        """The process that listens for orders."""
        return SpawnerClient(str(self.places.spawner)).pid()

    def end_spawner(self, number: signal.Signals) -> None:
        """Have it gone."""
        pid = self.spawner
        assert pid is not None
        os.kill(pid, number)
        wait_until(lambda: self.spawner is None, "the spawner's end")

    def reboot(self) -> None:
        """All processes end at once, and the runtime folder is empty."""
        for info in self.driver().list():
            assert info.pid is not None
            kill(info.pid)
        self.end_spawner(signal.SIGKILL)
        shutil.rmtree(self.places.run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        last = self.driver()
        for name in self.places.names():
            last.delete(name, force=True)
        for driver in self._drivers:
            driver.close()
        left = self.files()
        if self.spawner is not None:
            self.end_spawner(signal.SIGTERM)
        self._folder.cleanup()
        assert error is not None or left == []


def file_disk(path: Path, **more: Any) -> BackstoreSpec:
    """An image, or a device."""
    return BackstoreSpec(SpecKind.PATH, path=str(path), **more)


def null_disk(size_bytes: int = SIZE) -> BackstoreSpec:
    """A disk that forgets."""
    return BackstoreSpec(SpecKind.NULL, size_bytes=size_bytes)
