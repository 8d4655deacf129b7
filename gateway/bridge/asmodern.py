"""
A legacy server's words as the modern era has them (MCP 2026-07-28). Pure.

Requests lose what the handshake says there. Results gain what a modern one must have. Error codes
of the range that the specification keeps for itself (basic/index, "Error Codes") mean something
else in the modern era, or nothing:

| legacy | modern |
|---|---|
| -32002, resource not found | -32602 |
| -32042, a URL elicitation is required | `input_required`; without `elicitation.url`, -32021 |
| any other of -32020 … -32099 | -32603, `data.code` says which, `data.data` what came with it |

Everything else stays byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Raw

import gateway
from gateway.bridge.inputs import Declared, inputRequired, urlRequests
from gateway.wire.envelope import RESPONSE, Message, members, text
from gateway.wire.modern import (
    CACHEABLE,
    CLIENT_INFO,
    MAY_ASK,
    OWN_META,
    SERVER_INFO,
    SUBSCRIPTION_ID,
    errorCode,
    withMetas,
    withoutMetas,
)
from gateway.wire.refusals import errorMessage
from gateway.wire.revisions import LEGACY, MODERN
from gateway.wire.strictjson import withMember, withoutMember

__all__ = [
    "LEVELS",
    "asModern",
    "discovered",
    "helloFor",
    "isServed",
    "listenEnded",
    "metaOf",
    "tagged",
    "towardsServer",
]

_encode = msgspec.json.encode

_INTEGER = re.compile(rb"-?\d+")

_REMOVED = frozenset(
    {
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
    }
)

LEVELS = {
    name: rank
    for rank, name in enumerate(
        ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
    )
}
"""The log levels (RFC 5424), the most verbose first."""


_NAMES = ("name", "title", "version")
"""What of a client's description a server is told."""


_LONGEST = 1024
"""The longest of these, in bytes as spelled; they are kept with a session, and sent to children."""


def _isName(value: Raw | None) -> bool:
    return value is not None and len(bytes(value)) <= _LONGEST and text(bytes(value)) is not None


def isServed(method: str) -> bool:
    """Whether a request of this method may reach a legacy server: the modern era has it still."""
    return method not in _REMOVED and not method.startswith("tasks/")


def helloFor(request: Message, declared: Declared) -> bytes:
    """
    The `params` of an `initialize` for who sent this modern request: its client's name, title and
    version as spelled, or the gateway's own, and what it lets a server ask.

    The session may serve other clients of the same caller: what else a client says of itself is
    left out, for a server could refuse the handshake for it.
    """
    named = members(request.meta(CLIENT_INFO))
    info: dict[str, object] = {name: named[name] for name in _NAMES if _isName(named.get(name))}
    if "name" not in info or "version" not in info:
        info = {"name": "mcp-gateway", "version": gateway.__version__}
    return _encode(
        {
            "protocolVersion": LEGACY[0],
            "capabilities": declared.legacy(),
            "clientInfo": info,
        }
    )


def towardsServer(request: Message) -> Message:
    """
    A modern request as a legacy server gets it: without what its `_meta` says in place of a
    handshake, and without what only a retry has.
    """
    request = withoutMetas(request, OWN_META)
    for name in ("inputResponses", "requestState"):
        request = request.withoutParam(name)
    if request.method == "tools/call":
        # It would make a task of a call; the modern era knows no such parameter.
        request = request.withoutParam("task")
    return request


def metaOf(serverInfo: bytes | None) -> bytes | None:
    """The `_meta` of a result of our own; serverInfo: as the handshake spelled it."""
    return None if serverInfo is None else _encode({SERVER_INFO: Raw(serverInfo)})


