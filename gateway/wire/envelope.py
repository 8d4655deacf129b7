"""
JSON-RPC 2.0 messages as envelopes: the members that route a message are judged, everything
else is carried byte for byte.

Rules, each with what breaks it (JSON-RPC 2.0; MCP base protocol):

 1. UTF-8, no byte order mark                                  NotJSON
 2. JSON (RFC 8259): no NaN, no trailing bytes                 NotJSON
 3. nested at most MAX_DEPTH deep                              NotJSON
 4. no member of the message itself twice, however spelled     NotJSON
 5. an object (an array is a batch, for `decode` to split)     NotAMessage
 6. "jsonrpc" is exactly "2.0"                                 NotAMessage
 7. "method" is a string; "params" an object or an array       NotAMessage
 8. "id" is a string or a number of at most MAX_ID bytes       NotAMessage
 9. a response has an id and one of "result" and "error"       NotAMessage

Values stay as spelled: `1`, `1.0`, `1e0` and `2^53+1` come back as they went, lone surrogates
included. Whitespace between members may change; CR and LF in it become spaces, since stdio and
SSE frame with them (inside a JSON string neither can stand raw, so no value changes).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from enum import Enum
from itertools import accumulate

import msgspec
from attrs import define, field
from msgspec import Raw

__all__ = [
    "MAX_DEPTH",
    "MAX_ID",
    "MAX_MEMBERS",
    "Kind",
    "Message",
    "NotAMessage",
    "NotJSON",
    "decode",
    "encodeBatch",
    "members",
    "notification",
    "quote",
    "salvageID",
]

MAX_DEPTH = 512
MAX_ID = 4096
MAX_MEMBERS = 256

_decodeMembers = msgspec.json.Decoder(dict[str, Raw]).decode
_decodeItems = msgspec.json.Decoder(list[Raw]).decode
_decodeString = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode

_WS = b" \t\n\r"
_KEY = re.compile(rb'[ \t\n\r]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\n\r]*:[ \t\n\r]*')
_STRINGS_AND_REST = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\[\]{}"]++')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
# An escaped surrogate pair, or half of one; \\ before it must be an even number of backslashes,
# which the leading alternative consumes pairwise.
_SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


class NotJSON(Exception):
    """The bytes are no JSON text we accept (rules 1 to 4). The argument says why."""


class NotAMessage(Exception):
    """
    JSON, but no JSON-RPC 2.0 message (rules 5 to 9). The first argument says why.

    id: the message's id as spelled, where it has a usable one.
    """

    def __init__(self, why: str, id: bytes | None = None) -> None:
        super().__init__(why)
        self.id = id


class Kind(Enum):
    """What a message is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


@define(slots=True, eq=False)
class Message:
    """
    One JSON-RPC message.

    kind: request, notification or response.
    fields: every member in order, values as spelled.
    id: the id as spelled; None for a notification.
    method: the decoded method; "" for a response.
    """

    kind: Kind
    fields: dict[str, Raw]
    id: bytes | None
    method: str = ""
    _params: dict[str, Raw] | None = field(default=None, init=False)

    def encode(self) -> bytes:
        """The message as one line of JSON, without the line's end."""
        return _oneLine(_encode(self.fields))

    @property
    def isError(self) -> bool:
        """Whether this is an error response."""
        return "error" in self.fields

    def param(self, name: str) -> bytes | None:
        """A member of `params` as spelled, or None; also None where params is an array."""
        params = self._params
        if params is None:
            params = self._params = members(self.fields.get("params"))
        value = params.get(name)
        return None if value is None else bytes(value)

    def paramText(self, name: str) -> str | None:
        """A member of `params` that is a string, decoded; None for anything else."""
        return text(self.param(name))

    def meta(self, name: str) -> bytes | None:
        """A member of `params._meta` as spelled, or None."""
        raw = self.fields.get("params")
        if raw is None:
            return None
        spelled = memoryview(raw)
        # Scanning for the key first spares large params a second parse; a backslash may hide it.
        whole = bytes(spelled)
        if b'"_meta"' not in whole and b"\\u" not in whole:
            return None
        value = members(self.param("_meta")).get(name)
        return None if value is None else bytes(value)

    def withID(self, id: bytes) -> Message:
        """The same message under another id (as spelled)."""
        fields = self.fields.copy()
        fields["id"] = Raw(id)
        return Message(self.kind, fields, id, self.method)

    def withParam(self, name: str, value: bytes) -> Message:
        """The same message with one member of `params` replaced by a JSON text."""
        params = members(self.fields.get("params")).copy()
        params[name] = Raw(value)
        fields = self.fields.copy()
        fields["params"] = Raw(_encode(params))
        return Message(self.kind, fields, self.id, self.method)

    def withMeta(self, name: str, value: bytes) -> Message:
        """The same message with one member of `params._meta` replaced by a JSON text."""
        meta = members(self.param("_meta")).copy()
        meta[name] = Raw(value)
        return self.withParam("_meta", _encode(meta))


