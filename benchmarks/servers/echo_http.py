"""
The MCP server over Streamable HTTP behind what is measured in front of HTTP servers.

`python echo_http.py PORT`. The tools of `echo_stdio`, and

 - `stream {text, count, interval}`: `count` progress notifications for the caller's token, one
   each `interval` seconds, each written by itself, on the event stream of the call; then the text.

It mints session ids and knows no other: 404.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from typing import Any

import httptools

__all__ = ["main"]

_TOOLS = [
    {"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "announce", "stream")
]
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"


def _event(message: dict[str, Any]) -> bytes:
    data = b"event: message\ndata: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _progress(token: object, number: int) -> bytes:
    params = {"progressToken": token, "progress": number}
    return _event({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})


class _Sessions:
    """The sessions, and the open streams of each."""

    def __init__(self) -> None:
        self.streams: dict[str, set[asyncio.Transport]] = {}

    def announce(self) -> None:
        event = _event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        for streams in self.streams.values():
            for stream in streams:
                stream.write(event)


class _Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    transport: asyncio.Transport

    def __init__(self, sessions: _Sessions) -> None:
        self._sessions = sessions
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._session = ""
        self._body: list[bytes] = []

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        for streams in self._sessions.streams.values():
            streams.discard(self.transport)

    # httptools

    def on_message_begin(self) -> None:
        self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"mcp-session-id":
            self._session = value.decode()
        elif name == b"expect":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        method = self._parser.get_method()
        if method == b"POST":
            self._posted(json.loads(b"".join(self._body)))
        elif self._session not in self._sessions.streams:
            self._reply(404, b"")
        elif method == b"GET":
            self.transport.write(_STREAM_HEAD)
            self._sessions.streams[self._session].add(self.transport)
        elif method == b"DELETE":
            for stream in self._sessions.streams.pop(self._session):
                stream.write(_LAST_CHUNK)
            self._reply(204, b"")
        else:
            self._reply(405, b"")

    def _reply(self, status: int, body: bytes, more: bytes = b"") -> None:
        length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
        kind = b"Content-Type: application/json\r\n" if body else b""
        self.transport.write(b"HTTP/1.1 %d X\r\n%b%b%b\r\n" % (status, kind, more, length) + body)

    # MCP

    def _posted(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "initialize":
            self._session = secrets.token_hex(16)
            self._sessions.streams[self._session] = set()
            self._answer(
                message,
                {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": {"name": "echo", "version": "1"},
                },
                b"Mcp-Session-Id: " + self._session.encode() + b"\r\n",
            )
        elif self._session not in self._sessions.streams:
            self._reply(404 if self._session else 400, b"")
        elif "id" not in message or method is None:
            self._reply(202, b"")
        elif method == "tools/call":
            self._called(message, params, params.get("arguments", {}))
        else:
            self._answer(message, {"tools": _TOOLS} if method == "tools/list" else {})

    def _answer(self, message: dict[str, Any], result: object, more: bytes = b"") -> None:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        self._reply(200, json.dumps(answer, separators=(",", ":")).encode(), more)

    def _called(
        self, message: dict[str, Any], params: dict[str, Any], arguments: dict[str, Any]
    ) -> None:
        if params["name"] == "announce":
            self._sessions.announce()
            self._answer(message, {"content": [{"type": "text", "text": "announced"}]})
            return
        result = {"content": [{"type": "text", "text": arguments["text"]}]}
        count = arguments.get("progress", 0) or arguments.get("count", 0)
        if not count:
            self._answer(message, result)
            return
        self.transport.write(_STREAM_HEAD)
        token = params["_meta"]["progressToken"]
        last = _event({"jsonrpc": "2.0", "id": message["id"], "result": result}) + _LAST_CHUNK
        if interval := arguments.get("interval", 0):
            self._stream(token, count, interval, last)
            return
        for number in range(1, count + 1):
            self.transport.write(_progress(token, number))
        self.transport.write(last)

    def _stream(self, token: object, count: int, interval: float, last: bytes) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()

        def next(number: int) -> None:
            if self.transport.is_closing():
                return
            if number > count:
                self.transport.write(last)
                return
            self.transport.write(_progress(token, number))
            loop.call_at(began + number * interval, next, number + 1)

        next(1)


async def _serve(port: int) -> None:
    sessions = _Sessions()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(sessions), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    """Serve until a signal ends the process."""
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
