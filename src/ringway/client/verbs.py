"""What makes one definition of a verb serve both clients.

A verb is written once, without I/O: as a *conversation*, a generator that yields requests, is sent their
responses and returns the result; or, if it changes something, as a :class:`Step`, which makes the
conversations that carry it out, plan it or merely begin it. A *driver* holds a conversation over a transport,
and the descriptors :class:`Look`, :class:`Change` and :class:`Follow` bind verbs to the driver of their
client: what they give back is a value for the blocking one, an awaitable for the other.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

import msgspec
from msgspec import Struct

from ringway.client.sockets import AsyncTransport, Transport
from ringway.client.wire import Request, Response
from ringway.errors import ConflictError, ControlError, RingwayError, TimedOutError, error_from_code
from ringway.model import ErrorRecord, Event, OperationInfo, OperationState, Plan

T = TypeVar("T")
P = ParamSpec("P")
Conversation: TypeAlias = Generator[Request, Response, T]
Progress: TypeAlias = Callable[[OperationInfo], None]

_WAIT_S: Final = 30.0  #: how long one request may wait for an operation
_LOOK_S: Final = 0.5  #: between two reports of progress


class _ErrorBody(Struct):
    error: ErrorRecord


class Patience(Struct, frozen=True):
    """How long to wait for what was begun, and whom to tell meanwhile. No time limit: until it has ended."""

    timeout_s: float | None = None
    progress: Progress | None = None


class Begun(Struct, Generic[T], frozen=True):
    """A change that was begun: it goes on as ``operation``, or is done already and this is its ``value``."""

    operation: OperationInfo | None
    value: T | None


class Step(Struct, Generic[T], frozen=True):
    """A change: its request, and what the answer is."""

    request: Request
    kind: type[T] | Any

    def plan(self) -> Conversation[Plan]:
        """Ask what it would change."""
        response = yield _with_query(self.request, dry_run="1")
        return decode(response, Plan)

    def begin(self) -> Conversation[Begun[T]]:
        """Begin it, and wait for nothing."""
        response = yield _with_query(self.request, wait="0")
        if response.status == 202:
            return Begun(decode(response, OperationInfo), None)
        return Begun(None, decode(response, self.kind))

    def carry_out(self, patience: Patience) -> Conversation[T]:
        """Do it and wait. :raises TimedOutError: it goes on; the error's ``operation`` says as which."""
        deadline = _Deadline(patience.timeout_s)
        wait_s = deadline.next_wait(patience)
        response = yield _with_query(self.request, patience_s=wait_s, wait=f"{wait_s:.3f}")
        if response.status != 202:
            return cast(T, decode(response, self.kind))
        operation = yield from _ended(decode(response, OperationInfo), patience, deadline)
        response = yield Request("GET", f"/1.0/operations/{operation.id}/result")
        return cast(T, decode(response, self.kind))


class _Deadline:
    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def left(self) -> float:
        return _WAIT_S if self._end is None else max(self._end - time.monotonic(), 0.0)

    def next_wait(self, patience: Patience) -> float:
        return min(self.left(), _WAIT_S if patience.progress is None else _LOOK_S)


def wait_ended(identifier: str, patience: Patience) -> Conversation[OperationInfo]:
    """Wait for an operation. :raises RingwayError: what it failed with."""
    response = yield Request("GET", f"/1.0/operations/{identifier}")
    return (yield from _ended(decode(response, OperationInfo), patience, _Deadline(patience.timeout_s)))


def _ended(operation: OperationInfo, patience: Patience, deadline: _Deadline) -> Conversation[OperationInfo]:
    while operation.state is OperationState.RUNNING:
        if patience.progress is not None:
            patience.progress(operation)
        if not deadline.left():
            raise TimedOutError(
                f"it takes longer: {operation.description}",
                operation=operation.id,
                hint=f"it goes on; wait for it with ringway operation wait {operation.id}",
            )
        wait_s = deadline.next_wait(patience)
        path = f"/1.0/operations/{operation.id}/wait"
        operation = decode(
            (yield Request("GET", path, {"timeout": f"{wait_s:.3f}"}, None, wait_s)), OperationInfo
        )
    return _checked(operation)


def _checked(operation: OperationInfo) -> OperationInfo:
    """:raises RingwayError: it failed or was cancelled."""
    if operation.state is OperationState.FAILED:
        message = operation.error or f"it failed: {operation.description}"
        raise error_from_code(operation.error_code or "", message, hint=operation.error_hint)
    if operation.state is OperationState.CANCELLED:
        raise ConflictError(f"it was cancelled: {operation.description}")
    return operation


def _with_query(request: Request, patience_s: float = 0.0, **query: str) -> Request:
    return msgspec.structs.replace(request, query={**request.query, **query}, patience_s=patience_s)


def decode(response: Response, kind: type[T] | Any) -> T:
    """Read an answer.

    :param kind: what it is; bytes for the body itself, ``None`` if nothing is wanted of it.
    :raises RingwayError: the one that the daemon answered, or ControlError for what makes no sense.
    """
    check(response)
    if kind in (None, bytes):
        return cast(T, response.body if kind is bytes else None)
    try:
        return cast(T, msgspec.json.decode(response.body, type=kind))
    except msgspec.DecodeError as error:
        raise ControlError(
            f"ringwayd's answer is not understood: {error}",
            hint="is it of the same version? ringway host info",
        ) from error


def check(response: Response) -> None:
    """:raises RingwayError: the answer is an error."""
    if response.status < 400:
        return
    try:
        record = msgspec.json.decode(response.body, type=_ErrorBody).error
    except msgspec.DecodeError as error:
        text = response.body.decode(errors="replace").strip()
        raise RingwayError(f"ringwayd answered with status {response.status}: {text[:200]}") from error
    raise error_from_code(record.code, record.message, hint=record.hint)


