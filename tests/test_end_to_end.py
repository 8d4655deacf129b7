"""Whole gateways before real servers that misbehave: stdio children, and HTTP upstreams."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from faulty_upstream import FaultyUpstream, Received
from live import Answer, Start, behind, faulty
from live import live as live
from live import upstream as upstream
from raw import RawClient, rpc
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import deferLater

from gateway.observe.observer import MessageDropped, SessionRecovered
from gateway.service import State


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def together(asked: list[Any]) -> Deferred[list[Answer]]:
    return gatherResults([ensureDeferred(one) for one in asked], consumeErrors=True)


# Stdio.


@pytest.mark.acceptance(46)
@pytest_twisted.ensureDeferred
async def test_acceptance_46_a_crash_fails_what_was_pending_and_nothing_else(
    live: Start, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    gateway = await live(faulty("--ledger", str(ledger)))
    session = await gateway.session("faulty")
    other = await gateway.session("faulty")
    before = (await gateway.call("faulty", session, "self")).message["result"]
    asked = [
        gateway.call("faulty", session, "crash_at", pending=50, token=f"t{n}") for n in range(50)
    ]
    answers = await together(asked)
    assert [answer.status for answer in answers] == [200] * 50
    assert {answer.reason for answer in answers} == {"server_exited"}
    assert sorted(answer.message["id"] for answer in answers) == list(range(2, 52))
    # The other session has a child of its own.
    echoed = await gateway.call("faulty", other, "echo", a=1)
    assert echoed.message["result"]["structuredContent"] == {"a": 1}
    # The next call is answered by a new child, in the same session.
    after = (await gateway.call("faulty", session, "self")).message["result"]
    assert after["structuredContent"]["pid"] != before["structuredContent"]["pid"]
    executed = [json.loads(line) for line in ledger.read_text().splitlines()]
    counts = Counter(line["token"] for line in executed if line.get("verb") == "crash_at")
    assert len(counts) == 50
    assert set(counts.values()) == {1}
    pid = after["structuredContent"]["pid"]
    said = [line["method"] for line in executed if line["pid"] == pid and "method" in line]
    assert said[:2] == ["initialize", "notifications/initialized"]
    assert len(gateway.recorder.of(SessionRecovered)) == 1


@pytest_twisted.ensureDeferred
async def test_a_recovered_server_hears_the_log_level_and_the_subscriptions_again(
    live: Start,
) -> None:
    capabilities = '{"logging":{},"resources":{"subscribe":true}}'
    gateway = await live(faulty("--capabilities", capabilities))
    session = await gateway.session("faulty")
    for method, params in (
        ("logging/setLevel", {"level": "warning"}),
        ("resources/subscribe", {"uri": "file:///a"}),
        ("resources/subscribe", {"uri": "file:///b"}),
        ("resources/unsubscribe", {"uri": "file:///a"}),
    ):
        message = {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
        assert "result" in (await gateway.post("faulty", message, session)).message
    assert (await gateway.call("faulty", session, "exit")).reason == "server_exited"
    seen = (await gateway.call("faulty", session, "seen")).message["result"]["structuredContent"]
    said = [(m["method"], m.get("params", {})) for m in seen["messages"]]
    assert [method for method, _ in said[:4]] == [
        "initialize",
        "notifications/initialized",
        "logging/setLevel",
        "resources/subscribe",
    ]
    assert said[2][1] == {"level": "warning"}
    assert said[3][1] == {"uri": "file:///b"}


@pytest_twisted.ensureDeferred
async def test_on_exit_lost_ends_the_session(live: Start) -> None:
    gateway = await live(faulty(on_exit="lost"))
    session = await gateway.session("faulty")
    assert (await gateway.call("faulty", session, "exit")).reason == "server_exited"
    lost = await gateway.call("faulty", session, "echo")
    assert lost.status == 404
    assert (
        lost.body
        == b'{"jsonrpc":"2.0","id":2,"error":{"code":-32001,"message":"Session not found"}}'
    )


@pytest.mark.acceptance(48)
@pytest.mark.parametrize(
    ("flags", "settings", "reason"),
    [
        (("--exit", "3"), {}, "server_exited"),
        (("--handshake", "nonsense"), {}, "server_exited"),
        (("--handshake", "silent"), {"handshake_timeout": 0.5}, "timeout"),
        (("--handshake", "not-object"), {}, "bad_answer"),
        (("--handshake", "exit"), {}, "server_exited"),
    ],
    ids=["exits", "nonsense", "silent", "not-object", "exits-late"],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_a_server_that_does_not_start_is_one_error_and_no_harm(
    live: Start, flags: tuple[str, ...], settings: dict[str, float], reason: str
) -> None:
    gateway = await live(faulty(*flags, **settings), faulty(name="good"))
    answer = await gateway.initialize("faulty")
    assert answer.status == 200
    assert "Mcp-Session-Id" not in answer.headers
    assert answer.reason == reason
    assert answer.message["id"] == "hello"
    assert len(gateway.service.registry) == 0
    session = await gateway.session("good")
    assert "result" in (await gateway.call("good", session, "echo")).message


@pytest_twisted.ensureDeferred
async def test_a_command_that_is_not_there_is_told_without_its_name(live: Start) -> None:
    from gateway.settings import StdioSettings

    gateway = await live(StdioSettings(name="gone", command="/nowhere/secret-server"))
    answer = await gateway.initialize("gone")
    assert answer.status == 200
    assert "error" in answer.message
    assert b"secret" not in answer.body
    assert b"nowhere" not in answer.body


@pytest_twisted.ensureDeferred
async def test_the_servers_own_error_to_initialize_is_the_answer(live: Start) -> None:
    gateway = await live(faulty("--handshake", "error"))
    answer = await gateway.initialize("faulty")
    assert answer.status == 200
    assert answer.message["id"] == "hello"
    assert "Mcp-Session-Id" not in answer.headers
    assert "error" in answer.message


@pytest.mark.acceptance(24)
@pytest_twisted.ensureDeferred
async def test_acceptance_24_equal_ids_in_flight_get_their_own_answers(live: Start) -> None:
    gateway = await live(faulty())
    session = await gateway.session("faulty")

    async def ask(token: int) -> Answer:
        params = {"name": "sleep", "arguments": {"seconds": 0.05, "token": token}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return await gateway.post("faulty", message, session)

    answers = await together([ask(n) for n in range(20)])
    for n, answer in enumerate(answers):
        assert answer.message["id"] == 1
        assert answer.message["result"]["structuredContent"]["token"] == n


@pytest.mark.acceptance(39)
@pytest_twisted.ensureDeferred
async def test_acceptance_39_delete_ends_the_child(live: Start) -> None:
    gateway = await live(faulty())
    session = await gateway.session("faulty")
    answer = await gateway.call("faulty", session, "self")
    pid = answer.message["result"]["structuredContent"]["pid"]
    assert alive(pid)
    named = {"Mcp-Session-Id": session}
    assert (await gateway.request("DELETE", "/servers/faulty/mcp", None, named)).status == 204
    assert (await gateway.request("DELETE", "/servers/faulty/mcp", None, named)).status == 404
    while alive(pid):
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]


@pytest.mark.acceptance(100)
@pytest_twisted.ensureDeferred
async def test_acceptance_100_and_104_nothing_of_a_request_reaches_a_child(live: Start) -> None:
    gateway = await live(faulty())
    canary = "canary-5f3a"
    session = await gateway.session("faulty")
    params = {"name": "self", "arguments": {"cwd": canary, "env": canary, "args": [canary]}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = await gateway.post(
        "faulty", message, session, Authorization=f"Bearer {canary}", Cookie=f"a={canary}"
    )
    itself = answer.message["result"]["structuredContent"]
    assert canary not in json.dumps([itself["env"], itself["argv"], itself["cwd"]])


@pytest_twisted.ensureDeferred
async def test_stopping_answers_what_runs_and_leaves_no_child(live: Start) -> None:
    gateway = await live(faulty(), drain_grace=0.2)
    session = await gateway.session("faulty")
    answer = await gateway.call("faulty", session, "self")
    pid = answer.message["result"]["structuredContent"]["pid"]
    hanging = ensureDeferred(gateway.call("faulty", session, "hang"))
    while not any(session.running for session in gateway.service.registry):
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
    stopping = gateway.service.stopService()
    assert gateway.service.state is State.DRAINING
    assert (await hanging).reason == "shutting_down"
    await stopping
    assert gateway.service.state is State.STOPPED
    assert "drain_grace" in gateway.recorder.bounds
    assert not alive(pid)


@pytest_twisted.ensureDeferred
async def test_a_call_that_fits_finishes_while_it_drains(live: Start) -> None:
    gateway = await live(faulty(), drain_grace=20.0)
    session = await gateway.session("faulty")
    running = ensureDeferred(gateway.call("faulty", session, "sleep", seconds=0.3))
    while not any(session.running for session in gateway.service.registry):
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
    await gateway.service.stopService()
    assert "result" in (await running).message


@pytest_twisted.ensureDeferred
async def test_start_stop_start(live: Start) -> None:
    gateway = await live(faulty())
    await gateway.session("faulty")
    await gateway.service.stopService()
    gateway.service.startService()
    assert gateway.service.state is State.READY
    port = gateway.service.ports[0].getHost().port
    gateway.base = f"http://127.0.0.1:{port}"
    await gateway.session("faulty")


@pytest_twisted.ensureDeferred
async def test_two_gateways_in_one_process(live: Start) -> None:
    one, two = await live(faulty()), await live(faulty())
    session = await one.session("faulty")
    assert (await two.call("faulty", session, "echo")).status == 404
    assert (await one.call("faulty", session, "echo")).status == 200


# HTTP upstreams.


def unknownSession(message: str) -> bytes:
    error = {"code": -32000, "message": message}
    return json.dumps({"jsonrpc": "2.0", "error": error, "id": None}).encode()


@pytest.mark.acceptance(64)
@pytest.mark.parametrize("proxy", ["transparent", "streamable"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b""),
        # What the examples of the TypeScript SDK say, and the servers made from them.
        (400, unknownSession("Bad Request: No valid session ID provided")),
        (400, unknownSession("Bad Request: Invalid session ID")),
        (400, unknownSession("Session not found")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_64_a_restart_upstream_is_one_initialize_and_no_lost_call(
    live: Start, upstream: FaultyUpstream, status: int, body: bytes, proxy: str
) -> None:
    gateway = await live(behind(upstream.url, proxy=proxy))
    session = await gateway.session("behind")
    executed: Counter[str] = Counter()
    current = [b"upstream-session-1"]

    def script(request: Received) -> bool:
        if request.rpc == "initialize":
            current[0] = upstream.session = b"upstream-session-2"
            return False
        if request.header(b"mcp-session-id") != current[0]:
            request.reply(status, body)
            return True
        if request.rpc == "tools/call":
            executed[request.message["params"]["arguments"]["token"]] += 1
        return False

    # It restarted: it knows no session from before.
    current[0] = b"none"
    upstream.script = script
    asked = [gateway.call("behind", session, "echo", token=f"t{n}") for n in range(100)]
    answers = await together(asked)
    assert [answer.status for answer in answers] == [200] * 100
    for n, answer in enumerate(answers):
        assert answer.message["id"] == n + 1
        assert answer.message["result"]["arguments"]["token"] == f"t{n}"
    assert len(executed) == 100
    assert set(executed.values()) == {1}
    said = [request.rpc for request in upstream.requests]
    assert said.count("initialize") == 2
    again = said.index("initialize", 1)
    assert said.index("notifications/initialized", again) > again
    recorded = [r.message["params"] for r in upstream.requests if r.rpc == "initialize"]
    assert recorded[0] == recorded[1]
    # And once more: the recovered session is as good as the first.
    assert (await gateway.call("behind", session, "echo", token="x")).status == 200


@pytest.mark.acceptance(65)
@pytest_twisted.ensureDeferred
async def test_acceptance_65_a_404_again_is_the_clients_404_and_no_loop(
    live: Start, upstream: FaultyUpstream
) -> None:
    gateway = await live(behind(upstream.url))
    session = await gateway.session("behind")

    def script(request: Received) -> bool:
        if request.rpc == "tools/call":
            request.reply(404, type=None)
            return True
        return False

    upstream.script = script
    upstream.requests.clear()
    answer = await gateway.call("behind", session, "echo")
    assert answer.status == 404
    assert answer.message["error"]["code"] == -32001
    assert [r.rpc for r in upstream.requests if r.method == b"POST"] == [
        "tools/call",
        "initialize",
        "notifications/initialized",
        "tools/call",
    ]
    assert (await gateway.call("behind", session, "echo")).status == 404
    assert len(gateway.service.registry) == 0


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_fails_again_is_the_clients_404(
    live: Start, upstream: FaultyUpstream
) -> None:
    gateway = await live(behind(upstream.url))
    session = await gateway.session("behind")

    def script(request: Received) -> bool:
        request.reply(404 if request.rpc != "initialize" else 500, type=None)
        return True

    upstream.script = script
    assert (await gateway.call("behind", session, "echo")).status == 404


@pytest.mark.acceptance(66)
@pytest_twisted.ensureDeferred
async def test_acceptance_66_the_target_comes_from_the_configuration_alone(
    live: Start, upstream: FaultyUpstream
) -> None:
    gateway = await live(behind(f"{upstream.url}?key=1"))
    session = await gateway.session("behind")
    params = {"name": "../../x", "uri": "http://evil.example/"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    await gateway.post(
        "behind",
        message,
        session,
        **{
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-For": "6.6.6.6",
            "mcp-init-host": "evil.example",
            "Forwarded": "host=evil.example",
            "X-Original-URL": "/admin",
        },
    )
    for request in upstream.requests:
        assert request.target == b"/mcp?key=1"
        assert request.header(b"host") == upstream.origin.removeprefix("http://").encode()
    last = upstream.requests[-1]
    assert last.header(b"x-forwarded-for") == b"127.0.0.1"
    assert b"evil" not in b"".join(value for name, value in last.headers if b"init" not in name)


@pytest.mark.acceptance(73)
@pytest.mark.acceptance(100)
@pytest_twisted.ensureDeferred
async def test_acceptance_73_and_100_headers_are_stripped_both_ways(
    live: Start, upstream: FaultyUpstream
) -> None:
    leaky = (
        (b"Server", b"secret-server/1"),
        (b"Set-Cookie", b"a=b"),
        (b"Mcp-Session-Id", b"another"),
        (b"Connection", b"x-hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authenticate", b"Basic"),
    )

    def script(request: Received) -> bool:
        if request.rpc == "tools/call":
            request.result({}, leaky)
            return True
        return False

    upstream.script = script
    gateway = await live(behind(upstream.url))
    first = await gateway.initialize("behind")
    (session,) = first.headers["Mcp-Session-Id"]
    assert session != upstream.session.decode()
    params = {"name": "echo", "arguments": {}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = await gateway.post(
        "behind",
        message,
        session,
        **{
            "Authorization": "Bearer canary",
            "Cookie": "a=canary",
            "Connection": "X-Mine",
            "X-Mine": "canary",
            "TE": "trailers",
            "Proxy-Authorization": "canary",
            "X-Kept": "kept",
        },
    )
    names = {name.lower() for name in answer.headers}
    assert names.isdisjoint(
        {"server", "set-cookie", "mcp-session-id", "x-hop", "keep-alive", "proxy-authenticate"}
    )
    sent = upstream.requests[-1]
    assert sent.header(b"mcp-session-id") == upstream.session
    assert b"canary" not in b"".join(value for _, value in sent.headers)
    assert sent.header(b"te") is None
    assert sent.header(b"x-kept") == b"kept"
    # DELETE: 204 for the client, and the server's session is ended under its own id.
    named = {"Mcp-Session-Id": session}
    assert (await gateway.request("DELETE", "/servers/behind/mcp", None, named)).status == 204
    while upstream.requests[-1].method != b"DELETE":
        await upstream.next()
    assert upstream.requests[-1].header(b"mcp-session-id") == upstream.session


@pytest_twisted.ensureDeferred
async def test_an_upstream_that_cannot_be_reached_is_an_error_in_the_session(
    live: Start, upstream: FaultyUpstream
) -> None:
    gateway = await live(behind(upstream.url))
    session = await gateway.session("behind")
    await upstream.close()
    answer = await gateway.call("behind", session, "echo")
    assert answer.status == 200
    assert answer.reason in ("upstream_unreachable", "outcome_unknown")
    first = await gateway.initialize("behind")
    assert first.status == 200
    assert first.reason == "upstream_unreachable"
    assert "Mcp-Session-Id" not in first.headers
    upstream.start(reactor)


@pytest_twisted.ensureDeferred
async def test_a_server_without_sessions_gets_none(live: Start, upstream: FaultyUpstream) -> None:
    upstream.session = None
    gateway = await live(behind(upstream.url))
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    # Before anybody said initialize, and after.
    for _ in range(2):
        answer = await gateway.post("behind", message)
        assert answer.status == 200, answer
        assert answer.message["id"] == 1
        assert "result" in answer.message
        first = await gateway.initialize("behind")
        assert first.status == 200
        assert "Mcp-Session-Id" not in first.headers
        assert "result" in first.message
        assert len(gateway.service.registry) == 0
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await gateway.post("behind", told)).status == 202
    assert (await gateway.post("behind", message, "A" * 43)).status == 404
    stream = {"Accept": "text/event-stream"}
    assert (await gateway.request("GET", "/servers/behind/mcp", None, stream)).status == 405
    assert (await gateway.request("DELETE", "/servers/behind/mcp")).status == 405


@pytest_twisted.ensureDeferred
async def test_each_client_of_a_server_without_sessions_brings_its_own_credentials(
    live: Start, upstream: FaultyUpstream
) -> None:
    def script(request: Received) -> bool:
        if request.header(b"authorization") in (b"Bearer good", b"Bearer fine"):
            return False
        request.reply(401, type=None)
        return True

    upstream.session = None
    upstream.script = script
    gateway = await live(behind(upstream.url, forward_authorization=True))
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}

    async def ask(token: str) -> Any:
        named = {"Authorization": f"Bearer {token}"} if token else {}
        return (await gateway.post("behind", message, **named)).message

    # The handshake is made with them, too; who has bad ones is refused before it and after it.
    for token in ("bad", "", "good", "bad", "", "fine"):
        assert ("result" in await ask(token)) == (token in ("good", "fine")), token
    sent = [(r.rpc, r.header(b"authorization")) for r in upstream.requests]
    assert sent.count(("initialize", b"Bearer good")) == 1
    assert ("initialize", b"Bearer fine") not in sent
    assert [who for rpc, who in sent if rpc == "tools/list"] == [
        b"Bearer good",
        b"Bearer bad",
        None,
        b"Bearer fine",
    ]


@pytest_twisted.ensureDeferred
async def test_a_client_that_takes_only_json_is_answered_though_its_stream_was_closed(
    live: Start, upstream: FaultyUpstream
) -> None:
    def script(request: Received) -> bool:
        if request.rpc != "tools/call":
            return False
        request.stream()
        request.event(None, id="1", retry=10)
        request.end()
        return True

    upstream.script = script
    gateway = await live(behind(upstream.url))
    (session,) = (await gateway.initialize("behind")).headers["Mcp-Session-Id"]
    message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "x"}}
    answer = await gateway.post("behind", message, session, Accept="application/json")
    assert (answer.status, answer.message["id"]) == (200, 7)
    assert answer.reason == "outcome_unknown"


@pytest_twisted.ensureDeferred
async def test_a_late_answer_is_dropped_and_counted(live: Start) -> None:
    gateway = await live(faulty(timeout=0.2))
    session = await gateway.session("faulty")
    answer = await gateway.call("faulty", session, "after_cancel")
    assert answer.reason == "timeout"
    while not gateway.recorder.of(MessageDropped):
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
    assert gateway.recorder.of(MessageDropped)[0].why == "late_answer"
    assert "result" in (await gateway.call("faulty", session, "echo")).message


@pytest_twisted.ensureDeferred
async def test_a_server_over_http_and_sse_that_is_not_there_harms_no_other(live: Start) -> None:
    gateway = await live(behind("http://127.0.0.1:1/sse", transport="sse"), faulty())
    answer = await gateway.initialize("behind")
    assert answer.status == 200
    assert answer.reason == "upstream_unreachable"
    assert answer.message["error"]["message"] == "the server cannot be reached"
    assert "result" in (await gateway.initialize("faulty")).message


# Stopping, again and meanwhile.


@pytest_twisted.ensureDeferred
async def test_a_second_stop_waits_for_the_same_end_and_nothing_starts_meanwhile(
    live: Start,
) -> None:
    gateway = await live(faulty(), drain_grace=0.2)
    session = await gateway.session("faulty")
    hanging = ensureDeferred(gateway.call("faulty", session, "hang"))
    while not any(session.running for session in gateway.service.registry):
        await deferLater(reactor, 0)  # type: ignore[arg-type]
    first = gateway.service.stopService()
    second = gateway.service.stopService()
    assert not first.called
    assert not second.called
    with pytest.raises(RuntimeError, match="still drains"):
        gateway.service.startService()
    assert (await hanging).reason == "shutting_down"
    await second
    assert first.called
    assert gateway.service.state is State.STOPPED
    gateway.service.startService()
    assert gateway.service.state is State.READY


@pytest_twisted.ensureDeferred
async def test_a_call_that_comes_while_it_drains_is_told_so(live: Start) -> None:
    gateway = await live(faulty(), drain_grace=20.0)
    session = await gateway.session("faulty")
    running = ensureDeferred(gateway.call("faulty", session, "sleep", seconds=0.5))
    while not any(session.running for session in gateway.service.registry):
        await deferLater(reactor, 0)  # type: ignore[arg-type]
    # A connection that is open already is heard until the end.
    client = await connectProtocol(
        TCP4ClientEndpoint(reactor, "127.0.0.1", int(gateway.base.rpartition(":")[2])),
        RawClient(),
    )
    host = gateway.base.removeprefix("http://").encode()
    client.send(b"GET /healthz HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
    assert (await client.response()).status == 200
    stopping = gateway.service.stopService()
    body = rpc("tools/call", 9, name="echo")
    client.send(
        b"POST /servers/faulty/mcp HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
        b"Mcp-Session-Id: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (host, session.encode(), len(body), body)
    )
    answer = await client.response()
    assert (answer.status, answer.json["id"]) == (200, 9)
    assert answer.json["error"]["data"]["reason"] == "shutting_down"
    assert "result" in (await running).message
    client.close()
    await client.ended
    await stopping
