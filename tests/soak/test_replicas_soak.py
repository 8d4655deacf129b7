"""
Three replicas behind HAProxy, restarted one after the other: acceptance 110. Prints what it did.

HAProxy runs examples/haproxy/haproxy.cfg with ports of this run. GATEWAY_SOAK_ROLLS: how often all
three are restarted.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from modern_support import enveloped, fields
from processes import ROOT, Process, start
from raw import RawClient, Response, hello, rpc
from soaking import program, wait
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed

from benchmarks.process import freePort

pytestmark = pytest.mark.soak

GRACE = 3.0
CALL = "tools/call"
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


@define(eq=False)
class Replica:
    port: int
    config: Path
    process: Process = field(init=False)

    async def start(self) -> None:
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        words = ["-m", "gateway.tap", "--listen", listen, "--config", str(self.config)]
        self.process = start([sys.executable, *words])
        await self.process.line("is ready")

    async def stop(self) -> None:
        self.process.kill()
        assert await self.process.ended == 0, self.process.err[-2000:]
        assert "Traceback" not in self.process.err, self.process.err[-2000:]


@define(eq=False)
class Clients:
    """What calls through HAProxy until it is over, and what became of it."""

    port: int
    over: bool = field(default=False)
    seen: Counter[str] = field(factory=Counter)
    failures: list[str] = field(factory=list)
    slowest: float = field(default=0.0)
    _connected: int = field(default=0)

    async def connect(self) -> RawClient:
        # Each from an address of its own, as clients have them.
        self._connected += 1
        bind = (f"127.0.1.{self._connected % 250 + 1}", 0)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, bindAddress=bind)
        client: RawClient = await connectProtocol(endpoint, RawClient())
        return client

    def bytes(self, method: bytes, path: bytes, body: bytes = b"", *pairs: Any) -> bytes:
        given = [(b"Host", b"mcp.example.com"), *pairs]
        if body:
            given += [(b"Content-Type", b"application/json")]
            given += [(b"Content-Length", b"%d" % len(body))]
        head = b"".join(b"%b: %b\r\n" % pair for pair in given)
        return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, path, head, body)

    async def ask(self, client: RawClient, data: bytes) -> Response:
        began = time.monotonic()
        client.send(data)
        try:
            answer = await client.response()
        except ConnectionClosed:
            answer = Response(0, [], b"the connection was closed, and nothing said")
        self.slowest = max(self.slowest, time.monotonic() - began)
        if answer.header(b"connection") == b"close":
            await client.ended
        return answer

    async def still(self, client: RawClient) -> RawClient:
        """The client, or another one where its connection was closed behind an answer."""
        return await self.connect() if client.ended.called else client

    def failed(self, who: str, answer: Response) -> None:
        self.failures.append(f"{who}: {answer.status} {answer.body[:200]!r}")

    # Streamable HTTP

    async def streamable(self, pause: float = 0.0) -> None:
        client, session = await self.connect(), b""
        number = 0
        while not self.over:
            if not session:
                answer = await self.ask(client, self.bytes(b"POST", b"/mcp", hello()))
                if answer.status != 200 or b'"result"' not in answer.body:
                    self.failed("initialize", answer)
                    client = await self.still(client)
                    await wait(0.1)
                    continue
                session = answer.header(b"mcp-session-id") or b""
                named = (b"Mcp-Session-Id", session)
                answer = await self.ask(client, self.bytes(b"POST", b"/mcp", INITIALIZED, named))
                self.seen["sessions"] += 1
                if answer.status == 404:
                    session = b""
                    continue
            number += 1
            body = rpc(CALL, number, name="sleep", arguments={"seconds": 0.02, "n": number})
            answer = await self.ask(client, self.bytes(b"POST", b"/mcp", body, named))
            if answer.status == 404 and b'"code":-32001' in answer.body:
                self.seen["sessions lost, started over"] += 1
                session = b""
            elif b'"shutting_down"' in answer.body and b"sleep" not in answer.body:
                # Refused, so it did not run.
                self.seen["calls told to go elsewhere"] += 1
                session = b""
            elif answer.status == 200 and answer.json["result"]["structuredContent"]["n"] == number:
                self.seen["streamable calls"] += 1
            else:
                self.failed("streamable", answer)
            client = await self.still(client)
            await wait(pause)
        client.reset()

    async def hanging(self) -> None:
        """Calls that no grace is long enough for: one error each, and the only ones that fail."""
        while not self.over:
            client = await self.connect()
            answer = await self.ask(client, self.bytes(b"POST", b"/mcp", hello()))
            named = (b"Mcp-Session-Id", answer.header(b"mcp-session-id"))
            await self.ask(client, self.bytes(b"POST", b"/mcp", INITIALIZED, named))
            began = time.monotonic()
            client.send(self.bytes(b"POST", b"/mcp", rpc(CALL, 1, name="hang"), named))
            while not self.over and not client._buffer and not client.ended.called:
                await wait(0.05)
            if client._buffer:
                answer = await client.response()
                kind = "calls in flight at the end of the grace"
                if answer.status != 200 or b"shutting_down" not in answer.body:
                    self.failed(f"hanging after {time.monotonic() - began:.1f} s", answer)
                self.seen[kind] += 1
            elif not self.over:
                self.failures.append("hanging: no answer")
            client.reset()

    # Revision 2026-07-28

    async def modern(self, pause: float = 0.0) -> None:
        client, number = await self.connect(), 0
        while not self.over:
            number += 1
            body = enveloped(CALL, number, name="sleep", arguments={"seconds": 0.02, "n": number})
            answer = await self.ask(client, self.bytes(b"POST", b"/mcp", body, *fields(body)))
            if answer.status == 200 and answer.json["result"]["structuredContent"]["n"] == number:
                self.seen["modern calls"] += 1
            else:
                self.failed("modern", answer)
            client = await self.still(client)
            await wait(pause)
        client.reset()

    # HTTP+SSE

    async def sse(self, pause: float = 0.0) -> None:
        # Both its connections from one address, and no other client's.
        self._connected += 1
        bind = (f"127.0.2.{self._connected % 250 + 1}", 0)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, bindAddress=bind)
        number = 0
        while not self.over:
            stream: RawClient = await connectProtocol(endpoint, RawClient())
            poster: RawClient = await connectProtocol(endpoint, RawClient())
            accept = (b"Accept", b"text/event-stream")
            stream.send(self.bytes(b"GET", b"/sse", b"", accept))
            head = await stream.head()
            if head.status != 200:
                self.failed("sse", await stream.body(head))
                await wait(0.1)
                continue
            named = await stream.event()
            assert named is not None and named.data is not None
            self.seen["SSE streams"] += 1
            path, lost = named.data, False
            for first in (hello(), INITIALIZED):
                answer = await self.ask(poster, self.bytes(b"POST", path, first))
                assert answer.status == 202, answer
            await stream.message()
            while not self.over and not lost:
                number += 1
                body = rpc(CALL, number, name="sleep", arguments={"seconds": 0.02, "n": number})
                answer = await self.ask(poster, self.bytes(b"POST", path, body))
                if answer.status == 404 and b'"code":-32001' in answer.body:
                    self.seen["SSE sessions lost, started over"] += 1
                    break
                if answer.status != 202:
                    self.failed("sse", answer)
                    break
                lost = await self._heard(stream, number)
                await wait(pause)
            for client in (stream, poster):
                client.reset()
                await client.ended

    async def _heard(self, stream: RawClient, number: int) -> bool:
        """Whether the stream was lost, or told to be, with this call's answer."""
        event = await stream.event()
        if event is None or event.data is None:
            self.failures.append("sse: the stream ended with a call that was accepted")
            return True
        said = json.loads(event.data)
        if said.get("error", {}).get("data", {}).get("reason") == "shutting_down":
            self.seen["calls told to go elsewhere"] += 1
            return True
        if said["result"]["structuredContent"]["n"] == number:
            self.seen["SSE calls"] += 1
        else:
            self.failures.append(f"sse: {said}")
        return False


