"""Who calls, what for and until when: the facts of a call that travel to the link."""

from __future__ import annotations

from attrs import define, frozen

__all__ = ["ANONYMOUS", "CallContext", "HeaderPairs", "Principal"]

HeaderPairs = tuple[tuple[bytes, bytes], ...]
"""Header fields in the order they came: (lower-case name, value)."""


@frozen(cache_hash=True)
class Principal:
    """Whom a request was authenticated as: the (issuer, subject, audience) of its token."""

    issuer: str
    subject: str
    audience: str


ANONYMOUS = Principal("", "anonymous", "")
"""The principal of every request where no authentication is configured."""


# Not frozen, though nobody changes one: each request makes one, and freezing trebles its cost.
@define
class CallContext:
    """
    The facts of one request that travel with it to the link.

    server: the configured server's name, from the matched route.
    principal: who asks.
    headers: the request's end-to-end header fields that may be forwarded to an HTTP server
        (hop-by-hop, session, credential and forwarding fields are already taken out).
    peer: the client's address as text, for forwarding headers.
    tls: whether the client's connection is encrypted.
    host: the request's Host, for forwarding headers.
    caller: tells the callers of one principal apart, where a server's `callers` names a header.
    """

    server: str
    principal: Principal = ANONYMOUS
    headers: HeaderPairs = ()
    peer: str = ""
    tls: bool = False
    host: bytes = b""
    caller: str = ""
