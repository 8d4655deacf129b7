"""
The link to a server that speaks Streamable HTTP in the modern era (MCP 2026-07-28,
basic/transports/streamable-http).

 1. Each request is a POST of its own, with the header fields that say what is in it
    (`gateway.wire.mcp_headers`). Its answer is JSON, or events until the response.
 2. There is no session: no id is learned or sent, no 404 loses anything, and the ids of events
    mean nothing. A closed stream is a cancelled request.
 3. No notification or response goes to the server; what it asks in a stream is dropped.
 4. `x-mcp-header` is learned from the lists of tools that pass. A tool with an invalid one is left
    out of them.
 5. A call that the server refuses with HeaderMismatch (-32020) did not run. Once, its tools are
    listed anew; where that gives the call other fields, it is sent again.
 6. The stream of `subscriptions/listen` may be silent for as long as it likes, and takes no turn
    from calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from attrs import define, evolve, field
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from gateway.http1.client import ResponseHead
from gateway.links.http_answer import Stream
from gateway.links.http_handshake import Handshake
from gateway.links.http_link import ACCEPT, JSON, HTTPLink, Open
from gateway.links.http_streams import CallStream
from gateway.links.interfaces import EventMark, ILink, ILinkListener, Outcome, Reason, Settled
from gateway.links.opening import Discover
from gateway.observe.observer import BoundReached, MessageDropped
from gateway.wire.annotations import PARAM
from gateway.wire.context import CallContext, HeaderPairs
from gateway.wire.envelope import REQUEST, RESPONSE, Message, decode, members, request
from gateway.wire.headers import fieldLines, requestHeaders
from gateway.wire.mcp_headers import METHOD, NAME, VERSION, ToolHeaders
from gateway.wire.modern import LISTEN, errorCode
from gateway.wire.sse import ServerSentEvent
from gateway.wire.strictjson import withoutMember

__all__ = ["ModernHTTPLink"]

_log = Logger()

_HEADER_MISMATCH = -32020
_OWN = frozenset({VERSION, METHOD, NAME})
_BUSY = Settled(Outcome.NOT_SENT, Reason.OVERLOADED, "the server does not keep up")


@implementer(ILink)
@define(eq=False, repr=False)
class ModernHTTPLink(HTTPLink):
    """
    One link of the modern era. `handshake` opens it, once; its user closes it, or its server, at
    `drain`.

    revision: the one that the server and the gateway speak.
    tools: the annotations that were learned.
    """

    revision: str = field(default="", init=False)
    tools: ToolHeaders = field(init=False)
    _posted: tuple[CallContext, bytes] | None = field(default=None, init=False)
    """What does not depend on the message in the header of the last POST, and whose it was."""

    @tools.default
    def _noTools(self) -> ToolHeaders:
        return ToolHeaders(self.client.limits.max_tool_headers)

    def handshake(self, opening: Discover, context: CallContext, timeout: float) -> Deferred[None]:
        """
        POST `server/discover`.

        timeout: seconds until LinkFailed(TIMEOUT).
        Fires when the link is up. Fails with NotModern where the server is of the legacy era, else
        with LinkFailed. Cancelling gives it up. A link that failed is closed.
        """
        self._handshake = Handshake(self, opening, timeout)
        return self._handshake.start(context)

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink and ITwoEraServer.modernLink. False also of a closed link."""
        if self.closing:
            return False
        if message.kind is not REQUEST:
            # To cancel is to close the stream; of others the server knows none.
            if message.method != "notifications/cancelled":
                self.dropped("not_for_http")
            return True
        if not self.relay(message, call, context, self.tools.fieldsFor(message)):
            self._full = True
            return False
        return True

    # For its streams and its handshake.

    def relay(
        self,
        message: Message,
        call: object | None,
        context: CallContext,
        fields: HeaderPairs,
        again: bool = False,
        held: bool = False,
    ) -> bool:
        """
        POST a request under these fields of its own. False at the bound.

        again: whether its tools were listed anew for it. held: whether it is held.
        """
        assert message.id is not None
        stream = _Call(
            around=self.around,
            listener=self.listener,
            origin=call,
            id=message.id,
            sessions=False,
            link=self,
            message=message,
            context=context,
            fields=fields,
            again=again,
        )
        if not self._sent(stream, message.encode(), message.method):
            return False
        if held:
            stream.hold()
        return True

    def ask(self, stream: _Call) -> bool:
        """POST a request of the link itself. False at the bound."""
        return self._sent(stream, stream.message.encode(), stream.message.method)

    def post(self, stream: Stream, body: bytes, context: CallContext) -> bool:
        """POST the handshake. False at the bound."""
        message = decode(body)
        assert isinstance(message, Message)
        lines = self._lines(context, self.tools.fieldsFor(message))
        return self._opened(stream, self.client.request(b"POST", lines, body, stream))

    def established(self, head: ResponseHead) -> Settled | None:
        """A 2xx answer to the handshake came; there is nothing to learn from its head."""
        return None

    def greeted(self, answer: Message, revision: str) -> None:
        """The server answered the handshake."""
        self.answer, self.revision = answer, revision

    def dropped(self, why: str) -> None:
        """A message went nowhere."""
        self.client.observer.observed(MessageDropped(self.client.server, why))

    def mends(self, stream: _Call, settle: Callable[[], None]) -> None:
        """A call was refused for its fields: list the tools anew, send it again or settle it."""
        mending = _Mending(self, stream, settle)
        self._streams.add(mending)
        if stream.origin is not None:
            self._told[stream.origin] = mending
        mending.start()

    def mended(self, mending: Open) -> None:
        """It is over."""
        self._streamTold(mending)
        self._streams.discard(mending)

    def listed(self, result: bytes, first: bool) -> bytes:
        """
        Learn from the result of a `tools/list`. Returns it without invalid tools.

        first: whether it was asked for without a cursor.
        """
        judged = self.tools.learn(result, first)
        if self.tools.full:
            reached = BoundReached("max_tool_headers", self.client.server)
            self.client.observer.observed(reached)
        for invalid in judged.invalid:
            self.dropped("invalid_tool")
            _log.warn(
                "{server}: tool {name!r} is left out: {why}",
                server=self.client.server,
                name=invalid.name[:128],
                why=invalid.why,
            )
        return judged.valid

    # Inside.

    def _sent(self, stream: _Call, body: bytes, method: str) -> bool:
        lines = self._lines(stream.context, stream.fields)
        if method == LISTEN:
            return self._opened(stream, self.client.subscribe(lines, body, stream))
        return self._opened(stream, self.client.request(b"POST", lines, body, stream))

    def _lines(self, context: CallContext, fields: HeaderPairs) -> bytes:
        """The header of a POST; a client's own fields of these names are not the server's."""
        posted = self._posted
        if posted is None or (posted[0] is not context and posted[0] != context):
            pairs = requestHeaders(
                (ACCEPT, JSON), self.configured, self.forwardAuthorization, context
            )
            kept = [pair for pair in pairs if pair[0] not in _OWN and not pair[0].startswith(PARAM)]
            posted = self._posted = (context, fieldLines(kept))
        return posted[1] + fieldLines(fields)


