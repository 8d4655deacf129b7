"""What tests of back-pressure share: the flood server, and clients that do not read for a while."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from attrs import define, field
from live import Live
from posting import connected, posted
from processes import ROOT, Gateway, Process, start
from raw import RawClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

__all__ = ["Asked", "Flood", "Opened", "ask", "opened"]

MODERN = "2026-07-28"
_SCRIPT = str(ROOT / "tests" / "flood_server.py")
_PATIENCE = 60.0


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


@define(eq=False)
class Flood:
    """A flood server; `argv` is its command over stdio, `port` where it listens over HTTP."""

    era: str
    file: Path
    port: int = 0
    _process: Process | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.file.write_bytes(b"")

    @property
    def argv(self) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", _SCRIPT, self.era, "stdio", str(self.file))

    async def serve(self) -> None:
        """Serve over HTTP."""
        self._process = start([sys.executable, "-I", _SCRIPT, self.era, "http", str(self.file)])
        self.port = int((await self._process.line(r"ready (\d+)"))[1])

    async def end(self) -> None:
        if self._process is not None:
            self._process.kill(9)
            await self._process.ended

    @property
    def written(self) -> int:
        """How many notifications of the last flood left it."""
        return int(self.file.read_bytes() or b"0")

    async def until(self, count: int) -> None:
        """Wait until so many left it."""
        for _ in range(int(_PATIENCE / 0.02)):
            if self.written >= count:
                return
            await pause(0.02)
        raise AssertionError(f"it is stuck at {self.written} of {count}")

    async def stuck(self) -> int:
        """Wait until it gets on no more; returns how many left it."""
        last, same = self.written, 0
        while same < 15 or not last:
            await pause(0.02)
            same = same + 1 if self.written == last else 0
            last = self.written
        return last


def _hello(revision: str = "2025-06-18") -> dict[str, Any]:
    params = {
        "protocolVersion": revision,
        "capabilities": {},
        "clientInfo": {"name": "slow", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": params}


_READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}


@define(eq=False)
class Asked:
    """A call that was made, and the connection on which its answer comes."""

    client: RawClient
    id: str
    others: list[RawClient] = field(factory=list)

    def stops(self) -> None:
        """Read no more; what waits for it is in the kernel's buffers, which are small."""
        self.client.pause()

    def resumes(self) -> None:
        """Read on, as fast as others."""
        _buffer(self.client, 4 * 1024 * 1024)
        self.client.resume()

    async def messages(self) -> list[dict[str, Any]]:
        """All that comes until its answer, which is the last."""
        got: list[dict[str, Any]] = []
        while not got or got[-1].get("id") != self.id:
            got.append(await self.client.message())
        return got

    async def end(self) -> None:
        for client in (self.client, *self.others):
            client.reset()
            await client.ended


@define(eq=False)
class Opened:
    """A client that may call: what it speaks, its session, its HTTP+SSE stream if it has one."""

    kind: str
    session: str = ""
    stream: RawClient | None = None
    target: str = ""


async def opened(gateway: Live | Gateway, kind: str, server: str) -> Opened:
    """A client; kind: streamable, sse or modern."""
    if kind == "modern":
        return Opened(kind)
    client = await _connected(gateway)
    if kind == "sse":
        stream = await _connected(gateway)
        stream.send(posted(gateway.base, f"/servers/{server}/sse", "", None, "GET"))
        assert (await stream.head()).status == 200
        event = await stream.event()
        assert event is not None and event.data is not None
        target = event.data.decode()
        for message in (_hello(), _READY):
            client.send(posted(gateway.base, target, "", message))
            assert (await client.response()).status == 202
        assert "result" in await stream.message()
        found = Opened(kind, "", stream, target)
    else:
        client.send(posted(gateway.base, f"/servers/{server}/mcp", "", _hello()))
        answer = await client.response()
        session = (answer.header(b"mcp-session-id") or b"").decode()
        client.send(posted(gateway.base, f"/servers/{server}/mcp", session, _READY))
        assert (await client.response()).status == 202
        found = Opened(kind, session)
    client.close()
    await client.ended
    return found


async def ask(
    gateway: Live | Gateway, who: Opened, server: str, tool: str, **arguments: object
) -> Asked:
    """Call a tool; what comes is read when it is asked for, at most what a buffer holds before."""
    meta: dict[str, object] = {"progressToken": "steps"}
    if who.kind == "modern":
        claims = {"protocolVersion": MODERN, "clientCapabilities": {}}
        claims["clientInfo"] = {"name": "slow", "version": "1"}
        meta |= {f"io.modelcontextprotocol/{name}": value for name, value in claims.items()}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    message = {"jsonrpc": "2.0", "id": f"of {tool}", "method": "tools/call", "params": params}
    client = await _connected(gateway)
    target = who.target or f"/servers/{server}/mcp"
    request = posted(gateway.base, target, who.session, message)
    if who.kind == "modern":
        fields = f"MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: {tool}"
        request = request.replace(b"\r\n", b"\r\n" + fields.encode() + b"\r\n", 1)
    client.send(request)
    if who.stream is not None:
        assert (await client.response()).status == 202
        return Asked(who.stream, f"of {tool}", [client])
    return Asked(client, f"of {tool}")


async def _connected(gateway: Live | Gateway) -> RawClient:
    client = await connected(gateway)
    # Without it the kernel would read megabytes for a client that reads nothing.
    _buffer(client, 16 * 1024)
    return client


def _buffer(client: RawClient, size: int) -> None:
    client.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
