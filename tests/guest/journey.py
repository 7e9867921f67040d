"""A guest that moves between two targets of each of its disks, over and over, under a load that verifies.

What holds each time, whatever goes wrong: of the two targets of a disk at most one has its image's locks, the
other one serves no request, nobody writes while none has them, and every block on the image is whole.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import pytest

from ringway.errors import GuestError
from ringway.model import OwnershipState
from ringway.target.statistics import total
from ringway.testing.bootsector import BootSectorGuest, Load, install
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import QemuGuest, migrate
from ringway.testing.qmp import Qmp
from ringway.testing.waiting import PATIENCE_S

from .linux import check_blocks, start_load, stop_load
from .serving import BOOT, MIB, Target, finish, go_on, make_image

Step = Callable[[], None]
Guest = TypeVar("Guest", BootSectorGuest, LinuxGuest)
#: A guest has two; a destination with one cannot take its state, which it finds out at the very end.
_CPUS = 2
_FIRST_REQUEST_QUEUE = {"virtio-scsi": 2, "virtio-blk": 0}


def nothing() -> None:
    """What happens on the way of most moves."""


class Journey(ABC, Generic[Guest]):
    """A guest and, for each of its disks, a target *here*, which owns the image, and one *there*.

    Entering it starts all of them and the load; leaving it ends them.

    :param devices: kinds of the disks, one each.
    :param options: of all targets.
    """

    size_bytes: int
    queues = 1

    def __init__(self, folder: Path, *devices: str) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._rested: dict[Target, tuple[int, int]] = {}
        self.moves = 0  #: completed
        self.guest: Guest  #: in the QEMU where it runs
        self.destination: Guest  #: in the QEMU that it is moving to
        self.left: Guest  #: in the QEMU that it came from last
        self.images = [make_image(folder / f"{device}.img", self.size_bytes) for device in devices]
        self.here, self.there = self._targets("a"), self._targets("b")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for target in (*self.here, *self.there):
                stack.enter_context(target)
            self.guest = self.make_guest(self.here)
            stack.callback(self._close_guest)
            self.guest.__enter__()
            self.start_load()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.guest.qemu.describe())
        self._stack.__exit__(kind, error, trace)

    # The guest and its load

    @abstractmethod
    def make_guest(self, targets: Sequence[Target], *, incoming: bool = False, cpus: int = _CPUS) -> Guest:
        """Start a QEMU on some targets."""

    @abstractmethod
    def leave(self, guest: Guest) -> None:
        """The guest has left this QEMU, which is not closed yet."""

    @abstractmethod
    def start_load(self) -> None:
        """Start what verifies, and wait until it did something."""

    @abstractmethod
    def go_on(self) -> None:
        """Wait until the load has done more. :raises RingwayError: it does not, or it found an error."""

    @abstractmethod
    def check_images(self) -> None:
        """Look at every block from the host, while nobody writes. :raises GuestError: one is torn or lost."""

    @abstractmethod
    def finish(self) -> None:
        """End the load. :raises GuestError: it found an error, or the images are not what it wrote."""

    # Moves

    def move(self, *, active: Step = nothing, at_rest: Step = nothing, arrived: Step = nothing) -> None:
        """Move the guest.

        :param active: what happens while memory is copied.
        :param at_rest: what happens while the guest stands still and its disks are nobody's.
        :param arrived: what happens next; the guest may stand still before. Here is where there was by now.
        """
        self.destination = self.make_guest(self.there, incoming=True)
        with self._closed_on_error(self.destination):
            self._migrate(active, at_rest)
        self.left, self.guest = self.guest, self.destination
        self.here, self.there = self.there, self.here
        self.leave(self.left)
        arrived()
        self.go_on()
        self._check_idle(self.there)
        self.left.qemu.close()
        self.check_owners()
        self.moves += 1

    def fail(
        self, reason: str, *, cpus: int = _CPUS, active: Step = nothing, at_rest: Step = nothing
    ) -> None:
        """Try to move the guest, in vain: it stays and goes on.

        :param reason: a pattern for the error. :param cpus: of the destination's QEMU.
        """
        self.destination = self.make_guest(self.there, incoming=True, cpus=cpus)
        self._rested = worked(self.there)
        with pytest.raises(GuestError, match=reason), self._closed_on_error(self.destination):
            self._migrate(active, at_rest)
        self.go_on()
        self._check_idle(self.there)
        self.check_owners()

    def cancel(self) -> None:
        """Call a migration off, at rest."""
        qmp = self.guest.qemu.qmp
        qmp.execute("migrate_cancel")
        qmp.wait_event("MIGRATION", PATIENCE_S, lambda data: bool(data["status"] == "cancelled"))

    # What holds

    def check_owners(self) -> None:
        """The targets here have the disks, those there do not; QEMU's tools find them locked."""
        for image, owner, other in zip(self.images, self.here, self.there, strict=True):
            assert (owner.ownership(), locks(owner, image)) == (OwnershipState.HELD, True)
            if other.alive:
                other.wait_ownership(OwnershipState.RELEASED)
                assert not locks(other, image)
            check_locked(image)

    def _migrate(self, active: Step, at_rest: Step) -> None:
        migrate(
            self.guest.qemu,
            self.destination.qemu,
            while_active=active,
            at_switchover=lambda: self._rest(at_rest),
        )

    def _rest(self, then: Step) -> None:
        """The source's targets have drained. Those that are alive let go, and then nobody writes."""
        alive = [target for target in self.here if target.alive]
        for target in alive:
            target.wait_ownership(OwnershipState.RELEASED)
        self._rested = worked(self.here)
        stamps = [image.stat().st_mtime_ns for image in self.images]
        for target, image in itertools.product((*self.here, *self.there), self.images):
            assert not (target.alive and locks(target, image))
        if alive == self.here:
            self.check_images()  # an unconfirmed write of a target that died may be half done: it comes again
        assert [image.stat().st_mtime_ns for image in self.images] == stamps
        then()

    def _check_idle(self, targets: Iterable[Target]) -> None:
        """Those of the processes that did not own the disks did no request since."""
        now = worked(targets)
        for target, (pid, requests) in self._rested.items():
            if target in now and now[target][0] == pid:
                assert now[target][1] == requests, f"{target.socket} worked without owning its disk"

    def _targets(self, side: str) -> list[Target]:
        """One for each image. All wait for a guest, so that each can die and come back wherever it is."""
        options = ["--incoming", "--queues", str(self.queues)]
        return [
            Target(self._folder, image, *options, device=image.stem, name=f"{image.stem}-{side}")
            for image in self.images
        ]

    def _close_guest(self) -> None:
        self.guest.qemu.close()

    @staticmethod
    @contextlib.contextmanager
    def _closed_on_error(guest: QemuGuest) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            error.add_note(guest.qemu.describe())
            guest.qemu.close()
            raise


