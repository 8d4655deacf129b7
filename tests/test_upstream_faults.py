"""What a client hears when its HTTP server fails, through the transparent proxy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from faulty_upstream import FaultyUpstream, Received
from raw import RawClient, Response, Stack, Start, rpc
from raw import start as start
from test_streamable_http_link import certificate, twistedIsLate
from twisted.internet import reactor

from gateway.guard.limits import Limits
from gateway.http1.pool import BEAT
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LIMITS = Limits(max_answer=100_000)


@define(eq=False)
class Bench:
    """One session, through the transparent proxy, with an HTTP server that a test scripts."""

    stack: Stack
    upstream: FaultyUpstream
    server: HTTPServer
    named: list[tuple[bytes, bytes]]

    def script(self, script: Callable[[Received], Any]) -> None:
        """What the server does with a call; everything else it answers as usual."""
        self.upstream.script = lambda r: r.rpc == "tools/call" and (script(r) or True)

    async def call(self, id: object = 7) -> Response:
        return await self.stack.ask(b"POST", b"/mcp", rpc("tools/call", id), self.named)

    async def waiting(self) -> RawClient:
        """A call of a client that takes no stream; the server has it."""
        headers = [*self.named, (b"Accept", b"application/json")]
        client = await self.stack.send(b"POST", b"/mcp", rpc("tools/call", 7), headers)
        await self.stack.until(lambda: self.calls)
        return client

    @property
    def calls(self) -> int:
        return [r.rpc for r in self.upstream.requests].count("tools/call")


@pytest_twisted.async_yield_fixture
async def bench(start: Start) -> AsyncIterator[Bench]:
    upstream = FaultyUpstream()
    upstream.start(reactor)
    stack = await start({}, default="one", limits=LIMITS)
    settings = HTTPSettings(name="one", url=upstream.url)
    server = HTTPServer(settings, LIMITS, reactor, stack.clock, stack.observer)
    stack.mount("one", server)
    named = [(b"Mcp-Session-Id", await stack.open())]
    yield Bench(stack, upstream, server, named)
    for session in list(stack.shared.registry):
        await stack.shared.registry.end(session, "shutdown")
    await server.drain()
    await upstream.close()


def failed(response: Response, reason: str, id: object = 7) -> None:
    """It is one JSON-RPC error with that reason, and shows nothing of the server."""
    assert (response.status, response.json["id"]) == (200, id)
    assert response.json["error"]["code"] == -32000
    assert response.json["error"]["data"]["reason"] == reason
    assert b"127.0.0.1" not in response.body


@pytest.mark.acceptance(68)
@pytest_twisted.ensureDeferred
async def test_acceptance_68_aServerThatIsNotThere(bench: Bench) -> None:
    await bench.upstream.stopListening()
    lost = [connection.lost for connection in bench.upstream.connections]
    for connection in list(bench.upstream.connections):
        connection.transport.abortConnection()
    for one in lost:
        await one
    failed(await bench.call(), "upstream_unreachable")
    assert bench.calls == 0


@twistedIsLate
@pytest.mark.acceptance(68)
@pytest.mark.parametrize("how", ["name", "certificate", "no TLS"])
@pytest_twisted.ensureDeferred
async def test_acceptance_68_aServerThatCannotBeReachedSafely(start: Start, how: str) -> None:
    upstream = FaultyUpstream()
    upstream.start(reactor, certificate().options() if how == "certificate" else None)
    upstream.connected = lambda connection: (
        connection.transport.write(b"HTTP/1.1 400 X\r\n\r\n") if how == "no TLS" else None
    )
    stack = await start({}, default="one")
    url = upstream.url.replace("http:", "https:")
    if how == "name":
        url = "http://gateway.invalid/mcp"
    settings = HTTPSettings(name="one", url=url)
    server = HTTPServer(settings, Limits(), reactor, stack.clock, stack.observer)
    stack.mount("one", server)
    body = rpc("initialize", 7, protocolVersion="2025-06-18", capabilities={})
    failed(await stack.ask(b"POST", b"/mcp", body), "upstream_unreachable")
    assert upstream.requests == []
    await server.drain()
    await upstream.close()


@pytest.mark.acceptance(69)
@pytest.mark.parametrize(
    "script",
    [
        lambda r: r.cut(),
        lambda r: r.finish(),
        lambda r: (r.raw(b"HTTP/1.1 200 O"), r.finish()),
        lambda r: (r.raw(OK + b"Content-Length: 9\r\n\r\n{"), r.finish()),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_69_aCallThatWasCutMayHaveRunAndIsNotRepeated(
    bench: Bench, script: Callable[[Received], Any]
) -> None:
    bench.script(script)
    failed(await bench.call(), "outcome_unknown")
    assert bench.calls == 1
    bench.upstream.script = lambda r: False
    assert (await bench.call(8)).json["result"] == {}


@pytest.mark.acceptance(70)
@pytest_twisted.ensureDeferred
async def test_acceptance_70_aStreamThatIsCutIsOneError(bench: Bench) -> None:
    bench.script(lambda r: (r.stream(), r.event({"jsonrpc": "2.0", "method": "x"}), r.finish()))
    client = await bench.stack.send(b"POST", b"/mcp", rpc("tools/call", 7), bench.named)
    assert (await client.head()).status == 200
    assert (await client.message())["method"] == "x"
    told = await client.message()
    assert (told["id"], told["error"]["data"]["reason"]) == (7, "outcome_unknown")
    assert await client.event() is None
    assert bench.calls == 1


@pytest.mark.acceptance(71)
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nCo"])
@pytest_twisted.ensureDeferred
async def test_acceptance_71_aServerThatDoesNotAnswer(bench: Bench, said: bytes) -> None:
    """The call's own deadline ends it: an answer as JSON may take as long as the call."""
    bench.script(lambda r: r.raw(said))
    client = await bench.waiting()
    bench.stack.pass_(599)
    await bench.stack.turns()
    assert client.unread == b""
    bench.stack.pass_(2)
    failed(await client.response(), "timeout")


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_anAnswerThatStopsInTheMiddle(bench: Bench) -> None:
    bench.script(lambda r: r.raw(OK + b"Content-Length: 9\r\n\r\n{"))
    client = await bench.waiting()
    await bench.stack.turns()
    bench.stack.pass_(299)
    await bench.stack.turns()
    assert client.unread == b""
    bench.stack.pass_(1 + 3 * BEAT)
    failed(await client.response(), "timeout")
    assert bench.stack.observer.bounds == ["upstream_idle"]


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_aStreamThatStallsBeforeItsHeadOrBetweenEvents(bench: Bench) -> None:
    stalls = [lambda r: None, lambda r: r.stream()]
    bench.upstream.script = lambda r: r.method == b"GET" and (stalls.pop(0)(r) or True)
    refused = await bench.stack.send(b"GET", b"/mcp", None, bench.named)
    await bench.stack.until(lambda: len(stalls) == 1)
    await bench.stack.turns()
    bench.stack.pass_(60 + 3 * BEAT)
    assert (await refused.response()).status == 405
    client = await bench.stack.send(b"GET", b"/mcp", None, bench.named)
    assert (await client.head()).status == 200
    await bench.stack.turns()
    bench.stack.pass_(300 + 3 * BEAT)
    # It ends, so that its client opens another; no call is hurt.
    assert await client.event() is None
    # Connections of clients that were idle meanwhile have an end of their own.
    reached = [limit for limit in bench.stack.observer.bounds if limit != "keep_alive"]
    assert reached == ["upstream_first_byte", "upstream_idle"]
    assert (await bench.call()).json["result"] == {}


