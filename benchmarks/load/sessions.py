"""The client's side of a session, over both transports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

import msgspec

from benchmarks.load.calls import Call, Shape, notification
from benchmarks.load.connection import Connection, Gone, Pool, Response, events, request

__all__ = ["Broken", "SSESession", "Session", "StreamableSession"]

_WAIT = 30.0
"""Seconds for whatever is not measured."""
_INITIALIZED = notification("notifications/initialized")


class Broken(Exception):
    """A session could not be opened or used."""


class Session(Protocol):
    """
    One session; whoever opened it closes it.

    heard: is called for every message of the server's that belongs to no call.
    strays: answers and progress that came and are nobody's here.
    lost: why its stream ended; "" while it has not, or has none.
    """

    heard: Callable[[], None]
    strays: int
    lost: str

    async def open(self, connection: Connection) -> None:
        """The handshake. Raises: Broken, Gone."""

    async def listen(self) -> None:
        """Open the stream for what the server says by itself. Raises: Broken, Gone."""

    def call(self, connection: Connection, shape: Shape, over: Callable[[Call], None]) -> Call:
        """Send a call."""

    async def announce(self, pool: Pool) -> None:
        """Have the server tell all sessions something. Raises: Broken, Gone."""

    async def close(self, connection: Connection) -> None:
        """End it. Raises: Broken, Gone."""

    def drop(self) -> None:
        """Close its stream, if it has one, and tell nobody."""


def _initialize(revision: str) -> bytes:
    params = {
        "protocolVersion": revision,
        "capabilities": {},
        "clientInfo": {"name": "benchmarks", "version": "1"},
    }
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    return json.dumps(message, separators=(",", ":")).encode()


def _announce(id: int) -> bytes:
    params = {"name": "announce", "arguments": {}}
    message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
    return json.dumps(message, separators=(",", ":")).encode()


def _bodied(head: bytes, body: bytes) -> bytes:
    return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


async def _ask(connection: Connection, data: bytes) -> Response:
    response = Response()
    connection.send(data, response)
    try:
        return await asyncio.wait_for(response.over, _WAIT)
    except TimeoutError:
        raise Broken(f"no answer within {_WAIT:.0f} s") from None


class _Session:
    """What both transports' sessions are made of; `_stream` is where the server speaks."""

    def __init__(self, port: int, path: str, revision: str) -> None:
        self.heard: Callable[[], None] = lambda: None
        self.strays = 0
        self.lost = ""
        self._port = port
        self._path = path
        self._revision = revision
        self._ids = count(1)
        self._stream: Connection | None = None

    def streamLost(self, why: str) -> None:
        """The stream ended, and not by us."""
        self.lost = self.lost or why

    def drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class StreamableSession(_Session):
    """A session over Streamable HTTP."""

    def __init__(self, port: int, path: str, revision: str) -> None:
        super().__init__(port, path, revision)
        self._fields = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }
        self._head = request("POST", path, port, self._fields)

    async def open(self, connection: Connection) -> None:
        answer = await _ask(connection, _bodied(self._head, _initialize(self._revision)))
        if answer.status != 200 or not answer.session or b'"protocolVersion"' not in answer.body:
            raise Broken(f"initialize: HTTP status {answer.status}, {answer.body[:200]!r}")
        self._fields["Mcp-Session-Id"] = answer.session
        self._fields["MCP-Protocol-Version"] = self._revision
        self._head = request("POST", self._path, self._port, self._fields)
        told = await _ask(connection, _bodied(self._head, _INITIALIZED))
        if told.status not in (200, 202):
            raise Broken(f"notifications/initialized: HTTP status {told.status}")

    async def listen(self) -> None:
        self._stream = await Connection.connect(self._port)
        listening = _Listening(self)
        fields = {**self._fields, "Accept": "text/event-stream"}
        fields.pop("Content-Type")
        self._stream.send(request("GET", self._path, self._port, fields) + b"\r\n\r\n", listening)
        await asyncio.wait_for(listening.opened, _WAIT)

    def messageReceived(self, kind: str, data: bytes) -> None:
        """A message on the GET stream."""
        self.heard()

    def call(self, connection: Connection, shape: Shape, over: Callable[[Call], None]) -> Call:
        call = Call(next(self._ids), shape, over)
        data = _bodied(self._head, call.body())
        call.began = asyncio.get_running_loop().time()
        connection.send(data, call)
        return call

    async def announce(self, pool: Pool) -> None:
        connection = await pool.take()
        answer = await _ask(connection, _bodied(self._head, _announce(next(self._ids))))
        pool.give(connection)
        if answer.status != 200 or b"announced" not in answer.body:
            raise Broken(f"announce: HTTP status {answer.status}")

    async def close(self, connection: Connection) -> None:
        self.drop()
        fields = dict(self._fields)
        fields.pop("Content-Type")
        head = request("DELETE", self._path, self._port, fields)
        answer = await _ask(connection, head + b"\r\n\r\n")
        if answer.status not in (200, 202, 204):
            raise Broken(f"DELETE: HTTP status {answer.status}")