# Drivers


class Blocking:
    """Holds conversations over a blocking transport."""

    def __init__(self, transport: Transport, patience: Patience) -> None:
        self._transport = transport
        self.patience = patience

    def run(self, conversation: Conversation[T]) -> T:
        """Hold it to its end."""
        try:
            request = next(conversation)
            while True:
                request = conversation.send(self._transport.send(request))
        except StopIteration as end:
            return cast(T, end.value)

    def follow(self, request: Request) -> EventStream:
        """Open a stream."""
        return EventStream(self._transport.lines(request))


class Awaiting:
    """Holds conversations over asyncio."""

    def __init__(self, transport: AsyncTransport, patience: Patience) -> None:
        self._transport = transport
        self.patience = patience

    async def run(self, conversation: Conversation[T]) -> T:
        """Hold it to its end."""
        try:
            request = next(conversation)
            while True:
                request = conversation.send(await self._transport.send(request))
        except StopIteration as end:
            return cast(T, end.value)

    def follow(self, request: Request) -> AsyncEventStream:
        """Name a stream; it is opened when it is entered, or first asked."""
        return AsyncEventStream(self._transport.lines(request))


class EventStream:
    """Events as they happen, from the moment on that this was made. Ends with :meth:`close`, or ``with``."""

    def __init__(self, lines: Generator[bytes | Response]) -> None:
        self._lines = lines
        self._decoder = msgspec.json.Decoder(Event)
        check(cast(Response, next(lines)))

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self._decoder.decode(cast(bytes, next(self._lines)))

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._lines.close()


class AsyncEventStream:
    """Events as they happen, from ``async with`` on (or the first one asked for)."""

    def __init__(self, lines: Any) -> None:
        self._lines = lines
        self._decoder = msgspec.json.Decoder(Event)
        self._open = False

    async def __aenter__(self) -> AsyncEventStream:
        check(await anext(self._lines))
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lines.aclose()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if not self._open:
            await self.__aenter__()
        return self._decoder.decode(await anext(self._lines))


# Descriptors

DriverT = TypeVar("DriverT", Blocking, Awaiting)


class Resource(Generic[DriverT]):
    """What a client can be asked about one kind of object."""

    def __init__(self, driver: DriverT) -> None:
        self._driver: DriverT = driver


class Look(Generic[P, T]):
    """A verb that changes nothing."""

    def __init__(self, converse: Callable[P, Conversation[T]]) -> None:
        self._converse = converse
        self.__doc__ = converse.__doc__

    @overload
    def __get__(self, owner: Resource[Blocking], kind: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, owner: Resource[Awaiting], kind: object) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, owner: Any, kind: object) -> Any:
        """Bind it."""
        if owner is None:
            return self

        def look(*args: P.args, **kwargs: P.kwargs) -> Any:
            return owner._driver.run(self._converse(*args, **kwargs))

        look.__doc__ = self.__doc__
        return look


class BlockingChange(Generic[P, T]):
    """A verb that changes something: call it to do it and wait."""

    def __init__(self, make: Callable[P, Step[T]], driver: Blocking) -> None:
        self._make, self._driver, self.__doc__ = make, driver, make.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.run(self._make(*args, **kwargs).carry_out(self._driver.patience))

    def plan(self, *args: P.args, **kwargs: P.kwargs) -> Plan:
        """Say what it would change."""
        return self._driver.run(self._make(*args, **kwargs).plan())

    def begin(self, *args: P.args, **kwargs: P.kwargs) -> Begun[T]:
        """Begin it, and wait for nothing."""
        return self._driver.run(self._make(*args, **kwargs).begin())


class AwaitingChange(Generic[P, T]):
    """The same for asyncio."""

    def __init__(self, make: Callable[P, Step[T]], driver: Awaiting) -> None:
        self._make, self._driver, self.__doc__ = make, driver, make.__doc__

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._driver.run(self._make(*args, **kwargs).carry_out(self._driver.patience))

    async def plan(self, *args: P.args, **kwargs: P.kwargs) -> Plan:
        """Say what it would change."""
        return await self._driver.run(self._make(*args, **kwargs).plan())

    async def begin(self, *args: P.args, **kwargs: P.kwargs) -> Begun[T]:
        """Begin it, and wait for nothing."""
        return await self._driver.run(self._make(*args, **kwargs).begin())


class Change(Generic[P, T]):
    """A verb that changes something: ``verb(…)`` does it, ``verb.plan(…)`` and ``verb.begin(…)`` less."""

    def __init__(self, make: Callable[P, Step[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, owner: Resource[Blocking], kind: object) -> BlockingChange[P, T]: ...
    @overload
    def __get__(self, owner: Resource[Awaiting], kind: object) -> AwaitingChange[P, T]: ...
    def __get__(self, owner: Any, kind: object) -> Any:
        """Bind it."""
        if owner is None:
            return self
        bound: Any = BlockingChange if isinstance(owner._driver, Blocking) else AwaitingChange
        return bound(self._make, owner._driver)


class Follow(Generic[P]):
    """A verb that opens a stream of events."""

    def __init__(self, make: Callable[P, Request]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, owner: Resource[Blocking], kind: object) -> Callable[P, EventStream]: ...
    @overload
    def __get__(self, owner: Resource[Awaiting], kind: object) -> Callable[P, AsyncEventStream]: ...
    def __get__(self, owner: Any, kind: object) -> Any:
        """Bind it."""
        if owner is None:
            return self

        def follow(*args: P.args, **kwargs: P.kwargs) -> Any:
            return owner._driver.follow(self._make(*args, **kwargs))

        follow.__doc__ = self.__doc__
        return follow
