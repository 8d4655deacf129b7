"""Modern clients at a Streamable HTTP endpoint: what is judged, and how an answer travels."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from modern_support import CAPABILITIES, CLAIM, SUBSCRIPTION, ModernServer, enveloped, fields, known
from raw import (
    AnsweringServer,
    Headers,
    NamedInHeader,
    RawClient,
    Response,
    Stack,
    Start,
    hello,
    rpc,
)
from raw import start as start
from test_ladder import assertRefused
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.guard.policy import Direction, IPolicy
from gateway.links.interfaces import Reason
from gateway.observe.observer import MessageDropped
from gateway.testing.scripted import Sent
from gateway.wire.context import CallContext

VERSION = (b"MCP-Protocol-Version", b"2026-07-28")
LOG = "io.modelcontextprotocol/logLevel"


@define
class Bench:
    """A gateway in front of a modern child."""

    stack: Stack
    server: ModernServer

    async def post(
        self, body: bytes, *others: tuple[bytes, bytes], pairs: Headers | None = None
    ) -> RawClient:
        """
        A modern request on a connection of its own, left open, that reached the server.

        others: further fields. pairs: all of them, in place of those that go with it.
        """
        before = len(self.server.newest.requests) if self.server.links else 0
        headers = fields(body, *others) if pairs is None else pairs
        client = await self.stack.send(b"POST", b"/mcp", body, headers)
        await self.stack.until(
            lambda: self.server.links and len(self.server.newest.requests) > before
        )
        return client

    async def refused(self, body: bytes, *others: tuple[bytes, bytes]) -> Response:
        """The answer to what reaches no server."""
        heard = self.server.heard
        answer = await self.stack.ask(b"POST", b"/mcp", body, fields(body, *others))
        assert self.server.heard == heard
        return answer

    @property
    def sent(self) -> Sent:
        return self.server.newest.requests[-1]

    def says(self, method: str, params: object) -> None:
        self.server.newest.push(rpc(method, **params))  # type: ignore[arg-type]


async def bench(start: Start, era: str = "modern", **options: Any) -> Bench:
    server = ModernServer("one", era=era)
    return Bench(await start({"one": known(server)}, **options), server)


def replaced(
    pairs: list[tuple[bytes, bytes]], name: bytes, value: bytes | None
) -> list[tuple[bytes, bytes]]:
    """Fields with one of them changed, or (None) left out."""
    kept = [pair for pair in pairs if pair[0].lower() != name.lower()]
    return kept if value is None else [*kept, (name, value)]


# What is judged.


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_aHeaderThatIsMissingOrSaysSomethingElse(start: Start) -> None:
    it = await bench(start)
    body = enveloped("tools/call", '"é', name="add", arguments={})
    good = fields(body)
    for name, value in (
        (b"MCP-Protocol-Version", None),
        (b"MCP-Protocol-Version", b"2025-11-25"),
        (b"MCP-Protocol-Version", b"2099-01-01"),
        (b"Mcp-Method", None),
        (b"Mcp-Method", b"tools/list"),
        (b"Mcp-Method", b"Tools/call"),
        (b"Mcp-Name", None),
        (b"Mcp-Name", b"sub"),
        (b"Mcp-Name", b"=?base64?c3Vi?="),
        (b"Mcp-Name", b"=?base64?!?="),
    ):
        heard = it.server.heard
        answer = await it.stack.ask(b"POST", b"/mcp", body, replaced(good, name, value))
        assertRefused(answer, 400, -32020, b'"\\"\\u00e9"')
        assert it.server.heard == heard
    twice = [*good, (b"Mcp-Method", b"tools/call")]
    assertRefused(await it.stack.ask(b"POST", b"/mcp", body, twice), 400, -32020, b'"\\"\\u00e9"')
    # The base64 form says the same; a method without a name needs none.
    for said in (b"add", b"=?base64?YWRk?="):
        client = await it.post(body, pairs=replaced(good, b"Mcp-Name", said))
        it.server.newest.reply(it.sent)
        assert (await client.response()).status == 200


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_namesThatNoHeaderCanSay(start: Start) -> None:
    it = await bench(start)
    for uri in ("file:///ü", " x ", "=?base64?literal?=", "line\nbreak"):
        body = enveloped("resources/read", uri=uri)
        client = await it.post(body)
        it.server.newest.reply(it.sent)
        assert (await client.response()).status == 200
        encoded = b"=?base64?" + base64.b64encode(b"another") + b"?="
        wrong = replaced(fields(body), b"Mcp-Name", encoded)
        assertRefused(await it.stack.ask(b"POST", b"/mcp", body, wrong), 400, -32020, b"7")


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_aVersionThatIsNotServed(start: Start) -> None:
    it = await bench(start)
    for version in ("2099-01-01", "2025-11-25", "x"):
        answer = await it.refused(enveloped("tools/list", 1.5, version=version))
        error = assertRefused(answer, 400, -32022, b"1.5")
        assert error["data"] == {"supported": ["2026-07-28"], "requested": version}


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_whatARequestMustSayOfItself(start: Start) -> None:
    it = await bench(start)
    good = fields(enveloped("tools/list"))
    for meta in (
        {CLAIM: "2026-07-28"},
        {CLAIM: "2026-07-28", CAPABILITIES: None},
        {CLAIM: "2026-07-28", CAPABILITIES: []},
        {CLAIM: "2026-07-28", CAPABILITIES: {}, LOG: "loud"},
        {CLAIM: "2026-07-28", CAPABILITIES: {}, LOG: 3},
        {CLAIM: 7, CAPABILITIES: {}},
        {CLAIM: None, CAPABILITIES: {}},
        {CAPABILITIES: {}},
        {},
    ):
        body = rpc("tools/list", 7, _meta=meta)
        answer = await it.stack.ask(b"POST", b"/mcp", body, good)
        assertRefused(answer, 400, -32602, b"7")
    # That comes before the header, and the header before the version.
    bare = [(b"Accept", b"*/*")]
    body = rpc("tools/list", 7, _meta={CLAIM: "2099-01-01"})
    assertRefused(await it.stack.ask(b"POST", b"/mcp", body, bare), 400, -32602, b"7")
    body = enveloped("tools/list", version="2099-01-01")
    assertRefused(await it.stack.ask(b"POST", b"/mcp", body, bare), 400, -32020, b"7")
    assert it.server.handshakes == 0


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_anErrorHasItsStatus(start: Start) -> None:
    it = await bench(start)
    for code, status in (
        (-32601, 404),
        (-32602, 400),
        (-32021, 400),
        (-32022, 400),
        (-32700, 400),
        (-32603, 200),
        (-32000, 200),
        (5, 200),
    ):
        client = await it.post(enveloped("nobody/knows", "a"))
        it.server.newest.refuse(it.sent, code)
        answer = await client.response()
        assert answer.status == status
        assert answer.body == (
            b'{"jsonrpc":"2.0","id":"a","error":{"code":%d,"message":"no"}}' % code
        )


@pytest_twisted.ensureDeferred
async def test_initializeNeverReachesAChildThatAllShare(start: Start) -> None:
    it = await bench(start)
    answer = await it.refused(enveloped("initialize", 7))
    assertRefused(answer, 404, -32601, b"7")
    assert it.server.handshakes == 0


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_sessionsAndOtherMethodsAreNoneHere(start: Start) -> None:
    it = await bench(start, era="auto")
    for method in (b"GET", b"DELETE"):
        named = (b"Mcp-Session-Id", b"x")
        answer = await it.stack.ask(
            method, b"/mcp", None, [VERSION, named, (b"Accept", b"text/event-stream")]
        )
        assertRefused(answer, 405, -32000, allow=b"POST, OPTIONS")
    ignored = [(b"Mcp-Session-Id", b"A" * 43), (b"Last-Event-ID", b"7")]
    client = await it.post(enveloped("tools/list"), *ignored)
    it.server.newest.reply(it.sent)
    answer = await client.response()
    assert answer.status == 200 and answer.header(b"mcp-session-id") is None
    # The legacy era is served beside it, by a child of its own.
    it.server.answers = True
    session = await it.stack.open()
    answer = await it.stack.ask(b"POST", b"/mcp", rpc("ping", 7), [(b"Mcp-Session-Id", session)])
    assert answer.status == 200
    assert it.server.handshakes == 2


@pytest.mark.acceptance(29)
@pytest_twisted.ensureDeferred
async def test_acceptance_29_parametersInTheHeaderOfToolsThatAreKnown(start: Start) -> None:
    it = await bench(start)
    call = enveloped("tools/call", name="sql", arguments={"region": "eu", "n": 42})
    client = await it.post(call)
    it.server.newest.reply(it.sent)
    assert (await client.response()).status == 200, "nothing is known yet"
    client = await it.post(enveloped("tools/list"))
    schema = {
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "n": {"type": "integer", "x-mcp-header": "N"},
        },
    }
    tools = {"resultType": "complete", "tools": [{"name": "sql", "inputSchema": schema}]}
    it.server.newest.reply(it.sent, json.dumps(tools).encode())
    assert json.loads((await client.response()).body)["result"] == tools
    for others, status in (
        ([], 400),
        ([(b"Mcp-Param-Region", b"us"), (b"Mcp-Param-N", b"42")], 400),
        ([(b"Mcp-Param-Region", b"eu")], 400),
        ([(b"Mcp-Param-Region", b"eu"), (b"Mcp-Param-N", b"42")], 200),
        ([(b"Mcp-Param-Region", b"=?base64?ZXU=?="), (b"Mcp-Param-N", b"42")], 200),
        ([(b"Mcp-Param-Region", b"eu"), (b"Mcp-Param-N", b"42"), (b"Mcp-Param-X", b"1")], 200),
    ):
        if status == 400:
            assertRefused(await it.refused(call, *others), 400, -32020, b"7")
        else:
            client = await it.post(call, *others)
            it.server.newest.reply(it.sent)
            assert (await client.response()).status == 200


@pytest_twisted.ensureDeferred
async def test_whatIsOfNoOneEra(start: Start) -> None:
    it = await bench(start, era="auto")
    stack, named = it.stack, []
    it.server.answers = True
    for _ in range(2):
        headers = [VERSION, *named]
        answer = await stack.ask(b"POST", b"/mcp", rpc("tools/list", 7), headers)
        assertRefused(answer, 400, -32602, b"7")
        answer = await stack.ask(b"POST", b"/mcp", b'{"jsonrpc":"2.0","id":7,"result":{}}', headers)
        assertRefused(answer, 400, -32600)
        answer = await stack.ask(b"POST", b"/mcp", b"[%b]" % rpc("ping", 7), headers)
        assertRefused(answer, 400, -32600)
        # Next, in a session that may have batches.
        session = await stack.open(revision="2025-03-26")
        named = [(b"Mcp-Session-Id", session)]
    # `initialize` says by itself what it is.
    assert (await stack.ask(b"POST", b"/mcp", hello(), [VERSION])).status == 200


@pytest_twisted.ensureDeferred
async def test_notificationsAreAcceptedAndGoNowhere(start: Start) -> None:
    it = await bench(start)
    for body, headers in (
        (rpc("notifications/cancelled", requestId=1), [VERSION]),
        (rpc("notifications/x", _meta={CLAIM: "2026-07-28"}), []),
        (rpc("notifications/x", _meta={CLAIM: 7}), []),
    ):
        answer = await it.stack.ask(b"POST", b"/mcp", body, headers)
        assert (answer.status, answer.body) == (202, b"")
    dropped = it.stack.observer.of(MessageDropped)
    assert [event.why for event in dropped] == ["modern_notification"] * 3
    assert it.server.heard == 0


@implementer(IPolicy)
class NoSecrets:
    """Nobody may call the tool `secret`."""

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        return name != "secret"


@pytest_twisted.ensureDeferred
async def test_thePolicyIsAskedFirst(start: Start) -> None:
    it = await bench(start, policy=NoSecrets())
    body = enveloped("tools/call", "a", name="secret")
    error = assertRefused(await it.refused(body), 403, -32603, b'"a"')
    assert error["data"] == {"reason": "forbidden"}
    assertRefused(await it.stack.ask(b"POST", b"/mcp", body), 403, -32603, b'"a"')
    hidden = enveloped("resources/read", "a", name="open", uri="secret")
    assertRefused(await it.refused(hidden), 403, -32603, b'"a"')
    # Nor is it called under two names, whichever the server would read.
    twice = enveloped("tools/call", "a", name="open").replace(b'"name"', b'"name":"secret","name"')
    answer = await it.stack.ask(b"POST", b"/mcp", twice, fields(twice))
    assertRefused(answer, 403, -32603, b'"a"')
    assert it.server.handshakes == 0
    await it.post(enveloped("tools/call", name="open"))


@pytest_twisted.ensureDeferred
async def test_thePolicyIsAskedForEachResourceThatIsListenedTo(start: Start) -> None:
    it = await bench(start, policy=NoSecrets())
    for uris in (["secret"], ["file:///a", "secret"], ["file:///a", 7], "secret"):
        body = enveloped("subscriptions/listen", "a", notifications={"resourceSubscriptions": uris})
        error = assertRefused(await it.refused(body), 403, -32603, b'"a"')
        assert error["data"] == {"reason": "forbidden"}
    twice = enveloped(
        "subscriptions/listen", "a", notifications={"resourceSubscriptions": ["file:///a"]}
    ).replace(
        b'"resourceSubscriptions"', b'"resourceSubscriptions":["secret"],"resourceSubscriptions"'
    )
    answer = await it.stack.ask(b"POST", b"/mcp", twice, fields(twice))
    assertRefused(answer, 403, -32603, b'"a"')
    for wanted in ({"resourceSubscriptions": ["file:///a"]}, {"toolsListChanged": True}):
        await it.post(enveloped("subscriptions/listen", "l", notifications=wanted))


@pytest_twisted.ensureDeferred
async def test_oneClientsListOfToolsJudgesNoOthersRequests(start: Start) -> None:
    """Two principals may be shown other tools, or the same with another schema."""
    it = await bench(start, authenticator=NamedInHeader())
    alice, bob = (b"X-Who", b"alice"), (b"X-Who", b"bob")
    call = enveloped("tools/call", name="sql", arguments={"region": "eu"})

    async def lists(who: tuple[bytes, bytes], header: str) -> None:
        client = await it.post(enveloped("tools/list"), who)
        properties = {"region": {"type": "string", "x-mcp-header": header}}
        schema = {"type": "object", "properties": properties}
        tools = {"resultType": "complete", "tools": [{"name": "sql", "inputSchema": schema}]}
        it.server.newest.reply(it.sent, json.dumps(tools).encode())
        assert (await client.response()).status == 200

    async def served(*others: tuple[bytes, bytes]) -> None:
        client = await it.post(call, *others)
        it.server.newest.reply(it.sent)
        assert (await client.response()).status == 200

    await lists(alice, "Region")
    assertRefused(await it.refused(call, alice), 400, -32020, b"7")
    await served(bob)
    await lists(bob, "Place")
    await served(alice, (b"Mcp-Param-Region", b"eu"))
    await served(bob, (b"Mcp-Param-Place", b"eu"))
    for who, other in ((alice, b"Place"), (bob, b"Region")):
        refused = await it.refused(call, who, (b"Mcp-Param-" + other, b"eu"))
        assertRefused(refused, 400, -32020, b"7")


@pytest_twisted.ensureDeferred
async def test_listsOfToolsAreHeldWithinABound(start: Start) -> None:
    limits = Limits(max_tool_headers=2000)
    it = await bench(start, authenticator=NamedInHeader(), limits=limits)
    call = enveloped("tools/call", name="sql", arguments={"region": "eu"})
    properties = {"region": {"type": "string", "x-mcp-header": "Region"}}
    schema = {"type": "object", "properties": properties}
    tools = {"resultType": "complete", "tools": [{"name": "sql", "inputSchema": schema}]}
    for number in range(40):
        who = (b"X-Who", b"%d" % number)
        client = await it.post(enveloped("tools/list"), who)
        it.server.newest.reply(it.sent, json.dumps(tools).encode())
        await client.response()
        assertRefused(await it.refused(call, who), 400, -32020, b"7")
    # The first one's is forgotten, and so nothing is judged by it.
    await it.post(call, (b"X-Who", b"0"))
    assert "max_tool_headers" in it.stack.observer.bounds


@pytest_twisted.ensureDeferred
async def test_whileItDrainsNothingNewIsTaken(start: Start) -> None:
    it = await bench(start)
    it.stack.shared.accepting = False
    error = assertRefused(await it.refused(enveloped("tools/list")), 503, -32603, b"7")
    assert error["data"] == {"reason": "shutting_down"}


# The era of the server.


@pytest_twisted.ensureDeferred
async def test_theEraTakesTimeToFind(start: Start) -> None:
    server = ModernServer("one")
    server.handshakeHeld = True
    stack = await start({"one": known(server)})
    body = enveloped("tools/list")
    stays = await stack.send(b"POST", b"/mcp", body, fields(body))
    leaves = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: server.handshakes)
    await stack.turns(20)
    leaves.reset()
    await stack.turns(20)
    server.finishHandshake()
    await stack.until(lambda: server.newest.requests)
    (sent,) = server.newest.requests
    server.newest.reply(sent)
    assert (await stays.response()).status == 200
    assert server.handshakes == 1, "the link that found it out serves"


@pytest.mark.parametrize(
    ("reason", "status"), [(Reason.TIMEOUT, 504), (Reason.UPSTREAM_UNREACHABLE, 502)]
)
@pytest_twisted.ensureDeferred
async def test_aServerWhoseEraIsNotFound(start: Start, reason: Reason, status: int) -> None:
    server = ModernServer("one")
    server.failNext(reason)
    stack = await start({"one": known(server)})
    body = enveloped("tools/list", "a")
    answer = await stack.ask(b"POST", b"/mcp", body, fields(body))
    error = assertRefused(answer, status, -32603, b'"a"')
    assert error["data"] == {"reason": reason.value}


async def asked(stack: Stack, path: bytes, body: bytes) -> Response:
    """The answer to a modern request, however many turns of the gateway's clock it takes."""
    client = await stack.send(b"POST", path, body, fields(body))
    answer = Deferred.fromCoroutine(client.response())
    await stack.until(lambda: stack.clock.advance(0) or answer.called)
    return await answer


