"""
HTTP towards one configured server, over `twisted.web.client.Agent`: a request goes out whole; its
answer comes as a head and then a body that can be paused, refused and cut.

 1. Every request ends in exactly one of: the body ended, `failed`, or our own `abort`. A body is
    always read or its connection cut, for an unread one would hold its connection for ever.
 2. No listener is called from within `request`.
 3. A 307 or 308 to the same origin is followed, at most 5 times, method and body kept (RFC 9110
    section 15.4.8). Any other redirect reaches the receiver as the head it is; nothing is sent
    where it points.
 4. Whether a request can have reached the server is told: everything up to the TLS handshake is
    `UNSENT`, everything after the first byte was handed to the transport is not.
 5. At most `max_upstream_connections` requests are on their way, each with a connection of its own;
    beside them at most `max_upstream_streams` that wait for what the server has to say, so that
    idle ones take no room from the rest.
 6. No retries, no cookies, no content coding (`Accept-Encoding: identity`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from attrs import define, field, frozen
from OpenSSL.SSL import Error as TLSError
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.urls import sameOrigin
from gateway.observe.observer import BoundReached, IObserver
from gateway.wire.context import HeaderPairs

__all__ = ["Fault", "HTTPClient", "Outgoing", "Receiver", "ResponseHead"]

MAX_REDIRECTS = 5
_CUTS = (ConnectionDone, ConnectionLost, ConnectionAborted, TLSError)

_log = Logger(namespace="gateway.links.http_client")


class Fault(Enum):
    """How a request failed."""

    UNSENT = "nothing of it was sent"
    CUT = "the connection was lost after it was sent"
    BAD = "what came is no acceptable HTTP"


@frozen(repr=False)
class ResponseHead:
    """The final head of an answer: its status and its fields."""

    status: int
    headers: Headers

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a field."""
        return list(self.headers.getRawHeaders(name, ()))

    @property
    def mediaType(self) -> bytes:
        """The media type in lower case, without parameters; b"" where it is missing or twice."""
        values = self.values(b"content-type")
        return values[0].split(b";")[0].strip().lower() if len(values) == 1 else b""

    @property
    def encoded(self) -> bool:
        """Whether the body has a content coding."""
        codings = b",".join(self.values(b"content-encoding")).lower().split(b",")
        return any(one.strip() not in (b"", b"identity") for one in codings)


class Receiver(Protocol):
    """What hears of the answer to one request."""

    def headReceived(self, head: ResponseHead) -> None:
        """The final head came."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body came."""

    def bodyEnded(self) -> None:
        """The body is complete, or, where it had no length, the server ended it."""

    def failed(self, fault: Fault) -> None:
        """The request failed; nothing else is called."""


