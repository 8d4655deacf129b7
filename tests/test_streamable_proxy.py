"""Streamable HTTP in front of a server in memory: how answers travel, and what sessions do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from raw import AnsweringServer, Headers, RawClient, Response, Stack, Start, hello, rpc
from raw import start as start

from gateway.guard.limits import Limits
from gateway.links.interfaces import Reason
from gateway.observe.observer import CallAnswered, MessageDropped, SessionEnded
from gateway.relay.relay import Relay
from gateway.sessions.registry import Session
from gateway.testing.scripted import ScriptedLink, Sent
from gateway.wire.envelope import Message, decode

JSON = (b"Accept", b"application/json")
EVENTS = (b"Accept", b"text/event-stream")
HEARTBEAT = b":\n\n"


def notice(text: str = "x") -> bytes:
    return rpc("notifications/message", level="info", data=text)


class Bench:
    """One session with one server that answers when the test says so."""

    def __init__(self, stack: Stack, server: AnsweringServer, session: bytes) -> None:
        self.stack = stack
        self.server = server
        self.named = (b"Mcp-Session-Id", session)

    @property
    def link(self) -> ScriptedLink:
        return self.server.newest

    @property
    def session(self) -> Session:
        (session,) = self.stack.shared.registry
        return session

    async def post(self, body: bytes, *headers: tuple[bytes, bytes]) -> RawClient:
        return await self.stack.send(b"POST", b"/mcp", body, [self.named, *headers])

    async def ask(self, body: bytes, *headers: tuple[bytes, bytes]) -> Response:
        return await self.stack.ask(b"POST", b"/mcp", body, [self.named, *headers])

    async def call(
        self, id: object = 7, *headers: tuple[bytes, bytes], **params: object
    ) -> tuple[RawClient, Sent]:
        """A call, and what the server got of it."""
        before = len(self.link.requests)
        client = await self.post(rpc("tools/call", id, **params), *headers)
        await self.stack.until(lambda: len(self.link.requests) > before)
        return client, self.link.requests[-1]

    async def get(self, *headers: tuple[bytes, bytes]) -> RawClient:
        """An open GET stream."""
        client = await self.stack.send(b"GET", b"/mcp", None, [self.named, *headers])
        head = await client.head()
        assertStream(head)
        return client


async def bench(start: Start, revision: str = "2025-06-18", limits: Limits | None = None) -> Bench:
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=limits)
    session = await stack.open(revision=revision)
    server.answers = False
    return Bench(stack, server, session)


def assertStream(head: Response) -> None:
    assert head.status == 200, head
    assert head.header(b"content-type") == b"text/event-stream"
    assert head.header(b"cache-control") == b"no-store"
    assert head.header(b"x-accel-buffering") == b"no"
    assert head.header(b"content-length") is None


def assertJSON(answer: Response) -> Any:
    assert answer.status == 200, answer
    assert answer.header(b"content-type") == b"application/json"
    return answer.json


# initialize.


@pytest.mark.acceptance(31)
@pytest_twisted.ensureDeferred
async def test_acceptance_31_initializeIsAnsweredAsJSONHeadAfterTheResult(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    server.handshakeHeld = True
    ids = set()
    for accept in ([], [JSON], [EVENTS]):
        client = await stack.send(b"POST", b"/mcp", hello(id="a\u00e4"), accept)
        await stack.until(lambda: server._pending)
        stack.pass_(15)
        await stack.turns()
        assert client.unread == b""
        server.finishHandshake()
        answer = await client.response()
        assert assertJSON(answer)["result"]["protocolVersion"] == "2025-06-18"
        assert answer.json["id"] == "a\u00e4"
        id = answer.header(b"mcp-session-id")
        assert id is not None and len(id) == 43 and id.isascii()
        ids.add(id)
        client.close()
    assert len(ids) == 3
    assert len(stack.shared.registry) == 3


@pytest.mark.acceptance(31)
@pytest_twisted.ensureDeferred
async def test_acceptance_31_initializeInASessionStartsAnother(start: Start) -> None:
    it = await bench(start)
    for _ in range(2):
        again = await it.ask(hello(id=9))
        assert again.json["id"] == 9
        assert again.header(b"mcp-session-id") not in (None, it.named[1])
    assert it.server.handshakes == 3
    assert it.link is not it.server.links[0]
    assert it.server.links[0].alive


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_aFailingInitializeIs200WithoutASession(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    for reason in (Reason.SERVER_EXITED, Reason.UPSTREAM_UNREACHABLE, Reason.TIMEOUT):
        server.failNext(reason, "it failed")
        answer = await stack.ask(b"POST", b"/mcp", hello(id="7"))
        told = assertJSON(answer)
        assert told["id"] == "7"
        assert told["error"]["code"] == -32000
        assert told["error"]["data"] == {"reason": reason.value}
        assert answer.header(b"mcp-session-id") is None
    own = decode(b'{"jsonrpc":"2.0","id":0,"error":{"code":-32602,"message":"no","data":[1.0]}}')
    assert isinstance(own, Message)
    server.failNext(Reason.BAD_ANSWER, "it refused", own)
    answer = await stack.ask(b"POST", b"/mcp", hello(id=7))
    assert answer.body == (
        b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"no","data":[1.0]}}'
    )
    assert len(stack.shared.registry) == 0
    assert {event.reason for event in stack.observer.of(SessionEnded)} == {"failed"}


@pytest.mark.acceptance(41)
@pytest_twisted.ensureDeferred
async def test_acceptance_41_atCapacity(start: Start) -> None:
    it = await bench(start, limits=Limits(max_sessions=2, retry_after=9))
    second = await it.stack.open()
    for _ in range(2):
        full = await it.stack.ask(b"POST", b"/mcp", hello(id=8))
        assert (full.status, full.header(b"retry-after")) == (503, b"9")
        assert (full.json["id"], full.json["error"]["code"]) == (8, -32000)
        assert full.header(b"mcp-session-id") is None
    assert it.stack.observer.bounds == ["max_sessions"] * 2
    # The old ones go on, and a slot that is freed is usable at once.
    it.server.answers = True
    assert (await it.ask(rpc("ping", 1))).status == 200
    ended = await it.stack.ask(b"DELETE", b"/mcp", None, [(b"Mcp-Session-Id", second)])
    assert ended.status == 204
    await it.stack.open()


@pytest_twisted.ensureDeferred
async def test_whileItDrainsThereAreNoNewSessions(start: Start) -> None:
    it = await bench(start)
    it.stack.shared.accepting = False
    for method, path in ((b"POST", b"/mcp"), (b"GET", b"/sse")):
        refused = await it.stack.ask(method, path, hello() if method == b"POST" else None)
        assert (refused.status, refused.header(b"retry-after")) == (503, b"5")
        assert refused.json["error"]["code"] == -32000
        assert refused.json["error"]["data"] == {"reason": "shutting_down"}
    it.server.answers = True
    assert (await it.ask(rpc("ping", 1))).status == 200


# How an answer travels.


@pytest.mark.parametrize("accept", [[], [JSON], [(b"Accept", b"*/*")]])
@pytest_twisted.ensureDeferred
async def test_theAnswerAsFirstMessageIsJSON(start: Start, accept: Headers) -> None:
    it = await bench(start)
    client, sent = await it.call(7, *accept)
    assert client.unread == b""
    it.link.reply(sent, b'{"x":[1.0,  2e0]}')
    answer = await client.response()
    assertJSON(answer)
    assert answer.body == b'{"jsonrpc":"2.0","id":7,"result":{"x":[1.0,  2e0]}}'
    assert answer.header(b"mcp-session-id") is None


@pytest_twisted.ensureDeferred
async def test_anotherFirstMessageOpensAStream(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call()
    it.link.push(notice("one"))
    assertStream(await client.head())
    assert (await client.message())["params"]["data"] == "one"
    it.link.push(notice("two"))
    assert (await client.message())["params"]["data"] == "two"
    it.link.reply(sent)
    assert await client.message() == {"jsonrpc": "2.0", "id": 7, "result": {}}
    assert await client.event() is None


@pytest_twisted.ensureDeferred
async def test_theHeadWaitsTenSeconds(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call()
    it.stack.pass_(9.5)
    await it.stack.turns()
    assert client.unread == b""
    it.stack.pass_(1)
    assertStream(await client.head())
    it.link.reply(sent)
    assert (await client.message())["id"] == 7
    assert await client.event() is None


@pytest_twisted.ensureDeferred
async def test_withOnlyJSONAcceptableNothingElseIsSent(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call(7, JSON, _meta={"progressToken": "p"})
    it.link.push(notice())
    it.link.push(rpc("notifications/progress", progressToken=json.loads(sent.id), progress=1))
    it.stack.pass_(60)
    await it.stack.turns()
    assert client.unread == b""
    it.link.reply(sent)
    assertJSON(await client.response())


@pytest_twisted.ensureDeferred
async def test_withOnlyEventsAcceptableTheAnswerIsOne(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call(7, EVENTS)
    it.link.reply(sent)
    assertStream(await client.head())
    assert (await client.message())["id"] == 7
    assert await client.event() is None


@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18", "2025-03-26"])
@pytest_twisted.ensureDeferred
async def test_onlyThe2025_11_25StreamIsPrimedAndOpensAtOnce(start: Start, revision: str) -> None:
    it = await bench(start, revision)
    client, sent = await it.call()
    if revision == "2025-11-25":
        assertStream(await client.head())
        primer = await client.event()
        assert primer is not None and primer.id and not primer.data
        it.link.reply(sent)
        assert (await client.message())["id"] == 7
        assert await client.event() is None
    else:
        await it.stack.turns()
        assert client.unread == b""
        it.link.reply(sent)
        assertJSON(await client.response())
    # Where only JSON is acceptable, nothing is primed.
    client, sent = await it.call(8, JSON)
    await it.stack.turns()
    assert client.unread == b""
    it.link.reply(sent)
    assertJSON(await client.response())


@pytest_twisted.ensureDeferred
async def test_aLargeAnswerIsJSON(start: Start) -> None:
    it = await bench(start, limits=Limits(max_json_answer_stream=1000))
    large = b'{"x":"' + b"x" * 1000 + b'"}'
    for accept in ([], [JSON], [EVENTS]):
        client, sent = await it.call(7, *accept)
        it.link.reply(sent, large)
        answer = await client.response()
        assert len(assertJSON(answer)["result"]["x"]) == 1000
    assert it.stack.observer.bounds == ["max_json_answer_stream"]
    # One that is on a stream stays there.
    client, sent = await it.call()
    it.link.push(notice())
    it.link.reply(sent, large)
    assertStream(await client.head())
    assert (await client.message())["method"] == "notifications/message"
    assert len((await client.message())["result"]["x"]) == 1000


@pytest.mark.acceptance(80)
@pytest_twisted.ensureDeferred
async def test_acceptance_80_aCommentEvery15Seconds(start: Start) -> None:
    it = await bench(start)
    get = await it.get()
    client, sent = await it.call()
    it.stack.pass_(11)
    assertStream(await client.head())
    for _ in range(4):
        it.stack.pass_(15)
        assert await get.chunk() == HEARTBEAT
        assert await client.chunk() == HEARTBEAT
    # What is written counts as a beat.
    it.stack.pass_(10)
    await it.stack.turns()
    for stream in (get, client):
        while stream.unread:
            assert await stream.chunk() == HEARTBEAT
    it.link.push(rpc("notifications/tools/list_changed"))
    assert (await get.message())["method"] == "notifications/tools/list_changed"
    it.stack.pass_(14)
    await it.stack.turns()
    assert get.unread == b""
    it.stack.pass_(1.5)
    assert await get.chunk() == HEARTBEAT
    it.link.reply(sent)


@pytest_twisted.ensureDeferred
async def test_everyEventNamesItselfOnTheWire(start: Start) -> None:
    """Clients that listen for `message` events alone do not hear an event without a name."""
    it = await bench(start)
    get = await it.get()
    client, sent = await it.call(7)
    failing, _ = await it.call(8)
    it.stack.pass_(11)
    for stream in (client, failing):
        await stream.head()
    it.link.push(notice("get"))
    it.link.reply(sent)
    it.link.lose()

    async def eventful(reader: RawClient) -> bytes:
        while (chunk := await reader.chunk()) == HEARTBEAT:
            pass
        assert chunk is not None and chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1
        return chunk

    for reader, holds in (
        (get, b'"data":"get"'),
        (client, b'"id":7,"result"'),
        (failing, b'"id":8,"error":{"code":-32000'),
    ):
        event = await eventful(reader)
        assert event.startswith(b"event: message\n")
        assert holds in event


@pytest.mark.acceptance(79)
@pytest_twisted.ensureDeferred
async def test_acceptance_79_nothingInAMessageEndsItsEvent(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call()
    it.link.push(notice())
    evil = b'{"a":\r\n\r\n"\\n\\ndata: x\\r\\n","b":\n"\xe2\x80\xa8\xe2\x80\xa9\xc2\x85"\r}'
    it.link.reply(sent, evil)
    assertStream(await client.head())
    await client.message()
    event = await client.event()
    assert event is not None and event.data is not None
    assert b"\n" not in event.data
    assert json.loads(event.data)["result"] == json.loads(evil)
    assert await client.event() is None


# Ids and values.

IDS = [
    b'"a"',
    b'""',
    b"0",
    b"-0",
    b"-5",
    b"1",
    b"1.0",
    b"1e0",
    b"1e2",
    b"1.5",
    b'"1"',
    b"9007199254740993",
    b"1000000000000000000000000000000",
    b'"\\u0031"',
    b'"\\/\\u00e4\xc3\xa4\\ud83d\\ude00"',
    b'"' + b"x" * 4000 + b'"',
]


@pytest.mark.acceptance(23, 24)
@pytest_twisted.ensureDeferred
async def test_acceptance_23_24_idsComeBackAsTheyWent(start: Start) -> None:
    """All at once, each twice in flight: each caller gets its own answer."""
    it = await bench(start)
    calls: list[tuple[bytes, RawClient, Sent]] = []
    for id in IDS * 2:
        before = len(it.link.requests)
        body = b'{"jsonrpc":"2.0","id":' + id + b',"method":"tools/call","params":{}}'
        client = await it.post(body)
        await it.stack.until(lambda before=before: len(it.link.requests) > before)
        calls.append((id, client, it.link.requests[-1]))
    assert len({sent.id for _, _, sent in calls}) == len(calls)
    for number, (_, _, sent) in reversed(list(enumerate(calls))):
        it.link.reply(sent, b"%d" % number)
    for number, (id, client, _) in enumerate(calls):
        answer = await client.response()
        assert answer.body == b'{"jsonrpc":"2.0","id":%b,"result":%d}' % (id, number)


@pytest.mark.acceptance(24)
@pytest_twisted.ensureDeferred
async def test_acceptance_24_fiftyCallsUnderOneId(start: Start) -> None:
    it = await bench(start)
    it.server.answers = True
    clients = [await it.post(rpc("tools/call", 1, n=n)) for n in range(50)]
    for n, client in enumerate(clients):
        assert (await client.response()).json == {"jsonrpc": "2.0", "id": 1, "result": {"n": n}}


@pytest.mark.acceptance(25)
@pytest_twisted.ensureDeferred
async def test_acceptance_25_sessionsNeverCross(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    sessions = [await stack.open() for _ in range(5)]
    server.answers = False
    waiting = []
    for n, session in enumerate(sessions):
        body = rpc("tools/call", 1, n=n)
        waiting.append(await stack.send(b"POST", b"/mcp", body, [(b"Mcp-Session-Id", session)]))
        await stack.until(lambda n=n: server.links[n].requests)
    # All have the same upstream id, too: each link has its own numbers.
    for link in reversed(server.links):
        (sent,) = link.requests
        link.push(notice(f"for {sent.message.param('n')!r}"))
        link.reply(sent, sent.message.param("n") or b"")
    for n, client in enumerate(waiting):
        assertStream(await client.head())
        assert (await client.message())["params"]["data"] == f"for b'{n}'"
        assert (await client.message())["result"] == n
        assert await client.event() is None


@pytest.mark.acceptance(32)
@pytest_twisted.ensureDeferred
async def test_acceptance_32_valuesPassByteForByte(start: Start) -> None:
    it = await bench(start)
    params = b'{"z":1.10,"a":{"\\u0061":"\\ud800","b":1e400,"b":-0},"_meta":{"x":{}},"n":10e+0}'
    body = b'{"extra":[1.0],"method":"tools/call","id":7,"jsonrpc":"2.0","params":' + params + b"}"
    client = await it.post(body)
    await it.stack.until(lambda: it.link.requests)
    (sent,) = it.link.requests
    assert bytes(sent.message.fields["params"]) == params
    assert bytes(sent.message.fields["extra"]) == b"[1.0]"
    assert list(sent.message.fields) == ["extra", "method", "id", "jsonrpc", "params"]
    it.link.reply(sent, params)
    assert (await client.response()).body.endswith(b'"result":' + params + b"}")


# Notifications and responses.


@pytest.mark.acceptance(28)
@pytest_twisted.ensureDeferred
async def test_acceptance_28_notificationsAndResponsesAre202(start: Start) -> None:
    it = await bench(start)
    for body in (
        rpc("notifications/roots/list_changed"),
        b'{"jsonrpc":"2.0","id":"stray","result":{}}',
        b'{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"x"}}',
        rpc("notifications/cancelled", requestId=99),
    ):
        for accept in ([], [JSON], [EVENTS]):
            answer = await it.ask(body, *accept)
            assert (answer.status, answer.body) == (202, b"")
            assert answer.header(b"content-type") is None
    assert len(it.link.of("notifications/roots/list_changed")) == 3
    assert it.link.of("") == []
    dropped = [event.why for event in it.stack.observer.of(MessageDropped)]
    assert dropped == ["stray_response"] * 6 + ["stray_cancel"] * 3


@pytest.mark.acceptance(28)
@pytest_twisted.ensureDeferred
async def test_acceptance_28_aFullQueueIs503(start: Start) -> None:
    it = await bench(start)
    it.link.full = True
    answer = await it.ask(rpc("notifications/roots/list_changed"))
    assert (answer.status, answer.header(b"retry-after")) == (503, b"5")
    assert answer.json["error"]["code"] == -32000
    assert "id" not in answer.json
    # A call is answered, and says so.
    call = await it.ask(rpc("tools/list", 7))
    assert assertJSON(call)["error"]["data"]["reason"] == "overloaded"
    it.link.full = False
    assert (await it.ask(rpc("notifications/roots/list_changed"))).status == 202


@pytest.mark.acceptance(28)
@pytest_twisted.ensureDeferred
async def test_acceptance_28_whatWasRefusedMayBeSentAgain(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    it = Bench(stack, server, await stack.open(sampling={}))
    server.answers = False
    client, sent = await it.call()
    it.link.push(b'{"jsonrpc":"2.0","id":"s-1","method":"sampling/createMessage","params":{}}')
    await client.head()
    asked = await client.message()
    body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {}}).encode()
    it.link.full = True
    assert (await it.ask(body)).status == 503
    it.link.full = False
    assert it.link.of("") == []
    assert (await it.ask(body)).status == 202
    assert [response.id for response in it.link.of("")] == [b'"s-1"']
    it.link.reply(sent)
    assert (await client.message())["id"] == 7
    # So may the notification that others wait for.
    greeted = await stack.ask(b"POST", b"/mcp", hello())
    id = greeted.header(b"mcp-session-id")
    assert id is not None
    it = Bench(stack, server, id)
    it.link.full = True
    assert (await it.ask(rpc("notifications/initialized"))).status == 503
    it.link.full = False
    assert (await it.ask(rpc("notifications/initialized"))).status == 202
    assert len(it.link.of("notifications/initialized")) == 1


@pytest_twisted.ensureDeferred
async def test_aServersRequestIsAnsweredByPost(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    it = Bench(stack, server, await stack.open(sampling={}))
    server.answers = False
    client, sent = await it.call()
    it.link.push(b'{"jsonrpc":"2.0","id":"s-1","method":"sampling/createMessage","params":{}}')
    assertStream(await client.head())
    asked = await client.message()
    body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {"x": 1}}).encode()
    for _ in range(2):
        assert (await it.ask(body)).status == 202
    # Once: what comes a second time is dropped.
    (response,) = it.link.of("")
    assert (response.id, bytes(response.message.fields["result"])) == (b'"s-1"', b'{"x": 1}')
    it.link.reply(sent)
    assert (await client.message())["id"] == 7


# Batches.


@pytest.mark.acceptance(27)
@pytest_twisted.ensureDeferred
async def test_acceptance_27_aBatchIsAnsweredWhole(start: Start) -> None:
    it = await bench(start, "2025-03-26")
    members = [
        rpc("tools/call", 1, n=1),
        rpc("notifications/roots/list_changed"),
        b'{"jsonrpc":"2.0","id":"bad"}',
        rpc("tools/call", 1, n=2),
        b"7",
    ]
    client = await it.post(b"[" + b",".join(members) + b"]")
    await it.stack.until(lambda: len(it.link.requests) == 2)
    one, two = it.link.requests
    assert one.id != two.id
    it.link.reply(two, b"2")
    await it.stack.turns()
    assert client.unread == b""
    it.link.reply(one, b"1")
    answers = assertJSON(await client.response())
    assert sorted(answer["result"] for answer in answers if "result" in answer) == [1, 2]
    assert [answer["id"] for answer in answers if "result" in answer] == [1, 1]
    failed = [answer for answer in answers if "error" in answer]
    assert [answer.get("id") for answer in failed] == ["bad", None]
    assert {answer["error"]["code"] for answer in failed} == {-32600}
    assert len(it.link.of("notifications/roots/list_changed")) == 1


@pytest.mark.acceptance(27)
@pytest_twisted.ensureDeferred
async def test_acceptance_27_batchesWithoutRequests(start: Start) -> None:
    it = await bench(start, "2025-03-26")
    told = rpc("notifications/roots/list_changed")
    answer = await it.ask(b"[" + told + b',{"jsonrpc":"2.0","id":3,"result":1}]')
    assert (answer.status, answer.body) == (202, b"")
    bad = await it.ask(b"[7]")
    assert [one["error"]["code"] for one in assertJSON(bad)] == [-32600]
    it.link.full = True
    full = await it.ask(b"[" + told + b"]")
    assert full.status == 503


@pytest.mark.acceptance(27)
@pytest_twisted.ensureDeferred
async def test_acceptance_27_batchesThatAreRefused(start: Start) -> None:
    it = await bench(start, "2025-03-26", Limits(max_batch=3))
    one = rpc("ping", 1)
    for body in (
        b"[]",
        b"[" + one + b"," + hello() + b"]",
        b"[" + b",".join([one] * 4) + b"]",
    ):
        answer = await it.ask(body)
        assert (answer.status, answer.json["error"]["code"]) == (400, -32600)
        assert "id" not in answer.json
    assert it.link.requests == []
    assert it.stack.observer.bounds == ["max_batch"]
    for revision in ("2025-06-18", "2025-11-25", "2024-11-05"):
        other = await it.stack.open(revision=revision)
        headers = [(b"Mcp-Session-Id", other)]
        answer = await it.stack.ask(b"POST", b"/mcp", b"[" + one + b"]", headers)
        assert (answer.status, answer.json["error"]["code"]) == (400, -32600)


# GET streams.


@pytest.mark.acceptance(38)
@pytest_twisted.ensureDeferred
async def test_acceptance_38_fourStreamsAndTheNewestGetsIt(start: Start) -> None:
    it = await bench(start)
    streams = []
    for n in range(4):
        streams.append(await it.get())
        it.link.push(notice(str(n)))
        assert (await streams[-1].message())["params"]["data"] == str(n)
    fifth = await it.get()
    assert await streams[0].event() is None
    it.link.push(notice("fifth"))
    assert (await fifth.message())["params"]["data"] == "fifth"
    # The newest goes: the next newest gets it. Nothing is lost, nothing comes twice.
    fifth.reset()
    await fifth.ended
    await it.stack.until(lambda: it.session._streams == 3)
    it.link.push(notice("fourth"))
    assert (await streams[3].message())["params"]["data"] == "fourth"
    for stream in streams[1:3]:
        assert stream.unread == b""
    assert it.stack.observer.bounds == ["max_get_streams"]


@pytest.mark.acceptance(38)
@pytest_twisted.ensureDeferred
async def test_acceptance_38_aBlockedOldestDoesNotKeepTheFifthOut(start: Start) -> None:
    it = await bench(start, limits=Limits(max_get_streams=1))
    blocked = await it.get()
    await _block(it, blocked)
    for n in range(3):
        stream = await it.get()
        it.link.push(notice(str(n)))
        assert (await stream.message())["params"]["data"] == str(n)
    # At most one is attached, whatever still drains.
    assert len(it.session.live.router.streams) == 1  # type: ignore[attr-defined]
    blocked.reset()


@pytest_twisted.ensureDeferred
async def test_anUnknownEventIdIs405(start: Start) -> None:
    it = await bench(start, "2025-11-25")
    get = await it.get()
    primer = await get.event()
    assert primer is not None and primer.id is not None
    other = await it.stack.open(revision="2025-11-25")
    for session, last in (
        (it.named[1], b"x"),
        (it.named[1], b""),
        (it.named[1], b"1-0"),
        (it.named[1], primer.id[:-1] + b"z"),
        (other, primer.id),
    ):
        headers = [(b"Mcp-Session-Id", session), (b"Last-Event-ID", last)]
        answer = await it.stack.ask(b"GET", b"/mcp", None, headers)
        assert (answer.status, answer.header(b"allow")) == (405, b"POST, DELETE, OPTIONS"), last
        assert answer.json["error"]["code"] == -32000
    assert get.unread == b""


@pytest.mark.acceptance(74, 38)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_38_aCutStreamIsResumedAndNoOtherIsTouched(start: Start) -> None:
    it = await bench(start, "2025-11-25", Limits(max_get_streams=2))
    client, sent = await it.call()
    await client.head()
    primer = await client.event()
    it.link.push(notice("one"), None)
    first = await client.event()
    assert primer is not None and first is not None and first.id is not None
    client.reset()
    await client.ended
    await it.stack.turns()
    gets = [await it.get(), await it.get()]
    it.link.reply(sent, b'"final"')
    for last, count in ((primer.id, 2), (first.id, 1)):
        assert last is not None
        again = await it.get((b"Last-Event-ID", last))
        got = [await again.message() for _ in range(count)]
        assert got[-1] == {"jsonrpc": "2.0", "id": 7, "result": "final"}
        assert await again.event() is None
    # The streams of the others go on.
    it.link.push(notice("two"))
    event = await gets[1].event()
    while event is not None and not event.data:
        event = await gets[1].event()
    assert event is not None and b'"two"' in (event.data or b"")
    assert not gets[0].ended.called


@pytest.mark.acceptance(38)
@pytest_twisted.ensureDeferred
async def test_acceptance_38_resumingAnEvictedStreamEvictsNoOther(start: Start) -> None:
    it = await bench(start, "2025-11-25", Limits(max_get_streams=2))
    streams = [await it.get() for _ in range(3)]
    primer = await streams[0].event()
    assert primer is not None and primer.id is not None
    assert await streams[0].event() is None
    # What is left of it is nothing.
    headers = [it.named, (b"Last-Event-ID", primer.id)]
    assert (await it.stack.ask(b"GET", b"/mcp", None, headers)).status == 405
    # Cut, not ended, with two others open: it gets what was kept, and ends.
    it.link.push(notice("kept"))
    assert await streams[2].event() is not None
    event = await streams[2].event()
    assert event is not None and event.data is not None
    streams[2].reset()
    await streams[2].ended
    await it.stack.until(lambda: it.session._streams == 1)
    await it.get()
    third = await it.stack.send(
        b"GET", b"/mcp", None, [it.named, (b"Last-Event-ID", b"%b" % event.id)]
    )
    assertStream(await third.head())
    assert await third.event() is None
    assert not streams[1].ended.called
    assert it.session._streams == 2


# DELETE.


@pytest.mark.acceptance(39)
@pytest_twisted.ensureDeferred
async def test_acceptance_39_deleteEndsEverything(start: Start) -> None:
    it = await bench(start)
    get = await it.get()
    client, _ = await it.call()
    link = it.link
    answer = await it.stack.ask(b"DELETE", b"/mcp", None, [it.named])
    assert (answer.status, answer.body) == (204, b"")
    assert await get.event() is None
    told = assertJSON(await client.response())
    assert (told["id"], told["error"]["data"]["reason"]) == (7, "cancelled")
    assert link.closed
    assert len(it.stack.shared.registry) == 0
    for method, body in ((b"DELETE", None), (b"GET", None), (b"POST", rpc("ping", 7))):
        again = await it.stack.ask(method, b"/mcp", body, [it.named])
        assert (again.status, again.json["error"]["code"]) == (404, -32001)


@pytest.mark.acceptance(39)
@pytest_twisted.ensureDeferred
async def test_acceptance_39_204WhateverTheServerDoes(start: Start) -> None:
    it = await bench(start)
    it.link.slowClose = True
    answer = await it.stack.ask(b"DELETE", b"/mcp", None, [it.named])
    assert answer.status == 204
    it.link.finishClose()


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_anOpenStreamOrARunningCallIsUse(start: Start) -> None:
    it = await bench(start)
    get = await it.get()
    it.stack.pass_(1900)
    await it.stack.turns()
    while get.unread:
        assert await get.chunk() == HEARTBEAT
    get.reset()
    await get.ended
    await it.stack.until(lambda: it.session._streams == 0)
    client, sent = await it.call()
    it.stack.pass_(500)
    it.link.reply(sent)
    assertStream(await client.head())
    it.stack.pass_(1790)
    assert len(it.stack.shared.registry) == 1
    it.stack.pass_(20)
    assert len(it.stack.shared.registry) == 0
    assert it.link.closed
    # The last call's connection is idle, too.
    reached = [limit for limit in it.stack.observer.bounds if limit != "keep_alive"]
    assert reached == ["session_idle"]


# Clients that vanish, and readers that do not read.


@pytest.mark.acceptance(47)
@pytest_twisted.ensureDeferred
async def test_acceptance_47_aClientMayVanishAtAnyTime(start: Start) -> None:
    it = await bench(start)
    whole = it.stack.request(b"POST", b"/mcp", rpc("tools/call", 7), [it.named])
    for cut in range(0, len(whole), 5):
        client = await it.stack.connect()
        client.send(whole[:cut])
        await it.stack.turns(1)
        (client.reset if cut % 2 else client.close)()
        await client.ended
    for n in range(25):
        # Waiting for the head; with a stream; with the answer on its way; before its 202.
        client, sent = await it.call(n)
        client.reset()
        await client.ended
        it.link.reply(sent)
        client, sent = await it.call(n)
        it.link.push(notice())
        await client.head()
        (client.reset if n % 2 else client.close)()
        await client.ended
        it.link.push(notice())
        it.link.reply(sent)
        client, sent = await it.call(n)
        it.link.reply(sent)
        client.reset()
        await client.ended
        get = await it.get()
        get.reset()
        await get.ended
        client = await it.post(rpc("notifications/roots/list_changed"))
        client.reset()
        await client.ended
        client = await it.stack.send(b"POST", b"/mcp", hello())
        client.reset()
        await client.ended
    await it.stack.until(lambda: not it.stack.connections)
    it.stack.pass_(61)
    assert it.session.record.id.encode() == it.named[1]
    assert it.session.running == 0
    assert it.session._streams == 0
    it.server.answers = True
    assert (await it.ask(rpc("ping", 7))).status == 200
    assert len(it.server.open) == 1


@pytest.mark.acceptance(30)
@pytest_twisted.ensureDeferred
async def test_acceptance_30_aDisconnectIsNoCancel(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call()
    client.reset()
    await client.ended
    await it.stack.until(lambda: not it.stack.connections)
    assert it.link.of("notifications/cancelled") == []
    it.link.reply(sent)
    assert "client_gone" in [event.why for event in it.stack.observer.of(MessageDropped)]
    assert len(it.stack.observer.of(CallAnswered)) == 1


async def _block(it: Bench, client: RawClient, size: int = 60_000) -> None:
    """Push notices until the gateway sees that the client does not read."""
    client.pause()
    big = notice("x" * size)
    (stream,) = it.session.live.router.streams[-1:]  # type: ignore[attr-defined]
    for _ in range(400):
        it.link.push(big)
        await it.stack.turns(1)
        if stream.stream._blockedSince is not None:
            return
    raise AssertionError("the system's buffers have no end")


@pytest.mark.acceptance(77, 13)
@pytest_twisted.ensureDeferred
async def test_acceptance_77_13_aSlowReaderIsBoundedAndCut(start: Start) -> None:
    it = await bench(start)
    slow = await it.get()
    await _block(it, slow)
    # Only a source that feeds that one stream is held.
    assert it.link.held == [None]
    for _ in range(10):
        it.link.push(notice("x" * 60_000))
    (channel,) = it.session.live.router.streams  # type: ignore[attr-defined]
    assert channel.stream._held <= 256 * 1024 + 70_000
    dropped = it.stack.observer.of(MessageDropped)
    assert [event.why for event in dropped].count("undeliverable") > 0
    assert "max_stream_bytes" in it.stack.observer.bounds
    # Another call is not held with it.
    client, sent = await it.call()
    assert it.link.held == []
    it.link.reply(sent)
    assertJSON(await client.response())
    it.stack.pass_(29)
    assert "reader_blocked" not in it.stack.observer.bounds
    it.stack.pass_(2)
    assert "reader_blocked" in it.stack.observer.bounds
    slow.resume()
    await slow.ended
    assert it.session._streams == 0


@pytest.mark.acceptance(77)
@pytest_twisted.ensureDeferred
async def test_acceptance_77_aReaderThatReadsAgainGoesOn(start: Start) -> None:
    it = await bench(start)
    slow = await it.get()
    await _block(it, slow)
    pushed = len(it.link.held)
    assert pushed == 1
    it.link.push(notice("last"))
    slow.resume()
    data = None
    while data != "last":
        data = (await slow.message())["params"]["data"]
    assert it.link.held == []
    it.stack.pass_(31)
    assert it.stack.observer.bounds == []
    it.link.push(notice("alive"))
    while True:
        chunk = await slow.chunk()
        assert chunk is not None
        if chunk != HEARTBEAT:
            break
    assert b"alive" in chunk


@pytest.mark.acceptance(77)
@pytest_twisted.ensureDeferred
async def test_acceptance_77_answersHaveABudgetOfTheirOwn(start: Start) -> None:
    it = await bench(start, limits=Limits(max_answer=200_000, max_stream_bytes=1000))
    client, sent = await it.call()
    it.link.push(notice())
    await client.head()
    client.pause()
    (target,) = [call.target for call in it.session.live.router.calls.values()]  # type: ignore[attr-defined]
    stream = target._channel.stream
    for _ in range(400):
        it.link.push(notice("x" * 60_000))
        await it.stack.turns(1)
        if stream._blockedSince is not None:
            break
    it.link.push(notice("y" * 2000))
    it.link.push(notice("dropped"))
    it.link.reply(sent, b'"' + b"z" * 100_000 + b'"')
    assert "max_stream_bytes" in it.stack.observer.bounds
    client.resume()
    last: Any = None
    while (event := await client.event()) is not None:
        last = json.loads(event.data or b"null")
        assert last.get("params", {}).get("data") != "dropped"
    assert len(last["result"]) == 100_000


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_atItsAbsoluteEndARunningCallCanFinish(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=Limits(session_absolute=100.0))
    it = Bench(stack, server, await stack.open(sampling={}))
    server.answers = False
    client, sent = await it.call()
    it.link.push(b'{"jsonrpc":"2.0","id":"s-1","method":"sampling/createMessage","params":{}}')
    await client.head()
    asked = await client.message()
    stack.pass_(101)
    # Nothing new begins; what the call waits for comes through.
    assert (await it.ask(rpc("tools/list", 8))).status == 404
    assert (await stack.ask(b"GET", b"/mcp", None, [it.named, EVENTS])).status == 404
    body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {}}).encode()
    assert (await it.ask(body)).status == 202
    assert [response.id for response in it.link.of("")] == [b'"s-1"']
    it.link.reply(sent)
    assert (await client.message())["id"] == 7
    stack.pass_(2)
    assert (await it.ask(rpc("notifications/roots/list_changed"))).status == 404
    assert len(stack.shared.registry) == 0


@pytest.mark.acceptance(76)
@pytest_twisted.ensureDeferred
async def test_acceptance_76_aQuietSessionKeepsNothingTooLong(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=Limits(logged_for=10.0))
    it = Bench(stack, server, await stack.open(revision="2025-11-25"))
    assert (await it.ask(rpc("tools/list", 8))).status == 200
    relay = it.session.live
    assert isinstance(relay, Relay) and relay.events is not None
    assert len(relay.events) == 1
    stack.pass_(12)
    assert len(relay.events) == 0
