"""The OpenAPI document of the server, made from the table of routes and the models of their bodies."""

from __future__ import annotations

import functools
from typing import Any, Final

import pydantic
from pydantic.json_schema import models_json_schema

import infini
from infini.llm.server.routes import Route

_REF: Final = "#/components/schemas/{model}"
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


@functools.cache
def document(routes: tuple[Route, ...], *, has_keys: bool) -> dict[str, Any]:  # Any: JSON
    """The document.

    Args:
        routes: what is served.
        has_keys: whether keys are needed.

    Returns:
        OpenAPI 3.1 as JSON.
    """
    bodies: list[tuple[type[pydantic.BaseModel], Any]] = [
        (route.body, "validation") for route in routes if route.body is not None
    ]
    names, schemas = models_json_schema(bodies, ref_template=_REF)
    paths: dict[str, Any] = {}
    for route in routes:
        if not route.is_published:
            continue
        operation: dict[str, Any] = {
            "operationId": route.name,
            "summary": route.summary,
            "responses": {
                "200": {"description": "The answer.", "content": {kind: {} for kind in route.answers}},
                "default": {
                    "description": "An error.",
                    "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}},
                },
            },
        }
        if route.parameters:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in route.parameters
            ]
        if route.body is not None:
            schema = names[route.body, "validation"]
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if has_keys and route.needs_key:
            operation["security"] = [{"bearer": []}]
        paths.setdefault(route.shown_path, {})[route.method.lower()] = operation
    components: dict[str, Any] = {"schemas": {**schemas.get("$defs", {}), "Error": _ERROR}}
    if has_keys:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "infini", "version": infini.__version__},
        "paths": paths,
        "components": components,
    }
