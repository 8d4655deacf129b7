"""
Requests to one configured server: a request goes out whole; its answer comes as a head and then a
body that can be paused, refused and cut.

 1. Every request ends in exactly one of: the body ended, `failed`, or our own `abort`. A body is
    always read or its connection cut.
 2. No listener is called from within `request`, `tell` or `stream`.
 3. A 307 or 308 to the same origin is followed, at most 5 times, method and body kept (RFC 9110
    section 15.4.8). Any other redirect reaches the receiver as the head it is; nothing is sent
    where it points.
 4. Whether a request can have reached the server is told (`Fault`). A kept connection that turns
    out to be closed before anything was sent costs the request nothing: it takes another. Once
    something was sent, nothing is sent again.
 5. Three lanes (`gateway.http1.lanes`): requests that may take long, what a server only has to
    accept (`tell`: a running request may be waiting for it), and streams, which do not wait.
 6. No retries but of connects (`Pool`), no cookies, no content coding.
 7. Silence has a bound (`upstream_first_byte`, `upstream_idle`) where the asker has no deadline of
    its own: requests have one, which progress extends, until their answer turns out to be a plain
    body; so only streams are bound from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.client import URI
from twisted.web.iweb import IPolicyForHTTPS

from gateway.guard.limits import Limits
from gateway.http1.connection import Connection, Fault
from gateway.http1.lanes import Lane, Queue
from gateway.http1.outflow import PIECE
from gateway.http1.pool import Attempt, Pool, SystemTrust
from gateway.http1.responses import ResponseHead
from gateway.http1.urls import Target, sameOrigin
from gateway.observe.observer import BoundReached, IObserver

__all__ = ["Fault", "HTTPClient", "Outgoing", "Receiver", "ResponseHead"]

MAX_REDIRECTS = 5
_FIRST = PIECE // 2
"""Bytes of a large body that go out with its head."""

_NOBODY = (502, 503, 504)
"""The statuses by which a proxy says that nobody serves behind it."""

_log = Logger(namespace="gateway.http1")


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


# A Struct, as each call makes one (see `gateway.wire.envelope`).
class Outgoing(msgspec.Struct, eq=False):
    """
    One request on its way, until its answer ended. `HTTPClient` makes it; it ends with its answer,
    or by `abort`.

    paused: whether the body is held back.
    headWait, bodyWait: seconds of silence before the head, and in the body, that make it fail;
        None: any time, for its asker has a deadline.
    """

    _client: HTTPClient
    _lane: Lane
    _method: bytes
    _target: Target
    _fields: bytes
    _body: bytes | None
    _receiver: Receiver | None
    headWait: float | None = None
    bodyWait: float | None = None
    paused: bool = False
    _connection: Connection | None = None
    _attempt: Attempt | None = None
    _redirects: int = 0
    # Its header may hold credentials.
    __repr__ = object.__repr__

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return 0 if self._body is None else len(self._body)

    def start(self) -> None:
        """Send it, on an idle connection or a new one."""
        pool = self._client.pool
        request, rest = self._written()
        while (connection := pool.take()) is not None:
            if connection.send(self, request, rest):
                self._connection = connection
                return
        self._attempt = pool.connect(self)

    def _written(self) -> tuple[bytes, memoryview | None]:
        """The request; of one that is large its beginning, and what follows."""
        body, rest = self._body, None
        if body is None:
            return b"%b%b%b\r\n" % (self._method, self._target.line, self._fields), None
        length = len(body)
        if length > PIECE:
            body, rest = body[:_FIRST], memoryview(body)[_FIRST:]
        first = b"%b%b%bContent-Length: %d\r\n\r\n%b" % (
            self._method,
            self._target.line,
            self._fields,
            length,
            body,
        )
        return first, rest

    def connected(self, connection: Connection) -> None:
        """See Connecting."""
        self._attempt = None
        self._client.reached = True
        if connection.send(self, *self._written(), fresh=True):
            self._connection = connection
        else:
            self.failed(Fault.UNSENT)

    def notConnected(self, error: BaseException | None) -> None:
        """See Connecting."""
        self._attempt = None
        self._client.reached = False
        why = type(error).__name__
        _log.debug("{server} not reached: {why}", server=self._client.server, why=why)
        self.failed(Fault.UNSENT)

    def pause(self) -> None:
        """Read no more of the body, until `resume`."""
        self.paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if self._connection is not None:
            self._connection.resume()

    def abort(self) -> None:
        """Cut the connection; the receiver hears nothing more. May be called at any time."""
        connection, attempt = self._connection, self._attempt
        self._receiver = self._connection = self._attempt = None
        if connection is not None:
            connection.abort()
        if attempt is not None:
            attempt.cancel()
        self._lane.leave(self)

    # What the connection says. It says nothing more after `abort`.

    def headReceived(self, head: ResponseHead) -> bool:
        """See Asking."""
        if head.status in (307, 308):
            target = self._redirected(head)
            if target is not None:
                self._redirects += 1
                self._target = target
                self._connection = None
                return False
        self._client.reached = head.status not in _NOBODY
        if self._receiver is not None:
            self._receiver.headReceived(head)
        return True

    def again(self) -> None:
        """See Asking."""
        self.start()

    def _redirected(self, head: ResponseHead) -> Target | None:
        """Where a 307 or 308 points, if that may be followed."""
        locations = head.values(b"location")
        if self._redirects >= MAX_REDIRECTS or len(locations) != 1:
            return None
        try:
            return Target.at(sameOrigin(self._target.url, locations[0]))
        except ValueError:
            return None

    def dataReceived(self, data: bytes) -> None:
        """See Asking."""
        if self._receiver is not None:
            self._receiver.dataReceived(data)

    def ended(self) -> None:
        """See Asking."""
        receiver, self._receiver, self._connection = self._receiver, None, None
        self._lane.leave(self)
        if receiver is not None:
            receiver.bodyEnded()

    def failed(self, fault: Fault) -> None:
        """See Asking."""
        receiver, self._receiver, self._connection = self._receiver, None, None
        self._lane.leave(self)
        if fault is Fault.CUT and self._client.reached:
            self._client.reached = None
        if receiver is not None:
            receiver.failed(fault)


@define(eq=False, repr=False)
class HTTPClient:
    """
    Requests to one server. It lives as long as its server; `close` ends what is on its way.

    url: the configured one. reactor: connects. clock: measures every time.
    policy: whom to trust over TLS; the system's authorities by default.
    pool: its connections.
    reached: what the last attempt to connect, or the last answer, showed: whether somebody serves
        there; None before the first, and after an answer that broke off. An answer by which a
        proxy says that nobody does shows that.
    """

    uri: URI
    server: str
    limits: Limits
    reactor: Any
    clock: IReactorTime
    observer: IObserver
    policy: IPolicyForHTTPS = field(factory=SystemTrust)
    pool: Pool = field(init=False)
    target: Target = field(init=False)
    reached: bool | None = field(default=None, init=False)
    _queue: Queue = field(init=False)
    _calls: Lane = field(init=False)
    _notes: Lane = field(init=False)
    _streams: Lane = field(init=False)

    def __attrs_post_init__(self) -> None:
        limits, bounded = self.limits, self._bounded
        self.target = Target.of(self.uri)
        self.pool = Pool(self.uri, limits, self.reactor, self.clock, bounded, self.policy)
        self._queue = queue = Queue(limits, self.clock, bounded)
        most, name = limits.max_upstream_connections, "max_upstream_connections"
        self._calls = Lane(most, name, bounded, queue)
        self._notes = Lane(max(1, most // 4), name, bounded, queue)
        self._streams = Lane(limits.max_upstream_streams, "max_upstream_streams", bounded)

    @property
    def url(self) -> bytes:
        """The configured URL."""
        return self.target.url

    def whenRoom(self, then: Callable[[], None]) -> None:
        """Have something called whenever there is room again after a request was not taken."""
        self._queue.onRoom = then

    def request(
        self,
        method: bytes,
        fields: bytes,
        body: bytes | None,
        receiver: Receiver,
        target: Target | None = None,
    ) -> Outgoing | None:
        """
        Send a request whose answer may take long.

        fields: its header field lines, without Host, Content-Length and what belongs to the
            connection (`gateway.wire.headers.fieldLines`).
        target: where to, at the same origin; the configured URL without.
        Returns: the request, or None at the bound; nothing was taken then.
        """
        outgoing = Outgoing(
            self, self._calls, method, target or self.target, fields, body, receiver
        )
        return outgoing if self._calls.enter(outgoing) else None

    def tell(
        self,
        method: bytes,
        fields: bytes,
        body: bytes | None,
        receiver: Receiver,
        target: Target | None = None,
        beyondBound: bool = False,
    ) -> Outgoing | None:
        """
        Send what a server only has to accept. As `request`.

        beyondBound: send it also at the bound; for what releases something at the server.
        """
        outgoing = Outgoing(
            self, self._notes, method, target or self.target, fields, body, receiver
        )
        return outgoing if self._notes.enter(outgoing, beyondBound) else None

    def stream(self, fields: bytes, receiver: Receiver) -> Outgoing | None:
        """
        GET a stream that may stay open for as long as anybody listens.

        Returns: the request, or None at the bound on streams.
        """
        outgoing = Outgoing(self, self._streams, b"GET", self.target, fields, None, receiver)
        outgoing.headWait = self.limits.upstream_first_byte
        outgoing.bodyWait = self.limits.upstream_idle
        return outgoing if self._streams.enter(outgoing) else None

    def subscribe(self, fields: bytes, body: bytes, receiver: Receiver) -> Outgoing | None:
        """
        POST a request whose answer is a stream as `stream` has, silent for as long as it likes.

        Returns: the request, or None at the bound on streams.
        """
        outgoing = Outgoing(self, self._streams, b"POST", self.target, fields, body, receiver)
        outgoing.headWait = self.limits.upstream_first_byte
        return outgoing if self._streams.enter(outgoing) else None

    def _bounded(self, limit: str) -> None:
        self.observer.observed(BoundReached(limit, self.server))

    def close(self) -> Deferred[None]:
        """
        Cut everything that is on its way; no receiver hears of it.

        Fires when no connection is left.
        """
        for lane in (self._calls, self._notes, self._streams):
            for outgoing in lane.all():
                outgoing.abort()
        self._queue.stop()
        return self.pool.close()
