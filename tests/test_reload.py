"""Another configuration while the gateway runs: what goes on, what ends, and what is refused."""

from __future__ import annotations

import collections
import gc
import json
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st
from listening import HOST, Front, request
from modern_support import LISTENING, ModernServer, answerOf, enveloped, posted
from raw import Recorder
from stdio_support import Observed
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from gateway.config import Configuration, ConfigurationError, GatewaySettings, Problem
from gateway.guard.limits import Limits
from gateway.observe.observer import (
    BoundReached,
    ConfigurationReloaded,
    MessageDropped,
    ReloadRefused,
)
from gateway.proxies.modern import ModernEndpoint
from gateway.reloading import FileWatch, Reloading
from gateway.service import State
from gateway.settings import HTTPSettings
from gateway.testing import MemoryClient, MemoryGateway, ScriptedServer
from gateway.testing.memory import Exchanged

CALL = "tools/call"
TOLD = {"jsonrpc": "2.0", "method": "notifications/x"}


def error(exchanged: Exchanged) -> tuple[int, int]:
    """The HTTP status and the code of a refusal."""
    return exchanged.status, exchanged.json()["error"]["code"]


def reason(exchanged: Exchanged) -> str:
    """`data.reason` of a call that failed."""
    return str(exchanged.json()["error"]["data"]["reason"])


class Bench:
    """A gateway in memory, and what it says of itself."""

    def __init__(self, *servers: ScriptedServer, **limits: float) -> None:
        self.observed = Observed()
        self.limits = Limits(**limits)  # type: ignore[arg-type]
        self.gateway = MemoryGateway(servers, self.limits, {"observer": self.observed})

    def open(self, server: str, **capabilities: object) -> MemoryClient:
        """A client with a session."""
        client = self.gateway.client(server)
        client.initialize(capabilities=capabilities)
        assert client.session is not None
        return client

    def reload(self, *servers: ScriptedServer, limits: Limits | None = None) -> None:
        """Reload; it is in force when this returns."""
        done: list[object] = []
        self.gateway.reload(servers, limits).addBoth(done.append)
        assert done == [None]

    def end(self) -> None:
        """Stop; nothing is left."""
        self.gateway.advance(60)
        assert self.gateway.stop().called
        assert not self.gateway.clock.getDelayedCalls()

    def reloaded(self) -> ConfigurationReloaded:
        """The newest event of a reload."""
        event: ConfigurationReloaded = self.observed.of(ConfigurationReloaded)[-1]
        return event


# What is the same goes on.


