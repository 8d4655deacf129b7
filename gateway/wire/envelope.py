"""
JSON-RPC 2.0 messages as envelopes: the members that route a message are judged, everything
else is carried byte for byte.

Rules, each with what breaks it (JSON-RPC 2.0; MCP base protocol):

 1. UTF-8, no byte order mark                                  NotJSON
 2. JSON (RFC 8259): no NaN, no trailing bytes                 NotJSON
 3. nested at most MAX_DEPTH deep                              NotJSON
 4. no member of the message itself twice, however spelled,
    at most MAX_MEMBERS, no half surrogate pair in a name      NotJSON
 5. an object (an array is a batch, for `decode` to split)     NotAMessage
 6. "jsonrpc" is exactly "2.0"                                 NotAMessage
 7. "method" is a string; "params" an object or an array       NotAMessage
 8. "id" is a string or a number of at most MAX_ID bytes       NotAMessage
 9. a response has an id and one of "result" and "error"       NotAMessage

Values stay as spelled: `1`, `1.0`, `1e0` and `2^53+1` come back as they went, lone surrogates
included. Whitespace between members may change; CR and LF in it become spaces, since stdio and
SSE frame with them (inside a JSON string neither can stand raw, so no value changes). A member
of an inner object may come twice and is relayed so; of an object that we rewrite, the last stays.

Time and memory are linear in the length of the text, whatever it holds: the expressions below
never try a byte a second time (their repeats are possessive).
"""

from __future__ import annotations

import re
import secrets
from array import array
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import accumulate
from typing import TypeVar

import msgspec
from attrs import define, field
from msgspec import Raw

__all__ = [
    "MAX_BATCH",
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
    "text",
]

MAX_DEPTH = 512
MAX_ID = 4096
MAX_MEMBERS = 256
MAX_BATCH = 10_000

_T = TypeVar("_T")

_decodeAny = msgspec.json.Decoder(Raw).decode
_decodeMembers = msgspec.json.Decoder(dict[str, Raw]).decode
_decodeItems = msgspec.json.Decoder(list[Raw]).decode
_decodeString = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_WS = b" \t\n\r"
_KEY = re.compile(rb'[ \t\n\r]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\n\r]*+:[ \t\n\r]*+')
_SEPARATOR = re.compile(rb"[ \t\n\r]*+[,}]")
_OTHER = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_ID = re.compile(rb'"id"[ \t\n\r]*+:[ \t\n\r]*+(\d{1,18}+)(?=[ \t\n\r]*+[,}])')
_BROKEN_ESCAPE = re.compile(rb"\\u[dD](?![0-9a-fA-F]{3})")
# Stands for the \u of surrogates while the decoder, which refuses a half pair, reads a text. Nobody
# outside can know it, so it stands for nothing else.
_MARK = b"surrogate-" + secrets.token_hex(8).encode()
_MARK_TEXT = _MARK.decode()


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
        # Scanning for the key first spares large params a second parse; an escape may hide it.
        whole = bytes(raw)
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
        """
        The same message with one member of `params` replaced, or added, by a JSON text.

        Parameters in an array have no names: such a message stays as it is.
        """
        params = self.fields.get("params")
        spelled = b"{}" if params is None else bytes(params)
        if spelled[:1] != b"{":
            return self
        fields = self.fields.copy()
        fields["params"] = Raw(_withMember(spelled, name, value))
        return Message(self.kind, fields, self.id, self.method)

    def withMeta(self, name: str, value: bytes) -> Message:
        """The same with one member of `params._meta`; a `_meta` that is no object is replaced."""
        meta = self.param("_meta")
        spelled = b"{}" if meta is None or meta[:1] != b"{" else meta
        return self.withParam("_meta", _withMember(spelled, name, value))


def members(raw: Raw | bytes | None) -> dict[str, Raw]:
    """The members of a JSON object that was already accepted; {} for anything else."""
    if raw is None:
        return {}
    data = bytes(raw)
    if data[:1] != b"{":
        return {}
    try:
        return _decodeMembers(data)
    except _REFUSED:
        return {name: Raw(_unmasked(value)) for name, value in _maskedMembers(data).items()}


def text(raw: bytes | None) -> str | None:
    """A JSON string's value; None for anything else, or where it has half a surrogate pair."""
    if raw is None or raw[:1] != b'"':
        return None
    try:
        return _decodeString(raw)
    except _REFUSED:
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


def decode(data: bytes, maxBatch: int = MAX_BATCH) -> Message | list[Message | NotAMessage]:
    """
    Decode one message or a batch.

    maxBatch: how many members a batch may have.
    Returns: the message; for an array, each member decoded, a bad one as its exception.
    Raises: NotJSON, NotAMessage.
    """
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise NotJSON("not UTF-8") from None
    start = data[:1]
    if start in (b" ", b"\t", b"\n", b"\r"):
        start = data.lstrip(_WS)[:1]
    if start == b"{":
        return _message(_fields(data))
    if start == b"[":
        return _batch(data, maxBatch)
    _parsed(_decodeAny, data)
    raise NotAMessage("a message is a JSON object")


def salvageID(data: bytes) -> bytes | None:
    """
    The id that a text which broke a rule seems to carry, so that its call can be failed.

    Returns: the integer id as spelled; None where the message itself, as opposed to an object
        within it, shows none. Of two, the last.
    """
    for found in (_ID.match(data, max(0, data.rfind(b'"id"'))), _ID.search(data)):
        if found is None:
            continue
        before = _brackets(data[: found.start()])
        objects = before.count(b"{") - before.count(b"}")
        arrays = before.count(b"[") - before.count(b"]")
        if (objects, arrays) == (1, 0):
            return found[1]
    return None


