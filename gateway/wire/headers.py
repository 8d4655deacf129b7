"""
Header fields on their way to an HTTP server.

What never passes, and why:

 1. Hop-by-hop fields, and those that `Connection` nominates (RFC 9110 section 7.6.1); `Proxy-*`.
 2. What frames or describes the body, for the message is written anew: `Content-*`,
    `Transfer-Encoding`, `Expect`; and what bears on a stored representation: `Range`, `If-*`.
 3. `Host`, and what some servers read in its place: the target comes from the configuration.
 4. What the link sets itself: `Accept`, `Accept-Encoding`, the session id, the MCP version,
    `Last-Event-ID`.
 5. Forwarding fields: they are made anew by `forwardingHeaders`.
 6. What a browser says of the page it shows: `Origin`, `Sec-*`, `Access-Control-*`. It was judged
    at our door.
 7. `Authorization` and `Cookie`, unless the configuration says so.
 8. Names that are no token or have an underscore, which some servers read as a dash.
 9. Values with a control character: nothing is repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.wire.context import CallContext, HeaderPairs

__all__ = ["configuredHeaders", "forwardableHeaders", "forwardingHeaders", "isFieldValue"]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(rb"[!-~]+")

_FRAMING = frozenset(
    {
        b"connection",
        b"expect",
        b"host",
        b"keep-alive",
        b"te",
        b"trailer",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OURS = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"last-event-id",
        b"mcp-protocol-version",
        b"mcp-session-id",
    }
)
_NEVER = (
    _FRAMING
    | _OURS
    | {
        b"client-ip",
        b"forwarded",
        b"http2-settings",
        b"mcp-init-host",
        b"origin",
        b"range",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-host",
        b"x-http-host-override",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-real-ip",
        b"x-rewrite-url",
    }
)
_FAMILIES = (
    b"access-control-",
    b"content-",
    b"if-",
    b"proxy-",
    b"sec-",
    b"x-forwarded-",
    b"x-original-",
)
_CREDENTIALS = frozenset({b"authorization", b"cookie"})


def forwardableHeaders(
    pairs: Iterable[tuple[bytes, bytes]], forwardAuthorization: bool
) -> HeaderPairs:
    """
    The fields of a client's request that may go on to an HTTP server.

    pairs: (name, value) as they came; names in any case.
    forwardAuthorization: whether Authorization and Cookie pass.
    Returns: what passes, in order, names in lower case. Applied again, it changes nothing.
    """
    lowered = [(name.lower(), value) for name, value in pairs]
    nominated = {
        token.strip(b" \t").lower()
        for name, value in lowered
        if name == b"connection"
        for token in value.split(b",")
    }
    return tuple(
        (name, value)
        for name, value in lowered
        if name not in _NEVER
        and name not in nominated
        and not name.startswith(_FAMILIES)
        and (forwardAuthorization or name not in _CREDENTIALS)
        and b"_" not in name
        and _TOKEN.fullmatch(name)
        and isFieldValue(value)
    )


def forwardingHeaders(context: CallContext) -> HeaderPairs:
    """
    X-Forwarded-For, -Proto and -Host for a request: the one set we send, made of what we saw.

    Whatever the client sent under these names or as `Forwarded` (RFC 7239) is not believed.
    """
    pairs = [(b"x-forwarded-proto", b"https" if context.tls else b"http")]
    peer = context.peer.encode("ascii", "replace")
    if peer and _HOST.fullmatch(peer):
        pairs.append((b"x-forwarded-for", peer))
    if _HOST.fullmatch(context.host):
        pairs.append((b"x-forwarded-host", context.host))
    return tuple(pairs)


def configuredHeaders(headers: dict[str, str]) -> HeaderPairs:
    """
    A server's configured fields, names in lower case.

    Raises: ValueError, naming the field and never its value, for one that is malformed or that
        the gateway sets itself.
    """
    pairs = []
    for text, value in headers.items():
        try:
            name, spelled = text.encode("ascii").lower(), value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"header {text!r} cannot be sent") from None
        if not _TOKEN.fullmatch(name) or not isFieldValue(spelled):
            raise ValueError(f"header {text!r} is malformed")
        if name in _FRAMING or name in _OURS or name in (b"content-length", b"content-type"):
            raise ValueError(f"header {text!r} is set by the gateway itself")
        pairs.append((name, spelled.strip(b" \t")))
    return tuple(pairs)


def isFieldValue(value: bytes) -> bool:
    """Whether bytes may stand as a field's value: no control character but the tab."""
    return _VALUE.fullmatch(value) is not None
