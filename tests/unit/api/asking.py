"""Ask an ASGI application as a server would, with any body in any pieces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from msgspec import Struct
from starlette.applications import Starlette

from ringway.api.peers import STATE_KEY, Access, Peer
from ringway.host.host import Host

ME = Peer(1000, 1000, 4711, "tester")


class Answer(Struct):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Asker:
    """Asks in the name of a peer."""

    def __init__(self, app: Starlette, host: Host) -> None:
        self.app = app
        self.host = host

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        access: Access | None = None,
        pieces: Sequence[bytes] | None = None,
        ends: bool = True,
    ) -> Answer:
        """Ask. :param body: goes as JSON. :param pieces: go as they are; the last may not be the end."""
        chunks = list(pieces) if pieces is not None else [b"" if body is None else json.dumps(body).encode()]
        state = {STATE_KEY: access or Access(read_only=False, peer=ME)}
        sent: list[Any] = []

        async def receive() -> Any:
            if chunks:
                return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks) or not ends}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(_scope(method, path, state), receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:]))


def _scope(method: str, target: str, state: dict[str, Any]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [],
        "client": None,
        "server": ("/run/ringway/api.sock", None),
        "state": state,
    }