def members(raw: Raw | bytes | None) -> dict[str, Raw]:
    """The members of a JSON object that was already accepted; {} for anything else."""
    if raw is None:
        return {}
    data = bytes(raw)
    if data[:1] != b"{":
        return {}
    try:
        return _decodeMembers(data)
    except msgspec.DecodeError:
        return _unmasked(data)[0]


def text(raw: bytes | None) -> str | None:
    """A JSON string's value; None for anything else, or where it has half a surrogate pair."""
    if raw is None or raw[:1] != b'"':
        return None
    try:
        return _decodeString(raw)
    except msgspec.DecodeError:
        return None


def quote(value: str) -> bytes:
    """A string as JSON."""
    return _encode(value)


def notification(method: str, **params: bytes) -> Message:
    """A notification of our own; parameters are JSON texts."""
    fields = {"jsonrpc": Raw(b'"2.0"'), "method": Raw(_encode(method))}
    if params:
        fields["params"] = Raw(_encode({key: Raw(value) for key, value in params.items()}))
    return Message(Kind.NOTIFICATION, fields, None, method)


def encodeBatch(items: Iterable[bytes]) -> bytes:
    """Encoded messages as one JSON array."""
    return b"[" + b",".join(items) + b"]"


def decode(data: bytes) -> Message | list[Message | NotAMessage]:
    """
    Decode one message or a batch.

    Returns: the message; for an array, each member decoded, a bad one as its exception.
    Raises: NotJSON, NotAMessage.
    """
    _checkText(data)
    start = data.lstrip(_WS)[:1] if data[:1] in (b" ", b"\t", b"\n", b"\r") else data[:1]
    if start == b"[":
        return _decodeBatch(data)
    if start != b"{":
        _judgeJSON(data)
        raise NotAMessage("a message is a JSON object")
    return _message(_fields(data))


def salvageID(data: bytes) -> bytes | None:
    """
    The id that a text which broke a rule seems to carry, so that its call can be failed.

    Returns: an integer id as spelled, from the last `"id":` with one; else None.
    """
    found = _ID.findall(data)
    return found[-1] if found else None


_ID = re.compile(rb'"id"[ \t]*:[ \t]*(\d{1,18})(?=[ \t]*[,}])')


def _checkText(data: bytes) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise NotJSON("not UTF-8") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise NotJSON(f"nested deeper than {MAX_DEPTH}")


def _depth(data: bytes) -> int:
    brackets = _STRINGS_AND_REST.sub(b"", data).translate(_STEPS, b'"')
    return max(accumulate(array("b", brackets)), default=0)


def _fields(data: bytes) -> dict[str, Raw]:
    """The members of a message; rules 2, 3 and 4."""
    try:
        fields = _decodeMembers(data)
    except RecursionError:
        raise NotJSON("nested too deep") from None
    except msgspec.DecodeError as error:
        fields, masked = _unmasked(data)
        if not fields and masked is None:
            raise NotJSON("not JSON") from error
        return fields
    _judgeMembers(data, fields)
    return fields


def _judgeMembers(data: bytes, fields: dict[str, Raw]) -> None:
    if len(fields) > MAX_MEMBERS:
        raise NotJSON(f"over {MAX_MEMBERS} members")
    _spans(data, fields)


def _spans(data: bytes, fields: dict[str, Raw]) -> dict[str, tuple[int, int]]:
    """
    Where each member's value stands; refuses a member that comes twice.

    The decoder keeps the last of two members with one name. Walking the text along the
    values it kept, an earlier twin shows: its name was seen already, or what stands there
    is not the value kept.
    """
    spans: dict[str, tuple[int, int]] = {}
    at = data.index(b"{") + 1
    while True:
        match = _KEY.match(data, at)
        if match is None:
            if spans or fields:
                break
            return spans
        key: str = _decodeString(match[1])
        value = bytes(fields.get(key, b""))
        start = match.end()
        if key in spans or not value or not data.startswith(value, start):
            raise NotJSON("a member comes twice")
        at = start + len(value)
        spans[key] = (start, at)
        at = _skip(data, at)
        if data[at : at + 1] == b"}":
            return spans
        if data[at : at + 1] != b",":
            break
        at += 1
    raise NotJSON("a member comes twice")