@implementer(IBodyProducer)
@frozen(eq=False, repr=False)
class _Body:
    """A body that is written at once."""

    body: bytes

    @property
    def length(self) -> int:
        return len(self.body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written already."""

    def resumeProducing(self) -> None:
        """All is written already."""

    def stopProducing(self) -> None:
        """All is written already."""


class _Reading(TwistedProtocol):
    """Passes the body of one answer on."""

    def __init__(self, outgoing: Outgoing | None) -> None:
        self._outgoing = outgoing

    def connectionMade(self) -> None:
        if self._outgoing is None:
            self.cut()

    def cut(self) -> None:
        """Cut the connection, unless the body is complete already."""
        self._outgoing = None
        self.transport.stopProducing()  # type: ignore[union-attr]  # Agent's is a producer

    def dataReceived(self, data: bytes) -> None:
        if self._outgoing is not None:
            self._outgoing.bodyReceived(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.bodyLost(reason.value if reason is not None else None)


@define(eq=False, repr=False)
class Outgoing:
    """
    One request on its way, until its answer ended. `HTTPClient.request` starts it; it ends with
    its answer, or by `abort`.
    """

    _client: HTTPClient
    _method: bytes
    _url: bytes
    _headers: Headers
    _body: bytes | None
    _receiver: Receiver | None
    _requested: Deferred[IResponse] | None = field(default=None, init=False)
    _starting: bool = field(default=False, init=False)
    _soon: IDelayedCall | None = field(default=None, init=False)
    _reading: _Reading | None = field(default=None, init=False)
    _paused: bool = field(default=False, init=False)
    _redirects: int = field(default=0, init=False)

    def start(self) -> None:
        """Send the request, to where `_url` points."""
        body = None if self._body is None else _Body(self._body)
        try:
            requested = self._client.agent.request(self._method, self._url, self._headers, body)
        except ValueError:
            requested = fail()
        self._requested, self._starting = requested, True
        requested.addBoth(self._came)
        self._starting = False

    def _came(self, result: IResponse | Failure) -> None:
        self._requested = None
        if self._starting:
            self._soon = self._client.clock.callLater(0, self._take, result)
        else:
            self._take(result)

    def _take(self, result: IResponse | Failure) -> None:
        self._soon = None
        try:
            if isinstance(result, Failure):
                self._requestFailed(result.value)
            else:
                self._headReceived(result)
        except Exception:
            # A receiver raised: a fault of ours, and its request must still end.
            _log.failure("while an answer was taken")
            receiver = self._receiver
            self.abort()
            if receiver is not None:
                receiver.failed(Fault.BAD)

    def pause(self) -> None:
        """Read no more of the body, until `resume`."""
        self._paused = True
        if self._reading is not None and self._reading.transport is not None:
            self._reading.transport.pauseProducing()  # type: ignore[attr-defined]  # a producer

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._reading is not None and self._reading.transport is not None:
            self._reading.transport.resumeProducing()  # type: ignore[attr-defined]  # a producer

    def abort(self) -> None:
        """Cut the connection; the receiver hears nothing more. May be called at any time."""
        self._receiver = None
        if self._soon is not None:
            # What came at once is whole or has no connection: nothing is left of it.
            self._soon.cancel()
            self._soon = None
        requested, self._requested = self._requested, None
        if requested is not None:
            requested.cancel()
        reading, self._reading = self._reading, None
        if reading is not None and reading.transport is not None:
            reading.cut()
        self._client.ended(self)

    def _headReceived(self, response: IResponse) -> None:
        self._client.reached = True
        receiver = self._receiver
        if receiver is None:
            response.deliverBody(_Reading(None))
            return
        head = ResponseHead(response.code, response.headers)
        if head.status in (307, 308):
            target = self._redirected(head)
            if target is not None:
                response.deliverBody(_Reading(None))
                self._redirects += 1
                self._url = target
                self.start()
                return
        receiver.headReceived(head)
        if self._receiver is None:
            response.deliverBody(_Reading(None))
            return
        reading = self._reading = _Reading(self)
        response.deliverBody(reading)
        # Agent resumes the transport when a body is delivered.
        if self._paused and self._reading is reading:
            self.pause()

    def _redirected(self, head: ResponseHead) -> bytes | None:
        """Where a 307 or 308 points, if that may be followed."""
        locations = head.values(b"location")
        if self._redirects >= MAX_REDIRECTS or len(locations) != 1:
            return None
        try:
            return sameOrigin(self._url, locations[0])
        except ValueError:
            return None

    def _requestFailed(self, error: BaseException | None) -> None:
        if isinstance(error, RequestGenerationFailed | RequestTransmissionFailed):
            self._failed(Fault.CUT)
        elif isinstance(error, ResponseFailed):
            self._failed(_faultOf(error))
        else:
            # Everything else comes from connecting, or before it.
            if self._receiver is not None:
                self._client.reached = False
                why = type(error).__name__
                _log.debug("{server} not reached: {why}", server=self._client.server, why=why)
            self._failed(Fault.UNSENT)

    def bodyReceived(self, data: bytes) -> None:
        """Bytes of the body came."""
        if self._receiver is not None:
            self._receiver.dataReceived(data)

    def bodyLost(self, reason: BaseException | None) -> None:
        """No more of the body comes."""
        if isinstance(reason, ResponseDone | PotentialDataLoss):
            receiver, self._receiver = self._receiver, None
            self._client.ended(self)
            if receiver is not None:
                receiver.bodyEnded()
        else:
            self._failed(_faultOf(reason))

    def _failed(self, fault: Fault) -> None:
        receiver, self._receiver = self._receiver, None
        self._client.ended(self)
        if receiver is not None:
            receiver.failed(fault)


def _faultOf(error: BaseException | None) -> Fault:
    """Whether a failed answer was cut or was bad: its first reason tells."""
    reasons = error.reasons if isinstance(error, ResponseFailed) else []
    first = reasons[0].value if reasons else error
    return Fault.CUT if isinstance(first, _CUTS) else Fault.BAD


@define(eq=False, repr=False)
class HTTPClient:
    """
    Requests to one server. It lives as long as its server; `abort` ends what is on its way.

    agent: an Agent without redirects, retries, cookies and decoding (`Connections.agent`).
    reached: whether the last attempt to connect came about; None before the first.
    onRoom: called when there is room again after `request` returned None; set by the server.
    """

    agent: IAgent
    url: bytes
    server: str
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    reached: bool | None = field(default=None, init=False)
    onRoom: Callable[[], None] | None = field(default=None, init=False)
    _requests: set[Outgoing] = field(factory=set, init=False)
    _streams: set[Outgoing] = field(factory=set, init=False)
    _full: bool = field(default=False, init=False)
    _soon: IDelayedCall | None = field(default=None, init=False)

    def request(
        self,
        method: bytes,
        headers: HeaderPairs,
        body: bytes | None,
        receiver: Receiver,
        beyondBound: bool = False,
        url: bytes | None = None,
    ) -> Outgoing | None:
        """
        Send a request to the configured URL, or another of the same origin.

        headers: all its fields but Host, Content-Length and what belongs to the connection.
        beyondBound: send it also at the bound; for what releases something at the server.
        Returns: the request, or None at the bound on connections; nothing was taken then.
        """
        if len(self._requests) >= self.limits.max_upstream_connections and not beyondBound:
            self._full = self._soon is None
            self._bounded("max_upstream_connections")
            return None
        return self._start(self._requests, method, headers, body, receiver, url or self.url)

    def stream(self, headers: HeaderPairs, receiver: Receiver) -> Outgoing | None:
        """
        GET a stream that may stay open for as long as anybody listens.

        headers: as for `request`.
        Returns: the request, or None at the bound on streams.
        """
        if len(self._streams) >= self.limits.max_upstream_streams:
            self._bounded("max_upstream_streams")
            return None
        return self._start(self._streams, b"GET", headers, None, receiver, self.url)

    def _bounded(self, limit: str) -> None:
        self.observer.observed(BoundReached(limit, self.server))

    def _start(
        self,
        among: set[Outgoing],
        method: bytes,
        headers: HeaderPairs,
        body: bytes | None,
        receiver: Receiver,
        url: bytes,
    ) -> Outgoing:
        fields = Headers()
        for name, value in headers:
            fields.addRawHeader(name, value)
        outgoing = Outgoing(self, method, url, fields, body, receiver)
        among.add(outgoing)
        outgoing.start()
        return outgoing

    def ended(self, outgoing: Outgoing) -> None:
        """A request is no longer on its way."""
        self._streams.discard(outgoing)
        if outgoing in self._requests:
            self._requests.discard(outgoing)
            if self._full:
                self._full = False
                self._soon = self.clock.callLater(0, self._room)

    def _room(self) -> None:
        self._soon = None
        if self.onRoom is not None:
            self.onRoom()

    def abort(self) -> None:
        """Cut everything that is on its way; no receiver hears of it."""
        self._full = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        for outgoing in [*self._requests, *self._streams]:
            outgoing.abort()
