"""
The modern envelope (MCP 2026-07-28, basic/index, `_meta`): what a request says of itself, since no
handshake did, and the HTTP status an error has there.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Raw

from gateway.wire.envelope import RESPONSE, Message, members, quote
from gateway.wire.revisions import VERSION_CLAIM
from gateway.wire.strictjson import withMember, withoutMember

__all__ = [
    "CACHEABLE",
    "CLIENT_CAPABILITIES",
    "CLIENT_INFO",
    "LISTEN",
    "LOG_LEVEL",
    "MAY_ASK",
    "OWN_META",
    "SERVER_INFO",
    "SUBSCRIPTION_ID",
    "errorCode",
    "listenCompleted",
    "statusOf",
    "withMetas",
    "withoutMetas",
]

CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
CLIENT_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
LOG_LEVEL = "io.modelcontextprotocol/logLevel"
SERVER_INFO = "io.modelcontextprotocol/serverInfo"
SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"

OWN_META = (VERSION_CLAIM, CLIENT_INFO, CLIENT_CAPABILITIES, LOG_LEVEL)
"""What a request's `_meta` says in the modern era, and the handshake said before."""

LISTEN = "subscriptions/listen"
"""The request whose response is a stream that stays open (basic/patterns/subscriptions)."""

CACHEABLE = frozenset(
    {
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)
"""The methods whose results carry `ttlMs` and `cacheScope` (server/utilities/caching)."""

MAY_ASK = frozenset({"tools/call", "prompts/get", "resources/read"})
"""The methods that may be answered by `input_required` (basic/patterns/mrtr)."""

_STATUSES = {
    -32700: 400,
    -32600: 400,
    -32602: 400,
    -32020: 400,
    -32021: 400,
    -32022: 400,
    -32601: 404,
}


def statusOf(code: int) -> int:
    """The HTTP status of a JSON-RPC error that is a whole answer; 200 where none is given."""
    return _STATUSES.get(code, 200)


def errorCode(message: Message) -> int:
    """The code of an error response; 0 where it has none that is an integer."""
    code = bytes(members(message.fields.get("error")).get("code", b"0"))
    digits = code[1:] if code[:1] == b"-" else code
    return int(code) if digits.isdigit() and len(digits) < 16 else 0


def withMetas(message: Message, metas: Iterable[tuple[str, bytes]]) -> Message:
    """The same message with several members of `params._meta`, in one rewriting."""
    spelled = message.param("_meta")
    meta = b"{}" if spelled is None or spelled[:1] != b"{" else spelled
    for name, value in metas:
        meta = withMember(meta, name, value)
    return message.withParam("_meta", meta)


def withoutMetas(message: Message, names: Iterable[str]) -> Message:
    """The same message without these members of `params._meta`; an empty `_meta` goes, too."""
    spelled = message.param("_meta")
    if spelled is None or spelled[:1] != b"{":
        return message
    meta = spelled
    held = members(Raw(meta))
    for name in names:
        if name in held:
            meta = withoutMember(meta, name)
    if meta == spelled:
        return message
    return message.withParam("_meta", meta) if members(Raw(meta)) else message.withoutParam("_meta")


def listenCompleted(id: bytes) -> Message:
    """
    The answer to a `subscriptions/listen` whose stream ends in order (basic/patterns/subscriptions,
    Graceful Closure); id as spelled.
    """
    result = b'{"resultType":"complete","_meta":{%b:%b}}' % (quote(SUBSCRIPTION_ID), id)
    fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(id), "result": Raw(result)}
    return Message(RESPONSE, fields, id)