@pytest_twisted.ensureDeferred
async def test_aLegacyServerIsAskedInASessionOfTheGatewaysOwn(start: Start) -> None:
    legacy, unknown = ModernServer("one", era="legacy"), AnsweringServer("two")
    legacy.answers = True
    stack = await start({"one": known(legacy), "two": unknown})
    for path, server in ((b"/servers/one/mcp", legacy), (b"/servers/two/mcp", unknown)):
        body = enveloped("server/discover", "a")
        answer = await asked(stack, path, body)
        assert answer.status == 200 and answer.json["id"] == "a"
        assert "2026-07-28" in answer.json["result"]["supportedVersions"]
        body = enveloped("tools/call", 1.0, name="x", arguments={"n": 2})
        answer = await asked(stack, path, body)
        assert answer.status == 200 and answer.body.startswith(b'{"jsonrpc":"2.0","id":1.0,')
        assert answer.json["result"]["resultType"] == "complete"
        assert answer.json["result"]["arguments"] == {"n": 2}
        assert [sent.method for sent in server.newest.requests] == ["tools/call"]
        wrong = replaced(fields(body), b"Mcp-Name", b"y")
        assertRefused(await stack.ask(b"POST", path, body, wrong), 400, -32020, b"1.0")
        body = enveloped("ping")
        assert (await asked(stack, path, body)).status == 404
        assert server.handshakes == 1
        await stack.mounts[server.name].http.stop()
        assert not server.open
    assert len(stack.shared.registry) == 0


