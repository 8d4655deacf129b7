"""
The header fields that say what is in a modern request (MCP 2026-07-28, basic/transports/
streamable-http, Request Metadata; server/tools, `x-mcp-header`).

    MCP-Protocol-Version   params._meta, the claim                     every request
    Mcp-Method             method                                      every request
    Mcp-Name               params.name, or params.uri                  NAMED
    Mcp-Param-{name}       an argument whose schema has `x-mcp-header`  tools/call

A value is the string itself, an integer in decimals, `true` or `false`; a null has no field. What
cannot stand in a field so (other than printable ASCII, a space at either end, what looks like
the form itself) is `=?base64?…?=` over its UTF-8.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from attrs import define, field
from msgspec import Raw

from gateway.wire.annotations import Annotation, ToolList, judgeTools
from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import Message
from gateway.wire.exchange import RequestHead
from gateway.wire.revisions import VERSION_CLAIM
from gateway.wire.strictjson import members, quote, text

__all__ = [
    "MAX_SAFE_INTEGER",
    "METHOD",
    "NAME",
    "NAMED",
    "VERSION",
    "ToolHeaders",
    "decodeValue",
    "encodeValue",
]

VERSION = b"mcp-protocol-version"
METHOD = b"mcp-method"
NAME = b"mcp-name"

NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""The methods whose requests have `Mcp-Name`, and which of their parameters it is."""

MAX_SAFE_INTEGER = 2**53 - 1

_OPENING, _END = b"=?base64?", b"?="
_PLAIN = re.compile(r"[\x20-\x7e]*")
_SENDABLE = re.compile(rb"[\t\x20-\x7e]*")
_DECIMAL = re.compile(rb"(-?[0-9]{1,40})(?:\.([0-9]{1,40}))?")


def encodeValue(value: str) -> bytes:
    """
    A string as the value of a field.

    Raises: ValueError, for half a surrogate pair, which has no UTF-8.
    """
    if _PLAIN.fullmatch(value):
        plain = value.encode("ascii")
        if plain == plain.strip(b" ") and not _isEncoded(plain):
            return plain
    return _OPENING + base64.b64encode(value.encode("utf-8")) + _END


def decodeValue(value: bytes) -> str | None:
    """
    What a field's value says; None where it is malformed.

    That is: another byte than printable ASCII and the tab, base64 in other than its one
    canonical spelling, or what is not UTF-8.
    """
    if not _SENDABLE.fullmatch(value):
        return None
    if not _isEncoded(value):
        return value.decode("ascii")
    if len(value) < len(_OPENING) + len(_END):
        return None
    payload = value[len(_OPENING) : -len(_END)]
    try:
        decoded = base64.b64decode(payload, validate=True)
        return decoded.decode("utf-8") if base64.b64encode(decoded) == payload else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _isEncoded(value: bytes) -> bool:
    return value.startswith(_OPENING) and value.endswith(_END)


@define(eq=False, repr=False)
class ToolHeaders:
    """
    What is known of one server's annotations, and what a request's fields are by that.

    limit: bytes that are held; a tool that finds no room is not held: nothing is written or
        demanded for its parameters.
    full: whether that happened since the last list began.
    """

    limit: int
    full: bool = field(default=False, init=False)
    _held: dict[str, tuple[Annotation, ...]] = field(factory=dict, init=False)
    _size: int = field(default=0, init=False)
    _old: set[str] = field(factory=set, init=False)
    """The tools that the list now under way has not told again yet."""

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._size

    def learn(self, result: bytes, first: bool) -> ToolList:
        """
        Take in the result of a `tools/list`.

        first: whether it is of a request without a cursor. A list from its beginning to its end
            replaces what was held; a page adds.
        """
        judged = judgeTools(result)
        if first:
            self.full = False
            self._old = set(self._held)
        if first and not judged.more:
            self._forget(self._held)
        for name in (*judged.names, *(tool.name for tool in judged.invalid)):
            self._forget((name,))
        for name, found in judged.annotations.items():
            self._forget((name,))
            self._hold(name, found)
        self._old -= judged.annotations.keys()
        if not judged.more:
            self._forget(self._old)
            self._old = set()
        return judged

    def forget(self) -> None:
        """Hold nothing."""
        self._forget(self._held)
        self._old = set()

    def fieldsFor(self, message: Message) -> HeaderPairs:
        """
        The fields of a modern request, names in lower case.

        What cannot be written in a field (another method than MCP has, half a surrogate pair, an
        object where a string should be) is left out; the server says what it thinks of that.
        """
        fields: list[tuple[bytes, bytes]] = []
        claim = text(message.meta(VERSION_CLAIM))
        for field_, said in ((VERSION, claim), (METHOD, message.method)):
            if said is not None and _isPlain(said):
                fields.append((field_, said.encode("ascii")))
        named = NAMED.get(message.method)
        if named is not None:
            value = _written(message.param(named), strings=True)
            if value is not None:
                fields.append((NAME, value))
        for annotation, spelled in self._arguments(message):
            value = _written(spelled)
            if value is not None:
                fields.append((annotation.field, value))
        return tuple(fields)

    def disagreement(self, head: RequestHead, message: Message) -> str | None:
        """
        Why the fields of a modern request are not those of its body; None where they are.

        Judged are the standard fields, and `Mcp-Param-*` of tools that are held. Where the body
        says nothing that a field could, a field that says something is wrong, and none is right.
        """
        return (
            _differs(head, VERSION, message.meta(VERSION_CLAIM), "MCP-Protocol-Version", raw=True)
            or _differs(head, METHOD, quote(message.method), "Mcp-Method", raw=True)
            or self._nameDiffers(head, message)
            or self._paramsDiffer(head, message)
        )

    def _nameDiffers(self, head: RequestHead, message: Message) -> str | None:
        named = NAMED.get(message.method)
        if named is None:
            return None
        spelled = message.param(named)
        if spelled is not None and spelled[:1] != b'"':
            spelled = None
        return _differs(head, NAME, spelled, "Mcp-Name")

    def _paramsDiffer(self, head: RequestHead, message: Message) -> str | None:
        for annotation, spelled in self._arguments(message):
            why = _differs(
                head, annotation.field, spelled, annotation.field.decode("ascii").title()
            )
            if why is not None:
                return why
        return None

    def _arguments(self, message: Message) -> Iterator[tuple[Annotation, bytes | None]]:
        """The annotations of a call's tool, each with the argument as spelled."""
        if message.method != "tools/call" or not self._held:
            return
        annotations = self._held.get(message.paramText("name") or "")
        if annotations is None:
            return
        # Each object on the way is read once, whatever stands in it.
        objects: dict[tuple[str, ...], dict[str, Raw]] = {(): members(message.param("arguments"))}
        for annotation in annotations:
            yield annotation, _at(objects, annotation.path)

    def _hold(self, name: str, annotations: tuple[Annotation, ...]) -> None:
        size = _sizeOf(name, annotations)
        if self._size + size > self.limit:
            self.full = True
            return
        self._held[name] = annotations
        self._size += size

    def _forget(self, names: Any) -> None:
        for name in tuple(names):
            annotations = self._held.pop(name, None)
            if annotations is not None:
                self._size -= _sizeOf(name, annotations)


