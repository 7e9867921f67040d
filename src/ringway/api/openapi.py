"""The OpenAPI document, made from the table of routes and the types that they name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

import ringway
from ringway.api.routes import ADDRESS, DISK, GUEST, IDENTITY, ErrorBody, Route
from ringway.model import NAME, OperationInfo, Plan

PATH: Final = "/1.0/openapi.json"
_JSON: Final = "application/json"
_PARAMETERS: Final = {
    "name": ("The object's name.", NAME),
    "guest": ("A guest's name or UUID.", GUEST),
    "endpoint": ("An endpoint's name.", NAME),
    "disk": ("A plain disk's volume, target, serial number or alias.", DISK),
    "port": ("A port's name.", NAME),
    "address": ("A LUN's address, TARGET:LUN.", ADDRESS),
    "identity": ("An operation's id.", IDENTITY),
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    types = _types(routes)
    found, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(map(repr, types), found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ringway", "version": ringway.__version__, "description": "A host's endpoints."},
        "paths": paths,
        "components": {"schemas": components},
    }


def _types(routes: Sequence[Route]) -> list[Any]:
    """All types that go through the socket, each once."""
    named = [kind for route in routes for kind in (route.answer, route.body) if kind not in (None, bytes)]
    return list({repr(kind): kind for kind in (ErrorBody, OperationInfo, Plan, *named)}.values())


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": route.verb,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": _responses(route, schemas),
    }
    if route.body is not None:
        schema = {"type": "object"} if route.body is bytes else schemas[repr(route.body)]
        content = {_JSON: {"schema": schema}}
        found["requestBody"] = {"required": not route.body_optional, "content": content}
    return found


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS[name][0],
            "schema": {"type": "string", "pattern": f"^{_PARAMETERS[name][1]}$"},
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    schema = msgspec.json.schema(route.query)["$defs"][route.query.__name__]
    return [
        {"name": name, "in": "query", "description": inner.pop("description", ""), "schema": inner}
        for name, inner in schema["properties"].items()
    ]


def _responses(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    media = route.kind.partition(";")[0]
    schema = schemas[repr(route.answer)] if route.answer is not None else _plain_schema(media)
    found = {str(route.status): _response("Done.", media, schema)}
    if route.begins:
        either = {"anyOf": [schema, schemas[repr(Plan)]]}
        found["200"] = _response("Done, or with dry_run the plan.", media, either)
        found["202"] = _response("It goes on, as an operation.", media, schemas[repr(OperationInfo)])
    found["default"] = _response("It failed.", _JSON, schemas[repr(ErrorBody)])
    return found


def _plain_schema(media: str) -> dict[str, Any]:
    return {"type": "object"} if media == _JSON else {"type": "string"}


def _response(description: str, media: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}