@pytest.mark.acceptance(109)
def test_acceptance_109_what_is_the_same_goes_on_with_its_sessions_streams_and_links() -> None:
    one = ScriptedServer("one")
    bench = Bench(one)
    client = bench.open("one")
    stream = client.get()
    asked = client.post(client.request(5, CALL))
    two = ScriptedServer("two")
    # The only server is the default; with a second one it is not. That is no change of its own.
    bench.reload(one, two)
    assert bench.reloaded() == ConfigurationReloaded(("two",), (), ())
    assert len(one.links) == 1 and one.open and not one.drained
    one.newest.reply(one.newest.last(CALL), b'{"is":1}')
    assert asked.json() == {"jsonrpc": "2.0", "id": 5, "result": {"is": 1}}
    one.newest.push(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
    assert len(stream.events()) == 1 and not stream.ended
    assert client.post(TOLD).status == 202
    bench.open("two")
    bench.reload(one, two)
    assert bench.reloaded() == ConfigurationReloaded((), (), ())
    assert one.handshakes == 1
    bench.end()


def test_the_default_may_be_another() -> None:
    one, two = ScriptedServer("one", default=True), ScriptedServer("two")
    bench = Bench(one, two)
    client = bench.gateway.client("one")
    client.path = "/mcp/mcp"
    client.initialize()
    assert one.handshakes == 1
    one.settings, two.settings = (
        attrs.evolve(server.settings, default=server is two) for server in (one, two)
    )
    bench.reload(one, two)
    assert bench.reloaded() == ConfigurationReloaded((), (), ())
    assert error(client.post(client.request(2, "ping"))) == (404, -32001)
    client.initialize()
    assert (one.handshakes, two.handshakes) == (1, 1)
    bench.end()


# What is changed or removed is retired.


@pytest.mark.acceptance(109)
def test_acceptance_109_a_changed_server_is_a_new_one_for_whoever_starts_over() -> None:
    old = ScriptedServer("one")
    bench = Bench(old)
    idle, busy = bench.open("one"), bench.open("one", sampling={})
    stream = idle.get()
    asked = busy.post(busy.request(5, CALL))
    link = old.newest
    new = ScriptedServer("one", timeout=9.0)
    bench.reload(new)
    assert bench.reloaded() == ConfigurationReloaded((), ("one",), ())
    # Nothing ran in this session: it is over, and its stream says when to come again.
    assert stream.ended and stream.body == b"retry: 5000\n\n"
    assert error(idle.post(idle.request(2, "ping"))) == (404, -32001)
    idle.initialize()
    assert new.handshakes == 1
    # A call runs in this one: what belongs to it is taken, and nothing new.
    assert error(busy.post(busy.request(6, CALL))) == (404, -32001)
    assert error(busy.get()) == (404, -32001)
    link.push(b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}')
    (question,) = asked.events()
    assert busy.post({"jsonrpc": "2.0", "id": question["id"], "result": {}}).status == 202
    assert link.last("").message.id == b"1"
    link.reply(link.last(CALL), b'{"is":1}')
    assert asked.events()[1]["result"] == {"is": 1} and asked.ended
    assert not old.drained
    bench.gateway.advance(0.1)
    assert old.drained and not new.drained
    assert error(busy.post(TOLD)) == (404, -32001)
    assert idle.post(TOLD).status == 202
    assert (old.generation, new.generation) == (1, 2)
    bench.end()


@pytest.mark.acceptance(109)
def test_acceptance_109_a_removed_server_drains_and_is_unknown() -> None:
    one, two = ScriptedServer("one"), ScriptedServer("two")
    bench = Bench(one, two)
    client = bench.open("two")
    asked = client.post(client.request(5, CALL))
    bench.reload(one)
    assert bench.reloaded() == ConfigurationReloaded((), (), ("two",))
    # No new session; the one with a running call is there for that alone.
    assert error(bench.gateway.client("two").initialize()) == (404, -32000)
    assert error(bench.gateway.client("two").send("POST", enveloped("ping"))) == (404, -32000)
    assert client.post(TOLD).status == 202
    assert error(client.post(client.request(6, CALL))) == (404, -32001)
    link = two.newest
    link.reply(link.last(CALL))
    assert "result" in asked.json()
    bench.gateway.advance(0.1)
    assert two.drained and not one.drained
    assert error(client.post(TOLD)) == (404, -32000)
    assert client.post(TOLD).json()["error"]["message"] == "Unknown server"
    bench.end()


def test_what_is_removed_may_come_back_while_the_old_one_still_drains() -> None:
    one, two = ScriptedServer("one"), ScriptedServer("two")
    bench = Bench(one, two)
    client = bench.open("two")
    asked = client.post(client.request(5, CALL))
    bench.reload(one)
    again = ScriptedServer("two")
    bench.reload(one, again)
    bench.open("two")
    assert again.handshakes == 1
    two.newest.reply(two.newest.last(CALL))
    assert "result" in asked.json()
    bench.gateway.advance(0.1)
    assert two.drained
    bench.open("two")
    assert again.handshakes == 2
    bench.end()


def test_what_runs_too_long_is_told_so() -> None:
    old = ScriptedServer("one")
    bench = Bench(old, drain_grace=3.0)
    client = bench.open("one")
    asked = client.post(client.request(5, CALL))
    bench.reload(ScriptedServer("one", timeout=9.0))
    bench.gateway.clock.pump([0.1] * 29)
    assert not asked.started and not old.drained
    bench.gateway.clock.pump([0.1] * 2)
    assert reason(asked) == "shutting_down"
    assert old.drained
    assert BoundReached("drain_grace", "one") in bench.observed.events
    bench.end()


def test_a_handshake_that_runs_is_finished_by_the_server_it_was_begun_with() -> None:
    old = ScriptedServer("one")
    old.handshakeHeld = True
    bench = Bench(old)
    client = bench.gateway.client("one")
    opening = client.initialize()
    bench.reload(ScriptedServer("one", timeout=9.0))
    bench.gateway.advance(1)
    assert not opening.started and not old.drained
    old.finishHandshake()
    client.session = opening.header("mcp-session-id")
    assert opening.status == 200 and client.session is not None
    bench.gateway.advance(1)
    assert old.drained
    # It was for nothing, and its client hears of it in the way that it knows.
    assert error(client.post(client.request(2, "ping"))) == (404, -32001)
    bench.end()


def test_over_sse_a_new_request_is_told_on_the_stream_that_is_kept_for_a_running_one() -> None:
    old = ScriptedServer("one")
    bench = Bench(old)
    client = MemoryClient(bench.gateway, "/mcp/servers/one/sse")
    stream = client.get()
    where = stream.body.split(b"data: ")[1].split(b"\n")[0].decode()
    client.path = f"/mcp/servers/one/{where}"

    def post(id: int, method: str) -> int:
        params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {}}
        return client.post(client.request(id, method, params)).status

    assert post(1, "initialize") == 202
    assert post(2, CALL) == 202
    bench.reload(ScriptedServer("one", timeout=9.0))
    assert post(3, CALL) == 202
    lines = stream.body.decode().splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [one["id"] for one in told] == [1, 3]
    assert told[1]["error"]["data"]["reason"] == "shutting_down"
    old.newest.reply(old.newest.last(CALL))
    bench.gateway.advance(0.1)
    assert b'"id":2,"result":{}' in stream.body
    assert stream.body.endswith(b"\n\nretry: 5000\n\n")
    assert stream.ended and old.drained
    assert error(client.post(TOLD)) == (404, -32001)
    bench.end()