@define(eq=False)
class Endless:
    """A body without end, as fast as it is read. chunks: how many of 10 kB were written."""

    chunks: int = 0
    _request: Received | None = None

    def __call__(self, request: Received) -> None:
        request.raw(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        self._request = request
        request.connection.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        assert self._request is not None
        self.chunks += 1
        self._request.chunk(b" " * 10_000)

    def stopProducing(self) -> None:
        """The client cut it."""


@pytest.mark.acceptance(72)
@pytest.mark.parametrize(
    "script",
    [
        lambda r: r.raw(b"SSH-2.0-OpenSSH\r\n"),
        lambda r: r.raw(b"HTTP/1.1 200 OK\n\n"),
        lambda r: r.raw(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n12"),
        lambda r: r.raw(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
        lambda r: r.raw(OK + b"X-Large: " + b"x" * 1_000_000),
        lambda r: r.raw(OK + b"Content-Length: 100001\r\n\r\n"),
        lambda r: r.raw(OK + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n"),
        lambda r: r.reply(200, b"\x1f\x8b" * 50, headers=((b"Content-Encoding", b"gzip"),)),
        lambda r: r.reply(200, json.dumps({"id": 7}).encode(), type=b"text/html"),
        lambda r: r.stream(((b"Content-Encoding", b"br"),)),
        Endless(),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_72_aBadAnswerIsOneErrorAndCostsItsConnection(
    bench: Bench, script: Callable[[Received], Any]
) -> None:
    bench.script(script)
    failed(await bench.call(), "bad_answer")
    connection = bench.upstream.requests[-1].connection
    await bench.stack.until(lambda: connection not in bench.upstream.connections)
    if isinstance(script, Endless):
        # The limit, and what the two sockets hold.
        assert 10 <= script.chunks < 1000
    bench.upstream.script = lambda r: False
    assert (await bench.call(8)).json["result"] == {}
    assert bench.upstream.requests[-1].connection is not connection
