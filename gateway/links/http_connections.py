"""
The connections to one HTTP server, beneath Agent.

What Agent leaves open is closed here, for each connection:

 1. It counts as connected when its TLS handshake is done, so that a failed handshake is a failed
    connect: nothing was sent.
 2. The connect time-out covers name resolution, TCP and TLS, on the gateway's own clock.
 3. A response's head is withheld until it is whole, and judged: at most `max_upstream_head`
    bytes in all (interim 1xx heads included), lines of at most 16 KiB (Agent's parser drops
    longer ones), CRLF line ends, no folded lines, no control characters, one unambiguous framing
    of the body.
 4. A server that speaks before it was asked, sends more than the length it told, or says "close"
    in another case than Agent knows, loses the connection.
 5. `stopProducing` of a response's transport aborts; `loseConnection` may wait for the peer.

Only the one origin of the configured URL can be connected to.
"""

# What is wrapped here has no annotations in Twisted, and `super()` hides whose it is.
# mypy: allow-untyped-calls

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import TimeoutError
from twisted.internet.interfaces import (
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
)
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

from gateway.guard.limits import Limits

__all__ = ["BadHead", "Connections", "judgeHead"]

CACHED_FOR = 2.5
"""Seconds an idle connection is kept: less than the 5 s that common servers keep theirs."""

_MAX_LINE = 16_384
_END = re.compile(rb"\r\n\r\n|\n\n|\n\r\n")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")


class BadHead(Exception):
    """A response breaks a rule of its head or the length it told. Says which."""


def judgeHead(head: bytes) -> tuple[int, bool, int | None]:
    """
    Judge the head of a response, up to and with its blank line (RFC 9112 sections 4 to 6).

    Returns: the status, whether the server will close the connection, and the length of the
        body, where the head tells.
    Raises: BadHead.
    """
    lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(lines[0])
    if status is None or lines[-2:] != [b"", b""]:
        raise BadHead("no status line, or a line that does not end with CRLF")
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    closes = head.startswith(b"HTTP/1.0")
    for line in lines[1:-2]:
        match = _FIELD.fullmatch(line)
        if match is None or len(line) >= _MAX_LINE:
            raise BadHead("a malformed header line")
        name, value = match[1].lower(), match[2].strip(b" \t")
        if name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            closes = closes or b"close" in [one.strip() for one in value.lower().split(b",")]
    if codings and (codings != [b"chunked"] or lengths or head.startswith(b"HTTP/1.0")):
        raise BadHead("an ambiguous framing of the body")
    if len(lengths) > 1 or any(not one.isdigit() or len(one) > 18 for one in lengths):
        raise BadHead("an ambiguous length of the body")
    bodiless = status[1] in (b"204", b"304")
    return int(status[1]), closes, 0 if bodiless else int(lengths.pop()) if lengths else None


