"""
A server whose one link many sessions share, on a scripted one.

Names like `TestConcurrentInitialize…` in docstrings are the reference's tests of the same
behaviour.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define, field
from relay_support import HELLO, MemoryTarget, notify, request, response
from stdio_support import Observed
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, Direction, IPolicy
from gateway.links.interfaces import (
    EventMark,
    Health,
    Hello,
    IHTTPLink,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    Reason,
    Settled,
)
from gateway.observe.observer import BoundReached, MessageDropped
from gateway.relay.relay import Relay
from gateway.servers.shared import SharedServer
from gateway.sessions.registry import SessionRegistry
from gateway.sessions.store import MemoryStore
from gateway.testing.scripted import ScriptedLink, ScriptedServer, message
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.envelope import Message

CONTEXT = CallContext("scripted", headers=((b"x-mine", b"1"),), peer="192.0.2.1")
INITIALIZED = "notifications/initialized"


@implementer(ILinkListener)
@define(eq=False)
class Asker:
    """A session: its link, and what it hears."""

    link: ILink | None = None
    failure: Any = None
    waiting: Deferred[ILink] | None = None
    inSend: bool = False
    told: list[tuple[Any, ...]] = field(factory=list)

    def _tell(self, *what: Any) -> None:
        assert not self.inSend, "called from within send"
        self.told.append(what)

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        self._tell("received", message, origin)

    def settled(self, call: object, settled: Settled) -> None:
        self._tell("settled", call, settled)

    def accepted(self, call: object) -> None:
        self._tell("accepted", call)

    def drained(self) -> None:
        self._tell("drained")

    def lost(self, reason: Reason, message: str) -> None:
        self._tell("lost", reason, message)

    def marked(self, origin: object | None, mark: EventMark) -> None:
        raise AssertionError("no stream is a session's own")

    def ended(self, origin: object) -> None:
        raise AssertionError("no stream is a session's own")

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [told[1:] for told in self.told if told[0] == what]

    @property
    def messages(self) -> list[Any]:
        return [json.loads(what.encode()) for what, _ in self.of("received")]

    def send(self, what: Message, call: object | None = None) -> bool:
        assert self.link is not None
        self.inSend = True
        try:
            return self.link.send(what, call, CONTEXT)
        finally:
            self.inSend = False

    def ask(self, method: str, params: str = "{}", id: int = 1) -> object:
        call = object()
        assert self.send(request(id, method, params), call)
        return call


@define(eq=False)
class Bench:
    """A shared server on a scripted one."""

    inner: ScriptedServer = field(factory=ScriptedServer)
    limits: Limits = field(factory=Limits)
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    server: SharedServer = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = SharedServer(self.inner, self.limits, self.clock, self.observed)

    def ask(self, revision: str = "2025-06-18") -> Asker:
        """Ask for a link; take it when it is there."""
        asker = Asker()
        hello = HELLO.replace(b"2025-06-18", revision.encode())
        asker.waiting = self.server.link(Hello(hello), asker, CONTEXT, True)

        def failed(failure: Any) -> None:
            asker.failure = failure.value

        def came(link: ILink) -> None:
            asker.link = link

        asker.waiting.addCallbacks(came, failed)
        return asker

    def join(self, revision: str = "2025-06-18") -> Asker:
        asker = self.ask(revision)
        if self.inner.http and asker.link is None:
            self.link.accept(self.link.last(INITIALIZED))
        assert asker.link is not None
        return asker

    @property
    def link(self) -> ScriptedLink:
        return self.inner.newest

    def turn(self) -> None:
        """Let everybody hear."""
        self.clock.advance(0)

    def drops(self) -> list[str]:
        return [event.why for event in self.observed.of(MessageDropped)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def http() -> Bench:
    return Bench(ScriptedServer(http=True))


# The one handshake.


def test_there_is_one_handshake_for_all(bench: Bench) -> None:
    """
    TestEveryClientHandshakeSucceedsAgainstStrictBackend
    TestDuplicateInitializedNotificationIsNotForwarded
    """
    askers = [bench.join() for _ in range(5)]
    for asker in askers:
        assert asker.send(notify(INITIALIZED))
    assert bench.inner.handshakes == 1
    assert len(bench.link.of(INITIALIZED)) == 1
    assert bench.link.context.headers == ()
    assert bench.link.context.peer == ""
    said = json.loads(bench.link.hello.params)
    assert (said["protocolVersion"], said["capabilities"]) == ("2025-11-25", {})


def test_all_who_come_while_it_is_made_wait_for_it(bench: Bench) -> None:
    """TestConcurrentInitializeReachesBackendOnce"""
    bench.inner.handshakeHeld = True
    askers = [bench.ask() for _ in range(5)]
    assert bench.inner.handshakes == 1
    bench.inner.finishHandshake()
    assert all(asker.link is not None for asker in askers)
    assert len({id(asker.link) for asker in askers}) == 5


def test_a_handshake_that_failed_fails_all_and_is_forgotten(bench: Bench) -> None:
    """TestFailedInitializeIsNotCached"""
    bench.inner.handshakeHeld = True
    bench.inner.failNext()
    askers = [bench.ask() for _ in range(3)]
    bench.inner.finishHandshake()
    assert all(isinstance(asker.failure, LinkFailed) for asker in askers)
    bench.inner.handshakeHeld = False
    bench.join()
    assert bench.inner.handshakes == 2


def test_who_asked_first_may_leave(bench: Bench) -> None:
    """TestInitializeSurvivesFirstCallerDisconnect"""
    bench.inner.handshakeHeld = True
    first, second = bench.ask(), bench.ask()
    assert first.waiting is not None
    first.waiting.cancel()
    assert isinstance(first.failure, CancelledError)
    bench.inner.finishHandshake()
    assert first.link is None
    assert second.link is not None
    assert bench.inner.givenUp == 0


def test_a_handshake_nobody_waits_for_any_more_is_kept(bench: Bench) -> None:
    bench.inner.handshakeHeld = True
    first = bench.ask()
    assert first.waiting is not None
    first.waiting.cancel()
    bench.inner.finishHandshake()
    bench.join()
    assert bench.inner.handshakes == 1


def test_the_link_outlives_the_sessions(bench: Bench) -> None:
    asker = bench.join()
    fired: list[None] = []
    assert asker.link is not None
    asker.link.close().addCallback(fired.append)
    assert fired == [None]
    assert bench.link.alive
    bench.join()
    assert bench.inner.handshakes == 1


def test_over_http_nobody_overtakes_the_greeting(http: Bench) -> None:
    asker = http.ask()
    assert asker.link is None
    http.link.accept(http.link.last(INITIALIZED))
    assert asker.link is not None
    assert not IHTTPLink.providedBy(asker.link)
    assert not http.clock.getDelayedCalls()


def test_over_http_the_greeting_is_waited_for_a_while(http: Bench) -> None:
    asker = http.ask()
    http.clock.advance(http.limits.queue_wait)
    assert asker.link is not None
    assert http.observed.of(BoundReached) == [BoundReached("queue_wait", "scripted")]


@pytest.mark.parametrize("how", ["lost", "forgotten"])
def test_a_link_lost_while_it_is_greeted_fails_who_waits(http: Bench, how: str) -> None:
    asker = http.ask()
    if how == "lost":
        http.link.lose()
    else:
        http.link.settle(http.link.last(INITIALIZED), status=404)
    assert isinstance(asker.failure, LinkFailed)
    assert asker.failure.reason is Reason.SERVER_EXITED
    assert not http.clock.getDelayedCalls()
    http.join()


def test_a_full_queue_does_not_hinder_the_greeting(bench: Bench) -> None:
    class Full(ScriptedServer):
        def _make(self, *args: Any) -> ScriptedLink:
            link = super()._make(*args)
            link.full = True
            return link

    bench = Bench(Full())
    bench.join()
    assert bench.drops() == ["undeliverable"]


# What `initialize` is answered.


def answer(asker: Asker) -> bytes:
    assert asker.link is not None
    return bytes(asker.link.answer.fields["result"])


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_each_client_gets_the_revision_it_asked_for(bench: Bench, revision: str) -> None:
    assert json.loads(answer(bench.join(revision)))["protocolVersion"] == revision


def test_who_asks_for_none_of_ours_gets_the_servers(bench: Bench) -> None:
    asker = bench.join("1999-01-01")
    assert answer(asker) == bench.inner.result
    assert asker.link is not None
    assert asker.link.answer is bench.link.answer


def test_all_but_revision_and_tasks_stays_as_it_is() -> None:
    bench = Bench()
    bench.inner.result = (
        b'{"x":1e0,"capabilities":{"a":1.0,"tasks":{"list":{}},"tools":{"b":"\\u00e9"}},'
        b'"protocolVersion":"2025-11-25","serverInfo":{"name":"s","name":"t"}}'
    )
    assert answer(bench.join("2025-11-25")) == (
        b'{"x":1e0,"capabilities":{"a":1.0,"tools":{"b":"\\u00e9"}},'
        b'"protocolVersion":"2025-11-25","serverInfo":{"name":"s","name":"t"}}'
    )


@pytest.mark.parametrize("capabilities", [b"null", b"3", b"[]"])
def test_what_is_no_capabilities_stays(capabilities: bytes) -> None:
    bench = Bench()
    bench.inner.result = b'{"capabilities":%b,"protocolVersion":"2025-11-25"}' % capabilities
    assert answer(bench.join("2025-11-25")) == bench.inner.result


# Calls.


def test_calls_of_equal_id_do_not_meet(bench: Bench) -> None:
    one, two = bench.join(), bench.join()
    one.ask("tools/call", '{"for":1}', id=1)
    two.ask("tools/call", '{"for":2}', id=1)
    first, second = bench.link.of("tools/call")
    assert first.id != second.id
    assert first.context is CONTEXT
    bench.link.reply(second, b'{"to":2}')
    bench.link.reply(first, b'{"to":1}')
    assert [what["result"]["to"] for what in one.messages] == [1]
    assert [what["result"]["to"] for what in two.messages] == [2]


def test_over_http_an_answer_comes_with_its_call(http: Bench) -> None:
    one, two = http.join(), http.join()
    call = one.ask("tools/call")
    two.ask("tools/call")
    http.link.push(notify("notifications/message", '{"level":"info"}'), http.link.requests[0].call)
    assert one.of("received")[0][1] is call
    assert not two.told
    http.link.push(notify("notifications/tools/list_changed"), http.link.requests[0].call)
    assert one.of("received")[1][1] is None
    assert two.of("received")[0][1] is None
    http.link.settle(http.link.requests[0])
    ((settled, _),) = one.of("settled")
    assert settled is call


def test_what_is_answered_here_is_not_answered_from_within_send(bench: Bench) -> None:
    asker = bench.join()
    asker.ask("tasks/list", id=4)
    asker.ask("logging/setLevel", '{"level":"loud"}', id=5)
    assert not asker.told
    bench.turn()
    assert [what["id"] for what in asker.messages] == [4, 5]


def test_what_came_first_is_heard_first(bench: Bench) -> None:
    asker = bench.join()
    asker.ask("tasks/list", id=4)
    bench.link.push(notify("notifications/tools/list_changed"))
    assert [what.get("id") for what in asker.messages] == [4, None]
    bench.turn()
    assert len(asker.messages) == 2


def test_a_response_of_a_session_answers_nothing(bench: Bench) -> None:
    asker = bench.join()
    assert asker.send(response(b"1"))
    assert not bench.link.of("")
    assert bench.drops() == ["stray_response"]


def test_a_request_of_the_server_reaches_nobody(bench: Bench) -> None:
    asker = bench.join()
    asker.ask("tools/call")
    bench.link.push(request(1, "sampling/createMessage"))
    assert not asker.told
    assert bench.link.last("").message.isError
    bench.link.push(request(2, "ping"))
    assert not bench.link.last("").message.isError


def test_notes_are_followed_through(http: Bench) -> None:
    asker = http.join()
    note, greeting, gone = object(), object(), object()
    asker.send(notify("notifications/x"), note)
    asker.send(notify(INITIALIZED), greeting)
    assert not asker.told
    http.turn()
    assert asker.of("accepted") == [(greeting,)]
    http.link.accept(http.link.last("notifications/x"))
    assert asker.of("accepted") == [(greeting,), (note,)]
    asker.send(notify("notifications/x"), gone)
    http.link.settle(http.link.last("notifications/x"))
    assert [call for call, _ in asker.of("settled")] == [gone]


def test_a_cancelled_call_is_cancelled_at_the_server(bench: Bench) -> None:
    one, two = bench.join(), bench.join()
    call = one.ask("tools/call", id=5)
    other = two.ask("tools/call", id=5)
    assert one.link is not None
    assert two.link is not None
    assert two.send(notify("notifications/cancelled", '{"requestId":5}'))
    two.link.cancel(other)
    one.link.cancel(call)
    one.link.cancel(call)
    told = [
        json.loads(sent.message.encode())["params"]
        for sent in bench.link.of("notifications/cancelled")
    ]
    first, second = bench.link.of("tools/call")
    assert told == [{"requestId": int(second.id)}, {"requestId": int(first.id)}]
    assert bench.link.cancelled == [second.call, first.call]
    bench.link.reply(first)
    assert not one.told
    assert bench.drops() == ["late_answer"]


def test_a_cancellation_that_was_not_taken_is_said_later(bench: Bench) -> None:
    asker = bench.join()
    call = asker.ask("tools/call", id=5)
    bench.link.full = True
    assert not asker.send(notify("notifications/cancelled", '{"requestId":5}'))
    bench.link.full = False
    assert asker.link is not None
    asker.link.cancel(call)
    assert len(bench.link.of("notifications/cancelled")) == 1


def test_who_leaves_takes_all_along(bench: Bench) -> None:
    """TestHandleDelete_PurgesRoutingState"""
    one, two = bench.join(), bench.join()
    for asker in (one, two):
        asker.ask("resources/subscribe", '{"uri":"test://a"}')
        bench.link.reply(bench.link.last("resources/subscribe"))
    one.ask("tools/call")
    assert one.link is not None
    one.link.close()
    one.link.close()
    assert len(bench.link.of("notifications/cancelled")) == 1
    assert not bench.link.of("resources/unsubscribe")
    two.told.clear()
    one.told.clear()
    bench.link.push(notify("notifications/resources/updated", '{"uri":"test://a"}'))
    assert (len(one.told), len(two.told)) == (0, 1)
    assert two.link is not None
    two.link.close()
    assert len(bench.link.of("resources/unsubscribe")) == 1
    assert not one.send(request(9))


# Back-pressure.


def test_a_full_queue_refuses_and_tells_when_there_is_room(bench: Bench) -> None:
    """TestSendMessageToDestination_ChannelFull"""
    one, two, three = bench.join(), bench.join(), bench.join()
    bench.link.full = True
    assert not one.send(request(1), object())
    assert not two.send(notify("notifications/x"))
    bench.link.full = False
    bench.link.listener.drained()
    bench.link.listener.drained()
    assert (one.told, two.told, three.told) == ([("drained",)], [("drained",)], [])


def test_who_waited_for_an_outcome_hears_that_the_queue_is_full(bench: Bench) -> None:
    one, two = bench.join(), bench.join()
    one.ask("resources/subscribe", '{"uri":"test://a"}')
    call = two.ask("resources/subscribe", '{"uri":"test://a"}')
    bench.link.full = True
    bench.link.refuse(bench.link.last("resources/subscribe"))
    ((settled, how),) = two.of("settled")
    assert settled is call
    assert how.reason is Reason.OVERLOADED


def test_one_reader_holds_nobody_elses_stream(bench: Bench) -> None:
    asker = bench.join()
    call = asker.ask("tools/call")
    assert asker.link is not None
    assert asker.link.multiplexed
    for origin in (None, call):
        asker.link.hold(origin)
        assert not bench.link.held
        asker.link.release(origin)


def test_over_http_a_call_holds_its_own_stream(http: Bench) -> None:
    one, two = http.join(), http.join()
    call, other = one.ask("tools/call"), two.ask("tools/call")
    assert one.link is not None
    assert not one.link.multiplexed
    for origin in (None, other, call):
        one.link.hold(origin)
    assert http.link.held == [http.link.requests[0].call]
    one.link.release(call)
    assert not http.link.held


# The end.


def test_a_lost_link_is_lost_to_all_once_and_made_again(bench: Bench) -> None:
    one, two = bench.join(), bench.join()
    one.ask("tools/call")
    one.ask("tasks/list")
    bench.link.lose()
    for asker in (one, two):
        assert asker.told == [("lost", Reason.SERVER_EXITED, "the server exited")]
        assert not asker.send(request(3), object())
    bench.turn()
    assert not bench.clock.getDelayedCalls()
    assert len(one.told) == 1
    bench.join()
    assert bench.inner.handshakes == 2


def test_who_hears_of_the_loss_may_ask_at_once(bench: Bench) -> None:
    again: list[Asker] = []

    class Eager(Asker):
        def lost(self, reason: Reason, message: str) -> None:
            again.append(bench.join())

    bench.server.link(Hello(HELLO), Eager(), CONTEXT)
    bench.link.lose()
    assert len(bench.inner.links) == 2
    assert again[0].link is not None


def test_a_session_the_server_forgot_is_left_by_all(http: Bench) -> None:
    one, two, idle = http.join(), http.join(), http.join()
    running, refused = two.ask("tools/call"), one.ask("tools/call")
    note = object()
    one.send(notify("notifications/x"), note)
    first, second = http.link.of("tools/call")
    http.link.settle(second, status=404)
    assert [(call, how.status) for call, how in one.of("settled")] == [(refused, 404)]
    old = http.link
    assert old.alive, "a call runs on it"
    new = http.join()
    assert new.link is not None
    assert http.link is not old
    old.reply(first)
    assert [origin for _, origin in two.of("received")] == [running]
    assert not old.alive
    for asker in (two, idle):
        assert [reason for reason, _ in asker.of("lost")] == [Reason.SERVER_EXITED]
    assert not one.of("lost"), "it knows, and has another link by now"
    assert not new.told


def test_calls_left_on_a_forgotten_session_end_with_its_link(http: Bench) -> None:
    asker = http.join()
    running, refused = asker.ask("tools/call"), asker.ask("tools/call", id=2)
    asker.ask("tasks/get", id=3)
    http.link.settle(http.link.requests[1], status=404)
    http.link.lose()
    assert [call for call, _ in asker.of("settled")] == [refused, running]
    assert [what["id"] for what in asker.messages] == [3]
    assert not asker.of("lost")


def test_a_404_of_a_server_without_sessions_says_nothing_about_them() -> None:
    http = Bench(ScriptedServer(http=True, sessionless=True))
    asker = http.join()
    assert asker.link is not None
    assert asker.link.sessionless
    asker.ask("tools/call")
    http.link.settle(http.link.requests[0], status=404)
    assert http.link.alive
    http.join()
    assert http.inner.handshakes == 1


def test_draining_tells_all_and_ends_it(bench: Bench) -> None:
    one, two = bench.join(), bench.join()
    fired: list[None] = []
    bench.server.drain().addCallback(fired.append)
    assert fired == [None]
    assert bench.inner.drained
    for asker in (one, two):
        assert [reason for reason, _ in asker.of("lost")] == [Reason.SHUTTING_DOWN]
    late = bench.ask()
    assert late.failure.reason is Reason.SHUTTING_DOWN


def test_draining_gives_up_a_handshake(bench: Bench) -> None:
    bench.inner.handshakeHeld = True
    asker = bench.ask()
    bench.server.drain()
    assert bench.inner.givenUp == 1
    assert asker.failure.reason is Reason.SHUTTING_DOWN


def test_draining_gives_up_a_greeting(http: Bench) -> None:
    asker = http.ask()
    http.server.drain()
    assert asker.failure.reason is Reason.SHUTTING_DOWN
    assert not http.inner.open
    assert not http.clock.getDelayedCalls()


def test_it_is_a_server_like_the_other(bench: Bench) -> None:
    verifyObject(IServer, bench.server)
    asker = bench.join()
    verifyObject(ILink, asker.link)
    assert bench.server.name == "scripted"
    assert bench.server.settings is bench.inner.settings
    assert bench.server.generation == 1
    assert bench.server.health() is Health.UP


# Behind real relays.


@define(eq=False)
class Sessions:
    """Sessions with relays of their own on one shared server."""

    bench: Bench
    registry: SessionRegistry = field(init=False)

    def __attrs_post_init__(self) -> None:
        bench = self.bench
        self.registry = SessionRegistry(bench.clock, bench.limits, MemoryStore(), bench.observed)

    def relay(self, policy: IPolicy | None = None) -> Relay:
        bench = self.bench
        made: list[Any] = []
        self.registry.create("scripted", 1, ANONYMOUS, "streamable").addCallback(made.append)
        relay = Relay(
            made[0],
            bench.server,
            self.registry,
            policy or AllowAll(),
            bench.limits,
            bench.clock,
            bench.observed,
            CONTEXT,
        )
        opened: list[Message] = []
        Deferred.fromCoroutine(relay.open(HELLO)).addCallback(opened.append)
        if bench.inner.http and not opened:
            bench.link.accept(bench.link.last(INITIALIZED))
        assert opened
        made[0].opened(bench.clock.seconds())
        relay.message(notify(INITIALIZED), CONTEXT)
        bench.turn()
        return relay

    def ask(self, relay: Relay, method: str = "tools/call", params: str = "{}") -> MemoryTarget:
        target = MemoryTarget()
        relay.request(request(1, method, params), target, True, CONTEXT)
        return target

    def end(self) -> None:
        for session in list(self.registry):
            self.registry.end(session, "deleted")
        self.bench.clock.advance(0)
        assert not self.bench.clock.getDelayedCalls()


def test_two_relays_call_listen_and_leave(bench: Bench) -> None:
    """
    TestStandaloneSSE_NotificationReachesConnectedClient
    TestStandaloneSSE_FanOutToConcurrentClients
    TestStandaloneSSE_NonGlobalNotificationDoesNotReachClient
    """
    sessions = Sessions(bench)
    one, two = sessions.relay(), sessions.relay()
    assert bench.inner.handshakes == 1
    first, second = sessions.ask(one), sessions.ask(two)
    for sent in reversed(bench.link.of("tools/call")):
        bench.link.reply(sent, b'{"id":%b}' % sent.id)
    assert [target.json["result"]["id"] for target in (first, second)] == [1, 2]
    streams = [MemoryTarget(), MemoryTarget()]
    one.attach(streams[0])
    two.attach(streams[1])
    sessions.ask(one, "resources/subscribe", '{"uri":"test://a"}')
    bench.link.reply(bench.link.last("resources/subscribe"))
    bench.link.push(notify("notifications/resources/updated", '{"uri":"test://a"}'))
    bench.link.push(notify("notifications/prompts/list_changed"))
    bench.link.push(notify("notifications/progress", '{"progressToken":77,"progress":1}'))
    assert [len(stream.delivered) for stream in streams] == [2, 1]
    sessions.end()
    assert [sent.method for sent in bench.link.sent][-1] == "resources/unsubscribe"
    assert bench.link.alive


@implementer(IPolicy)
class NoSubscribing:
    """Whoever it judges may do anything else."""

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        return method != "resources/subscribe"


def test_a_subscription_that_is_not_permitted_is_recorded_nowhere(bench: Bench) -> None:
    """TestPostSSE_AuthzDeniedSubscribeNeverRecordedInRouting"""
    sessions = Sessions(bench)
    denied, allowed = sessions.relay(NoSubscribing()), sessions.relay()
    streams = [MemoryTarget(), MemoryTarget()]
    denied.attach(streams[0])
    allowed.attach(streams[1])
    subscribe = ("resources/subscribe", '{"uri":"test://a"}')
    assert sessions.ask(denied, *subscribe).reason == "forbidden"
    assert not bench.link.of("resources/subscribe")
    assert denied.session.record.subscriptions == []
    # It counts as no first subscriber either: the next one's is the first the server hears of.
    granted = sessions.ask(allowed, *subscribe)
    bench.link.reply(bench.link.last("resources/subscribe"))
    assert granted.json["result"] == {}
    bench.link.push(notify("notifications/resources/updated", '{"uri":"test://a"}'))
    assert [len(stream.delivered) for stream in streams] == [0, 1]
    sessions.end()


def test_a_session_that_idles_out_gives_back_what_it_had_and_nobody_elses(bench: Bench) -> None:
    """TestSessionRouter_Reap_IntegratesWithProxy"""
    sessions = Sessions(bench)
    idle, used = sessions.relay(), sessions.relay()
    for relay, uri in ((idle, "test://idle"), (used, "test://used")):
        sessions.ask(relay, "resources/subscribe", f'{{"uri":"{uri}"}}')
        bench.link.reply(bench.link.last("resources/subscribe"))
    hanging = sessions.ask(used)
    bench.clock.pump([1.0] * 1801)
    assert idle.session.ended == "idle"
    (given,) = bench.link.of("resources/unsubscribe")
    assert given.message.paramText("uri") == "test://idle"
    assert not used.session.ended and not hanging.losses
    bench.link.push(notify("notifications/resources/updated", '{"uri":"test://idle"}'))
    assert "not_subscribed" in bench.drops()
    sessions.end()


def test_after_a_crash_every_session_gets_back_what_it_had(bench: Bench) -> None:
    sessions = Sessions(bench)
    relays = [sessions.relay() for _ in range(3)]
    for number, relay in enumerate(relays):
        sessions.ask(relay, "resources/subscribe", '{"uri":"test://all"}')
        sessions.ask(relay, "resources/subscribe", f'{{"uri":"test://{number}"}}')
        sessions.ask(relay, "logging/setLevel", '{"level":"info"}')
        for sent in list(bench.link.requests):
            if sent.call in bench.server._hub.core.entries.values():  # type: ignore[union-attr]
                bench.link.reply(sent)
        bench.turn()
    pending = [sessions.ask(relay) for relay in relays]
    bench.link.lose()
    assert [target.reason for target in pending] == ["server_exited"] * 3
    after = [sessions.ask(relay) for relay in relays]
    assert bench.inner.handshakes == 2
    for sent in list(bench.link.requests):
        bench.link.reply(sent)
    bench.turn()
    for sent in bench.link.requests:
        if sent.call in bench.server._hub.core.entries.values():  # type: ignore[union-attr]
            bench.link.reply(sent)
    bench.turn()
    assert all(len(target.answers) == 1 for target in after)
    uris = sorted(
        json.loads(sent.message.encode())["params"]["uri"]
        for sent in bench.link.of("resources/subscribe")
    )
    assert uris == ["test://0", "test://1", "test://2", "test://all"]
    assert len(bench.link.of("logging/setLevel")) == 1
    sessions.end()


def test_a_forgotten_upstream_session_is_made_again_for_all(http: Bench) -> None:
    sessions = Sessions(http)
    relays = [sessions.relay() for _ in range(3)]
    targets = [sessions.ask(relay) for relay in relays]
    old = http.link
    for sent in old.of("tools/call"):
        old.settle(sent, status=404)
    assert not old.alive
    assert http.inner.handshakes == 2
    http.link.accept(http.link.last(INITIALIZED))
    http.turn()
    assert len(http.link.of("tools/call")) == 3
    for sent in http.link.of("tools/call"):
        http.link.reply(sent)
    assert [len(target.answers) for target in targets] == [1, 1, 1]
    assert len(http.link.of(INITIALIZED)) == 1
    sessions.end()


def test_a_call_that_takes_too_long_is_cancelled_once(bench: Bench) -> None:
    sessions = Sessions(bench)
    relay = sessions.relay()
    target = sessions.ask(relay)
    bench.clock.advance(bench.inner.settings.timeout)
    assert target.reason == "timeout"
    assert len(bench.link.of("notifications/cancelled")) == 1
    sent = bench.link.last("tools/call")
    assert bench.link.cancelled == [sent.call]
    bench.link.push(message(b'{"jsonrpc":"2.0","id":%b,"result":{}}' % sent.id))
    assert "late_answer" in bench.drops()
    sessions.end()