# How an answer travels.


@pytest_twisted.ensureDeferred
async def test_anAnswerAloneIsJSONAndWithMessagesAStream(start: Start) -> None:
    it = await bench(start)
    client = await it.post(enveloped("tools/call", name="x"))
    it.server.newest.reply(it.sent, b'{"n":1.0}')
    answer = await client.response()
    assert answer.header(b"content-type") == b"application/json"
    assert answer.body == b'{"jsonrpc":"2.0","id":7,"result":{"n":1.0}}'

    client = await it.post(enveloped("tools/call", name="x", meta={"progressToken": 5}))
    it.says("notifications/progress", {"progressToken": int(it.sent.id), "progress": 1})
    head = await client.head()
    assert head.status == 200
    assert head.header(b"content-type") == b"text/event-stream"
    assert head.header(b"x-accel-buffering") == b"no"
    event = await client.event()
    assert event is not None and event.id is None and event.data is not None
    assert json.loads(event.data)["params"] == {"progressToken": 5, "progress": 1}
    it.server.newest.refuse(it.sent, -32601)
    assert (await client.message())["error"]["code"] == -32601
    assert await client.event() is None


@pytest_twisted.ensureDeferred
async def test_theHeadWaitsAndThenThereIsAStreamWithComments(start: Start) -> None:
    it = await bench(start, limits=Limits(head_wait=10.0))
    client = await it.post(enveloped("tools/call", name="x"))
    it.stack.pass_(9.0)
    await it.stack.turns()
    assert client.unread == b""
    it.stack.pass_(2.0)
    head = await client.head()
    assert head.header(b"content-type") == b"text/event-stream"
    it.stack.pass_(16.0)
    assert (await client.chunk() or b"").startswith(b":")
    it.server.newest.lose()
    error = (await client.message())["error"]
    assert (error["code"], error["data"]) == (-32603, {"reason": "server_exited"})
    assert await client.event() is None


