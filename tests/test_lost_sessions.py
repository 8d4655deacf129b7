"""
A whole front before an HTTP server that loses its sessions while calls are in flight.

The gateway's streams are its own here (`"proxy": "streamable"`, the SSE proxy, a shared session),
so it is the link that listens and resumes; see test_transparent_proxy for the other way.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from faulty_upstream import FaultyUpstream, Received
from raw import RawClient, Stack, Start, rpc
from raw import start as start
from test_http_sse_link import SSEUpstream
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import LoopingCall

from gateway.guard.limits import Limits
from gateway.links.interfaces import IServer
from gateway.observe.observer import BoundReached, LinkLost, LinkOpened, SessionRecovered
from gateway.servers.http import HTTPServer
from gateway.servers.shared import SharedServer
from gateway.settings import HTTPSettings


def note(text: str) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "method": "notifications/message",
        "params": {"level": "info", "data": text},
    }


def answer(request: Received, result: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request.message["id"], "result": result}


@define(eq=False)
class ForgetfulUpstream(FaultyUpstream):
    """
    Keeps sessions, with GET streams, until `forget`.

    Its calls wait until the test answers them; those of sessions it forgot are refused.
    gets, calls: what waits, in order. ran: how often each call was begun, by its token.
    """

    revision: str = "2025-06-18"
    known: set[str] = field(factory=set)
    sessions: int = 0
    gets: list[Received] = field(factory=list)
    calls: list[Received] = field(factory=list)
    ran: Counter[str] = field(factory=Counter)

    def usual(self, request: Received) -> None:
        if request.rpc == "initialize":
            self.sessions += 1
            self.session = f"session-{self.sessions}".encode()
            self.known.add(self.session.decode())
            super().usual(request)
        elif sessionOf(request) not in self.known:
            request.reply(404, type=None)
        elif request.method == b"GET":
            request.stream()
            self.gets.append(request)
        elif request.rpc == "tools/call":
            self.ran[request.message["params"]["token"]] += 1
            self.calls.append(request)
        else:
            super().usual(request)

    def forget(self) -> None:
        self.known.clear()

    def sent(self, method: str, session: str | None = None) -> list[Received]:
        """What was sent of an HTTP or JSON-RPC method."""
        return [
            request
            for request in self.requests
            if method in (request.method.decode(), request.rpc)
            and session in (None, sessionOf(request))
        ]


async def told(client: RawClient) -> Any:
    """The answer to a POST, be it JSON or the last event of a stream."""
    got = await client.response()
    assert got.status in (200, 404)
    if got.header(b"content-type") == b"application/json":
        return got.json
    lines = [line for line in got.body.split(b"\n") if line.startswith(b"data: {")]
    return json.loads(lines[-1][6:])


def sessionOf(request: Received) -> str:
    return (request.header(b"mcp-session-id") or b"").decode()


@define(eq=False)
class Front:
    """A stack before the server, with clients."""

    stack: Stack
    upstream: ForgetfulUpstream
    server: IServer
    _turning: LoopingCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        # What is due now is done in a turn of the reactor, as with a real clock.
        self._turning = LoopingCall(self.stack.clock.advance, 0)
        self._turning.start(0.001)

    async def resumed(self) -> Received:
        """Let the time pass until the link that waits opens its stream; the GET."""
        clock, before = self.stack.clock, len(self.upstream.sent("GET"))

        def waits() -> list[float]:
            its = [c for c in clock.getDelayedCalls() if c.func.__name__ == "_listen"]
            return [call.getTime() for call in its]

        await self.until(waits)
        clock.advance(min(waits()) - clock.seconds() + 0.001)
        await self.until(lambda: len(self.upstream.sent("GET")) > before)
        return self.upstream.sent("GET")[-1]

    async def open(self) -> Client:
        id = await self.stack.open()
        return Client(self, [(b"Mcp-Session-Id", id)])

    async def until(self, true: Any) -> None:
        await self.stack.until(true)

    async def close(self) -> None:
        for session in list(self.stack.shared.registry):
            await self.stack.shared.registry.end(session, "shutdown")
        await self.server.drain()
        await self.upstream.close()
        self._turning.stop()


@define(eq=False)
class Client:
    """A client over Streamable HTTP."""

    front: Front
    named: list[tuple[bytes, bytes]]

    async def get(self) -> RawClient:
        client = await self.front.stack.send(b"GET", b"/mcp", None, self.named)
        assert (await client.head()).status == 200
        return client

    async def ask(self, id: str) -> RawClient:
        body = rpc("tools/call", id, token=id)
        return await self.front.stack.send(b"POST", b"/mcp", body, self.named)

    async def call(self, id: str) -> tuple[RawClient, Received]:
        """A call, and what the server got of it."""
        upstream = self.front.upstream
        before = len(upstream.calls)
        client = await self.ask(id)
        await self.front.until(lambda: len(upstream.calls) > before)
        return client, upstream.calls[-1]


MakeFront = Callable[..., Awaitable[Front]]


@pytest_twisted.async_yield_fixture
async def front(start: Start) -> AsyncIterator[MakeFront]:
    """Makes a front, and ends it after the test."""
    fronts: list[Front] = []

    async def made(upstream: Any = None, **settings: Any) -> Front:
        upstream = ForgetfulUpstream() if upstream is None else upstream
        upstream.start(reactor)
        # The time of the gateway passes faster than a connection is made.
        stack = await start({}, default="up", limits=Limits(connect_timeout=1e6))
        configured = HTTPSettings(name="up", url=upstream.url, proxy="streamable", **settings)
        limits, clock, observer = stack.shared.limits, stack.clock, stack.observer
        server: IServer = HTTPServer(configured, limits, reactor, clock, observer)
        if configured.isolation == "shared":
            server = SharedServer(server, limits, clock, observer)
        stack.mount("up", server)
        fronts.append(Front(stack, upstream, server))
        return fronts[-1]

    yield made
    for one in fronts:
        await one.close()


@pytest.mark.acceptance(64)
@pytest.mark.parametrize("isolation", ["session", "shared"])
@pytest_twisted.ensureDeferred
async def test_acceptance_64_theOldLinksStreamNeverHarmsTheNewLink(
    front: MakeFront, isolation: Any
) -> None:
    it = await front(isolation=isolation)
    client = await it.open()
    listening = await client.get()
    upstream = it.upstream
    await it.until(lambda: len(upstream.gets) == 1)
    # A call runs when the session is lost, and is answered on the stream it has.
    staying, stays = await client.call("stays")
    stays.stream()
    stays.event(note("before"), id="s1", retry=10)
    assert (await staying.head()).status == 200
    assert (await staying.message())["params"]["data"] == "before"
    upstream.forget()
    asked = [await client.ask(f"c{n}") for n in range(10)]
    await it.until(lambda: len(upstream.calls) == 11)
    assert len(upstream.sent("initialize")) == 2
    # The old stream is cut. It was for nothing: there is no session to listen to.
    await it.until(lambda: len(upstream.gets) == 2)
    upstream.gets[0].cut()
    await it.stack.turns(20)
    it.stack.pass_(120.0)
    await it.stack.turns(20)
    assert len(upstream.sent("GET", "session-1")) == 1
    assert len(upstream.sent("GET", "session-2")) == 1
    if isolation == "session":
        upstream.gets[1].event(note("new"))
        assert (await listening.message())["params"]["data"] == "new"
    for sent in upstream.calls[1:]:
        assert sessionOf(sent) == "session-2"
        sent.result(sent.message["params"]["token"])
    for n, waiting in enumerate(asked):
        got = await told(waiting)
        assert (got["id"], got["result"]) == (f"c{n}", f"c{n}")
    stays.event(answer(stays, "late"))
    stays.end()
    assert (await staying.message())["result"] == "late"
    # Each ran once, and the client has its session still, on which a call is one call.
    again, sent = await client.call("again")
    sent.result("again")
    assert (await told(again))["result"] == "again"
    assert set(upstream.ran.values()) == {1}
    assert len(upstream.sent("initialize")) == 2
    assert len(upstream.sent("notifications/initialized")) == 2
    assert len(it.stack.observer.of(SessionRecovered)) == 1


@pytest.mark.acceptance(64)
@pytest.mark.parametrize("isolation", ["session", "shared"])
@pytest_twisted.ensureDeferred
async def test_acceptance_64_noLossIsToldTwice(front: MakeFront, isolation: Any) -> None:
    """Nothing runs on the old link, and its stream is refused while calls run on the new one."""
    it = await front(isolation=isolation)
    client = await it.open()
    upstream = it.upstream
    await it.until(lambda: len(upstream.gets) == 1)
    upstream.forget()
    # It is cut as the first call is refused, and may be asked for in the same breath.
    waiting, sent = await client.call("x")
    upstream.gets[0].cut()
    for _ in range(60):
        await it.stack.turns(3)
        it.stack.pass_(1.0)
    sent.result("x")
    assert (await told(waiting))["result"] == "x"
    lost = it.stack.observer.of(LinkLost)
    assert len(lost) == 1
    assert len(upstream.sent("initialize")) == 2 and upstream.ran == Counter(x=1)


@pytest.mark.acceptance(64)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_aLossThatOnlyTheStreamFinds(front: MakeFront) -> None:
    it = await front()
    client = await it.open()
    upstream = it.upstream
    await it.until(lambda: len(upstream.gets) == 1)
    waiting, sent = await client.call("stays")
    upstream.forget()
    upstream.gets[0].end()
    await it.resumed()
    await it.stack.turns(20)
    assert not it.stack.observer.of(LinkLost), "a call runs"
    sent.result("here")
    assert (await told(waiting))["result"] == "here"
    await it.until(lambda: it.stack.observer.of(LinkLost))
    again, sent = await client.call("next")
    assert sessionOf(sent) == "session-2"
    sent.result("there")
    assert (await told(again))["result"] == "there"
    assert len(upstream.sent("initialize")) == 2
    assert [type(e) for e in it.stack.observer.events if isinstance(e, (LinkOpened, LinkLost))] == [
        LinkOpened,
        LinkLost,
        LinkOpened,
    ]


@pytest.mark.acceptance(64, 70)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_70_aRestartCutsWhatRunsAndLosesTheSession(front: MakeFront) -> None:
    """What may have run is one error; what came after is one call on the new session."""
    it = await front()
    client = await it.open()
    upstream = it.upstream
    await it.until(lambda: len(upstream.gets) == 1)
    numbered, first = await client.call("numbered")
    first.stream()
    first.event(note("x"), id="n1", retry=500)
    plain, second = await client.call("plain")
    second.stream()
    second.event(note("x"))
    for one in (numbered, plain):
        assert (await one.head()).status == 200
        assert (await one.message())["params"]["data"] == "x"
    upstream.forget()
    for request in (upstream.gets[0], first, second):
        request.cut()
    assert (await plain.message())["error"]["data"]["reason"] == "outcome_unknown"
    # The numbered one may be resumed yet; the next call finds out that it cannot.
    after, sent = await client.call("after")
    lost = await numbered.message()
    assert lost["error"]["data"]["reason"] == "outcome_unknown"
    sent.result("after")
    assert (await told(after))["result"] == "after"
    it.stack.pass_(60.0)
    await it.stack.turns(20)
    assert len(upstream.sent("GET", "session-1")) == 1
    assert upstream.ran == Counter(numbered=1, plain=1, after=1)
    assert len(upstream.sent("initialize")) == 2


@pytest.mark.acceptance(70)
@pytest_twisted.ensureDeferred
async def test_acceptance_70_aCutStreamIsResumedAndTheClientSeesOneStream(front: MakeFront) -> None:
    it = await front()
    client = await it.open()
    upstream = it.upstream
    await it.until(lambda: len(upstream.gets) == 1)
    waiting, sent = await client.call("x")
    sent.stream()
    sent.event(note("1"), id="n1", retry=500)
    await waiting.head()
    get = sent
    for n in range(2, 12):
        assert (await waiting.message())["params"]["data"] == str(n - 1)
        get.cut()
        get = await it.resumed()
        assert get.header(b"last-event-id") == b"n%d" % (n - 1)
        get.event(note(str(n)), id=f"n{n}")
    get.event(answer(sent, "done"))
    await waiting.message()
    assert (await waiting.message())["result"] == "done"
    assert upstream.ran == Counter(x=1)
    assert not it.stack.observer.of(BoundReached)


@pytest.mark.acceptance(64)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_manySessionsShareOneThatIsMadeAgainOnce(front: MakeFront) -> None:
    it = await front(isolation="shared")
    clients = [await it.open() for _ in range(5)]
    upstream = it.upstream
    await it.until(lambda: len(upstream.gets) == 1)
    running, runs = await clients[0].call("runs")
    upstream.forget()
    asked = [await client.ask(f"c{n}") for n, client in enumerate(clients)]
    await it.until(lambda: len(upstream.calls) == 6)
    upstream.gets[0].cut()
    await it.stack.turns(20)
    it.stack.pass_(120.0)
    await it.stack.turns(20)
    for sent in upstream.calls[1:]:
        sent.result(sent.message["params"]["token"])
    for n, waiting in enumerate(asked):
        assert (await told(waiting))["result"] == f"c{n}"
    runs.result("still")
    assert (await told(running))["result"] == "still"
    assert set(upstream.ran.values()) == {1}
    assert len(upstream.sent("initialize")) == 2
    assert len(upstream.sent("GET", "session-1")) == 1


@pytest.mark.acceptance(64)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_theSameOverHTTPAndSSE(front: MakeFront) -> None:
    it = await front()
    client, endpoint = await it.stack.openSSE()
    upstream, stack = it.upstream, it.stack

    async def post(body: bytes) -> None:
        assert (await stack.ask(b"POST", endpoint, body)).status == 202

    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}}
    await post(rpc("initialize", "hello", **params))
    assert (await client.message())["id"] == "hello"
    await post(rpc("notifications/initialized"))
    await it.until(lambda: len(upstream.gets) == 1)
    await post(rpc("tools/call", "stays", token="stays"))
    await it.until(lambda: len(upstream.calls) == 1)
    upstream.forget()
    for n in range(5):
        await post(rpc("tools/call", n, token=f"c{n}"))
    await it.until(lambda: len(upstream.calls) == 6)
    await it.until(lambda: len(upstream.gets) == 2)
    upstream.gets[0].cut()
    await stack.turns(20)
    stack.pass_(120.0)
    await stack.turns(20)
    for sent in upstream.calls:
        sent.result(sent.message["params"]["token"])
    got = [await client.message() for _ in range(6)]
    assert {one["id"]: one["result"] for one in got} == {
        "stays": "stays",
        **{n: f"c{n}" for n in range(5)},
    }
    assert set(upstream.ran.values()) == {1}
    assert len(upstream.sent("initialize")) == 2
    assert len(upstream.sent("GET", "session-1")) == 1


@pytest.mark.acceptance(64)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_anOldServersStreamNeverHarmsTheNewLink(front: MakeFront) -> None:
    """Over HTTP+SSE the end of the stream is the loss of the link, be it the old one."""
    upstream = SSEUpstream()
    stack = (await front(upstream, transport="sse")).stack
    named = [(b"Mcp-Session-Id", await stack.open())]
    old = upstream.stream
    calls: list[Received] = []

    def takes(request: Received) -> bool:
        if request.rpc != "tools/call":
            return False
        if request.message["params"]["token"] == "lost" and upstream.stream is old:
            request.reply(404, type=None)
        else:
            request.reply(202, type=None)
            calls.append(request)
        return True

    upstream.takes = takes  # type: ignore[method-assign]
    stays = await stack.send(b"POST", b"/mcp", rpc("tools/call", 1, token="stays"), named)
    await stack.until(lambda: len(calls) == 1)
    again = await stack.send(b"POST", b"/mcp", rpc("tools/call", 2, token="lost"), named)
    await stack.until(lambda: len(calls) == 2)
    assert upstream.stream is not old
    old.cut()
    failed = await told(stays)
    assert failed["error"]["data"]["reason"] == "server_exited"
    await stack.turns(20)
    upstream.says(answer(calls[1], "again"))
    got = await told(again)
    assert (got["id"], got["result"]) == (2, "again")
    assert sum(request.rpc == "initialize" for request in upstream.requests) == 2


@pytest.mark.acceptance(64, 65)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("isolation", ["session", "shared"])
@pytest_twisted.ensureDeferred
async def test_acceptance_64_whateverIsLostWhenEachCallEndsOnceAndRanOnceAtMost(
    front: MakeFront, seed: int, isolation: Any
) -> None:
    """A server that loses sessions, cuts streams, and answers, in any order."""
    dice = random.Random(seed)
    it = await front(isolation=isolation)
    upstream, stack = it.upstream, it.stack
    clients = [await it.open() for _ in range(2)]
    waiting: dict[str, RawClient] = {}
    unanswered: list[Received] = []
    numbered: dict[bytes, Received] = {}
    seen = 0

    def gives(sent: Received, on: Received) -> None:
        if on.connection not in upstream.connections:
            return
        if on is not sent or sent in numbered.values():
            on.event(answer(sent, sent.message["params"]["token"]))
            on.end()
        else:
            on.result(sent.message["params"]["token"])

    for step in range(40):
        unanswered += upstream.calls[seen:]
        seen = len(upstream.calls)
        what = dice.choice([*["ask"] * 3, "answer", "prime", "cut", "cut get", "lose", "pass"])
        if what == "ask":
            waiting[f"t{step}"] = await dice.choice(clients).ask(f"t{step}")
        elif what == "answer" and unanswered:
            sent = unanswered.pop(dice.randrange(len(unanswered)))
            gives(sent, sent)
        elif what == "prime" and unanswered:
            sent = dice.choice(unanswered)
            if sent not in numbered.values():
                numbered[b"e%d" % step] = sent
                sent.stream()
                sent.event(None, id=f"e{step}", retry=100)
        elif what == "cut" and unanswered:
            unanswered.pop(dice.randrange(len(unanswered))).cut()
        elif what == "cut get" and upstream.gets:
            upstream.gets.pop(dice.randrange(len(upstream.gets))).cut()
        elif what == "lose" and dice.random() < 0.4:
            upstream.forget()
        elif what == "pass":
            stack.pass_(dice.choice([0.1, 1.0, 5.0]))
        await stack.turns(dice.randrange(12))
    # From now on all goes well, until nobody waits any more.
    answers = {token: ensureDeferred(told(client)) for token, client in waiting.items()}
    while not all(one.called for one in answers.values()):
        for sent in [*unanswered, *upstream.calls[seen:]]:
            gives(sent, sent)
        unanswered, seen = [], len(upstream.calls)
        for get in upstream.gets:
            last = numbered.get(get.header(b"last-event-id") or b"")
            if last is not None:
                gives(last, get)
        upstream.gets.clear()
        # Slowly: a connection is made in real time, and a call times out in the gateway's.
        stack.pass_(0.2)
        await stack.turns(20)
    outcomes: Counter[str] = Counter()
    for token, one in answers.items():
        got = await one
        assert got["id"] == token
        if "result" in got:
            assert got["result"] == token
            outcomes["result"] += 1
        else:
            outcomes[got["error"].get("data", {}).get("reason", got["error"]["message"])] += 1
    # Lost twice is the one 404; what may have run is told so.
    assert set(outcomes) <= {"result", "outcome_unknown", "server_exited", "Session not found"}
    assert set(upstream.ran.values()) <= {1}
    # It works as ever.
    last, sent = await (await it.open()).call("last")
    sent.result("last")
    assert (await told(last))["result"] == "last"
