"""Both clients say the same, over transports that are told what to answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import msgspec
import pytest

import ringway
from ringway.client import AsyncClient, Client, Request, Response
from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    ControlError,
    NotFoundError,
    RingwayError,
    TimedOutError,
    UsageError,
)
from ringway.model import (
    Action,
    BackstoreSpec,
    Change,
    DeviceKind,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    Event,
    Limits,
    LunSpec,
    OperationInfo,
    OperationState,
    Plan,
    PlugSpec,
    SpecKind,
)

DB0 = EndpointInfo(
    name="db0", engine=EngineKind.USER, device=DeviceKind.SCSI, state=EndpointState.READY, wwpn=None
)
SPEC = EndpointSpec(name="db0")
DISK = LunSpec(1, 2, BackstoreSpec(SpecKind.PATH, path="/dev/sdb"))


def operation(state: OperationState, **more: Any) -> OperationInfo:
    return OperationInfo(
        id="7", description="create endpoint db0", state=state, created="c", updated="u", **more
    )


def answer(body: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(body))


def failure(code: str, message: str, hint: str | None, status: int) -> Response:
    return answer({"error": {"code": code, "message": message, "hint": hint}}, status)


class Scripted:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    def send(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answers.pop(0)

    def lines(self, request: Request) -> Generator[bytes | Response]:
        yield self.send(request)
        yield from (found.body for found in self.answers)

    @property
    def lines_asked(self) -> list[str]:
        return [request.encode().split(b" HTTP")[0].decode() for request in self.asked]


class AsyncScripted:
    """The same, awaited."""

    def __init__(self, script: Scripted) -> None:
        self._script = script

    async def send(self, request: Request) -> Response:
        await asyncio.sleep(0)
        return self._script.send(request)

    async def lines(self, request: Request) -> AsyncGenerator[bytes | Response]:
        for line in self._script.lines(request):
            yield line


Act = Callable[[Any], Any]
Both = Callable[..., Any]


async def _await(act: Act, client: AsyncClient) -> Any:
    return await act(client)


@pytest.fixture(params=["blocking", "awaiting"])
def both(request: pytest.FixtureRequest) -> Both:
    """Do something with each client in turn: ``both(script, act, **options)``."""

    def run(script: Scripted, act: Act, **options: Any) -> Any:
        if request.param == "blocking":
            return act(Client(transport=script, **options))
        return asyncio.run(_await(act, AsyncClient(transport=AsyncScripted(script), **options)))

    return run


def test_the_names_at_the_top_are_the_clients() -> None:
    assert (ringway.Client, ringway.AsyncClient) == (Client, AsyncClient)
    with pytest.raises(AttributeError):
        _ = ringway.NoSuchThing  # type: ignore[attr-defined]


def test_a_list_is_typed(both: Both) -> None:
    script = Scripted(answer([DB0]))
    assert both(script, lambda client: client.endpoints.list()) == (DB0,)
    assert script.lines_asked == ["GET /1.0/endpoints"]


@pytest.mark.parametrize(
    ("act", "line", "body"),
    [
        (lambda c: c.endpoints.show("a?b"), "GET /1.0/endpoints/a%3Fb", None),
        (lambda c: c.endpoints.create(SPEC), "POST /1.0/endpoints?wait=30.000", SPEC),
        (lambda c: c.endpoints.update(SPEC), "PUT /1.0/endpoints/db0?wait=30.000", SPEC),
        (lambda c: c.luns.add("db0", DISK), "POST /1.0/endpoints/db0/luns?wait=30.000", DISK),
        (
            lambda c: c.luns.remove("db0", 1, 2, force=True),
            "DELETE /1.0/endpoints/db0/luns/1:2?force=1&wait=30.000",
            None,
        ),
        (
            lambda c: c.luns.limit("db0", 1, 2, Limits(iops=5)),
            "PUT /1.0/endpoints/db0/luns/1:2/limits?wait=30.000",
            Limits(iops=5),
        ),
        (
            lambda c: c.luns.resize("db0", 0, 0, 4096),
            "POST /1.0/endpoints/db0/luns/0:0/resize?wait=30.000",
            {"size_bytes": 4096},
        ),
    ],
)
def test_a_verb_on_the_wire(both: Both, act: Act, line: str, body: object) -> None:
    script = Scripted(answer(DB0))
    assert both(script, act) == DB0
    assert script.lines_asked == [line]
    assert script.asked[0].body == (None if body is None else msgspec.json.encode(body))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
@pytest.mark.parametrize("noun", ["endpoint", "guest", "port", "operation"])
def test_what_cannot_be_a_name_names_nothing(both: Both, noun: str, name: str) -> None:
    """A path with it would be another's."""
    script = Scripted()
    with pytest.raises(NotFoundError, match=f"there is no {noun} '{re.escape(name)}'"):
        both(script, lambda client: getattr(client, f"{noun}s").show(name))
    assert script.asked == []


def test_what_no_daemon_takes_is_refused_in_words(both: Both) -> None:
    script = Scripted()
    with pytest.raises(UsageError, match="port is 'p/0', and has to be made of letters"):
        both(script, lambda client: client.guests.plug("web", PlugSpec(port="p/0")))
    assert script.asked == []