@pytest_twisted.ensureDeferred
async def test_aClientThatAcceptsOneFormGetsThat(start: Start) -> None:
    it = await bench(start)
    body = enveloped("tools/call", name="x", meta={"progressToken": 5})
    json_ = replaced(fields(body), b"Accept", b"application/json")
    client = await it.stack.send(b"POST", b"/mcp", body, json_)
    await it.stack.until(lambda: it.server.links)
    it.says("notifications/progress", {"progressToken": int(it.sent.id), "progress": 1})
    it.server.newest.reply(it.sent)
    answer = await client.response()
    assert answer.header(b"content-type") == b"application/json"
    assert [event.why for event in it.stack.observer.of(MessageDropped)] == ["undeliverable"]

    events = replaced(fields(body), b"Accept", b"text/event-stream")
    client = await it.stack.send(b"POST", b"/mcp", body, events)
    await it.stack.until(lambda: len(it.server.newest.requests) == 2)
    it.server.newest.reply(it.sent)
    assert (await client.head()).header(b"content-type") == b"text/event-stream"
    assert (await client.message())["id"] == 7

    listen = enveloped("subscriptions/listen", notifications={})
    refused = await it.stack.ask(
        b"POST", b"/mcp", listen, replaced(fields(listen), b"Accept", b"application/json")
    )
    assertRefused(refused, 406, -32000, b"7")


