"""What contract tests share: engines, disks on every kind of medium, targets in this process."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ringway import _core
from ringway.model import DeviceKind, IoEngine, LunSpec, TargetConfig
from ringway.target.listen import listen
from ringway.target.target import Target
from ringway.testing.forked import ForkedTarget, TargetForker

from .bare import BareTarget
from .disks import Disk, MakeDisk, make_disk

Count = Callable[[int, int], int]


def uring_is_allowed() -> bool:
    """Whether this host has io_uring for us. What else is wrong with a ring of ours is no reason to skip."""
    try:
        _core.Device("blk", queues=1, engine="uring").close()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise
        return False
    return True


@pytest.fixture(params=["uring", "epoll"])
def engine(request: pytest.FixtureRequest) -> IoEngine:
    """Each engine in turn."""
    if request.param == "uring" and not uring_is_allowed():
        pytest.skip("this host forbids io_uring (sysctl kernel.io_uring_disabled, or a container's filter)")
    return IoEngine(request.param)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """An empty folder whose path leaves room for a unix socket's name (107 bytes in all)."""
    with tempfile.TemporaryDirectory(prefix="rw-") as name:
        yield Path(name)


@pytest.fixture
def disk_of() -> Iterator[MakeDisk]:
    """Make a disk on a store of :data:`~.disks.STORES`: see :func:`~.disks.make_disk`."""
    with contextlib.ExitStack() as stack:
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rw-", dir=place)))
            for place in ("/dev/shm", "/var/tmp")
        ]
        yield partial(_checked_disk, folders=folders)


def _checked_disk(store: str, *, folders: list[Path], **more: object) -> Disk:
    disk = make_disk(store, *folders, **more)  # type: ignore[arg-type]
    if store == "direct":
        try:
            os.close(os.open(disk.path, os.O_RDWR | os.O_DIRECT))
        except OSError:
            pytest.skip("the file system of /var/tmp has no direct I/O")
    return disk


class Serve:
    """Starts confined targets: ``serve("blk", disk, queues=2)``; closed at the test's end."""

    def __init__(
        self, folder: Path, engine: IoEngine, stack: contextlib.ExitStack, forker: TargetForker
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._stack = stack
        self._forker = forker
        self.targets: list[ForkedTarget] = []

    def __call__(self, device: str, *disks: Disk, **config: object) -> str:
        """Serve disks as LUNs 0, 1, … :returns: the socket's path."""
        path = str(self._folder / f"{device}-{len(self.targets)}.sock")
        target = self._forker.serve(config_of(device, disks, self._engine, config), path)
        self._stack.callback(target.close)
        self.targets.append(target)
        return path

    def bare(self, device: str, *disks: Disk, **config: object) -> BareTarget:
        """As a call, but without a slow path: the test is that."""
        whole = config_of(device, disks, self._engine, config)
        bare = BareTarget(str(self._folder / f"{device}.sock"), whole)
        return self._stack.enter_context(bare)

    @property
    def target(self) -> ForkedTarget:
        """The last one that was started."""
        return self.targets[-1]


class ServeHere:
    """As :class:`Serve`, in this process: for tests that look inside. Nothing is confined."""

    def __init__(self, folder: Path, engine: IoEngine, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._engine = engine
        self._stack = stack
        self.targets: list[Target] = []

    def __call__(self, device: str, *disks: Disk, **config: object) -> str:
        """Serve disks as LUNs 0, 1, … :returns: the socket's path."""
        path = str(self._folder / f"{device}-{len(self.targets)}.sock")
        whole = config_of(device, disks, self._engine, config)
        target = Target(whole, listen(path), listen(f"{path}.ctl", mode=0o600))
        self._stack.callback(target.close)
        self.targets.append(target)
        return path

    @property
    def target(self) -> Target:
        """The last one that was started."""
        return self.targets[-1]


def config_of(
    device: str, disks: tuple[Disk, ...], engine: IoEngine, more: dict[str, object]
) -> TargetConfig:
    """The disks as LUNs 0, 1, …"""
    luns = tuple(LunSpec(0, number, disk.spec) for number, disk in enumerate(disks))
    return TargetConfig(DeviceKind(device), luns, io_engine=engine, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def forker() -> Iterator[TargetForker]:
    """Where targets come from."""
    with TargetForker() as forker:
        yield forker


@pytest.fixture
def serve(run_dir: Path, engine: IoEngine, forker: TargetForker) -> Iterator[Serve]:
    """Serve disks as ``ringway serve`` does, by each engine."""
    with contextlib.ExitStack() as stack:
        yield Serve(run_dir, engine, stack, forker)


@pytest.fixture
def serve_here(run_dir: Path, engine: IoEngine) -> Iterator[ServeHere]:
    """Serve disks in this process, by each engine."""
    with contextlib.ExitStack() as stack:
        yield ServeHere(run_dir, engine, stack)


@pytest.fixture(scope="session")
def count() -> Count:
    """Return a chooser between an everyday count and the promised one (with RINGWAY_LONG=1)."""
    long = os.environ.get("RINGWAY_LONG") == "1"
    return lambda reduced, promised: promised if long else reduced
