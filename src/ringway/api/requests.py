"""From a request to a call: query, path and body, each checked and each with a limit."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any, Final

import msgspec
from starlette.requests import Request

from ringway.api.openapi import PATH
from ringway.api.routes import ADDRESS, DISK, GUEST, IDENTITY, Call, Route
from ringway.errors import NotFoundError, UsageError
from ringway.host.host import Host
from ringway.model import MAX_LUN, MAX_TARGET, NAME
from ringway.model.validation import reason

BODY_TIMEOUT_S: Final = 30.0  #: for a whole body, however slowly it drips
_PATTERNS: Final = {
    "name": NAME,
    "guest": GUEST,
    "endpoint": NAME,
    "disk": DISK,
    "port": NAME,
    "address": ADDRESS,
    "identity": IDENTITY,
}


class TooLargeError(UsageError):
    """The body is larger than the route takes."""

    http_status = 413


class SlowError(UsageError):
    """The body did not come in time."""

    http_status = 408


async def understand(host: Host, route: Route, request: Request, *, read_only: bool) -> Call:
    """Read a request. :raises UsageError: it makes no sense; it says where."""
    query = _query(route, request)
    path = request.path_params
    for name, text in path.items():
        _check_path(name, text)
    return Call(
        host=host,
        query=query,
        body=await _body(route, request),
        name=path.get("name", ""),
        guest=path.get("guest", ""),
        endpoint=path.get("endpoint", ""),
        disk=path.get("disk", ""),
        port=path.get("port", ""),
        address=_address(path.get("address", "0:0")),
        identity=path.get("identity", ""),
        read_only=read_only,
    )


def _query(route: Route, request: Request) -> Any:
    pairs = request.query_params.multi_items()
    if len(dict(pairs)) != len(pairs):
        raise UsageError("a parameter of the query is given twice", hint="give it once")
    try:
        return msgspec.convert(dict(pairs), route.query, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"the query is not understood: {reason(error)}", hint=_hint(request)) from error


def _check_path(name: str, text: str) -> None:
    """What cannot be a name names nothing. :raises NotFoundError: always that."""
    if re.fullmatch(_PATTERNS[name], text, re.ASCII) is None:
        raise NotFoundError(f"there is nothing with the {name} {text[:80]!r}")


def _address(text: str) -> tuple[int, int]:
    target, lun = map(int, text.split(":"))
    if target > MAX_TARGET or lun > MAX_LUN:
        raise NotFoundError(f"there is no LUN {text}: targets go to {MAX_TARGET}, LUNs to {MAX_LUN}")
    return target, lun


async def _body(route: Route, request: Request) -> Any:
    if route.body is None:
        return None
    raw = await _read(request, route.max_body)
    if route.body_optional and not raw:
        return None
    if route.body is bytes:
        return raw
    try:
        return msgspec.json.decode(raw, type=route.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is not understood: {reason(error)}", hint=_hint(request)) from error


async def _read(request: Request, limit: int) -> bytes:
    """:raises TooLargeError: more than ``limit`` bytes. :raises SlowError: it took too long."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S), contextlib.aclosing(request.stream()) as stream:
            async for chunk in stream:
                body += chunk
                if len(body) > limit:
                    raise TooLargeError(f"the body has more than {limit} bytes", hint="send less at once")
    except TimeoutError as error:
        raise SlowError(f"the body did not come within {BODY_TIMEOUT_S:g} s") from error
    return bytes(body)


def _hint(request: Request) -> str:
    return f"see {PATH}, {request.method} {request.scope.get('path', '')[:80]}"