class BootSectorJourney(Journey[BootSectorGuest]):
    """A guest whose driver is the firmware's: one request at a time, and only VERSION_1 of all features."""

    size_bytes = 8 * MIB
    load = Load(blocks=64, sectors=32)

    def __init__(self, folder: Path, *devices: str) -> None:
        super().__init__(folder, *devices)
        install(self.images[0], self.load)
        self._passes = 0  # in QEMUs that the guest has left

    def make_guest(
        self, targets: Sequence[Target], *, incoming: bool = False, cpus: int = _CPUS
    ) -> BootSectorGuest:
        """Boot from the first disk."""
        return BootSectorGuest(["-smp", str(cpus), *devices_of(targets)], incoming=incoming)

    def leave(self, guest: BootSectorGuest) -> None:
        """Count its passes."""
        self._passes += guest.passes()

    def start_load(self) -> None:
        """It is the guest's only program."""
        self.go_on()

    def go_on(self) -> None:
        """Two passes end, the second of which began after the call."""
        go_on(self.guest)

    def check_images(self) -> None:
        """Each block is of the present pass or of the one before."""
        self.load.check_whole(self.images[0], self._passes + self.guest.passes())

    def finish(self) -> None:
        """The last pass is what is there."""
        finish(self.guest, self.load, self.images[0], before=self._passes)


