"""Streamable HTTP straight through to an HTTP server in memory: ids are mapped, nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from raw import AnsweringServer, RawClient, Response, Stack, Start, hello, rpc
from raw import start as start
from twisted.internet.defer import Deferred

from gateway.links.interfaces import EventMark, ListenRefused, Outcome, Reason
from gateway.observe.observer import MessageDropped, SessionEnded
from gateway.testing.scripted import ScriptedHTTPLink, Sent
from gateway.wire.envelope import decode


def notice(text: str = "x") -> bytes:
    return rpc("notifications/message", level="info", data=text)


class Bench:
    """One session with one HTTP server that answers when the test says so."""

    def __init__(self, stack: Stack, server: AnsweringServer, session: bytes | None) -> None:
        self.stack = stack
        self.server = server
        self.named = [] if session is None else [(b"Mcp-Session-Id", session)]

    @property
    def link(self) -> ScriptedHTTPLink:
        link = self.server.newest
        assert isinstance(link, ScriptedHTTPLink)
        return link

    async def ask(self, body: bytes, *headers: tuple[bytes, bytes]) -> Response:
        return await self.stack.ask(b"POST", b"/mcp", body, [*self.named, *headers])

    async def call(self, id: object = 7, **params: object) -> tuple[RawClient, Sent]:
        """A call, and what the server got of it."""
        before = sum(len(link.requests) for link in self.server.links)
        body = rpc("tools/call", id, **params)
        client = await self.stack.send(b"POST", b"/mcp", body, self.named)
        await self.stack.until(
            lambda: sum(len(link.requests) for link in self.server.links) > before
        )
        return client, self.link.requests[-1]

    async def get(self, *headers: tuple[bytes, bytes]) -> RawClient:
        client = await self.stack.send(b"GET", b"/mcp", None, [*self.named, *headers])
        head = await client.head()
        assert (head.status, head.header(b"content-type")) == (200, b"text/event-stream"), head
        return client

    async def refusedGet(self, *headers: tuple[bytes, bytes]) -> Response:
        return await self.stack.ask(b"GET", b"/mcp", None, [*self.named, *headers])


QUIET = b'{"protocolVersion":"","capabilities":{},"serverInfo":{"name":"s","version":"1"}}'
"""The result of a server that promises no `list_changed`, so that a recovery tells nothing."""


async def bench(start: Start, revision: str = "2025-06-18") -> Bench:
    server = AnsweringServer("one", http=True, result=QUIET)
    stack = await start({"one": server})
    session = await stack.open(revision=revision)
    server.answers = False
    return Bench(stack, server, session)


@pytest_twisted.ensureDeferred
async def test_idsAreMappedAndNothingElse(start: Start) -> None:
    it = await bench(start)
    params = b'{"z":1.10,"a":{"\\u0061":"\\ud800"},"_meta":{"x":{}}}'
    body = b'{"jsonrpc":"2.0","id":1.0,"extra":7,"method":"tools/call","params":' + params + b"}"
    clients, sent = [], []
    for n in range(2):
        clients.append(await it.stack.send(b"POST", b"/mcp", body, it.named))
        await it.stack.until(lambda n=n: len(it.link.requests) > n)
        sent.append(it.link.requests[-1])
        assert bytes(sent[n].message.fields["params"]) == params
        assert bytes(sent[n].message.fields["extra"]) == b"7"
    assert sent[0].id != sent[1].id
    it.link.reply(sent[1], b"2")
    it.link.reply(sent[0], b"1")
    for n, client in enumerate(clients, 1):
        answer = await client.response()
        assert answer.body == b'{"jsonrpc":"2.0","id":1.0,"result":%d}' % n


@pytest.mark.acceptance(73)
@pytest_twisted.ensureDeferred
async def test_acceptance_73_theServersSessionIdStaysInside(start: Start) -> None:
    it = await bench(start)
    it.server.answers = True
    opened = await it.stack.ask(b"POST", b"/mcp", hello())
    assert len(opened.values(b"mcp-session-id")) == 1
    assert len(opened.header(b"mcp-session-id") or b"") == 43
    assert (await it.ask(rpc("ping", 1))).header(b"mcp-session-id") is None


@pytest_twisted.ensureDeferred
async def test_eachMessageGoesWhereTheServerPutIt(start: Start) -> None:
    it = await bench(start)
    get = await it.get()
    (origin,) = it.link.listening
    one, sentOne = await it.call(1)
    two, sentTwo = await it.call(2)
    it.link.push(notice("one"), sentOne.call)
    it.link.push(notice("get"), origin)
    it.link.push(notice("two"), sentTwo.call)
    it.link.push(rpc("notifications/tools/list_changed"), sentOne.call)
    assert (await get.message())["params"]["data"] == "get"
    for client, sent, texts in ((one, sentOne, ["one", None]), (two, sentTwo, ["two"])):
        await client.head()
        for text in texts:
            assert (await client.message()).get("params", {}).get("data") == text
        it.link.reply(sent, b'"final"')
        assert (await client.message())["result"] == "final"
        assert await client.event() is None
    assert get.unread == b""


@pytest_twisted.ensureDeferred
async def test_eventIdsAndRetriesPassThrough(start: Start) -> None:
    it = await bench(start, "2025-11-25")
    client, sent = await it.call()
    # It is the server that primes, or does not.
    await it.stack.turns()
    assert client.unread == b""
    it.link.mark(sent.call, EventMark(b"up-1", b"1500"))
    await client.head()
    it.link.push(notice(), sent.call, EventMark(b"up-2"))
    it.link.reply(sent, b"1", EventMark(b"up-3"))
    got = [await client.event() for _ in range(3)]
    assert [(e.id, e.retry, bool(e.data)) for e in got if e is not None] == [
        (b"up-1", b"1500", False),
        (b"up-2", None, True),
        (b"up-3", None, True),
    ]
    get = await it.get()
    (origin,) = it.link.listening
    it.link.push(notice(), origin, EventMark(b"up-9"))
    event = await get.event()
    assert event is not None and event.id == b"up-9"


@pytest_twisted.ensureDeferred
async def test_aGETIsTheServersGET(start: Start) -> None:
    it = await bench(start)
    get = await it.get((b"Last-Event-ID", b"up-7"))
    ((origin, last),) = it.link.listened
    assert last == b"up-7"
    # Its end is the other's, both ways.
    it.link.end(origin)
    assert await get.event() is None
    again = await it.get()
    (origin,) = it.link.listening
    again.reset()
    await again.ended
    await it.stack.until(lambda: not it.link.listening)
    assert origin in it.link.cancelled
    it.link.refusesListen = 405
    refused = await it.refusedGet()
    assert (refused.status, refused.header(b"allow")) == (405, b"POST, DELETE, OPTIONS")
    assert refused.json["error"]["code"] == -32000
    it.link.refusesListen = 500
    assert (await it.refusedGet()).status == 405


@pytest.mark.acceptance(38)
@pytest_twisted.ensureDeferred
async def test_acceptance_38_aFifthStreamEndsTheOldestThereToo(start: Start) -> None:
    it = await bench(start)
    streams = [await it.get() for _ in range(5)]
    assert await streams[0].event() is None
    await it.stack.until(lambda: len(it.link.listening) == 4)
    for n, origin in enumerate(it.link.listening):
        it.link.push(notice(str(n)), origin)
    for n, stream in enumerate(streams[1:]):
        assert (await stream.message())["params"]["data"] == str(n)


@pytest.mark.acceptance(64)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_aLostSessionIsMadeAgainOnce(start: Start) -> None:
    it = await bench(start)
    waiting = [await it.call(n) for n in range(10)]
    first = it.link
    for _, sent in waiting:
        first.settle(sent, Reason.BAD_ANSWER, "no such session", status=404)
    await it.stack.turns()
    assert it.server.handshakes == 2
    second = it.link
    assert second is not first
    for sent in second.of("notifications/initialized"):
        second.accept(sent)
    await it.stack.until(lambda: len(second.of("tools/call")) == 10)
    for sent in second.of("tools/call"):
        second.reply(sent, b'"again"')
    for n, (client, _) in enumerate(waiting):
        answer = await client.response()
        assert (answer.json["id"], answer.json["result"]) == (n, "again")
    # Its client keeps its id.
    it.server.answers = True
    assert (await it.ask(rpc("ping", 99))).status == 200


async def _recover(it: Bench) -> ScriptedHTTPLink:
    """Let the server accept what it is told again."""
    await it.stack.turns()
    for sent in it.link.of("notifications/initialized"):
        it.link.accept(sent)
    await it.stack.turns()
    return it.link


@pytest_twisted.ensureDeferred
async def test_aServerThatWasAwayIsFoundAgainByTheNextCall(start: Start) -> None:
    """That it cannot be reached ends no session: it may come back, with or without its memory."""
    it = await bench(start)
    first = it.link
    client, sent = await it.call("away")
    away = Reason.UPSTREAM_UNREACHABLE
    first.settle(sent, away, "the server cannot be reached", Outcome.NOT_SENT)
    answer = await client.response()
    assert (answer.status, answer.json["id"]) == (200, "away")
    assert answer.json["error"]["data"] == {"reason": "upstream_unreachable"}
    assert (it.server.handshakes, len(it.stack.shared.registry)) == (1, 1)
    client, sent = await it.call("back")
    first.settle(sent, status=404)
    second = await _recover(it)
    assert second is not first
    second.reply(second.last("tools/call"), b'"again"')
    assert (await client.response()).json == {"jsonrpc": "2.0", "id": "back", "result": "again"}


@pytest_twisted.ensureDeferred
async def test_aServerThatKeepsNoSessionsAnyMoreIsServedOn(start: Start) -> None:
    """Its new handshake brought no session id; the client's own is as good as before."""
    it = await bench(start)
    client, sent = await it.call("x")
    it.server.sessionless = True
    it.link.settle(sent, status=404)
    link = await _recover(it)
    assert link.sessionless
    link.reply(link.last("tools/call"), b'"again"')
    assert (await client.response()).json["result"] == "again"
    it.server.answers = True
    assert (await it.ask(rpc("tools/call", 8, n=1))).json["result"] == {"n": 1}
    assert it.server.handshakes == 2
    # Who comes now gets no session, and disturbs nobody who has one.
    opened = await it.stack.ask(b"POST", b"/mcp", hello())
    assert (opened.status, opened.header(b"mcp-session-id")) == (200, None)
    assert (await it.ask(rpc("tools/call", 9, n=2))).json["result"] == {"n": 2}
    assert (await it.stack.ask(b"DELETE", b"/mcp", None, it.named)).status == 204


