"""The application: requests become calls, results become answers, errors become what a client knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from ringway.api import openapi
from ringway.api.peers import Access, Peer, access_of, log_change
from ringway.api.requests import understand
from ringway.api.routes import Call, ErrorBody, Route
from ringway.api.table import ROUTES
from ringway.errors import NotFoundError, PermissionDeniedError, RingwayError, UsageError
from ringway.host.host import Host
from ringway.host.operations import Operation, as_ringway_error
from ringway.model import ErrorRecord, Plan

_JSON: Final = "application/json"
Serve = Callable[[Request], Awaitable[Response]]


def build(host: Host) -> Starlette:
    """Make the application. Who may do what is said by the connection: see :mod:`ringway.api.peers`."""
    document = msgspec.json.encode(openapi.document(ROUTES))

    async def tell_document(_request: Request) -> Response:
        return Response(document, media_type=_JSON)

    routes = [_at(path, {r.method: _serve(host, r) for r in ROUTES if r.path == path}) for path in _paths()]
    routes.append(StarletteRoute(openapi.PATH, tell_document))
    handlers: Any = {HTTPException: _http_error, Exception: _unforeseen}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _paths() -> list[str]:
    """Each once, in the order of the table."""
    return list(dict.fromkeys(route.path for route in ROUTES))


def _at(path: str, serve: dict[str, Serve]) -> StarletteRoute:
    """One route for all methods of a path, so that ``Allow`` names them all."""

    async def dispatch(request: Request) -> Response:
        return await serve[request.method if request.method in serve else "GET"](request)  # HEAD is GET

    return StarletteRoute(path, dispatch, methods=list(serve))


def _serve(host: Host, route: Route) -> Serve:
    async def serve(request: Request) -> Response:
        access = access_of(request.scope)
        try:
            _refuse_slash(request)
            _refuse_change(route, access)
            call = await understand(host, route, request, read_only=access.read_only)
            return await _answer(route, call, access.peer)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            failure = as_ringway_error(error)
            if route.changes:
                log_change(access.peer, route.verb, _object(request), failure.code)
            return _error(failure)

    return serve


def _refuse_slash(request: Request) -> None:
    """:raises UsageError: a name with a slash in it would be another object's path."""
    if b"%2f" in request.scope.get("raw_path", b"").lower():
        raise UsageError(
            f"'{request.url.path}' has a name with a slash", hint="names have letters, digits, _ . and -"
        )


def _refuse_change(route: Route, access: Access) -> None:
    """:raises PermissionDeniedError: this socket is for looking."""
    if route.changes and access.read_only:
        raise PermissionDeniedError(
            "this socket is for looking only", hint="changes go through api.sock, for its group"
        )


async def _answer(route: Route, call: Call, peer: Peer | None) -> Response:
    result = await route.handler(call)
    if isinstance(result, Operation):
        return await _answer_operation(route, call, peer, result)
    if route.changes and not isinstance(result, Plan):
        log_change(peer, route.verb, call.identity, "done")
    if isinstance(result, bytes):
        return Response(result, media_type=route.kind)
    if isinstance(result, AsyncIterator):
        return StreamingResponse(result, media_type=route.kind)
    return _json(result)


async def _answer_operation(route: Route, call: Call, peer: Peer | None, operation: Operation) -> Response:
    """Wait as long as the client wants. :raises RingwayError: it failed in that time."""
    thing = ", ".join(operation.objects) or operation.description
    if not await operation.wait(call.query.wait):
        log_change(peer, route.verb, thing, "running", operation=operation.id)
        return _json(operation.info(), 202, {"location": f"/1.0/operations/{operation.id}"})
    result = operation.outcome()
    log_change(peer, route.verb, thing, "done", operation=operation.id)
    return _json({} if result is None else result, route.status)


def _object(request: Request) -> str:
    return "/".join(request.path_params.values()) or request.scope.get("path", "")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, _JSON)


def _error(error: RingwayError) -> Response:
    return _json(ErrorBody(ErrorRecord(error.code, error.message, error.hint)), error.http_status)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What starlette refused by itself: no such path, no such method."""
    path, hint = request.scope.get("path", "")[:80], f"see {openapi.PATH}"
    if error.status_code == 404:
        return _error(NotFoundError(f"there is no {path!r}", hint=hint))
    record = ErrorRecord("usage", f"{request.method} is not possible on {path!r}", hint)
    return _json(ErrorBody(record), error.status_code, dict(error.headers or {}))


async def _unforeseen(_request: Request, error: Exception) -> Response:
    return _error(as_ringway_error(error))
