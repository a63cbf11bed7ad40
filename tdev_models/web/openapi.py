"""The OpenAPI document of the JSON, from the signatures, docstrings and results of the calls."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

from starlette.requests import Request
from starlette.responses import Response

import tdev_models
from tdev_models.results import Execution, Page, Record, Session
from tdev_models.web.access import reader
from tdev_models.web.api import CALLS, answer, of_user
from tdev_models.web.parameters import Parameter, parameters

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SIMPLE: dict[Any, dict[str, Any]] = {kind: {"type": name} for kind, name in _PLAIN.items()}


class _Document(dict[str, Any]):
    """A document, as results are answered."""

    def to_dict(self) -> dict[str, Any]:
        return self


async def openapi(request: Request) -> Response:
    """Return the document: for users, of what they may call."""
    document = described(await reader(request) is not None)
    document["servers"] = [{"url": request.scope.get("root_path", "") or "/"}]
    return await answer(request, document)


def described(for_users: bool = False) -> _Document:
    """Return the document without its servers."""
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for name, call in CALLS.items():
        known = parameters(call)
        offered = of_user(known) if for_users else known
        if offered is not None:
            result = get_type_hints(call)["return"]
            paths[f"/api/{name}"] = {"get": _operation(name, call, offered, result, schemas)}
    paths["/api/events"] = {"get": _EVENTS}
    for record in (Session, Execution):
        _schema(record, schemas)
    return _Document(
        openapi="3.1.0",
        info={
            "title": "tdev_models",
            "version": tdev_models.__version__,
            "description": "Reading only. A list's `cursor` asks for its next page.",
        },
        paths=paths,
        components={"schemas": schemas},
    )


def _operation(
    name: str, call: Any, offered: Mapping[str, Parameter], result: Any, schemas: dict[str, Any]
) -> dict[str, Any]:
    summary, _, more = (inspect.getdoc(call) or "").partition("\n\n")
    description = " ".join(more.partition("Args:\n")[0].partition("Raises:\n")[0].split())
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": [
            {
                "name": one.name,
                "in": "query",
                "required": one.is_required,
                "description": one.meaning,
                "schema": one.schema,
            }
            for one in offered.values()
        ],
        "responses": {
            "200": {
                "description": "What the call returns.",
                "headers": {"ETag": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": _schema(result, schemas)}},
            },
            "304": {"description": "The same as the reader has, by If-None-Match."},
            **{code: _failure(meaning) for code, meaning in _FAILURES.items()},
        },
    }


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; those of records are added to `schemas`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [
            {"type": "null"} if one is types.NoneType else _schema(one, schemas) for one in parts
        ]
        return {"anyOf": options}
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if origin is Page or origin is list:
        items = {"type": "array", "items": _schema(parts[0], schemas)}
        cursor = {"type": ["string", "null"]}
        return {
            "type": "object",
            "required": ["items", "cursor"],
            "properties": {"items": items, "cursor": cursor},
        }
    if origin is tuple:
        return {"type": "array", "items": _schema(parts[0], schemas)}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"type": "string", "enum": [str(one) for one in kind]}
    if isinstance(kind, type) and issubclass(kind, Record):
        return _record(kind, schemas)
    return {"type": "object"} if origin is not None else {}


def _record(kind: type[Record], schemas: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in schemas:
        schemas[kind.__name__] = {}  # a record may hold others of its kind
        hints = get_type_hints(kind)
        names = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
        schemas[kind.__name__] = {
            "type": "object",
            "description": inspect.getdoc(kind),
            "required": names,
            "properties": {name: _schema(hints[name], schemas) for name in names},
        }
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _failure(meaning: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": meaning, "content": content}


_FAILURES = {
    "400": "A wrong value; `field` names it.",
    "403": "The application names no user for the request.",
    "404": "There is none, or it is another user's.",
    "409": "Others wrote the same again and again: call again.",
    "502": "The store refused it, or holds what cannot be read.",
    "503": "Throttled, or no answer, after all retries: call again.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {name: {"type": "string"} for name in ("type", "message", "field")},
        }
    },
}
_EVENTS = {
    "operationId": "events",
    "summary": "Send a session and its executions at each poll, until it has ended.",
    "description": "Server-sent events: `message` holds `session` and `executions`, as "
    "`/api/session` and `/api/executions` return them; `end` says that nothing more comes. "
    "However many watch a session, each poll is one read.",
    "parameters": [
        {"name": "session_id", "in": "query", "required": True, "schema": {"type": "string"}}
    ],
    "responses": {
        "200": {"description": "Events.", "content": {"text/event-stream": {}}},
        **{code: _failure(meaning) for code, meaning in _FAILURES.items()},
    },
}
