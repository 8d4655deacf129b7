"""Every bound of `Limits` is reached by a test that sees what its caller gets."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from faulty_upstream import FaultyUpstream, Received
from raw import AnsweringServer, NamedInHeader, RawClient, Stack, Start, hello, rpc
from raw import start as start
from twisted.internet import reactor

from gateway.guard.limits import Limits
from gateway.links.interfaces import Reason
from gateway.observe.observer import SessionEnded
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings
from gateway.testing.scripted import ScriptedLink, Sent

TESTS = Path(__file__).parent

REACHED = {
    "max_body": "test_ladder.test_acceptance_10_aBodyOverTheLimit",
    "max_head": "test_framing.test_acceptance_7_6_each_bound_has_its_refusal_and_its_event",
    "max_head_line": "test_framing.test_acceptance_7_6_each_bound_has_its_refusal_and_its_event",
    "max_head_fields": "test_framing.test_acceptance_7_6_each_bound_has_its_refusal_and_its_event",
    "max_chunk_extensions": "test_framing."
    "test_acceptance_7_6_each_bound_has_its_refusal_and_its_event",
    "max_trailers": "test_framing.test_acceptance_7_6_each_bound_has_its_refusal_and_its_event",
    "max_connections": "test_framing.test_acceptance_93_too_many_connections",
    "head_timeout": "test_framing.test_acceptance_11_a_head_has_ten_seconds_from_connecting",
    "body_grace": "test_framing.test_acceptance_12_a_body_that_drips",
    "min_body_rate": "test_framing.test_acceptance_12_a_body_that_drips",
    "body_silence": "test_framing.test_acceptance_12_a_body_that_falls_silent",
    "keep_alive": "test_framing.test_a_connection_without_a_request_is_closed_in_silence",
    "max_batch": "test_streamable_proxy.test_acceptance_27_batchesThatAreRefused",
    "max_answer": "test_streamable_http_link.test_an_event_over_the_limit_ends_the_servers_stream",
    "max_json_answer_stream": "test_streamable_proxy.test_aLargeAnswerIsJSON",
    "max_sessions": "test_streamable_proxy.test_acceptance_41_atCapacity",
    "max_sessions_per_principal": "test_limits.test_acceptance_41_sessionsOfOnePrincipal",
    "max_sessions_per_address": "test_load.test_acceptance_41_sessions_of_one_address",
    "session_idle": "test_limits.test_acceptance_40_anIdleSessionEnds",
    "session_absolute": "test_limits.test_acceptance_40_noSessionIsForEver",
    "session_unused": "test_limits.test_acceptance_40_aSessionNobodyUsesEnds",
    "retry_after": "test_streamable_proxy.test_acceptance_41_atCapacity",
    "max_calls": "test_limits.test_callsOfASession",
    "max_calls_total": "test_load.test_acceptance_92_too_many_calls_of_all",
    "max_waiting_per_principal": "test_load."
    "test_acceptance_96_a_flood_waits_for_its_turn_then_is_turned_away",
    "max_calls_per_principal": "test_load."
    "test_acceptance_96_who_floods_is_turned_away_and_others_are_not",
    "max_modern_calls": "test_modern_relay.test_callsAndStreamsAreBounded",
    "max_input_rounds": "test_bridge_up.test_a_call_that_is_asked_for_more_and_more_fails",
    "max_server_requests": "test_limits.test_unansweredRequestsOfAServer",
    "max_subscriptions": "test_router.test_the_record_learns_what_has_to_be_said_again",
    "max_pooled_sessions": "test_pool.test_furtherCallsOfACallerWaitInOrder",
    "max_pooled_total": "test_pool.test_theLongestIdleSessionOfAnybodyMakesRoom",
    "pooled_idle": "test_pool.test_idleSessionsEnd",
    "max_modern_waiting": "test_pool.test_howManyWait",
    "max_modern_waiting_per_principal": "test_pool.test_nobodyTakesAllPlacesThatOthersWaitFor",
    "max_parked": "test_pool.test_howManyWaitForTheirClients",
    "max_parked_per_principal": "test_pool.test_nobodyKeepsOthersFromBeingAsked",
    "parked_for": "test_pool.test_aClientThatDoesNotComeBack",
    "parked_beside": "test_pool.test_callsThatNobodyComesBackForHoldUpNoOthersForLong",
    "ask_wait": "test_pool.test_whatIsAskedWithinAWhileGoesTogether",
    "max_listens": "test_pool.test_howManyListen",
    "max_listens_per_principal": "test_pool.test_nobodyKeepsOthersFromListening",
    "max_get_streams": "test_streamable_proxy.test_acceptance_38_fourStreamsAndTheNewestGetsIt",
    "max_queued_messages": "test_limits.test_messagesWithoutAStream",
    "max_queued_bytes": "test_limits.test_messagesWithoutAStream",
    "queued_for": "test_limits.test_messagesWithoutAStream",
    "max_logged_events": "test_limits.test_acceptance_76_whatIsKeptOfAStream",
    "max_logged_bytes": "test_limits.test_acceptance_76_whatIsKeptOfAStream",
    "logged_for": "test_limits.test_acceptance_76_whatIsKeptOfAStream",
    "max_stream_bytes": "test_streamable_proxy.test_acceptance_77_13_aSlowReaderIsBoundedAndCut",
    "reader_blocked": "test_streamable_proxy.test_acceptance_77_13_aSlowReaderIsBoundedAndCut",
    "head_wait": "test_streamable_proxy.test_theHeadWaitsTenSeconds",
    "heartbeat": "test_streamable_proxy.test_acceptance_80_aCommentEvery15Seconds",
    "cancel_wait": "test_limits.test_aCancelledCallEndsSoon",
    "queue_wait": "test_transparent_proxy.test_acceptance_28_202OnceTheServerTookItOrAfterASecond",
    "hang_up_wait": "test_faults.test_stopping_waits_for_no_reader_that_does_not_read",
    "drain_grace": "test_end_to_end.test_stopping_answers_what_runs_and_leaves_no_child",
    "max_line": "test_stdio_link.test_acceptance_51_a_line_without_end",
    "max_stdin_messages": "test_stdio_link.test_acceptance_50_a_child_that_stops_reading",
    "max_stdin_bytes": "test_stdio_link.test_acceptance_50_the_queue_is_bounded_in_bytes",
    "max_stderr_rate": "test_stdio_link.test_acceptance_56_stderr_is_drained_and_bounded",
    "max_upstream_head": "test_limits.test_acceptance_72_anUpstreamsHead",
    "max_upstream_connections": "test_streamable_http_link."
    "test_at_the_bound_on_connections_a_call_waits_for_its_turn",
    "max_upstream_queue": "test_streamable_http_link.test_when_the_queue_is_full_nothing_is_taken",
    "max_upstream_queue_bytes": "test_streamable_http_link."
    "test_when_the_queue_is_full_nothing_is_taken",
    "max_upstream_streams": "test_streamable_http_link."
    "test_streams_that_are_open_take_no_room_from_calls",
    "max_resumptions": "test_resuming_link."
    "test_a_resumption_that_is_refused_is_tried_again_only_so_often",
    "connect_timeout": "test_streamable_http_link.test_a_connect_that_takes_too_long",
    "upstream_first_byte": "test_http_client.test_acceptance_71_aStreamWhoseHeadDoesNotCome",
    "upstream_idle": "test_http_client.test_acceptance_71_aStreamThatFallsSilent",
    "upstream_half_open": "test_http_client.test_acceptance_71_aPeerThatIsGoneIsNoticedByTheSystem",
    "upstream_keep_alive": "test_http_client.test_anIdleConnectionIsKeptForAWhile",
    "era_probe": "test_modern_links.test_silence_is_not_modern",
    "era_verdict": "test_eras.test_a_verdict_lives_for_a_day",
    "max_eras": "test_eras.test_verdicts_are_bounded",
    "max_tool_headers": "test_modern_links.test_annotations_that_find_no_room",
    "max_tool_hints": "test_replays.test_how_many_tools_are_remembered",
    "max_tool_pages": "test_modern_links.test_only_so_many_pages_are_read_for_it",
    "eof_wait": "test_stdio_link.test_acceptance_58_stubborn_with_grandchildren",
    "term_wait": "test_stdio_link.test_acceptance_58_stubborn_with_grandchildren",
    "respawn_first": "test_limits.test_acceptance_48_whatDiesYoungIsMadeAgainMoreAndMoreRarely",
    "respawn_last": "test_limits.test_acceptance_48_whatDiesYoungIsMadeAgainMoreAndMoreRarely",
    "circuit_failures": "test_breaker.test_acceptance_48_fiveFailuresOpenTheCircuit",
    "circuit_window": "test_breaker.test_onlyFailuresWithinTheWindowCount",
    "circuit_young": "test_breaker.test_aLinkThatDiesYoungIsAFailure",
    "circuit_first": "test_breaker.test_theCoolDownGrowsAndIsBounded",
    "circuit_last": "test_breaker.test_theCoolDownGrowsAndIsBounded",
}
"""Which test reaches which bound."""


@cache
def namesIn(module: str) -> dict[str, str]:
    """The test functions of a module: name to source."""
    text = (TESTS / f"{module}.py").read_text()
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_everyBoundIsReached() -> None:
    assert set(REACHED) == {field.name for field in attrs.fields(Limits)}


WITHOUT_EVENT = {
    "retry_after": "a value the caller is told, not a bound",
    "body_grace": "a measure of min_body_rate, whose event tells",
    "heartbeat": "an interval: nothing is refused or ended",
    "era_verdict": "an interval: nothing is refused, and EraFound tells what comes of it",
    "head_wait": "an interval: the answer goes on, as a stream",
    "ask_wait": "an interval: what is asked later is asked in the next round",
    "max_json_answer_stream": "a choice of form: nothing is refused or ended",
    "circuit_window": "a measure of circuit_failures, whose event tells",
    "circuit_young": "a measure of circuit_failures, whose event tells",
    "circuit_first": "an interval: CircuitOpened tells it",
    "circuit_last": "an interval: CircuitOpened tells it",
    "upstream_half_open": "kept by the operating system, which does not say why a connection broke",
    "upstream_keep_alive": "an interval: nobody waits for an idle connection",
}
"""Fields that need no event, and why."""


@pytest.mark.parametrize("bound", REACHED)
def test_byATestThatIsThereAndSeesTheEvent(bound: str) -> None:
    module, _, name = REACHED[bound].rpartition(".")
    source = namesIn(module)[name]
    if bound not in WITHOUT_EVENT:
        assert f'"{bound}"' in source or f"'{bound}'" in source or "[bound]" in source


async def session(
    start: Start, limits: Limits, **options: object
) -> tuple[Stack, AnsweringServer, list[tuple[bytes, bytes]]]:
    """A session with a server that answers when the test says so."""
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=limits)
    id = await stack.open(**options)  # type: ignore[arg-type]
    server.answers = False
    return stack, server, [(b"Mcp-Session-Id", id)]


async def call(
    stack: Stack, link: ScriptedLink, named: list[tuple[bytes, bytes]], id: object = 7
) -> tuple[RawClient, Sent]:
    before = len(link.requests)
    client = await stack.send(b"POST", b"/mcp", rpc("tools/call", id), named)
    await stack.until(lambda: len(link.requests) > before)
    return client, link.requests[-1]


@pytest.mark.acceptance(41)
@pytest_twisted.ensureDeferred
async def test_acceptance_41_sessionsOfOnePrincipal(start: Start) -> None:
    stack = await start(
        {"one": AnsweringServer("one")},
        authenticator=NamedInHeader(),
        limits=Limits(max_sessions_per_principal=1),
    )
    alice, bob = [(b"X-Who", b"alice")], [(b"X-Who", b"bob")]
    await stack.open(headers=alice)
    for method, path, body in ((b"POST", b"/mcp", hello()), (b"GET", b"/sse", None)):
        full = await stack.ask(method, path, body, alice)
        assert (full.status, full.header(b"retry-after")) == (503, b"5")
    await stack.open(headers=bob)
    assert stack.observer.bounds == ["max_sessions_per_principal"] * 2


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_anIdleSessionEnds(start: Start) -> None:
    stack, server, named = await session(start, Limits(session_idle=100))
    stack.pass_(99)
    assert (await stack.ask(b"POST", b"/mcp", rpc("notifications/x"), named)).status == 202
    stack.pass_(99)
    assert (await stack.ask(b"POST", b"/mcp", rpc("notifications/x"), named)).status == 202
    stack.pass_(101)
    assert (await stack.ask(b"POST", b"/mcp", rpc("notifications/x"), named)).status == 404
    # Connections are idle meanwhile, too.
    reached = [limit for limit in stack.observer.bounds if limit != "keep_alive"]
    assert reached == ["session_idle"]
    assert server.newest.closed


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_noSessionIsForEver(start: Start) -> None:
    stack, server, named = await session(start, Limits(session_absolute=100))
    client, sent = await call(stack, server.newest, named)
    stack.pass_(101)
    # No new request, but what runs finishes first.
    assert (await stack.ask(b"POST", b"/mcp", rpc("ping", 1), named)).status == 404
    assert stack.observer.bounds == []
    server.newest.reply(sent)
    assert (await client.head()).status == 200
    assert (await client.message())["result"] == {}
    stack.pass_(1)
    assert stack.observer.bounds == ["session_absolute"]
    (ended,) = stack.observer.of(SessionEnded)
    assert ended.reason == "absolute"


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_aSessionNobodyUsesEnds(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    for _ in range(20):
        client = await stack.send(b"POST", b"/mcp", hello())
        await client.response()
        client.reset()
    stack.pass_(59)
    assert len(stack.shared.registry) == 20
    stack.pass_(2)
    assert len(stack.shared.registry) == 0
    assert stack.observer.bounds == ["session_unused"] * 20
    assert server.open == []


@pytest_twisted.ensureDeferred
async def test_callsOfASession(start: Start) -> None:
    stack, server, named = await session(start, Limits(max_calls=2))
    first, sent = await call(stack, server.newest, named, 1)
    await call(stack, server.newest, named, 2)
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 3), named)
    assert (full.status, full.json["id"]) == (200, 3)
    assert full.json["error"]["data"]["reason"] == "overloaded"
    assert stack.observer.bounds == ["max_calls"]
    server.newest.reply(sent)
    assert (await first.response()).json["id"] == 1
    await call(stack, server.newest, named, 4)


@pytest_twisted.ensureDeferred
async def test_unansweredRequestsOfAServer(start: Start) -> None:
    stack, server, named = await session(start, Limits(max_server_requests=2))
    get = await stack.send(b"GET", b"/mcp", None, named)
    await get.head()
    for n in range(3):
        server.newest.push(b'{"jsonrpc":"2.0","id":"s%d","method":"ping"}' % n)
    (refused,) = server.newest.of("")
    assert refused.id == b'"s2"'
    assert json.loads(bytes(refused.message.fields["error"]))["code"] == -32603
    assert stack.observer.bounds == ["max_server_requests"]
    asked = [(await get.message())["id"] for _ in range(2)]
    assert len(set(asked)) == 2


@pytest_twisted.ensureDeferred
async def test_messagesWithoutAStream(start: Start) -> None:
    limits = Limits(max_queued_messages=3, max_queued_bytes=600, queued_for=20)
    stack, server, named = await session(start, limits)

    def push(text: str) -> None:
        server.newest.push(rpc("notifications/message", level="info", data=text))

    server.newest.push(b'{"jsonrpc":"2.0","id":"s","method":"ping"}')
    for n in range(3):
        push(str(n))
    # The oldest goes: it was a request, and its server hears of it.
    (refused,) = server.newest.of("")
    assert json.loads(bytes(refused.message.fields["error"]))["code"] == -32603
    assert stack.observer.bounds == ["max_queued_messages"]
    push("x" * 500)
    assert stack.observer.bounds[1:] and set(stack.observer.bounds[1:]) <= {
        "max_queued_messages",
        "max_queued_bytes",
    }
    assert "max_queued_bytes" in stack.observer.bounds
    stack.pass_(21)
    assert stack.observer.bounds[-1] == "queued_for"
    push("last")
    get = await stack.send(b"GET", b"/mcp", None, named)
    await get.head()
    assert (await get.message())["params"]["data"] == "last"


@pytest.mark.acceptance(76)
@pytest.mark.parametrize(
    ("bound", "value"), [("max_logged_events", 2), ("max_logged_bytes", 200), ("logged_for", 10)]
)
@pytest_twisted.ensureDeferred
async def test_acceptance_76_whatIsKeptOfAStream(start: Start, bound: str, value: int) -> None:
    limits = Limits(**{bound: value})
    stack, server, named = await session(start, limits, revision="2025-11-25")
    client, sent = await call(stack, server.newest, named)
    await client.head()
    primer = await client.event()
    assert primer is not None and primer.id is not None
    for n in range(4):
        if n == 2:
            stack.pass_(11)
        server.newest.push(rpc("notifications/message", level="info", data=str(n)))
    client.reset()
    await client.ended
    again = await stack.send(b"GET", b"/mcp", None, [*named, (b"Last-Event-ID", primer.id)])
    await again.head()
    # The gap is announced, then it goes on from there; the final answer comes.
    gap = await again.chunk()
    assert gap is not None and gap.startswith(b": gap")
    assert (await again.message())["params"]["data"] in ("2", "3")
    assert stack.observer.bounds == [bound]
    server.newest.reply(sent, b'"final"')
    message = await again.message()
    while "result" not in message:
        message = await again.message()
    assert message["result"] == "final"
    assert await again.event() is None


@pytest_twisted.ensureDeferred
async def test_aCancelledCallEndsSoon(start: Start) -> None:
    stack, server, named = await session(start, Limits(cancel_wait=2))
    client, sent = await call(stack, server.newest, named, "x")
    told = rpc("notifications/cancelled", requestId="x")
    assert (await stack.ask(b"POST", b"/mcp", told, named)).status == 202
    # With the server's id.
    assert server.newest.last("notifications/cancelled").message.param("requestId") == sent.id
    stack.pass_(1.5)
    await stack.turns()
    assert client.unread == b""
    stack.pass_(1)
    failed = await client.response()
    assert (failed.status, failed.json["id"]) == (200, "x")
    assert failed.json["error"]["data"]["reason"] == "cancelled"
    assert stack.observer.bounds == ["cancel_wait"]


@pytest.mark.acceptance(72)
@pytest_twisted.ensureDeferred
async def test_acceptance_72_anUpstreamsHead(start: Start) -> None:
    upstream = FaultyUpstream()
    upstream.start(reactor)
    limits = Limits(max_upstream_head=4096)
    settings = HTTPSettings(name="one", url=upstream.url)
    stack = await start({}, default="one", limits=limits)
    server = HTTPServer(settings, limits, reactor, stack.clock, stack.observer)  # type: ignore[arg-type]
    stack.mount("one", server)
    named = [(b"Mcp-Session-Id", await stack.open())]

    def script(received: Received) -> bool:
        if received.method != b"POST" or received.message.get("method") != "tools/call":
            return False
        received.result({}, ((b"x-large", b"x" * 5000),))
        return True

    upstream.script = script
    failed = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 7), named)
    assert (failed.status, failed.json["id"]) == (200, 7)
    assert failed.json["error"]["data"]["reason"] == "bad_answer"
    assert "127.0.0.1" not in failed.body.decode()
    assert stack.observer.bounds == ["max_upstream_head"]
    await stack.shared.registry.end(next(iter(stack.shared.registry)), "shutdown")
    await server.drain()
    await upstream.close()


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_whatDiesYoungIsMadeAgainMoreAndMoreRarely(start: Start) -> None:
    stack, server, named = await session(start, Limits(respawn_first=1, respawn_last=4))
    (live,) = stack.shared.registry
    # At once, then after 1, 2, 4, 4 seconds, each a fifth more or less.
    for n, wait in enumerate((0, 1, 2, 4, 4)):
        server.newest.lose(Reason.SERVER_EXITED)
        client = await stack.send(b"POST", b"/mcp", rpc("tools/call", n), named)
        await stack.until(lambda: live.running)
        if wait:
            stack.clock.advance(wait * 0.79)
            assert len(server.links) == n + 1
            stack.clock.advance(wait * 0.42)
        assert len(server.links) == n + 2
        server.newest.reply(server.newest.last("tools/call"))
        assert (await client.head()).status == 200
        assert not live.running
    assert stack.observer.bounds == ["respawn_first"] * 2 + ["respawn_last"] * 2