def _skip(data: bytes, at: int) -> int:
    while data[at : at + 1] in (b" ", b"\t", b"\n", b"\r"):
        at += 1
    return at


def _mask(match: re.Match[bytes]) -> bytes:
    found = match[0]
    return b"\\u0001" if len(found) == 6 else found


def _unmasked(data: bytes) -> tuple[dict[str, Raw], bytes | None]:
    """
    Members of a text that the decoder refused, if half surrogate pairs were its only fault.

    JSON allows them, the decoder does not: each is masked by an escape of the same length,
    and the values are cut out of the text itself, where the masked ones stand.
    """
    masked = _SURROGATES.sub(_mask, data)
    if masked == data:
        return {}, None
    try:
        fields = _decodeMembers(masked)
    except (msgspec.DecodeError, RecursionError):
        return {}, None
    if len(fields) > MAX_MEMBERS:
        raise NotJSON(f"over {MAX_MEMBERS} members")
    spans = _spans(masked, fields)
    return {key: Raw(data[start:end]) for key, (start, end) in spans.items()}, masked


def _judgeJSON(data: bytes) -> None:
    try:
        msgspec.json.decode(_SURROGATES.sub(_mask, data), type=Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotJSON("not JSON") from error


def _decodeBatch(data: bytes) -> list[Message | NotAMessage]:
    try:
        items = [bytes(item) for item in _decodeItems(data)]
    except RecursionError:
        raise NotJSON("nested too deep") from None
    except msgspec.DecodeError:
        items = _unmaskedItems(data)
    out: list[Message | NotAMessage] = []
    for item in items:
        if item[:1] != b"{":
            out.append(NotAMessage("a message is a JSON object"))
            continue
        try:
            out.append(_message(_fields(item)))
        except NotAMessage as error:
            out.append(error)
    return out


def _unmaskedItems(data: bytes) -> list[bytes]:
    masked = _SURROGATES.sub(_mask, data)
    try:
        items = _decodeItems(masked)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotJSON("not JSON") from error
    out: list[bytes] = []
    at = masked.index(b"[") + 1
    for item in items:
        spelled = bytes(item)
        start = masked.index(spelled, at)
        at = start + len(spelled)
        out.append(data[start:at])
    return out


def _message(fields: dict[str, Raw]) -> Message:
    """Rules 6 to 9."""
    id = _id(fields)
    version = fields.get("jsonrpc")
    if version is None or bytes(version) != b'"2.0"' and text(bytes(version)) != "2.0":
        raise NotAMessage('"jsonrpc" must be "2.0"', id)
    raw = fields.get("method")
    if raw is not None:
        if "result" in fields or "error" in fields:
            raise NotAMessage("a request has neither result nor error", id)
        method = text(bytes(raw))
        if method is None:
            raise NotAMessage('"method" must be a string', id)
        params = fields.get("params")
        if params is not None and bytes(params)[:1] not in (b"{", b"["):
            raise NotAMessage('"params" must be an object or an array', id)
        return Message(Kind.NOTIFICATION if id is None else Kind.REQUEST, fields, id, method)
    if ("result" in fields) == ("error" in fields):
        raise NotAMessage('a message has a "method", or one of "result" and "error"', id)
    if id is None:
        raise NotAMessage("a response must have an id")
    if "error" in fields and bytes(fields["error"])[:1] != b"{":
        raise NotAMessage('"error" must be an object', id)
    return Message(Kind.RESPONSE, fields, id)


def _id(fields: dict[str, Raw]) -> bytes | None:
    raw = fields.get("id")
    if raw is None:
        return None
    id = bytes(raw)
    if len(id) > MAX_ID:
        raise NotAMessage(f'"id" is over {MAX_ID} bytes')
    first = id[:1]
    if first == b'"':
        if text(id) is None:
            raise NotAMessage('"id" holds half a surrogate pair')
        return id
    if first in b"-0123456789":
        return id
    raise NotAMessage('"id" must be a string or a number')


def _oneLine(data: bytes) -> bytes:
    if b"\n" in data:
        data = data.replace(b"\n", b" ")
    if b"\r" in data:
        data = data.replace(b"\r", b" ")
    return data
