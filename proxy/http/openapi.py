"""The OpenAPI page, `/openapi.json`: the routes there are, what the proxy checks of a body, errors.

What else a body may hold is vLLM's business and stands in vLLM's own page.
"""

import re
from collections.abc import Iterable
from typing import Any

from proxy.api.route_table import Route, find_route
from proxy.http.administration import COOKIE

_ERROR: dict[str, Any] = {
    "description": "An error, in OpenAI's envelope",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_TEXT = {"type": ["string", "null"]}
_COMPONENTS: dict[str, Any] = {
    "schemas": {
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "type": {"const": "error"},
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": _TEXT,
                        "code": {"type": ["string", "integer", "null"]},
                    },
                },
            },
        }
    },
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    },
}
_BY_KEY: list[dict[str, list[str]]] = [{"bearer": []}, {"x-api-key": []}]
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {"role": {"type": "string"}},
    },
}
_PROMPT = {"type": ["string", "array"]}


def page(title: str, version: str, patterns: Iterable[str]) -> dict[str, Any]:
    """The document, for an allow-list of `METHOD /path` patterns and the proxy's own routes."""
    paths: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        route = find_route(pattern)
        paths.setdefault(route.path, {})[route.method.lower()] = _relayed(route)
    paths["/v1/models"] = {"get": _own("The models, and the state of each one's endpoint")}
    paths["/v1/models/{id}"] = {"get": _own("One model", "id")}
    paths["/v1/models/{id}/warm"] = {"post": _own("Wake a worker for a model", "id")}
    paths["/v1/usage"] = {"get": _own("What a key has used, by the ledger")}
    paths["/metrics"] = {"get": _own("Numbers for Prometheus")}
    paths["/admin/keys"] = {
        "get": _admins("All keys"),
        "post": _admins("Make a key", body={"required": ["name"]}),
    }
    paths["/admin/keys/{name}"] = {
        "get": _admins("One key", "name"),
        "patch": _admins("Change what its holder may do", "name", body={}),
        "delete": _admins("Revoke it", "name"),
    }
    paths["/admin/keys/{name}/rotate"] = {"post": _admins("Give it another secret", "name")}
    paths["/admin/session"] = {
        "post": _own("Log a browser in, with a key that may administer"),
        "get": _admins("Who is logged in"),
        "delete": _admins("Log it out"),
    }
    paths["/admin/status"] = {"get": _admins("What the status page shows")}
    chat = _relayed(find_route("POST /v1/chat/completions"))
    paths["/admin/chat"] = {"post": chat | _admins("A chat as the admin who asks")}
    paths["/admin/usage"] = {"get": _admins("The same as /v1/usage")}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": _COMPONENTS,
        "security": _BY_KEY,
    }


def _relayed(route: Route) -> dict[str, Any]:
    operation = _own("Answered by a worker", *re.findall(r"\{(\w+)\}", route.path))
    if route.method == "GET":
        return operation
    schema = {"multipart/form-data": _form()} if "/audio/tr" in route.path else {}
    content = schema or {"application/json": {"schema": _body(route)}}
    return operation | {"requestBody": {"content": content, "required": route.needs_model}}


def _own(summary: str, *parameters: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in parameters
        ],
        "responses": {"2XX": {"description": "The answer"}, "default": _ERROR},
    }


def _admins(summary: str, *parameters: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """For a key that may administer, or a session of one."""
    operation = _own(summary, *parameters) | {"security": [*_BY_KEY, {"session": []}]}
    if body is None:
        return operation
    schema = {"type": "object", **body}
    content = {"application/json": {"schema": schema}}
    return operation | {"requestBody": {"content": content, "required": True}}


def _body(route: Route) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "model": {"type": "string", "minLength": 1},
        "stream": {"type": ["boolean", "null"]},
    }
    properties |= {name: _MESSAGES if name == "messages" else _PROMPT for name in route.prompts}
    body: dict[str, Any] = {"type": "object", "properties": properties}
    if route.needs_model:
        body |= {"required": ["model"], "anyOf": [{"required": [name]} for name in route.prompts]}
    return body


def _form() -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    properties = {"model": {"type": "string"}, "file": file}
    return {"schema": {"type": "object", "properties": properties, "required": ["file"]}}