# The modern era.


@pytest.mark.acceptance(109)
def test_acceptance_109_modern_calls_finish_and_listening_ends_in_order() -> None:
    old = ModernServer("one", era="modern")
    bench = Bench(old)
    asked = posted(bench.gateway, enveloped(CALL, 5, name="echo"))
    listening = posted(bench.gateway, enveloped("subscriptions/listen", 6, **LISTENING))
    bench.gateway.advance(0.5)
    assert listening.header("content-type") == "text/event-stream"
    new = ModernServer("one", era="modern", timeout=9.0)
    bench.reload(new)
    link = old.newest
    again = posted(bench.gateway, enveloped(CALL, 7, name="echo"))
    assert [sent.method for sent in new.newest.requests] == [CALL]
    new.newest.reply(new.newest.last(CALL), b'{"resultType":"complete","is":2}')
    assert again.json()["result"]["is"] == 2
    link.reply(link.last(CALL), b'{"resultType":"complete","is":1}')
    assert asked.json()["result"]["is"] == 1
    bench.gateway.advance(1)
    assert old.drained
    assert listening.ended
    assert listening.events()[-1]["id"] == 6
    bench.end()


@pytest.mark.acceptance(109)
@pytest.mark.parametrize("isolation", ["session", "shared"])
def test_acceptance_109_modern_calls_of_a_legacy_server_finish_in_its_pool(isolation: str) -> None:
    old = ScriptedServer("one", isolation=isolation)
    bench = Bench(old)
    asked = posted(bench.gateway, enveloped(CALL, 5, name="echo"))
    new = ScriptedServer("one", isolation=isolation, timeout=9.0)
    bench.reload(new)
    again = posted(bench.gateway, enveloped(CALL, 5, name="echo"))
    for server, exchanged in ((new, again), (old, asked)):
        link = server.newest
        link.reply(link.last(CALL), b'{"content":[]}')
        assert exchanged.json()["result"]["content"] == []
        assert exchanged.json()["id"] == 5
    bench.gateway.advance(0.1)
    assert old.drained and not old.open and not new.drained
    bench.end()


ASKS = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}
ASKED = (
    b'{"jsonrpc":"2.0","id":"s1","method":"elicitation/create",'
    b'"params":{"message":"m","requestedSchema":{"type":"object","properties":{}}}}'
)
ANSWERED = {"q1": {"action": "accept", "content": {}}}


def parked(bench: Bench, server: ScriptedServer) -> str:
    """A call that waits for its client's input; the state that continues it."""
    asked = posted(bench.gateway, enveloped(CALL, 5, meta=ASKS, name="echo"))
    server.newest.push(ASKED)
    bench.gateway.advance(0.1)
    result = asked.json()["result"]
    assert result["resultType"] == "input_required"
    return str(result["requestState"])


def retried(bench: Bench, state: str) -> Exchanged:
    params = {"name": "echo", "inputResponses": ANSWERED, "requestState": state}
    return posted(bench.gateway, enveloped(CALL, 6, meta=ASKS, **params))


@pytest.mark.acceptance(109)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("era", ["legacy", "modern", None])
def test_acceptance_109_a_call_that_waits_for_its_client_is_finished_where_it_runs(
    era: str | None, times: int
) -> None:
    """era: of the server in its place; None: it is removed."""
    old = ScriptedServer("one")
    bench = Bench(old)
    state = parked(bench, old)
    news: list[ScriptedServer] = []
    for number in range(times):
        kind = ModernServer if era == "modern" else ScriptedServer
        more = {} if era is None else {"era": era}
        new = kind("one", timeout=9.0 + number, **more)
        news.append(new)
        bench.reload(*([] if era is None else [new]))
        bench.gateway.advance(0.5)
    assert not old.drained
    # Whoever has no such state has nothing to do with the old one.
    if era is not None:
        forged = retried(bench, state[:-4] + "AAAA")
        bench.gateway.advance(0)
        assert forged.started == (era == "legacy"), "it is the new one's to judge"
        other = posted(bench.gateway, enveloped(CALL, 7, meta=ASKS, name="echo"))
        assert not other.started
        forged.leave()
        other.leave()
    again = retried(bench, state)
    old.newest.reply(old.newest.last(CALL), b'{"content":[]}')
    assert again.json()["id"] == 6
    assert again.json()["result"]["content"] == []
    bench.gateway.advance(0.2)
    assert old.drained and not old.open
    assert len(old.newest.of(CALL)) == 1
    bench.end()


