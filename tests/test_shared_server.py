"""One link for many sessions: `isolation = "shared"`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedLink, ScriptedServer, Sent, message
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.links.interfaces import (
    EventMark,
    Hello,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    Reason,
    Settled,
)
from gateway.links.process import Reaper
from gateway.observe.observer import Event, IObserver, MessageDropped
from gateway.servers.shared import SharedServer
from gateway.servers.stdio import StdioServer
from gateway.settings import StdioSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

CONTEXT = CallContext("scripted")
ECHO = str(Path(__file__).with_name("echo_server.py"))


def hello(revision: str = "2025-06-18") -> Hello:
    return Hello(b'{"protocolVersion":"%b","capabilities":{"sampling":{}}}' % revision.encode())


@implementer(IObserver)
@define
class Observed:
    events: list[Event] = field(factory=list)

    def observed(self, event: Event) -> None:
        self.events.append(event)

    @property
    def dropped(self) -> list[str]:
        return [event.why for event in self.events if isinstance(event, MessageDropped)]


@implementer(ILinkListener)
@define(eq=False)
class Session:
    """One session's relay, as the shared link sees it."""

    heard: list[dict[str, Any]] = field(factory=list)
    taken: list[object] = field(factory=list)
    ends: list[tuple[object, Settled]] = field(factory=list)
    losses: list[Reason] = field(factory=list)
    drains: int = 0
    link: Any = None

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        self.heard.append(json.loads(message.encode()))

    def marked(self, origin: object | None, mark: EventMark) -> None:
        raise AssertionError("never marked")

    def ended(self, origin: object) -> None:
        raise AssertionError("has no streams")

    def accepted(self, call: object) -> None:
        self.taken.append(call)

    def settled(self, call: object, settled: Settled) -> None:
        self.ends.append((call, settled))

    def drained(self) -> None:
        self.drains += 1

    def lost(self, reason: Reason, message: str) -> None:
        self.losses.append(reason)

    # The test's side.

    def ask(self, id: int, method: str = "tools/call", **params: Any) -> object:
        call = object()
        body = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        self.taken.append(self.link.send(message(json.dumps(body).encode()), call, CONTEXT))
        return call

    def tell(self, method: str, call: object = None, **params: Any) -> bool:
        body = {"jsonrpc": "2.0", "method": method, "params": params}
        return bool(self.link.send(message(json.dumps(body).encode()), call, CONTEXT))

    def take(self) -> list[dict[str, Any]]:
        heard, self.heard = self.heard, []
        return heard


class Bench:
    def __init__(self, **settings: Any) -> None:
        self.inner = ScriptedServer(isolation="shared", **settings)
        self.clock, self.seen = Clock(), Observed()
        self.server = SharedServer(self.inner, self.clock, self.seen)

    def join(self, revision: str = "2025-06-18") -> Session:
        session = Session()

        def made(link: ILink) -> None:
            session.link = link

        self.server.link(hello(revision), session, CONTEXT).addCallback(made)
        return session

    def turn(self) -> None:
        self.clock.advance(0)

    @property
    def link(self) -> ScriptedLink:
        return self.inner.newest

    def asked(self, method: str) -> list[Sent]:
        return self.link.of(method)

    def notify(self, method: str, origin: object = None, **params: Any) -> None:
        body = {"jsonrpc": "2.0", "method": method, "params": params}
        self.link.push(json.dumps(body).encode(), origin)


def methods(heard: list[dict[str, Any]]) -> list[str]:
    return [one.get("method", "") for one in heard]


# The handshake (TestEveryClientHandshakeSucceedsAgainstStrictBackend and the rest of group E).


def test_one_handshake_in_our_own_name_for_all_who_ask_at_once() -> None:
    """TestConcurrentInitializeReachesBackendOnce"""
    bench = Bench()
    assert verifyObject(IServer, bench.server)
    bench.inner.handshakeHeld = True
    one, two = bench.join(), bench.join("2024-11-05")
    bench.inner.finishHandshake()
    assert bench.inner.handshakes == 1
    assert json.loads(bench.link.hello.params)["clientInfo"]["name"] == "mcp-gateway"
    assert json.loads(bench.link.hello.params)["capabilities"] == {}
    assert bench.link.context.headers == ()
    assert verifyObject(ILink, one.link)
    answers = [json.loads(s.link.answer.encode())["result"] for s in (one, two)]
    assert [answer.pop("protocolVersion") for answer in answers] == ["2025-06-18", "2024-11-05"]
    assert answers[0] == answers[1]
    third = bench.join()
    assert bench.inner.handshakes == 1 and third.link is not None
    assert len(bench.asked("notifications/initialized")) == 1