def _brackets(data: bytes) -> bytes:
    """The brackets of a text, those in strings left out."""
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHER)
    # What is left of strings is quotes, and what they hide. Two next to each other hide nothing.
    return b"".join(marks.replace(b'""', b"").split(b'"')[::2])


def _depth(data: bytes) -> int:
    """How deep an accepted text is nested."""
    return max(accumulate(array("b", _brackets(data).translate(_STEPS))), default=0)


def _parsed(decoder: Callable[[bytes], _T], data: bytes) -> tuple[_T, bytes]:
    """
    What a decoder makes of a text; rules 2 and 3.

    Returns: that, and the text as it was read: with surrogates masked where there is half a
        pair, for JSON allows them (RFC 8259 section 8.2) and the decoder does not.
    """
    try:
        try:
            parsed = decoder(data)
        except msgspec.DecodeError:
            data = _masked(data)
            parsed = decoder(data)
    except RecursionError:
        raise NotJSON(f"nested deeper than {MAX_DEPTH}") from None
    except msgspec.DecodeError as error:
        raise NotJSON("not JSON") from error
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise NotJSON(f"nested deeper than {MAX_DEPTH}")
    return parsed, data


def _fields(data: bytes) -> dict[str, Raw]:
    """The members of a message; rules 2, 3 and 4."""
    fields, read = _parsed(_decodeMembers, data)
    if len(fields) > MAX_MEMBERS:
        raise NotJSON(f"over {MAX_MEMBERS} members")
    # A text without spaces and escapes has just this length. Whatever else stands in it,
    # an earlier twin of a member too, makes it longer.
    length = sum([len(name) + len(memoryview(value)) + 4 for name, value in fields.items()]) + 1
    if len(read) != length and _hasTwins(read, fields):
        raise NotJSON("a member comes twice")
    if read is data:
        return fields
    named = {_realName(name): Raw(_unmasked(value)) for name, value in fields.items()}
    if len(named) != len(fields):
        raise NotJSON("a member comes twice")
    return named


def _realName(name: str) -> str:
    if _MARK_TEXT not in name:
        return name
    real = text(_unmasked(_encode(name)))
    if real is None:
        raise NotJSON("half a surrogate pair in a member's name")
    return real


def _hasTwins(data: bytes, fields: dict[str, Raw]) -> bool:
    """
    Whether a member of an object comes twice.

    The decoder keeps the last of two members with one name. Walking the text along the values
    it kept, an earlier twin shows: what stands there is not the value kept, or the name comes
    again.
    """
    names: set[str] = set()
    at = data.index(b"{") + 1
    while (key := _KEY.match(data, at)) is not None:
        name: str = _decodeString(key[1])
        value = bytes(fields[name])
        if name in names or not data.startswith(value, key.end()):
            return True
        names.add(name)
        separator = _SEPARATOR.match(data, key.end() + len(value))
        if separator is None:
            return True
        at = separator.end()
    return False


def _masked(data: bytes) -> bytes:
    """
    The text with the escapes of surrogates (and of their neighbours, U+D000 and up) masked.

    NUL stands in for escaped backslashes, so that those left begin an escape. A text that has
    one itself, or an escape cut short, is no JSON and comes back for the decoder to refuse.
    """
    if b"\x00" in data:
        return data
    bare = data.replace(b"\\\\", b"\x00\x00")
    if _BROKEN_ESCAPE.search(bare) is not None:
        return data
    for letter in (b"d", b"D"):
        bare = bare.replace(b"\\u" + letter, _MARK + letter)
    return bare.replace(b"\x00\x00", b"\\\\")


def _unmasked(value: Raw | bytes) -> bytes:
    return bytes(value).replace(_MARK, b"\\u")


def _maskedMembers(data: bytes) -> dict[str, Raw]:
    try:
        return _decodeMembers(_masked(data))
    except _REFUSED:
        return {}


def _withMember(data: bytes, name: str, value: bytes) -> bytes:
    """An accepted object with one member replaced or added."""
    try:
        fields = _decodeMembers(data)
    except _REFUSED:
        fields = _maskedMembers(data)
        fields[name] = Raw(value)
        return _unmasked(_encode(fields))
    fields[name] = Raw(value)
    return _encode(fields)


def _batch(data: bytes, limit: int) -> list[Message | NotAMessage]:
    items, _ = _parsed(_decodeItems, data)
    if len(items) > limit:
        raise NotAMessage(f"a batch has at most {limit} messages")
    return [_member(_unmasked(item)) for item in items]


def _member(data: bytes) -> Message | NotAMessage:
    """One of a batch; a bad one fails itself alone."""
    if data[:1] != b"{":
        return NotAMessage("a message is a JSON object")
    try:
        return _message(_fields(data))
    except NotAMessage as error:
        return error
    except NotJSON as error:
        return NotAMessage(str(error))


def _message(fields: dict[str, Raw]) -> Message:
    """Rules 6 to 9."""
    id = _id(fields)
    version = fields.get("jsonrpc")
    if version is None or (bytes(version) != b'"2.0"' and text(bytes(version)) != "2.0"):
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