@pytest.mark.acceptance(108)
def test_acceptance_108_nobody_drains_for_a_replaced_call_that_waits_for_its_client() -> None:
    """Who would go on with it is not let in any more."""
    old, new = ScriptedServer("one"), ScriptedServer("one", timeout=9.0)
    bench = Bench(old)
    parked(bench, old)
    bench.reload(new)
    bench.gateway.advance(0.5)
    assert not old.drained
    stopped = bench.gateway.stop()
    bench.gateway.clock.pump([0.1] * 5)
    assert stopped.called and old.drained and not old.open


@pytest.mark.acceptance(109)
def test_acceptance_109_so_is_one_that_asks_only_after_its_server_was_replaced() -> None:
    old, new = ScriptedServer("one"), ScriptedServer("one", timeout=9.0)
    bench = Bench(old)
    asked = posted(bench.gateway, enveloped(CALL, 5, meta=ASKS, name="echo"))
    link = old.newest
    bench.reload(new)
    bench.gateway.advance(0.5)
    assert not old.drained and not asked.started
    link.push(ASKED)
    bench.gateway.advance(0.2)
    state = str(asked.json()["result"]["requestState"])
    again = retried(bench, state)
    link.reply(link.last(CALL), b'{"content":[]}')
    assert again.json()["result"]["content"] == []
    bench.gateway.advance(0.2)
    assert old.drained and not old.open
    bench.end()


@pytest.mark.acceptance(109)
def test_acceptance_109_so_is_one_that_asks_twice_whoever_else_calls_meanwhile() -> None:
    old, new = ScriptedServer("one"), ScriptedServer("one", timeout=9.0)
    bench = Bench(old)
    state = parked(bench, old)
    bench.reload(new)
    bench.gateway.advance(0.5)
    second = retried(bench, state)
    other = posted(bench.gateway, enveloped(CALL, 7, meta=ASKS, name="echo"))
    assert not other.started and not second.started
    other.leave()
    old.newest.push(ASKED.replace(b"s1", b"s2"))
    bench.gateway.advance(0.2)
    assert second.json()["result"]["resultType"] == "input_required"
    params = {
        "name": "echo",
        "inputResponses": {"q2": ANSWERED["q1"]},
        "requestState": str(second.json()["result"]["requestState"]),
    }
    third = posted(bench.gateway, enveloped(CALL, 8, meta=ASKS, **params))
    old.newest.reply(old.newest.last(CALL), b'{"content":[]}')
    assert third.json()["result"]["content"] == []
    bench.gateway.advance(0.2)
    assert old.drained and not old.open
    bench.end()


@pytest.mark.acceptance(109)
def test_acceptance_109_so_is_one_whose_server_was_removed_and_came_back() -> None:
    old, new = ScriptedServer("one"), ScriptedServer("one")
    bench = Bench(old)
    state = parked(bench, old)
    bench.reload()
    bench.gateway.advance(0.5)
    bench.reload(new)
    again = retried(bench, state)
    old.newest.reply(old.newest.last(CALL), b'{"content":[]}')
    assert again.json()["result"]["content"] == []
    bench.gateway.advance(0.2)
    assert old.drained and not old.open
    bench.end()


def test_of_servers_that_were_replaced_one_after_the_other_only_the_last_is_remembered() -> None:
    """Nobody of the modern era comes meanwhile, so nobody looks whether calls wait there."""
    bench = Bench(ScriptedServer("one"))
    bench.gateway.advance(0.1)
    gc.collect()
    before = sum(isinstance(one, ModernEndpoint) for one in gc.get_objects())
    for number in range(6):
        bench.reload(ScriptedServer("one", timeout=9.0 + number))
        bench.gateway.advance(0.5)
    gc.collect()
    after = sum(isinstance(one, ModernEndpoint) for one in gc.get_objects())
    assert after <= before + 1
    bench.end()


