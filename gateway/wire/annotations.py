"""
Which parameters of a tool go in header fields: `x-mcp-header` (MCP 2026-07-28, server/tools, and
basic/transports/streamable-http, Custom Headers from Tool Parameters).

An annotation is valid where

 1. it is a string of at least one tchar (RFC 9110 section 5.6.2), and of nothing else;
 2. no other one in the schema is the same but for capitals;
 3. its property has the type "integer", "string" or "boolean", and no other beside it;
 4. its property is reached from the root of `inputSchema` through `properties` alone.

One that is not makes its tool invalid: clients leave the tool out of the list. So do bounds of
our own: MAX_ANNOTATIONS in one tool, MAX_PATH steps to a property, MAX_SCHEMA bytes of an
`inputSchema` that has any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from attrs import frozen
from msgspec import Raw

from gateway.wire.headers import TCHAR
from gateway.wire.strictjson import NotJSON, members, parsed, quote, text, unmasked, withMember

__all__ = [
    "MAX_ANNOTATIONS",
    "MAX_PATH",
    "MAX_SCHEMA",
    "PARAM",
    "Annotation",
    "InvalidTool",
    "ToolList",
    "judgeTools",
]

PARAM = b"mcp-param-"
MAX_ANNOTATIONS = 64
MAX_PATH = 32
MAX_SCHEMA = 1024 * 1024

_TOKEN = re.compile(TCHAR.decode("ascii") + "+")
_PRIMITIVE = frozenset({"integer", "string", "boolean"})

# The keywords of JSON Schema (2020-12 and draft 7) under which schemas stand; what stands under
# others (`default`, `enum`, …) is data, where a member of that name annotates nothing.
_ONE = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_LISTED = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_MAPPED = frozenset(
    {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties"}
)

_decodeItems = msgspec.json.Decoder(list[Raw]).decode
_decodeAny = msgspec.json.Decoder().decode


@frozen
class Annotation:
    """
    A parameter that goes in a header field.

    field: its name in lower case. path: the names of the properties from the arguments down.
    """

    field: bytes
    path: tuple[str, ...]


@frozen
class InvalidTool:
    """A tool that a client must leave out; why: for the log. name: "" where it has none."""

    name: str
    why: str


@frozen
class ToolList:
    """
    A judged result of `tools/list`.

    valid: the result without its invalid tools, all else as spelled; the very same bytes where
        there are none. invalid: these.
    annotations: of each valid tool that has any. names: of the tools that have none.
    more: whether further pages follow.
    """

    valid: bytes
    invalid: tuple[InvalidTool, ...]
    annotations: dict[str, tuple[Annotation, ...]]
    names: frozenset[str]
    more: bool


def judgeTools(result: bytes) -> ToolList:
    """
    Judge the result of `tools/list`, as it was accepted in a message.

    Takes time linear in its length. What is no list of tools has none.
    """
    fields = members(result)
    kept: list[bytes] = []
    invalid: list[InvalidTool] = []
    annotations: dict[str, tuple[Annotation, ...]] = {}
    names: set[str] = set()
    for tool in _items(fields.get("tools")):
        said = members(tool)
        name = text(bytes(said.get("name", b""))) or ""
        try:
            found = _annotationsOf(bytes(said.get("inputSchema", b"{}")))
        except _Invalid as error:
            invalid.append(InvalidTool(name, str(error)))
            annotations.pop(name, None)
            continue
        kept.append(tool)
        if found:
            annotations[name] = found
        else:
            names.add(name)
    if invalid:
        result = withMember(result, "tools", b"[" + b",".join(kept) + b"]")
    more = bytes(fields.get("nextCursor", b"null")) != b"null"
    return ToolList(result, tuple(invalid), annotations, frozenset(names), more)


class _Invalid(Exception):
    """An annotation breaks a rule; the argument says which."""


def _items(tools: Raw | None) -> list[bytes]:
    if tools is None or bytes(tools)[:1] != b"[":
        return []
    try:
        return [unmasked(item) for item in parsed(_decodeItems, bytes(tools))[0]]
    except NotJSON:
        return []


def _annotationsOf(schema: bytes) -> tuple[Annotation, ...]:
    """
    The annotations of an `inputSchema`.

    Raises: _Invalid.
    """
    # An escape may hide the name.
    if b"x-mcp-header" not in schema and b"\\u" not in schema:
        return ()
    if len(schema) > MAX_SCHEMA:
        if b"x-mcp-header" not in schema:
            return ()
        raise _Invalid(f"inputSchema has x-mcp-header and is over {MAX_SCHEMA} bytes")
    try:
        root, _ = parsed(_decodeAny, schema)
    except NotJSON:
        raise _Invalid("inputSchema cannot be read") from None
    found: dict[bytes, Annotation] = {}
    for path, position in _positions(root):
        if "x-mcp-header" in position:
            annotation = _annotation(path, position)
            if annotation.field in found:
                raise _Invalid("two x-mcp-header are the same but for capitals")
            found[annotation.field] = annotation
    if len(found) > MAX_ANNOTATIONS:
        raise _Invalid(f"over {MAX_ANNOTATIONS} x-mcp-header")
    return tuple(found.values())


def _annotation(path: tuple[str, ...] | None, schema: dict[str, Any]) -> Annotation:
    name, kind = schema["x-mcp-header"], schema.get("type")
    if not path:
        raise _Invalid("x-mcp-header on what is not reached through properties alone")
    if len(path) > MAX_PATH:
        raise _Invalid(f"x-mcp-header on a property over {MAX_PATH} steps deep")
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise _Invalid("x-mcp-header is no header field token")
    # Half a surrogate pair is masked by letters.
    if text(unmasked(quote(name))) != name:
        raise _Invalid("x-mcp-header is no header field token")
    if not isinstance(kind, str) or kind not in _PRIMITIVE:
        raise _Invalid("x-mcp-header on a property that is no integer, string or boolean")
    return Annotation(PARAM + name.lower().encode("ascii"), path)


def _positions(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema within a schema, in order, and the path of properties to it, if there is one."""
    waiting: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        below: list[tuple[tuple[str, ...] | None, Any]] = []
        for keyword, value in schema.items():
            if keyword == "properties" and isinstance(value, dict):
                # A path that is too long for us need not be told exactly.
                deeper = path is not None and len(path) <= MAX_PATH
                for name, inner in value.items():
                    below.append(((*path, name) if path is not None and deeper else path, inner))
            elif keyword in _MAPPED and isinstance(value, dict):
                below += [(None, inner) for inner in value.values()]
            elif keyword in _LISTED and isinstance(value, list):
                below += [(None, inner) for inner in value]
            elif keyword in _ONE:
                below.append((None, value))
        waiting += reversed(below)
