"""
CORS for browser clients whose Origin was allowed (WHATWG Fetch, section 3.2).

A foreign Origin never gets here, so what is here may name the Origin it answers.
"""

from __future__ import annotations

import re

from gateway.wire.context import HeaderPairs
from gateway.wire.exchange import RequestHead
from gateway.wire.headers import TCHAR

__all__ = ["preflight", "shared"]

_EXPOSED = b"Mcp-Session-Id, WWW-Authenticate"
_ALLOWED = (
    b"Accept, Authorization, Content-Type, Last-Event-ID, Mcp-Protocol-Version, Mcp-Session-Id, "
    b"Mcp-Method, Mcp-Name"
)
_PARAM = re.compile(rb"mcp-param-" + TCHAR + rb"+", re.IGNORECASE)


def shared(head: RequestHead) -> HeaderPairs:
    """The fields that let an allowed Origin read an answer; none without an Origin."""
    origin = head.header(b"origin")
    if origin is None:
        return ()
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    )


def preflight(head: RequestHead, allow: bytes) -> HeaderPairs:
    """The answer to OPTIONS, beside `shared`; allow: the value of Allow."""
    fields: HeaderPairs = ((b"allow", allow),)
    if head.header(b"origin") is None:
        return fields
    return (
        *fields,
        (b"access-control-allow-methods", allow),
        (b"access-control-allow-headers", b", ".join((_ALLOWED, *_params(head)))),
        (b"access-control-max-age", b"600"),
    )


def _params(head: RequestHead) -> list[bytes]:
    """The fields of a tool's parameters that are asked for: their names are the servers' own."""
    asked = b",".join(head.headerValues(b"access-control-request-headers"))
    names = (name.strip(b" \t") for name in asked.split(b","))
    return [name for name in names if _PARAM.fullmatch(name)]
