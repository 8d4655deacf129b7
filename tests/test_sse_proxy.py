"""HTTP+SSE (2024-11-05) in front of a server in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from raw import AnsweringServer, RawClient, Response, Stack, Start, hello, rpc
from raw import start as start

from gateway.guard.limits import Limits
from gateway.links.interfaces import Reason
from gateway.observe.observer import MessageDropped, SessionEnded
from gateway.testing.scripted import ScriptedLink


class Talk:
    """One HTTP+SSE session: its stream and its endpoint."""

    def __init__(
        self, stack: Stack, server: AnsweringServer, stream: RawClient, endpoint: bytes
    ) -> None:
        self.stack = stack
        self.server = server
        self.stream = stream
        self.endpoint = endpoint

    async def post(self, body: bytes) -> Response:
        return await self.stack.ask(b"POST", self.endpoint, body)

    async def say(self, body: bytes) -> None:
        """A POST, which is always 202 and empty."""
        answer = await self.post(body)
        assert (answer.status, answer.body) == (202, b""), answer
        assert answer.header(b"content-type") is None

    async def message(self) -> Any:
        return await self.stream.message()

    async def greet(self, revision: str = "2024-11-05") -> ScriptedLink:
        """`initialize`; returns the link it made."""
        await self.say(hello(revision))
        assert (await self.message())["result"]["protocolVersion"] == revision
        await self.say(rpc("notifications/initialized"))
        return self.server.newest


async def talk(
    start: Start, target: bytes = b"/sse", limits: Limits | None = None, greeted: bool = True
) -> Talk:
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=limits)
    it = Talk(stack, server, *(await stack.openSSE(target)))
    if greeted:
        await it.greet()
    return it


@pytest.mark.acceptance(81)
@pytest.mark.parametrize(
    ("target", "prefix"),
    [
        (b"/sse", b"/messages?session_id="),
        (b"/sse/", b"/messages?session_id="),
        (b"/servers/one/sse", b"/servers/one/messages?session_id="),
        (b"/servers/one/sse?x=1", b"/servers/one/messages?session_id="),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_81_theEndpointIsAPathAbsoluteURI(
    start: Start, target: bytes, prefix: bytes
) -> None:
    it = await talk(start, target, greeted=False)
    assert it.endpoint.startswith(prefix)
    assert len(it.endpoint) == len(prefix) + 43
    await it.greet()


@pytest_twisted.ensureDeferred
async def test_theStreamsHead(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    client = await stack.send(b"GET", b"/sse")
    head = await client.head()
    assert head.status == 200
    assert head.header(b"content-type") == b"text/event-stream"
    assert head.header(b"cache-control") == b"no-store"
    assert head.header(b"x-accel-buffering") == b"no"
    assert head.header(b"mcp-session-id") is None


@pytest_twisted.ensureDeferred
async def test_theEndpointHearsNothingOfWhatAProxySays(start: Start) -> None:
    """
    Forwarding fields are not believed, so nobody can send a client's messages elsewhere. The bytes
    are looked at themselves: every event has its name.
    """
    server = AnsweringServer("one")
    stack = await start({"one": server})
    said = [
        (b"X-Forwarded-Host", b"evil.example"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Prefix", b"/elsewhere"),
        (b"X-Forwarded-Port", b"1"),
        (b"Forwarded", b"host=evil.example"),
    ]
    stream = await stack.send(b"GET", b"/sse", None, said)
    await stream.head()
    first = await stream.chunk()
    assert first is not None and first.startswith(b"event: endpoint\ndata: /messages?session_id=")
    endpoint = first.removeprefix(b"event: endpoint\ndata: ").removesuffix(b"\n\n")
    assert len(endpoint) == len(b"/messages?session_id=") + 43
    assert (await stack.ask(b"POST", endpoint, hello("2024-11-05"), said)).status == 202
    answer = await stream.chunk()
    assert answer is not None and answer.startswith(
        b'event: message\ndata: {"jsonrpc":"2.0","id":1'
    )


@pytest_twisted.ensureDeferred
async def test_answersComeOnTheStreamUnderTheirIds(start: Start) -> None:
    it = await talk(start)
    for id in (b"0", b'"0"', b'""', b"1.0", b"9007199254740993"):
        await it.say(b'{"jsonrpc":"2.0","id":%b,"method":"x","params":{"a":1.0}}' % id)
        event = await it.stream.event()
        assert event is not None
        assert (event.event, event.id) == (b"message", None)
        assert event.data == b'{"jsonrpc":"2.0","id":%b,"result":{"a":1.0}}' % id


@pytest_twisted.ensureDeferred
async def test_serverMessagesComeOnTheStream(start: Start) -> None:
    it = await talk(start)
    it.server.newest.push(rpc("notifications/tools/list_changed"))
    assert (await it.message())["method"] == "notifications/tools/list_changed"
    it.server.newest.push(b'{"jsonrpc":"2.0","id":"s","method":"ping"}')
    asked = await it.message()
    assert asked["method"] == "ping"
    await it.say(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {}}).encode())
    (response,) = it.server.newest.of("")
    assert response.id == b'"s"'


@pytest_twisted.ensureDeferred
async def test_failuresAreMessageEvents(start: Start) -> None:
    it = await talk(start)
    it.server.answers = False
    link = it.server.newest
    await it.say(rpc("tools/call", 7))
    link.lose(Reason.SERVER_EXITED)
    failed = await it.message()
    assert (failed["id"], failed["error"]["data"]["reason"]) == (7, "server_exited")
    # The session goes on with another link.
    it.server.answers = True
    await it.say(rpc("tools/call", 8))
    answers = [await it.message() for _ in range(2)]
    assert [answer["id"] for answer in answers if "id" in answer] == [8]


@pytest_twisted.ensureDeferred
async def test_refusalsAreMessageEventsToo(start: Start) -> None:
    it = await talk(start)
    heard = it.server.heard
    cases: list[tuple[bytes, int, object, list[tuple[bytes, bytes]]]] = [
        (b"", -32700, None, []),
        (b"{", -32700, None, []),
        (b'{"jsonrpc":"2.0","id":7}', -32600, 7, []),
        (b"7", -32600, None, []),
        (b"[" + rpc("ping", 7) + b"]", -32600, None, []),
        (rpc("ping", 7), -32000, 7, [(b"MCP-Protocol-Version", b"1999-01-01")]),
        (rpc("ping", 7), -32000, 7, [(b"Content-Type", b"text/plain")]),
        (rpc("ping", 7), -32602, 7, [(b"MCP-Protocol-Version", b"2026-07-28")]),
    ]
    for body, code, id, headers in cases:
        answer = await it.stack.ask(b"POST", it.endpoint, body, headers)
        assert (answer.status, answer.body) == (202, b""), body
        told = await it.message()
        assert (told["error"]["code"], told.get("id")) == (code, id), body
        assert ("id" in told) is (id is not None)
    # What a client accepts as the answer to a POST does not matter, for there is none.
    for accept in (b"text/html", b"application/json", b"text/event-stream"):
        answer = await it.stack.ask(b"POST", it.endpoint, rpc("ping", 1), [(b"Accept", accept)])
        assert answer.status == 202
        assert (await it.message())["id"] == 1
    assert it.server.heard == heard + 3


@pytest_twisted.ensureDeferred
async def test_aFailingHandshakeIsAMessageEventAndMayBeTriedAgain(start: Start) -> None:
    it = await talk(start, greeted=False)
    it.server.failNext(Reason.UPSTREAM_UNREACHABLE, "it could not be started")
    await it.say(hello(id="a"))
    failed = await it.message()
    assert (failed["id"], failed["error"]["data"]["reason"]) == ("a", "upstream_unreachable")
    await it.greet()
    await it.say(hello(id="b"))
    refused = await it.message()
    assert (refused["id"], refused["error"]["code"]) == ("b", -32600)
    assert it.server.handshakes == 2


@pytest_twisted.ensureDeferred
async def test_beforeInitialize(start: Start) -> None:
    it = await talk(start, greeted=False)
    await it.say(rpc("tools/list", "early"))
    refused = await it.message()
    assert (refused["id"], refused["error"]["code"]) == ("early", -32600)
    await it.say(rpc("notifications/initialized"))
    await it.say(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    dropped = [event.why for event in it.stack.observer.of(MessageDropped)]
    assert dropped == ["before_initialize"] * 2
    it.server.handshakeHeld = True
    await it.say(hello(id=1))
    await it.say(rpc("tools/list", 2))
    assert (await it.message())["id"] == 2
    it.server.finishHandshake()
    assert (await it.message())["id"] == 1
    assert it.server.heard == 1


@pytest.mark.acceptance(27)
@pytest_twisted.ensureDeferred
async def test_acceptance_27_aBatchIsAnsweredWhole(start: Start) -> None:
    it = await talk(start, greeted=False)
    link = await it.greet("2025-03-26")
    members = [
        rpc("x", 1, n=1),
        rpc("notifications/roots/list_changed"),
        b'{"jsonrpc":"2.0","id":"bad"}',
        rpc("x", 1, n=2),
    ]
    await it.say(b"[" + b",".join(members) + b"]")
    event = await it.stream.event()
    assert event is not None and event.data is not None
    answers = json.loads(event.data)
    assert sorted(one["result"]["n"] for one in answers if "result" in one) == [1, 2]
    assert [(one["id"], one["error"]["code"]) for one in answers if "error" in one] == [
        ("bad", -32600)
    ]
    assert len(link.of("notifications/roots/list_changed")) == 1
    await it.say(b"[7]")
    event = await it.stream.event()
    assert event is not None and json.loads(event.data or b"")[0]["error"]["code"] == -32600
    await it.say(b"[" + rpc("notifications/roots/list_changed") + b"]")
    for body in (b"[]", b"[" + hello() + b"]"):
        await it.say(body)
        assert (await it.message())["error"]["code"] == -32600
    assert it.stream.unread == b""


@pytest.mark.acceptance(81)
@pytest_twisted.ensureDeferred
async def test_acceptance_81_withoutAStreamThereIsNoSession(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    body = rpc("ping", "x")
    for target in (b"/messages", b"/messages?sessionId=x", b"/messages?"):
        answer = await stack.ask(b"POST", target, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, -32000)
        assert answer.json["id"] == "x"
    for target in (
        b"/messages?session_id=",
        b"/messages?session_id=x",
        b"/messages?session_id=" + b"A" * 43,
        b"/messages?session_id=" + b"A" * 43 + b"&session_id=" + b"A" * 43,
    ):
        answer = await stack.ask(b"POST", target, body)
        assert (answer.status, answer.json["error"]["code"]) == (404, -32001), target
        assert answer.json["id"] == "x"
    assert server.heard == 0


@pytest.mark.acceptance(81)
@pytest_twisted.ensureDeferred
async def test_acceptance_81_theStreamsEndIsTheSessions(start: Start) -> None:
    it = await talk(start)
    link = it.server.newest
    other = Talk(it.stack, it.server, *(await it.stack.openSSE()))
    await other.greet()
    it.server.answers = False
    await it.say(rpc("tools/call", 7))
    it.stream.reset()
    await it.stream.ended
    await it.stack.until(lambda: link.closed)
    gone = await it.post(rpc("ping", 8))
    assert (gone.status, gone.json["error"]["code"], gone.json["id"]) == (404, -32001, 8)
    (ended,) = it.stack.observer.of(SessionEnded)
    assert ended.reason == "stream_closed"
    # The other one goes on; who reconnects starts anew.
    it.server.answers = True
    await other.say(rpc("ping", 9))
    assert (await other.message())["id"] == 9
    again = Talk(it.stack, it.server, *(await it.stack.openSSE()))
    assert again.endpoint != it.endpoint
    await again.greet()
    assert len(it.stack.shared.registry) == 2


@pytest.mark.acceptance(81)
@pytest_twisted.ensureDeferred
async def test_acceptance_81_twoClientsNeverCross(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    talks = []
    for _ in range(3):
        it = Talk(stack, server, *(await stack.openSSE()))
        await it.greet()
        talks.append(it)
    server.answers = False
    for n, it in enumerate(talks):
        await it.say(rpc("tools/call", 1, n=n))
    for link in reversed(server.links):
        (sent,) = link.of("tools/call")
        n = sent.message.param("n") or b""
        link.push(rpc("notifications/message", level="info", data=int(n)))
        link.reply(sent, n)
    for n, it in enumerate(talks):
        assert (await it.message())["params"]["data"] == n
        assert await it.message() == {"jsonrpc": "2.0", "id": 1, "result": n}
        assert it.stream.unread == b""


@pytest_twisted.ensureDeferred
async def test_oneConnectionMaySpeakForManySessions(start: Start) -> None:
    """As that of a proxy does: whose a message is, only its own head says."""
    server = AnsweringServer("one")
    stack = await start({"one": server})
    talks = []
    for _ in range(3):
        one = Talk(stack, server, *(await stack.openSSE(b"/sse")))
        await one.greet()
        talks.append(one)
    connection = await stack.connect()
    for number in range(18):
        one = talks[number % (2 if number < 12 else 3)]
        connection.send(stack.request(b"POST", one.endpoint, rpc("ping", f"{number:02}")))
        answer = await connection.response()
        assert (answer.status, answer.body) == (202, b"")
        assert (await one.message())["id"] == f"{number:02}"


@pytest_twisted.ensureDeferred
async def test_anEndedSessionEndsItsStream(start: Start) -> None:
    it = await talk(start)
    it.server.answers = False
    await it.say(rpc("tools/call", 7))
    (session,) = it.stack.shared.registry
    await it.stack.shared.registry.end(session, "shutdown")
    failed = await it.message()
    assert (failed["id"], failed["error"]["data"]["reason"]) == (7, "shutting_down")
    last = await it.stream.event()
    assert last is not None and (last.data, last.retry) == (None, b"5000")
    assert await it.stream.event() is None
    assert it.server.newest.closed


@pytest.mark.acceptance(41)
@pytest_twisted.ensureDeferred
async def test_acceptance_41_aStreamAtCapacityIs503(start: Start) -> None:
    it = await talk(start, limits=Limits(max_sessions=1))
    full = await it.stack.ask(b"GET", b"/sse")
    assert (full.status, full.header(b"retry-after")) == (503, b"5")
    assert full.json["error"]["code"] == -32000
    assert "id" not in full.json
    it.stream.reset()
    await it.stream.ended
    await it.stack.until(lambda: not len(it.stack.shared.registry))
    await it.stack.openSSE()


@pytest.mark.acceptance(10)
@pytest_twisted.ensureDeferred
async def test_acceptance_10_aBodyOverTheLimitIs413(start: Start) -> None:
    it = await talk(start, limits=Limits(max_body=1000))
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (1001, b" " * 1001)
    for body, fields in ((b" " * 1001, []), (chunked, [(b"Transfer-Encoding", b"chunked")])):
        answer = await it.stack.ask(b"POST", it.endpoint, body, fields)
        assert (answer.status, answer.json["error"]["code"]) == (413, -32000)
    await it.say(rpc("ping", 1))
    assert (await it.message())["id"] == 1


@pytest.mark.acceptance(28)
@pytest_twisted.ensureDeferred
async def test_acceptance_28_aFullQueueIsSaidOnTheStream(start: Start) -> None:
    it = await talk(start)
    it.server.newest.full = True
    await it.say(rpc("notifications/roots/list_changed"))
    told = await it.message()
    assert told["error"]["code"] == -32000
    assert "id" not in told
    await it.say(rpc("tools/list", 7))
    failed = await it.message()
    assert (failed["id"], failed["error"]["data"]["reason"]) == (7, "overloaded")


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_itLivesAsLongAsItsStream(start: Start) -> None:
    it = await talk(start)
    it.stack.pass_(4000)
    await it.stack.turns()
    while it.stream.unread:
        assert await it.stream.chunk() == b":\n\n"
    await it.say(rpc("ping", 7))
    assert (await it.message())["id"] == 7


@pytest.mark.acceptance(47)
@pytest_twisted.ensureDeferred
async def test_acceptance_47_aClientMayVanishAtAnyTime(start: Start) -> None:
    it = await talk(start)
    for n in range(30):
        other = Talk(it.stack, it.server, *(await it.stack.openSSE()))
        if n % 3:
            await it.stack.send(b"POST", other.endpoint, hello("2024-11-05"))
        if n % 3 == 2:
            await other.message()
            await it.stack.send(b"POST", other.endpoint, rpc("tools/call", n))
        (other.stream.reset if n % 2 else other.stream.close)()
        await other.stream.ended
    await it.stack.until(lambda: len(it.stack.shared.registry) == 1)
    await it.stack.turns()
    assert len(it.server.open) == 1
    await it.say(rpc("ping", 7))
    assert (await it.message())["id"] == 7