@pytest_twisted.ensureDeferred
async def test_aLargeAnswerIsJSON(start: Start) -> None:
    it = await bench(start, limits=Limits(max_json_answer_stream=1000))
    body = enveloped("tools/call", name="x")
    events = replaced(fields(body), b"Accept", b"text/event-stream")
    client = await it.stack.send(b"POST", b"/mcp", body, events)
    await it.stack.until(lambda: it.server.links)
    it.server.newest.reply(it.sent, b'"%b"' % (b"x" * 2000))
    answer = await client.response()
    assert answer.header(b"content-type") == b"application/json"
    assert len(answer.body) > 2000


@pytest_twisted.ensureDeferred
async def test_failuresHaveAStatusAndTheirReason(start: Start) -> None:
    it = await bench(start, limits=Limits(max_modern_calls=1))
    client = await it.post(enveloped("tools/call", "a", name="x"))
    body = enveloped("tools/call", "b", name="x")
    second = await it.stack.send(b"POST", b"/mcp", body, fields(body))
    await it.stack.until(lambda: "max_modern_calls" in it.stack.observer.bounds)
    it.stack.clock.advance(0)
    error = assertRefused(await second.response(), 503, -32603, b'"b"')
    assert error["data"] == {"reason": "overloaded"}
    it.server.newest.lose()
    error = assertRefused(await client.response(), 502, -32603, b'"a"')
    assert error["data"] == {"reason": "server_exited"}