def asModern(answer: Message, method: str, serverInfo: bytes | None, declared: Declared) -> Message:
    """
    The modern answer that says the same.

    method: of the request. serverInfo: as the handshake spelled it; None where it had none.
    declared: what the client lets the server ask.
    """
    if answer.isError:
        return _errorAsModern(answer, method, serverInfo, declared)
    result = bytes(answer.fields["result"])
    if result[:1] != b"{":
        return errorMessage(answer.id, -32603, "The server's result is no object")
    result = withMember(result, "resultType", b'"complete"')
    if method in CACHEABLE:
        # The server said nothing of either.
        result = withMember(result, "ttlMs", b"0")
        result = withMember(result, "cacheScope", b'"private"')
    if serverInfo is not None:
        spelled = members(result).get("_meta")
        meta = b"{}" if spelled is None or bytes(spelled)[:1] != b"{" else bytes(spelled)
        if SERVER_INFO not in members(meta):
            result = withMember(result, "_meta", withMember(meta, SERVER_INFO, serverInfo))
    return _with(answer, "result", result)


def _errorAsModern(
    answer: Message, method: str, serverInfo: bytes | None, declared: Declared
) -> Message:
    code = errorCode(answer)
    error = _wellFormed(bytes(answer.fields["error"]))
    if code == -32002:
        return _with(answer, "error", withMember(error, "code", b"-32602"))
    if code == -32042 and method in MAY_ASK:
        requests = urlRequests(answer.fields["error"])
        if requests and "url" in (declared.elicitation or ()):
            assert answer.id is not None
            # No state: its retry is the call anew, whoever gets it.
            return inputRequired(answer.id, requests, None, metaOf(serverInfo))
        if requests:
            needed: dict[str, object] = {"requiredCapabilities": {"elicitation": {"url": {}}}}
            error = withMember(error, "code", b"-32021")
            return _with(answer, "error", withMember(error, "data", _encode(needed)))
    if -32099 <= code <= -32020:
        said = members(error)
        data = {"code": Raw(b"%d" % code)}
        if "data" in said:
            data["data"] = said["data"]
        error = withMember(error, "code", b"-32603")
        return _with(answer, "error", withMember(error, "data", _encode(data)))
    return _with(answer, "error", error)


def _wellFormed(error: bytes) -> bytes:
    """An error with what it must have, a code and a message, where it has none of use."""
    said = members(error)
    if not _INTEGER.fullmatch(bytes(said.get("code", b""))):
        error = withMember(error, "code", b"-32603")
    if bytes(said.get("message", b""))[:1] != b'"':
        error = withMember(error, "message", b'"The server gave no reason"')
    return error


def _with(answer: Message, name: str, value: bytes) -> Message:
    fields = answer.fields.copy()
    fields[name] = Raw(value)
    return Message(RESPONSE, fields, answer.id)


def discovered(id: bytes, result: Mapping[str, Raw]) -> Message:
    """
    The answer to `server/discover` (server/discover): what the server said in `initialize`.

    id: as spelled. result: the members of its `initialize` result.
    """
    capabilities = bytes(result.get("capabilities", b"{}"))
    if capabilities[:1] != b"{":
        capabilities = b"{}"
    # Those of the modern era are an extension, with other methods.
    capabilities = withoutMember(capabilities, "tasks")
    said: dict[str, object] = {
        "resultType": "complete",
        "supportedVersions": list(MODERN),
        "capabilities": Raw(capabilities),
        "ttlMs": 0,
        "cacheScope": "private",
    }
    instructions = result.get("instructions")
    if instructions is not None and bytes(instructions)[:1] == b'"':
        said["instructions"] = instructions
    info = result.get("serverInfo")
    if info is not None and bytes(info)[:1] == b"{":
        said["_meta"] = Raw(metaOf(bytes(info)) or b"{}")
    fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(id), "result": Raw(_encode(said))}
    return Message(RESPONSE, fields, id)


def tagged(notification: Message, subscription: bytes) -> Message:
    """A notification as it goes out on a listen's stream; subscription: the listen's id."""
    return withMetas(notification, [(SUBSCRIPTION_ID, subscription)])


def listenEnded(id: bytes, serverInfo: bytes | None) -> Message:
    """The result that ends a `subscriptions/listen` in order (basic/patterns/subscriptions)."""
    meta: dict[str, Raw] = {SUBSCRIPTION_ID: Raw(id)}
    if serverInfo is not None:
        meta[SERVER_INFO] = Raw(serverInfo)
    result = {"resultType": "complete", "_meta": meta}
    fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(id), "result": Raw(_encode(result))}
    return Message(RESPONSE, fields, id)
