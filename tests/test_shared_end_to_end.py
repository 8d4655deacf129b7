"""
One real child for many sessions: through the whole gateway, and in numbers.

Acceptance 25 is run on relays, which is where ids are: 200 sessions, each with the ids 1, 2, 3 …,
so that the same id is in flight up to 200 times at once. The slice here is 10,000 calls;
`pytest -m soak tests/test_shared_end_to_end.py` makes it a million.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from attrs import define, field
from faulty_upstream import FaultyUpstream
from live import Start, behind, faulty, live, upstream
from relay_support import HELLO, notify
from stdio_support import Observed, alive
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from gateway.clock import MonotonicClock
from gateway.config.servers import demoServer
from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll
from gateway.links.interfaces import EventMark
from gateway.links.process import Reaper
from gateway.observe.observer import MessageDropped
from gateway.relay.relay import Relay
from gateway.servers.shared import SharedServer
from gateway.servers.stdio import StdioServer
from gateway.sessions.registry import SessionRegistry
from gateway.sessions.store import MemoryStore
from gateway.settings import StdioSettings
from gateway.testing.scripted import message
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.envelope import Message

__all__ = ["live", "upstream"]

CONTEXT = CallContext("echo")

ECHO = r"""
import os, re
ids = re.compile(rb'"id":(\d+)').search
named = re.compile(rb'"token":("[^"]*")').search
HELLO = b'"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"e","version":"1"}'
rest = b""
while data := os.read(0, 65536):
    *lines, rest = (rest + data).split(b"\n")
    out = []
    # The last that came is answered first.
    for line in reversed(lines):
        id, token = ids(line), named(line)
        if id:
            result = b'"token":' + token[1] if token else HELLO
            out.append(b'{"jsonrpc":"2.0","id":%b,"result":{%b}}\n' % (id[1], result))
    answers = b"".join(out)
    while answers:
        answers = answers[os.write(1, answers):]