class _Call(CallStream, eq=False, kw_only=True):
    """
    The POST of a modern request.

    link: its link. fields: the header fields that were sent of its own.
    again: whether a refusal of them is final.
    """

    link: ModernHTTPLink
    message: Message
    context: CallContext
    fields: HeaderPairs
    again: bool = False

    def messageReceived(self, message: Message, mark: EventMark | None) -> None:
        if message.kind is REQUEST:
            self.link.dropped("server_request")
            return
        if message.kind is RESPONSE and message.id == self.id:
            if message.isError and self._mendable(errorCode(message)):
                answer = message
                self.leave()
                self.linger()
                self.link.mends(self, lambda: self.listener.received(answer, self.origin, None))
                return
            if self.message.method == "tools/list":
                message = self._learned(message)
        # No stream is resumed: what an event's id says is nobody's.
        super().messageReceived(message, None)

    def settle(self, settled: Settled) -> None:
        body = settled.body
        if self.told or body is None or not self._mendable(errorCode(body)):
            super().settle(settled)
            return
        self.leave()
        self.link.mends(self, lambda: self.listener.settled(self.origin, settled))

    def _mendable(self, code: int) -> bool:
        if self.again or code != _HEADER_MISMATCH or self.link.closing:
            return False
        return self.message.method == "tools/call"

    def _learned(self, message: Message) -> Message:
        if message.isError:
            return message
        result = bytes(message.fields["result"])
        valid = self.link.listed(result, self.message.param("cursor") is None)
        if valid is result:
            return message
        return Message(message.kind, {**message.fields, "result": Raw(valid)}, message.id)

    def _eventReceived(self, event: ServerSentEvent) -> None:
        if event.id is not None or event.retry is not None:
            event = evolve(event, id=None, retry=None)
        super()._eventReceived(event)


