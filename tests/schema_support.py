"""Messages against the JSON Schemas of their revisions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

__all__ = ["RESULTS", "conforms", "conformsToRequest"]

SCHEMAS = Path(__file__).with_name("schemas")

RESULTS = {
    "initialize": "InitializeResult",
    "server/discover": "DiscoverResult",
    "ping": "EmptyResult",
    "logging/setLevel": "EmptyResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
    "resources/list": "ListResourcesResult",
    "resources/templates/list": "ListResourceTemplatesResult",
    "resources/read": "ReadResourceResult",
    "resources/subscribe": "EmptyResult",
    "resources/unsubscribe": "EmptyResult",
    "prompts/list": "ListPromptsResult",
    "prompts/get": "GetPromptResult",
    "completion/complete": "CompleteResult",
    "elicitation/create": "ElicitResult",
    "sampling/createMessage": "CreateMessageResult",
    "roots/list": "ListRootsResult",
}
"""The definition of the result of each method."""


@cache
def _schema(revision: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"schema-{revision}.json").read_text())
    return loaded


@cache
def validator(revision: str, definition: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = _schema(revision)
    place = "$defs" if "$defs" in schema else "definitions"
    kind = jsonschema.Draft202012Validator if place == "$defs" else jsonschema.Draft7Validator
    return kind({"$ref": f"#/{place}/{definition}", place: schema[place]})


def conforms(value: Any, revision: str, definition: str) -> None:
    """Raises where a value is not what its revision has under this name."""
    validator(revision, definition).validate(value)


@cache
def _requests(revision: str) -> dict[str, str]:
    """The definitions of requests and notifications, by method."""
    schema = _schema(revision)
    found = {}
    for name, one in schema.get("$defs", schema.get("definitions", {})).items():
        method = one.get("properties", {}).get("method", {}).get("const")
        if method is not None:
            found[method] = name
    return found


def conformsToRequest(value: dict[str, Any], revision: str) -> None:
    """Raises where a request or notification is not one of its revision."""
    conforms(value, revision, _requests(revision)[value["method"]])
