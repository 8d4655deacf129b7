"""One client connection over asyncio; the HTTP is llhttp's, by `httptools`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import httptools

__all__ = ["Connection", "Exchange", "Gone", "Pool", "Response", "events", "request"]

STREAM = b"text/event-stream"


class Gone(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


class Exchange(Protocol):
    """Whoever hears of one request's answer."""

    def head(self, status: int, stream: bool, session: str) -> None:
        """The head: its status, whether the body is an event stream, `Mcp-Session-Id` or ""."""

    def data(self, data: bytes) -> None:
        """Bytes of the body."""

    def done(self) -> None:
        """The answer is complete; the connection takes the next request."""

    def failed(self, error: Exception) -> None:
        """There will be no (more) answer."""


class Connection(asyncio.Protocol):
    """
    A kept-alive connection; one request at a time.

    Whoever connected closes it.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._stream = False
        self._session = ""
        self.open = True

    @classmethod
    async def connect(cls, port: int) -> Connection:
        """A new connection to a port on loopback. Raises: Gone."""
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(cls, "127.0.0.1", port)
        except OSError as error:
            raise Gone(f"cannot connect: {error}") from error
        return made

    def send(self, request: bytes, exchange: Exchange) -> None:
        """Send a request. The exchange hears of the answer, perhaps within this call."""
        if not self.open:
            exchange.failed(Gone("the connection is closed"))
            return
        self._exchange = exchange
        self.transport.write(request)

    def close(self) -> None:
        """Close it at once; whoever waits is not told."""
        self._exchange = None
        self.open = False
        self.transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost(f"no HTTP: {error}")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(str(exc or "the server closed the connection"))

    def _lost(self, why: str) -> None:
        self.open = False
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.failed(Gone(why))

    # httptools

    def on_message_begin(self) -> None:
        self._stream = False
        self._session = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        if size == 12 and name.lower() == b"content-type":
            self._stream = value.startswith(STREAM)
        elif size == 14 and name.lower() == b"mcp-session-id":
            self._session = value.decode()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._exchange is not None and status >= 200:
            self._exchange.head(status, self._stream, self._session)

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return
        if not self._parser.should_keep_alive():
            self.open = False
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.done()


class Pool:
    """Connections to one port, made as they are needed, for requests that are not measured."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: deque[Connection] = deque()

    async def take(self) -> Connection:
        """An idle connection, or a new one. Raises: Gone."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return await Connection.connect(self.port)

    def give(self, connection: Connection) -> None:
        """It is idle again."""
        if connection.open:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the idle ones."""
        while self._idle:
            self._idle.pop().close()


class Response:
    """An exchange that can be awaited: `await response.over`."""

    def __init__(self) -> None:
        self.over: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.stream = False
        self.session = ""
        self.chunks: list[bytes] = []

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def head(self, status: int, stream: bool, session: str) -> None:
        self.status, self.stream, self.session = status, stream, session

    def data(self, data: bytes) -> None:
        self.chunks.append(data)

    def done(self) -> None:
        if not self.over.done():
            self.over.set_result(self)

    def failed(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)


def request(method: str, path: str, port: int, fields: dict[str, str]) -> bytes:
    """The head of a request, without the end of its last line and without `Content-Length`."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "User-Agent: benchmarks"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode()


def events(take: Callable[[str, bytes], None]) -> Callable[[bytes], None]:
    """
    Read an event stream: feed the function that is returned, `take` gets the type and data.

    Events without data are left out, and so are ids and comments.
    """
    rest: list[bytes] = []

    def feed(data: bytes) -> None:
        # The end of an event may be parted between two reads.
        rest.append(data)
        if b"\n" not in data and b"\r" not in data:
            return
        buffer = b"".join(rest)
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n")
        *blocks, left = buffer.split(b"\n\n")
        rest.clear()
        if left:
            rest.append(left)
        for block in blocks:
            kind, found = "message", []
            for line in block.split(b"\n"):
                if line.startswith(b"data:"):
                    found.append(line[5:].removeprefix(b" "))
                elif line.startswith(b"event:"):
                    kind = line[6:].strip().decode()
            if any(found):
                take(kind, b"\n".join(found))

    return feed