@pytest.mark.acceptance(27)
@pytest_twisted.ensureDeferred
async def test_acceptance_27_batchesAreRefusedOrServedHereToo(start: Start) -> None:
    it = await bench(start)
    call, told = rpc("tools/call", 1, n=1), rpc("notifications/roots/list_changed")
    for body in (b"[" + call + b"]", b"[" + call + b"," + told + b"]", b"[]"):
        refused = await it.ask(body)
        assert (refused.status, refused.json["error"]["code"]) == (400, -32600)
        assert "id" not in refused.json
    assert it.link.of("tools/call") == it.link.of("notifications/roots/list_changed") == []
    it.server.answers = True
    older = await it.stack.open(revision="2025-03-26")
    served = await it.stack.ask(
        b"POST", b"/mcp", b"[" + call + b"," + told + b"]", [(b"Mcp-Session-Id", older)]
    )
    assert (served.status, served.json) == (
        200,
        [{"jsonrpc": "2.0", "id": 1, "result": {"n": 1}}],
    )
    # One by one: what the server gets is no batch.
    assert len(it.link.of("tools/call")) == len(it.link.of("notifications/roots/list_changed")) == 1


@pytest.mark.acceptance(65, 35)
@pytest_twisted.ensureDeferred
async def test_acceptance_65_35_aSecond404IsTheOne404(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call("x")
    it.link.settle(sent, status=404)
    link = await _recover(it)
    (again,) = link.of("tools/call")
    link.settle(again, status=404)
    answer = await client.response()
    assert answer.status == 404
    assert answer.body == (
        b'{"jsonrpc":"2.0","id":"x","error":{"code":-32001,"message":"Session not found"}}'
    )
    assert it.server.handshakes == 2
    assert len(it.stack.shared.registry) == 0
    gone = await it.ask(rpc("ping", 7))
    assert (gone.status, gone.json["error"]["code"]) == (404, -32001)


@pytest.mark.acceptance(65)
@pytest_twisted.ensureDeferred
async def test_acceptance_65_aServerThatCannotBeMadeAgain(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call("x")
    it.server.failNext(Reason.UPSTREAM_UNREACHABLE, "it is gone")
    it.link.settle(sent, status=404)
    answer = await client.response()
    assert (answer.status, answer.json["error"]["code"]) == (404, -32001)
    (ended,) = it.stack.observer.of(SessionEnded)
    assert ended.reason == "lost"


@pytest.mark.acceptance(65)
@pytest_twisted.ensureDeferred
async def test_acceptance_65_aGETOfALostSession(start: Start) -> None:
    it = await bench(start)
    first = it.link
    first.refusesListen = 404
    asking = await it.stack.send(b"GET", b"/mcp", None, it.named)
    await it.stack.until(lambda: it.server.handshakes == 2)
    await _recover(it)
    head = await asking.head()
    assert head.status == 200
    assert len(it.link.listening) == 1
    # A stream of the lost session cannot be resumed on another.
    asking.reset()
    await asking.ended
    await it.stack.until(lambda: not it.link.listening)
    it.link.refusesListen = 404
    refused = await it.refusedGet((b"Last-Event-ID", b"up-1"))
    assert refused.status == 405


@pytest.mark.acceptance(65)
@pytest_twisted.ensureDeferred
async def test_acceptance_65_aGETThatIsLostTwiceIs404(start: Start) -> None:
    it = await bench(start)
    it.link.refusesListen = it.server.refusesListen = 404
    asking = await it.stack.send(b"GET", b"/mcp", None, it.named)
    await it.stack.until(lambda: it.server.handshakes == 2)
    await _recover(it)
    answer = await asking.response()
    assert (answer.status, answer.json["error"]["code"]) == (404, -32001)
    assert it.server.handshakes == 2
    assert len(it.stack.shared.registry) == 0


@pytest_twisted.ensureDeferred
async def test_aLostSessionOnAnOpenStreamIsAnErrorThere(start: Start) -> None:
    it = await bench(start)
    client, sent = await it.call("x")
    it.link.push(notice(), sent.call)
    await client.head()
    await client.message()
    it.link.settle(sent, status=404)
    link = await _recover(it)
    (again,) = link.of("tools/call")
    link.settle(again, status=404)
    told = await client.message()
    assert (told["id"], told["error"]["data"]["reason"]) == ("x", "server_exited")
    assert await client.event() is None


@pytest.mark.acceptance(64)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_aStreamOfTheLostSessionIsOpenAsLongAsItsClientReads(
    start: Start,
) -> None:
    it = await bench(start)
    get = await it.get()
    first = it.link
    (origin,) = first.listening
    client, sent = await it.call("x")
    first.settle(sent, status=404)
    second = await _recover(it)
    assert second is not first
    first.push(notice("still"), origin)
    assert (await get.message())["params"]["data"] == "still"
    assert first.alive
    second.reply(second.last("tools/call"))
    await client.response()
    get.reset()
    await get.ended
    await it.stack.until(lambda: first.closed)
    assert first.cancelled == [origin] and not second.cancelled


@pytest_twisted.ensureDeferred
async def test_aStreamThatIsOpenedWhileTheSessionIsFoundLost(start: Start) -> None:
    it = await bench(start)
    first = it.link
    opening: Deferred[None] = Deferred()
    first.listen = lambda *_: opening  # type: ignore[method-assign]
    asking = await it.stack.send(b"GET", b"/mcp", None, it.named)
    client, sent = await it.call("x")
    first.settle(sent, status=404)
    second = await _recover(it)
    assert first.alive, "a stream is being opened on it"
    opening.errback(ListenRefused(404))
    assert (await asking.head()).status == 200
    assert len(second.listening) == 1 and first.closed
    second.reply(second.last("tools/call"))
    await client.response()
    assert it.server.handshakes == 2


@pytest.mark.acceptance(28)
@pytest_twisted.ensureDeferred
async def test_acceptance_28_202OnceTheServerTookItOrAfterASecond(start: Start) -> None:
    it = await bench(start)
    body = rpc("notifications/roots/list_changed")
    client = await it.stack.send(b"POST", b"/mcp", body, it.named)
    await it.stack.until(lambda: it.link.of("notifications/roots/list_changed"))
    await it.stack.turns()
    assert client.unread == b""
    it.link.accept(it.link.last("notifications/roots/list_changed"))
    answer = await client.response()
    assert (answer.status, answer.body) == (202, b"")
    slow = await it.stack.send(b"POST", b"/mcp", body, it.named)
    await it.stack.until(lambda: len(it.link.of("notifications/roots/list_changed")) == 2)
    it.stack.pass_(0.9)
    await it.stack.turns()
    assert slow.unread == b""
    it.stack.pass_(0.2)
    assert (await slow.response()).status == 202
    assert it.stack.observer.bounds == ["queue_wait"]
    it.link.full = True
    assert (await it.ask(body)).status == 503


@pytest.mark.acceptance(39)
@pytest_twisted.ensureDeferred
async def test_acceptance_39_delete(start: Start) -> None:
    it = await bench(start)
    get = await it.get()
    link = it.link
    assert (await it.stack.ask(b"DELETE", b"/mcp", None, it.named)).status == 204
    assert link.closed
    assert await get.event() is None
    assert (await it.stack.ask(b"DELETE", b"/mcp", None, it.named)).status == 404


@pytest_twisted.ensureDeferred
async def test_aFailedHandshakeIsTheServersOwnError(start: Start) -> None:
    server = AnsweringServer("one", http=True)
    stack = await start({"one": server})
    error = b'{"jsonrpc":"2.0","id":0,"error":{"code":-32602,"message":"no","data":{"x":1.0}}}'
    own = decode(error)
    assert not isinstance(own, list)
    server.failNext(Reason.BAD_ANSWER, "refused", own, 400)
    answer = await stack.ask(b"POST", b"/mcp", hello(id="x"))
    assert answer.status == 200
    assert answer.header(b"mcp-session-id") is None
    assert answer.body == error.replace(b'"id":0', b'"id":"x"')


# Servers without sessions.


async def sessionless(start: Start) -> Bench:
    server = AnsweringServer("one", http=True, sessionless=True)
    stack = await start({"one": server})
    return Bench(stack, server, None)


@pytest_twisted.ensureDeferred
async def test_aServerWithoutSessionsGivesNoneAndNothingIsStored(start: Start) -> None:
    it = await sessionless(start)
    opened = await it.ask(hello())
    assert opened.status == 200
    assert opened.header(b"mcp-session-id") is None
    assert len(it.stack.shared.registry) == 0
    for version in ([], [(b"MCP-Protocol-Version", b"2025-06-18")]):
        answer = await it.ask(rpc("tools/call", "x", n=1), *version)
        assert (answer.status, answer.json["id"], answer.json["result"]) == (200, "x", {"n": 1})
        assert answer.header(b"mcp-session-id") is None
        told = await it.ask(rpc("notifications/initialized"), *version)
        assert (told.status, told.body) == (202, b"")
    assert len(it.stack.shared.registry) == 0
    for method in (b"GET", b"DELETE"):
        refused = await it.stack.ask(method, b"/mcp")
        assert (refused.status, refused.header(b"allow")) == (405, b"POST, OPTIONS")
    for method, body in ((b"GET", None), (b"DELETE", None), (b"POST", rpc("ping", 7))):
        gone = await it.stack.ask(method, b"/mcp", body, [(b"Mcp-Session-Id", b"A" * 43)])
        assert (gone.status, gone.json["error"]["code"]) == (404, -32001)


@pytest_twisted.ensureDeferred
async def test_itsRequestsAreServedWithoutAnInitializeToo(start: Start) -> None:
    it = await sessionless(start)
    for id in (1, "1"):
        answer = await it.ask(rpc("tools/call", id))
        assert (answer.status, answer.json["id"]) == (200, id)
    assert it.server.handshakes == 1
    bad: list[tuple[bytes, int, Any]] = [
        (b"{", -32700, None),
        (b"[" + rpc("ping", 1) + b"]", -32600, None),
        (b'{"jsonrpc":"2.0","id":1}', -32600, 1),
    ]
    for body, code, id_ in bad:
        refused = await it.ask(body)
        assert (refused.status, refused.json["error"]["code"]) == (400, code)
        assert refused.json.get("id") == id_
    unknown = await it.ask(rpc("ping", 1), (b"MCP-Protocol-Version", b"1999-01-01"))
    assert (unknown.status, unknown.json["error"]["code"]) == (400, -32000)


@pytest_twisted.ensureDeferred
async def test_itsFailuresAreAnswers(start: Start) -> None:
    it = await sessionless(start)
    it.server.failNext(Reason.UPSTREAM_UNREACHABLE, "it is not there")
    answer = await it.ask(rpc("tools/call", "x"))
    assert (answer.status, answer.json["id"]) == (200, "x")
    assert answer.json["error"]["data"]["reason"] == "upstream_unreachable"


@pytest_twisted.ensureDeferred
async def test_aServerThatKeepsSessionsAfterAll(start: Start) -> None:
    server = AnsweringServer("one", http=True)
    stack = await start({"one": server})
    # Nothing is known of it yet, so it is asked; what was opened for that is closed again.
    answer = await stack.ask(b"POST", b"/mcp", rpc("tools/call", "x"))
    assert (answer.status, answer.json["error"]["code"]) == (400, -32000)
    assert answer.json["id"] == "x"
    assert server.links[0].closed
    again = await stack.ask(b"POST", b"/mcp", rpc("tools/call", "x"))
    assert again.status == 400
    assert server.handshakes == 1


@pytest_twisted.ensureDeferred
async def test_twoClientsOfAServerWithoutSessionsNeverCross(start: Start) -> None:
    it = await sessionless(start)
    await it.ask(hello())
    await it.ask(rpc("ping", 0))
    it.server.answers = False
    waiting = []
    for n in range(5):
        client, sent = await it.call(1, n=n)
        waiting.append((client, sent))
    for _, sent in reversed(waiting):
        it.link.push(notice(sent.id.decode()), sent.call)
        it.link.reply(sent, sent.message.param("n") or b"")
    for n, (client, sent) in enumerate(waiting):
        await client.head()
        assert (await client.message())["params"]["data"] == sent.id.decode()
        assert await client.message() == {"jsonrpc": "2.0", "id": 1, "result": n}
        assert await client.event() is None


@pytest.mark.acceptance(47)
@pytest_twisted.ensureDeferred
async def test_acceptance_47_aClientMayVanishAtAnyTime(start: Start) -> None:
    it = await bench(start)
    for n in range(25):
        client, sent = await it.call(n)
        client.reset()
        await client.ended
        it.link.reply(sent)
        client, sent = await it.call(n)
        it.link.push(notice(), sent.call)
        await client.head()
        (client.reset if n % 2 else client.close)()
        await client.ended
        it.link.reply(sent)
        get = await it.get()
        (get.reset if n % 2 else get.close)()
        await get.ended
    await it.stack.until(lambda: not it.stack.connections)
    assert it.link.listening == []
    (session,) = it.stack.shared.registry
    assert (session.running, session._streams) == (0, 0)
    it.server.answers = True
    assert (await it.ask(rpc("ping", 7))).status == 200
    assert json.loads(it.link.hello.params)["protocolVersion"] == "2025-06-18"


@pytest_twisted.ensureDeferred
async def test_aJSONOnlyClientIsAnsweredWhenANumberedStreamIsClosed(start: Start) -> None:
    it = await bench(start, "2025-11-25")
    body = rpc("tools/call", 7)
    accept = [*it.named, (b"Accept", b"application/json")]
    client = await it.stack.send(b"POST", b"/mcp", body, accept)
    await it.stack.until(lambda: it.link.of("tools/call"))
    sent = it.link.last("tools/call")
    it.link.mark(sent.call, EventMark(b"up-1", b"500"))
    it.link.settle(sent, Reason.OUTCOME_UNKNOWN)
    answer = await client.response()
    assert (answer.status, answer.json["id"]) == (200, 7)
    assert answer.json["error"]["data"]["reason"] == "outcome_unknown"


@pytest_twisted.ensureDeferred
async def test_aCommonHandshakeHasTheHeadersOfWhoeverNeedsIt(start: Start) -> None:
    it = await sessionless(start)
    await it.ask(rpc("ping", 1), (b"X-Who", b"me"))
    await it.ask(rpc("ping", 2), (b"X-Who", b"you"))
    assert it.server.handshakes == 1
    assert (b"x-who", b"me") in it.link.context.headers
    for sent, who in zip(it.link.sent, (b"me", b"me", b"you"), strict=True):
        assert (b"x-who", who) in sent.context.headers


@pytest_twisted.ensureDeferred
async def test_noClientAnswersForAnotherOfAServerWithoutSessions(start: Start) -> None:
    it = await sessionless(start)
    await it.ask(rpc("ping", 0))
    it.server.answers = False
    _, sent = await it.call(1)
    it.link.push(b'{"jsonrpc":"2.0","id":"q","method":"elicitation/create"}', sent.call)
    refused = it.link.last("")
    assert refused.id == b'"q"' and b"-32601" in refused.message.encode()
    before = len(it.link.sent)
    for body in (
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        rpc("notifications/progress", progressToken=1, progress=1),
        rpc("notifications/cancelled", requestId=1),
    ):
        assert (await it.ask(body)).status == 202
    assert len(it.link.sent) == before
    assert [event.why for event in it.stack.observer.of(MessageDropped)] == [
        "stray_response",
        "unknown_token",
        "stray_cancel",
    ]
