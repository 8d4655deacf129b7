"""
A server in memory, played by the test: what was sent to it is recorded, what it says is pushed.

    server = ScriptedServer()                 # a stdio server; http=True: an HTTP server
    ...                                       # something makes a session on it
    link = server.newest                      # the newest link
    sent = link.last("tools/call")            # what was sent, with its call and context
    link.reply(sent, b'{"content":[]}')       # the server answers it
    link.push(b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}')
    link.lose(Reason.SERVER_EXITED)           # the child died; the next `link` makes another

Nothing happens by itself: as the interface demands, a listener is called only from the methods of
the test's side (`push`, `reply`, `refuse`, `settle`, `accept`, `end`, `lose`), never from within
`send`.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from gateway.links.interfaces import (
    EventMark,
    Health,
    Hello,
    IHTTPLink,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    ListenRefused,
    Outcome,
    Reason,
    Settled,
)
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, decode

__all__ = ["RESULT", "ScriptedHTTPLink", "ScriptedLink", "ScriptedServer", "Sent", "message"]

RESULT = (
    b'{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},'
    b'"resources":{"subscribe":true},"logging":{}},"serverInfo":{"name":"s","version":"1"}}'
)
"""The `result` with which a ScriptedServer answers `initialize`, unless told otherwise."""


def message(data: bytes | Message) -> Message:
    """A message from its JSON."""
    decoded = decode(data) if isinstance(data, bytes) else data
    assert isinstance(decoded, Message)
    return decoded


@define(eq=False)
class Sent:
    """Something that was sent to the server."""

    message: Message
    call: object | None
    context: CallContext

    @property
    def id(self) -> bytes:
        """The id under which the server knows the request."""
        assert self.message.id is not None
        return self.message.id

    @property
    def method(self) -> str:
        return self.message.method


@implementer(ILink)
@define(eq=False)
class ScriptedLink:
    """
    One handshake with a ScriptedServer.

    sent: everything sent, in order. full: whether `send` refuses. cancelled, held: the calls
    and origins of `cancel`, and those held now. closed: whether `close` was called; its Deferred
    waits for `finishClose` if `slowClose`. alive: neither closed nor lost.
    """

    server: ScriptedServer
    listener: ILinkListener
    hello: Hello
    context: CallContext
    answer: Message
    sent: list[Sent] = field(factory=list)
    cancelled: list[object] = field(factory=list)
    held: list[object] = field(factory=list)
    full: bool = False
    slowClose: bool = False
    sessionless: bool = False
    multiplexed: bool = True
    closed: bool = False
    isLost: bool = False
    _closings: list[Deferred[None]] = field(factory=list)

    # ILink.

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        assert self.alive, "sent on a link that is over"
        if self.full:
            return False
        self.sent.append(Sent(message, call, context))
        return True

    def cancel(self, call: object) -> None:
        self.cancelled.append(call)

    def hold(self, origin: object | None) -> None:
        assert origin not in self.held, "held twice"
        self.held.append(origin)

    def release(self, origin: object | None) -> None:
        if origin in self.held:
            self.held.remove(origin)

    def close(self) -> Deferred[None]:
        self.closed = True
        if not self.slowClose:
            return succeed(None)
        closing: Deferred[None] = Deferred()
        self._closings.append(closing)
        return closing

    # The test's side: what was sent.

    @property
    def alive(self) -> bool:
        return not (self.closed or self.isLost)

    @property
    def requests(self) -> list[Sent]:
        """The requests among what was sent."""
        return [sent for sent in self.sent if sent.message.kind is Kind.REQUEST]

    def of(self, method: str) -> list[Sent]:
        """What was sent of one method; "" for responses."""
        return [sent for sent in self.sent if sent.method == method]

    def last(self, method: str) -> Sent:
        """The newest of a method; "" for responses."""
        return self.of(method)[-1]

    # The test's side: what the server does.

    def push(
        self, data: bytes | Message, origin: object | None = None, mark: EventMark | None = None
    ) -> None:
        """The server sends a message; origin: the call or stream it comes on (HTTP)."""
        self.listener.received(message(data), origin, mark)

    def reply(self, sent: Sent, result: bytes = b"{}", mark: EventMark | None = None) -> None:
        """The server answers a request; over HTTP on the request's own stream."""
        data = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (sent.id, result)
        self.push(data, self._origin(sent), mark)

    def refuse(self, sent: Sent, code: int = -32603, why: str = "no") -> None:
        """The server answers a request with an error."""
        error = b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":"%b"}}'
        self.push(error % (sent.id, code, why.encode()), self._origin(sent))

    def settle(
        self,
        sent: Sent | object,
        reason: Reason = Reason.OUTCOME_UNKNOWN,
        why: str = "no answer",
        outcome: Outcome = Outcome.MAYBE_RAN,
        status: int = 0,
        body: Message | None = None,
    ) -> None:
        """
        What was sent gets no answer. With a status it was refused: 404 is a lost session.
        """
        if status:
            outcome = Outcome.REFUSED
        call = sent.call if isinstance(sent, Sent) else sent
        self.listener.settled(call, Settled(outcome, reason, why, status, body))

    def accept(self, sent: Sent) -> None:
        """An HTTP server took a notification or response (202)."""
        self.listener.accepted(sent.call)

    def mark(self, origin: object, mark: EventMark) -> None:
        """An event without a message comes."""
        self.listener.marked(origin, mark)

    def lose(self, reason: Reason = Reason.SERVER_EXITED, why: str = "the server exited") -> None:
        """The link ends by itself."""
        self.isLost = True
        self.listener.lost(reason, why)

    def finishClose(self) -> None:
        """A slow `close` is over."""
        closings, self._closings = self._closings, []
        for closing in closings:
            closing.callback(None)

    def _origin(self, sent: Sent) -> object | None:
        return None if self.multiplexed else sent.call


