"""
A session whose server forgot it has two links for a while: the next one, and the retired one on
which calls still run. What the retired one says concerns those calls, and nothing of the next.
"""

from __future__ import annotations

import pytest
from relay_support import CONTEXT, Bench, MemoryTarget, notify, response
from test_relay import http, transparent

from gateway.links.interfaces import Reason
from gateway.observe.observer import LinkLost, MessageDropped
from gateway.testing.scripted import ScriptedLink


def forgotten() -> tuple[Bench, ScriptedLink, ScriptedLink, MemoryTarget, MemoryTarget]:
    """A call that stays on the retired link, and one that was sent again on the next."""
    bench, first = http()
    first.accept(first.sent[0])
    stays, again = bench.ask(1), bench.ask(2)
    first.settle(first.of("tools/call")[1], status=404)
    second = bench.server.newest
    assert second is not first
    second.accept(second.sent[0])
    assert len(second.of("tools/call")) == 1
    return bench, first, second, stays, again


@pytest.mark.acceptance(64)
def test_a_retired_link_that_is_lost_fails_its_own_calls_alone() -> None:
    bench, first, second, stays, again = forgotten()
    later = bench.ask(3)
    first.lose()
    assert stays.reason == "server_exited"
    assert not again.answers and not later.answers
    for sent in second.of("tools/call"):
        second.reply(sent)
    assert [target.json["id"] for target in (again, later)] == [2, 3]
    assert bench.server.handshakes == 2 and second.alive
    assert bench.observed.of(LinkLost) == [LinkLost("scripted", "server_exited")]
    assert bench.relay.link is second
    bench.end()


@pytest.mark.acceptance(64)
@pytest.mark.parametrize("while_", ["shaking hands", "greeting"])
def test_it_may_be_lost_while_the_next_is_made(while_: str) -> None:
    bench, first = http()
    stays, again = bench.ask(1), bench.ask(2)
    bench.server.handshakeHeld = while_ == "shaking hands"
    first.settle(first.of("tools/call")[1], status=404)
    first.lose()
    assert stays.reason == "server_exited"
    assert not again.answers
    if bench.server.handshakeHeld:
        bench.server.finishHandshake()
    second = bench.server.newest
    second.accept(second.sent[0])
    second.reply(second.last("tools/call"))
    assert again.json["id"] == 2
    assert bench.server.handshakes == 2
    bench.end()


def test_the_next_link_that_is_lost_leaves_the_calls_of_the_retired_one() -> None:
    bench, first, second, stays, again = forgotten()
    second.lose()
    assert again.reason == "server_exited"
    assert not stays.answers
    first.reply(first.of("tools/call")[0])
    assert stays.json["id"] == 1
    bench.end()


def test_a_retired_link_is_closed_once_nothing_runs_on_it() -> None:
    bench, first, second, stays, _ = forgotten()
    assert first.alive
    first.reply(first.of("tools/call")[0])
    assert stays.json["id"] == 1
    assert first.closed and second.alive
    bench.end()


@pytest.mark.parametrize("end", ["settled", "timeout", "lost"])
def test_however_its_last_call_ends(end: str) -> None:
    bench, first, second, stays, again = forgotten()
    second.reply(second.last("tools/call"))
    if end == "settled":
        first.settle(first.of("tools/call")[0])
    elif end == "timeout":
        bench.clock.advance(bench.server.settings.timeout)
    else:
        first.lose()
    assert stays.answers and again.answers
    assert not first.alive and second.alive
    bench.end()


@pytest.mark.parametrize("late", [False, True])
def test_a_note_on_its_way_keeps_a_retired_link(late: bool) -> None:
    bench, first = http()
    first.accept(first.sent[0])
    bench.ask(1)
    told = bench.tell(notify("notifications/roots/list_changed"))
    first.settle(first.last("tools/call"), status=404)
    assert first.alive and not told
    if late:
        # Who said it waits no longer, but it would be said again.
        bench.clock.advance(bench.limits.queue_wait)
        assert first.alive and told == [True]
    first.settle(first.last("notifications/roots/list_changed"), status=404)
    assert first.closed
    second = bench.server.newest
    second.accept(second.sent[0])
    second.accept(second.last("notifications/roots/list_changed"))
    assert told == [True]
    bench.end()


