"""
What a relay needs of a link and a server, whatever transport is behind.

A Link is one upstream handshake. Whoever asked a server for a link closes it; a link that is
lost is closed already. All calls of a listener are synchronous and come after `IServer.link`
fired, never from within `ILink.send`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import frozen
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from gateway.settings import ServerSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason

__all__ = [
    "EventMark",
    "Health",
    "Hello",
    "IHTTPLink",
    "ILink",
    "ILinkListener",
    "IServer",
    "ITwoEraServer",
    "LinkFailed",
    "ListenRefused",
    "NotModern",
    "Outcome",
    "Reason",
    "Settled",
]


class Outcome(Enum):
    """How far a call that got no answer came."""

    NOT_SENT = "not sent"
    """It provably never reached the server."""
    MAYBE_RAN = "may have run"
    REFUSED = "refused"
    """The server refused it with an HTTP status below 500; it did not run."""


@frozen
class Settled:
    """
    The end of a call without an answer.

    outcome: how far it came.
    reason: what the client is told.
    message: a sentence for the client; no path, command line or URL.
    status: the HTTP status of a refusal, also of one that may have run (5xx); else 0.
    body: the JSON-RPC error that came with a refusal, where there was one; its id is None
        where the server gave none.
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
    answer: the server's own error response to `initialize`, where it gave one; its id is None
        where the server gave none.
    status: the HTTP status by which the server refused `initialize`, else 0.
    retryAfter: seconds for which further attempts will fail at once, made by nobody; 0 where the
        next is made.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        answer: Message | None = None,
        status: int = 0,
        retryAfter: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.answer = answer
        self.status = status
        self.retryAfter = retryAfter


class NotModern(LinkFailed):
    """A server that answered, or kept silent, as none of the modern era does."""


class ListenRefused(Exception):
    """
    The server opened no GET stream.

    status: the HTTP status by which it refused: 405 where it has none, 404 where the link's
        session is lost.
    asked: whether it was asked; at a bound of our own it is not.
    """

    def __init__(self, status: int, asked: bool = True) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.asked = asked


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
        """The stream opened by `IHTTPLink.listen` ended, in order or cut; not by `cancel`."""

    def accepted(call: object) -> None:
        """
        The server accepted a notification or response that was sent with a call object.

        Called by the links of HTTP servers only.
        """

    def settled(call: object, settled: Settled) -> None:
        """
        A call ended without an answer. Not called for calls pending at `lost`.

        Called also for a notification or response that was sent with a call object to an HTTP
        server and was not accepted.
        """

    def drained() -> None:
        """The link's queue has room again after `send` returned False."""

    def lost(reason: Reason, message: str) -> None:
        """The link ended by itself; everything pending on it may have run."""


class ILink(Interface):
    """
    One upstream handshake, done; messages go both ways.

    Calls and origins are told apart by their hash and equality; one of them has one request at a
    time. To an HTTP server `send` may have a call object for a notification or response, too: then
    the listener hears `accepted` or `settled` of it. There a 404 to a request of a session settles
    the call as REFUSED with status 404: the session is lost, and so is the link; the recovery is
    its user's, who closes it. Calls that run on it may still be answered; it opens no stream of
    its own any more.
    """

    answer: Message = Attribute("The server's response to `initialize`.")
    sessionless: bool = Attribute("The server keeps no session of this link that could be lost.")
    multiplexed: bool = Attribute("All that the server says comes on one stream.")

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
    """A link whose server has streams of its own per request, which its user passes on."""

    def listen(
        origin: object,
        lastEventID: bytes | None,
        context: CallContext,
        spoilt: Callable[[bytes], None] | None = None,
    ) -> Deferred[None]:
        """
        Open the server's GET stream; its messages come with this origin.

        lastEventID: resume the stream this event came on; its answers come here, too.
        spoilt: called with the id of what came and is no message, but was meant as its answer.
        Fires when it is open. Fails with ListenRefused where the server refused, and with
        LinkFailed where it could not be asked or answered nonsense. `cancel(origin)` closes it.
        """


class IServer(Interface):
    """A configured server: it owns links."""

    name: str = Attribute("The name it is configured under.")
    settings: ServerSettings = Attribute("Its configuration.")
    generation: int = Attribute("Counts up when its configuration is replaced.")

    def link(
        hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """
        Make one handshake: `initialize` with the recorded parameters.

        ownStreams: whether the asker passes the server's own streams on. Then the link is an
            IHTTPLink where the server speaks Streamable HTTP; else, and always without, it is a
            plain ILink, which listens and resumes by itself.
        `notifications/initialized` is the relay's to send. Cancelling the Deferred gives the
        attempt up. Fails with LinkFailed.
        """

    def health() -> Health:
        """What is known of it."""

    def drain() -> Deferred[None]:
        """Close every link. Fires when none of its processes or connections is left."""


class ITwoEraServer(IServer):
    """
    A configured server that can be spoken to in either era.

    `link` is of the legacy era: its handshake is `initialize`. Both may be had at the same time,
    for neither shares a process or a session with the other.
    """

    def modernLink(listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        """
        Make a link of the modern era (MCP 2026-07-28). Its handshake is `server/discover`, in the
        gateway's own name; its `answer` is the response to that.

        What is sent on it are modern messages: each request has its `params._meta` whole and an
        id no other running one has; nothing is stamped or mapped there. A notification or
        response is no HTTP server's to take: there only requests are sent, and `cancel` closes
        the response stream, which is the cancellation; to a child, who cancels says
        `notifications/cancelled` first. A call refused with an HTTP status is settled with the
        server's JSON-RPC error as `body`, where it gave one.
        Fails with NotModern where the server is of the legacy era only, else with LinkFailed.
        """
