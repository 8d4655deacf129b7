"""What is sent once more, in every pairing of client and server, and what never is."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from bridge_support import DISCOVERED
from faulty_upstream import FaultyUpstream, Received
from live import Start, behind, faulty
from live import live as live
from live import upstream as upstream
from modern_support import ModernServer, enveloped
from pool_support import RESULT, PoolBench
from raw import start as start
from relay_support import Bench
from test_bridge_relay import ModernServer as BridgedServer
from test_bridge_relay import opened as opened
from test_modern_relay import Bench as ModernBench
from test_passing import bench as bench
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from gateway.observe.observer import CallRepeated
from gateway.testing.scripted import ScriptedServer

# Legacy clients.


@pytest.mark.acceptance(46)
@pytest_twisted.ensureDeferred
async def test_acceptance_46_lists_asked_of_a_child_that_dies_are_answered_by_the_next(
    live: Start, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    gateway = await live(faulty("--ledger", str(ledger)))
    session = await gateway.session("faulty")
    other = await gateway.session("faulty")
    found = (await gateway.call("faulty", session, "self")).message["result"]
    pid = found["structuredContent"]["pid"]
    assert "result" in (await gateway.call("faulty", session, "deaf")).message
    lists = [
        ensureDeferred(gateway.ask("faulty", session, "tools/list", n)) for n in range(100, 120)
    ]
    calls = [
        ensureDeferred(gateway.call("faulty", session, "echo", token=f"t{n}")) for n in range(20)
    ]
    while sum(one.running for one in gateway.service.registry) < 40:
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
    os.kill(pid, signal.SIGKILL)
    answers = await gatherResults(calls)
    assert {answer.reason for answer in answers} == {"server_exited"}
    answers = await gatherResults(lists)
    assert [answer.message["id"] for answer in answers] == list(range(100, 120))
    assert all(answer.message["result"]["tools"] for answer in answers)
    assert len(gateway.recorder.of(CallRepeated)) == 20
    assert "result" in (await gateway.call("faulty", other, "echo")).message
    executed = Counter(json.loads(line).get("token") for line in ledger.read_text().splitlines())
    assert all(executed[f"t{n}"] <= 1 for n in range(20))


@pytest.mark.acceptance(69)
@pytest.mark.parametrize("proxy", ["transparent", "streamable"])
@pytest_twisted.ensureDeferred
async def test_acceptance_69_a_cut_answer_of_a_list_is_asked_for_again(
    live: Start, upstream: FaultyUpstream, proxy: str
) -> None:
    cuts = Counter[str]()

    def script(request: Received) -> bool:
        if request.rpc in ("tools/list", "tools/call", "ping") and not cuts[request.rpc]:
            cuts[request.rpc] += 1
            request.cut()
            return True
        return False

    upstream.script = script
    gateway = await live(behind(upstream.url, proxy=proxy))
    session = await gateway.session("behind")
    assert (await gateway.call("behind", session, "x")).reason == "outcome_unknown"
    for method in ("tools/list", "ping"):
        answer = await gateway.ask("behind", session, method, method)
        assert answer.message["id"] == method and "result" in answer.message
    sent = Counter(request.rpc for request in upstream.requests)
    assert (sent["tools/call"], sent["tools/list"], sent["ping"]) == (1, 2, 2)
    ids = [one.message["id"] for one in upstream.requests if one.rpc == "tools/list"]
    assert len(set(ids)) == 2


# The other pairings.


@pytest.mark.parametrize("http", [False, True])
def test_a_legacy_client_of_a_modern_server(http: bool) -> None:
    result = json.dumps(DISCOVERED).encode()
    server = BridgedServer(http=http, result=result, sessionless=True)
    bench = Bench(server, transparent=http)
    server.bench = bench
    opened(bench)
    safe, unsafe = bench.ask(1, "tools/list"), bench.ask(2)
    inner = server.newest
    if http:
        inner.settle(inner.last("tools/list"))
        inner.settle(inner.last("tools/call"))
    else:
        inner.lose()
    bench.clock.advance(0)
    assert unsafe.reason == ("outcome_unknown" if http else "server_exited")
    again = server.newest
    assert (again is inner) is http
    again.reply(again.last("tools/list"), b'{"resultType":"complete","tools":[]}')
    bench.clock.advance(0)
    assert safe.json["result"] == {"tools": []}
    bench.end()


@pytest.mark.parametrize("http", [False, True])
def test_a_modern_client_of_a_legacy_server(http: bool) -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, http=http))
    bench.ask(0, "server/discover")
    if http:
        bench.link.accept(bench.link.last("notifications/initialized"))
    bench.turn()
    safe, unsafe = bench.ask(1, "tools/list"), bench.ask(2)
    bench.turn()
    link = bench.link
    if http:
        link.settle(link.last("tools/list"))
        link.settle(link.last("tools/call"))
    else:
        link.lose()
    bench.turn()
    assert unsafe.reason == ("outcome_unknown" if http else "server_exited") and safe.waits
    bench.link.reply(bench.link.last("tools/list"), b'{"tools":[]}')
    bench.turn()
    assert safe.result["tools"] == []
    bench.stop()


def test_what_a_modern_caller_was_told_of_tools_holds_in_all_its_sessions() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, replay="annotated"))
    bench.ask(0, "tools/list")
    tools = (
        b'{"tools":[{"name":"t","inputSchema":{"type":"object"},'
        b'"annotations":{"readOnlyHint":true}}]}'
    )
    bench.link.reply(bench.link.last("tools/list"), tools)
    call = bench.ask(1)
    bench.link.lose()
    bench.turn()
    assert call.waits
    bench.link.reply(bench.link.last("tools/call"), b'{"content":[]}')
    bench.turn()
    assert call.result["content"] == []
    bench.stop()


def test_a_modern_client_of_a_modern_child() -> None:
    bench = ModernBench(ModernServer("one"))
    safe, unsafe = bench.ask("a", "tools/list"), bench.ask("b")
    bench.link.lose()
    assert unsafe.reason == "server_exited" and not safe.answers
    assert bench.server.handshakes == 2
    bench.link.reply(bench.last("tools/list"), b'{"tools":[]}')
    assert safe.json == {"jsonrpc": "2.0", "id": "a", "result": {"tools": []}}
    never = bench.ask("c", "tools/list")
    bench.relay.gone(never)
    bench.link.lose()
    assert bench.server.handshakes == 2 and not never.answers
    bench.relay.stop()


@pytest.mark.acceptance(69)
@pytest_twisted.ensureDeferred
async def test_acceptance_69_a_modern_client_of_a_modern_server_over_http(bench: Any) -> None:
    it = await bench()
    body = enveloped("tools/list", "a")
    for partial in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"):
        client, got = await it.post(body)
        if partial:
            got.raw(partial)
            got.finish()
        else:
            got.cut()
        again = await it.upstream.next()
        assert again.body == body and again.headers == got.headers
        again.reply(200, b'{"jsonrpc":"2.0","id":"a","result":{}}')
        answer = await client.response()
        assert (answer.status, answer.json["result"]) == (200, {})
    # Once, and not where the client has something of it already.
    client, got = await it.post(body)
    got.cut()
    (await it.upstream.next()).cut()
    answer = await client.response()
    assert answer.json["error"]["data"]["reason"] == "outcome_unknown"
    client, got = await it.post(body)
    got.stream()
    await client.head()
    got.cut()
    assert (await client.message())["error"]["data"]["reason"] == "outcome_unknown"
    assert await client.event() is None
    assert len(it.stack.observer.of(CallRepeated)) == 3


@pytest_twisted.ensureDeferred
async def test_not_where_its_server_says_none(bench: Any) -> None:
    it = await bench(replay="none")
    client, got = await it.post(enveloped("tools/list", "a"))
    got.cut()
    answer = await client.response()
    assert answer.json["error"]["data"]["reason"] == "outcome_unknown"