def test_a_client_with_a_stream_of_the_servers_keeps_a_retired_link() -> None:
    """Straight through, the client's stream is the retired link's: it would end untold."""
    bench, first = transparent()
    stream = bench.stream()
    bench.relay.opens(stream, first)
    bench.ask(1)
    first.settle(first.last("tools/call"), status=404)
    second = bench.server.newest
    second.accept(second.sent[0])
    bench.ask(2)
    second.settle(second.last("tools/call"), status=404)
    assert first.alive and second.alive
    second.reply(second.of("tools/call")[0])
    assert first.alive and second.closed
    first.push(notify("notifications/message"), stream)
    assert stream.delivered[-1].method == "notifications/message"
    bench.relay.detach(stream)
    assert first.cancelled == [stream] and first.closed
    bench.end()


@pytest.mark.parametrize("retired", [False, True])
def test_who_told_something_on_a_link_that_is_lost_waits_no_longer(retired: bool) -> None:
    bench, first = http()
    first.accept(first.sent[0])
    told = bench.tell(notify("notifications/roots/list_changed"))
    if retired:
        bench.ask(1)
        first.settle(first.last("tools/call"), status=404)
    first.lose()
    assert told == [True]
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "undeliverable")]
    bench.end()


# What the server asked belongs to the session it lost.


@pytest.mark.parametrize("through", [False, True])
def test_what_a_lost_session_asked_nobody_answers_to_the_next(through: bool) -> None:
    bench, first = transparent() if through else http()
    target = bench.ask(1)
    call = first.last("tools/call").call
    first.push(b'{"jsonrpc":"2.0","id":0,"method":"roots/list"}', call)
    (asked,) = target.delivered
    bench.ask(2)
    first.settle(first.of("tools/call")[1], status=404)
    assert target.delivered[-1].method == "notifications/cancelled"
    assert target.delivered[-1].param("requestId") == asked.id
    second = bench.server.newest
    second.accept(second.sent[0])
    assert bench.tell(response(asked.id or b"")) == [True]
    # What it asks from now on could not be answered to it either.
    first.push(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}', call)
    assert len(target.delivered) == 2
    assert not first.of("") and not second.of("")
    assert bench.observed.of(MessageDropped) == [
        MessageDropped("scripted", "stray_response"),
        MessageDropped("scripted", "session_lost"),
    ]
    # But the call is answered still, and what belongs to it is told.
    first.push(notify("notifications/message"), call)
    assert len(target.delivered) == 3
    first.reply(first.of("tools/call")[0])
    assert target.json["id"] == 1
    bench.end()


def test_a_response_is_not_sent_again_to_who_never_asked() -> None:
    bench, first = http()
    stream = bench.stream()
    first.push(b'{"jsonrpc":"2.0","id":0,"method":"roots/list"}')
    taken = bench.tell(response(stream.delivered[0].id or b""))
    first.settle(first.last(""), status=404)
    assert taken == [True]
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "undeliverable")]
    target = bench.ask(1)
    second = bench.server.newest
    assert second is not first
    second.accept(second.sent[0])
    second.reply(second.last("tools/call"))
    assert target.json["id"] == 1 and not second.of("")
    bench.end()


def test_deadlines_run_again_when_what_was_asked_is_void() -> None:
    bench, first = http()
    bench.stream()
    target = bench.ask(1)
    first.push(b'{"jsonrpc":"2.0","id":0,"method":"roots/list"}')
    bench.tell(notify("notifications/roots/list_changed"))
    first.settle(first.last("notifications/roots/list_changed"), status=404)
    bench.clock.advance(bench.server.settings.timeout)
    assert target.reason == "timeout"
    bench.end()


def test_a_link_that_is_lost_before_anybody_had_it_fails_the_attempt() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    opening = bench.opening()
    # Its listener hears of it before whoever asked for it has it.
    _, _, listener, _, _ = bench.server._pending[0]
    listener.lost(Reason.UPSTREAM_UNREACHABLE, "it went away")
    failed: list[object] = []
    opening.addErrback(lambda failure: failed.append(failure.value.reason))
    bench.server.finishHandshake()
    assert failed == [Reason.UPSTREAM_UNREACHABLE]
    assert bench.relay.link is None
    bench.registry.end(bench.session, "deleted")


def test_an_abandoned_link_that_is_lost_harms_nothing() -> None:
    bench, first = transparent()
    bench.relay.abandon(first)
    bench.relay.acquire(CONTEXT)
    second = bench.server.newest
    second.accept(second.sent[0])
    target = bench.ask(1)
    first.lose()
    second.reply(second.last("tools/call"))
    assert target.json["id"] == 1
    bench.end()