@implementer(ILinkListener)
@define(eq=False, repr=False)
class _Mending:
    """
    A call that was refused for its header fields, while the tools are listed anew.

    It stands in the place of the call's stream. It ends by sending the call again, by settling it
    as it was refused, or by `abort`.
    """

    _link: ModernHTTPLink
    _call: _Call
    _settle: Callable[[], None]
    origin: object | None = field(init=False)
    _held: bool = field(default=False, init=False)
    _pages: int = field(default=0, init=False)
    _over: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.origin = self._call.origin
        self._held = self._call.held

    def hold(self) -> None:
        """The call is held; it may be listed for meanwhile."""
        self._held = True

    def release(self) -> None:
        self._held = False

    def abort(self) -> None:
        """The call is cancelled, or the link closed."""
        self._over = True
        self._link.mended(self)
        self._link.cancel(self)

    def start(self) -> None:
        """Ask for the first page."""
        self._ask(None)

    def _ask(self, cursor: bytes | None) -> None:
        self._pages += 1
        message = self._listing(cursor)
        stream = _Call(
            around=self._link.around,
            listener=cast(ILinkListener, self),
            origin=self,
            id=message.id or b"0",
            sessions=False,
            link=self._link,
            message=message,
            context=self._call.context,
            fields=self._link.tools.fieldsFor(message),
            again=True,
        )
        if not self._link.ask(stream):
            self._ended()

    def _listing(self, cursor: bytes | None) -> Message:
        """The request for a page, in the name of the call's client."""
        meta = withoutMember(self._call.message.param("_meta") or b"{}", "progressToken")
        params = {"_meta": meta} if cursor is None else {"cursor": cursor, "_meta": meta}
        return request("tools/list", **params).withID(b'"tools of %d"' % self._pages)

    # What is told of the page.

    def received(self, message: Message, origin: object, mark: EventMark | None = None) -> None:
        if message.kind is not RESPONSE or self._over:
            return
        cursor = bytes(members(message.fields.get("result")).get("nextCursor", b"null"))
        limits, server = self._link.client.limits, self._link.client.server
        if message.isError or cursor == b"null":
            self._ended()
        elif self._pages < limits.max_tool_pages:
            self._ask(cursor)
        else:
            self._link.client.observer.observed(BoundReached("max_tool_pages", server))
            self._ended()

    def settled(self, call: object, settled: Settled) -> None:
        if not self._over:
            self._ended()

    def marked(self, origin: object, mark: EventMark) -> None:
        """Nothing is resumed."""

    def ended(self, origin: object) -> None:
        """It is no GET."""

    def accepted(self, call: object) -> None:
        """It is no notification."""

    def drained(self) -> None:
        """It waits for no room."""

    def lost(self, reason: Reason, message: str) -> None:
        """The link tells its own listener."""

    def _ended(self) -> None:
        self._over = True
        link, call = self._link, self._call
        link.mended(self)
        fields = link.tools.fieldsFor(call.message)
        if fields == call.fields:
            self._settle()
        elif not link.relay(call.message, call.origin, call.context, fields, True, self._held):
            link.listener.settled(call.origin, _BUSY)
