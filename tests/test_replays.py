"""
Calls that may have run and got no answer: which are sent once more, and which get their one error.
"""

from __future__ import annotations

from typing import Any

import pytest
from relay_support import CONTEXT, Bench, MemoryTarget, notify, request

from gateway.guard.limits import Limits
from gateway.links.interfaces import Outcome, Reason, Settled
from gateway.observe.observer import BoundReached, CallRepeated, SessionRecovered
from gateway.relay.effects import Answer, Call, Forward
from gateway.relay.modern_router import ModernRouter
from gateway.relay.replays import SAFE, Replays
from gateway.testing.scripted import ScriptedServer
from gateway.wire.tool_hints import ToolHints

TOOLS = (
    b'{"tools":[{"name":"reads","annotations":{"readOnlyHint":true}},'
    b'{"name":"sets","annotations":{"idempotentHint":true,"readOnlyHint":false}},'
    b'{"name":"adds","annotations":{"readOnlyHint":false}},{"name":"plain"}]}'
)


def opened(**settings: Any) -> Bench:
    return Bench(ScriptedServer(**settings)).opened()


@pytest.mark.acceptance(46)
@pytest.mark.parametrize("method", sorted(SAFE))
def test_what_changes_nothing_is_asked_of_the_next_child(method: str) -> None:
    bench = opened()
    safe, unsafe = bench.ask(1, method), bench.ask(2, "tools/call")
    first = bench.server.newest.last(method)
    bench.server.newest.lose()
    assert unsafe.reason == "server_exited" and not safe.answers
    again = bench.server.newest.last(method)
    assert bench.server.handshakes == 2 and again.id != first.id
    bench.server.newest.reply(again, b'{"x":1.0}')
    assert safe.json["id"] == 1 and b'{"x":1.0}' in safe.answers[0].encode()
    assert bench.observed.of(CallRepeated) == [CallRepeated("scripted", method)]
    assert len(bench.observed.of(SessionRecovered)) == 1
    bench.end()


@pytest.mark.acceptance(46)
def test_once_and_no_more() -> None:
    bench = opened()
    safe = bench.ask(1, "tools/list")
    bench.server.newest.lose()
    bench.clock.advance(1.0)
    bench.server.newest.lose()
    assert safe.reason == "server_exited" and bench.server.handshakes == 2
    bench.end()


@pytest.mark.parametrize(
    ("settings", "reason", "answered"),
    [
        ({"replay": "none"}, Reason.SERVER_EXITED, "server_exited"),
        ({}, Reason.BAD_ANSWER, "bad_answer"),
        ({}, Reason.SHUTTING_DOWN, "shutting_down"),
    ],
)
def test_not_where_it_may_not_be_or_cannot_help(
    settings: dict[str, str], reason: Reason, answered: str
) -> None:
    bench = opened(**settings)
    target = bench.ask(1, "tools/list")
    bench.server.newest.lose(reason)
    assert target.reason == answered
    assert not bench.observed.of(CallRepeated)
    bench.end()


def test_not_where_the_session_is_lost_with_its_server() -> None:
    bench = opened(on_exit="lost")
    target = bench.ask(1, "tools/list")
    bench.server.newest.lose()
    assert target.reason == "server_exited" and bench.session.ended == "lost"
    assert bench.server.handshakes == 1


def test_not_what_was_cancelled_or_nobody_waits_for() -> None:
    bench = opened()
    cancelled, left = bench.ask(1, "tools/list"), bench.ask(2, "tools/list")
    bench.tell(notify("notifications/cancelled", '{"requestId":1}'))
    bench.relay.gone(left)
    bench.server.newest.lose()
    assert cancelled.reason == "server_exited" and not left.answers
    assert bench.server.handshakes == 1
    bench.end()


def test_only_within_its_deadline() -> None:
    bench = opened(timeout=10.0)
    target = bench.ask(1, "tools/list")
    bench.server.handshakeHeld = True
    bench.server.newest.lose()
    bench.clock.advance(9.0)
    assert not target.answers
    bench.clock.advance(1.0)
    assert target.reason == "timeout"
    bench.server.finishHandshake()
    assert not bench.server.newest.of("tools/list")
    bench.end()


def test_one_that_may_have_run_is_never_said_not_to_have() -> None:
    bench = opened()
    target = bench.ask(1, "tools/list")
    bench.server.failNext(Reason.UPSTREAM_UNREACHABLE)
    bench.server.newest.lose()
    assert target.reason == "server_exited"
    bench.end()


@pytest.mark.acceptance(69)
def test_a_cut_answer_over_http() -> None:
    bench = opened(http=True)
    safe, unsafe = bench.ask(1, "tools/list"), bench.ask(2, "tools/call")
    link = bench.server.newest
    link.settle(link.last("tools/call"))
    link.settle(link.last("tools/list"))
    assert unsafe.reason == "outcome_unknown"
    one, other = link.of("tools/list")
    assert one.id != other.id and bench.server.handshakes == 1
    link.settle(other)
    assert safe.reason == "outcome_unknown" and len(link.of("tools/list")) == 2
    bench.end()


