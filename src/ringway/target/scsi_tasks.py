"""The commands of a virtio-scsi device that are in Python, by where they wait.

A command comes from the data path's ring. Most are decided at once. One that waits for the medium, or for
others' requests, is done on a thread of its logical unit: a medium that hangs holds up such commands of its
own unit, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from ringway.scsi import LogicalUnit
from ringway.target.lanes import Lanes
from ringway.target.virtio_scsi import Address, Response


class Command(Protocol):
    """What is read of a ``_core.Command``; see there."""

    @property
    def kind(self) -> Literal["cdb", "control", "broken"]: ...
    @property
    def tag(self) -> int: ...
    @property
    def dead(self) -> bool: ...
    @property
    def queue(self) -> int: ...
    @property
    def lun(self) -> bytes: ...
    @property
    def id(self) -> int: ...
    @property
    def instance(self) -> int: ...
    @property
    def cdb(self) -> bytes: ...
    @property
    def data_out(self) -> bytes: ...
    @property
    def data_out_size(self) -> int: ...
    @property
    def failure(self) -> str: ...


class TaskCore(Protocol):
    """What is needed of ``_core.Device`` here; see there."""

    def next_command(self, timeout_s: float | None = None) -> Command | None: ...
    def complete(
        self,
        tag: int,
        *,
        response: int,
        status: int = 0,
        sense: bytes = b"",
        data: bytes = b"",
        taken: int | None = None,
    ) -> None: ...
    def drain(
        self,
        *,
        target: int | None = None,
        lun: int | None = None,
        id: int | None = None,
        instance: int | None = None,
        cancel: bool = False,
        timeout_s: float = 5.0,
    ) -> bool: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """Commands, by whom they are for. The narrower fields of ``None`` mean all.

    To a guest, a unit is its address. When another unit has come there, a function is about both: told that
    its commands have ended, a guest uses their memory for something else, and one that was sent to the unit
    that is gone may still be under way.
    """

    target: int | None = None
    lun: int | None = None
    id: int | None = None

    def includes(self, command: Command) -> bool:
        """Whether a command that is in Python is one of them."""
        address = Address.decode(command.lun)
        return (
            command.kind == "cdb"
            and address is not None
            and self.target in (None, address.target)
            and self.lun in (None, address.lun)
            and self.id in (None, command.id)
        )


@dataclass(slots=True, eq=False)
class Job:
    """A command for its unit's thread.

    :param unit: whose it is. Another may come to its address before it is done, which it is not for.
    :param writes: whether it may change the medium: then an initiator must not hear of its end before that.
    :ivar given_up: it was ended while it ran; what comes of it is nobody's.
    """

    command: Command
    unit: LogicalUnit
    writes: bool
    given_up: bool = False


class TaskSet:
    """The commands that are in Python. All methods may be called from any thread.

    :param dispatch: decides on a command that was taken, or hands it to :meth:`put`. It does not wait.
    :param run: does a job.
    :param failed: told of an exception out of ``run``.
    """

    def __init__(
        self,
        core: TaskCore,
        dispatch: Callable[[Command], None],
        run: Callable[[Job], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._dispatch = dispatch
        self._run = run
        self._taking = threading.Lock()  # whoever has it finds nothing between the ring and the lanes
        self._lanes: Lanes[LogicalUnit, Job] = Lanes("medium", self._do, failed)

    def take(self, first: Command | None = None) -> None:
        """Dispatch a command, and all that wait in the ring, in their order."""
        with self._taking:
            command = first or self._core.next_command(0)
            while command is not None:
                self._dispatch(command)
                command = self._core.next_command(0)

    def put(self, job: Job) -> bool:
        """Have a command done on its unit's thread. :returns: false: not now, see ``Lanes.put``."""
        return self._lanes.put(job.unit, job)

    def holds(self, scope: Scope) -> bool:
        """Whether one of these commands is here."""
        found = False
        with self._taking:
            while (command := self._core.next_command(0)) is not None:
                found = found or scope.includes(command)
                self._dispatch(command)
        jobs = (*self._lanes.waiting(), *self._lanes.running())
        return found or any(scope.includes(job.command) and not job.given_up for job in jobs)

    def end(self, scope: Scope, response: Response) -> None:
        """End those that wait; all other commands keep their order."""
        with self._taking:
            while (command := self._core.next_command(0)) is not None:
                if scope.includes(command):
                    self._core.complete(command.tag, response=response)
                else:
                    self._dispatch(command)
        for job in self._lanes.remove(lambda job: scope.includes(job.command)):
            self._core.complete(job.command.tag, response=response)

    def end_running(self, scope: Scope, response: Response, timeout_s: float) -> bool:
        """End those that are being done: what only reads at once, what writes by waiting for it.

        :returns: whether all have ended.
        """
        for job in self._lanes.running():
            if scope.includes(job.command) and not job.writes:
                job.given_up = True
                self._core.complete(job.command.tag, response=response)
        return self._lanes.settled(timeout_s, lambda job: job.writes and scope.includes(job.command))

    def settled(self, instance: int | None, timeout_s: float) -> bool:
        """Wait until no command uses the medium (of a unit), given up or not. :returns: whether none does."""
        return self._lanes.settled(timeout_s, lambda job: instance in (None, job.unit.host.instance))

    def _do(self, job: Job) -> None:
        if not job.command.dead:
            self._run(job)