# Streams of who listens.


async def listening(it: Bench, id: object = "l") -> tuple[RawClient, Sent]:
    client = await it.post(enveloped("subscriptions/listen", id, notifications={}))
    sent = it.sent
    acknowledged(it, sent)
    head = await client.head()
    assert head.header(b"content-type") == b"text/event-stream"
    told = await client.message()
    assert told["params"]["_meta"] == {SUBSCRIPTION: id}
    return client, sent


def acknowledged(it: Bench, sent: Sent, method: str = "subscriptions/acknowledged") -> None:
    meta = {SUBSCRIPTION: int(sent.id)}
    it.says(f"notifications/{method}", {"_meta": meta, "notifications": {}})


@pytest_twisted.ensureDeferred
async def test_whoListensIsToldUntilTheEnd(start: Start) -> None:
    it = await bench(start)
    client, sent = await listening(it)
    other, _ = await listening(it)
    acknowledged(it, sent, "tools/list_changed")
    assert (await client.message())["method"] == "notifications/tools/list_changed"
    assert not it.stack.mounts["one"].http.running(), "listening is no call"
    stopping = Deferred.fromCoroutine(it.stack.mounts["one"].http.stop())
    for one in (client, other):
        assert await one.message() == {
            "jsonrpc": "2.0",
            "id": "l",
            "result": {"resultType": "complete", "_meta": {SUBSCRIPTION: "l"}},
        }
        assert await one.event() is None
    await stopping
    assert it.server.newest.closed


