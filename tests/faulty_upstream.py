"""
A scripted MCP server over Streamable HTTP, with every fault a script can ask for.

It runs in the test's own process, on 127.0.0.1 and a free port, and keeps what it was sent. By
itself it answers `initialize`, accepts notifications and DELETE, refuses GET with 405, and
answers a request with its own params; `script` replaces that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.protocol import Factory, Protocol

__all__ = ["FaultyUpstream", "Received"]


@define(eq=False)
class Received:
    """One request the server got, and the means to answer it."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    connection: _Connection

    def header(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body else {}

    @property
    def rpc(self) -> str:
        return self.message.get("method", "")

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.connection.transport.write(data)

    def reply(
        self,
        status: int = 200,
        body: bytes = b"",
        type: bytes | None = b"application/json",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """A whole answer."""
        head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(body))
        if type is not None:
            head += b"Content-Type: %b\r\n" % type
        for pair in headers:
            head += b"%b: %b\r\n" % pair
        self.raw(head + b"\r\n" + body)

    def result(self, result: object, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """The result of this request, as JSON."""
        answer = {"jsonrpc": "2.0", "id": self.message["id"], "result": result}
        self.reply(200, json.dumps(answer).encode(), headers=headers)

    def stream(self, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """The head of an event stream."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        for pair in headers:
            head += b"%b: %b\r\n" % pair
        self.raw(head + b"Transfer-Encoding: chunked\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    def event(self, message: object, id: str | None = None, retry: int | None = None) -> None:
        """An event with a message; None: with an empty data field."""
        text = "" if message is None else json.dumps(message)
        head = "" if id is None else f"id: {id}\n"
        head += "" if retry is None else f"retry: {retry}\n"
        self.chunk(f"{head}data: {text}\n\n".encode())

    def end(self) -> None:
        """The end of the event stream."""
        self.raw(b"0\r\n\r\n")

    def finish(self) -> None:
        """Close the connection in order."""
        self.connection.transport.loseConnection()

    def cut(self) -> None:
        """Cut the connection."""
        self.connection.transport.abortConnection()


class _Connection(Protocol):
    """Reads requests with Content-Length or without a body."""

    def __init__(self, upstream: FaultyUpstream) -> None:
        self.upstream = upstream
        self.buffer = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.upstream.connections.append(self)
        self.upstream.opened += 1
        self.upstream.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            headers = []
            for line in lines:
                name, _, value = line.partition(b": ")
                headers.append((name.lower(), value))
            length = int(dict(headers).get(b"content-length", b"0"))
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            method, target, _ = first.split(b" ")
            self.upstream.got(Received(method, target, headers, rest[:length], self))

    def connectionLost(self, reason: object = None) -> None:
        self.upstream.connections.remove(self)
        lost, self.lost = self.lost, Deferred()
        lost.callback(None)


@define(eq=False)
class FaultyUpstream:
    """
    The server. `start` opens it, `close` ends it and every connection.

    script: called with each request; returns whether it dealt with it.
    session: the session id `initialize` gives; None gives none.
    requests: everything it was sent, in order. opened: how many connections were made.
    """

    script: Callable[[Received], bool] = lambda request: False
    session: bytes | None = b"upstream-session-1"
    revision: str = "2025-11-25"
    requests: list[Received] = field(factory=list)
    connections: list[_Connection] = field(factory=list)
    opened: int = 0
    connected: Callable[[_Connection], None] = lambda connection: None
    _queue: DeferredQueue[Received] = field(factory=DeferredQueue)
    _port: Any = None
    _reactor: Any = None
    _tls: bool = False

    def start(self, reactor: Any, contextFactory: Any = None) -> None:
        factory = Factory.forProtocol(lambda: _Connection(self))
        factory.noisy = False
        self._reactor = reactor
        if contextFactory is None:
            self._port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        else:
            self._tls = True
            self._port = reactor.listenSSL(0, factory, contextFactory, interface="127.0.0.1")

    @property
    def origin(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._port.getHost().port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    def next(self) -> Deferred[Received]:
        """The next request nobody took yet."""
        return self._queue.get().addTimeout(10, self._reactor)

    def got(self, request: Received) -> None:
        self.requests.append(request)
        self._queue.put(request)
        if not self.script(request):
            self.usual(request)

    def usual(self, request: Received) -> None:
        """What a server without faults does."""
        if request.method == b"DELETE":
            request.reply(204, type=None)
        elif request.method == b"GET":
            request.reply(405, type=None)
        elif request.rpc == "initialize":
            session = () if self.session is None else ((b"Mcp-Session-Id", self.session),)
            result = {"protocolVersion": self.revision, "capabilities": {}, "serverInfo": {}}
            request.result(result, session)
        elif "id" in request.message and request.rpc:
            request.result(request.message.get("params", {}))
        else:
            request.reply(202, type=None)

    async def stopListening(self) -> None:
        """Refuse every further connection."""
        port, self._port = self._port, None
        await port.stopListening()

    async def close(self) -> None:
        if self._port is not None:
            await self.stopListening()
        for connection in list(self.connections):
            lost = connection.lost
            connection.transport.abortConnection()
            await lost
