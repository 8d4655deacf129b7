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
 7. What is known to carry a credential, or a proxy's word on who the user is, unless the
    configuration says so.
 8. Names that are no token or have an underscore, which some servers read as a dash.
 9. Values with a control character: nothing is repaired.

The configuration may set whatever is not reserved. Reserved are of these what the gateway or its
HTTP sets itself, and `Mcp-Method`, `Mcp-Name` and `Mcp-Param-*`, which say what is in a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.wire.context import CallContext, HeaderPairs

__all__ = [
    "RESERVED",
    "RESERVED_FAMILIES",
    "TCHAR",
    "configuredHeaders",
    "credentialsAmong",
    "fieldLines",
    "forwardableHeaders",
    "forwardingHeaders",
    "isCredential",
    "isFieldValue",
    "isReserved",
    "nominated",
    "requestHeaders",
]

TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""What a token is made of (RFC 9110 section 5.6.2), as a regular expression."""

_TOKEN = re.compile(TCHAR + rb"+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(rb"[!-~]+")

_OURS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "last-event-id",
        "mcp-protocol-version",
        "mcp-session-id",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "x-real-ip",
    }
)
_OUR_FAMILIES = ("content-", "proxy-", "x-forwarded-")

RESERVED = _OURS | {"mcp-method", "mcp-name"}
RESERVED_FAMILIES = (*_OUR_FAMILIES, "mcp-param-")
"""What the configuration may not set: names, and what names may not begin with."""

_NEVER = frozenset(
    {
        *(name.encode("ascii") for name in _OURS),
        b"client-ip",
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
        b"x-rewrite-url",
    }
)
_NEVER_FAMILIES = (
    *(family.encode("ascii") for family in _OUR_FAMILIES),
    b"access-control-",
    b"if-",
    b"sec-",
    b"x-original-",
)
_CREDENTIALS = frozenset(
    {
        b"api-key",
        b"apikey",
        b"authorization",
        b"cookie",
        b"job-token",
        b"private-token",
        b"remote-user",
        b"x-access-token",
        b"x-amz-security-token",
        b"x-api-key",
        b"x-api-token",
        b"x-apikey",
        b"x-authorization",
        b"x-github-token",
        b"x-gitlab-token",
        b"x-remote-user",
        b"x-vault-token",
    }
)
_CREDENTIAL_FAMILIES = (
    b"cf-access-",
    b"x-amzn-oidc-",
    b"x-auth-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ms-token-",
)


def forwardableHeaders(
    pairs: Iterable[tuple[bytes, bytes]], forwardAuthorization: bool
) -> HeaderPairs:
    """
    The fields of a client's request that may go on to an HTTP server.

    pairs: (name, value) as they came; names in any case.
    forwardAuthorization: whether credentials pass: Authorization, Cookie, X-API-Key and their
        like (`_CREDENTIALS`).
    Returns: what passes, in order, names in lower case. Applied again, it changes nothing.
    """
    lowered = [(name.lower(), value) for name, value in pairs]
    hops = nominated(lowered)
    return tuple(
        (name, value)
        for name, value in lowered
        if name not in _NEVER
        and name not in hops
        and not name.startswith(_NEVER_FAMILIES)
        and (forwardAuthorization or not isCredential(name))
        and b"_" not in name
        and _TOKEN.fullmatch(name)
        and isFieldValue(value)
    )


def nominated(pairs: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The fields that `Connection` keeps to one hop (RFC 9110 section 7.6.1); in lower case."""
    return {
        token.strip(b" \t").lower()
        for name, value in pairs
        if name == b"connection"
        for token in value.split(b",")
    }


def requestHeaders(
    own: Iterable[tuple[bytes, bytes]],
    configured: HeaderPairs,
    forwardAuthorization: bool,
    context: CallContext | None,
) -> HeaderPairs:
    """
    The header of a request to an HTTP server.

    own: what the link says. configured: names in lower case; they win over what is forwarded.
    context: of the call it is made for; None: nothing of a client goes with it.
    """
    pairs = [*own, (b"accept-encoding", b"identity")]
    if context is not None:
        ours = {name for name, _ in configured}
        forwarded = forwardableHeaders(context.headers, forwardAuthorization)
        pairs += [pair for pair in (*forwardingHeaders(context), *forwarded) if pair[0] not in ours]
    return (*pairs, *configured)


def fieldLines(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """
    Fields as they stand in the head of a request.

    pairs: (name, value); each name is spelled with capitals, as some servers want it.
    Raises: ValueError, showing neither, for a name or value that would break the head.
    """
    lines = []
    for name, value in pairs:
        if not _TOKEN.fullmatch(name) or not isFieldValue(value):
            raise ValueError("a header field that cannot be sent")
        lines.append(b"%b: %b\r\n" % (name.title(), value))
    return b"".join(lines)


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
        if isReserved(name.decode("ascii")):
            raise ValueError(f"header {text!r} is set by the gateway itself")
        pairs.append((name, spelled.strip(b" \t")))
    return tuple(pairs)


def isReserved(name: str) -> bool:
    """Whether the configuration may not set a field; name: in lower case."""
    return name in RESERVED or name.startswith(RESERVED_FAMILIES)


def isFieldValue(value: bytes) -> bool:
    """Whether bytes may stand as a field's value: no control character but the tab."""
    return _VALUE.fullmatch(value) is not None


def credentialsAmong(pairs: HeaderPairs) -> HeaderPairs:
    """Those of a request's fields that say who asks; names in lower case."""
    return tuple((name, value) for name, value in pairs if isCredential(name))


def isCredential(name: bytes) -> bool:
    """Whether a field is known to carry a credential; name: in lower case."""
    return name in _CREDENTIALS or name.startswith(_CREDENTIAL_FAMILIES)
