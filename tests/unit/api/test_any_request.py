"""Requests that nobody would think of, made from the daemon's own OpenAPI document.

What is right in form may still be refused: an engine or a disk is not there. But none is answered by 500,
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ringway.api import openapi
from ringway.api.app import build
from ringway.api.table import ROUTES
from ringway.testing.engine import World
from ringway.testing.hypervisor import GuestWorld, SwitchWorld
from ringway.testing.waiting import PATIENCE_S

from ..hosts import running_host
from .asking import Answer, Asker

pytestmark = pytest.mark.timeout(900)  # with all examples
EXAMPLES = 200 if os.environ.get("RINGWAY_LONG") else 12
_T = TypeVar("_T")


class HostThread:
    """An application whose host has a loop on a thread of its own, whoever asks from wherever."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asker: Asker | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for moment in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{moment}.complete"})
            return
        answer = await self._answer(scope, await receive())
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Any, message: Any) -> Answer:
        if scope["path"] == openapi.PATH and self._asker is None:  # while tests are collected
            return Answer(200, {"content-type": "application/json"}, json.dumps(DOCUMENT).encode())
        target = f"{scope['path']}?{scope['query_string'].decode('latin-1')}"
        return await asyncio.wrap_future(self.begin(scope["method"], target, message.get("body", b"")))

    def begin(self, method: str, target: str, body: bytes = b"") -> Any:
        """Ask on the host's loop. :returns: a future of the answer."""
        assert self._asker is not None
        return self._submit(self._asker(method, target, pieces=[body]))

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Have a host in the block."""
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        stack = contextlib.AsyncExitStack()
        try:
            host = self._submit(
                stack.enter_async_context(running_host(folder, World(), GuestWorld(), SwitchWorld()))
            ).result(PATIENCE_S)
            self._asker = Asker(build(host), host)
            yield
            self._submit(stack.aclose()).result(PATIENCE_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()


DOCUMENT = openapi.document(ROUTES)
APP = HostThread()
API = schemathesis.openapi.from_asgi(openapi.PATH, APP).exclude(path="/1.0/events")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One host for all requests; it is well in the end."""
    with APP.running(tmp_path_factory.mktemp("host")):
        yield
        info = APP.begin("GET", "/1.0").result(PATIENCE_S).json
        assert info["degraded"] == 0


@API.parametrize()
@pytest.mark.usefixtures("host")
@hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_any_request_is_answered_as_the_document_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