@pytest_twisted.ensureDeferred
async def test_aStreamThatIsQuietIsOpenedAndItsRefusalIsNoStream(start: Start) -> None:
    it = await bench(start)
    body = enveloped("subscriptions/listen", notifications={})
    client = await it.post(body)
    it.server.newest.refuse(it.sent, -32601)
    assert (await client.response()).status == 404
    client = await it.post(body)
    it.stack.pass_(1.0)
    assert (await client.head()).header(b"content-type") == b"text/event-stream"
    it.server.newest.lose()
    assert await client.event() is None


@pytest.mark.acceptance(30)
@pytest_twisted.ensureDeferred
async def test_acceptance_30_aStreamThatItsClientCloses(start: Start) -> None:
    """The server hears at once that it is cancelled; no time of the gateway passes."""
    it = await bench(start)
    plain = await it.post(enveloped("tools/call", name="x"))
    calls = [it.sent]
    streaming = await it.post(enveloped("tools/call", name="x", meta={"progressToken": 5}))
    calls.append(it.sent)
    it.says("notifications/progress", {"progressToken": int(it.sent.id), "progress": 1})
    await streaming.head()
    listens, sent = await listening(it)
    calls.append(sent)
    assert it.stack.mounts["one"].http.running()
    for client, call in zip((plain, streaming, listens), calls, strict=True):
        client.reset()
        await it.stack.until(
            lambda call=call: any(
                told.message.param("requestId") == call.id
                for told in it.server.newest.of("notifications/cancelled")
            )
        )
        it.server.newest.reply(call)
    dropped = [event.why for event in it.stack.observer.of(MessageDropped)]
    assert dropped == ["late_answer"] * 3
    assert not it.stack.mounts["one"].http.running()
    assert len(it.server.newest.of("notifications/cancelled")) == 3


@pytest.mark.acceptance(30)
@pytest_twisted.ensureDeferred
async def test_acceptance_30_aLegacyClientThatLeavesHasNotCancelled(start: Start) -> None:
    it = await bench(start, era="auto")
    it.server.answers = True
    session = await it.stack.open()
    it.server.answers = False
    client = await it.stack.send(
        b"POST", b"/mcp", rpc("tools/call", 7, name="x"), [(b"Mcp-Session-Id", session)]
    )
    await it.stack.until(lambda: it.server.newest.of("tools/call"))
    client.reset()
    await it.stack.turns(20)
    it.stack.pass_(5.0)
    assert it.server.newest.of("notifications/cancelled") == []