def test_a_call_whose_client_does_not_answer_goes_with_its_server() -> None:
    old, new = ScriptedServer("one"), ScriptedServer("one", timeout=9.0)
    bench = Bench(old, drain_grace=3.0)
    state = parked(bench, old)
    bench.reload(new)
    bench.gateway.clock.pump([0.1] * 29)
    assert not old.drained
    bench.gateway.clock.pump([0.1] * 2)
    assert old.drained and not old.open
    assert BoundReached("drain_grace", "one") in bench.observed.events
    assert MessageDropped("one", "client_gone") in bench.observed.events
    late = retried(bench, state)
    bench.gateway.advance(0)
    assert error(late) == (400, -32602)
    bench.end()


def test_at_the_end_of_the_gateway_nobody_waits_for_who_is_asked() -> None:
    old = ScriptedServer("one")
    bench = Bench(old)
    parked(bench, old)
    assert bench.gateway.stop() is not None
    bench.gateway.clock.pump([0.1] * 20)
    assert old.drained
    bench.end()


def test_a_server_without_sessions_is_replaced_for_the_next_request() -> None:
    old = ScriptedServer("one", http=True, sessionless=True)
    bench = Bench(old)
    client = bench.gateway.client("one")
    client.initialize()
    asked = client.post(client.request(5, CALL))
    new = ScriptedServer("one", http=True, sessionless=True, timeout=9.0)
    bench.reload(new)
    link = old.newest
    link.accept(link.last("notifications/initialized"))
    link.reply(link.last(CALL), b'{"is":1}')
    assert asked.json()["result"] == {"is": 1}
    bench.gateway.advance(0.1)
    assert old.drained and not old.open
    client.initialize()
    again = client.post(client.request(6, CALL))
    new.newest.accept(new.newest.last("notifications/initialized"))
    new.newest.reply(new.newest.last(CALL), b'{"is":2}')
    assert again.json()["result"] == {"is": 2}
    bench.end()


# Whatever happens in whatever order.


@pytest.mark.acceptance(109)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=25)
def test_acceptance_109_whatever_is_reloaded_each_call_has_one_answer(data: st.DataObject) -> None:
    """Two names, three settings each: changed, removed, brought back, while sessions call."""
    bench = Bench(ScriptedServer("a"), ScriptedServer("b"), drain_grace=3.0)
    kept = {("a", 600.0): bench.gateway.servers[0], ("b", 600.0): bench.gateway.servers[1]}
    every = list(kept.values())
    clients: list[MemoryClient] = []
    asked: list[tuple[int, Exchanged]] = []

    def reload() -> None:
        times = [data.draw(st.sampled_from([None, 600.0, 800.0, 900.0])) for _ in range(2)]
        wanted = {(name, time) for name, time in zip("ab", times, strict=True) if time}
        for key in set(kept) - (wanted or set(kept)):
            del kept[key]
        for name, time in wanted - set(kept):
            kept[name, time] = ScriptedServer(name, timeout=time)
            every.append(kept[name, time])
        bench.reload(*kept.values())

    def open_() -> None:
        client = bench.gateway.client(data.draw(st.sampled_from("ab")))
        answer = client.initialize()
        served = any(f"/servers/{name}/" in client.path for name, _ in kept)
        assert answer.status == (200 if served else 404)
        if served:
            clients.append(client)

    def call() -> None:
        if clients:
            client = clients[data.draw(st.integers(0, len(clients) - 1))]
            id = len(asked)
            asked.append((id, client.post(client.request(id, CALL))))

    def answer() -> None:
        waiting = [
            (link, sent)
            for server in every
            for link in server.open
            for sent in link.of(CALL)
            if sent.id not in {other.id for other in answered[link]}
        ]
        if waiting:
            link, sent = waiting[data.draw(st.integers(0, len(waiting) - 1))]
            answered[link].append(sent)
            link.reply(sent)

    answered: dict[Any, list[Any]] = collections.defaultdict(list)
    steps = {"open": open_, "call": call, "answer": answer, "reload": reload}
    for step in data.draw(st.lists(st.sampled_from([*steps, "call", "wait"]), max_size=30)):
        if step == "wait":
            bench.gateway.clock.pump([0.1] * data.draw(st.integers(1, 40)))
        else:
            steps[step]()
    bench.gateway.clock.pump([0.1] * 40)
    for server in every:
        assert server.drained is (server not in kept.values())
    stopped = bench.gateway.stop()
    bench.gateway.clock.pump([0.1] * 40)
    assert stopped.called and not bench.gateway.clock.getDelayedCalls()
    for id, exchanged in asked:
        message = answerOf(exchanged)
        error = message.get("error")
        # Of a server that is not there, nothing but the head is read.
        unknown = exchanged.status == 404 and error["code"] == -32000
        assert exchanged.ended and message.get("id") == (None if unknown else id)
        ended = error and exchanged.status == 200 and error["data"]["reason"]
        assert not ended or ended == "shutting_down"


