"""Modern requests straight through to a modern HTTP server: exact bytes on loopback, both ways."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from faulty_upstream import FaultyUpstream, Received
from modern_support import SUBSCRIPTION, enveloped, fields, known
from raw import RawClient, Response, Stack, Start, rpc
from raw import start as start
from test_ladder import assertRefused
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList

from gateway.guard.limits import Limits
from gateway.http1.client import ResponseHead
from gateway.observe.observer import CallAnswered, CallFailed, CallStarted
from gateway.proxies.passing import Passing, fieldsBack
from gateway.servers.eras import EraServer
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings
from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import Message, decode
from gateway.wire.exchange import RequestHead


@define(eq=False)
class Bench:
    """A gateway in front of a scripted upstream, which answers nothing by itself."""

    stack: Stack
    upstream: FaultyUpstream
    server: EraServer

    async def post(self, body: bytes, *others: tuple[bytes, bytes]) -> tuple[RawClient, Received]:
        """A modern request, and what the upstream got."""
        client = await self.stack.send(b"POST", b"/mcp", body, fields(body, *others))
        return client, await self.upstream.next()

    async def ask(self, body: bytes, *others: tuple[bytes, bytes]) -> Response:
        return await self.stack.ask(b"POST", b"/mcp", body, fields(body, *others))

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.stack.observer.of(CallFailed)]


@pytest_twisted.async_yield_fixture
async def bench(start: Start) -> AsyncIterator[Any]:
    made: list[Bench] = []

    async def make(limits: Limits | None = None, era: str = "modern", **settings: Any) -> Bench:
        upstream = FaultyUpstream(script=lambda request: True)
        upstream.start(reactor)
        options = {"url": upstream.url, "era": era, **settings}
        limits = limits or Limits()

        class Later:
            """The observer of a stack that is about to be."""

            def observed(self, event: Any) -> None:
                stack.observer.observed(event)

        inner = HTTPServer(
            HTTPSettings(name="one", **options),
            limits,
            reactor,
            reactor,  # type: ignore[arg-type]
            Later(),  # type: ignore[arg-type]
        )
        server = known(inner)
        stack = await start({"one": server}, limits=limits)
        made.append(Bench(stack, upstream, server))
        return made[-1]

    yield make
    for one in made:
        await one.stack.mounts["one"].http.stop()
        await one.server.drain()
        await one.upstream.close()


# Up.


@pytest.mark.acceptance(29, 32)
@pytest_twisted.ensureDeferred
async def test_acceptance_32_theBytesOfARequestAreTheClientsOwn(bench: Any) -> None:
    it = await bench(headers={"X-Configured": "yes"})
    body = (
        b' {"id" : 1.0 ,"jsonrpc":"2.0",\n "method":"tools\\u002fcall", "params":{"name":"a",'
        b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","x":1e0},'
        b'"arguments":{"s":"\\ud800","n":9007199254740993}},"more":[1 ,2]}\r\n'
    )
    headers = [
        (b"Accept", b"text/event-stream;q=0.5,application/json"),
        (b"Content-Type", b"application/json;  charset=UTF-8"),
        (b"MCP-Protocol-Version", b"2026-07-28"),
        (b"Mcp-Method", b"something/else"),
        (b"Mcp-Name", b"=?base64?w6k=?="),
        (b"Mcp-Param-Region", b"eu"),
        (b"mcp-param-Tenant_ID", b"7"),
        (b"X-Trace", b"t"),
        (b"x_trace", b"u"),
        (b"Mcp-Session-Id", b"s"),
        (b"Last-Event-ID", b"9"),
        (b"Authorization", b"Bearer secret"),
        (b"Cookie", b"a=b"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"1"),
    ]
    client = await it.stack.send(b"POST", b"/mcp", body, headers)
    got = await it.upstream.next()
    assert got.method == b"POST" and got.body == body
    told = dict(got.headers)
    assert told[b"accept"] == b"text/event-stream;q=0.5,application/json"
    assert told[b"content-type"] == b"application/json;  charset=UTF-8"
    assert told[b"mcp-protocol-version"] == b"2026-07-28"
    assert told[b"mcp-method"] == b"something/else"
    assert told[b"mcp-name"] == b"=?base64?w6k=?="
    assert told[b"mcp-param-region"] == b"eu"
    assert told[b"mcp-param-tenant_id"] == b"7"
    assert told[b"x-trace"] == b"t" and told[b"x-configured"] == b"yes"
    assert told[b"accept-encoding"] == b"identity"
    assert told[b"x-forwarded-for"] == b"127.0.0.1"
    for name in (
        b"x_trace",
        b"mcp-session-id",
        b"last-event-id",
        b"authorization",
        b"cookie",
        b"x-hop",
        b"connection",
    ):
        assert name not in told
    assert len(told) == len(got.headers)
    got.reply(200, b"{}")
    assert (await client.response()).body == b"{}"


# Down.


@pytest.mark.acceptance(32, 73)
@pytest.mark.parametrize(
    ("status", "type", "body"),
    [
        (200, b"application/json", b' {"jsonrpc":"2.0","id":7,"result":{"n":1.0}}\n'),
        (200, b"application/json; charset=utf-8", b"not even JSON \xff"),
        (400, b"application/json", b'{"jsonrpc":"2.0","id":7,"error":{"code":-32020}}'),
        (404, b"application/json", b'{"jsonrpc":"2.0","id":7,"error":{"code":-32601}}'),
        (401, b"application/json", b'{"error":"invalid_token"}'),
        (429, b"text/plain", b"slow down"),
        (500, b"text/html", b"<p>oops</p>"),
        (200, b"application/json", b""),
        (200, b"application/json", b"x" * 300_000),
        (503, b"application/json", b"y" * 300_000),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_32_theBytesOfAnAnswerAreTheServersOwn(
    bench: Any, status: int, type: bytes, body: bytes
) -> None:
    it = await bench()
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.reply(
        status,
        body,
        type,
        headers=(
            (b"WWW-Authenticate", b'Bearer resource_metadata="https://auth.example/x"'),
            (b"Retry-After", b"3"),
            (b"Cache-Control", b"private, max-age=5"),
            (b"X-Other", b"\xe9"),
            (b"Set-Cookie", b"a=b"),
            (b"Mcp-Session-Id", b"theirs"),
            (b"Connection", b"keep-alive, X-Hop"),
            (b"X-Hop", b"1"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Access-Control-Allow-Origin", b"*"),
            (b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        ),
    )
    answer = await client.response()
    assert (answer.status, answer.body) == (status, body)
    assert answer.header(b"content-type") == type
    assert answer.header(b"www-authenticate") == (
        b'Bearer resource_metadata="https://auth.example/x"'
    )
    assert answer.header(b"retry-after") == b"3"
    assert answer.header(b"cache-control") == b"private, max-age=5"
    assert answer.header(b"x-other") == b"\xe9"
    for name in (b"set-cookie", b"mcp-session-id", b"x-hop", b"access-control-allow-origin"):
        assert answer.header(name) is None
    assert answer.header(b"date") != b"Thu, 01 Jan 1970 00:00:00 GMT"
    assert [event.error for event in it.stack.observer.of(CallAnswered)] == [status >= 400]
    assert len(it.stack.observer.of(CallStarted)) == 1


def test_whatNeverComesBack() -> None:
    pairs = [(b"trailer", b"x"), (b"proxy-x", b"y"), (b"connection", b"a , B"), (b"b", b"1")]
    kept = (b"vary", b"Accept"), (b"content-encoding", b"br")
    assert fieldsBack([*pairs, (b"location", b"http://in.side/"), *kept]) == kept
    # What the web server in front of us would obey, or a browser for the whole of our origin.
    orders = b"x-accel-redirect", b"x-accel-limit-rate", b"x-sendfile", b"x-lighttpd-send-file"
    orders += b"x-litespeed-location", b"report-to", b"nel", b"reporting-endpoints"
    buffering = (b"x-accel-buffering", b"no")
    assert fieldsBack([*((name, b"/etc/x") for name in orders), buffering]) == (buffering,)


@pytest_twisted.ensureDeferred
async def test_anEventStreamComesAsItIsCommentsAndAll(bench: Any) -> None:
    it = await bench()
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.stream(((b"X-Accel-Buffering", b"no"), (b"Cache-Control", b"no-cache")))
    head = await client.head()
    assert head.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert head.header(b"x-accel-buffering") == b"no"
    assert head.header(b"cache-control") == b"no-cache"
    pieces = [b": ping\r\n\r\n", b"id: 7\nda", b"ta: {\xff}\n\n", b"retry: 5\r\r", b"\n"]
    pieces += [b'data: {"jsonrpc":"2.0","id":7,', b'"result":{}}\n\n', b": more\n"]
    for piece in pieces:
        got.chunk(piece)
        assert await client.chunk() == piece, "as they come"
    got.end()
    assert await client.chunk() is None
    # The connection serves on, at both sides.
    body = enveloped("tools/list")
    client.send(it.stack.request(b"POST", b"/mcp", body, fields(body)))
    (await it.upstream.next()).reply(200, b"{}")
    assert (await client.response()).body == b"{}"
    assert it.upstream.opened == 1


@pytest_twisted.ensureDeferred
async def test_notificationsGoNowhere(bench: Any) -> None:
    it = await bench()
    version = (b"MCP-Protocol-Version", b"2026-07-28")
    answer = await it.stack.ask(b"POST", b"/mcp", rpc("notifications/x"), [version])
    assert (answer.status, answer.body) == (202, b"")
    assert it.upstream.requests == []


# Faults.


@pytest_twisted.ensureDeferred
async def test_whatFailsBeforeTheHeadIsAnswered(bench: Any) -> None:
    it = await bench()
    body = enveloped("tools/call", "a", name="x")
    for fault, status, reason in (
        (lambda got: got.cut(), 502, "outcome_unknown"),
        (lambda got: got.raw(b"nonsense\r\n\r\n"), 502, "bad_answer"),
        (
            lambda got: got.reply(302, b"", headers=((b"Location", b"http://in/"),)),
            502,
            "bad_answer",
        ),
        (
            lambda got: got.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx") or got.finish(),
            502,
            "outcome_unknown",
        ),
    ):
        client, got = await it.post(body)
        fault(got)
        answer = await client.response()
        assert assertRefused(answer, status, -32603, b'"a"')["data"] == {"reason": reason}
    await it.upstream.close()
    error = assertRefused(await it.ask(body), 502, -32603, b'"a"')
    assert error["data"] == {"reason": "upstream_unreachable"}
    assert b"127.0.0.1" not in json.dumps(error).encode()
    assert it.reasons[-1] == "upstream_unreachable"


@pytest_twisted.ensureDeferred
async def test_afterTheHeadAJSONAnswerIsCut(bench: Any) -> None:
    it = await bench()
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90000\r\n\r\n")
    got.raw(b" " * 70_000)
    await client.head()
    got.cut()
    await client.rest()
    assert it.reasons == ["outcome_unknown"]


WORDS = rpc("notifications/progress", progressToken=1, progress=1)


@pytest.mark.acceptance(70)
@pytest.mark.parametrize("end", ["cut", "ended", "malformed"])
@pytest.mark.parametrize(
    "before",
    [
        b"",
        b": hello\n",
        b"data: " + WORDS + b"\n\n",
        b"data: " + WORDS + b"\r\n\r\n",
        # In the middle of an event, a line, a field name.
        b"data: " + WORDS + b"\n\ndata: " + rpc("notifications/message")[:20],
        b'event: message\ndata: {"jsonrpc":"2.0","id":"a","result":{}}\n',
        b'data: {"jsonrpc":"2.0","id":"a","result":{}}\r\n',
        b'data: {"jsonrpc":"2.0","id":"a","result":"\xe2\x82',
        b"dat",
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_70_aStreamThatBreaksOffEndsInOneError(
    bench: Any, before: bytes, end: str
) -> None:
    it = await bench()
    client, got = await it.post(enveloped("tools/call", "a", name="x"))
    got.stream()
    if before:
        got.chunk(before)
    await client.head()
    await it.stack.turns()
    if end == "cut":
        got.finish()
    elif end == "ended":
        got.end()
    else:
        got.raw(b"no size\r\n")
    events = []
    while (event := await client.event()) is not None:
        events.append(event)
    messages = [json.loads(event.data) for event in events if event.event == b"message"]
    assert [one.get("method") for one in messages[:-1]] in ([], ["notifications/progress"])
    reason = "bad_answer" if end == "malformed" else "outcome_unknown"
    last = messages[-1]
    assert (last["id"], last["error"]["code"]) == ("a", -32603)
    assert last["error"]["data"] == {"reason": reason}
    assert it.reasons == [reason]
    # The connection is as good as before.
    client.send(it.stack.request(b"GET", b"/servers/none/mcp"))
    assert (await client.response()).status == 404


@pytest.mark.acceptance(70)
@pytest_twisted.ensureDeferred
async def test_acceptance_70_whoHasItsAnswerGetsNoOther(bench: Any) -> None:
    it = await bench()
    answer = b'{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"m"}}'
    note = rpc("notifications/message", level="info", data="x")
    for size, last in ((0, note), (100_000, note), (0, b"")):
        client, got = await it.post(enveloped("tools/call", name="x"))
        got.stream()
        large = answer[:-1] + b',"more":"%b"}' % (b"x" * size)
        said = b"data: " + large + b"\n\n" + (b"data: " + last + b"\n\n" if last else b"")
        got.chunk(said)
        await client.head()
        event = await client.event()
        assert event is not None and event.data == large
        got.finish()
        rest = await client.rest()
        assert b"outcome_unknown" not in rest


@pytest_twisted.ensureDeferred
async def test_whatCannotBeReadIsCut(bench: Any) -> None:
    """It is coded, or the error of a server that speaks in events."""
    it = await bench()
    for head in (b"200 OK\r\nContent-Encoding: gzip", b"500 Oh\r\nX-Y: z"):
        client, got = await it.post(enveloped("tools/call", name="x"))
        got.raw(
            b"HTTP/1.1 " + head + b"\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        await client.head()
        got.cut()
        assert await client.rest() == b""


@pytest_twisted.ensureDeferred
async def test_anAnswerThatCanHaveNoBodyHasNone(bench: Any) -> None:
    """RFC 9112 section 6.3: what follows it would be taken for the next answer."""
    it = await bench()
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.raw(b"HTTP/1.1 204 No Content\r\nContent-Type: text/event-stream\r\n\r\n")
    answer = await client.response(bodiless=True)
    assert answer.status == 204 and answer.header(b"transfer-encoding") is None
    client.send(it.stack.request(b"GET", b"/servers/none/mcp"))
    assert (await client.response()).status == 404


@pytest_twisted.ensureDeferred
async def test_silenceHasABoundAndSoHasAll(bench: Any) -> None:
    it = await bench(timeout=10.0, max_timeout=25.0)
    body = enveloped("tools/call", "a", name="x")
    client, got = await it.post(body)
    it.stack.pass_(11.0)
    error = assertRefused(await client.response(), 504, -32603, b'"a"')
    assert error["data"] == {"reason": "timeout"}
    await it.stack.until(lambda: not it.upstream.connections)

    client, got = await it.post(body)
    got.stream()
    await client.head()
    for _ in range(2):
        it.stack.pass_(9.0)
        got.chunk(b":\n\n")
        assert await client.chunk() == b":\n\n"
    it.stack.pass_(9.0)
    told = await client.message()
    assert (told["id"], told["error"]["data"]) == ("a", {"reason": "timeout"})
    assert await client.event() is None
    assert it.reasons == ["timeout"] * 2


@pytest_twisted.ensureDeferred
async def test_aStreamOfWhoListensMayBeSilent(bench: Any) -> None:
    it = await bench(timeout=10.0, max_timeout=25.0)
    body = enveloped("subscriptions/listen", "l", notifications={})
    client, got = await it.post(body)
    it.stack.pass_(11.0)
    assertRefused(await client.response(), 504, -32603, b'"l"')
    client, got = await it.post(body)
    got.stream()
    await client.head()
    it.stack.pass_(1000.0)
    got.chunk(b":\n\n")
    assert await client.chunk() == b":\n\n"
    assert not it.stack.mounts["one"].http.running()


@pytest_twisted.ensureDeferred
async def test_anAnswerThatIsTooLarge(bench: Any) -> None:
    it = await bench(Limits(max_answer=100_000))
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\nContent-Type: application/json\r\n\r\n")
    error = assertRefused(await client.response(), 502, -32603, b"7")
    assert error["data"] == {"reason": "bad_answer"}
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    )
    got.chunk(b"x" * 70_000)
    await client.head()
    got.chunk(b"x" * 70_000)
    assert len(await client.rest()) < 110_000
    assert it.stack.observer.bounds == ["max_answer"] * 2
    # Of an event stream only what is of one event could be too much, and nothing of it is kept.
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.stream()
    await client.head()
    for _ in range(5):
        got.chunk(b"data: " + b"x" * 70_000)
        assert await client.chunk()
    got.end()


# Back-pressure, and the client's end.


@pytest.mark.acceptance(77)
@pytest_twisted.ensureDeferred
async def test_acceptance_77_aClientThatDoesNotReadHasItsServerNotRead(bench: Any) -> None:
    it = await bench()
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.stream()
    await client.head()
    client.pause()
    transport = got.connection.transport
    piece = b"data: " + b"x" * 65_536 + b"\n\n"
    for _ in range(2000):
        got.chunk(piece)
        await it.stack.turns(1)
        if transport.dataBuffer or transport._tempDataBuffer:
            break
    else:
        raise AssertionError("the upstream was read on and on")
    client.resume()
    sent = 0
    got.end()
    while (data := await client.chunk()) is not None:
        sent += len(data)
    assert sent % len(piece) == 0 and sent > 0
    assert it.stack.observer.bounds == []


@pytest_twisted.ensureDeferred
async def test_aClientThatReadsNothingIsCut(bench: Any) -> None:
    it = await bench(timeout=10.0)
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.stream()
    await client.head()
    client.pause()
    for _ in range(400):
        got.chunk(b"data: " + b"x" * 65_536 + b"\n\n")
        await it.stack.turns(1)
    it.stack.pass_(29.0)
    assert it.stack.observer.bounds == []
    it.stack.pass_(2.0)
    assert it.stack.observer.bounds == ["reader_blocked"]
    await it.stack.until(lambda: not it.upstream.connections)


@pytest_twisted.ensureDeferred
async def test_soIsOneWhoseStreamCouldStillBeAnswered(bench: Any) -> None:
    """Nobody would read the error, and to wait for that would take as long again."""
    it = await bench(timeout=10.0)
    client, got = await it.post(enveloped("tools/call", name="x"))
    got.stream()
    await client.head()
    client.pause()
    for _ in range(400):
        got.chunk((b"data: " + b"x" * 1000 + b"\n\n") * 60)
        await it.stack.turns(1)
    assert it.stack.connections == 1
    it.stack.pass_(31.0)
    assert it.stack.observer.bounds == ["reader_blocked"]
    await it.stack.until(lambda: not it.upstream.connections)
    await it.stack.until(lambda: not it.stack.connections)


@define(eq=False)
class SlowExchange:
    """An exchange, and its sink, whose client takes a little at a time."""

    head: RequestHead
    moved: int = 0
    blocked: bool = False
    cut: bool = False
    onGone: Any = None
    onDrained: Any = None

    def open(self, status: int, headers: HeaderPairs) -> SlowExchange:
        return self

    def write(self, data: bytes) -> bool:
        self.blocked = True
        return False

    def abort(self) -> None:
        self.cut = True


@pytest_twisted.ensureDeferred
async def test_oneThatReadsSlowlyButReadsIsNot(bench: Any) -> None:
    it = await bench()
    shared = it.stack.shared
    message = decode(enveloped("tools/call", name="x"))
    assert isinstance(message, Message)
    slow = SlowExchange(RequestHead(b"POST", b"/mcp", b"", ()))
    over: list[Passing] = []
    passing = Passing(slow, shared, "one", message, 10.0, 1e9, over.append, lambda: None)  # type: ignore[arg-type]
    shared.pulse.join(passing)
    passing.headReceived(ResponseHead(200, [(b"content-type", b"text/event-stream")]))
    passing.dataReceived(b"data: " + b"x" * 65_536 + b"\n\n")
    for _ in range(10):
        it.stack.pass_(29.0)
        slow.moved += 1
    assert not over and not slow.cut and it.stack.observer.bounds == []
    it.stack.pass_(29.0)
    assert not over
    it.stack.pass_(2.0)
    assert over and slow.cut and it.stack.observer.bounds == ["reader_blocked"]


@pytest.mark.acceptance(30)
@pytest_twisted.ensureDeferred
async def test_acceptance_30_aClientThatLeavesClosesTheServersStream(bench: Any) -> None:
    it = await bench()
    for body, opened in (
        (enveloped("tools/call", name="x"), False),
        (enveloped("tools/call", name="x"), True),
        (enveloped("subscriptions/listen", notifications={}), True),
    ):
        client, got = await it.post(body)
        if opened:
            got.stream()
            await client.head()
        assert len(it.upstream.connections) == 1
        client.reset()
        await it.stack.until(lambda: not it.upstream.connections)
        assert not it.stack.mounts["one"].http.running()
    assert it.reasons == ["cancelled"] * 3


@pytest.mark.parametrize("ahead", [b"\r\n", b"POST /mcp HTTP/1.1\r\n"])
@pytest_twisted.ensureDeferred
async def test_soDoesOneThatSentSomethingAhead(bench: Any, ahead: bytes) -> None:
    it = await bench()
    for method in ("tools/call", "subscriptions/listen"):
        client, got = await it.post(enveloped(method, notifications={}))
        got.stream()
        await client.head()
        client.send(ahead)
        client.close()
        await client.ended

        def noticed() -> bool:
            it.stack.pass_(1.0)
            return not it.upstream.connections

        await it.stack.until(noticed)
    assert it.reasons == ["cancelled"] * 2


@pytest_twisted.ensureDeferred
async def test_streamsTakeNoRoomFromCalls(bench: Any) -> None:
    it = await bench(
        Limits(max_upstream_connections=1, max_upstream_queue=1, max_upstream_streams=1)
    )
    listen = enveloped("subscriptions/listen", "l", notifications={})
    await it.post(listen)
    error = assertRefused(await it.ask(listen), 503, -32603, b'"l"')
    assert error["data"] == {"reason": "overloaded"}
    body = enveloped("tools/call", name="x")
    clients = [await it.stack.send(b"POST", b"/mcp", body, fields(body)) for _ in range(2)]
    running = await it.upstream.next()
    await it.stack.until(lambda: it.stack.observer.bounds.count("max_upstream_connections") == 1)
    answer = await it.ask(body)
    assertRefused(answer, 503, -32603, b"7", retry_after=b"5")
    running.reply(200, b"{}")
    (await it.upstream.next()).reply(200, b"{}")
    results = await DeferredList([Deferred.fromCoroutine(one.response()) for one in clients])
    assert [answer.status for _, answer in results] == [200, 200]


# The end of the gateway, and of the verdict.


@pytest_twisted.ensureDeferred
async def test_atTheEndWhoListensIsAnswered(bench: Any) -> None:
    it = await bench()
    body = enveloped("subscriptions/listen", "l", notifications={})
    whole, got = await it.post(body)
    got.stream()
    got.chunk(b": hello\r\n\r\n")
    half, other = await it.post(body)
    other.stream()
    other.chunk(b"data: {")
    call, _ = await it.post(enveloped("tools/call", "a", name="x"))
    for client in (whole, half):
        await client.head()
    await whole.chunk()
    await it.stack.turns()
    assert it.stack.mounts["one"].http.running()
    await it.stack.mounts["one"].http.stop()
    for client in (whole, half):
        event = await client.event()
        # What was within an event is none.
        if client is half:
            assert event is not None and event.event == b"unfinished"
            event = await client.event()
        assert event is not None and event.data is not None
        assert json.loads(event.data) == {
            "jsonrpc": "2.0",
            "id": "l",
            "result": {"resultType": "complete", "_meta": {SUBSCRIPTION: "l"}},
        }
        assert await client.chunk() is None
    error = assertRefused(await call.response(), 503, -32603, b'"a"')
    assert error["data"] == {"reason": "shutting_down"}
    await it.stack.until(lambda: not it.upstream.connections)


@pytest.mark.parametrize(
    ("status", "body", "doubts"),
    [
        (400, b'{"jsonrpc":"2.0","id":7,"error":{"code":-32022,"message":"m"}}', 0),
        (400, b'{"jsonrpc":"2.0","error":{"code":-32020,"message":"m"}}', 0),
        (404, b'{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"m"}}', 0),
        (400, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"m"}}', 1),
        (400, b"Bad Request", 1),
        (404, b"", 1),
        (405, b"", 1),
        (500, b"", 0),
        (401, b"", 0),
        (200, b'{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"m"}}', 0),
    ],
)
@pytest_twisted.ensureDeferred
async def test_anAnswerThatNoModernServerGivesIsDoubted(
    bench: Any, status: int, body: bytes, doubts: int
) -> None:
    it = await bench(era="auto")
    verdicts = it.server.verdicts
    verdicts.found(verdicts.keyOf(it.server.settings), "one", modern=True)
    client, got = await it.post(enveloped("server/discover"))
    got.reply(status, body)
    answer = await client.response()
    assert (answer.status, answer.body) == (status, body)
    assert it.server.verdict.modern is (None if doubts else True)


@pytest_twisted.ensureDeferred
async def test_aServerThatAsksWhoItIsSaysSoItself(bench: Any) -> None:
    it = await bench(era="auto", forward_authorization=True)
    client, probe = await it.post(
        enveloped("server/discover", "a"), (b"Authorization", b"Bearer x")
    )
    for got in (probe, it.upstream.next()):
        got = got if isinstance(got, Received) else await got
        assert got.header(b"authorization") == b"Bearer x"
        got.reply(401, b"", headers=((b"WWW-Authenticate", b"Bearer"),))
    assert got.message["id"] == "a"
    answer = await client.response()
    assert answer.status == 401 and answer.header(b"www-authenticate") == b"Bearer"