def configuration(folder: Path, ports: list[int], front: int) -> Path:
    """The example's, on the ports of this run."""
    text = (ROOT / "examples" / "haproxy" / "haproxy.cfg").read_text()
    for number, port in enumerate(ports):
        text = text.replace(f"127.0.0.1:808{number + 1} ", f"127.0.0.1:{port} ")
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{front}")
    text = text.replace("/run/haproxy/", f"{folder}/")
    assert not re.search(r"127\.0\.0\.1:808\d", text)
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return path


@pytest.mark.acceptance(110)
@pytest_twisted.ensureDeferred
async def test_acceptance_110_a_rolling_restart_behind_haproxy_fails_no_request(
    tmp_path: Path,
) -> None:
    """
    Lost are sessions, which live in their process (404 -32001, and the client starts over), and
    calls that outlast the grace. All else is answered.
    """
    haproxy, rolls = program("haproxy"), int(os.environ.get("GATEWAY_SOAK_ROLLS", 2))
    config = tmp_path / "servers.json"
    script = [str(ROOT / "tests" / "faulty_server.py")]
    server = {"command": sys.executable, "args": script, "isolation": "shared"}
    limits = {"drain_grace": GRACE, "head_wait": 600.0}
    gateway = {"limits": limits, "allowed_hosts": ["mcp.example.com"]}
    config.write_text(json.dumps({"mcpServers": {"one": server}, "gateway": gateway}))
    ports = [freePort() for _ in range(4)]
    replicas = [Replica(port, config) for port in ports[1:]]
    for replica in replicas:
        await replica.start()
    proxy = start([haproxy, "-db", "-f", str(configuration(tmp_path, ports[1:], ports[0]))])
    clients = Clients(ports[0])
    try:
        await through(clients)
        kinds: list[Callable[..., Awaitable[None]]] = [clients.streamable] * 12
        kinds += [clients.modern] * 6 + [clients.sse] * 4 + [clients.hanging] * 2
        running = []
        for kind in kinds:
            running.append(ensureDeferred(kind()))
            await wait(0.05)
        began = time.monotonic()
        for _ in range(rolls):
            for replica in replicas:
                await wait(1.0)
                await replica.stop()
                await replica.start()
        took = time.monotonic() - began
        clients.over = True
        await gatherResults(running, consumeErrors=True)
    finally:
        proxy.kill()
        await proxy.ended
        for replica in replicas:
            await replica.stop()
    print(
        f"\nHAProxy: {rolls} x 3 restarts in {took:.0f} s; {dict(clients.seen)}; slowest answer "
        f"{clients.slowest:.2f} s; {len(clients.failures)} failures"
    )
    assert not clients.failures, clients.failures[:20]
    assert clients.seen["modern calls"] > 100 and clients.seen["sessions lost, started over"]


async def through(clients: Clients) -> None:
    """Until HAProxy serves."""
    for _ in range(100):
        try:
            client = await clients.connect()
            answer = await clients.ask(client, clients.bytes(b"POST", b"/mcp", hello()))
            client.reset()
            if answer.status == 200:
                return
        except (ConnectError, ConnectionClosed):
            pass
        await wait(0.1)
    raise AssertionError("HAProxy serves nothing")
