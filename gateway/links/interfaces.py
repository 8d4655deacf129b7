"""
What a relay needs of a link and a server, whatever transport is behind.

A Link is one upstream handshake. Whoever asked a server for a link closes it; a link that is
lost is closed already. All calls of a listener are synchronous and come after `IServer.link`
fired, never from within `ILink.send`.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = [
    "EventMark",
    "Health",
    "Hello",
    "IHTTPLink",
    "ILink",
    "ILinkListener",
    "IServer",
    "LinkFailed",
    "Outcome",
    "Reason",
    "Settled",
]


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


class Outcome(Enum):
    """How far a call that got no answer came."""

    NOT_SENT = "not sent"
    """It provably never reached the server."""
    MAYBE_RAN = "may have run"
    REFUSED = "refused"
    """The server refused it with an HTTP status; it did not run."""


@frozen
class Settled:
    """
    The end of a call without an answer.

    outcome: how far it came.
    reason: what the client is told.
    message: a sentence for the client; no path, command line or URL.
    status: the HTTP status of a refusal, else 0.
    body: the JSON-RPC error that came with a refusal, where there was one.
    """

    outcome: Outcome
    reason: Reason
    message: str
    status: int = 0
    body: Message | None = None


class LinkFailed(Exception):
    """
    A handshake that did not come about.

    reason, message: what the client is told.
    answer: the server's own error response to `initialize`, where it gave one.
    """

    def __init__(self, reason: Reason, message: str, answer: Message | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.answer = answer


@frozen
class Hello:
    """
    What a client said in `initialize`, recorded so that a handshake can be made again.

    params: the `params` of its request, as spelled.
    """

    params: bytes


@frozen
class EventMark:
    """The `id` and `retry` fields of a server's SSE event, as sent."""

    id: bytes | None = None
    retry: bytes | None = None


class Health(Enum):
    """What a server's last handshakes and calls showed."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class ILinkListener(Interface):
    """What a link tells the relay that asked for it."""

    def received(message: Message, origin: object | None, mark: EventMark | None = None) -> None:
        """
        The server sent a message.

        origin: the call on whose stream it came; None where the link has one stream for all.
        mark: the SSE fields it came with; None where there were none.
        """

    def marked(origin: object | None, mark: EventMark) -> None:
        """An event without a message came: its id or retry alone."""

    def ended(origin: object) -> None:
        """The stream opened by `IHTTPLink.listen` ended in order."""

    def settled(call: object, settled: Settled) -> None:
        """A call ended without an answer. Not called for calls pending at `lost`."""

    def drained() -> None:
        """The link's queue has room again after `send` returned False."""

    def lost(reason: Reason, message: str) -> None:
        """The link ended by itself; everything pending on it may have run."""


class ILink(Interface):
    """One upstream handshake, done; messages go both ways."""

    answer: Message = Attribute("The server's response to `initialize`.")

    def send(message: Message, call: object | None, context: CallContext) -> bool:
        """
        Send a message.

        call: the relay's own object for a request; None for a notification or a response.
        Returns: False if the link's bounded queue is full; the message was not taken.
        """

    def cancel(call: object) -> None:
        """Forget a call: release what the link holds for it. Says nothing to the server."""

    def hold(origin: object | None) -> None:
        """Stop reading what feeds this origin (None: all of the link), until `release`."""

    def release(origin: object | None) -> None:
        """Read on."""

    def close() -> Deferred[None]:
        """End the link. Fires when nothing of it is left. May be called again."""


class IHTTPLink(ILink):
    """A link whose server has streams of its own per request."""

    sessionless: bool = Attribute("The server gave no session id.")

    def listen(origin: object, lastEventID: bytes | None, context: CallContext) -> Deferred[None]:
        """
        Open the server's GET stream; its messages come with this origin.

        Fires when it is open. Fails with LinkRefused where the server has none.
        """


class IServer(Interface):
    """A configured server: it owns links."""

    name: str = Attribute("The name it is configured under.")
    generation: int = Attribute("Counts up when its configuration is replaced.")

    def link(hello: Hello, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        """
        Make one handshake: `initialize` with the recorded parameters.

        `notifications/initialized` is the relay's to send. Cancelling the Deferred gives the
        attempt up. Fails with LinkFailed.
        """

    def health() -> Health:
        """What is known of it."""

    def drain() -> Deferred[None]:
        """Close every link. Fires when none of its processes or connections is left."""
