"""The control queue of a virtio-scsi device: task management.

The commands that a function is about are on the hot path or in Python, on their way there, waiting or
running. A function answers once they have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ringway.scsi import Nexus, Target
from ringway.scsi.tasks import SUPPORTED, TaskFunction
from ringway.target.scsi_tasks import Scope, TaskCore, TaskSet
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


class ControlQueue:
    """Answers control requests. A function may wait: each unit's are answered on a thread of their own.

    :param targets: the targets by number, as they are when it is called.
    """

    def __init__(
        self, core: TaskCore, tasks: TaskSet, targets: Callable[[], Mapping[int, Target]], nexus: Nexus
    ) -> None:
        self._core = core
        self._tasks = tasks
        self._targets = targets
        self._nexus = nexus

    def unit_of(self, request: bytes) -> Address | None:
        """:returns: whose thread is to answer a request; ``None``: it is for no unit that there is."""
        if len(request) < TMF_REQUEST.size:
            return None
        _, _, name, _ = TMF_REQUEST.unpack_from(request)
        address = Address.decode(name)
        return address if self._addressed(address) is Response.OK else None

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
        if self._tasks.holds(scope) or not self._drain(scope, cancel=False, timeout_s=0):
            return Response.FUNCTION_SUCCEEDED
        return Response.OK

    def _abort(self, function: TaskFunction, scope: Scope) -> Response:
        """End commands, on both paths, and then reset what is to be reset.

        :returns: FAILURE when some did not end in time; nothing is reset then.
        """
        response = Response.RESET if function & _RESETS else Response.ABORTED
        self._tasks.end(scope, response)
        ended = self._drain(scope, cancel=True, timeout_s=DRAIN_TIMEOUT_S)
        self._tasks.end(scope, response)  # what the hot path gave up comes to us
        ended = ended and self._tasks.end_running(scope, response, DRAIN_TIMEOUT_S)
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
        if scope.target is None or not (target := self._targets().get(scope.target)):
            return
        if function is TaskFunction.I_T_NEXUS_RESET:
            target.lose_nexus(self._nexus)
        elif function is TaskFunction.LOGICAL_UNIT_RESET and (unit := target.get(scope.lun)):
            unit.reset()


def _scope(function: TaskFunction, address: Address, tag: int) -> Scope:
    if function is TaskFunction.I_T_NEXUS_RESET:
        return Scope(address.target)
    return Scope(address.target, address.lun, tag if function & _ONE_TASK else None)