def test_an_unknown_revision_gets_the_servers_and_tasks_are_nobodys() -> None:
    result = b'{"protocolVersion":"2025-11-25","capabilities":{"tasks":{"list":{}},"x":{"a": 1}}}'
    bench = Bench(result=result)
    answer = bench.join("1999-01-01").link.answer.encode()
    assert b'"result":{"protocolVersion":"2025-11-25","capabilities":{"x":{"a": 1}}}' in answer


def test_a_failed_handshake_is_not_kept_and_who_leaves_fails_nobody_else() -> None:
    """TestFailedInitializeIsNotCached, TestInitializeSurvivesFirstCallerDisconnect"""
    bench = Bench()
    bench.inner.failNext()
    failures: list[Any] = []
    bench.server.link(hello(), Session(), CONTEXT).addErrback(failures.append)
    assert failures[0].check(LinkFailed)
    bench.inner.handshakeHeld = True
    leaving: Deferred[ILink] = bench.server.link(hello(), Session(), CONTEXT)
    leaving.addErrback(failures.append)
    staying = bench.join()
    leaving.cancel()
    bench.inner.finishHandshake()
    assert staying.link is not None and bench.inner.givenUp == 0


def test_initialized_reaches_the_server_once() -> None:
    """TestDuplicateInitializedNotificationIsNotForwarded"""
    bench = Bench()
    note = object()
    one = bench.join()
    assert one.tell("notifications/initialized", note)
    assert one.taken == []
    bench.turn()
    assert one.taken == [note]
    one.tell("notifications/roots/list_changed")
    assert len(bench.link.sent) == 1


# Ids and progress.


def test_equal_ids_of_two_sessions_never_meet() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    for session in (one, two):
        session.ask(1, _meta={"progressToken": 1})
    first, second = bench.asked("tools/call")
    assert first.id != second.id
    bench.notify("notifications/progress", progressToken=int(second.id), progress=1)
    bench.link.reply(second, b'"two"')
    bench.link.reply(first, b'"one"')
    assert one.take() == [{"jsonrpc": "2.0", "id": 1, "result": "one"}]
    progress, answer = two.take()
    assert progress["params"] == {"progressToken": 1, "progress": 1}
    assert answer["result"] == "two"
    bench.notify("notifications/progress", progressToken=int(first.id), progress=2)
    bench.link.reply(first, b"{}")
    assert not one.heard and not two.heard
    assert bench.seen.dropped == ["unknown_token", "late_answer"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60), st.randoms())
def test_whatever_the_order_each_answer_goes_to_who_asked(
    asked: list[tuple[int, int]], random: Any
) -> None:
    bench = Bench()
    sessions = [bench.join() for _ in range(4)]
    for number, (who, id) in enumerate(asked):
        sessions[who].ask(id, token=number)
    sent = list(bench.asked("tools/call"))
    random.shuffle(sent)
    for one in sent:
        bench.link.reply(one, one.message.param("token") or b"")
    for who, session in enumerate(sessions):
        wanted = Counter((id, n) for n, (owner, id) in enumerate(asked) if owner == who)
        assert Counter((a["id"], a["result"]) for a in session.heard) == wanted


def test_a_cancellation_names_the_id_the_server_knows() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    one.ask(7)
    two.ask(7)
    two.tell("notifications/cancelled", requestId=7)
    (cancelled,) = bench.asked("notifications/cancelled")
    assert cancelled.message.param("requestId") == bench.asked("tools/call")[1].id
    one.tell("notifications/cancelled", requestId=8)
    assert bench.seen.dropped == ["stray_cancel"]


