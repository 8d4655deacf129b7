"""
The link to a server that speaks HTTP+SSE (MCP 2024-11-05, basic/transports, HTTP with SSE).

One GET is the stream on which the server says everything; its first event, `endpoint`, names
where messages are POSTed. Theory of operation:

 1. The endpoint must be of the same origin as the configured URL, or there is no link: what is
    POSTed may carry credentials.
 2. A POST is accepted by any 2xx; its body means nothing. The answer to a request comes on the
    stream, so everything the server says has no origin.
 3. A POST that is refused settles its call, or its note. 404 means that the server lost the
    session.
 4. An event that is no message is noise: skipped and counted. Where it seems to be the answer to a
    running request, that call is over, too, for no other will come.
 5. The stream is the session: when it ends, in order or cut, the link is lost. So it is after an
    event over `max_answer`, for nobody can tell whose answer that was.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import ClassVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from gateway.http1.client import HTTPClient
from gateway.http1.urls import Target, sameOrigin
from gateway.links.early import EarlyMessages
from gateway.links.hello import INITIALIZE, initialize, negotiated
from gateway.links.http_answer import Stream, Surroundings
from gateway.links.http_sse_stream import EventStream
from gateway.links.http_streams import NoteStream, badAnswer
from gateway.links.interfaces import (
    EventMark,
    Hello,
    ILink,
    ILinkListener,
    LinkFailed,
    Reason,
    Settled,
)
from gateway.observe.observer import MessageDropped
from gateway.wire.context import CallContext, HeaderPairs
from gateway.wire.envelope import Kind, Message
from gateway.wire.headers import fieldLines, requestHeaders

__all__ = ["HTTPSSELink"]


class _State(Enum):
    SHAKING = "shaking"
    OPEN = "open"
    OVER = "over"


@frozen(eq=False, repr=False)
class _Request:
    """A request that was POSTed; its answer comes on the stream."""

    id: bytes
    call: object | None


@implementer(ILink, ILinkListener)
@define(eq=False, repr=False)
class HTTPSSELink:
    """
    One session with an HTTP+SSE server. `handshake` opens it, once; its user closes it, or its
    server, at `drain`. It is the listener of its own POSTs.

    client: sends the requests; shared by the links of a server.
    configured: the header fields of the configuration, names in lower case.
    forwardAuthorization: whether the client's credentials go to the server.
    onClosed: called once when nothing of it is left.
    """

    client: HTTPClient
    listener: ILinkListener
    configured: HeaderPairs = ()
    forwardAuthorization: bool = False
    onClosed: Callable[[HTTPSSELink], None] | None = None
    answer: Message = field(init=False)
    sessionless: ClassVar[bool] = False
    multiplexed: ClassVar[bool] = True
    _around: Surroundings = field(init=False)
    _state: _State = field(default=_State.SHAKING, init=False)
    _endpoint: Target | None = field(default=None, init=False)
    _stream: EventStream | None = field(default=None, init=False)
    _streams: set[Stream] = field(factory=set, init=False)
    _posts: dict[object, Stream] = field(factory=dict, init=False)
    """The POSTs that the server has not accepted, by request or note."""
    _requests: dict[bytes, _Request] = field(factory=dict, init=False)
    _calls: dict[object, _Request] = field(factory=dict, init=False)
    _early: EarlyMessages = field(init=False)
    _hello: tuple[bytes, CallContext] | None = field(default=None, init=False)
    _opening: Deferred[None] | None = field(default=None, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _patience: float = field(default=60.0, init=False)
    _full: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        client = self.client
        self._around = Surroundings(
            client.server,
            client.limits,
            client.clock,
            client.observer,
            self._streamTold,
            self._streams.discard,
            lambda status: None,
        )
        self._early = EarlyMessages(client.server, client.limits, client.observer)

    # The handshake.

    def handshake(self, hello: Hello, context: CallContext, timeout: float) -> Deferred[None]:
        """
        GET the stream, wait for the endpoint, POST `initialize`, wait for the answer.

        timeout: seconds for all of it.
        Fires when the link is up; what the server sent before its answer is told after that.
        Fails with LinkFailed, with NoEventStream where the server opened no stream. Cancelling
        gives it up. A link that failed is closed.
        """
        self._patience = timeout
        self._hello = (initialize(hello.params), context)
        opening = self._opening = Deferred(lambda _: self._givenUp())
        stream = EventStream(around=self._around, listener=self.listener, origin=None, link=self)
        outgoing = self.client.stream(
            self._fields(((b"accept", b"text/event-stream"),), context), stream
        )
        if outgoing is None:
            self.fail(LinkFailed(Reason.OVERLOADED, "the server has no connection left"))
            return opening
        stream.outgoing = outgoing
        self._stream = stream
        self._streams.add(stream)
        self._timer = self.client.clock.callLater(timeout, self._timedOut)
        return opening

    def _timedOut(self) -> None:
        self._timer = None
        why = "the server did not answer initialize in time"
        if self._endpoint is None:
            why = "the server named no endpoint in time"
        self.fail(LinkFailed(Reason.TIMEOUT, why))

    def _givenUp(self) -> None:
        self._opening = None
        self.close()

    def endpointReceived(self, reference: bytes) -> None:
        """The server said where to POST."""
        if self._endpoint is not None or self._hello is None:
            self._dropped("second_endpoint")
            return
        try:
            if not reference.strip():
                raise ValueError
            self._endpoint = Target.at(sameOrigin(self.client.url, reference.strip()))
        except ValueError:
            why = "the server named an endpoint that is none of its own"
            self.fail(LinkFailed(Reason.BAD_ANSWER, why))
            return
        body, context = self._hello
        if not self._post(body, _Request(INITIALIZE, None), context):
            self.fail(LinkFailed(Reason.OVERLOADED, "the server has no connection left"))

    def _greeted(self, message: Message) -> None:
        try:
            negotiated(message)
        except LinkFailed as error:
            self.fail(error)
            return
        self.answer = message
        self._state = _State.OPEN
        self._stopTimer()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.callback(None)
        for kept in self._early.take():
            if self._isOpen():
                self.listener.received(kept, None, None)

    def fail(self, error: LinkFailed) -> None:
        """The handshake came to nothing."""
        opening, self._opening = self._opening, None
        self.close()
        if opening is not None:
            opening.errback(error)

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    # ILink.

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink. False also of a closed link."""
        if not self._isOpen():
            return False
        origin = call
        if message.kind is Kind.REQUEST and message.id is not None:
            origin = _Request(message.id, call)
        if not self._post(message.encode(), origin, context):
            self._full = True
            return False
        if isinstance(origin, _Request):
            self._requests[origin.id] = self._calls[call] = origin
        return True

    def _post(self, body: bytes, origin: object | None, context: CallContext) -> bool:
        post = NoteStream(around=self._around, listener=self, origin=origin)
        accept = (b"accept", b"application/json, text/event-stream")
        fields = self._fields((accept, (b"content-type", b"application/json")), context)
        send = self.client.request if isinstance(origin, _Request) else self.client.tell
        outgoing = send(b"POST", fields, body, post, self._endpoint)
        if outgoing is None:
            return False
        post.outgoing = outgoing
        self._streams.add(post)
        if origin is not None:
            self._posts[origin] = post
        if not isinstance(origin, _Request):
            # Nobody waits for it, so it has no other deadline.
            post.expect(self._patience)
        return True

    def cancel(self, call: object) -> None:
        """See ILink."""
        request = self._calls.get(call)
        post = self._posts.get(call if request is None else request)
        if post is not None:
            post.abort()
        if request is not None:
            self._forget(request)

    def hold(self, origin: object | None) -> None:
        """See ILink: there is one stream for all."""
        if origin is None and self._stream is not None:
            self._stream.hold()

    def release(self, origin: object | None) -> None:
        """See ILink."""
        if origin is None and self._stream is not None:
            self._stream.release()

    def close(self) -> Deferred[None]:
        """See ILink: the end of the stream is the end of the session."""
        if self._state is not _State.OVER:
            self._state = _State.OVER
            self._stopTimer()
            opening, self._opening = self._opening, None
            self._early.take()
            self._calls.clear()
            self._requests.clear()
            for stream in list(self._streams):
                stream.abort()
            if self.onClosed is not None:
                self.onClosed(self)
            if opening is not None:
                opening.errback(LinkFailed(Reason.SHUTTING_DOWN, "the link was closed"))
        return succeed(None)

    def roomAgain(self) -> None:
        """The client can take requests again; said by the server."""
        if self._full and self._isOpen():
            self._full = False
            self.listener.drained()

    def losing(self, reason: Reason, message: str) -> None:
        """End it, and tell its user so."""
        if self._state is _State.SHAKING:
            self.fail(LinkFailed(reason, message))
        elif self._isOpen():
            self.close()
            self.listener.lost(reason, message)

    # What the stream and the POSTs say.

    def messageReceived(self, message: Message) -> None:
        """The server said something."""
        if self._state is _State.SHAKING:
            if message.kind is not Kind.RESPONSE:
                self._early.add(message)
            elif message.id == INITIALIZE:
                self._greeted(message)
            else:
                self._dropped("unknown_id")
        elif self._isOpen():
            request = self._requests.get(message.id or b"")
            if message.kind is Kind.RESPONSE and request is not None:
                self._answered(request)
            self.listener.received(message, None, None)

    def malformedReceived(self, id: bytes) -> None:
        """The server said what is no message, but seems to be the answer of this id."""
        settled = badAnswer("the server's answer is malformed")
        if self._state is _State.SHAKING:
            if id == INITIALIZE and self._endpoint is not None:
                self.fail(LinkFailed(settled.reason, settled.message))
        elif self._isOpen():
            request = self._requests.get(id)
            if request is not None:
                self._answered(request)
                self.listener.settled(request.call, settled)

    def _answered(self, request: _Request) -> None:
        """A request is over; a server that answers before it accepts has little time for that."""
        self._forget(request)
        post = self._posts.get(request)
        if post is not None:
            post.leave()
            post.linger()

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        """A POST's answer says nothing."""

    def marked(self, origin: object | None, mark: EventMark) -> None:
        """A POST's answer says nothing."""

    def ended(self, origin: object) -> None:
        """A POST is no GET."""

    def drained(self) -> None:
        """A POST waits for no room."""

    def lost(self, reason: Reason, message: str) -> None:
        """A POST is no link."""

    def accepted(self, call: object) -> None:
        """The server took a message; of a request its answer tells more."""
        if self._isOpen() and not isinstance(call, _Request):
            self.listener.accepted(call)

    def settled(self, call: object, settled: Settled) -> None:
        """The server did not take a message."""
        if self._state is _State.SHAKING:
            self.fail(LinkFailed(settled.reason, settled.message, settled.body))
        elif self._isOpen():
            if isinstance(call, _Request):
                self._forget(call)
                call = call.call
            self.listener.settled(call, settled)

    # Inside.

    def _isOpen(self) -> bool:
        return self._state is _State.OPEN

    def _fields(self, own: HeaderPairs, context: CallContext) -> bytes:
        return fieldLines(requestHeaders(own, self.configured, self.forwardAuthorization, context))

    def _forget(self, request: _Request) -> None:
        self._requests.pop(request.id, None)
        self._calls.pop(request.call, None)

    def _streamTold(self, stream: Stream) -> None:
        if stream.origin is not None and self._posts.get(stream.origin) is stream:
            del self._posts[stream.origin]

    def _dropped(self, why: str) -> None:
        self.client.observer.observed(MessageDropped(self.client.server, why))