class LinuxJourney(Journey[LinuxGuest]):
    """Two queues each, many requests in flight, indirect descriptors and event indexes."""

    size_bytes = 8 * MIB
    queues = 2

    def make_guest(
        self, targets: Sequence[Target], *, incoming: bool = False, cpus: int = _CPUS
    ) -> LinuxGuest:
        """Boot from memory."""
        devices = devices_of(targets, queues=self.queues, options="")
        return LinuxGuest(devices, cpus=cpus, incoming=incoming)

    def leave(self, guest: LinuxGuest) -> None:
        """Nothing has to be remembered."""

    def start_load(self) -> None:
        """One on each disk."""
        self._jobs = [start_load(self.guest, disk) for disk in self._disks()]

    def go_on(self) -> None:
        """So many further requests are done on each disk that some of them check what was written before."""
        for target in self.here:
            target.wait_writes(writes(target) + 50)
        assert all(job.on(self.guest).running() for job in self._jobs)

    def check_images(self) -> None:
        """Each block carries a header and a sum."""
        for image in self.images:
            check_blocks(image)

    def finish(self) -> None:
        """Linux has seen no error either."""
        stop_load(self.guest, *self._jobs)
        assert "I/O error" not in self.guest.run("dmesg")

    def _disks(self) -> list[str]:
        return [{"scsi": "/dev/sda", "blk": "/dev/vda"}[image.stem] for image in self.images]


def devices_of(targets: Iterable[Target], *, queues: int = 1, options: str = BOOT) -> list[str]:
    """QEMU's arguments for the devices of several targets."""
    return [word for target in targets for word in target.devices(queues=queues, options=options)]


def writes(target: Target) -> int:
    """Since its start."""
    return total(target.statistics().luns, "writes")


def worked(targets: Iterable[Target]) -> dict[Target, tuple[int, int]]:
    """Of those that are alive, the process and how many requests it has done."""
    return {
        target: (target.pid, sum(queue.requests for queue in target.statistics().queues))
        for target in targets
        if target.alive
    }


def has_request(qmp: Qmp, target: Target) -> bool:
    """Tell whether a guest waits for a request, once QEMU knows that the target is dead."""
    path = f"/machine/peripheral/{Path(target.socket).stem}/virtio-backend"
    status = qmp.execute("x-query-virtio-status", path=path)
    if status["vhost-started"]:
        return False  # what follows would ask the target then, which stops its rings
    queues = range(_FIRST_REQUEST_QUEUE[status["name"]], status["num-vqs"])
    rings = [qmp.execute("x-query-virtio-queue-status", path=path, queue=queue) for queue in queues]
    return any(
        _index(qmp, ring["vring-avail"]) != _index(qmp, ring["vring-used"])
        for ring in rings
        if ring["vring-avail"]
    )


def _index(qmp: Qmp, ring: int) -> int:
    """The index at the head of an available or used ring at a guest physical address."""
    answer: str = qmp.execute("human-monitor-command", command_line=f"xp /1xh {ring + 2:#x}")
    return int(answer.rsplit(maxsplit=1)[-1], 16)


def locks(target: Target, image: Path) -> bool:
    """Tell whether a target holds locks on the image, as the kernel sees it."""
    inode = f":{image.stat().st_ino} "
    for entry in Path(f"/proc/{target.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed meanwhile
            if any("OFDLCK" in line and inode in line for line in entry.read_text().splitlines()):
                return True
    return False


def check_locked(image: Path) -> None:
    """QEMU's tools do not get an image that a target owns."""
    command = ["qemu-io", "-f", "raw", "-c", "quit", str(image)]
    assert "lock" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
