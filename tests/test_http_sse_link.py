"""The link to an HTTP+SSE server, and how a server's transport is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from faulty_upstream import FaultyUpstream, Received
from link_support import Observed, Session, hello
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.links.http_sse import HTTPSSELink
from gateway.links.interfaces import ILink, LinkFailed, Outcome, Reason
from gateway.links.resuming import ResumingLink
from gateway.observe.observer import BoundReached, NoiseSkipped
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext

CONTEXT = CallContext("up", headers=((b"x-trace", b"1"), (b"authorization", b"Bearer s")))
GREETING = {"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": {"name": "s"}}


class SSEUpstream(FaultyUpstream):
    """
    An HTTP+SSE server.

    endpoint: what it names; None: nothing. post: answers a POST to the stream's own path.
    """

    endpoint: str | None = "/messages?id=1"
    post: Callable[[Received], None] = staticmethod(lambda request: request.reply(405, type=None))
    opens: Callable[[Received], bool] = staticmethod(lambda request: False)
    takes: Callable[[Received], bool] = staticmethod(lambda request: False)
    stream: Received

    def usual(self, request: Received) -> None:
        if request.target.startswith(b"/mcp") and request.method == b"POST":
            self.post(request)
        elif request.method == b"GET":
            if not self.opens(request):
                self.open(request)
        elif not self.takes(request):
            request.reply(202, b"Accepted", type=b"text/plain")
            if request.rpc == "initialize":
                self.says({"jsonrpc": "2.0", "id": 0, "result": GREETING})

    def open(self, request: Received) -> None:
        self.stream = request
        request.stream()
        if self.endpoint is not None:
            request.chunk(b"event: endpoint\r\ndata: %b\r\n\r\n" % self.endpoint.encode())

    def says(self, body: object) -> None:
        self.stream.event(body)

    @property
    def asked(self) -> list[str]:
        return [f"{r.method.decode()} {r.target.decode()}" for r in self.requests]


class Bench:
    def __init__(self, **limits: Any) -> None:
        self.upstream = SSEUpstream()
        self.upstream.start(reactor)
        self.clock, self.session, self.seen = Clock(), Session(), Observed()
        self.limits = Limits(**limits)
        self.configure(transport="sse")

    def configure(self, **settings: Any) -> None:
        configured = HTTPSettings(name="up", url=self.upstream.url, **settings)
        self.server = HTTPServer(configured, self.limits, reactor, self.clock, self.seen)

    async def link(self, ownStreams: bool = False) -> ILink:
        link = await self.server.link(hello(), self.session, CONTEXT, ownStreams)
        self.session.link = link
        return link

    async def fails(self) -> LinkFailed:
        with pytest.raises(LinkFailed) as raised:
            await self.link()
        return raised.value

    async def until(self, holds: Any) -> None:
        for _ in range(2000):
            if holds():
                return
            await deferLater(reactor, 0.001)
        raise AssertionError("it did not come about")


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.server.drain()
    await made.upstream.close()
    assert not made.clock.getDelayedCalls()


# The endpoint.


@pytest.mark.parametrize(
    ("named", "posted"),
    [
        ("/messages?id=1", "/messages?id=1"),
        ("messages/?id=1", "/messages/?id=1"),
        ("?id=1", "/mcp?id=1"),
        ("http://127.0.0.1:{port}/m#x", "/m"),
        ("//127.0.0.1:{port}/m", "/m"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_messages_go_where_the_server_says(bench: Bench, named: str, posted: str) -> None:
    port = bench.upstream.origin.rpartition(":")[2]
    bench.upstream.endpoint = named.format(port=port)
    bench.upstream.post = lambda request: bench.upstream.says(
        {"jsonrpc": "2.0", "id": 0, "result": GREETING}
    )
    link = await bench.link()
    assert verifyObject(ILink, link) and isinstance(link, HTTPSSELink)
    assert bench.upstream.asked == ["GET /mcp", f"POST {posted}"]
    post = bench.upstream.requests[1]
    assert post.header(b"x-trace") == b"1" and post.header(b"authorization") is None
    assert post.message["params"]["capabilities"] == {"sampling": {}}


@pytest.mark.parametrize(
    "named",
    [
        "http://127.0.0.1:1/m",
        "http://evil.invalid/m",
        "//evil.invalid/m",
        "https://127.0.0.1/m",
        "http://u@127.0.0.1/m",
        "javascript:alert(1)",
        "http://[::1",
        "",
        "  ",
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_is_none_of_its_own_gets_nothing(bench: Bench, named: str) -> None:
    bench.upstream.endpoint = named
    error = await bench.fails()
    assert error.reason is Reason.BAD_ANSWER and "endpoint" in error.message
    assert bench.upstream.asked == ["GET /mcp"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_names_no_endpoint_has_until_the_timeout(bench: Bench) -> None:
    bench.upstream.endpoint = None
    failed: list[Any] = []
    bench.server.link(hello(), bench.session, CONTEXT).addErrback(failed.append)
    await bench.until(lambda: hasattr(bench.upstream, "stream"))
    bench.upstream.stream.chunk(b": still here\n\n")
    bench.clock.advance(61)
    assert failed[0].value.reason is Reason.TIMEOUT
    assert "endpoint" in failed[0].value.message


# Calls and notes.


@pytest_twisted.ensureDeferred
async def test_answers_come_on_the_stream_in_any_order(bench: Bench) -> None:
    await bench.link()
    bench.session.ask(1)
    bench.session.ask(2)
    bench.session.tell("notifications/initialized", "note")
    await bench.until(lambda: "note" in bench.session.taken)
    for id in (2, 1):
        bench.upstream.says({"jsonrpc": "2.0", "id": id, "result": {"is": id}})
    await bench.until(lambda: len(bench.session.heard) == 2)
    assert [one["result"]["is"] for one in bench.session.heard] == [2, 1]
    assert bench.session.ends == []


@pytest.mark.parametrize(
    ("answers", "reason", "status"),
    [
        (lambda r: r.reply(404, type=None), Reason.BAD_ANSWER, 404),
        (lambda r: r.reply(400, b'{"no":1}'), Reason.BAD_ANSWER, 400),
        (lambda r: r.reply(500, b"<html>"), Reason.BAD_ANSWER, 500),
        (lambda r: r.cut(), Reason.OUTCOME_UNKNOWN, 0),
        (lambda r: r.raw(b"HTP?\r\n\r\n"), Reason.BAD_ANSWER, 0),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_post_that_is_not_taken_settles_its_call(
    bench: Bench, answers: Any, reason: Reason, status: int
) -> None:
    await bench.link()
    bench.upstream.takes = lambda request: answers(request) is None
    call = bench.session.ask(1)
    await bench.until(lambda: bool(bench.session.ends))
    told, settled = bench.session.ends[0]
    assert told is call
    assert (settled.reason, settled.status) == (reason, status)
    assert bench.session.losses == []


@pytest_twisted.ensureDeferred
async def test_a_call_may_take_longer_than_its_acceptance(bench: Bench) -> None:
    """Some servers accept a request when they have answered it."""
    await bench.link()
    bench.upstream.takes = lambda request: True
    bench.session.ask(1)
    await bench.until(lambda: len(bench.upstream.requests) == 3)
    bench.clock.advance(500)
    bench.upstream.says({"jsonrpc": "2.0", "id": 1, "result": "late"})
    await bench.until(lambda: bool(bench.session.heard))
    assert bench.session.ends == []
    bench.clock.advance(2)


@pytest_twisted.ensureDeferred
async def test_what_comes_before_the_answer_is_told_after_it(bench: Bench) -> None:
    def takes(request: Received) -> bool:
        request.reply(202, type=None)
        bench.upstream.says({"jsonrpc": "2.0", "method": "notifications/early"})
        bench.upstream.says({"jsonrpc": "2.0", "id": 0, "result": GREETING})
        return True

    bench.upstream.takes = takes
    await bench.link()
    await bench.until(lambda: bool(bench.session.heard))
    assert [one["method"] for one in bench.session.heard] == ["notifications/early"]


@pytest_twisted.ensureDeferred
async def test_noise_is_counted_and_harms_nothing(bench: Bench) -> None:
    await bench.link()
    stream = bench.upstream.stream
    stream.chunk(b"data: no json\n\nevent: other\ndata: {}\n\nevent: endpoint\ndata: /x\n\n: c\n\n")
    bench.upstream.says({"jsonrpc": "2.0", "method": "notifications/a"})
    await bench.until(lambda: bool(bench.session.heard))
    assert [type(e) for e in bench.seen.events if isinstance(e, NoiseSkipped)] == [NoiseSkipped]
    assert bench.seen.dropped == ["second_endpoint"]


MALFORMED = {
    "neither result nor error": b'{"jsonrpc":"2.0","id":1}',
    "both": b'{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":""}}',
    "not JSON": b'{"jsonrpc":"2.0","id":1,"result":NaN}',
    "a member twice": b'{"jsonrpc":"2.0","id":1,"result":{},"result":{}}',
    "of a batch": b'[{"jsonrpc":"2.0","method":"notifications/a"},{"jsonrpc":"2.0","id":1}]',
}


@pytest.mark.parametrize("said", MALFORMED.values(), ids=MALFORMED)
@pytest_twisted.ensureDeferred
async def test_a_malformed_answer_ends_its_call_at_once(bench: Bench, said: bytes) -> None:
    await bench.link()
    call, other = bench.session.ask(1), bench.session.ask(2)
    bench.upstream.stream.chunk(b"event: message\ndata: %b\n\n" % said)
    await bench.until(lambda: bool(bench.session.ends))
    ((ended, settled),) = bench.session.ends
    assert ended is call
    assert (settled.outcome, settled.reason) == (Outcome.MAYBE_RAN, Reason.BAD_ANSWER)
    # The stream and all other calls go on, and the same id may be answered no second time.
    bench.upstream.says({"jsonrpc": "2.0", "id": 2, "result": {}})
    await bench.until(lambda: any(one.get("id") == 2 for one in bench.session.heard))
    assert len(bench.session.ends) == 1
    assert sum(isinstance(e, NoiseSkipped) for e in bench.seen.events) == 1
    assert other is not call


@pytest.mark.parametrize(
    "said",
    [
        b'text that quotes {"jsonrpc":"2.0","id":1}',
        b'{"id":1}',
        b'{"jsonrpc":"2.0","id":7}',
        b'{"jsonrpc":"2.0","id":1,"method":"roots/list","params":null}',
        b'{"jsonrpc":"2.0","id":1,"method":"roots/list","params":{"a":NaN}}',
        b'[{"jsonrpc":"2.0","id":1,"method":"roots/list","params":null}]',
    ],
    ids=["quoted", "of another kind", "nobody's", "asks", "asks in no JSON", "asks in a batch"],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_answer_ends_no_call(bench: Bench, said: bytes) -> None:
    await bench.link()
    bench.session.ask(1)
    bench.upstream.stream.chunk(b"data: %b\n\n" % said)
    bench.upstream.says({"jsonrpc": "2.0", "id": 1, "result": {}})
    await bench.until(lambda: bool(bench.session.heard))
    assert bench.session.ends == []


@pytest_twisted.ensureDeferred
async def test_a_malformed_answer_to_initialize_fails_the_handshake(bench: Bench) -> None:
    def takes(request: Received) -> bool:
        request.reply(202, type=None)
        bench.upstream.stream.chunk(b'data: {"jsonrpc":"2.0","id":0,"result":{},"id":0}\n\n')
        return True

    bench.upstream.takes = takes
    assert (await bench.fails()).reason is Reason.BAD_ANSWER


# The end.


@pytest.mark.parametrize("how", ["end", "cut"])
@pytest_twisted.ensureDeferred
async def test_the_stream_is_the_session(bench: Bench, how: str) -> None:
    await bench.link()
    bench.session.ask(1)
    getattr(bench.upstream.stream, how)()
    await bench.until(lambda: bool(bench.session.losses))
    assert bench.session.losses == [Reason.SERVER_EXITED]
    assert bench.session.ends == []


@pytest_twisted.ensureDeferred
async def test_a_stream_may_be_silent_for_as_long_as_it_is_open(bench: Bench) -> None:
    """It is the session, and cannot be had again."""
    await bench.link()
    for _ in range(1000):
        bench.clock.advance(10)
    bench.upstream.says({"jsonrpc": "2.0", "method": "x"})
    await bench.until(lambda: bench.session.heard)
    assert bench.session.losses == []


@pytest_twisted.ensureDeferred
async def test_a_stream_whose_head_does_not_come() -> None:
    bench = Bench(upstream_first_byte=5)
    bench.upstream.opens = lambda request: True
    linking = Deferred.fromCoroutine(bench.fails())
    await bench.until(lambda: bench.upstream.requests)
    for _ in range(14):
        bench.clock.advance(0.5)
    failed = await linking
    assert failed.reason is Reason.TIMEOUT
    assert BoundReached("upstream_first_byte", "up") in bench.seen.events
    await bench.server.drain()
    await bench.upstream.close()
    assert not bench.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_message_that_is_too_large_ends_the_link() -> None:
    bench = Bench(max_answer=1000)
    await bench.link()
    bench.upstream.says({"jsonrpc": "2.0", "id": 1, "result": "x" * 2000})
    await bench.until(lambda: bool(bench.session.losses))
    assert bench.session.losses == [Reason.BAD_ANSWER]
    assert BoundReached("max_answer", "up") in bench.seen.events
    await bench.server.drain()
    await bench.upstream.close()


@pytest_twisted.ensureDeferred
async def test_held_it_reads_nothing(bench: Bench) -> None:
    link = await bench.link()
    link.hold(None)
    bench.upstream.says({"jsonrpc": "2.0", "method": "notifications/a"})
    await deferLater(reactor, 0.02)
    assert bench.session.heard == []
    link.release(None)
    await bench.until(lambda: bool(bench.session.heard))


@pytest_twisted.ensureDeferred
async def test_drain_tells_whoever_uses_it(bench: Bench) -> None:
    await bench.link()
    await bench.server.drain()
    assert bench.session.losses == [Reason.SHUTTING_DOWN]


# Finding the transport.


def streamable(request: Received) -> None:
    if request.rpc == "initialize":
        request.result(GREETING)
    else:
        request.reply(202, type=None)


def refusesGet(request: Received) -> bool:
    request.reply(405, type=None)
    return True


@pytest.mark.parametrize(
    ("post", "opens", "transport", "asked"),
    [
        (streamable, refusesGet, "streamable-http", 1),
        (lambda r: r.reply(405, type=None), lambda r: False, "sse", 3),
        (lambda r: r.reply(404, b"<html>", b"text/html"), lambda r: False, "sse", 3),
        (lambda r: r.reply(400, b"Bad", b"text/plain"), lambda r: False, "sse", 3),
        (lambda r: r.reply(200, b"<html>", b"text/html"), lambda r: False, "sse", 3),
        (streamable, lambda r: False, "streamable-http", 1),
    ],
    ids=["streamable", "405", "404", "400", "html", "both"],
)
@pytest_twisted.ensureDeferred
async def test_it_is_found_by_asking_and_remembered(
    bench: Bench, post: Any, opens: Any, transport: str, asked: int
) -> None:
    bench.configure()
    bench.upstream.post, bench.upstream.opens = post, opens
    assert bench.server.transport is None
    link = await bench.link()
    assert isinstance(link, HTTPSSELink if transport == "sse" else ResumingLink)
    assert bench.server.transport == transport
    assert len(bench.upstream.requests) == asked
    bench.upstream.requests.clear()
    await bench.link(ownStreams=True)
    # Remembered: a server over HTTP+SSE is not asked by POST again.
    assert (bench.upstream.asked[0] == "GET /mcp") is (transport == "sse")


@pytest_twisted.ensureDeferred
async def test_it_is_asked_again_when_it_proves_wrong(bench: Bench) -> None:
    bench.configure()
    await bench.link()
    assert bench.server.transport == "sse"
    bench.upstream.post, bench.upstream.opens = streamable, refusesGet
    await bench.link()
    assert bench.server.transport == "streamable-http"
    bench.upstream.post = lambda request: request.reply(404, type=None)
    bench.upstream.opens = lambda request: False
    await bench.link()
    assert bench.server.transport == "sse"


@pytest.mark.parametrize(
    ("post", "asked", "says"),
    [
        (lambda r: r.reply(401, type=None), 1, "401"),
        (lambda r: r.reply(403, type=None), 1, "403"),
        (lambda r: r.reply(503, type=None), 1, "503"),
        (lambda r: r.cut(), 1, "lost"),
        (lambda r: r.reply(404, type=None), 2, "404"),
        (
            lambda r: r.reply(
                200, b'{"jsonrpc":"2.0","id":0,"error":{"code":-32602,"message":"no"}}'
            ),
            1,
            "refused to initialize",
        ),
    ],
    ids=["401", "403", "503", "cut", "neither", "refused"],
)
@pytest_twisted.ensureDeferred
async def test_only_another_transport_is_a_reason_to_try_it(
    bench: Bench, post: Any, asked: int, says: str
) -> None:
    bench.configure()
    bench.upstream.post, bench.upstream.opens = post, refusesGet
    error = await bench.fails()
    assert says in error.message
    assert len(bench.upstream.requests) == asked
    assert bench.server.transport is None


@pytest_twisted.ensureDeferred
async def test_a_configured_transport_is_the_only_one(bench: Bench) -> None:
    bench.configure(transport="streamable-http")
    await bench.fails()
    assert bench.upstream.asked == ["POST /mcp"]
