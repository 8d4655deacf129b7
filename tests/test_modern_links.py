"""Links of the modern era: to children (tests/era_server.py, the SDK's own) and over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from faulty_upstream import Received
from stdio_support import CONTEXT, Bench, Listener, benches
from test_streamable_http_link import Bench as HTTPBench
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.links.interfaces import (
    Health,
    IHTTPLink,
    ILink,
    ITwoEraServer,
    LinkFailed,
    NotModern,
    Outcome,
    Reason,
)
from gateway.links.opening import Discover, saysModern
from gateway.observe.observer import BoundReached, MessageDropped
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, decode
from gateway.wire.mcp_headers import encodeValue
from gateway.wire.revisions import VERSION_CLAIM

ERA = str(Path(__file__).with_name("era_server.py"))
SDK = str(Path(__file__).with_name("sdk_server.py"))
META = {
    VERSION_CLAIM: "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}

Make = Callable[..., Bench]


def modern(id: Any, method: str, **params: Any) -> Message:
    meta = {**META, **params.pop("_meta", {})}
    body = {"jsonrpc": "2.0", "id": id, "method": method, "params": {**params, "_meta": meta}}
    message = decode(json.dumps(body).encode())
    assert isinstance(message, Message)
    return message


async def failure(awaitable: Awaitable[object]) -> LinkFailed:
    with pytest.raises(LinkFailed) as caught:
        await awaitable
    return caught.value


# children


@pytest_twisted.async_yield_fixture
async def bench() -> Any:
    """Makes benches, ends them, and sees that no child is left."""
    async for make in benches():
        yield make


def era(make: Make, *flags: str, **keywords: Any) -> Bench:
    return make(args=(ERA, *flags), **keywords)


async def link(one: Bench) -> tuple[ILink, Listener]:
    listener = Listener()
    return await one.server.modernLink(listener, CONTEXT), listener


@pytest.mark.parametrize("how", ["modern", "dual", "exits-legacy"])
@pytest_twisted.ensureDeferred
async def test_a_modern_child(bench: Make, how: str) -> None:
    one = era(bench, how)
    assert verifyObject(ITwoEraServer, one.server)
    made, listener = await link(one)
    assert verifyObject(ILink, made)
    assert made.sessionless and made.multiplexed
    answer = json.loads(made.answer.encode())
    assert answer["result"]["supportedVersions"] == ["2026-07-28"]
    assert one.server.health() is Health.UP
    assert made.send(modern(7, "tools/call", name="echo", x=1), object(), CONTEXT)
    assert (await listener.structured(7))["x"] == 1
    await made.close()
    assert listener.losses == []


@pytest.mark.parametrize("how", ["dual", "modern"])
@pytest_twisted.ensureDeferred
async def test_a_child_made_with_the_sdk(bench: Make, how: str) -> None:
    one = bench(args=(SDK, how))
    made, listener = await link(one)
    assert "tools" in json.loads(made.answer.encode())["result"]["capabilities"]
    request = modern(
        "a", "tools/call", name="echo", arguments={"text": "hé"}, _meta={"progressToken": 9}
    )
    made.send(request, object(), CONTEXT)
    await listener.until(lambda: len(listener.messages) == 2)
    progress, answer = (json.loads(message.encode()) for message in listener.messages)
    assert progress["params"]["progressToken"] == 9
    assert answer["id"] == "a" and answer["result"]["content"][0]["text"] == "hé"
    if how == "dual":
        # The other era has a child of its own.
        legacy, _ = await one.link()
        assert json.loads(legacy.answer.encode())["result"]["protocolVersion"] == "2025-06-18"
        assert not legacy.sessionless
    else:
        failed = await failure(one.link())
        assert failed.answer is not None and not saysModern(failed)


def test_what_the_handshake_says() -> None:
    sent = json.loads(Discover(http=False).request)
    assert sent["id"] == 0 and sent["method"] == "server/discover"
    meta = sent["params"]["_meta"]
    assert meta[VERSION_CLAIM] == "2026-07-28"
    assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "mcp-gateway"
    assert meta["io.modelcontextprotocol/clientCapabilities"] == {}


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ({"result": {"supportedVersions": ["2025-11-25", "2027-01-01"]}}, NotModern),
        ({"result": {"supportedVersions": ["2027-01-01"]}}, LinkFailed),
        ({"error": {"code": -32022, "data": {"supported": ["2025-06-18"]}}}, NotModern),
        ({"error": {"code": -32022, "data": {"supported": ["2027-01-01"]}}}, LinkFailed),
        ({"error": {"code": -32022, "data": {"supported": ["2026-07-28"]}}}, LinkFailed),
        ({"error": {"code": -32022, "data": [1]}}, LinkFailed),
        ({"error": {"code": -32022, "data": {"supported": 5}}}, LinkFailed),
        ({"error": {"code": -32022.0}}, NotModern),
        ({"error": {"code": "-32022"}}, NotModern),
        ({"error": {"code": -32601}}, NotModern),
    ],
)
def test_what_an_answer_says_of_the_era(body: dict[str, Any], how: type[LinkFailed]) -> None:
    answer = decode(json.dumps({"jsonrpc": "2.0", "id": 0, **body}).encode())
    assert isinstance(answer, Message)
    for http in (False, True):
        with pytest.raises(LinkFailed) as raised:
            Discover(http=http).judged(answer)
        assert type(raised.value) is how
        if "error" in body:
            assert saysModern(raised.value) is (how is LinkFailed)
            over = Discover(http).failed(LinkFailed(Reason.BAD_ANSWER, "", answer, 400))
            assert type(over) is how


NOT_MODERN = [
    (("exits",), Reason.SERVER_EXITED),
    (("exits-always",), Reason.SERVER_EXITED),
    (("strict",), Reason.BAD_ANSWER),
    (("refuses", "-32601"), Reason.BAD_ANSWER),
    (("refuses", "-32602"), Reason.BAD_ANSWER),
    (("refuses", "-32019"), Reason.BAD_ANSWER),
    (("refuses", "-32023"), Reason.BAD_ANSWER),
    (("result", "{}"), Reason.BAD_ANSWER),
    (("result", "[]"), Reason.BAD_ANSWER),
    (("result", '{"supportedVersions": "2026-07-28"}'), Reason.BAD_ANSWER),
    (("line", '{"jsonrpc":"2.0","id":0}'), Reason.BAD_ANSWER),
]


@pytest.mark.parametrize(("flags", "reason"), NOT_MODERN)
@pytest_twisted.ensureDeferred
async def test_children_that_are_not_modern(
    bench: Make, flags: tuple[str, ...], reason: Reason
) -> None:
    one = era(bench, *flags)
    failed = await failure(one.server.modernLink(Listener(), CONTEXT))
    assert isinstance(failed, NotModern) and failed.reason is reason
    assert one.server.health() is Health.UNKNOWN


@pytest_twisted.ensureDeferred
async def test_a_probe_is_no_failure_for_the_breaker(bench: Make) -> None:
    one = era(bench, "exits", limits=Limits(eof_wait=0.2, term_wait=0.2, circuit_failures=1))
    for _ in range(3):
        await failure(one.server.modernLink(Listener(), CONTEXT))
    made, _ = await one.link()
    await made.close()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("future",), "2027-01-01"),
        (("refuses", "-32022"), "(2027-01-01)"),
        (("refuses", "-32021"), "an error of the modern era"),
        (("refuses", "-32020"), "an error of the modern era"),
        (("result", '{"supportedVersions": []}'), "none that it names"),
        (("result", '{"supportedVersions": [5, "a b", "1"]}'), "(1)"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_modern_children_that_give_no_link(
    bench: Make, flags: tuple[str, ...], words: str
) -> None:
    one = era(bench, *flags)
    failed = await failure(one.server.modernLink(Listener(), CONTEXT))
    assert not isinstance(failed, NotModern)
    assert failed.reason is Reason.BAD_ANSWER and words in failed.message
    assert saysModern(failed) is (flags[0] == "refuses")


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_started_says_nothing_of_its_era(bench: Make) -> None:
    for settings in ({"command": "no-such-command-anywhere"}, {"cwd": "/no/such/directory"}):
        one = bench(**settings)
        failed = await failure(one.server.modernLink(Listener(), CONTEXT))
        assert not isinstance(failed, NotModern)
        assert failed.reason is Reason.UPSTREAM_UNREACHABLE
    one = bench()
    await one.server.drain()
    failed = await failure(one.server.modernLink(Listener(), CONTEXT))
    assert failed.reason is Reason.SHUTTING_DOWN and not isinstance(failed, NotModern)


async def silent(make: Make, **settings: Any) -> tuple[Bench, Clock, Deferred[ILink]]:
    clock = Clock()
    one = era(make, "silent", clock=clock, **settings)
    return one, clock, one.server.modernLink(Listener(), CONTEXT)


async def ended(one: Bench, clock: Clock) -> None:
    """Drain while a Clock has to be moved by hand."""
    draining = one.server.drain()
    while not draining.called:
        clock.advance(0.05)
        await deferLater(reactor, 0.01)
    await draining


@pytest_twisted.ensureDeferred
async def test_silence_is_not_modern(bench: Make) -> None:
    one, clock, linking = await silent(bench)
    clock.advance(14.9)
    assert not linking.called
    clock.advance(0.2)
    failed = await failure(linking)
    assert isinstance(failed, NotModern) and failed.reason is Reason.TIMEOUT
    assert BoundReached("era_probe", "faulty") in one.observed.events
    await ended(one, clock)


@pytest_twisted.ensureDeferred
async def test_who_is_configured_to_be_modern_has_the_time_of_a_handshake(bench: Make) -> None:
    one, clock, linking = await silent(bench, era="modern")
    clock.advance(19.9)
    assert not linking.called
    clock.advance(0.2)
    failed = await failure(linking)
    assert not isinstance(failed, NotModern) and failed.reason is Reason.TIMEOUT
    await ended(one, clock)


@pytest_twisted.ensureDeferred
async def test_a_probe_that_is_given_up_ends_its_child(bench: Make) -> None:
    one = era(bench, "silent")
    linking = one.server.modernLink(Listener(), CONTEXT)
    await deferLater(reactor, 0.1)
    linking.cancel()
    with pytest.raises(CancelledError):
        await linking


@pytest_twisted.ensureDeferred
async def test_what_a_modern_child_asks_is_dropped(bench: Make) -> None:
    one = era(bench, "asks")
    made, listener = await link(one)
    made.send(modern(1, "tools/call", name="echo"), object(), CONTEXT)
    await listener.answer(1)
    # A notification before the handshake's answer, and one before the call's.
    assert [message.method for message in listener.messages] == ["notifications/message"] * 2 + [""]
    dropped = one.observed.of(MessageDropped)
    assert dropped == [MessageDropped("faulty", "server_request")] * 4


@pytest_twisted.ensureDeferred
async def test_a_modern_child_that_dies(bench: Make) -> None:
    one = era(bench, "modern")
    made, listener = await link(one)
    made.send(modern(1, "nonsense"), object(), CONTEXT)
    await listener.answer(1)
    closing = one.server.drain()
    await closing
    assert not made.send(modern(2, "tools/call"), object(), CONTEXT)


# over HTTP

CLIENT = CallContext(
    "up",
    peer="192.0.2.7",
    host=b"gateway.example",
    headers=((b"x-one", b"1"), (b"mcp-name", b"forged"), (b"mcp-param-region", b"forged")),
)
DISCOVERED = {
    "resultType": "complete",
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {}},
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}


REGION = {"type": "string", "x-mcp-header": "Region"}


def scripted(*scripts: Callable[[Received], Any]) -> Callable[[Received], bool]:
    """Answers `server/discover`, then each further request by the next of some scripts."""
    waiting = list(scripts)

    def script(request: Received) -> bool:
        if request.rpc == "server/discover":
            request.result(DISCOVERED)
        elif waiting:
            waiting.pop(0)(request)
        else:
            return False
        return True

    return script


@pytest_twisted.async_yield_fixture
async def http() -> AsyncIterator[HTTPBench]:
    one = HTTPBench()
    one.start()
    one.settings = HTTPSettings(name="up", url=one.upstream.url, headers={"X-Set": "s"})
    yield one
    if one._server is not None:
        draining = one.server.drain()
        one.clock.advance(10.0)
        await draining
    await one.upstream.close()


async def over(http: HTTPBench, *scripts: Callable[[Received], Any]) -> ILink:
    http.upstream.script = scripted(*scripts)
    made = await http.server.modernLink(http.listener, CLIENT)
    await http.upstream.next()
    return made


def mcpFields(request: Received) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in request.headers if name[:4] == b"mcp-"}


@pytest_twisted.ensureDeferred
async def test_the_handshake_over_http(http: HTTPBench) -> None:
    assert verifyObject(ITwoEraServer, http.server)
    made = await over(http)
    assert verifyObject(ILink, made) and not IHTTPLink.providedBy(made)
    assert made.sessionless and not made.multiplexed
    (sent,) = http.upstream.requests
    assert mcpFields(sent) == {
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "server/discover",
    }
    assert sent.header(b"accept") == b"application/json, text/event-stream"
    assert sent.header(b"content-type") == b"application/json"
    assert sent.header(b"x-one") == b"1" and sent.header(b"x-set") == b"s"
    assert sent.header(b"x-forwarded-for") == b"192.0.2.7"
    assert sent.message["params"]["_meta"][VERSION_CLAIM] == "2026-07-28"
    assert json.loads(made.answer.encode())["result"] == DISCOVERED


def error(code: int, status: int = 400, **data: Any) -> Callable[[Received], None]:
    def answer(request: Received) -> None:
        body: dict[str, Any] = {"code": code, "message": "no"}
        if data:
            body["data"] = data
        message = {"jsonrpc": "2.0", "id": request.message.get("id"), "error": body}
        request.reply(status, json.dumps(message).encode())

    return answer


def plain(status: int, body: bytes = b"no") -> Callable[[Received], None]:
    return lambda request: request.reply(status, body, b"text/plain")


async def refusal(http: HTTPBench, answer: Callable[[Received], Any]) -> LinkFailed:
    def script(request: Received) -> bool:
        answer(request)
        return True

    http.upstream.script = script
    return await failure(http.server.modernLink(http.listener, CLIENT))


@pytest.mark.parametrize(
    "answer",
    [
        plain(400),
        plain(404),
        plain(405),
        plain(406),
        plain(301),
        plain(200),
        plain(202, b""),
        error(-32000, 400),
        error(-32602, 400),
        error(-32601, 404),
        error(-32601, 200),
        error(-32000, 200),
        lambda request: request.result({}),
        lambda request: request.result({"protocolVersion": "2025-11-25"}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_http_servers_that_are_not_modern(
    http: HTTPBench, answer: Callable[[Received], Any]
) -> None:
    assert isinstance(await refusal(http, answer), NotModern)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (plain(401), Reason.BAD_ANSWER),
        (plain(403), Reason.BAD_ANSWER),
        (plain(429), Reason.BAD_ANSWER),
        (plain(500), Reason.BAD_ANSWER),
        (plain(503), Reason.BAD_ANSWER),
        (lambda request: request.cut(), Reason.OUTCOME_UNKNOWN),
    ],
)
@pytest_twisted.ensureDeferred
async def test_answers_that_say_nothing_of_the_era(
    http: HTTPBench, answer: Callable[[Received], Any], reason: Reason
) -> None:
    failed = await refusal(http, answer)
    assert not isinstance(failed, NotModern) and not saysModern(failed)
    assert failed.reason is reason


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(-32022, 400, supported=["2027-01-01"]), "(2027-01-01)"),
        (error(-32022, 200, supported=["2027-01-01"]), "(2027-01-01)"),
        (error(-32021, 400), "modern era"),
        (error(-32020, 400), "modern era"),
        (lambda r: r.result({**DISCOVERED, "supportedVersions": ["2"]}), "(2)"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_modern_http_servers_that_give_no_link(
    http: HTTPBench, answer: Callable[[Received], Any], words: str
) -> None:
    failed = await refusal(http, answer)
    assert not isinstance(failed, NotModern) and words in failed.message


@pytest_twisted.ensureDeferred
async def test_an_http_server_that_cannot_be_reached(http: HTTPBench) -> None:
    await http.upstream.stopListening()
    failing = failure(http.server.modernLink(http.listener, CLIENT))
    waiting = Deferred.fromCoroutine(failing)
    while not waiting.called:
        http.clock.advance(1.0)
        await deferLater(reactor, 0.01)
    failed = await waiting
    assert not isinstance(failed, NotModern) and failed.reason is Reason.UPSTREAM_UNREACHABLE


@pytest_twisted.ensureDeferred
async def test_an_http_server_that_keeps_silent(http: HTTPBench) -> None:
    http.upstream.script = lambda request: True
    linking = http.server.modernLink(http.listener, CLIENT)
    await http.upstream.next()
    http.clock.advance(15.1)
    failed = await failure(linking)
    assert not isinstance(failed, NotModern) and failed.reason is Reason.TIMEOUT
    assert BoundReached("era_probe", "up") in http.observer.events


@pytest_twisted.ensureDeferred
async def test_who_speaks_http_sse_is_not_asked(http: HTTPBench) -> None:
    http.settings = HTTPSettings(name="up", url=http.upstream.url, transport="sse")
    failed = await failure(http.server.modernLink(http.listener, CLIENT))
    assert isinstance(failed, NotModern) and http.upstream.requests == []


@pytest_twisted.ensureDeferred
async def test_calls_over_http(http: HTTPBench) -> None:
    made = await over(
        http,
        lambda request: request.result({"a": 1.5}, ((b"Mcp-Session-Id", b"never"),)),
        lambda request: None,
    )
    call = object()
    assert made.send(modern("x", "tools/call", name="t é", arguments={}), call, CLIENT)
    told, message, origin, mark = await http.listener.heard()
    assert (told, origin, mark) == ("received", call, None)
    assert json.loads(message.encode())["id"] == "x"
    sent = await http.upstream.next()
    assert mcpFields(sent) == {
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tools/call",
        "mcp-name": encodeValue("t é").decode(),
    }
    assert made.send(modern(2, "resources/read", uri="file:///x"), call, CLIENT)
    sent = await http.upstream.next()
    assert mcpFields(sent) == {
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "resources/read",
        "mcp-name": "file:///x",
    }
    sent.stream()
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
    sent.event({"jsonrpc": "2.0", "id": 1, "method": "roots/list"})
    sent.event(progress, id="9", retry=1)
    sent.event({"jsonrpc": "2.0", "id": 2, "result": {}}, id="10")
    for kind in ("notifications/progress", ""):
        told, message, origin, mark = await http.listener.heard()
        assert (told, message.method, origin, mark) == ("received", kind, call, None)
    assert MessageDropped("up", "server_request") in http.observer.events
    assert http.listener.quiet


@pytest_twisted.ensureDeferred
async def test_notifications_are_not_sent_over_http(http: HTTPBench) -> None:
    made = await over(http)
    for method in ("notifications/cancelled", "notifications/roots/list_changed"):
        body = {"jsonrpc": "2.0", "method": method}
        message = decode(json.dumps(body).encode())
        assert isinstance(message, Message) and made.send(message, None, CLIENT)
    assert len(http.upstream.requests) == 1
    assert http.observer.events.count(MessageDropped("up", "not_for_http")) == 1


@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_closes_its_stream(http: HTTPBench) -> None:
    made = await over(http, lambda request: request.stream())
    call = object()
    made.send(modern(1, "tools/call", name="t"), call, CLIENT)
    sent = await http.upstream.next()
    made.cancel(call)
    await sent.connection.lost
    assert http.listener.quiet


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (error(-32601, 404), 404, -32601),
        (error(-32602, 400), 400, -32602),
        (error(-32021, 400), 400, -32021),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refusals_come_with_their_error(
    http: HTTPBench, answer: Callable[[Received], None], status: int, code: int
) -> None:
    made = await over(http, answer, lambda request: request.result({}))
    call = object()
    made.send(modern(5, "tools/call", name="t"), call, CLIENT)
    told, origin, settled = await http.listener.heard()
    assert (told, origin) == ("settled", call)
    assert (settled.outcome, settled.status) == (Outcome.REFUSED, status)
    assert json.loads(settled.body.encode())["error"]["code"] == code
    # No session was lost by that.
    assert made.send(modern(6, "tools/call", name="t"), call, CLIENT)
    assert (await http.listener.heard())[0] == "received"


@pytest_twisted.ensureDeferred
async def test_no_refusal_says_that_a_session_is_lost(http: HTTPBench) -> None:
    def lost(request: Received) -> None:
        body = b'{"jsonrpc":"2.0","id":5,"error":{"code":-32000,"message":"session not found"}}'
        request.reply(400, body)

    made = await over(http, lost)
    made.send(modern(5, "tools/call", name="t"), object(), CLIENT)
    assert (await http.listener.heard())[2].status == 400


@pytest_twisted.ensureDeferred
async def test_a_stream_of_subscriptions_may_be_silent(http: HTTPBench) -> None:
    made = await over(http, lambda request: None)
    call = object()
    made.send(modern(1, "subscriptions/listen", notifications={}), call, CLIENT)
    sent = await http.upstream.next()
    sent.stream()
    note = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
    for _ in range(3):
        sent.event(note)
        assert (await http.listener.heard())[2] is call
        http.clock.advance(3600.0)
    made.cancel(call)
    await sent.connection.lost
    assert http.listener.quiet


@pytest_twisted.ensureDeferred
async def test_streams_of_subscriptions_take_no_turn_from_calls(http: HTTPBench) -> None:
    http.limits = Limits(max_upstream_connections=1, max_upstream_streams=2)
    made = await over(http, *[lambda request: request.stream()] * 2, lambda r: r.result({}))
    for id in (1, 2):
        assert made.send(modern(id, "subscriptions/listen", notifications={}), object(), CLIENT)
        await http.upstream.next()
    assert not made.send(modern(3, "subscriptions/listen", notifications={}), object(), CLIENT)
    assert BoundReached("max_upstream_streams", "up") in http.observer.events
    assert made.send(modern(4, "tools/call", name="t"), object(), CLIENT)
    assert (await http.listener.heard())[0] == "received"


@pytest_twisted.ensureDeferred
async def test_annotations_are_learned_from_lists_that_pass(http: HTTPBench) -> None:
    bad = tool("bad", a={"type": "number", "x-mcp-header": "A"})
    tools = {"tools": [tool("t", region=REGION), bad], "ttlMs": 1}
    made = await over(http, lambda r: r.result(tools), lambda r: r.result({}))
    made.send(modern(1, "tools/list"), object(), CLIENT)
    _, message, _, _ = await http.listener.heard()
    listed = json.loads(message.encode())["result"]
    assert listed == {"tools": [tool("t", region=REGION)], "ttlMs": 1}
    assert MessageDropped("up", "invalid_tool") in http.observer.events
    await http.upstream.next()
    made.send(modern(2, "tools/call", name="t", arguments={"region": "é"}), object(), CLIENT)
    sent = await http.upstream.next()
    assert mcpFields(sent)["mcp-param-region"] == encodeValue("é").decode()
    await http.listener.heard()


@pytest_twisted.ensureDeferred
async def test_annotations_that_find_no_room(http: HTTPBench) -> None:
    http.limits = Limits(max_tool_headers=10)
    made = await over(http, lambda r: r.result({"tools": [tool("t", region=REGION)]}))
    made.send(modern(1, "tools/list"), object(), CLIENT)
    await http.listener.heard()
    assert BoundReached("max_tool_headers", "up") in http.observer.events


MISMATCH = error(-32020, 400)


def page(tools: list[Any], cursor: str | None = None) -> Callable[[Received], None]:
    result: dict[str, Any] = {"tools": tools}
    if cursor is not None:
        result["nextCursor"] = cursor
    return lambda request: request.result(result)


@pytest.mark.parametrize("refusal", [MISMATCH, error(-32020, 200)])
@pytest_twisted.ensureDeferred
async def test_a_call_refused_for_its_fields_is_sent_once_more(
    http: HTTPBench, refusal: Callable[[Received], None]
) -> None:
    made = await over(
        http,
        refusal,
        page([tool("other")], ""),
        page([tool("t", region=REGION)]),
        lambda request: request.result({"done": True}),
    )
    call = object()
    request = modern(
        "c",
        "tools/call",
        name="t",
        arguments={"region": "eu"},
        _meta={"progressToken": 1, "traceparent": "x"},
    )
    made.send(request, call, CLIENT)
    told, message, origin, _ = await http.listener.heard()
    assert (told, origin) == ("received", call)
    assert json.loads(message.encode()) == {"jsonrpc": "2.0", "id": "c", "result": {"done": True}}
    _, first, one, two, again = http.upstream.requests
    assert "mcp-param-region" not in mcpFields(first)
    assert one.rpc == two.rpc == "tools/list"
    assert "cursor" not in one.message["params"] and two.message["params"]["cursor"] == ""
    assert one.message["params"]["_meta"] == {**META, "traceparent": "x"}
    assert mcpFields(again)["mcp-param-region"] == "eu"
    assert again.body == first.body
    assert http.listener.quiet


@pytest.mark.parametrize(
    ("scripts", "count"),
    [
        # nothing new is learned
        ((MISMATCH, page([tool("t")])), 2),
        ((MISMATCH, page([])), 2),
        ((MISMATCH, error(-32601, 404)), 2),
        ((MISMATCH, error(-32601, 200)), 2),
        ((MISMATCH, lambda request: request.cut()), 2),
        # it is refused again
        ((MISMATCH, page([tool("t", region=REGION)]), MISMATCH), 3),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_call_is_sent_once_more_at_most(
    http: HTTPBench, scripts: tuple[Callable[[Received], Any], ...], count: int
) -> None:
    made = await over(http, *scripts)
    call = object()
    made.send(modern(1, "tools/call", name="t", arguments={"region": "eu"}), call, CLIENT)
    told, origin, settled = await http.listener.heard()
    assert (told, origin) == ("settled", call)
    assert json.loads(settled.body.encode())["error"]["code"] == -32020
    assert len(http.upstream.requests) == count + 1
    assert http.listener.quiet


@pytest_twisted.ensureDeferred
async def test_only_so_many_pages_are_read_for_it(http: HTTPBench) -> None:
    http.limits = Limits(max_tool_pages=2)
    made = await over(http, MISMATCH, page([], "1"), page([], "2"), page([], "3"))
    made.send(modern(1, "tools/call", name="t"), object(), CLIENT)
    assert (await http.listener.heard())[0] == "settled"
    assert len(http.upstream.requests) == 4
    assert BoundReached("max_tool_pages", "up") in http.observer.events


@pytest_twisted.ensureDeferred
async def test_what_is_no_call_is_not_sent_again(http: HTTPBench) -> None:
    made = await over(http, MISMATCH)
    made.send(modern(1, "prompts/get", name="t"), object(), CLIENT)
    assert (await http.listener.heard())[0] == "settled"
    assert len(http.upstream.requests) == 2


@pytest_twisted.ensureDeferred
async def test_a_call_is_cancelled_while_its_tools_are_listed(http: HTTPBench) -> None:
    made = await over(http, MISMATCH, lambda request: None)
    call = object()
    made.send(modern(1, "tools/call", name="t"), call, CLIENT)
    await http.upstream.next()
    listing = await http.upstream.next()
    assert listing.rpc == "tools/list"
    made.hold(call)
    made.cancel(call)
    await listing.connection.lost
    assert http.listener.quiet


@pytest_twisted.ensureDeferred
async def test_a_link_is_closed_while_tools_are_listed(http: HTTPBench) -> None:
    made = await over(http, MISMATCH, lambda request: None)
    made.send(modern(1, "tools/call", name="t"), object(), CLIENT)
    await http.upstream.next()
    listing = await http.upstream.next()
    await made.close()
    await listing.connection.lost
    assert http.listener.quiet
    assert not made.send(modern(2, "tools/call"), object(), CLIENT)


@pytest_twisted.ensureDeferred
async def test_a_held_call_stays_held_when_it_is_sent_again(http: HTTPBench) -> None:
    made = await over(http, MISMATCH, lambda request: None, lambda request: None)
    call = object()
    made.send(modern(1, "tools/call", name="t", arguments={"region": "eu"}), call, CLIENT)
    await http.upstream.next()
    listing = await http.upstream.next()
    made.hold(call)
    page([tool("t", region=REGION)])(listing)
    again = await http.upstream.next()
    again.stream()
    again.event({"jsonrpc": "2.0", "id": 1, "result": {}})
    await deferLater(reactor, 0.05)
    assert http.listener.quiet
    made.release(call)
    assert (await http.listener.heard())[0] == "received"


@pytest_twisted.ensureDeferred
async def test_draining_tells_the_links_user(http: HTTPBench) -> None:
    made = await over(http, lambda request: None)
    made.send(modern(1, "tools/call", name="t"), object(), CLIENT)
    await http.upstream.next()
    await http.server.drain()
    assert await http.listener.heard() == ("lost", Reason.SHUTTING_DOWN)
    failed = await failure(http.server.modernLink(http.listener, CLIENT))
    assert failed.reason is Reason.SHUTTING_DOWN and not isinstance(failed, NotModern)
