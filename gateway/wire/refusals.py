"""
Every answer by which the gateway itself refuses a request or fails a call.

One shape: compact JSON, one JSON-RPC error object. The request's id is echoed as spelled; without
one the key is left out, never null. `sessionNotFound` is the only place that builds the answer to
a lost session, and -32001 on 404 means nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import msgspec
from attrs import frozen
from msgspec import Raw

from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import Kind, Message
from gateway.wire.revisions import LEGACY
from gateway.wire.strictjson import withMember

__all__ = [
    "JSON_TYPE",
    "FailedCall",
    "Reason",
    "Refusal",
    "atCapacity",
    "badRequest",
    "callFailed",
    "discoverNotServed",
    "errorMessage",
    "failedModern",
    "headersDisagree",
    "invalidParams",
    "lostWithSession",
    "malformedHead",
    "methodNotAllowed",
    "methodNotFound",
    "modernCallFailed",
    "noStream",
    "notAMessage",
    "notAcceptable",
    "notAllowedHere",
    "notAuthenticated",
    "notFound",
    "notJSON",
    "notPermitted",
    "notServedOverSSE",
    "queueFull",
    "sessionNotFound",
    "sessionRequired",
    "shuttingDown",
    "tooLarge",
    "tooManyConnections",
    "tooSlow",
    "unknownServer",
    "unsupportedMediaType",
    "unsupportedModernVersion",
    "unsupportedVersion",
]

JSON_TYPE = (b"content-type", b"application/json")

_encode = msgspec.json.encode


class Reason(Enum):
    """Why a call or a handshake failed: `data.reason` of the wire contract."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    SERVER_EXITED = "server_exited"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    OUTCOME_UNKNOWN = "outcome_unknown"
    BAD_ANSWER = "bad_answer"
    OVERLOADED = "overloaded"
    RATE_LIMITED = "rate_limited"
    FORBIDDEN = "forbidden"
    SHUTTING_DOWN = "shutting_down"


_FAILURES = {
    Reason.TIMEOUT: 504,
    Reason.CANCELLED: 503,
    Reason.SERVER_EXITED: 502,
    Reason.UPSTREAM_UNREACHABLE: 502,
    Reason.OUTCOME_UNKNOWN: 502,
    Reason.BAD_ANSWER: 502,
    Reason.OVERLOADED: 503,
    Reason.RATE_LIMITED: 503,
    Reason.FORBIDDEN: 403,
    Reason.SHUTTING_DOWN: 503,
}
"""The HTTP status of a modern call that failed."""


class FailedCall(Message):
    """The answer that the gateway itself gives to a call that failed; why: `data.reason`."""

    why: Reason = Reason.BAD_ANSWER


@frozen
class Refusal:
    """
    A refused request, before it is given an id.

    status: the HTTP status. code, message, data: the JSON-RPC error's members.
    headers: fields beside Content-Type.
    """

    status: int
    code: int
    message: str
    data: dict[str, object] | None = None
    headers: HeaderPairs = ()

    def body(self, id: bytes | None = None) -> bytes:
        """The JSON-RPC error as bytes; id as spelled, or None to leave the key out."""
        return errorMessage(id, self.code, self.message, self.data).encode()

    def fields(self) -> HeaderPairs:
        """The answer's header fields."""
        return (JSON_TYPE, *self.headers)


def errorMessage(
    id: bytes | None, code: int, message: str, data: dict[str, object] | None = None
) -> Message:
    """An error response; id as spelled, or None to leave the key out."""
    error: dict[str, object] = {"code": code, "message": message}
    if data:
        error["data"] = data
    fields = {"jsonrpc": Raw(b'"2.0"')}
    if id is not None:
        fields["id"] = Raw(id)
    fields["error"] = Raw(_encode(error))
    return Message(Kind.RESPONSE, fields, id)


def sessionNotFound() -> Refusal:
    """
    The legacy session a request names is not there for it: 404, -32001.

    Unknown, expired, deleted, malformed, another principal's or another server's look the same.
    A client that sees it starts a new session (MCP 2025-11-25, basic/transports, Session
    Management, 4).
    """
    return Refusal(404, -32001, "Session not found")


def sessionRequired(needed: str) -> Refusal:
    """A legacy request other than `initialize` came without a session id."""
    return Refusal(400, -32000, f"A session is required: {needed}")


def malformedHead(why: str) -> Refusal:
    """RFC 9112 section 3.2: a server must refuse a request whose Host is missing or wrong."""
    return Refusal(400, -32000, f"Bad request: {why}")


def badRequest(status: int, why: str) -> Refusal:
    """What came is no request we take (RFC 9112, RFC 9110): 400, 414, 417, 431, 501 or 505."""
    return Refusal(status, -32000, f"Bad request: {why}")


def tooSlow() -> Refusal:
    """RFC 9110 section 15.5.9: the request did not come in time."""
    return Refusal(408, -32000, "The request did not come in time")


def tooManyConnections(retryAfter: int) -> Refusal:
    """No room for another connection; retryAfter in seconds."""
    return Refusal(
        503,
        -32000,
        "Too many connections, try again later",
        headers=((b"retry-after", b"%d" % retryAfter),),
    )


def notAllowedHere(what: str) -> Refusal:
    """A Host or Origin that is not allowed (DNS rebinding)."""
    return Refusal(403, -32000, f"{what} is not allowed")


def notFound() -> Refusal:
    """No such path."""
    return Refusal(404, -32000, "Not found")


def unknownServer() -> Refusal:
    """The path names no configured server."""
    return Refusal(404, -32000, "Unknown server")


def methodNotAllowed(allow: bytes) -> Refusal:
    """RFC 9110 section 15.5.6; allow: the value of Allow."""
    return Refusal(405, -32000, "Method not allowed", headers=((b"allow", allow),))


