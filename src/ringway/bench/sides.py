"""The sides of a comparison: our target, a peer that is started, and one that is running already."""

from __future__ import annotations

import os
import shutil
import signal
import socket as sockets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Protocol

from ringway.bench.machine import running_on
from ringway.bench.place import Place
from ringway.bench.plan import Case, DeviceKind, Setup, StoreKind
from ringway.errors import NotFoundError, TimedOutError, UnreachableError, UsageError
from ringway.unix_sockets import is_listening

QSD: Final = "qemu-storage-daemon"
_START_S: Final = 60.0
_CREDENTIALS: Final = struct.Struct("3i")
_LOG_END: Final = 500


@dataclass(frozen=True, slots=True)
class Started:
    """A target that listens. ``pid`` is 0 where its process cannot be known."""

    socket: Path
    pid: int
    process: subprocess.Popen[bytes] | None = None

    def death(self) -> str | None:
        """How it ended; ``None``: it was not started here, or still runs."""
        status = self.process.poll() if self.process else None
        if status is None:
            return None
        return (
            f"it died of {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
        )


class Side(Protocol):
    """A target to measure.

    :ivar polls: it takes its CPU for good, so nothing else can be measured while it runs.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> DeviceKind: ...
    @property
    def polls(self) -> bool: ...

    def serves(self, case: Case) -> bool:
        """Whether it can be set up for that."""

    def running(self, setup: Setup, place: Place, cpu: int | None) -> AbstractContextManager[Started]:
        """Start it on a CPU, and stop it at the end. :raises RingwayError: it does not listen in time."""


@dataclass(frozen=True, slots=True)
class OurTarget:
    """``ringway serve``, as a user starts it. :ivar only: pattern of the names of the cases to measure."""

    device: DeviceKind
    poll: str = "adaptive"
    only: str = "*"

    @property
    def name(self) -> str:
        return f"ringway {self.device}" + ("" if self.poll == "adaptive" else f" ({self.poll})")

    @property
    def polls(self) -> bool:
        return self.poll == "poll"

    def serves(self, case: Case) -> bool:
        """A blk device is one disk."""
        return fnmatchcase(case.name, self.only) and (self.device == "scsi" or case.luns == 1)

    def running(self, setup: Setup, place: Place, cpu: int | None) -> AbstractContextManager[Started]:
        """Start it."""
        socket = place.socket(self.name)
        return _program(self.command(setup, place, socket), socket, cpu)

    def command(self, setup: Setup, place: Place, socket: Path) -> list[str]:
        """What starts it."""
        numbers = ["--queues", str(setup.queues), "--workers", str(setup.workers)]
        serve = [sys.executable, "-m", "ringway", "serve", "--device", self.device, "--poll", self.poll]
        luns = [f"--lun={lun}={self._disk(setup, place, lun)}" for lun in range(setup.luns)]
        return [*serve, *numbers, "--socket", str(socket), *luns]

    def _disk(self, setup: Setup, place: Place, lun: int) -> str:
        if setup.store in {"null", "ram"}:
            return f"{setup.store}:{setup.disk_bytes}"
        image = str(place.image(setup, self.name, lun)).replace(",", ",,")
        return image + (",direct" if setup.store == "disk" else "")


@dataclass(frozen=True, slots=True)
class QemuStorageDaemon:
    """QEMU's own back end: vhost-user-blk over null-co, and over files with io_uring.

    It has no store in memory of its own, and one disk for each device.
    """

    name: str = QSD
    device: DeviceKind = "blk"
    polls: bool = False

    def serves(self, case: Case) -> bool:
        return case.store != "ram" and case.luns == 1 and case.workers == 1

    def running(self, setup: Setup, place: Place, cpu: int | None) -> AbstractContextManager[Started]:
        """Start it."""
        socket = place.socket(self.name)
        return _program(self.command(setup, place, socket), socket, cpu)

    def command(self, setup: Setup, place: Place, socket: Path) -> list[str]:
        """What starts it."""
        export = "vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix"
        export += f",addr.path={socket},num-queues={setup.queues}"
        return [QSD, "--blockdev", self._node(setup, place), "--export", export]

    def _node(self, setup: Setup, place: Place) -> str:
        if setup.store == "null":
            return f"null-co,node-name=d,size={setup.disk_bytes}"
        image = str(place.image(setup, self.name, 0)).replace(",", ",,")
        direct = ",cache.direct=on" if setup.store == "disk" else ""
        return f"file,node-name=d,aio=io_uring{direct},filename={image}"


def qemu_storage_daemon() -> QemuStorageDaemon:
    """QEMU's back end. :raises NotFoundError: it is not installed."""
    if shutil.which(QSD) is None:
        raise NotFoundError(f"{QSD} is not installed", hint="apt-get install qemu-utils, or --peer none")
    return QemuStorageDaemon()


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A target that somebody else started, and pinned.

    :ivar store: of which kind its disk is: with which cases it is compared.
    """

    socket: Path
    device: DeviceKind
    store: StoreKind
    name: str
    polls: bool = False

    def serves(self, case: Case) -> bool:
        return case.store == self.store and case.luns == 1 and case.workers == 1

    @contextmanager
    def running(self, setup: Setup, place: Place, cpu: int | None) -> Iterator[Started]:
        """Find out whose socket it is. :raises UnreachableError: nobody listens there."""
        yield Started(self.socket, _listener(self.socket))


def running_peer(socket: Path, device: DeviceKind, store: StoreKind) -> RunningPeer:
    """A peer that is running, by the name of its program. :raises UnreachableError: nobody listens there."""
    pid = _listener(socket)
    try:
        name = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        name = "peer"
    return RunningPeer(socket, device, store, f"{name} {device}")


def _listener(socket: Path) -> int:
    """Process that listens on a socket; 0 when it is out of sight."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(socket))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreachableError(
                f"cannot reach a target on {socket}: {reason}",
                hint="start the peer first, and name its socket",
            ) from error
        found = probe.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(found)[0]
    return pid


@contextmanager
def _program(command: list[str], socket: Path, cpu: int | None) -> Iterator[Started]:
    socket.unlink(missing_ok=True)
    log = socket.with_suffix(".log")
    with log.open("wb") as output, running_on(cpu):
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for(socket, process, command[0], log)
        yield Started(socket, process.pid, process)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(socket: Path, process: subprocess.Popen[bytes], program: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not is_listening(str(socket)):
        if process.poll() is not None or time.monotonic() > deadline:
            end = log.read_text(errors="replace")[-_LOG_END:].strip()
            raise TimedOutError(f"{Path(program).name} did not start: {end}")
        time.sleep(0.01)


def check_folder(folder: Path) -> None:
    """Refuse a folder for the images on a disk that is no place for them. :raises UsageError: it is not."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(
            f"{folder} is no folder to write to", hint="--folder names one on the disk to measure"
        )