@implementer(IHandshakeListener)
class _Connection(ProtocolWrapper):
    """One connection; opened by the endpoint below, closed by the pool, a response, or `drop`."""

    factory: _ConnectionFactory
    _awaiting = False
    _head: bytearray
    _seen = 0
    _left: int | None = None
    """Bytes of the body still to come, where the head told."""
    _refused = False

    def makeConnection(self, transport: Any) -> None:
        self.factory.owner.opened(self)
        super().makeConnection(transport)

    def handshakeCompleted(self) -> None:
        """TLS is up and the server's name verified."""
        self.factory.connected(self.wrappedProtocol)

    def writeSequence(self, data: Any) -> None:
        """Only the head of a request is written so."""
        self._awaiting, self._head, self._seen = True, bytearray(), 0
        super().writeSequence(data)

    def stopProducing(self) -> None:
        """Cut the connection."""
        self.abortConnection()

    def abortConnection(self) -> None:
        """Cut the connection."""
        self.disconnecting = 1
        self.transport.abortConnection()  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._awaiting and self.wrappedProtocol.state == "QUIESCENT":  # type: ignore[attr-defined]
            self.abortConnection()
            return
        try:
            known = self._headReceived(data) if self._awaiting else self._bodyReceived(data)
        except BadHead as error:
            self._refused = True
            self.wrappedProtocol.connectionLost(Failure(error))
            self.abortConnection()
            return
        if known is not None:
            super().dataReceived(known)

    def _bodyReceived(self, data: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise BadHead("the body is longer than its head told")
        return data

    def _headReceived(self, data: bytes) -> bytes | None:
        """The final head and what follows it, once it is whole."""
        head = self._head
        fresh = max(0, len(head) - 3)
        head += data
        while (end := _END.search(head, fresh)) is not None:
            size = end.end()
            self._bound(self._seen + size)
            status, closes, self._left = judgeHead(bytes(head[:size]))
            if status >= 200:
                self._awaiting, self._head = False, bytearray()
                rest = self._bodyReceived(bytes(head[size:]))
                if closes:
                    # Agent takes only this spelling for the end of the connection.
                    size -= 2
                    rest = b"connection: close\r\n\r\n" + rest
                return bytes(head[:size]) + rest
            if status == 101:
                raise BadHead("an upgrade nobody asked for")
            self._seen += size
            del head[:size]
            fresh = 0
        self._bound(self._seen + len(head))
        return None

    def _bound(self, size: int) -> None:
        if size > self.factory.owner.limits.max_upstream_head:
            self.factory.owner.bounded("max_upstream_head")
            raise BadHead("the head is too large")

    def connectionLost(self, reason: Any = None) -> None:
        if self._refused:
            # The protocol heard of its end already.
            self.factory.unregisterProtocol(self)
        else:
            self._refused = True
            super().connectionLost(reason)
        self.factory.disconnected(reason)
        self.factory.owner.closed(self)


class _ConnectionFactory(WrappingFactory[_Connection]):
    """Makes one connection and says when it is ready."""

    protocol = _Connection

    def __init__(self, wrapped: Any, owner: Connections) -> None:
        super().__init__(wrapped)
        self.owner = owner
        self.ready: Deferred[IProtocol] | None = Deferred()

    def doStart(self) -> None:
        """Agent's factory would log each start, with a `repr` of the endpoint."""

    def doStop(self) -> None:
        """As quietly as it started."""

    def connected(self, protocol: IProtocol) -> None:
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(protocol)

    def disconnected(self, reason: Failure) -> None:
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.errback(reason)


@implementer(IStreamClientEndpoint)
@define(eq=False, repr=False)
class _Endpoint:
    """Connects within the time-out, TLS handshake included."""

    _owner: Connections
    _endpoint: IStreamClientEndpoint
    _encrypted: bool

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        factory = _ConnectionFactory(protocolFactory, self._owner)
        ready = factory.ready
        assert ready is not None
        late: list[bool] = []

        def cancel(_: object) -> None:
            factory.ready = None
            connecting.cancel()
            for connection in list(factory.protocols):
                connection.abortConnection()

        def expired() -> None:
            late.append(True)
            self._owner.bounded("connect_timeout")
            done.cancel()

        def ended(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return Failure(TimeoutError()) if late and isinstance(result, Failure) else result

        def connected(connection: Any) -> None:
            if not self._encrypted:
                factory.connected(connection.wrappedProtocol)

        done: Deferred[IProtocol] = Deferred(cancel)
        done.addBoth(ended)
        timer = self._owner.clock.callLater(self._owner.limits.connect_timeout, expired)
        ready.addCallbacks(done.callback, done.errback)
        connecting = self._endpoint.connect(factory)
        connecting.addCallbacks(connected, factory.disconnected)
        connecting.addErrback(lambda failure: _log.failure("while connecting", failure))
        return done


_log = Logger(namespace="gateway.links.http_connections")


@implementer(IAgentEndpointFactory)
@define(eq=False, repr=False)
class Connections:
    """
    The connections to the origin of one URL, idle and busy. They open as `agent` needs them;
    `close` ends them all.

    uri: the configured URL.
    reactor: connects; clock: measures every time.
    policy: whom to trust over TLS; Agent's own default without.
    bounded: told the name of each limit that is reached.
    agent: the Agent over these connections: persistent ones, no retries, no redirects, no
        cookies, no decoding.
    """

    uri: URI
    limits: Limits
    reactor: Any
    clock: IReactorTime
    policy: IPolicyForHTTPS = field(factory=BrowserLikePolicyForHTTPS)
    bounded: Callable[[str], None] = field(kw_only=True, default=lambda limit: None)
    agent: Agent = field(init=False)
    _pool: HTTPConnectionPool = field(init=False)
    _endpoint: _Endpoint = field(init=False)
    _open: set[_Connection] = field(factory=set, init=False)
    _closing: list[Deferred[None]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        uri = self.uri
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self.reactor, uri.host.decode("ascii"), uri.port, self.limits.connect_timeout
        )
        encrypted = uri.scheme == b"https"
        if encrypted:
            creator = self.policy.creatorForNetloc(uri.host, uri.port)
            endpoint = wrapClientTLS(creator, endpoint)
        self._endpoint = _Endpoint(self, endpoint, encrypted)
        self._pool = HTTPConnectionPool(self.clock)
        self._pool.maxPersistentPerHost = self.limits.max_upstream_connections
        self._pool.cachedConnectionTimeout = CACHED_FOR  # type: ignore[assignment]  # float works
        self._pool.retryAutomatically = False
        self.agent = Agent.usingEndpointFactory(self.clock, self, self._pool)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """The endpoint of the configured origin; ValueError for any other."""
        ours = self.uri
        if (uri.scheme, uri.host.lower(), uri.port) != (ours.scheme, ours.host.lower(), ours.port):
            raise ValueError("not the configured origin")
        return self._endpoint

    def opened(self, connection: _Connection) -> None:
        """A connection is up."""
        self._open.add(connection)

    def closed(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if not self._open and self._closing:
            # One that was cut while its answer ended may have got into the pool since.
            self._emptyPool()
            closing, self._closing = self._closing, []
            for done in closing:
                done.callback(None)

    def close(self) -> Deferred[None]:
        """Cut every connection. Fires when none is left; then new ones may be made."""
        self._emptyPool()
        if not self._open:
            return succeed(None)
        done: Deferred[None] = Deferred(self._closing.remove)
        self._closing.append(done)
        for connection in list(self._open):
            connection.abortConnection()
        return done

    def _emptyPool(self) -> None:
        emptying = self._pool.closeCachedConnections()
        emptying.addErrback(lambda failure: _log.failure("while connections closed", failure))