"""
"""A server that answers each call with its token; of those it reads at once the last one first."""


@define(eq=False)
class Session:
    """A session that calls with the ids 1, 2, 3 …, one after the other; its target, too."""

    number: int
    calls: int
    relay: Relay
    done: Deferred[None] = field(factory=Deferred)
    id: int = 0
    crossed: int = 0

    def next(self) -> None:
        if self.id == self.calls:
            self.done.callback(None)
            return
        self.id += 1
        asked = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"token":"%b"}}'
        self.relay.request(message(asked % (self.id, self._token)), self, True, CONTEXT)

    @property
    def _token(self) -> bytes:
        return b"%d-%d" % (self.number, self.id)

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        wanted = b'{"jsonrpc":"2.0","id":%d,"result":{"token":"%b"}}' % (self.id, self._token)
        self.crossed += message.encode() != wanted
        self.next()

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        self.crossed += 1
        return True

    def marked(self, mark: EventMark) -> None:
        """Has no ids."""

    def lost(self, id: bytes) -> None:
        self.crossed += 1

    def close(self) -> None:
        """Nothing is open."""


async def crossings(sessions: int, calls: int) -> tuple[int, int]:
    """Run so many sessions with so many calls each; returns how many crossed, how many ran."""
    observed, clock, limits = Observed(), MonotonicClock(reactor), Limits(eof_wait=0.5)
    reaper = Reaper(reactor)
    settings = StdioSettings(
        name="echo", command=sys.executable, args=("-I", "-S", "-c", ECHO), isolation="shared"
    )
    inner = StdioServer(settings, limits, reactor, clock, observed, reaper)
    server = SharedServer(inner, limits, clock, observed)
    registry = SessionRegistry(clock, limits, MemoryStore(), observed)
    all: list[Session] = []
    try:
        for number in range(sessions):
            session = await registry.create("echo", 1, ANONYMOUS, "streamable")
            relay = Relay(session, server, registry, AllowAll(), limits, clock, observed, CONTEXT)
            await ensureDeferred(relay.open(HELLO))
            session.opened(clock.seconds())
            assert relay.message(notify("notifications/initialized"), CONTEXT) is True
            all.append(Session(number, calls, relay))
        for one in all:
            one.next()
        finished = gatherResults([one.done for one in all])
        # An answer that went elsewhere is missing here.
        await finished.addTimeout(20 + sessions * calls / 1000, reactor)
        assert not observed.of(MessageDropped)
        return sum(one.crossed for one in all), sum(one.id for one in all)
    finally:
        await gatherResults([registry.end(session, "deleted") for session in list(registry)])
        await server.drain()
        await reaper.close()


@pytest.mark.acceptance(25)
@pytest_twisted.ensureDeferred
async def test_acceptance_25_no_answer_crosses_between_two_hundred_sessions() -> None:
    assert await crossings(200, 50) == (0, 10_000)


@pytest.mark.soak
@pytest.mark.acceptance(25)
@pytest_twisted.ensureDeferred
async def test_acceptance_25_nor_in_a_million_calls() -> None:
    calls = int(os.environ.get("GATEWAY_SOAK_CALLS", "1000000"))
    assert await crossings(200, calls // 200) == (0, calls // 200 * 200)


# Through the whole gateway.


@pytest_twisted.async_yield_fixture
async def started(live: Start) -> AsyncIterator[Any]:
    yield await live(faulty(isolation="shared"))


async def structured(gateway: Any, session: str, verb: str, **arguments: object) -> Any:
    answer = await gateway.call("faulty", session, verb, **arguments)
    return answer.message["result"]["structuredContent"]


@pytest_twisted.ensureDeferred
async def test_all_sessions_have_one_child_that_shook_hands_once(started: Any) -> None:
    """TestEveryClientHandshakeSucceedsAgainstStrictBackend"""
    sessions = await gatherResults([ensureDeferred(started.session("faulty")) for _ in range(5)])
    assert len(set(sessions)) == 5
    pids = {(await structured(started, session, "self"))["pid"] for session in sessions}
    assert len(pids) == 1
    seen = (await structured(started, sessions[0], "seen"))["messages"]
    methods = [message.get("method") for message in seen]
    assert methods.count("initialize") == methods.count("notifications/initialized") == 1
    assert seen[0]["params"]["capabilities"] == {}


@pytest.mark.parametrize("how", ["error", "not-object", "neither", "exit"])
@pytest_twisted.ensureDeferred
async def test_a_bad_handshake_fails_its_sessions_and_is_not_kept(live: Start, how: str) -> None:
    """TestMalformedInitializeReplyBecomesInternalError, TestFailedInitializeIsNotCached"""
    gateway = await live(faulty("--handshake", how, isolation="shared"))
    for _ in range(2):
        answer = await gateway.initialize("faulty")
        assert answer.status == 200
        assert "Mcp-Session-Id" not in answer.headers
        assert answer.message["id"] == "hello"
        assert answer.message["error"]["code"] == (-32602 if how == "error" else -32000)


@pytest_twisted.ensureDeferred
async def test_many_call_at_once_under_one_id(started: Any) -> None:
    """TestSessionlessConcurrentRequestsAreNotMixed"""
    sessions = [await started.session("faulty") for _ in range(10)]

    def asked(token: str) -> dict[str, object]:
        call = {"name": "echo", "arguments": {"token": token}}
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}

    for turn in range(5):
        answers = await gatherResults(
            [
                ensureDeferred(started.post("faulty", asked(f"{session}-{turn}"), session))
                for session in sessions
            ]
        )
        for session, answer in zip(sessions, answers, strict=True):
            result = answer.message["result"]
            assert result["structuredContent"] == {"token": f"{session}-{turn}"}


@pytest_twisted.ensureDeferred
async def test_a_session_that_ends_stops_its_calls_and_nobody_elses(started: Any) -> None:
    one, two = await started.session("faulty"), await started.session("faulty")
    hanging = ensureDeferred(started.call("faulty", one, "hang"))
    other = ensureDeferred(started.call("faulty", two, "sleep", seconds=0.3))
    await deferLater(reactor, 0.1, lambda: None)
    fields = {"Mcp-Session-Id": one}
    assert (await started.request("DELETE", "/servers/faulty/mcp", None, fields)).status < 300
    assert (await hanging).message["error"]["data"]["reason"] == "cancelled"
    assert "result" in (await other).message
    seen = (await structured(started, two, "seen"))["messages"]
    calls = {one["id"] for one in seen if one.get("params", {}).get("name") == "hang"}
    stopped = {
        one["params"]["requestId"] for one in seen if one.get("method") == "notifications/cancelled"
    }
    assert stopped == calls


@pytest_twisted.ensureDeferred
async def test_a_child_that_died_is_one_child_again(started: Any) -> None:
    sessions = [await started.session("faulty") for _ in range(4)]
    (pid,) = {(await structured(started, session, "self"))["pid"] for session in sessions}
    pending = [ensureDeferred(started.call("faulty", session, "hang")) for session in sessions[1:]]
    await deferLater(reactor, 0.1, lambda: None)
    assert (await started.call("faulty", sessions[0], "exit")).reason == "server_exited"
    for call in pending:
        assert (await call).reason == "server_exited"
    again = await gatherResults(
        [ensureDeferred(structured(started, session, "self")) for session in sessions]
    )
    assert len({one["pid"] for one in again}) == 1
    assert again[0]["pid"] != pid
    assert not alive(pid)


@pytest_twisted.ensureDeferred
async def test_nobody_is_asked_for_another(started: Any) -> None:
    """TestPostSSE_SamplingRequestNeverReachesClientAndBackendGetsError"""
    session = await started.session("faulty", sampling={})
    await started.session("faulty", sampling={})
    answer = await structured(started, session, "ask", method="sampling/createMessage")
    assert answer["error"]["code"] == -32601
    assert (await structured(started, session, "ask", method="ping"))["result"] == {}


@pytest_twisted.ensureDeferred
async def test_the_demo_can_be_shared(live: Start) -> None:
    gateway = await live(attrs.evolve(demoServer(), isolation="shared"))
    session = await gateway.session("demo")
    listed = await gateway.post(
        "demo", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, session
    )
    assert listed.message["result"]["tools"]


@pytest_twisted.ensureDeferred
async def test_a_session_over_http_is_shared_too(live: Start, upstream: FaultyUpstream) -> None:
    gateway = await live(behind(upstream.url, isolation="shared"))
    sessions = [await gateway.session("behind") for _ in range(3)]
    listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answers = [await gateway.post("behind", listed, session) for session in sessions]
    assert [one.message["id"] for one in answers] == [1, 1, 1]
    asked = [request.rpc for request in upstream.requests]
    assert asked.count("initialize") == asked.count("notifications/initialized") == 1
    assert asked.count("tools/list") == 3
