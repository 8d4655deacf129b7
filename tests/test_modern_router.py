"""Ids, routes and deadlines of the modern callers of one child (MCP 2026-07-28)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_router import notify, only, response, spelledIDs

from gateway.guard.limits import Limits
from gateway.links.interfaces import Reason
from gateway.observe.observer import BoundReached, CallStarted, MessageDropped
from gateway.relay.effects import Answer, Call, Deliver, Forget, Forward
from gateway.relay.modern_router import Ended, ModernEffect, ModernRouter
from gateway.testing.scripted import message
from gateway.wire.context import CallContext, Principal
from gateway.wire.envelope import Message

CONTEXT = CallContext("scripted")
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
LOG = b'"io.modelcontextprotocol/logLevel":"info"'
NEVER = float("inf")
LINK: Any = object()


@define(eq=False)
class Target:
    """Stands for where an answer goes."""


def makeRouter(
    limits: Limits | None = None, timeout: float = 600.0, maxTimeout: float = 3600.0
) -> ModernRouter:
    return ModernRouter("scripted", limits or Limits(), timeout, maxTimeout)


def request(id: bytes = b"1", method: str = "tools/call", meta: bytes = b"") -> Message:
    data = b'{"jsonrpc":"2.0","id":%b,"method":"%b","params":{"x":1.0,"_meta":{%b}}}'
    return message(data % (id, method.encode(), meta))


def ask(
    router: ModernRouter,
    id: bytes = b"1",
    *,
    method: str = "tools/call",
    meta: bytes = b"",
    now: float = 0.0,
    sent: bool = True,
) -> tuple[Call, Message]:
    """A request of a client. Returns its call, and what the server got."""
    effects = router.request(request(id, method, meta), Target(), CONTEXT, now)
    (forward,) = only(effects, Forward)
    assert forward.call is not None and forward.context is CONTEXT
    if sent:
        forward.call.via = LINK
    return forward.call, forward.message


def listen(router: ModernRouter, id: bytes = b"1", **options: Any) -> tuple[Call, Message]:
    return ask(router, id, method="subscriptions/listen", **options)


def says(subscription: bytes, method: str = "notifications/tools/list_changed") -> Message:
    return notify(method, b'{"_meta":{"%b":%b}}' % (SUBSCRIPTION.encode(), subscription))


def dropped(effects: list[ModernEffect]) -> list[str]:
    return [event.why for event in only(effects, MessageDropped)]


def reasonOf(answer: Message) -> Any:
    return json.loads(answer.encode())["error"]["data"]["reason"]


# Ids, tokens, subscriptions.


@pytest.mark.acceptance(23, 26)
@given(ids=st.lists(spelledIDs, min_size=1, max_size=20))
def test_acceptance_26_modernIDsTokensAndSubscriptionsComeBackByteForByte(ids: list[bytes]) -> None:
    router = makeRouter()
    calls = [ask(router, id, meta=b'"progressToken":%b' % id) for id in ids]
    streams = [listen(router, id) for id in ids]
    assert len({sent.id for _, sent in calls + streams}) == 2 * len(ids)
    for id, (call, sent) in zip(ids, calls, strict=True):
        assert sent.id is not None and sent.id.isdigit()
        assert sent.meta("progressToken") == sent.id
        progress = notify("notifications/progress", b'{"progressToken":%b,"progress":1}' % sent.id)
        (told,) = router.fromServer(progress, 0.0)
        assert told.target is call.target and told.message.param("progressToken") == id
    for id, (call, sent) in zip(ids, streams, strict=True):
        assert sent.id is not None
        (told,) = router.fromServer(says(sent.id), 0.0)
        assert told.target is call.target and told.message.meta(SUBSCRIPTION) == id
        result = b'{"resultType":"complete","_meta":{"%b":%b}}' % (SUBSCRIPTION.encode(), sent.id)
        (end,) = router.fromServer(response(sent.id, result), 0.0)
        assert end.message.id == id
        data = b'{"jsonrpc":"2.0","id":%b,"result":{"resultType":"complete","_meta":{"%b":%b}}}'
        assert end.message.encode() == data % (id, SUBSCRIPTION.encode(), id)
    for id, (call, sent) in reversed(list(zip(ids, calls, strict=True))):
        (end,) = router.fromServer(response(sent.id, b'{"n":1.0}'), 0.0)
        assert end.call is call and end.message.encode() == (
            b'{"jsonrpc":"2.0","id":%b,"result":{"n":1.0}}' % id
        )
    assert not router.calls and not router.running and not router.listens


def test_valuesGoAsTheyCame() -> None:
    router = makeRouter()
    _, sent = ask(router, b'"\\u0041"')
    expected = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"x":1.0,"_meta":{}}}'
    assert sent.encode() == expected


# To whom.


@pytest.mark.acceptance(57)
def test_acceptance_57_whatNamesNobodyGoesToNobody() -> None:
    router = makeRouter()
    call, sent = ask(router)
    stream, opened = listen(router)
    assert sent.id is not None and opened.id is not None
    for told, why in (
        (notify("notifications/tools/list_changed"), "no_subscription"),
        (says(sent.id), "no_subscription"),
        (says(b"99"), "no_subscription"),
        (says(b'"%b"' % opened.id), "no_subscription"),
        (notify("notifications/x"), "no_subscription"),
        (notify("notifications/progress", b'{"progressToken":1,"progress":1}'), "unknown_token"),
        (notify("notifications/progress", b'{"progress":1}'), "unknown_token"),
        (notify("notifications/cancelled", b'{"requestId":%b}' % sent.id), "stray_cancel"),
        (notify("notifications/cancelled"), "stray_cancel"),
        (notify("notifications/message", b'{"level":"info"}'), "unowned_log"),
        (message(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}'), "server_request"),
        (message(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'), "server_request"),
        (response(b"99"), "unknown_id"),
        (response(b'"1"'), "unknown_id"),
        (response(b"0"), "unknown_id"),
    ):
        assert dropped(router.fromServer(told, 0.0)) == [why], told
    assert set(router.calls.values()) == {call, stream}


def test_logMessagesGoToTheOnlyCallThatAskedForThem() -> None:
    router = makeRouter()
    log = notify("notifications/message", b'{"level":"info","data":1.0}')
    ask(router, b"1")
    assert dropped(router.fromServer(log, 0.0)) == ["unowned_log"]
    call, sent = ask(router, b"2", meta=LOG)
    (told,) = router.fromServer(log, 0.0)
    assert isinstance(told, Deliver) and told.target is call.target and told.message is log
    other, _ = ask(router, b"3", meta=LOG)
    assert dropped(router.fromServer(log, 0.0)) == ["unowned_log"]
    router.fromServer(response(sent.id or b""), 0.0)
    (told,) = router.fromServer(log, 0.0)
    assert told.target is other.target
    router.gone(other.target)
    assert dropped(router.fromServer(log, 0.0)) == ["unowned_log"]


LATE_LOG = notify("notifications/message", b'{"level":"info","data":"of one"}')


def test_aCallThatWasLeftMayStillLogAndSoNothingGoesToAnother() -> None:
    router = makeRouter(timeout=10.0)
    one, sent = ask(router, b"1", meta=LOG)
    router.gone(one.target)
    other, _ = ask(router, b"2", meta=LOG)
    assert dropped(router.fromServer(LATE_LOG, 9.0)) == ["unowned_log"]
    assert dropped(router.fromServer(response(sent.id or b""), 9.0)) == ["late_answer"]
    (told,) = router.fromServer(LATE_LOG, 9.0)
    assert told.target is other.target


def test_whoWasLeftIsTakenToLogForAsLongAsItsCallWouldHaveRun() -> None:
    router = makeRouter(timeout=10.0, maxTimeout=40.0)
    one, _ = ask(router, b"1", meta=LOG)
    router.gone(one.target)
    two, _ = ask(router, b"2", meta=LOG, now=5.0)
    assert dropped(router.fromServer(LATE_LOG, 9.0)) == ["unowned_log"]
    (told,) = router.fromServer(LATE_LOG, 10.0)
    assert told.target is two.target
    # One that is late already may be later.
    router.expired(15.0)
    three, _ = ask(router, b"3", meta=LOG, now=16.0)
    assert dropped(router.fromServer(LATE_LOG, 25.0)) == ["unowned_log"]
    # Another child knows nothing of it.
    router.lost(Reason.SERVER_EXITED, "gone", 0.0)
    assert three not in router.calls.values()
    four, _ = ask(router, b"4", meta=LOG, now=26.0)
    (told,) = router.fromServer(LATE_LOG, 26.0)
    assert told.target is four.target


def test_whatWasNeverSentLogsNothingAndTheLeftAreBounded() -> None:
    router = makeRouter(Limits(max_modern_calls=2))
    one, _ = ask(router, b"1", meta=LOG, sent=False)
    router.gone(one.target)
    stream, _ = listen(router, b"2", meta=LOG)
    router.gone(stream.target)
    other, _ = ask(router, b"3", meta=LOG)
    (told,) = router.fromServer(LATE_LOG, 0.0)
    assert told.target is other.target
    left = [ask(router, b"4", meta=LOG)[0]]
    for _ in range(3):
        router.gone(left[-1].target)
        left.append(ask(router, b"4", meta=LOG)[0])
    # The first of these is not remembered any more.
    router.fromServer(response(other.upstream), 0.0)
    for call in left[1:-1]:
        assert dropped(router.fromServer(LATE_LOG, 0.0)) == ["unowned_log"]
        router.fromServer(response(call.upstream), 0.0)
    (told,) = router.fromServer(LATE_LOG, 0.0)
    assert told.target is left[-1].target


# Ends.


def test_aClientThatLeavesHasCancelled() -> None:
    router = makeRouter()
    for make in (ask, listen):
        call, sent = make(router, b'"a"')
        forward, forget = router.gone(call.target)
        assert isinstance(forward, Forward) and forward.call is None
        assert forward.message.method == "notifications/cancelled"
        assert forward.message.param("requestId") == sent.id
        assert forget == Forget(call)
        assert router.gone(call.target) == []
        assert dropped(router.fromServer(response(sent.id or b""), 0.0)) == ["late_answer"]
        assert dropped(router.fromServer(says(sent.id or b""), 0.0)) == ["no_subscription"]
    # What the server has not heard of cannot be cancelled there.
    call, _ = ask(router, sent=False)
    assert router.gone(call.target) == [Forget(call)]
    assert not router.calls


def test_theServerEndsTheStreamsOfWhoListens() -> None:
    router = makeRouter()
    stream, sent = listen(router)
    told = notify("notifications/cancelled", b'{"requestId":%b}' % (sent.id or b""))
    assert router.fromServer(told, 0.0) == [Forget(stream), Ended(stream)]
    assert dropped(router.fromServer(told, 0.0)) == ["stray_cancel"]
    assert not router.calls and not router.listens


def test_progressExtendsADeadlineAndACapEndsIt() -> None:
    router = makeRouter(timeout=10.0, maxTimeout=25.0)
    call, sent = ask(router, meta=b'"progressToken":"t"')
    listen(router, b"2")
    assert router.soonest == 10.0
    progress = notify("notifications/progress", b'{"progressToken":%b}' % (sent.id or b""))
    for now in (9.0, 18.0, 24.0):
        router.fromServer(progress, now)
        assert router.expired(now) == []
    assert router.soonest == 25.0
    cancel, forget, end = router.expired(25.0)
    assert isinstance(cancel, Forward) and cancel.message.param("requestId") == sent.id
    assert cancel.message.param("reason") == b'"timeout"'
    assert forget == Forget(call)
    assert isinstance(end, Answer) and reasonOf(end.message) == end.failed == "timeout"
    # Who listens has no deadline.
    assert router.soonest == NEVER and router.expired(1e9) == []
    assert router.listens == 1


def test_theLossOfTheLinkEndsWhatWasSentOnIt() -> None:
    router = makeRouter()
    calls = [ask(router, b"%d" % n)[0] for n in range(3)]
    stream, _ = listen(router, b"9")
    waiting, _ = ask(router, b"10", sent=False)
    effects = router.lost(Reason.SERVER_EXITED, "gone", 0.0)
    assert [end.call for end in only(effects, Answer)] == calls
    assert {reasonOf(end.message) for end in only(effects, Answer)} == {"server_exited"}
    assert only(effects, Ended) == [Ended(stream)]
    assert list(router.calls.values()) == [waiting]


def test_atTheEndWhoListensIsToldSo() -> None:
    router = makeRouter()
    call, _ = ask(router, b"1")
    stream, _ = listen(router, b'"a"')
    effects = router.stopped(Reason.SHUTTING_DOWN, "stopping")
    ends = {end.call: end.message for end in only(effects, Answer)}
    assert reasonOf(ends[call]) == "shutting_down"
    assert ends[stream].encode() == (
        b'{"jsonrpc":"2.0","id":"a","result":{"resultType":"complete","_meta":{"%b":"a"}}}'
        % SUBSCRIPTION.encode()
    )
    assert not router.calls


def test_whatSettlesWithoutAnAnswer() -> None:
    router = makeRouter()
    call, _ = ask(router, b'"a"')
    (end,) = router.settled(call, Reason.BAD_ANSWER, "malformed")
    assert end.message.id == b'"a"' and reasonOf(end.message) == "bad_answer"
    assert router.settled(call, Reason.BAD_ANSWER, "malformed") == []
    call, _ = ask(router, b'"b"')
    own = message(b'{"jsonrpc":"2.0","id":9,"error":{"code":-1,"message":"m"}}')
    (end,) = router.settled(call, Reason.BAD_ANSWER, "refused", own)
    assert json.loads(end.message.encode()) == {
        "jsonrpc": "2.0",
        "id": "b",
        "error": {"code": -1, "message": "m"},
    }


def test_callsAndStreamsAreBoundedEachByItself() -> None:
    router = makeRouter(Limits(max_modern_calls=2, max_listens=1))
    for n in range(2):
        ask(router, b"%d" % n)
    listen(router)
    for method, bound in (
        ("tools/call", "max_modern_calls"),
        ("subscriptions/listen", "max_listens"),
    ):
        effects = router.request(request(b'"z"', method), Target(), CONTEXT, 0.0)
        assert effects[0] == BoundReached(bound, "scripted")
        assert isinstance(effects[1], Answer) and reasonOf(effects[1].message) == "overloaded"
        assert effects[1].message.id == b'"z"'
    assert len(router.calls) == 3


def test_nobodyKeepsOthersFromListening() -> None:
    router = makeRouter(Limits(max_listens_per_principal=1))
    listen(router)
    effects = router.request(request(b'"z"', "subscriptions/listen"), Target(), CONTEXT, 0.0)
    assert effects[0] == BoundReached("max_listens_per_principal", "scripted")
    assert isinstance(effects[1], Answer) and reasonOf(effects[1].message) == "rate_limited"
    other = CallContext("scripted", Principal("https://idp", "bob", "gateway"))
    effects = router.request(request(b'"z"', "subscriptions/listen"), Target(), other, 0.0)
    assert only(effects, BoundReached) == []
    assert router.listens == 2


def test_aStartedCallIsTold() -> None:
    effects = makeRouter().request(request(), Target(), CONTEXT, 0.0)
    assert only(effects, CallStarted) == [CallStarted("scripted", "tools/call")]


# Everything at once.


class Traffic(RuleBasedStateMachine):
    """Any traffic, in any order: every call ends once, with what is its own, and none is heard of
    after its client left."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        limits = Limits(max_modern_calls=6, max_listens=3)
        self.router = makeRouter(limits, 10.0, 40.0)
        self.running: dict[bytes, Call] = {}
        self.over: list[object] = []
        self.touched: dict[bytes, float] = {}
        self.cancelled: list[bytes] = []

    def take(self, effects: list[ModernEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer | Ended):
                call = effect.call
                assert call.target not in self.over, "ended twice, or after its client left"
                self.over.append(call.target)
                self.running.pop(call.upstream, None)
                if isinstance(effect, Answer):
                    assert effect.message.id == call.id
                    result = json.loads(effect.message.encode()).get("result", {})
                    if not effect.failed and "for" in result:
                        assert result == {"for": int(call.upstream)}
                else:
                    assert call.request.method == "subscriptions/listen"
            elif isinstance(effect, Deliver):
                (call,) = [one for one in self.running.values() if one.target is effect.target]
                named = effect.message.meta(SUBSCRIPTION)
                if named is not None:
                    assert named == call.id and effect.message.param("for") == call.upstream
                token = effect.message.param("progressToken")
                if token is not None:
                    assert token == call.token and effect.message.param("for") == call.upstream
            elif isinstance(effect, Forward) and effect.call is None:
                id = effect.message.param("requestId")
                assert id is not None and id not in self.cancelled, "cancelled twice"
                self.cancelled.append(id)

    @rule(
        id=st.sampled_from([b"1", b'"1"', b"1.0"]),
        method=st.sampled_from(["tools/call", "subscriptions/listen"]),
        meta=st.sampled_from([b'"progressToken":5', LOG, b""]),
        sent=st.booleans(),
    )
    def ask(self, id: bytes, method: str, meta: bytes, sent: bool) -> None:
        effects = self.router.request(request(id, method, meta), Target(), CONTEXT, self.now)
        for effect in only(effects, Forward):
            effect.call.via = LINK if sent else None
            self.running[effect.call.upstream] = effect.call
            self.touched[effect.call.upstream] = self.now
        self.take(effects)

    @rule(upstream=st.integers(0, 30))
    def answer(self, upstream: int) -> None:
        id = b"%d" % upstream
        effects = self.router.fromServer(response(id, b'{"for":%b}' % id), self.now)
        assert bool(only(effects, Answer)) == (id in self.running)
        self.take(effects)

    @rule(upstream=st.integers(0, 30))
    def progress(self, upstream: int) -> None:
        id = b"%d" % upstream
        told = notify("notifications/progress", b'{"progressToken":%b,"for":%b}' % (id, id))
        effects = self.router.fromServer(told, self.now)
        if only(effects, Deliver):
            self.touched[id] = self.now
        self.take(effects)

    @rule(upstream=st.integers(0, 30))
    def changed(self, upstream: int) -> None:
        params = b'{"for":%d,"_meta":{"%b":%d}}' % (upstream, SUBSCRIPTION.encode(), upstream)
        self.take(self.router.fromServer(notify("notifications/x", params), self.now))

    @rule()
    def log(self) -> None:
        told = notify("notifications/message", b'{"level":"info"}')
        self.take(self.router.fromServer(told, self.now))

    @rule(upstream=st.integers(0, 30))
    def cancelledByServer(self, upstream: int) -> None:
        told = notify("notifications/cancelled", b'{"requestId":%d}' % upstream)
        self.take(self.router.fromServer(told, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        upstream = data.draw(st.sampled_from(sorted(self.running)))
        call = self.running.pop(upstream)
        effects = self.router.gone(call.target)
        self.over.append(call.target)
        assert bool(only(effects, Forward)) == (call.via is not None)
        self.take(effects)

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.router.soonest <= until:
            self.now = max(self.now, self.router.soonest)
            self.take(self.router.expired(self.now))
            assert self.router.soonest > self.now, "time does not go on"
        self.now = until

    @rule()
    def loseLink(self) -> None:
        self.take(self.router.lost(Reason.SERVER_EXITED, "gone", 0.0))
        assert all(call.via is None for call in self.running.values())

    @invariant()
    def runningAreTheSame(self) -> None:
        assert self.router.calls == self.running
        listens = [c for c in self.running.values() if c.request.method == "subscriptions/listen"]
        assert self.router.listens == len(listens) <= 3
        assert self.router.running == (len(self.running) > len(listens))
        assert len(self.running) - len(listens) <= 6

    @invariant()
    def noneIsOverdue(self) -> None:
        for upstream, call in self.running.items():
            if call.request.method != "subscriptions/listen":
                assert self.now < self.touched[upstream] + 10.0
                assert self.now < call.started + 40.0


Traffic.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTraffic = Traffic.TestCase