@implementer(IHTTPLink)
@define(eq=False)
class ScriptedHTTPLink(ScriptedLink):
    """
    The same over HTTP, with a stream per request.

    listening: the origins of open GET streams, in order. refusesListen: the HTTP status with
    which the next `listen`s are refused, or 0. listened: (origin, lastEventID) of every `listen`.
    """

    refusesListen: int = 0
    listening: list[object] = field(factory=list)
    listened: list[tuple[object, bytes | None]] = field(factory=list)
    spoilt: Callable[[bytes], None] | None = None

    def listen(
        self,
        origin: object,
        lastEventID: bytes | None,
        context: CallContext,
        spoilt: Callable[[bytes], None] | None = None,
    ) -> Deferred[None]:
        self.listened.append((origin, lastEventID))
        self.spoilt = spoilt
        if self.refusesListen:
            return fail(ListenRefused(self.refusesListen))
        self.listening.append(origin)
        return succeed(None)

    def cancel(self, call: object) -> None:
        super().cancel(call)
        if call in self.listening:
            self.listening.remove(call)

    def end(self, origin: object) -> None:
        """The server ends a GET stream."""
        self.listening.remove(origin)
        self.listener.ended(origin)


@implementer(IServer)
class ScriptedServer:
    """
    A configured server in memory.

    http: whether it is reached over HTTP; its links are ScriptedHTTPLinks for who passes its
        own streams on.
    result: the `result` of its answers to `initialize`; may be changed between handshakes.
    sessionless, refusesListen: what its next HTTP links are like.
    handshakeHeld: whether a handshake waits for `finishHandshake`.
    failures: what the next handshakes fail with, one each; see `failNext`.
    settings: further fields of its ServerSettings, such as `timeout` or `on_exit`.

    links: every link it made. handshakes: how often it was asked for one. givenUp: how many
    handshakes were cancelled while they were held.
    """

    kinds: tuple[type[ScriptedLink], type[ScriptedLink]] = (ScriptedLink, ScriptedHTTPLink)
    """What its links are: plain ones, and those of who passes its own streams on."""

    def __init__(
        self,
        name: str = "scripted",
        *,
        http: bool = False,
        result: bytes = RESULT,
        sessionless: bool = False,
        **settings: object,
    ) -> None:
        self.name = name
        self.http = http
        self.result = result
        self.sessionless = sessionless
        self.refusesListen = 0
        self.generation = 1
        self.settings: ServerSettings = (
            HTTPSettings(name=name, url="http://upstream.invalid/mcp", **settings)  # type: ignore[arg-type]
            if http
            else StdioSettings(name=name, command="scripted", **settings)  # type: ignore[arg-type]
        )
        self.links: list[ScriptedLink] = []
        self.handshakes = 0
        self.givenUp = 0
        self.handshakeHeld = False
        self.failures: list[LinkFailed] = []
        self.drained = False
        self._pending: list[tuple[Deferred[ILink], Hello, ILinkListener, CallContext, bool]] = []

    # IServer.

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        self.handshakes += 1
        if self.handshakeHeld:
            made: Deferred[ILink] = Deferred(self._gaveUp)
            self._pending.append((made, hello, listener, context, ownStreams))
            return made
        if self.failures:
            return fail(self.failures.pop(0))
        return succeed(self._make(hello, listener, context, ownStreams))

    def health(self) -> Health:
        return Health.UP if self.links else Health.UNKNOWN

    def drain(self) -> Deferred[None]:
        self.drained = True
        for link in self.links:
            link.closed = True
        return succeed(None)

    # The test's side.

    @property
    def newest(self) -> ScriptedLink:
        """The newest link."""
        return self.links[-1]

    @property
    def open(self) -> list[ScriptedLink]:
        """The links that are neither closed nor lost."""
        return [link for link in self.links if link.alive]

    def failNext(
        self,
        reason: Reason = Reason.SERVER_EXITED,
        why: str = "the server could not be started",
        answer: Message | None = None,
        status: int = 0,
    ) -> None:
        """Have one more handshake fail."""
        self.failures.append(LinkFailed(reason, why, answer, status))

    def resultFor(self, hello: Hello) -> bytes:
        """The `result` of the answer to this `initialize`."""
        return self.result

    def finishHandshake(self) -> None:
        """Let the oldest held handshake go on: it fails if `failNext` said so."""
        made, hello, listener, context, ownStreams = self._pending.pop(0)
        if self.failures:
            made.errback(self.failures.pop(0))
        else:
            made.callback(self._make(hello, listener, context, ownStreams))

    def _make(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool
    ) -> ScriptedLink:
        answer = message(b'{"jsonrpc":"2.0","id":0,"result":%b}' % self.resultFor(hello))
        kind = self.kinds[self.http and ownStreams]
        link = kind(self, listener, hello, context, answer)
        if isinstance(link, ScriptedHTTPLink):
            link.refusesListen = self.refusesListen
        link.sessionless = self.sessionless
        link.multiplexed = not self.http
        self.links.append(link)
        return link

    def _gaveUp(self, made: Deferred[ILink]) -> None:
        self.givenUp += 1
        self._pending = [entry for entry in self._pending if entry[0] is not made]
