"""The control queue of a virtio-scsi device: task management.

The commands that a function is about are in one of three places: on the hot path, in the data path's queue
for Python, or in our own backlog, into which that queue is emptied. A function answers once they have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ringway.scsi import Nexus, Target
from ringway.scsi.tasks import SUPPORTED, TaskFunction
from ringway.target.virtio_scsi import (
    AN_REQUEST,
    AN_RESPONSE,
    TMF_REQUEST,
    Address,
    ControlType,
    Response,
)

#: How long a function waits for the commands that it is about; guests give it longer.
DRAIN_TIMEOUT_S: Final = 5.0

#: The subtype of a TMF request -> the function.
_FUNCTIONS: Final = (
    TaskFunction.ABORT_TASK,
    TaskFunction.ABORT_TASK_SET,
    TaskFunction.CLEAR_ACA,
    TaskFunction.CLEAR_TASK_SET,
    TaskFunction.I_T_NEXUS_RESET,
    TaskFunction.LOGICAL_UNIT_RESET,
    TaskFunction.QUERY_TASK,
    TaskFunction.QUERY_TASK_SET,
)
_ONE_TASK: Final = TaskFunction.ABORT_TASK | TaskFunction.QUERY_TASK
_QUERIES: Final = TaskFunction.QUERY_TASK | TaskFunction.QUERY_TASK_SET
_RESETS: Final = TaskFunction.LOGICAL_UNIT_RESET | TaskFunction.I_T_NEXUS_RESET


class Command(Protocol):
    """What is read of a ``_core.Command``; see there."""

    @property
    def kind(self) -> Literal["cdb", "control", "broken"]: ...
    @property
    def tag(self) -> int: ...
    @property
    def queue(self) -> int: ...
    @property
    def lun(self) -> bytes: ...
    @property
    def id(self) -> int: ...
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
        cancel: bool = False,
        timeout_s: float = 5.0,
    ) -> bool: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """The commands that a task management function is about."""

    target: int
    lun: int | None = None
    id: int | None = None

    def includes(self, command: Command) -> bool:
        """Whether a command that waits in Python is one of them."""
        address = Address.decode(command.lun)
        return (
            command.kind == "cdb"
            and address is not None
            and address.target == self.target
            and self.lun in (None, address.lun)
            and self.id in (None, command.id)
        )


class Backlog:
    """The commands that wait in Python, in their order."""

    def __init__(self, core: TaskCore) -> None:
        self._core = core
        self._waiting: deque[Command] = deque()

    def take_nowait(self) -> Command | None:
        """Remove and return the oldest, if there is one."""
        return self._waiting.popleft() if self._waiting else None

    def holds(self, scope: Scope) -> bool:
        """Whether one of these commands waits."""
        self._collect()
        return any(scope.includes(command) for command in self._waiting)

    def end(self, scope: Scope, response: Response) -> None:
        """End those that wait; all other commands keep their order."""
        self._collect()
        for command in filter(scope.includes, self._waiting):
            self._core.complete(command.tag, response=response)
        self._waiting = deque(command for command in self._waiting if not scope.includes(command))

    def _collect(self) -> None:
        while (command := self._core.next_command(0)) is not None:
            self._waiting.append(command)


class ControlQueue:
    """Answers control requests. It runs on the thread that serves commands: no other command is half done.

    :param targets: the targets by number, as they are when it is called.
    """

    def __init__(
        self, core: TaskCore, backlog: Backlog, targets: Callable[[], Mapping[int, Target]], nexus: Nexus
    ) -> None:
        self._core = core
        self._backlog = backlog
        self._targets = targets
        self._nexus = nexus

    def answer(self, request: bytes) -> bytes:
        """:returns: the response to a control request, whatever it holds. Spec: virtio 1.3, 5.6.6.2."""
        kind = int.from_bytes(request[:4], "little") if len(request) >= 4 else None
        if kind == ControlType.TMF and len(request) >= TMF_REQUEST.size:
            _, subtype, name, tag = TMF_REQUEST.unpack_from(request)
            return bytes((self._manage(subtype, Address.decode(name), tag),))
        if kind in (ControlType.AN_QUERY, ControlType.AN_SUBSCRIBE) and len(request) >= AN_REQUEST.size:
            _, name, _ = AN_REQUEST.unpack_from(request)
            return AN_RESPONSE.pack(0, self._addressed(Address.decode(name)))
        return bytes((Response.FAILURE,))

    def _addressed(self, address: Address | None) -> Response:
        """:returns: OK if there is a unit at an address. No unit of ours has asynchronous notifications."""
        target = None if address is None else self._targets().get(address.target)
        if address is None or target is None:
            return Response.BAD_TARGET
        return Response.OK if address.lun in target.units else Response.INCORRECT_LUN

    def _manage(self, subtype: int, address: Address | None, tag: int) -> Response:
        """Do a task management function; the commands that it is about have ended when this returns OK."""
        if subtype >= len(_FUNCTIONS) or not (function := _FUNCTIONS[subtype]) & SUPPORTED:
            return Response.FUNCTION_REJECTED
        found = self._addressed(address)
        if found is Response.INCORRECT_LUN and function is TaskFunction.I_T_NEXUS_RESET:
            found = Response.OK  # it is the target's, whatever the LUN
        if address is None or found is not Response.OK:
            return found
        scope = _scope(function, address, tag)
        return self._query(scope) if function & _QUERIES else self._abort(function, scope)

    def _query(self, scope: Scope) -> Response:
        """:returns: FUNCTION_SUCCEEDED when one of the commands is still here."""
        if self._backlog.holds(scope) or not self._drain(scope, cancel=False, timeout_s=0):
            return Response.FUNCTION_SUCCEEDED
        return Response.OK

    def _abort(self, function: TaskFunction, scope: Scope) -> Response:
        """End commands, on both paths, and then reset what is to be reset.

        :returns: FAILURE when some did not end in time; nothing is reset then.
        """
        response = Response.RESET if function & _RESETS else Response.ABORTED
        self._backlog.end(scope, response)
        ended = self._drain(scope, cancel=True, timeout_s=DRAIN_TIMEOUT_S)
        self._backlog.end(scope, response)  # what the hot path gave up comes to us
        # each worker has published what we ended before the guest sees our answer, which another may write
        if not (ended and self._drain(scope, cancel=False, timeout_s=DRAIN_TIMEOUT_S)):
            return Response.FAILURE
        self._reset(function, scope)
        return Response.OK

    def _drain(self, scope: Scope, *, cancel: bool, timeout_s: float) -> bool:
        return self._core.drain(
            target=scope.target, lun=scope.lun, id=scope.id, cancel=cancel, timeout_s=timeout_s
        )

    def _reset(self, function: TaskFunction, scope: Scope) -> None:
        """A target or unit that was removed meanwhile has nothing to reset."""
        if not (target := self._targets().get(scope.target)):
            return
        if function is TaskFunction.I_T_NEXUS_RESET:
            target.lose_nexus(self._nexus)
        elif function is TaskFunction.LOGICAL_UNIT_RESET and (unit := target.get(scope.lun)):
            unit.reset()


def _scope(function: TaskFunction, address: Address, tag: int) -> Scope:
    if function is TaskFunction.I_T_NEXUS_RESET:
        return Scope(address.target)
    return Scope(address.target, address.lun, tag if function & _ONE_TASK else None)
