"""
A route into a proxy, and what the head of a request that comes by it says: who asks whom, in which
session, what its client accepts, and whether its content is any (rung 7 of the ladder).

Pure. Clients send the same head again and again; what was found of it is kept with it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import define, field, frozen

from gateway.links.interfaces import IServer
from gateway.proxies.negotiation import accepts, isJSON
from gateway.settings import HTTPSettings
from gateway.wire import refusals
from gateway.wire.context import CallContext, Principal
from gateway.wire.exchange import RequestHead
from gateway.wire.headers import forwardableHeaders
from gateway.wire.refusals import Refusal
from gateway.wire.revisions import LEGACY

__all__ = ["Entrance", "Found", "Naming", "find"]


class Naming(Enum):
    """How a route's requests name their session; the value is the session's transport."""

    HEADER = "streamable"
    """Mcp-Session-Id."""
    QUERY = "sse"
    """session_id. Refusals of a POST from rung 7 on travel on the stream, but for the size's and
    the lost session's."""


_QUERY = Naming.QUERY
_HEADER = Naming.HEADER


@frozen
class Entrance:
    """
    A route into a proxy.

    path: its spelling. methods: what it serves. sessionless: tells whether the server behind
    is known to keep sessions (False), to keep none (True), or not known (None).
    """

    server: IServer
    path: bytes
    methods: tuple[bytes, ...]
    naming: Naming = _HEADER
    sessionless: Callable[[], bool | None] = lambda: False
    transport: str = field(init=False)

    @transport.default
    def _transport(self) -> str:
        return self.naming.value

    @property
    def allow(self) -> bytes:
        """The value of Allow."""
        return b", ".join((*self.methods, b"OPTIONS"))


@define(eq=False)
class Found:
    """
    What rungs 3 to 7 found of a head. Clients send the same again and again, and then this holds.

    json, events: what the client accepts. version: its MCP-Protocol-Version. sessions: the ids that
    it names. tolerated: whether its version goes with any legacy session. refusal: of rung 7.
    """

    entrance: Entrance
    context: CallContext
    json: bool
    events: bool
    version: str | None
    sessions: list[bytes]
    tolerated: bool
    refusal: Refusal | None = None

    def of(self, head: RequestHead) -> Found | None:
        """
        The same of a head that differs in nothing but the session it names, and perhaps its client.
        """
        context, entrance = self.context, self.entrance
        # Where a header tells callers apart, that may be the one the session is named in.
        if context.peer != head.peer or context.caller:
            return None
        sessions = _sessions(head, entrance)
        return Found(
            entrance, context, self.json, self.events, self.version, sessions, self.tolerated
        )


def find(head: RequestHead, entrance: Entrance, principal: Principal, most: int) -> Found:
    """What a head says that came by this entrance; most: bytes that its body may have."""
    settings = entrance.server.settings
    context = CallContext(
        server=entrance.server.name,
        principal=principal,
        headers=forwardableHeaders(head.headers, settings.forward_authorization)
        if isinstance(settings, HTTPSettings)
        else (),
        peer=head.peer,
        tls=head.tls,
        host=head.header(b"host") or b"",
        caller=_callerOf(settings.callers, head),
    )
    json, events = accepts(b",".join(head.headerValues(b"accept")))
    said = head.header(b"mcp-protocol-version")
    version = None if said is None else said.decode("latin-1").strip()
    sessions = _sessions(head, entrance)
    tolerated = version is None or version in LEGACY
    found = Found(entrance, context, json, events, version, sessions, tolerated)
    found.refusal = _content(head, found, most)
    return found


def _content(head: RequestHead, found: Found, most: int) -> Refusal | None:
    """Rung 7."""
    if head.method == b"GET":
        return None if found.events else refusals.notAcceptable("text/event-stream")
    if head.method != b"POST":
        return None
    declared = head.header(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > most:
        return refusals.tooLarge(most)
    kinds = head.headerValues(b"content-type")
    if len(kinds) != 1 or not isJSON(kinds[0]):
        return refusals.unsupportedMediaType()
    if found.entrance.naming is _HEADER and not (found.json or found.events):
        return refusals.notAcceptable("application/json or text/event-stream")
    return None


def _callerOf(callers: str, head: RequestHead) -> str:
    """Which of its principal's callers asks, where `callers` names a header."""
    kind, _, name = callers.partition(":")
    if kind != "header":
        return ""
    return b",".join(head.headerValues(name.lower().encode("latin-1", "replace"))).decode("latin-1")


def _sessions(head: RequestHead, entrance: Entrance) -> list[bytes]:
    """The ids of sessions that a head names."""
    if entrance.naming is _HEADER:
        return head.headerValues(b"mcp-session-id")
    return _queried(head.query)


def _queried(query: bytes) -> list[bytes]:
    """The values of `session_id`; ids of ours need no percent-decoding."""
    prefix = b"session_id="
    return [part[len(prefix) :] for part in query.split(b"&") if part.startswith(prefix)]
