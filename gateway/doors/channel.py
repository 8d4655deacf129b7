"""
Drives a twisted.web Request from our reader, as HTTPChannel does from its own.

For what is no proxy's path at our own listener, and for every path where a host puts our parser in
front of its Site. The Request frames its answer itself; what it writes goes out as it is.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import Site

from gateway.doors.exchange import Carrier
from gateway.http1.request_head import BadRequest, RequestLine
from gateway.http1.writing import CONTINUE
from gateway.wire.context import HeaderPairs

__all__ = ["RequestCarrier", "RequestChannel"]

_log = Logger()


class RequestCarrier(Carrier, Protocol):
    """The connection of a request that a Site serves."""

    transport: Any
    clock: IReactorTime
    tls: bool

    def refuseBody(self) -> None:
        """The body is over the limit."""

    def refuseMalformed(self, bad: BadRequest) -> None:
        """The request is none."""

    def hangUp(self) -> None:
        """Close the connection once everything is written."""


class RequestChannel:
    """
    What a Request takes for its HTTPChannel, for one request.

    site: whose resources serve it. maxBody: bytes of a body that are taken; None where nobody reads
    it, so that the Request is served as soon as its head is there. begun: whether its answer has.
    """

    def __init__(
        self,
        carrier: RequestCarrier,
        site: Site,
        line: RequestLine,
        fields: HeaderPairs,
        maxBody: int | None,
    ) -> None:
        self.site = self.factory = site
        self.transport = carrier.transport
        self._carrier: RequestCarrier | None = carrier
        self._line = line
        self._maxBody = maxBody
        self._size = 0
        self._received = self.begun = False
        self._producer: Any = None
        self._pulling: IDelayedCall | None = None
        request = self._request = site.requestFactory(self)
        for name, value in fields:
            request.requestHeaders.addRawHeader(name, value)
        request.parseCookies()
        request.gotLength(line.length if maxBody is not None else 0)

    def start(self) -> None:
        """Serve it now, if nobody waits for its body."""
        if self._maxBody is None:
            self._receive()
        elif self._line.length is not None and self._line.length > self._maxBody:
            self._tooLarge()
        elif self._line.continues and self._carrier is not None:
            self._carrier.out.write(CONTINUE)

    # The connection's side.

    def bodyReceived(self, data: bytes) -> None:
        """Bytes of the body came."""
        if self._received or self._maxBody is None:
            return
        self._size += len(data)
        if self._size > self._maxBody:
            self._tooLarge()
        else:
            self._request.handleContentChunk(data)

    def _tooLarge(self) -> None:
        self._received = True
        if self._carrier is not None:
            self._carrier.refuseBody()

    def bodyEnded(self) -> None:
        """The body is complete."""
        if not self._received:
            self._receive()

    def _receive(self) -> None:
        self._received = True
        version = b"HTTP/" + self._line.version
        self._request.requestReceived(self._line.method, self._line.target, version)

    def vanished(self) -> None:
        """The connection is gone."""
        carrier, self._carrier = self._carrier, None
        self._stopPulling()
        producer, self._producer = self._producer, None
        if producer is not None:
            # It may hold a file.
            producer.stopProducing()
        if carrier is not None:
            # Also where it was not served yet: what it holds of its body may be a file.
            self._request.connectionLost(Failure(ConnectionDone()))

    def drained(self) -> None:
        """The peer took what was written."""
        if self._producer is not None:
            self._producer.resumeProducing()

    def hearNoMore(self) -> None:
        """The answer is to be the last of its connection; only before it has begun."""
        self._line.persistent = False

    # HTTPChannel, as a Request uses it.

    def writeHeaders(
        self, version: bytes, code: bytes, reason: bytes, headers: Headers | Iterable[Any]
    ) -> None:
        """Write the head of the answer."""
        carrier = self._carrier
        if carrier is None:
            return
        self.begun = True
        if isinstance(headers, Headers):
            pairs = [(n, v) for n, values in headers.getAllRawHeaders() for v in values]
        else:
            pairs = list(headers)
        if self._line.version == b"1.0" and not any(
            n.lower() == b"content-length" for n, _ in pairs
        ):
            self._line.persistent = False
        lines = [b"HTTP/1.1 %b %b\r\n" % (code, reason)]
        lines += [b"%b: %b\r\n" % pair for pair in pairs if pair[0].lower() != b"connection"]
        if any(n.lower() == b"connection" and b"close" in v.lower() for n, v in pairs):
            self._line.persistent = False
        carrier.out.write(b"".join((*lines, carrier.ending(self._line), b"\r\n")))

    def write(self, data: bytes) -> None:
        """Write bytes of the answer."""
        if self._carrier is not None and data:
            self._carrier.out.write(data)
            if self._carrier.out.blocked and self._producer is not None:
                self._producer.pauseProducing()

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        """Write bytes of the answer."""
        self.write(b"".join(parts))

    def requestDone(self, request: object) -> None:
        """The answer is complete."""
        carrier, self._carrier = self._carrier, None
        self._stopPulling()
        if carrier is not None:
            carrier.answered()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write the answer."""
        self._producer = producer if streaming else _Pulled(producer, self._soon, self._pulledOut)
        if not streaming:
            self._producer.resumeProducing()
        elif self._carrier is not None and self._carrier.out.blocked:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """It has written all."""
        self._producer = None
        self._stopPulling()

    def _soon(self, pull: Callable[[], None]) -> None:
        if self._carrier is not None:
            self._pulling = self._carrier.clock.callLater(0, pull)

    def _pulledOut(self) -> None:
        _log.failure("a producer failed while it was pulled")
        self.unregisterProducer()
        self.abortConnection()

    def _stopPulling(self) -> None:
        if self._pulling is not None and self._pulling.active():
            self._pulling.cancel()

    def getPeer(self) -> Any:
        """The client's address."""
        return self.transport.getPeer()

    def getHost(self) -> Any:
        """Our own address."""
        return self.transport.getHost()

    def isSecure(self) -> bool:
        """Whether the connection is encrypted."""
        return self._carrier is not None and self._carrier.tls

    def loseConnection(self) -> None:
        """Close the connection once everything is written."""
        if self._carrier is not None:
            self._carrier.hangUp()

    def abortConnection(self) -> None:
        """Cut the connection."""
        if self._carrier is not None:
            self._carrier.cut()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._carrier is not None:
            self._carrier.refuseMalformed(BadRequest(400, "malformed form"))


class _Pulled:
    """A pull producer as a push producer: pulled again and again while there is room."""

    def __init__(
        self,
        producer: Any,
        soon: Callable[[Callable[[], None]], None],
        failed: Callable[[], None],
    ) -> None:
        self._producer = producer
        self._soon = soon
        self._failed = failed
        self._paused = True
        self._coming = False

    def resumeProducing(self) -> None:
        self._paused = False
        self._schedule()

    def _schedule(self) -> None:
        # One pull is to come at any time: it may be paused and resumed again meanwhile.
        if not self._coming:
            self._coming = True
            self._soon(self._pull)

    def _pull(self) -> None:
        self._coming = False
        if self._paused:
            return
        self._schedule()
        try:
            self._producer.resumeProducing()
        except Exception:
            self._failed()

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._paused = True
        self._producer.stopProducing()
