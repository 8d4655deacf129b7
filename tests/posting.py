"""Requests as bytes to a gateway that serves, for tests that count what comes back."""

from __future__ import annotations

import json

from live import Live
from processes import Gateway
from raw import RawClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

__all__ = ["connected", "posted"]


def connected(gateway: Live | Gateway) -> Deferred[RawClient]:
    """A raw client of a gateway."""
    port = int(gateway.base.rpartition(":")[2])
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    return connectProtocol(endpoint, RawClient())


def posted(base: str, path: str, session: str, message: object, method: str = "POST") -> bytes:
    """The bytes of a request."""
    body = b"" if message is None else json.dumps(message).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {base.removeprefix('http://')}",
        "Accept: application/json, text/event-stream",
    ]
    if session:
        lines.append(f"Mcp-Session-Id: {session}")
    if message is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