# What was on its way.


@pytest.mark.acceptance(109)
@pytest.mark.parametrize("removed", [False, True])
def test_acceptance_109_what_is_half_received_goes_to_the_server_that_is_configured_then(
    removed: bool,
) -> None:
    front = Front()
    assert front.service is not None
    body = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}},
        }
    ).encode()
    data = request(b"POST", b"/servers/one/mcp", body, b"Content-Type: application/json")
    caller = front.ask(data[:-10])
    old = front.one
    settings = (attrs.evolve(old.settings, timeout=9.0), front.two.settings)
    if removed:
        settings = (attrs.evolve(front.two.settings, default=True),)
    else:
        front.one = ScriptedServer("one")
    made = {"one": front.one, "two": front.two}
    front.service._servers = lambda settings: made[settings.name]
    before = front.service.configuration
    front.service.reload(attrs.evolve(before, servers=settings))
    caller.send(data[-10:])
    answer = caller.answer()
    assert old.handshakes == 0
    if removed:
        assert (answer.status, answer.json["id"]) == (404, 1)
        assert answer.json["error"]["message"] == "Unknown server"
    else:
        assert answer.status == 200 and front.one.handshakes == 1
    front.stop()


def test_a_connection_that_is_open_gets_what_is_configured_now() -> None:
    """The same bytes on the same connection, which a door need not look at twice."""
    front = Front()
    service = front.service
    assert service is not None
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    lines = (b"Content-Type: application/json", b"Mcp-Session-Id: x")
    data = request(b"POST", b"/servers/one/mcp", body, *lines)
    caller = front.connect()

    def asked() -> tuple[int, int]:
        caller.send(data)
        answer = caller.answer()
        return answer.status, answer.json["error"]["code"]

    assert [asked() for _ in range(3)] == [(404, -32001)] * 3
    before = service.configuration
    two = attrs.evolve(front.two.settings, default=True)
    service.reload(attrs.evolve(before, servers=(two,)))
    assert asked() == (404, -32000)
    service.reload(before)
    assert [asked() for _ in range(3)] == [(404, -32001)] * 3
    front.stop()


def test_hosts_and_origins_that_are_allowed_change_on_open_connections_too() -> None:
    front = Front()
    service = front.service
    assert service is not None
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    lines = (b"Content-Type: application/json", b"Mcp-Session-Id: x")
    data = request(b"POST", b"/servers/one/mcp", body, *lines).replace(HOST, b"a.example:8080")
    before = service.configuration
    wider = attrs.evolve(
        before, gateway=attrs.evolve(before.gateway, allowed_hosts=("a.example:8080",))
    )
    service.reload(wider)
    caller = front.connect()
    for _ in range(3):
        caller.send(data)
        assert caller.answer().status == 404
    service.reload(before)
    caller.send(data)
    assert caller.answer().status == 403
    front.stop()


# Limits.


def test_limits_change_for_what_is_there_already() -> None:
    one = ScriptedServer("one")
    bench = Bench(one)
    client = bench.open("one")
    for id in (1, 2):
        client.post(client.request(id, CALL))
    bench.reload(one, limits=Limits(max_calls=2, session_idle=5.0, max_body=1000))
    assert reason(client.post(client.request(3, CALL))) == "overloaded"
    assert client.post({**TOLD, "params": {"x": "y" * 1000}}).status == 413
    for sent in one.newest.of(CALL):
        one.newest.reply(sent)
    bench.gateway.advance(6)
    assert error(client.post(client.request(4, CALL))) == (404, -32001)
    # The table that was given stays what it was.
    assert bench.limits == Limits()
    bench.end()


# Where it listens.