def test_who_leaves_takes_its_calls_along() -> None:
    """TestHandleDelete_PurgesRoutingState"""
    bench = Bench()
    one, two = bench.join(), bench.join()
    one.ask(1)
    two.ask(1)
    one.link.close()
    (cancelled,) = bench.asked("notifications/cancelled")
    assert cancelled.message.param("requestId") == bench.asked("tools/call")[0].id
    assert not bench.link.closed
    for sent in bench.asked("tools/call"):
        bench.link.reply(sent)
    assert one.heard == [] and len(two.heard) == 1
    assert one.link.send(message(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'), 1, CONTEXT) is False


# Subscriptions.


def test_the_server_hears_the_first_and_the_last_subscription() -> None:
    """TestPostSSE_ResourcesUpdated_SubscribersOnlyAndUpstreamRefCounted"""
    bench = Bench()
    one, two, three = bench.join(), bench.join(), bench.join()
    one.ask(1, "resources/subscribe", uri="a:/x")
    two.ask(1, "resources/subscribe", uri="a:/x")
    assert len(bench.asked("resources/subscribe")) == 1 and not two.heard
    bench.link.reply(bench.asked("resources/subscribe")[0])
    assert [len(s.take()) for s in (one, two, three)] == [1, 1, 0]
    for uri in ("a:/x", "a:/x/below", "a:/xy", "a:/other"):
        bench.notify("notifications/resources/updated", uri=uri)
    assert [len(s.take()) for s in (one, two, three)] == [2, 2, 0]
    one.ask(2, "resources/unsubscribe", uri="a:/x")
    assert one.heard == []
    bench.turn()
    assert len(one.take()) == 1 and not bench.asked("resources/unsubscribe")
    two.link.close()
    (last,) = bench.asked("resources/unsubscribe")
    three.ask(1, "resources/subscribe", uri="a:/x")
    assert len(bench.asked("resources/subscribe")) == 1, "in order, after the unsubscribe"
    bench.link.reply(last)
    assert len(bench.asked("resources/subscribe")) == 2


def test_a_refused_subscription_leaves_no_trace() -> None:
    """TestPostSSE_FailedFirstSubscribeIsNotRecordedAndSecondSubscriberRetries"""
    bench = Bench()
    one, two = bench.join(), bench.join()
    one.ask(1, "resources/subscribe", uri="a:/x")
    two.ask(1, "resources/subscribe", uri="a:/x")
    bench.link.refuse(bench.asked("resources/subscribe")[0])
    assert "error" in one.take()[0]
    bench.link.reply(bench.asked("resources/subscribe")[1])
    assert "result" in two.take()[0]
    bench.notify("notifications/resources/updated", uri="a:/x")
    assert not one.heard and len(two.heard) == 1


def test_a_subscriber_who_left_before_the_answer_is_unsubscribed() -> None:
    bench = Bench()
    one = bench.join()
    one.ask(1, "resources/subscribe", uri="a:/x")
    one.link.close()
    bench.link.reply(bench.asked("resources/subscribe")[0])
    assert len(bench.asked("resources/unsubscribe")) == 1


# Logs, and what names nobody.


def test_the_servers_level_is_the_most_verbose_and_each_gets_its_own() -> None:
    """TestPostSSE_LoggingDroppedAndUpstreamLevelIsMaxAcrossSessions"""
    bench = Bench()
    one, two, three = bench.join(), bench.join(), bench.join()
    one.ask(1, "logging/setLevel", level="warning")
    bench.link.reply(bench.asked("logging/setLevel")[0])
    two.ask(1, "logging/setLevel", level="debug")
    bench.link.reply(bench.asked("logging/setLevel")[1])
    three.ask(1, "logging/setLevel", level="error")
    bench.turn()
    levels = [sent.message.paramText("level") for sent in bench.asked("logging/setLevel")]
    assert levels == ["warning", "debug"]
    assert [len(s.take()) for s in (one, two, three)] == [1, 1, 1]
    bench.notify("notifications/message", level="warning", data=1)
    assert [len(s.take()) for s in (one, two, three)] == [1, 1, 0]
    two.link.close()
    assert bench.asked("logging/setLevel")[-1].message.paramText("level") == "warning"


def test_a_message_that_names_nobody_goes_to_whom_it_can_only_belong_to() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    one.ask(1)
    bench.notify("notifications/message", level="info", data="one's")
    assert [len(s.take()) for s in (one, two)] == [1, 0]
    two.ask(1)
    bench.notify("notifications/message", level="info", data="whose?")
    assert [len(s.take()) for s in (one, two)] == [0, 0]
    assert bench.seen.dropped == ["of_several"]
    for sent in bench.asked("tools/call"):
        bench.link.reply(sent)
    one.take(), two.take()
    bench.notify("notifications/message", level="info", data="nobody asked")
    bench.notify("notifications/custom")
    bench.notify("notifications/tools/list_changed")
    assert methods(one.heard) == ["notifications/custom", "notifications/tools/list_changed"]
    assert methods(two.heard) == methods(one.heard)


def test_over_http_the_calls_own_stream_tells_whose_it_is() -> None:
    bench = Bench(http=True)
    one, two = bench.join(), bench.join()
    one.ask(1)
    two.ask(1)
    second = bench.asked("tools/call")[1]
    bench.notify("notifications/message", second.call, level="info", data="two's")
    assert not one.heard and methods(two.heard) == ["notifications/message"]


# Requests of the server.


def test_nobody_answers_for_another() -> None:
    """TestPostSSE_SamplingRequestNeverReachesClientAndBackendGetsError"""
    bench = Bench()
    one = bench.join()
    for method in ("ping", "sampling/createMessage", "roots/list"):
        bench.link.push(b'{"jsonrpc":"2.0","id":"q","method":"%b","params":{}}' % method.encode())
    pong, *refused = [json.loads(sent.message.encode()) for sent in bench.asked("")]
    assert pong == {"jsonrpc": "2.0", "id": "q", "result": {}}
    assert [one_["error"]["code"] for one_ in refused] == [-32601, -32601]
    assert one.heard == []
    one.ask(1, "tasks/list")
    bench.turn()
    assert one.heard[0]["error"]["code"] == -32601


# The end.


def test_the_loss_of_the_link_is_told_to_all_and_the_next_makes_another() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    one.ask(1)
    bench.link.lose()
    assert one.losses == two.losses == [Reason.SERVER_EXITED]
    assert one.link.close().called
    bench.join()
    assert bench.inner.handshakes == 2


def test_a_session_the_http_server_forgot_is_not_joined_again() -> None:
    bench = Bench(http=True)
    one, two = bench.join(), bench.join()
    call = one.ask(1)
    first = bench.link
    first.settle(first.last("tools/call"), status=404)
    assert one.ends[0][0] is call and one.ends[0][1].status == 404
    three = bench.join()
    assert bench.inner.handshakes == 2 and three.link is not None
    one.link.close()
    assert not first.closed
    two.link.close()
    assert first.closed


def test_a_full_queue_is_told_and_its_end_too() -> None:
    bench = Bench()
    one, two = bench.join(), bench.join()
    bench.link.full = True
    one.ask(1)
    assert one.taken == [False]
    bench.link.full = False
    bench.link.listener.drained()
    assert (one.drains, two.drains) == (1, 0)
    one.ask(2)
    bench.link.reply(bench.asked("tools/call")[0])
    assert one.heard[0]["id"] == 2


def test_drain_tells_all_and_takes_nobody_more() -> None:
    bench = Bench()
    one = bench.join()
    one.ask(1, "tasks/list")
    assert bench.server.drain().called and bench.inner.drained
    assert one.losses == [Reason.SHUTTING_DOWN]
    assert not bench.clock.getDelayedCalls()
    failures: list[Any] = []
    bench.server.link(hello(), Session(), CONTEXT).addErrback(failures.append)
    assert failures[0].value.reason is Reason.SHUTTING_DOWN


# A real child.


@pytest.mark.acceptance(25)
@pytest_twisted.ensureDeferred
async def test_acceptance_25_two_hundred_sessions_on_one_child_never_cross() -> None:
    """A slice of 10,000 calls: 200 sessions, each with the ids 1 to 50, all in flight at once."""
    reaper, seen = Reaper(reactor), Observed()
    limits = Limits(max_stdin_messages=20_000, max_stdin_bytes=10**8)
    settings = StdioSettings(name="echo", command=sys.executable, args=(ECHO,))
    inner = StdioServer(settings, limits, reactor, reactor, seen, reaper)
    server = SharedServer(inner, reactor, seen)  # type: ignore[arg-type]
    done: Deferred[None] = Deferred()
    left = 10_000

    class Counting(Session):
        def received(self, message: Message, origin: object, mark: object = None) -> None:
            nonlocal left
            Session.received(self, message, origin)
            left -= 1
            if not left:
                done.callback(None)

    sessions = [Counting() for _ in range(200)]
    for session in sessions:
        session.link = await server.link(hello(), session, CONTEXT)
    for id in range(1, 51):
        for who, session in enumerate(sessions):
            session.ask(id, token=f"{who}/{id}")
    await done.addTimeout(60, reactor)  # type: ignore[arg-type]
    for who, session in enumerate(sessions):
        assert {one["id"]: one["result"]["token"] for one in session.heard} == {
            id: f"{who}/{id}" for id in range(1, 51)
        }
        assert len(session.heard) == 50
    assert seen.dropped == []
    await server.drain()
    await reaper.close()
