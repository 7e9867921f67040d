"""Work that may take longer than a second: it has progress, can be waited for, and can be cancelled until it
changes something."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ringway.errors import BusyError, ConflictError, NotFoundError, PermissionDeniedError, RingwayError
from ringway.host.events import Events, Kind, now
from ringway.model import OperationInfo, OperationState

KEPT: Final = 1000  #: ended ones; the oldest is forgotten first
MAX_RUNNING: Final = 1000  #: not counting parts of others
CLOSING_S: Final = 20.0  #: how long the daemon's end waits for what cannot be cancelled
#: What the kernel says that is no fault of the daemon's.
_REFUSALS: Final[tuple[tuple[type[OSError], type[RingwayError]], ...]] = (
    (FileNotFoundError, NotFoundError),
    (PermissionError, PermissionDeniedError),
)
_log: Final = logging.getLogger(__name__)


class Progress:
    """Where work says how far it is. This one tells nobody."""

    def step(self, progress: float, step: str) -> None:
        """Say how far it is, from 0 to 1, and what it does now."""

    def cancellable(self, yes: bool) -> None:
        """From here on it can be cancelled, or it cannot: what it began must come to an end."""


class Part(Progress):
    """A stretch of other work, which alone knows when that can be cancelled."""

    def __init__(self, whole: Progress, begin: float, end: float) -> None:
        self._whole = whole
        self._begin, self._end = begin, end

    def step(self, progress: float, step: str) -> None:
        """Say it as so much of the whole."""
        self._whole.step(self._begin + (self._end - self._begin) * progress, step)


class Operation(Progress):
    """One piece of work. Made by :meth:`Operations.start`."""

    def __init__(self, description: str, objects: tuple[str, ...], within: Operation | None) -> None:
        self.id = secrets.token_hex(8)
        self.description = description
        self.objects = objects
        self.within = within
        self.state = OperationState.RUNNING
        self.result: Any = None
        self.error: RingwayError | None = None
        self._created = self._updated = now()
        self._progress, self._step = 0.0, ""
        self._cancellable = True
        self._ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def step(self, progress: float, step: str) -> None:
        """Let others see it."""
        self._progress, self._step, self._updated = progress, step, now()

    def cancellable(self, yes: bool) -> None:
        """Let :meth:`cancel` be refused, or not."""
        self._cancellable = yes

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the end. :returns: whether it came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return self._ended.is_set()
        return True

    async def ended(self) -> None:
        """Wait for the end, however long."""
        await self._ended.wait()

    def outcome(self) -> Any:
        """What it made, when it has ended. :raises RingwayError: why it failed."""
        if self.error is not None:
            raise self.error
        return self.result

    def cancel(self) -> None:
        """Ask it to stop; what it began is taken back. :raises ConflictError: it is too late for that."""
        if self.state is not OperationState.RUNNING:
            raise ConflictError(f"operation {self.id} has ended already", hint="there is nothing to cancel")
        if not self._cancellable or self.task is None:
            raise ConflictError(
                f"operation {self.id} cannot be cancelled any more", hint="wait for it, then undo what it did"
            )
        self.task.cancel()

    def info(self) -> OperationInfo:
        """As the API shows it."""
        error = self.error
        return OperationInfo(
            id=self.id,
            description=self.description,
            state=self.state,
            created=self._created,
            updated=self._updated,
            progress=self._progress,
            step=self._step,
            cancellable=self._cancellable and self.state is OperationState.RUNNING,
            objects=self.objects,
            error=error.message if error else None,
            error_code=error.code if error else None,
            error_hint=error.hint if error else None,
        )

    def end(self, state: OperationState) -> None:
        """Let nothing more happen, and wake who waits."""
        self.step(1.0 if state is OperationState.DONE else self._progress, "")
        self.state = state
        self._ended.set()


class Operations:
    """The operations of this daemon's life. For one event loop."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._running: dict[str, Operation] = {}
        self._ended: dict[str, Operation] = {}

    def start(
        self,
        description: str,
        work: Callable[[Operation], Awaitable[Any]],
        *objects: str,
        within: Operation | None = None,
    ) -> Operation:
        """Begin work that goes on whether or not somebody waits for it.

        :param within: what it is a part of. That was let in, so its parts are.
        :raises BusyError: too much is going on already.
        """
        wholes = sum(operation.within is None for operation in self._running.values())
        if within is None and wholes >= MAX_RUNNING:
            raise BusyError(f"{MAX_RUNNING} operations are running", hint="wait until some have ended")
        operation = Operation(description, objects, within)
        self._running[operation.id] = operation
        operation.task = asyncio.create_task(_run(operation, work), name=description)
        operation.task.add_done_callback(lambda task: self._end(operation, task))
        return operation

    def _end(self, operation: Operation, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # maybe before it had begun
            operation.error = ConflictError("the operation was cancelled")
            operation.end(OperationState.CANCELLED)
        else:
            operation.end(OperationState.FAILED if operation.error else OperationState.DONE)
        del self._running[operation.id]
        self._ended[operation.id] = operation
        if len(self._ended) > KEPT:
            del self._ended[next(iter(self._ended))]
        error = operation.error
        message = f"{operation.description}: {operation.state}" + (f": {error.message}" if error else "")
        self._events.tell(Kind.OPERATION, f"operation/{operation.id}", message)

    def get(self, identity: str) -> Operation:
        """:raises NotFoundError: it never was, or is forgotten."""
        found = self._running.get(identity) or self._ended.get(identity)
        if found is None:
            raise NotFoundError(
                f"there is no operation '{identity}'",
                hint=f"the daemon keeps the last {KEPT}, and forgets all when it restarts",
            )
        return found

    def list(self) -> tuple[OperationInfo, ...]:
        """All that are kept, the oldest first."""
        return tuple(operation.info() for operation in (*self._ended.values(), *self._running.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    async def close(self) -> bool:
        """Cancel what can be cancelled, and wait for the rest.

        :returns: whether all have ended; what hangs is not waited for any longer.
        """
        tasks = [operation.task for operation in self._running.values() if operation.task]
        for operation in tuple(self._running.values()):
            if operation.info().cancellable:
                operation.cancel()
        if not tasks:
            return True
        _, hanging = await asyncio.wait(tasks, timeout=CLOSING_S)
        return not hanging


async def _run(operation: Operation, work: Callable[[Operation], Awaitable[Any]]) -> None:
    try:
        operation.result = await work(operation)
    except Exception as error:
        operation.error = as_ringway_error(error)


def as_ringway_error(error: Exception) -> RingwayError:
    """What a client is told; what is our own fault is logged with its way."""
    if isinstance(error, RingwayError):
        return error
    if isinstance(error, OSError) and error.strerror:
        what = "" if error.filename is None else f"'{error.filename}': "
        kind = next((kind for cause, kind in _REFUSALS if isinstance(error, cause)), RingwayError)
        refusal = kind(f"{what}{error.strerror}")
        for note in getattr(error, "__notes__", ()):
            refusal.add_note(note)
        return refusal
    _log.error("%s", error, exc_info=error)
    return RingwayError(
        f"{type(error).__name__}: {error}",
        hint="this is a fault of Ringway's; the daemon's log has more: report it",
    )