class Ports(Front):
    """Endpoints that listen in memory; what is in `taken` cannot."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.taken: set[int] = set()
        listenTCP = self.clock.listenTCP

        def listen(port: int, *args: Any, **options: Any) -> Any:
            if port in self.taken:
                raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))
            return listenTCP(port, *args, **options)

        self.clock.listenTCP = listen  # type: ignore[method-assign]


def endpoints(*ports: int) -> tuple[str, ...]:
    return tuple(f"tcp:{port}:interface=127.0.0.1" for port in ports)


def listening(configuration: Configuration, *ports: int) -> Configuration:
    gateway = attrs.evolve(configuration.gateway, listen=endpoints(*ports))
    return attrs.evolve(configuration, gateway=gateway)


def test_new_endpoints_listen_before_old_ones_close() -> None:
    front = Ports()
    service = front.service
    assert service is not None
    caller = front.connect()
    caller.send(request(b"GET", b"/healthz"))
    assert caller.answer(b"GET").status == 200
    (first,) = service.ports
    service.reload(listening(service.configuration, 9000))
    (second,) = service.ports
    assert second is not first
    # On a connection of the closed one, the next answer of a proxy is the last.
    caller.send(request(b"GET", b"/servers/none/mcp"))
    caller.send(request(b"POST", b"/servers/one/mcp", b"{}"))
    answers = caller.answers(b"GET", b"POST")
    assert [answer.status for answer in answers] == [404, 400]
    assert caller.closed
    other = front.connect()
    other.send(request(b"GET", b"/healthz").replace(HOST, b"127.0.0.1:8080"))
    assert other.answer(b"GET").status == 200
    front.stop()


@pytest.mark.acceptance(109)
def test_acceptance_109_every_mistake_is_told_at_once_and_changes_nothing() -> None:
    front = Ports()
    service = front.service
    assert service is not None
    front.taken = {9001, 9002}
    before = service.configuration

    def factory(settings: Any) -> ScriptedServer:
        if settings.name == "three":
            raise ValueError("https://secret@nowhere")
        made.append(ScriptedServer(settings.name, timeout=settings.timeout))
        return made[-1]

    made: list[ScriptedServer] = []
    service._servers = factory
    three = HTTPSettings(name="three", url="http://secret@nowhere/")
    changed = attrs.evolve(front.one.settings, timeout=9.0)
    wrong = listening(
        attrs.evolve(before, servers=(changed, three, front.two.settings, three)), 8080, 9001, 9002
    )
    failures: list[Failure] = []
    service.reload(wrong).addErrback(failures.append)
    (failure,) = failures
    assert failure.check(ConfigurationError)
    said = str(failure.value)
    assert len(failure.value.problems) == 5
    assert "memory: mcpServers.three: found two servers" in said
    assert "memory: mcpServers.three: found a server that cannot be made" in said
    for port in (9001, 9002):
        assert f"gateway.listen: found tcp:{port}:interface=127.0.0.1: " in said
    assert "secret" not in said
    assert service.configuration is before and service.state is State.READY
    assert len(service.ports) == 1
    # What was made for it is gone, what was there is untouched.
    assert [server.drained for server in made] == [True]
    assert not front.one.drained and not front.two.drained
    assert ReloadRefused("mistakes", 5) in front.observer.events
    assert not [one for one in front.observer.events if isinstance(one, ConfigurationReloaded)]
    service._servers = {"one": front.one, "two": front.two}.get  # type: ignore[assignment]
    front.stop()


def test_an_endpoint_that_listens_goes_when_another_cannot() -> None:
    front = Ports()
    service = front.service
    assert service is not None
    front.taken = {9001}
    failures: list[Failure] = []
    service.reload(listening(service.configuration, 9000, 9001)).addErrback(failures.append)
    assert len(failures) == 1
    assert len(service.ports) == 1
    assert service.configuration.gateway.listen == endpoints(8080)
    front.stop()


# When it is refused, and in what order it happens.


def test_it_is_refused_while_it_drains_and_when_it_is_not_started() -> None:
    one = ScriptedServer("one")
    bench = Bench(one)
    client = bench.open("one")
    client.post(client.request(1, CALL))
    service, before = bench.gateway.service, bench.gateway.service.configuration
    stopped = bench.gateway.stop()
    failures: list[Failure] = []
    bench.gateway.reload([ScriptedServer("two")]).addErrback(failures.append)
    bench.gateway.advance(60)
    assert stopped.called
    bench.gateway.reload([ScriptedServer("two")]).addErrback(failures.append)
    assert [failure.type for failure in failures] == [RuntimeError, RuntimeError]
    refused = bench.observed.of(ReloadRefused)
    assert [event.why for event in refused] == ["draining", "stopped"]
    assert service.configuration is before


def test_a_drain_that_begins_during_a_reload_wins() -> None:
    """The endpoint takes its time; nothing of the new configuration is left."""
    front = Front()
    service = front.service
    assert service is not None
    late: Deferred[Any] = Deferred()

    class Late:
        def listen(self, factory: Any) -> Deferred[Any]:
            return late

    closed: list[bool] = []

    class Port:
        def stopListening(self) -> None:
            closed.append(True)

    from gateway import endpoints

    original = endpoints.serverFromString
    endpoints.serverFromString = lambda reactor, text: Late()  # type: ignore[assignment]
    failures: list[Failure] = []
    try:
        service.reload(listening(service.configuration, 8080, 9000)).addErrback(failures.append)
        again = service.reload(service.configuration)
        again.addErrback(failures.append)
        assert not failures
        service.stopService()
        late.callback(Port())
    finally:
        endpoints.serverFromString = original
    assert closed == [True]
    assert [failure.type for failure in failures] == [RuntimeError, RuntimeError]
    front.pass_(2)
    assert service.state is State.STOPPED


def test_it_may_be_given_up_while_it_waits_for_its_turn() -> None:
    front = Front()
    service = front.service
    assert service is not None
    held: Deferred[None] = Deferred()
    service._reloads.run(lambda: held)
    failures: list[Failure] = []
    waiting = service.reload(listening(service.configuration, 9000)).addErrback(failures.append)
    waiting.cancel()
    held.callback(None)
    assert len(failures) == 1
    assert service.configuration.gateway.listen == endpoints(8080)
    front.stop()


def test_a_stop_waits_for_what_a_reload_retired() -> None:
    old = ScriptedServer("one")
    bench = Bench(old, drain_grace=5.0)
    client = bench.open("one")
    asked = client.post(client.request(5, CALL))
    bench.reload(ScriptedServer("one", timeout=9.0))
    bench.gateway.advance(1)
    stopped = bench.gateway.stop()
    bench.gateway.advance(1)
    assert not stopped.called
    old.newest.reply(old.newest.last(CALL))
    assert "result" in asked.json()
    bench.gateway.clock.pump([0.1] * 5)
    assert stopped.called and old.drained
    assert not bench.gateway.clock.getDelayedCalls()


# Reading it again.


def named(name: str) -> Configuration:
    return Configuration(servers=(), gateway=GatewaySettings(), source=name)


def test_however_often_it_is_asked_the_newest_is_in_force_in_the_end() -> None:
    applied: list[str] = []
    pending: list[Deferred[None]] = []
    newest = ["a"]

    def apply(configuration: Configuration) -> Deferred[None]:
        applied.append(configuration.source)
        pending.append(Deferred())
        return pending[-1]

    reloading = Reloading(lambda: named(newest[0]), apply, lambda error: None)
    reloading.ask()
    for name in "bcd":
        newest[0] = name
        reloading.ask()
    assert applied == ["a"]
    pending.pop().callback(None)
    assert applied == ["a", "d"]
    pending.pop().callback(None)
    assert applied == ["a", "d"]
    reloading.ask()
    pending.pop().errback(RuntimeError("drains"))
    reloading.ask()
    assert applied == ["a", "d", "d", "d"]
    pending.pop().callback(None)


def test_what_cannot_be_read_is_told_and_the_next_is_read_all_the_same() -> None:
    wrong = ConfigurationError([Problem("file", "key", "this", "that")])
    outcomes: list[Configuration | ConfigurationError] = [wrong, named("good")]
    told: list[ConfigurationError] = []
    applied: list[str] = []

    def read() -> Configuration:
        outcome = outcomes.pop(0)
        if isinstance(outcome, ConfigurationError):
            raise outcome
        return outcome

    def apply(configuration: Configuration) -> Deferred[None]:
        applied.append(configuration.source)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    reloading = Reloading(read, apply, told.append)
    reloading.ask()
    assert (told, applied) == ([wrong], [])
    reloading.ask()
    assert applied == ["good"]


def test_a_file_is_told_of_when_it_has_stopped_changing(tmp_path: Path) -> None:
    path = tmp_path / "servers.json"
    path.write_text("a")
    clock, told = Clock(), [0]

    def changed() -> None:
        told[0] += 1

    watch = FileWatch(str(path), clock, changed)
    watch.start()
    clock.pump([1.0] * 3)
    assert told == [0]
    path.write_text("ab")
    clock.advance(1)
    path.write_text("abc")
    clock.advance(1)
    assert told == [0]
    clock.advance(1)
    assert told == [1]
    # An editor that writes another file and renames it; between, there may be none.
    path.unlink()
    clock.pump([1.0] * 5)
    assert told == [1]
    (tmp_path / "new").write_text("abc")
    (tmp_path / "new").rename(path)
    clock.pump([1.0] * 5)
    assert told == [2]
    watch.stop()
    path.write_text("abcd")
    clock.pump([1.0] * 5)
    assert told == [2] and not clock.getDelayedCalls()


def test_the_recorder_hears_names_and_numbers_only() -> None:
    front = Front(observer=Recorder())
    service = front.service
    assert service is not None
    service.reload(service.configuration)
    assert ConfigurationReloaded((), (), ()) in front.observer.events
    front.stop()