class _Listening:
    """The exchange of a stream that stays open. `opened` fires with its head."""

    def __init__(self, session: StreamableSession | SSESession) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session = session
        self._feed = events(session.messageReceived)

    def head(self, status: int, stream: bool, session: str) -> None:
        if self.opened.done():
            return
        if status == 200 and stream:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(Broken(f"no event stream: HTTP status {status}"))

    def data(self, data: bytes) -> None:
        self._feed(data)

    def done(self) -> None:
        self.failed(Gone("the stream ended"))

    def failed(self, error: Exception) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
        self._session.streamLost(str(error))


class SSESession(_Session):
    """A session over HTTP+SSE."""

    def __init__(self, port: int, path: str, revision: str) -> None:
        super().__init__(port, path, revision)
        self._calls: dict[int, Call] = {}
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._head = b""

    async def open(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._stream = await Connection.connect(self._port)
        listening = _Listening(self)
        self._endpoint: asyncio.Future[str] = loop.create_future()
        head = request("GET", self._path, self._port, {"Accept": "text/event-stream"})
        self._stream.send(head + b"\r\n\r\n", listening)
        await asyncio.wait_for(listening.opened, _WAIT)
        endpoint = await asyncio.wait_for(self._endpoint, _WAIT)
        fields = {"Accept": "*/*", "Content-Type": "application/json"}
        self._head = request("POST", endpoint, self._port, fields)
        answer = await self._asked(connection, 0, _initialize(self._revision))
        if "result" not in answer:
            raise Broken(f"initialize: {str(answer)[:200]}")
        await self._post(connection, _INITIALIZED)

    def streamLost(self, why: str) -> None:
        """The stream ended, and its calls with it."""
        super().streamLost(why)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(why)

    async def _post(self, connection: Connection, body: bytes) -> None:
        answer = await _ask(connection, _bodied(self._head, body))
        if answer.status not in (200, 202, 204):
            raise Broken(f"POST: HTTP status {answer.status}")

    async def _asked(self, connection: Connection, id: int, body: bytes) -> Any:
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        await self._post(connection, body)
        return await asyncio.wait_for(waiting, _WAIT)

    async def listen(self) -> None:
        """It does already."""

    def messageReceived(self, kind: str, data: bytes) -> None:
        """An event of the stream."""
        if kind == "endpoint":
            # A path, or a whole URL of the same origin.
            path = data.decode().partition("://")[2].partition("/")[2]
            self._endpoint.set_result("/" + path if path else data.decode())
            return
        message = msgspec.json.decode(data)
        if "method" in message:
            if message["method"] != "notifications/progress":
                self.heard()
                return
            call = self._calls.get(message["params"]["progressToken"])
            if call is None:
                self.strays += 1
            else:
                call.messageReceived(message)
            return
        id = message.get("id")
        call = self._calls.pop(id, None)
        if call is not None:
            call.messageReceived(message)
            if call.posted:
                call.end()
        elif id in self._waiting:
            self._waiting.pop(id).set_result(message)
        else:
            self.strays += 1

    def call(self, connection: Connection, shape: Shape, over: Callable[[Call], None]) -> Call:
        call = Call(next(self._ids), shape, over)
        self._calls[call.id] = call
        data = _bodied(self._head, call.body())
        call.began = asyncio.get_running_loop().time()
        connection.send(data, _Posted(call))
        return call

    async def announce(self, pool: Pool) -> None:
        connection = await pool.take()
        id = next(self._ids)
        await self._asked(connection, id, _announce(id))
        pool.give(connection)

    async def close(self, connection: Connection) -> None:
        self.drop()


class _Posted:
    """The exchange of a call's POST over HTTP+SSE: 202, before or after the answer is there."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def head(self, status: int, stream: bool, session: str) -> None:
        if status not in (200, 202, 204):
            self._call.wrong = f"HTTP status {status}"

    def data(self, data: bytes) -> None:
        """ "Accepted", or whatever."""

    def done(self) -> None:
        self._call.posted = True
        if self._call.answered or self._call.wrong:
            self._call.end()

    def failed(self, error: Exception) -> None:
        self._call.end(str(error))