def _sizeOf(name: str, annotations: tuple[Annotation, ...]) -> int:
    """About how many bytes a tool takes that is held."""
    each = (
        64 + len(one.field) + sum(64 + 4 * len(step) for step in one.path) for one in annotations
    )
    return 64 + 4 * len(name) + sum(each)


def _at(objects: dict[tuple[str, ...], dict[str, Raw]], path: tuple[str, ...]) -> bytes | None:
    """What stands at a path; None where nothing does. objects: those that were read already."""
    for depth in range(1, len(path)):
        here = path[:depth]
        if here not in objects:
            objects[here] = members(objects[path[: depth - 1]].get(path[depth - 1]))
    value = objects[path[:-1]].get(path[-1])
    return None if value is None else bytes(value)


def _isPlain(value: str) -> bool:
    return _PLAIN.fullmatch(value) is not None and value == value.strip(" ") and value != ""


def _written(spelled: bytes | None, strings: bool = False) -> bytes | None:
    """
    The field's value for a JSON text; None where it has none.

    strings: whether only a string has one.
    """
    if spelled is None:
        return None
    if spelled[:1] == b'"':
        value = text(spelled)
        return None if value is None else encodeValue(value)
    if strings:
        return None
    if spelled in (b"true", b"false"):
        return spelled
    if spelled[:1] in b"-0123456789":
        integer = _integer(spelled)
        return spelled if integer is None else b"%d" % integer
    return None


def _integer(spelled: bytes) -> int | None:
    """A JSON number's value, where it is an integer that all can hold (within 2^53 - 1)."""
    try:
        value = Decimal(spelled.decode("ascii"))
    except (InvalidOperation, ValueError):
        return None
    # Looked at first, for the digits of 1e999999 would fill the memory.
    if not value.is_finite() or value.adjusted() > 16 or len(spelled) > 64:
        return None
    if value != value.to_integral_value() or abs(value) > MAX_SAFE_INTEGER:
        return None
    return int(value)


def _decimal(said: str) -> int | None:
    """The integer that a field says in decimals (`42`, also `42.0`)."""
    found = _DECIMAL.fullmatch(said.encode("utf-8"))
    if found is None or (found[2] or b"").strip(b"0"):
        return None
    return int(found[1])


def _differs(
    head: RequestHead, name: bytes, spelled: bytes | None, called: str, raw: bool = False
) -> str | None:
    """
    Why a field does not say what the body does.

    spelled: the body's value as JSON. raw: whether it must be there and has no base64 form.
    """
    values = head.headerValues(name)
    if len(values) > 1:
        return f"{called} is given more than once"
    expected = _written(spelled)
    if not values:
        return f"{called} is missing" if raw or expected is not None else None
    value = values[0].strip(b" \t")
    said = value.decode("ascii", "replace") if raw else decodeValue(value)
    if said is None or not _SENDABLE.fullmatch(value):
        return f"{called} is malformed"
    if expected is None or spelled is None:
        return f"{called} says what the body does not"
    if spelled[:1] == b'"':
        same = said == text(spelled)
    else:
        integer = _integer(spelled)
        same = said == expected.decode("ascii") if integer is None else _decimal(said) == integer
    return None if same else f"{called} is not what the body says"
