"""
The link to a server that speaks Streamable HTTP in the legacy era (MCP 2025-03-26 to 2025-11-25,
basic/transports; a server that negotiates 2024-11-05 over it is served, too).

Each message is one POST. What the server answers, and how that is judged, is in
`gateway.links.http_streams`; what of a request's header passes is in `gateway.wire.headers`. The
server's session id is learned from the 2xx answer to `initialize` alone and never leaves the link.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from gateway.http1.client import Fault, Outgoing, ResponseHead
from gateway.links.http_answer import Stream
from gateway.links.http_handshake import Handshake
from gateway.links.http_link import ACCEPT, JSON, HTTPLink
from gateway.links.http_streams import CallStream, GetStream, NoteStream, badAnswer
from gateway.links.interfaces import (
    Hello,
    IHTTPLink,
    LinkFailed,
    ListenRefused,
    Reason,
    Settled,
)
from gateway.links.opening import HTTPInitialize
from gateway.wire.context import CallContext, HeaderPairs
from gateway.wire.envelope import REQUEST, Message
from gateway.wire.headers import fieldLines, isFieldValue, requestHeaders

__all__ = ["StreamableHTTPLink"]

DELETE_WAIT = 5.0
"""Seconds a server gets to answer the DELETE of its session."""

_SESSION_ID = re.compile(rb"[!-~]+")


@implementer(IHTTPLink)
@define(eq=False, repr=False)
class StreamableHTTPLink(HTTPLink):
    """
    One session with a Streamable HTTP server. `handshake` opens it, once; its user closes it, or
    its server, at `drain`.

    revision: the negotiated revision.
    """

    revision: str = field(default="", init=False)
    _session: bytes | None = field(default=None, init=False)
    _gone: bool = field(default=False, init=False)
    """Whether a 404 said that the session is lost."""
    _patience: float = field(default=60.0, init=False)
    """Seconds a server gets to accept a notification: as many as for the handshake."""
    _context: CallContext | None = field(default=None, init=False)
    """Of the last request: the DELETE goes in its name."""
    _posted: tuple[CallContext, bytes] | None = field(default=None, init=False)
    """The header of the last POST, and whose it was: most often the next one has the same."""

    def handshake(self, hello: Hello, context: CallContext, timeout: float) -> Deferred[None]:
        """
        POST `initialize`.

        timeout: seconds until LinkFailed(TIMEOUT).
        Fires when the link is up; what the server sent before its answer is told after that.
        Fails with LinkFailed. Cancelling gives it up. A link that failed is closed.
        """
        self._patience = timeout
        self._handshake = Handshake(self, HTTPInitialize(hello.params), timeout)
        return self._handshake.start(context)

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink, and IHTTPLink for what `call` may be. False also of a closed link."""
        if self.closing:
            return False
        if message.kind is REQUEST:
            assert message.id is not None
            stream: Stream = CallStream(
                around=self.around, listener=self.listener, origin=call, id=message.id
            )
        else:
            stream = NoteStream(around=self.around, listener=self.listener, origin=call)
        if not self.post(stream, message.encode(), context):
            self._full = True
            return False
        if isinstance(stream, NoteStream):
            # Nobody waits for it, so it has no other deadline.
            stream.expect(self._patience)
        return True

    def listen(
        self,
        origin: object,
        lastEventID: bytes | None,
        context: CallContext,
        spoilt: Callable[[bytes], None] | None = None,
    ) -> Deferred[None]:
        """
        See IHTTPLink. ListenRefused(405) also at the bound on streams, and for a lastEventID that
        no server can have given.
        """
        if lastEventID is not None and not isFieldValue(lastEventID):
            return fail(ListenRefused(405, asked=False))
        opened: Deferred[None] = Deferred(lambda _: stream.abort())

        def decided(how: int | Fault | None) -> None:
            if how == 200:
                opened.callback(None)
            elif isinstance(how, int):
                opened.errback(ListenRefused(how))
            else:
                opened.errback(_notOpened(how))

        stream = GetStream(
            around=self.around,
            listener=self.listener,
            origin=origin,
            onOpened=decided,
            onSpoilt=spoilt,
        )
        headers: HeaderPairs = ((b"accept", b"text/event-stream"),)
        if lastEventID is not None:
            headers = (*headers, (b"last-event-id", lastEventID))
        if self.closing:
            stream.abort()
        else:
            self._context = context
            outgoing = self.client.stream(self._fields(headers, context), stream)
            if not self._opened(stream, outgoing):
                opened.errback(ListenRefused(405, asked=False))
        return opened

    # Inside.

    def _farewell(self) -> None:
        """DELETE the session, as far as the server lets us."""
        if self._session is None or self._gone:
            self._hasClosed()
        else:
            self._delete()

    def _fields(self, own: HeaderPairs, context: CallContext | None) -> bytes:
        """The header of a request; what the configuration sets wins over what is forwarded."""
        pairs = list(own)
        if self._session is not None:
            pairs.append((b"mcp-session-id", self._session))
        if self.revision:
            pairs.append((b"mcp-protocol-version", self.revision.encode("ascii")))
        return fieldLines(
            requestHeaders(pairs, self.configured, self.forwardAuthorization, context)
        )

    def postFields(self, context: CallContext) -> bytes:
        """The header of a POST."""
        posted = self._posted
        # A door gives the same object again for the same head; to compare them costs more.
        if posted is None or posted[0] is not context:
            if posted is not None and posted[0] == context:
                posted = (context, posted[1])
            else:
                posted = (context, self._fields((ACCEPT, JSON), context))
            self._posted = posted
        return posted[1]

    def post(self, stream: Stream, body: bytes, context: CallContext) -> bool:
        """POST a message, whose answer a stream takes. False at the bound."""
        self._context = context
        send = self.client.tell if isinstance(stream, NoteStream) else self.client.request
        return self._opened(stream, send(b"POST", self.postFields(context), body, stream))

    def _refused(self, status: int) -> None:
        if status == 404 and self._session is not None:
            self._gone = True

    def established(self, head: ResponseHead) -> Settled | None:
        """Learn the session id from a 2xx answer to `initialize`."""
        ids = set(head.values(b"mcp-session-id"))
        if len(ids) > 1 or any(not _SESSION_ID.fullmatch(one) for one in ids):
            return badAnswer("the server gave a malformed session id")
        for one in ids:
            self._session = one
            self.sessionless = False
            self._posted = None
        return None

    def greeted(self, answer: Message, revision: str) -> None:
        """The server answered `initialize`."""
        self.answer, self.revision, self._posted = answer, revision, None

    def _delete(self) -> None:
        deletion = _Deletion(self._hasClosed)
        fields = self._fields((ACCEPT,), self._context)
        deletion.outgoing = self.client.tell(b"DELETE", fields, None, deletion, beyondBound=True)
        deletion.timer = self.client.clock.callLater(DELETE_WAIT, deletion.ended)


def _notOpened(fault: Fault | None) -> LinkFailed:
    if fault is None:
        return LinkFailed(Reason.CANCELLED, "the stream was given up")
    if fault is Fault.BAD:
        return LinkFailed(Reason.BAD_ANSWER, "the server did not answer with an event stream")
    if fault is Fault.STALLED:
        return LinkFailed(Reason.TIMEOUT, "the server did not answer in time")
    return LinkFailed(Reason.UPSTREAM_UNREACHABLE, "the server cannot be reached")


@define(eq=False, repr=False)
class _Deletion:
    """The DELETE of a session: whatever is answered, or nothing in time, the link is closed."""

    _then: Callable[[], None]
    outgoing: Outgoing | None = None
    timer: IDelayedCall | None = None

    def headReceived(self, head: ResponseHead) -> None:
        self.ended()

    def dataReceived(self, data: bytes) -> None:
        """It was ended at its head."""

    def bodyEnded(self) -> None:
        """It was ended at its head."""

    def failed(self, fault: Fault) -> None:
        self.ended()

    def ended(self) -> None:
        """Give up what is left of it."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if self.outgoing is not None:
            self.outgoing.abort()
        self._then()