@pytest_twisted.ensureDeferred
async def test_aReaderWhoDoesNotReadIsBoundedCutAndCancelled(start: Start) -> None:
    it = await bench(start, limits=Limits(max_stream_bytes=64 * 1024, reader_blocked=30.0))
    client, sent = await listening(it)
    client.pause()
    meta = {SUBSCRIPTION: int(sent.id)}
    told = rpc("notifications/x", _meta=meta, filler="x" * 60_000)
    for _ in range(1000):
        it.server.newest.push(told)
        if "max_stream_bytes" in it.stack.observer.bounds:
            break
        await it.stack.turns(1)
    assert "max_stream_bytes" in it.stack.observer.bounds
    it.stack.pass_(31.0)
    assert "reader_blocked" in it.stack.observer.bounds
    cancelled = it.server.newest.last("notifications/cancelled")
    assert cancelled.message.param("requestId") == sent.id


@pytest_twisted.ensureDeferred
async def test_whoAsksIsKnownAsForAnyOther(start: Start) -> None:
    it = await bench(start, authenticator=NamedInHeader())
    body = enveloped("tools/list")
    answer = await it.stack.ask(b"POST", b"/mcp", body, fields(body))
    assertRefused(answer, 401, -32000)
    await it.post(body, (b"X-Who", b"alice"))
    assert it.sent.context.principal.subject == "alice"


@pytest.mark.acceptance(24)
@pytest_twisted.ensureDeferred
async def test_acceptance_24_manyAtOnceAreNotMixedAndNothingIsLeft(start: Start) -> None:
    """Equal ids, equal tokens, and sessions that are none of theirs."""
    it = await bench(start)
    bodies = [
        enveloped("tools/call", 9007199254740993, name=f"t{n}", meta={"progressToken": 1})
        for n in range(40)
    ]
    named = [(b"Mcp-Session-Id", b"A" * 43), (b"Mcp-Session-Id", b"x")]
    clients = [
        await it.stack.send(b"POST", b"/mcp", body, fields(body, named[n % 2]))
        for n, body in enumerate(bodies)
    ]
    await it.stack.until(lambda: it.server.links and len(it.server.newest.requests) == len(bodies))
    for sent in reversed(it.server.newest.requests):
        it.says("notifications/progress", {"progressToken": int(sent.id), "progress": 1})
        name = sent.message.param("name")
        assert name is not None
        it.server.newest.reply(sent, b'{"for":%b}' % name)
    for n, client in enumerate(clients):
        await client.head()
        assert (await client.message())["params"]["progressToken"] == 1
        answer = await client.message()
        assert (answer["id"], answer["result"]) == (9007199254740993, {"for": f"t{n}"})
        assert await client.event() is None
    assert it.server.handshakes == 1 and len(it.server.links) == 1
    assert len(it.stack.shared.registry) == 0 and len(it.stack.shared.pulse) == 0
    assert not it.stack.mounts["one"].http.running()


@pytest_twisted.ensureDeferred
async def test_whatTellsCallersApartGoesWithTheCall(start: Start) -> None:
    server = ModernServer("one", era="modern", callers="header:X-Conversation")
    it = Bench(await start({"one": known(server)}), server)
    body = enveloped("tools/list")
    for others, caller in (
        ([(b"x-conversation", b"c1")], "c1"),
        ([], ""),
        ([(b"X-Conversation", b"a"), (b"X-Conversation", b"b")], "a,b"),
    ):
        await it.post(body, *others)
        assert it.sent.context.caller == caller


@pytest_twisted.ensureDeferred
async def test_aSessionIdThatTellsCallersApartIsEachRequestsOwn(start: Start) -> None:
    server = ModernServer("one", era="modern", callers="header:Mcp-Session-Id")
    it = Bench(await start({"one": known(server)}), server)
    for caller in ("a" * 43, "b" * 43, "b" * 43):
        # The same heads but for what is otherwise cut out of them to know them again.
        await it.post(enveloped("tools/list"), (b"Mcp-Session-Id", caller.encode()))
        assert it.sent.context.caller == caller