@pytest.mark.acceptance(64, 69)
def test_a_cut_answer_and_then_a_lost_session() -> None:
    """An upstream that restarts cuts what runs, and knows the session no more: once more, again."""
    bench = opened(http=True)
    safe = bench.ask(1, "tools/list")
    link = bench.server.newest
    link.settle(link.last("tools/list"))
    link.settle(link.last("tools/list"), Reason.BAD_ANSWER, status=404)
    assert bench.server.handshakes == 2 and not bench.session.ended
    newest = bench.server.newest
    newest.accept(newest.last("notifications/initialized"))
    newest.reply(newest.last("tools/list"), TOOLS)
    assert safe.json["id"] == 1
    bench.end()


def test_what_was_answered_with_a_failure_is_not_asked_again() -> None:
    bench = opened(http=True)
    target = bench.ask(1, "tools/list")
    link = bench.server.newest
    failed = Settled(Outcome.MAYBE_RAN, Reason.OUTCOME_UNKNOWN, "no", 503)
    link.listener.settled(link.last("tools/list").call, failed)
    assert target.reason == "outcome_unknown" and len(link.of("tools/list")) == 1
    bench.end()


def annotated(bench: Bench, result: bytes = TOOLS, params: str = "{}") -> None:
    bench.ask(99, "tools/list", params)
    bench.server.newest.reply(bench.server.newest.last("tools/list"), result)


def called(bench: Bench, name: str) -> MemoryTarget:
    return bench.ask(1, "tools/call", f'{{"name":"{name}"}}')


def test_tools_whose_annotations_say_so() -> None:
    bench = opened(replay="annotated")
    unknown = called(bench, "reads")
    bench.server.newest.lose()
    assert unknown.reason == "server_exited", "nobody was told of it yet"
    annotated(bench)
    calls = {name: called(bench, name) for name in ("reads", "sets", "adds", "plain", "other")}
    bench.clock.advance(40.0)
    bench.server.newest.lose()
    bench.clock.advance(1.0)
    waits = {name for name, target in calls.items() if not target.answers}
    assert waits == {"reads", "sets"}
    assert len(bench.server.newest.of("tools/call")) == 2
    bench.end()


def test_annotations_are_no_reason_unless_they_are_to_be() -> None:
    bench = opened()
    annotated(bench)
    target = called(bench, "reads")
    bench.server.newest.lose()
    assert target.reason == "server_exited"
    bench.end()


def test_what_a_server_says_later_wins() -> None:
    hints = ToolHints(8)
    assert hints.learn(TOOLS, first=True)
    assert hints.allows("reads") and not hints.allows("plain") and not hints.allows(None)
    hints.learn(b'{"tools":[{"name":"reads"}]}', first=False)
    assert hints.allows("sets") and not hints.allows("reads")
    hints.learn(b'{"tools":[]}', first=True)
    assert not hints.allows("sets")
    for nonsense in (b"{}", b"[]", b'{"tools":7}', b'{"tools":[7,{},{"name":1}]}'):
        assert hints.learn(nonsense, first=True)


def test_how_many_tools_are_remembered() -> None:
    bench = Bench(ScriptedServer(replay="annotated"), Limits(max_tool_hints=1)).opened()
    annotated(bench)
    assert bench.observed.of(BoundReached) == [BoundReached("max_tool_hints", "scripted")]
    calls = [called(bench, name) for name in ("reads", "sets")]
    bench.server.newest.lose()
    assert [len(target.answers) for target in calls] == [0, 1]
    bench.end()


# Modern clients of a modern child.


def test_modern_calls() -> None:
    router = ModernRouter("scripted", Limits(), 600.0, 3600.0, None, Replays("safe"))

    def ask(method: str) -> Call:
        effects = router.request(request(1, method), object(), CONTEXT, 0.0)
        call = next(effect.call for effect in effects if isinstance(effect, Forward))
        assert call is not None
        call.via = object()  # type: ignore[assignment]
        return call

    safe, unsafe, listens = ask("tools/list"), ask("tools/call"), ask("subscriptions/listen")
    before = safe.upstream
    effects = router.lost(Reason.SERVER_EXITED, "gone", 1.0)
    assert [effect.call for effect in effects if isinstance(effect, Answer)] == [unsafe]
    assert [effect.call for effect in effects if isinstance(effect, Forward)] == [safe]
    assert router.calls == {safe.upstream: safe} and safe.upstream != before
    assert listens not in router.calls.values()
    safe.via = object()  # type: ignore[assignment]
    (failed,) = [
        effect
        for effect in router.lost(Reason.SERVER_EXITED, "gone", 2.0)
        if isinstance(effect, Answer)
    ]
    assert failed.call is safe and failed.failed == "server_exited"