def test_what_was_deleted_leaves_nothing(both: Both) -> None:
    script = Scripted(answer({}))
    assert both(script, lambda client: client.endpoints.delete("db0", force=True)) is None
    assert script.lines_asked == ["DELETE /1.0/endpoints/db0?force=1&wait=30.000"]


def test_a_change_that_takes_long_is_waited_for(both: Both) -> None:
    running = operation(OperationState.RUNNING, progress=0.5)
    script = Scripted(
        answer(running, 202), answer(running), answer(operation(OperationState.DONE)), answer(DB0)
    )
    seen: list[OperationInfo] = []
    assert both(script, lambda client: client.endpoints.create(SPEC), progress=seen.append) == DB0
    assert script.lines_asked == [
        "POST /1.0/endpoints?wait=0.500",
        *["GET /1.0/operations/7/wait?timeout=0.500"] * 2,
        "GET /1.0/operations/7/result",
    ]
    assert seen == [running, running]


def test_time_is_up_and_the_operation_goes_on(both: Both) -> None:
    script = Scripted(answer(operation(OperationState.RUNNING), 202))
    with pytest.raises(TimedOutError, match="create endpoint db0") as caught:
        both(script, lambda client: client.endpoints.create(SPEC), timeout_s=0)
    assert caught.value.operation == "7"
    assert "ringway operation wait 7" in str(caught.value.hint)


def test_an_operation_that_fails_raises_its_error(both: Both) -> None:
    failed = operation(
        OperationState.FAILED, error="disk gone", error_code="backstore", error_hint="plug it in"
    )
    script = Scripted(answer(operation(OperationState.RUNNING), 202), answer(failed))
    with pytest.raises(BackstoreError, match="disk gone") as caught:
        both(script, lambda client: client.endpoints.create(SPEC))
    assert caught.value.hint == "plug it in"


def test_an_operation_that_was_cancelled_is_a_conflict(both: Both) -> None:
    script = Scripted(answer(operation(OperationState.RUNNING)), answer(operation(OperationState.CANCELLED)))
    with pytest.raises(ConflictError, match="cancelled"):
        both(script, lambda client: client.operations.wait("7"))
    assert script.lines_asked == ["GET /1.0/operations/7", "GET /1.0/operations/7/wait?timeout=30.000"]


def test_a_plan_changes_nothing(both: Both) -> None:
    plan = Plan(changes=(Change(action=Action.CREATE, object="endpoint/db0", details=("a line",)),))
    script = Scripted(answer(plan))
    assert both(script, lambda client: client.endpoints.create.plan(SPEC)) == plan
    assert script.lines_asked == ["POST /1.0/endpoints?dry_run=1"]


@pytest.mark.parametrize("status", [200, 201, 202])
def test_what_is_begun_is_done_or_goes_on(both: Both, status: int) -> None:
    goes_on = status == 202
    script = Scripted(answer(operation(OperationState.RUNNING) if goes_on else DB0, status))
    begun = both(script, lambda client: client.endpoints.create.begin(SPEC))
    assert (begun.operation is not None, begun.value) == (goes_on, None if goes_on else DB0)
    assert script.lines_asked == ["POST /1.0/endpoints?wait=0"]


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        (failure("busy", "a guest uses it", "--force", 409), BusyError, "a guest uses it"),
        (failure("not-found", "no db0", None, 404), NotFoundError, "no db0"),
        (failure("from-the-future", "x", None, 418), RingwayError, "x"),
        (Response(500, b"Internal Server Error"), RingwayError, "status 500: Internal Server Error"),
        (answer({"name": 3}), ControlError, "not understood"),
        (Response(200, b"hello"), ControlError, "not understood"),
    ],
)
def test_errors_are_rebuilt(both: Both, response: Response, kind: type[RingwayError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        both(Scripted(response), lambda client: client.endpoints.show("db0"))
    assert type(caught.value) is kind


EVENT = Event(sequence=1, time="t", kind="endpoint.ready", object="endpoint/db0")


def test_events_follow() -> None:
    script = Scripted(Response(200, b""), answer(EVENT))
    with Client(transport=script).events.follow(["endpoint", "operation.done"], since=7) as events:
        assert list(events) == [EVENT]
    assert script.lines_asked == ["GET /1.0/events?kinds=endpoint%2Coperation.done&since=7"]


def test_events_follow_awaited() -> None:
    async def follow() -> list[Event]:
        script = AsyncScripted(Scripted(Response(200, b""), answer(EVENT)))
        async with AsyncClient(transport=script).events.follow() as events:
            return [event async for event in events]

    assert asyncio.run(follow()) == [EVENT]


def test_a_stream_that_is_refused_raises(both: Both) -> None:
    with pytest.raises(NotFoundError, match="no such kind"):
        Client(transport=Scripted(failure("not-found", "no such kind", None, 404))).events.follow()


def test_a_verb_keeps_its_documentation() -> None:
    assert "Make an endpoint" in (Client(transport=Scripted()).endpoints.create.__doc__ or "")
    assert "All endpoints" in (Client(transport=Scripted()).endpoints.list.__doc__ or "")
