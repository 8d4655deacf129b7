"""A relay between a session and a scripted server, in memory and on a Clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define, field
from relay_support import CONTEXT, Bench, MemoryTarget, notify, request, response
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.guard.policy import Direction, IPolicy
from gateway.links.interfaces import (
    EventMark,
    Hello,
    IHTTPLink,
    ILink,
    IServer,
    LinkFailed,
    Reason,
)
from gateway.observe.observer import (
    BoundReached,
    CallAnswered,
    CallFailed,
    CallStarted,
    LinkLost,
    LinkOpened,
    MessageDropped,
    SessionRecovered,
)
from gateway.relay.hearing import NOBODY, IKeptListener
from gateway.relay.repeats import WINDOW
from gateway.relay.sender import SessionOver
from gateway.testing.scripted import RESULT, ScriptedHTTPLink, ScriptedLink, ScriptedServer, message
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

NARROWED = RESULT.replace(b'"logging":{}', b'"experimental":{}')
OTHER_REVISION = RESULT.replace(b"2025-06-18", b"2025-03-26")


def failure(deferred: Deferred[Any]) -> BaseException:
    """What a Deferred failed with."""
    failures: list[Failure] = []
    deferred.addErrback(failures.append)
    (one,) = failures
    assert one.value is not None
    return one.value


def test_the_scripted_server_is_what_it_says() -> None:
    bench = Bench()
    assert verifyObject(IKeptListener, bench.relay.upstream) and verifyObject(IKeptListener, NOBODY)
    for http in (False, True):
        server = ScriptedServer(http=http)
        assert verifyObject(IServer, server)
        server.link(Hello(b"{}"), bench.relay.upstream, CONTEXT, ownStreams=http)
        assert verifyObject(IHTTPLink if http else ILink, server.newest)
    bench.end()


# The handshake.


def test_a_handshake_fills_the_record_and_the_store() -> None:
    bench = Bench().opened(initialized=False)
    record = bench.session.record
    assert record.revision == "2025-06-18"
    assert record.capabilities.startswith(b'{"tools":{"listChanged":true}')
    assert bench.server.newest.hello == Hello(record.initialize)
    assert bench.store.records[record.id] == record.serialize()
    assert not bench.server.newest.sent
    assert bench.observed.of(LinkOpened) == [LinkOpened("scripted")]
    bench.end()


def test_a_failing_handshake_says_why_and_leaves_nothing() -> None:
    bench = Bench()
    bench.server.failNext(Reason.UPSTREAM_UNREACHABLE, "not there")
    error = failure(bench.opening())
    assert isinstance(error, LinkFailed)
    assert (error.reason, error.message) == (Reason.UPSTREAM_UNREACHABLE, "not there")
    bench.end("failed")


def test_the_end_of_a_session_gives_its_handshake_up() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    opening = bench.opening()
    bench.end("shutdown")
    error = failure(opening)
    assert isinstance(error, LinkFailed) and error.reason is Reason.SHUTTING_DOWN
    assert bench.server.givenUp == 1


def test_a_relay_whose_session_is_over_makes_no_link() -> None:
    bench = Bench().opened()
    bench.end()
    error = failure(bench.relay.acquire(CONTEXT))
    assert isinstance(error, LinkFailed) and error.reason is Reason.SHUTTING_DOWN
    assert bench.server.handshakes == 1


# Calls.


def test_a_call_and_its_answer() -> None:
    bench = Bench().opened()
    target = bench.ask(5, params='{"name":"t"}')
    link = bench.server.newest
    sent = link.last("tools/call")
    assert sent.id != b"5" and sent.call is not None
    assert bench.session.running == 1
    link.reply(sent, b'{"content":[]}')
    assert target.json == {"jsonrpc": "2.0", "id": 5, "result": {"content": []}}
    assert bench.session.running == 0
    assert bench.observed.of(CallStarted) == [CallStarted("scripted", "tools/call")]
    assert bench.observed.of(CallAnswered) == [CallAnswered("scripted", "tools/call", 0.0, False)]
    bench.end()


@pytest.mark.acceptance(49)
def test_acceptance_49_a_hanging_call_times_out_on_the_clock() -> None:
    bench = Bench(ScriptedServer(timeout=10.0)).opened()
    target = bench.ask()
    later = bench.ask(2)
    sent = bench.server.newest.last("tools/call")
    bench.clock.advance(9.0)
    bench.ask(3)
    bench.clock.advance(0.9)
    assert not target.answers
    bench.clock.advance(0.1)
    assert target.reason == later.reason == "timeout"
    link = bench.server.newest
    assert len(link.of("notifications/cancelled")) == 2
    assert len(link.cancelled) == 2
    link.reply(sent)
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "late_answer")]
    assert bench.session.running == 1
    bench.end()


def test_the_answer_of_a_client_that_is_gone_is_dropped_and_counted() -> None:
    bench = Bench().opened()
    target = bench.ask()
    bench.relay.gone(target)
    link = bench.server.newest
    assert not link.of("notifications/cancelled"), "to disconnect is not to cancel"
    assert bench.session.running == 1
    link.reply(link.last("tools/call"))
    assert not target.answers
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "client_gone")]
    assert bench.session.running == 0
    bench.end()


@pytest.mark.acceptance(50)
def test_acceptance_50_a_full_queue_is_an_error_at_once() -> None:
    bench = Bench().opened()
    bench.server.newest.full = True
    assert bench.ask().reason == "overloaded"
    assert bench.tell(notify("notifications/roots/list_changed")) == [False]
    bench.server.newest.full = False
    assert bench.tell(notify("notifications/roots/list_changed")) == [True]
    assert bench.session.running == 0
    bench.end()


def test_a_request_of_the_server_and_back() -> None:
    bench = Bench().opened()
    stream = bench.stream()
    link = bench.server.newest
    link.push(b'{"jsonrpc":"2.0","id":"q","method":"roots/list"}')
    (asked,) = stream.delivered
    assert asked.id is not None
    assert bench.tell(response(asked.id, '{"roots":[]}')) == [True]
    assert link.last("").message.encode() == b'{"jsonrpc":"2.0","id":"q","result":{"roots":[]}}'
    assert bench.tell(response(asked.id)) == [True]
    assert len(link.of("")) == 1
    bench.end()


def test_a_stream_that_takes_nothing_has_the_server_told() -> None:
    bench = Bench().opened()
    bench.stream().takes = False
    link = bench.server.newest
    link.push(b'{"jsonrpc":"2.0","id":"q","method":"roots/list"}')
    assert json.loads(link.last("").message.encode())["error"]["code"] == -32603
    bench.relay.detach(bench.relay.router.streams[0])
    link.push(b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}')
    bench.clock.advance(30.0)
    assert MessageDropped("scripted", "no_stream") in bench.observed.of(MessageDropped)
    bench.end()


def test_a_stream_that_attaches_and_takes_nothing_sets_the_deadlines_running() -> None:
    bench = Bench(ScriptedServer(timeout=10.0)).opened()
    target = bench.ask(streams=False)
    bench.server.newest.push(b'{"jsonrpc":"2.0","id":"q","method":"roots/list"}')
    bench.clock.advance(15.0)
    assert not target.answers
    bench.relay.attach(MemoryTarget(takes=False))
    bench.clock.advance(9.9)
    assert not target.answers
    bench.clock.advance(0.1)
    assert target.reason == "timeout"
    bench.end()


# The loss of a link, and its recovery.


@pytest.mark.acceptance(46)
def test_acceptance_46_a_crash_fails_what_is_pending_and_the_next_call_recovers() -> None:
    bench = Bench().opened()
    first = bench.server.newest
    bench.ask(1, "logging/setLevel", '{"level":"debug"}')
    first.reply(first.last("logging/setLevel"))
    for uri in ("a", "b"):
        bench.ask(1, "resources/subscribe", f'{{"uri":"{uri}"}}')
        first.reply(first.last("resources/subscribe"))
    pending = [bench.ask(n) for n in range(50)]
    stream = bench.stream()
    first.lose()
    assert {target.reason for target in pending} == {"server_exited"}
    assert bench.server.handshakes == 1, "nobody needs a link yet"

    target = bench.ask(99)
    second = bench.server.newest
    assert second is not first and second.hello == first.hello
    assert [sent.method for sent in second.sent] == [
        "notifications/initialized",
        "logging/setLevel",
        "resources/subscribe",
        "resources/subscribe",
        "tools/call",
    ]
    assert second.sent[1].message.param("level") == b'"debug"'
    assert [sent.message.param("uri") for sent in second.sent[2:4]] == [b'"a"', b'"b"']
    for sent in second.sent[1:4]:
        second.reply(sent)
    second.reply(second.last("tools/call"))
    assert target.json["id"] == 99
    # What the server declared `listChanged` for, its client hears.
    assert [told.method for told in stream.delivered] == ["notifications/tools/list_changed"]
    assert bench.observed.of(LinkLost) == [LinkLost("scripted", "server_exited")]
    assert bench.observed.of(SessionRecovered) == [SessionRecovered("scripted", bench.session.tag)]
    assert not bench.session.ended
    bench.end()


def test_what_the_client_never_said_is_not_said_again() -> None:
    bench = Bench().opened(initialized=False)
    bench.server.newest.lose()
    bench.ask()
    assert [sent.method for sent in bench.server.newest.sent] == ["tools/call"]
    bench.end()


def test_one_attempt_for_any_number_of_calls() -> None:
    bench = Bench().opened()
    bench.server.newest.lose()
    bench.server.handshakeHeld = True
    targets = [bench.ask(n) for n in range(5)]
    assert bench.tell(notify("notifications/roots/list_changed")) == [True]
    assert bench.server.handshakes == 2
    bench.server.finishHandshake()
    link = bench.server.newest
    assert [sent.method for sent in link.sent] == [
        "notifications/initialized",
        *["tools/call"] * 5,
        "notifications/roots/list_changed",
    ]
    for sent in link.of("tools/call"):
        link.reply(sent)
    assert [target.json["id"] for target in targets] == list(range(5))
    assert bench.server.handshakes == 2
    bench.end()


def test_who_gives_up_while_others_are_told_of_a_link_is_not_told() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    opening = bench.opening()
    later = bench.relay.acquire(CONTEXT)
    ends: list[object] = []
    later.addBoth(ends.append)
    opening.addCallback(lambda _: later.cancel())
    bench.server.finishHandshake()
    assert len(ends) == 1 and isinstance(ends[0], Failure) and ends[0].check(CancelledError)
    assert bench.relay.link is bench.server.newest
    bench.end()


def test_a_session_that_ends_because_of_what_a_recovery_tells_keeps_no_link() -> None:
    bench = Bench().opened()
    bench.server.newest.lose()

    class Ending(MemoryTarget):
        def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
            bench.registry.end(bench.session, "deleted")
            return True

    bench.relay.attach(Ending())
    target = bench.ask(7)
    assert target.reason == "cancelled"
    bench.left()


def test_who_calls_a_session_that_is_over_hears_it_at_once() -> None:
    bench = Bench().opened()
    bench.end()
    assert bench.ask(7).reason == "shutting_down"
    assert bench.tell(notify("notifications/cancelled", '{"requestId":7}')) == [True]
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "undeliverable")]
    bench.left()


def test_a_call_that_ended_while_it_waited_is_not_sent() -> None:
    bench = Bench(ScriptedServer(timeout=10.0)).opened()
    bench.server.newest.lose()
    bench.server.handshakeHeld = True
    target = bench.ask()
    bench.clock.advance(10.0)
    assert target.reason == "timeout"
    bench.server.finishHandshake()
    assert not bench.server.newest.of("tools/call")
    bench.end()


@pytest.mark.parametrize("which", ["max_stdin_messages", "max_stdin_bytes"])
def test_what_waits_for_a_link_is_bounded(which: str) -> None:
    limits = Limits(max_stdin_messages=3) if "mess" in which else Limits(max_stdin_bytes=200)
    bench = Bench(limits=limits).opened()
    bench.server.newest.lose()
    bench.server.handshakeHeld = True
    targets = [bench.ask(n, params=f'{{"x":"{"x" * 100}"}}') for n in range(4)]
    assert targets[-1].reason == "overloaded"
    assert not targets[0].answers
    assert bench.tell(notify("notifications/roots/list_changed")) == [False]
    assert BoundReached(which, "scripted") in bench.observed.of(BoundReached)
    bench.server.finishHandshake()
    assert bench.ask(9).answers == []
    bench.end()


def test_answers_to_a_server_that_is_gone_are_dropped() -> None:
    bench = Bench().opened()
    stream = bench.stream()
    bench.server.newest.push(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    bench.server.newest.lose()
    asked, void = stream.delivered
    assert asked.id is not None and void.param("requestId") == asked.id
    assert bench.tell(response(asked.id)) == [True]
    assert bench.server.handshakes == 1
    bench.end()


def test_a_recovery_that_fails_fails_its_calls_and_keeps_the_session() -> None:
    bench = Bench().opened()
    bench.server.newest.lose()
    bench.server.failNext(Reason.SERVER_EXITED, "no")
    assert bench.ask().reason == "server_exited"
    assert not bench.session.ended
    bench.clock.advance(60.0)
    target = bench.ask()
    assert not target.answers and bench.server.open
    bench.end()


@pytest.mark.parametrize("result", [NARROWED, OTHER_REVISION], ids=["fewer", "revision"])
def test_a_server_that_comes_back_as_less_ends_the_session(result: bytes) -> None:
    bench = Bench().opened()
    stream = bench.stream()
    bench.server.newest.lose()
    bench.server.result = result
    target = bench.ask(7)
    assert target.losses == [b"7"] and not target.answers
    assert bench.session.ended == "lost"
    assert stream.closed
    assert isinstance(failure(bench.relay.acquire(CONTEXT)), LinkFailed)
    assert CallFailed("scripted", "tools/call", "server_exited") in bench.observed.events
    bench.left()


def test_whoever_waits_for_a_narrowed_link_hears_it() -> None:
    bench = Bench().opened()
    bench.server.newest.lose()
    bench.server.result = NARROWED
    assert isinstance(failure(bench.relay.acquire(CONTEXT)), SessionOver)
    bench.relay.over()
    bench.left()


def test_on_exit_lost_ends_the_session_with_its_link() -> None:
    bench = Bench(ScriptedServer(on_exit="lost")).opened()
    target = bench.ask()
    bench.server.newest.lose()
    assert target.reason == "server_exited"
    assert bench.session.ended == "lost"
    bench.left()


@pytest.mark.acceptance(48)
def test_acceptance_48_links_that_die_young_are_made_more_and_more_slowly() -> None:
    bench = Bench().opened()
    waits = []
    for n in range(12):
        bench.server.newest.lose()
        target = bench.ask(n)
        waited = 0.0
        while bench.server.handshakes < n + 2:
            bench.clock.advance(0.05)
            waited += 0.05
        assert not target.answers
        waits.append(waited)
    assert waits[0] == 0.0, "the first attempt is made at once"
    for n, wait in enumerate(waits[1:]):
        nominal = min(30.0, 0.5 * 2**n)
        assert 0.8 * nominal - 0.06 <= wait <= 1.2 * nominal + 0.06
    # A link that lived long enough is forgiven.
    bench.clock.advance(31.0)
    bench.server.newest.lose()
    bench.ask(50)
    assert bench.server.handshakes == 14
    bench.end()


def test_the_end_of_a_session_ends_the_wait_for_a_respawn() -> None:
    bench = Bench().opened()
    for n in range(3):
        bench.server.newest.lose()
        target = bench.ask(n)
        bench.clock.advance(0.7 if n == 1 else 0)
    assert not target.answers
    assert bench.server.handshakes == 3
    bench.end()
    assert target.reason == "cancelled"


def test_a_link_made_for_a_session_that_is_over_is_closed() -> None:
    bench = Bench().opened()
    bench.server.newest.slowClose = True
    bench.registry.end(bench.session, "deleted")
    closing = bench.relay.closing
    assert closing is not None and not closing.called
    bench.server.newest.finishClose()
    assert closing.called
    bench.left()


# Over HTTP.


def http(**more: Any) -> tuple[Bench, ScriptedLink]:
    bench = Bench(ScriptedServer(http=True, **more)).opened()
    return bench, bench.server.newest


@pytest.mark.acceptance(28)
def test_acceptance_28_a_note_is_told_once_the_server_took_it_or_after_a_second() -> None:
    bench, link = http()
    taken = bench.tell(notify("notifications/roots/list_changed"))
    assert taken == []
    link.accept(link.last("notifications/roots/list_changed"))
    assert taken == [True]
    slow = bench.tell(notify("notifications/roots/list_changed"))
    bench.clock.advance(0.99)
    assert slow == []
    bench.clock.advance(0.01)
    assert slow == [True]
    link.accept(link.last("notifications/roots/list_changed"))
    link.full = True
    assert bench.tell(notify("notifications/roots/list_changed")) == [False]
    link.full = False
    refused = bench.tell(notify("notifications/roots/list_changed"))
    link.settle(link.last("notifications/roots/list_changed"), status=500)
    assert refused == [True]
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "undeliverable")]
    bench.end()


def test_notes_on_their_way_do_not_outlive_the_session() -> None:
    bench, _ = http()
    taken = bench.tell(notify("notifications/roots/list_changed"))
    bench.end()
    assert taken == [True]


@pytest.mark.acceptance(64)
def test_acceptance_64_one_new_handshake_for_many_calls_and_each_once_more() -> None:
    bench, first = http()
    bench.server.handshakeHeld = True
    targets = [bench.ask(n) for n in range(100)]
    note = bench.tell(notify("notifications/roots/list_changed"))
    for sent in list(first.sent[1:]):
        first.settle(sent, status=404)
    assert bench.server.handshakes == 2
    bench.server.finishHandshake()
    second = bench.server.newest
    # `initialized` comes first: the rest waits until the server took it.
    assert [sent.method for sent in second.sent] == ["notifications/initialized"]
    second.accept(second.sent[0])
    assert len(second.of("tools/call")) == 100
    assert len({sent.id for sent in second.of("tools/call")}) == 100
    for sent in second.of("tools/call"):
        second.reply(sent)
    assert [target.json["id"] for target in targets] == list(range(100))
    second.accept(second.last("notifications/roots/list_changed"))
    assert note == [True]
    assert bench.server.handshakes == 2 and not bench.session.ended
    bench.end()


def test_what_still_comes_on_the_lost_link_is_taken_and_the_link_closed_at_last() -> None:
    bench, first = http()
    first.accept(first.sent[0])
    stays, lost = bench.ask(1), bench.ask(2)
    one, two = first.of("tools/call")
    links = [first]
    first.settle(two, status=404)

    def loseNext() -> None:
        link = bench.server.newest
        links.append(link)
        link.accept(link.sent[0])
        link.reply(link.last("tools/call"))
        bench.ask(3)
        link.settle(link.last("tools/call"), status=404)

    loseNext()
    assert lost.json["id"] == 2
    assert [link.closed for link in links] == [False, True], "a call waits on the first"
    first.reply(one)
    assert stays.json["id"] == 1
    assert first.closed, "nobody waits for anything on it any more"
    loseNext()
    assert [link.closed for link in links] == [True, True, True]
    assert bench.server.newest.alive
    bench.server.newest.accept(bench.server.newest.sent[0])
    bench.end()


@pytest.mark.acceptance(65)
def test_acceptance_65_lost_again_after_a_new_handshake_is_the_end() -> None:
    bench, first = http()
    target, other = bench.ask(8), bench.ask(9)
    for sent in first.of("tools/call"):
        first.settle(sent, status=404)
    second = bench.server.newest
    second.accept(second.sent[0])
    second.settle(second.last("tools/call"), status=404)
    assert target.losses == [b"8"] and other.losses == [b"9"]
    assert bench.session.ended == "lost"
    assert bench.server.handshakes == 2
    bench.left()


def test_an_http_server_that_cannot_be_greeted_again_ends_the_session() -> None:
    bench, link = http()
    target = bench.ask(8)
    note = bench.tell(notify("notifications/roots/list_changed"))
    bench.server.failNext(Reason.UPSTREAM_UNREACHABLE)
    for sent in link.sent[1:]:
        link.settle(sent, status=404)
    assert target.losses == [b"8"] and note == [True]
    bench.left()


def test_a_server_that_takes_no_initialized_does_not_stop_the_recovery() -> None:
    bench, first = http()
    target = bench.ask()
    first.settle(first.last("tools/call"), status=404)
    second = bench.server.newest
    assert not second.of("tools/call")
    bench.clock.advance(1.0)
    second.reply(second.last("tools/call"))
    assert target.json["id"] == 1
    bench.end()


def test_a_link_lost_during_its_greeting_fails_the_attempt() -> None:
    bench, first = http()
    target = bench.ask()
    first.settle(first.last("tools/call"), status=404)
    bench.server.newest.lose(Reason.UPSTREAM_UNREACHABLE)
    assert target.reason == "upstream_unreachable"
    bench.clock.advance(1.0)
    assert bench.session.ended == "lost"
    bench.left()


def test_a_404_of_a_server_without_sessions_is_no_lost_session() -> None:
    bench, link = http(sessionless=True)
    target = bench.ask()
    link.settle(link.last("tools/call"), Reason.BAD_ANSWER, status=404)
    assert target.reason == "bad_answer"
    assert bench.server.handshakes == 1 and not bench.session.ended
    bench.end()


def test_the_servers_own_error_is_passed_on() -> None:
    bench, link = http()
    target = bench.ask(4)
    own = message(b'{"jsonrpc":"2.0","id":9,"error":{"code":-32602,"message":"m"}}')
    link.settle(link.last("tools/call"), Reason.BAD_ANSWER, status=400, body=own)
    assert target.json == {"jsonrpc": "2.0", "id": 4, "error": {"code": -32602, "message": "m"}}
    bench.end()


def test_what_the_link_says_belongs_to_a_call_goes_to_its_stream() -> None:
    bench, link = http()
    get = bench.stream()
    one, two = bench.ask(1), bench.ask(2)
    sent = link.of("tools/call")[0]
    link.push(notify("notifications/message"), sent.call)
    assert (len(one.delivered), len(two.delivered), len(get.delivered)) == (1, 0, 0)
    link.push(notify("notifications/message"))
    assert (len(one.delivered), len(two.delivered), len(get.delivered)) == (1, 0, 1)
    bench.end()


# Transparent: streams and event ids pass.


def transparent() -> tuple[Bench, ScriptedHTTPLink]:
    bench = Bench(ScriptedServer(http=True), transparent=True).opened()
    link = bench.server.newest
    assert isinstance(link, ScriptedHTTPLink)
    return bench, link


@pytest.mark.acceptance(74)
def test_acceptance_74_event_ids_pass_and_a_cut_stream_is_resumed_on_another() -> None:
    bench, link = transparent()
    target = bench.ask(6)
    sent = link.last("tools/call")
    primed = EventMark(b"1", b"500")
    link.mark(sent.call, primed)
    assert target.marks == [primed]
    link.push(notify("notifications/message"), sent.call, EventMark(b"2"))
    assert target.marks[-1] == EventMark(b"2")
    bench.relay.gone(target)
    assert link.cancelled == [sent.call], "the server keeps the rest for the client's return"
    resumed = bench.stream()
    link.mark(resumed, EventMark(b"3"))
    link.push(response(sent.id), resumed, EventMark(b"4"))
    assert resumed.json["id"] == 6 and resumed.marks == [EventMark(b"3"), EventMark(b"4")]
    assert not target.answers
    bench.end()


def test_a_server_that_closes_a_numbered_stream_has_its_client_resume() -> None:
    bench, link = transparent()
    target = bench.ask()
    sent = link.last("tools/call")
    link.mark(sent.call, EventMark(b"1"))
    link.settle(sent, Reason.OUTCOME_UNKNOWN)
    assert target.closed and not target.answers
    assert bench.session.running == 1
    bench.end()


def test_without_event_ids_a_cut_stream_is_the_end_of_its_call() -> None:
    bench, link = transparent()
    target = bench.ask()
    link.settle(link.last("tools/call"), Reason.OUTCOME_UNKNOWN)
    assert target.reason == "outcome_unknown"
    bench.end()


def test_the_servers_stream_ends_and_the_clients_with_it() -> None:
    bench, link = transparent()
    stream = bench.stream()
    link.listen(stream, None, CONTEXT)
    link.end(stream)
    assert stream.closed
    bench.server.newest.listener.ended(MemoryTarget())
    bench.end()


def test_a_recovered_transparent_session_hears_what_may_have_changed() -> None:
    bench, first = transparent()
    stream = bench.stream()
    bench.ask()
    first.settle(first.last("tools/call"), status=404)
    second = bench.server.newest
    second.accept(second.sent[0])
    assert [told.method for told in stream.delivered] == ["notifications/tools/list_changed"]
    bench.end()


def test_elsewhere_event_ids_of_the_server_stay_inside() -> None:
    bench, link = http()
    target = bench.ask()
    sent = link.last("tools/call")
    link.mark(sent.call, EventMark(b"1"))
    link.push(notify("notifications/message"), sent.call, EventMark(b"2"))
    link.reply(sent, mark=EventMark(b"3"))
    assert target.marks == [None, None]
    bench.end()


# The policy.


@implementer(IPolicy)
@define
class Denying:
    """Denies names."""

    names: set[str] = field(factory=set)
    asked: list[tuple[Direction, str, str]] = field(factory=list)

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        self.asked.append((direction, method, name))
        return method not in self.names and name not in self.names


def test_a_denied_call_fails_and_a_denied_note_is_dropped() -> None:
    policy = Denying({"rm", "notifications/roots/list_changed", "file:///etc"})
    bench = Bench(policy=policy).opened()
    link = bench.server.newest
    before = len(link.sent)
    assert bench.ask(1, params='{"name":"rm"}').reason == "forbidden"
    assert bench.ask(1, "resources/read", '{"uri":"file:///etc"}').reason == "forbidden"
    assert bench.tell(notify("notifications/roots/list_changed")) == [True]
    assert len(link.sent) == before
    assert bench.session.running == 0
    assert bench.observed.of(CallFailed) == [
        CallFailed("scripted", "tools/call", "forbidden"),
        CallFailed("scripted", "resources/read", "forbidden"),
    ]
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "forbidden")]
    allowed = bench.ask(2, params='{"name":"ls"}')
    link.reply(link.last("tools/call"))
    assert allowed.json["id"] == 2
    assert (Direction.TO_SERVER, "tools/call", "ls") in policy.asked
    bench.end()


def test_a_policy_is_asked_for_what_is_to_be_completed() -> None:
    policy = Denying({"deploy", "file:///etc"})
    bench = Bench(policy=policy).opened()
    before = len(bench.server.newest.sent)
    for ref in (
        '{"type":"ref/prompt","name":"deploy"}',
        '{"type":"ref/resource","uri":"file:///etc"}',
        '{"type":"ref/resource","uri":"file:///tmp","name":"deploy"}',
        '{"type":"ref/prompt","name":"deploy","name":"greet"}',
    ):
        params = f'{{"ref":{ref},"argument":{{"name":"a","value":"b"}}}}'
        assert bench.ask(1, "completion/complete", params).reason == "forbidden", ref
    assert len(bench.server.newest.sent) == before
    params = '{"ref":{"type":"ref/prompt","name":"greet"},"argument":{"name":"a","value":"b"}}'
    bench.ask(2, "completion/complete", params)
    assert len(bench.server.newest.sent) == before + 1
    assert (Direction.TO_SERVER, "completion/complete", "greet") in policy.asked
    bench.end()


def test_a_policy_is_asked_for_what_the_server_would_read() -> None:
    policy = Denying({"rm", "file:///etc"})
    bench = Bench(policy=policy).opened()
    before = len(bench.server.newest.sent)
    for method, params in (
        ("resources/read", '{"name":"ls","uri":"file:///etc"}'),
        ("resources/subscribe", '{"uri":"file:///etc","name":"ls"}'),
        ("resources/read", '{"uri":"file:///etc","uri":"file:///tmp"}'),
        ("resources/read", '{"uri":"file:///tmp","u\\u0072i":"file:///etc"}'),
        ("tools/call", '{"name":"rm","name":"ls"}'),
        ("tools/call", '{"uri":"ls","name":"rm"}'),
        ("prompts/get", '{"name":"rm","uri":"ls"}'),
    ):
        assert bench.ask(1, method, params).reason == "forbidden", params
    assert len(bench.server.newest.sent) == before
    bench.ask(1, "tools/call", "[1]")
    assert policy.asked[-1] == (Direction.TO_SERVER, "tools/call", "")
    bench.ask(2, "tools/call", '{"name":"ls","uri":"file:///etc"}')
    assert policy.asked[-1] == (Direction.TO_SERVER, "tools/call", "ls")
    bench.end()


def test_what_a_policy_denies_the_server_is_told_to_it() -> None:
    policy = Denying({"sampling/createMessage", "notifications/message", "ls"})
    bench = Bench(policy=policy).opened()
    stream, link = bench.stream(), bench.server.newest
    link.push(notify("notifications/message"))
    link.push(b'{"jsonrpc":"2.0","id":"s","method":"sampling/createMessage"}')
    assert not stream.delivered
    refused = json.loads(link.last("").message.encode())
    assert refused["id"] == "s" and refused["error"]["data"] == {"reason": "forbidden"}
    link.push(b'{"jsonrpc":"2.0","id":"r","method":"roots/list"}')
    (asked,) = stream.delivered
    assert (Direction.TO_CLIENT, "roots/list", "") in policy.asked
    assert bench.tell(response(asked.id or b"")) == [True]
    bench.end()


# The end.


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("deleted", "cancelled"),
        ("idle", "cancelled"),
        ("absolute", "cancelled"),
        ("stream_closed", "cancelled"),
        ("shutdown", "shutting_down"),
        ("lost", None),
    ],
)
def test_the_end_of_a_session_ends_all_of_it(reason: str, told: str | None) -> None:
    bench = Bench().opened()
    link = bench.server.newest
    running, gone, stream = bench.ask(3), bench.ask(4), bench.stream()
    bench.relay.gone(gone)
    bench.end(reason)
    assert stream.closed and link.closed
    if told is None:
        assert running.losses == [b"3"] and not running.answers
    else:
        assert running.reason == told
    assert not gone.answers and not gone.losses
    assert len(link.cancelled) == 2
    failed = told or "server_exited"
    assert bench.observed.of(CallFailed) == [CallFailed("scripted", "tools/call", failed)] * 2
    # What comes later touches nothing.
    before = len(bench.observed.events)
    link.listener.received(notify("notifications/message"), None)
    link.listener.lost(Reason.SERVER_EXITED, "late")
    assert len(bench.observed.events) == before


def test_a_session_of_no_registry_is_dismissed() -> None:
    bench = Bench().opened()
    target = bench.ask()
    done: list[None] = []
    Deferred.fromCoroutine(bench.relay.dismiss()).addCallback(done.append)
    assert done == [None] and bench.server.newest.closed
    assert target.reason == "cancelled"
    bench.registry.end(bench.session, "")


def test_a_session_that_is_lost_may_be_dismissed() -> None:
    bench = Bench().opened()
    bench.relay.over()
    done: list[None] = []
    for _ in range(2):
        Deferred.fromCoroutine(bench.relay.dismiss()).addCallback(done.append)
    assert done == [None, None] and bench.session.ended == "lost"
    bench.left()


def test_a_server_without_sessions_is_greeted_by_the_gateway_itself() -> None:
    bench = Bench(ScriptedServer(http=True, sessionless=True), transparent=True)
    bench.session.record.initialized = True
    bench.relay.serveAll(b"{}")
    linked: list[ILink] = []
    bench.relay.acquire(CONTEXT).addCallback(linked.append)
    link = bench.server.newest
    assert not linked
    assert [sent.method for sent in link.sent] == ["notifications/initialized"]
    assert isinstance(link, ScriptedHTTPLink)
    link.accept(link.sent[0])
    assert linked == [link] == [bench.relay.link]
    assert bench.session.record.revision == "2025-06-18"
    bench.relay.request(request(1), MemoryTarget(), True, CONTEXT)
    assert link.last("tools/call")
    bench.end()


# Recovery in full.


MINE = CallContext("scripted", headers=((b"authorization", b"mine"),))


def subscribed(count: int, http: bool = False) -> Bench:
    """A session with subscriptions, whose link was lost."""
    bench = Bench(ScriptedServer(http=http)).opened()
    bench.session.record.subscriptions.extend(f"x:{n}" for n in range(count))
    bench.server.newest.lose()
    return bench


def test_every_subscription_is_repeated_though_there_are_more_than_calls_may_run() -> None:
    bench = subscribed(600)
    target = bench.ask()
    link = bench.server.newest
    assert len(link.of("resources/subscribe")) == WINDOW
    for sent in link.sent:
        if sent.method == "resources/subscribe":
            link.reply(sent)
    assert [sent.message.paramText("uri") for sent in link.of("resources/subscribe")] == [
        f"x:{n}" for n in range(600)
    ]
    link.reply(link.last("tools/call"))
    assert target.json["result"] == {}
    assert not bench.observed.of(MessageDropped)
    bench.end()


def test_a_repetition_waits_for_room_and_its_failure_is_told() -> None:
    bench = subscribed(WINDOW + 3)
    bench.ask()
    link = bench.server.newest
    link.full = True
    link.refuse(link.of("resources/subscribe")[0])
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "repeat_failed")]
    assert len(link.of("resources/subscribe")) == WINDOW
    link.full = False
    link.listener.drained()
    assert len(link.of("resources/subscribe")) == WINDOW + 1
    # What the next link is asked again is no failure.
    link.lose()
    assert len(bench.observed.of(MessageDropped)) == 1
    bench.ask(2)
    bench.clock.advance(1.0)
    assert len(bench.server.newest.of("resources/subscribe")) == WINDOW
    bench.end()


def test_a_repetition_without_an_answer_times_out_and_is_told() -> None:
    bench = Bench(ScriptedServer(timeout=5.0)).opened()
    bench.session.record.log_level = b'"debug"'
    bench.server.newest.lose()
    bench.relay.acquire(CONTEXT)
    assert bench.server.newest.of("logging/setLevel")
    bench.clock.advance(5.0)
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "repeat_failed")]
    bench.end()


def test_the_handshake_is_made_again_with_the_credentials_of_who_needs_it() -> None:
    bench = subscribed(1, http=True)
    bench.relay.request(request(1), MemoryTarget(), True, MINE)
    link = bench.server.newest
    link.accept(link.sent[0])
    assert link.context is MINE
    assert len(link.sent) == 3
    assert all(sent.context is MINE for sent in link.sent)
    bench.end()


def test_refused_credentials_make_nobody_else_wait() -> None:
    bench = Bench(ScriptedServer(http=True)).opened()
    bench.server.newest.lose()
    for _ in range(5):
        bench.server.failNext(Reason.BAD_ANSWER, "who are you", status=401)
        assert isinstance(failure(bench.relay.acquire(CONTEXT)), LinkFailed)
    made: list[ILink] = []
    bench.relay.acquire(MINE).addCallback(made.append)
    assert not made and bench.server.handshakes == 7
    bench.end()


def test_who_waits_with_other_credentials_is_not_refused_with_the_first() -> None:
    bench = Bench(ScriptedServer(http=True)).opened()
    bench.server.newest.lose()
    bench.server.handshakeHeld = True
    ends: list[object] = []
    for context in (CONTEXT, MINE, CONTEXT):
        bench.relay.acquire(context).addBoth(ends.append)
    bench.server.failNext(Reason.BAD_ANSWER, "who are you", status=401)
    bench.server.finishHandshake()
    assert [isinstance(end, Failure) for end in ends] == [True, True]
    bench.server.finishHandshake()
    link = bench.server.newest
    assert link.context is MINE
    link.accept(link.sent[0])
    assert ends[2] is link
    bench.end()


def test_on_exit_lost_ends_the_session_with_the_servers_over_http() -> None:
    for note in (False, True):
        bench = Bench(ScriptedServer(http=True, on_exit="lost")).opened()
        link = bench.server.newest
        target = bench.ask(7)
        told = bench.tell(notify("notifications/roots/list_changed"))
        link.settle(link.sent[-1] if note else link.last("tools/call"), status=404)
        assert target.losses == [b"7"] and told == [True]
        assert bench.session.ended == "lost" and bench.server.handshakes == 1
        bench.left()
    bench = Bench(ScriptedServer(http=True, on_exit="lost")).opened()
    bench.relay.abandon(bench.server.newest)
    assert bench.session.ended == "lost"
    bench.left()


def test_every_link_that_was_opened_and_lost_is_told_once() -> None:
    bench = Bench(ScriptedServer(http=True)).opened()
    bench.server.newest.lose()
    bench.relay.acquire(CONTEXT).addErrback(lambda _: None)
    # Lost while it is greeted.
    bench.server.newest.lose(Reason.UPSTREAM_UNREACHABLE)
    bench.server.failNext()
    for _ in range(3):
        bench.relay.acquire(CONTEXT).addErrback(lambda _: None)
        bench.clock.advance(5.0)
    seen = [e for e in bench.observed.events if isinstance(e, (LinkOpened, LinkLost))]
    assert seen == [
        LinkOpened("scripted"),
        LinkLost("scripted", "server_exited"),
        LinkOpened("scripted"),
        LinkLost("scripted", "upstream_unreachable"),
        LinkOpened("scripted"),
    ]
    bench.relay.abandon(bench.server.newest)
    bench.end()


def test_what_waits_after_a_lost_link_has_its_deadline() -> None:
    bench = Bench(ScriptedServer(timeout=10_000.0, max_timeout=10_000.0)).opened()
    stream = bench.stream()
    bench.server.newest.push(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    bench.relay.detach(stream)
    bench.server.newest.lose()
    bench.clock.advance(30.0)
    assert BoundReached("queued_for", "scripted") in bench.observed.of(BoundReached)
    assert bench.observed.of(MessageDropped) == [MessageDropped("scripted", "no_stream")]
    bench.end()


def test_a_client_that_takes_no_events_cannot_resume_its_call() -> None:
    bench, link = transparent()
    target = bench.ask(streams=False)
    sent = link.last("tools/call")
    link.mark(sent.call, EventMark(b"1"))
    link.push(notify("notifications/message"), sent.call, EventMark(b"2"))
    link.settle(sent, Reason.OUTCOME_UNKNOWN)
    assert target.reason == "outcome_unknown"
    # What was dropped gave its client no id either.
    target = bench.ask()
    sent = link.last("tools/call")
    progress = notify("notifications/progress", '{"progressToken":9,"progress":1}')
    link.push(progress, sent.call, EventMark(b"3"))
    link.settle(sent, Reason.OUTCOME_UNKNOWN)
    assert target.reason == "outcome_unknown"
    bench.end()