def noStream(allow: bytes) -> Refusal:
    """There is no event stream to open or to resume here."""
    return Refusal(405, -32000, "No event stream here", headers=((b"allow", allow),))


def notAuthenticated(challenge: bytes) -> Refusal:
    """RFC 9110 section 15.5.2; challenge: the value of WWW-Authenticate."""
    return Refusal(
        401, -32000, "Authentication required", headers=((b"www-authenticate", challenge),)
    )


def notPermitted() -> Refusal:
    """The principal may not use this server."""
    return Refusal(403, -32000, "Not permitted")


def tooLarge(limit: int) -> Refusal:
    """A body over the limit (bytes)."""
    return Refusal(413, -32000, f"Body is over {limit} bytes")


def unsupportedMediaType() -> Refusal:
    """A POST that is not JSON in UTF-8."""
    return Refusal(415, -32000, "Content-Type must be application/json in UTF-8")


def notAcceptable(needed: str) -> Refusal:
    """Accept allows nothing we can answer with."""
    return Refusal(406, -32000, f"Accept must allow {needed}")


def notJSON(why: str) -> Refusal:
    """The body is no JSON text we take."""
    return Refusal(400, -32700, f"Parse error: {why}")


def notAMessage(why: str) -> Refusal:
    """The body is no JSON-RPC 2.0 message."""
    return Refusal(400, -32600, f"Invalid request: {why}")


def unsupportedVersion() -> Refusal:
    """An MCP-Protocol-Version that no revision has and this session did not negotiate."""
    supported = ", ".join(LEGACY)
    return Refusal(400, -32000, f"Unsupported protocol version (supported versions: {supported})")


def methodNotFound() -> Refusal:
    """A method that the modern era does not have (MCP 2026-07-28, basic/transports)."""
    return Refusal(404, -32601, "Method not found")


def unsupportedModernVersion(requested: str, supported: Sequence[str] = LEGACY) -> Refusal:
    """
    A modern request of a revision that is not served (MCP 2026-07-28, basic/versioning).

    supported: the revisions it may ask for. Where they are legacy ones, dual-era clients fall back
    to `initialize`.
    """
    if requested == "":
        requested = "unknown"
    return Refusal(
        400,
        -32022,
        "Unsupported protocol version",
        {"supported": list(supported), "requested": requested[:64]},
    )


def discoverNotServed() -> Refusal:
    """`server/discover` to a server that is served in the legacy era alone."""
    return Refusal(400, -32000, "This server is served with initialize; fall back to it")


def notServedOverSSE(requested: str) -> Refusal:
    """A modern request on the transport of 2024-11-05."""
    refusal = unsupportedModernVersion(requested)
    why = "HTTP+SSE is of 2024-11-05: this revision is served at /mcp"
    return Refusal(refusal.status, refusal.code, why, refusal.data)


def headersDisagree(why: str) -> Refusal:
    """
    A header field of a modern request that says something else than its body, or is missing
    (MCP 2026-07-28, basic/transports/streamable-http, Server Validation).
    """
    return Refusal(400, -32020, f"Header mismatch: {why}")


def invalidParams(why: str) -> Refusal:
    """A modern request that does not say of itself what it must (basic/index, `_meta`)."""
    return Refusal(400, -32602, f"Invalid params: {why}")


def modernCallFailed(reason: Reason, message: str, retryAfter: int = 0) -> Refusal:
    """A modern call that the gateway itself fails; retryAfter in seconds, 0 without."""
    headers = ((b"retry-after", b"%d" % retryAfter),) if retryAfter else ()
    return Refusal(_FAILURES[reason], -32603, message, {"reason": reason.value}, headers)


def atCapacity(retryAfter: int) -> Refusal:
    """No room for another session; retryAfter in seconds."""
    return Refusal(
        503,
        -32000,
        "No room for another session, try again later",
        headers=((b"retry-after", b"%d" % retryAfter),),
    )


def queueFull(retryAfter: int) -> Refusal:
    """A notification or response that the server's queue did not take; retryAfter in seconds."""
    return Refusal(
        503,
        -32000,
        "The server does not keep up, try again later",
        headers=((b"retry-after", b"%d" % retryAfter),),
    )


def shuttingDown(retryAfter: int) -> Refusal:
    """The gateway takes no new work; retryAfter in seconds."""
    return Refusal(
        503,
        -32000,
        "The gateway is shutting down",
        {"reason": Reason.SHUTTING_DOWN.value},
        headers=((b"retry-after", b"%d" % retryAfter),),
    )


def callFailed(
    id: bytes | None, reason: Reason, message: str, retryAfter: float = 0.0
) -> FailedCall:
    """
    The answer to a call that failed in a live session: HTTP 200 with this error.

    retryAfter: seconds after which trying again may help, where that is known.
    """
    data: dict[str, object] = {"reason": reason.value}
    if retryAfter:
        data["retryAfterMs"] = math.ceil(retryAfter * 1000)
    answer = errorMessage(id, -32000, message, data)
    return FailedCall(answer.kind, answer.fields, id, why=reason)


def failedModern(failed: FailedCall) -> tuple[int, Message]:
    """The HTTP status and the answer by which a modern client hears of a call that failed."""
    error = withMember(bytes(failed.fields["error"]), "code", b"-32603")
    fields = {**failed.fields, "error": Raw(error)}
    return _FAILURES[failed.why], Message(Kind.RESPONSE, fields, failed.id)


def lostWithSession(id: bytes) -> Message:
    """The answer to a call whose session was lost when its stream was open already."""
    why = "the server went away and the session with it"
    return callFailed(id, Reason.SERVER_EXITED, why)
