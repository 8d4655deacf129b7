"""
The floor in front of HTTP servers: a Resource that passes requests on over connections of its own.

The upstream's side is a hand-made protocol, much cheaper than Twisted's `Agent`: one request at a
time, kept alive, the head split by hand; of bodies only those with a length and chunked ones.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

__all__ = ["ProxyFloor"]

_PASSED_UP = (
    b"accept",
    b"content-type",
    b"mcp-session-id",
    b"mcp-protocol-version",
    b"last-event-id",
)
_PASSED_DOWN = (b"content-type", b"content-length", b"mcp-session-id", b"cache-control")


class _Upstream(Protocol):
    """One connection to the upstream."""

    transport: Any

    def __init__(self, idle: deque[_Upstream]) -> None:
        self._idle = idle
        self._request: Any = None
        self._buffer = b""
        self._left = -1  # of the body; -1 before the head is there
        self._chunked = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def ask(self, request: Request, head: bytes, body: bytes) -> None:
        self._request = request
        self._left = -1
        self.transport.write(head + body)

    def dataReceived(self, data: bytes) -> None:
        if self._left < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            data = self._buffer[end + 4 :]
            self._headReceived(self._buffer[:end])
            self._buffer = b""
        if self._chunked:
            self._chunksReceived(data)
            return
        if data:
            self._left -= len(data)
            self._request.write(data)
        if self._left == 0:
            self._done()

    def _headReceived(self, head: bytes) -> None:
        status, *lines = head.split(b"\r\n")
        request = self._request
        request.setResponseCode(int(status[9:12]))
        self._left, self._chunked = 0, False
        for line in lines:
            name, _, value = line.partition(b": ")
            name = name.lower()
            if name == b"content-length":
                self._left = int(value)
            elif name == b"transfer-encoding":
                self._chunked = True
            if name in _PASSED_DOWN:
                request.setHeader(name, value)
        if self._chunked:
            request.write(b"")  # the head of a stream goes out before its first event

    def _chunksReceived(self, data: bytes) -> None:
        buffer = self._buffer + data
        while True:
            end = buffer.find(b"\r\n")
            if end < 0:
                break
            size = int(buffer[:end], 16)
            if len(buffer) < end + 4 + size:
                break
            if size == 0:
                self._buffer = b""
                self._done()
                return
            self._request.write(buffer[end + 2 : end + 2 + size])
            buffer = buffer[end + 4 + size :]
        self._buffer = buffer

    def _done(self) -> None:
        request, self._request = self._request, None
        self._idle.append(self)
        request.finish()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._request is not None:
            self._request.transport.abortConnection()
        elif self in self._idle:
            self._idle.remove(self)

    def abandon(self, _: object) -> None:
        """The client left its stream."""
        self._request = None
        self.transport.abortConnection()


class ProxyFloor(Resource):
    """Every path and method goes to the upstream. bodies: who serves "/bodies"."""

    isLeaf = True
    bodies: ProxyFloor | None = None

    def __init__(self, reactor: IReactorTCP, port: int) -> None:
        super().__init__()
        self._host = b"127.0.0.1:%d" % port
        self._endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        self._idle: deque[_Upstream] = deque()
        self._factory = Factory.forProtocol(lambda: _Upstream(self._idle))
        self._factory.noisy = False

    def render(self, request: Request) -> Any:
        if self.bodies is not None and request.uri == b"/bodies":
            return self.bodies.render(request)
        content: Any = request.content
        body = content.read()
        lines = [b"%b %b HTTP/1.1" % (request.method, request.uri), b"Host: " + self._host]
        for name in _PASSED_UP:
            value = request.getHeader(name)
            if value is not None:
                lines.append(name + b": " + value)
        lines.append(b"Content-Length: %d\r\n\r\n" % len(body))
        head = b"\r\n".join(lines)
        if self._idle:
            self._ask(self._idle.pop(), request, head, body)
        else:
            connecting: Any = self._endpoint.connect(self._factory)
            connecting.addCallback(self._ask, request, head, body)
        return NOT_DONE_YET

    def _ask(self, upstream: _Upstream, request: Request, head: bytes, body: bytes) -> None:
        request.notifyFinish().addErrback(upstream.abandon)
        upstream.ask(request, head, body)
