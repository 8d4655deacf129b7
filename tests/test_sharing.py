"""
What sessions on one link hear and what the server hears of them: the pure core.

Names like `TestSessionRouter_…` in docstrings are the reference's tests of the same behaviour.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from relay_support import notify, request

from gateway.guard.limits import Limits
from gateway.servers.entries import Deliver, Dropped, Entry, Forgotten, Member, Reached, Send
from gateway.servers.sharing import WINDOW, Sharing
from gateway.testing.scripted import message
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message

OWN = CallContext("shared")
CONTEXT = CallContext("shared", peer="192.0.2.1")
TIMEOUT = 600.0


@define(eq=False)
class Hub:
    """A core, what it did, and a server that answers when the test says so."""

    limits: Limits = field(factory=Limits)
    now: float = 0.0
    core: Sharing = field(init=False)
    sent: list[Send] = field(factory=list)
    heard: list[tuple[Member, Message, object]] = field(factory=list)
    dropped: list[str] = field(factory=list)
    reached: list[str] = field(factory=list)
    forgotten: list[Entry] = field(factory=list)
    full: bool = False

    def __attrs_post_init__(self) -> None:
        self.core = Sharing(OWN, self.limits, TIMEOUT)

    def do(self, effects: list[Any]) -> bool:
        taken = True
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, Send):
                if not self.full:
                    self.sent.append(effect)
                    if effect.stops is not None:
                        effect.stops.cancelled = True
                elif effect.entry is not None:
                    taken = False
                    effects += self.core.notTaken(effect.entry)
            elif isinstance(effect, Deliver):
                self.heard.append((effect.member, effect.message, effect.call))
            elif isinstance(effect, Dropped):
                self.dropped.append(effect.why)
            elif isinstance(effect, Reached):
                self.reached.append(effect.limit)
            else:
                assert isinstance(effect, Forgotten)
                self.forgotten.append(effect.entry)
        return taken

    def member(self) -> Member:
        return self.core.join(object())

    def ask(
        self, member: Member, method: str, params: object = None, id: int = 1, call: object = None
    ) -> object:
        call = object() if call is None else call
        asked = request(id, method, json.dumps({} if params is None else params))
        self.do(self.core.request(member, asked, call, CONTEXT, self.now))
        return call

    def tell(self, member: Member, method: str, params: object = None) -> None:
        told = notify(method, json.dumps({} if params is None else params))
        self.do(self.core.notification(member, told, CONTEXT))

    def push(self, method: str, params: object = None, origin: Entry | None = None) -> None:
        pushed = notify(method, json.dumps({} if params is None else params))
        self.do(self.core.fromServer(pushed, origin, self.now))

    def answer(self, send: Send, outcome: str = '"result":{}') -> None:
        assert send.entry is not None
        text = f'{{"jsonrpc":"2.0","id":{send.entry.ours.decode()},{outcome}}}'
        self.do(self.core.fromServer(message(text.encode()), None, self.now))

    def refuse(self, send: Send) -> None:
        self.answer(send, '"error":{"code":-32002,"message":"no"}')

    def subscribed(self, member: Member, uri: str = "test://a") -> None:
        self.ask(member, "resources/subscribe", {"uri": uri})
        if self.sent and self.sent[-1].entry in self.core.entries.values():
            self.answer(self.sent[-1])
        self.heard.clear()

    def levelled(self, member: Member, level: str) -> None:
        count = len(self.sent)
        self.ask(member, "logging/setLevel", {"level": level})
        if len(self.sent) > count:
            self.answer(self.sent[-1])
        self.heard.clear()

    @property
    def methods(self) -> list[str]:
        return [send.message.method for send in self.sent]

    def to(self, member: Member) -> list[str]:
        """The methods a member heard; "" for answers."""
        return [what.method for who, what, _ in self.heard if who is member]


def params(send: Send) -> Any:
    return json.loads(send.message.encode())["params"]


# Ids.


def test_equal_ids_of_two_sessions_never_meet() -> None:
    """TestDispatchResponses_ResponseRoutesToWaiter"""
    hub = Hub()
    one, two = hub.member(), hub.member()
    first, second = hub.ask(one, "tools/list", id=7), hub.ask(two, "tools/list", id=7)
    assert [send.message.id for send in hub.sent] == [b"1", b"2"]
    hub.answer(hub.sent[1], '"result":{"for":"two"}')
    hub.answer(hub.sent[0], '"result":{"for":"one"}')
    assert [(who, call) for who, _, call in hub.heard] == [(two, second), (one, first)]
    answers = [json.loads(what.encode()) for _, what, _ in hub.heard]
    assert [(one["id"], one["result"]["for"]) for one in answers] == [(7, "two"), (7, "one")]


def test_each_call_brings_its_own_context() -> None:
    hub = Hub()
    hub.ask(hub.member(), "tools/list")
    assert hub.sent[0].context is CONTEXT


def test_an_unknown_id_is_dropped_and_the_rest_goes_on() -> None:
    """TestDispatchResponses_UnknownCompositeKeyResponseIsDropped"""
    hub = Hub()
    member = hub.member()
    hub.ask(member, "tools/list")
    for id in ("99", '"1"'):
        text = f'{{"jsonrpc":"2.0","id":{id},"result":{{}}}}'
        hub.do(hub.core.fromServer(message(text.encode()), None, 0))
    hub.answer(hub.sent[0])
    hub.do(hub.core.fromServer(message(b'{"jsonrpc":"2.0","id":1,"result":{}}'), None, 0))
    assert hub.dropped == ["unknown_id", "unknown_id", "late_answer"]
    assert hub.to(member) == [""]


def test_progress_goes_to_its_call_alone_under_its_own_token() -> None:
    """
    TestDispatchResponses_ProgressDeliveredOnlyToRecordedRoute
    TestSessionRouter_ProgressTokenRecordLookupDrop
    TestPostSSE_ProgressIsolationBetweenSessions
    TestPostSSE_ProgressTokenClearedAfterRequestCompletes
    """
    hub = Hub()
    one, two = hub.member(), hub.member()
    meta = {"_meta": {"progressToken": "same"}}
    call = hub.ask(one, "tools/call", meta)
    hub.ask(two, "tools/call", meta)
    tokens = [params(send)["_meta"]["progressToken"] for send in hub.sent]
    assert tokens == [1, 2]
    hub.push("notifications/progress", {"progressToken": 1, "progress": 1})
    ((who, what, whose),) = hub.heard
    assert (who, whose, what.param("progressToken")) == (one, call, b'"same"')
    hub.answer(hub.sent[0])
    hub.push("notifications/progress", {"progressToken": 1, "progress": 2})
    hub.push("notifications/progress", {"progressToken": "same", "progress": 2})
    assert hub.to(one) == ["notifications/progress", ""]
    assert hub.to(two) == []
    assert hub.dropped == ["unknown_token", "unknown_token"]


def test_progress_nobody_asked_for_is_dropped() -> None:
    hub = Hub()
    member = hub.member()
    hub.ask(member, "tools/call")
    hub.push("notifications/progress", {"progressToken": 1, "progress": 1})
    assert not hub.heard
    assert hub.dropped == ["unknown_token"]


def test_a_cancellation_names_the_id_the_server_knows() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.ask(one, "tools/call", id=5)
    call = hub.ask(two, "tools/call", id=5)
    hub.tell(two, "notifications/cancelled", {"requestId": 5, "reason": "enough"})
    assert params(hub.sent[-1]) == {"requestId": 2, "reason": "enough"}
    hub.do(hub.core.gaveUp(two, call, 0))
    assert hub.methods.count("notifications/cancelled") == 1, "told once"
    assert [entry.ours for entry in hub.forgotten] == [b"2"]
    hub.tell(two, "notifications/cancelled", {"requestId": 5})
    hub.tell(two, "notifications/cancelled", {"requestId": 6})
    assert hub.dropped == ["stray_cancel", "stray_cancel"]


def test_who_gives_up_has_the_server_told() -> None:
    hub = Hub()
    member = hub.member()
    call = hub.ask(member, "tools/call")
    hub.do(hub.core.gaveUp(member, call, 0))
    hub.do(hub.core.gaveUp(member, call, 0))
    assert hub.methods == ["tools/call", "notifications/cancelled"]
    assert params(hub.sent[-1]) == {"requestId": 1}
    hub.answer(hub.sent[0])
    assert hub.dropped == ["late_answer"]
    assert not hub.heard


# What sessions tell.


@pytest.mark.parametrize(
    ("method", "dropped"),
    [
        ("notifications/initialized", []),
        ("notifications/roots/list_changed", ["not_offered"]),
        ("notifications/progress", ["not_offered"]),
        ("notifications/tasks/status", ["not_offered"]),
    ],
)
def test_what_makes_no_sense_in_one_sessions_name_stops_here(
    method: str, dropped: list[str]
) -> None:
    """TestDuplicateInitializedNotificationIsNotForwarded"""
    hub = Hub()
    hub.tell(hub.member(), method)
    assert not hub.sent
    assert hub.dropped == dropped


def test_unknown_notifications_pass() -> None:
    hub = Hub()
    hub.tell(hub.member(), "notifications/x", {"a": 1})
    assert hub.methods == ["notifications/x"]


@pytest.mark.parametrize("method", ["tasks/get", "tasks/list", "tasks/cancel", "tasks/result"])
def test_there_are_no_tasks(method: str) -> None:
    hub = Hub()
    member = hub.member()
    call = hub.ask(member, method, {"taskId": "t"}, id=3)
    ((who, what, whose),) = hub.heard
    assert (who, whose) == (member, call)
    answer = json.loads(what.encode())
    assert (answer["id"], answer["error"]["code"]) == (3, -32601)
    assert not hub.sent
    assert not member.calls


@pytest.mark.parametrize("name", ["task", "\\u0074ask"])
def test_a_call_that_asks_for_a_task_is_an_ordinary_one(name: str) -> None:
    hub = Hub()
    spelled = f'{{"name":"t","{name}":{{"ttl":1}},"arguments":{{"task":1e0}}}}'
    asked = request(1, "tools/call", spelled)
    hub.do(hub.core.request(hub.member(), asked, object(), CONTEXT, 0))
    assert bytes(hub.sent[0].message.fields["params"]) == (b'{"name":"t","arguments":{"task":1e0}}')


def test_what_is_left_of_such_a_call_is_as_it_was() -> None:
    hub = Hub()
    asked = request(1, "tools/call", '{"\\ud800":"\\udfff","task":{},"n":1.0}')
    hub.do(hub.core.request(hub.member(), asked, object(), CONTEXT, 0))
    assert bytes(hub.sent[0].message.fields["params"]) == b'{"\\ud800":"\\udfff","n":1.0}'


# Subscriptions.


def test_only_the_first_subscriber_and_the_last_are_heard_by_the_server() -> None:
    """
    TestSessionRouter_AddSubscription_ReportsFirstForURI
    TestSessionRouter_RemoveSubscription_ReportsLastForURI
    TestPostSSE_ResourcesUpdated_SubscribersOnlyAndUpstreamRefCounted
    """
    hub = Hub()
    one, two = hub.member(), hub.member()
    uri = {"uri": "test://a"}
    hub.ask(one, "resources/subscribe", uri)
    hub.answer(hub.sent[0])
    hub.ask(two, "resources/subscribe", uri, id=9)
    hub.ask(two, "resources/subscribe", uri, id=10)
    assert hub.methods == ["resources/subscribe"]
    assert [what.encode() for who, what, _ in hub.heard if who is two] == [
        b'{"jsonrpc":"2.0","id":9,"result":{}}',
        b'{"jsonrpc":"2.0","id":10,"result":{}}',
    ]
    hub.ask(one, "resources/unsubscribe", uri)
    assert hub.methods == ["resources/subscribe"]
    hub.ask(two, "resources/unsubscribe", uri)
    assert hub.methods == ["resources/subscribe", "resources/unsubscribe"]
    assert hub.to(two) == ["", ""], "its answer is the server's"
    hub.answer(hub.sent[1])
    assert hub.to(two) == ["", "", ""]
    hub.push("notifications/resources/updated", uri)
    assert hub.dropped == ["not_subscribed"]


def test_updates_go_to_subscribers_each_once() -> None:
    """
    TestDispatchResponses_ResourcesUpdatedRoutesToSubscribersOnly
    TestSessionRouter_SubscribersOf_UnknownURI
    """
    hub = Hub()
    one, two, three = hub.member(), hub.member(), hub.member()
    hub.subscribed(one)
    hub.subscribed(two)
    hub.subscribed(two, "test://a/")
    hub.push("notifications/resources/updated", {"uri": "test://a"})
    assert (hub.to(one), hub.to(two), hub.to(three)) == ([UPDATED], [UPDATED], [])
    hub.heard.clear()
    hub.push("notifications/resources/updated", {"uri": "test://a/b"})
    assert (hub.to(one), hub.to(two), hub.to(three)) == ([UPDATED], [UPDATED], [])
    hub.heard.clear()
    hub.push("notifications/resources/updated", {"uri": "test://b"})
    hub.push("notifications/resources/updated", {})
    assert not hub.heard
    assert hub.dropped == ["not_subscribed", "not_subscribed"]


UPDATED = "notifications/resources/updated"


@pytest.mark.parametrize("uri", ["f:///x", "f:///x/y", "f:///x/y/z", "f:///x?q=1", "f:///x#part"])
def test_a_part_of_a_resource_is_its_subscribers(uri: str) -> None:
    hub = Hub()
    member = hub.member()
    hub.subscribed(member, "f:///x")
    hub.push(UPDATED, {"uri": uri})
    assert hub.to(member) == [UPDATED]


@pytest.mark.parametrize("uri", ["f:///", "f:///xy", "f:///y/x", "g:///x", "f:///X"])
def test_what_only_looks_like_a_part_is_not(uri: str) -> None:
    hub = Hub()
    member = hub.member()
    hub.subscribed(member, "f:///x")
    hub.push(UPDATED, {"uri": uri})
    assert not hub.heard


def test_a_very_long_uri_is_only_itself() -> None:
    hub = Hub()
    member = hub.member()
    long = "f:///x" + "/" * 10_000
    hub.subscribed(member, "f:///x")
    hub.subscribed(hub.member(), long)
    hub.push(UPDATED, {"uri": long})
    assert hub.to(member) == []
    assert len(hub.heard) == 1


def test_who_comes_second_waits_for_the_first_ones_outcome() -> None:
    """TestKeyedMutex_SameKeySerializes, TestKeyedMutex_DifferentKeysProceedConcurrently"""
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.ask(one, "resources/subscribe", {"uri": "test://a"})
    hub.ask(two, "resources/subscribe", {"uri": "test://a"})
    hub.ask(two, "resources/subscribe", {"uri": "test://b"})
    assert [params(send)["uri"] for send in hub.sent] == ["test://a", "test://b"]
    assert not hub.heard
    hub.answer(hub.sent[0])
    assert (hub.to(one), hub.to(two)) == ([""], [""])


def test_a_refused_first_subscription_leaves_no_trace() -> None:
    """TestPostSSE_FailedFirstSubscribeIsNotRecordedAndSecondSubscriberRetries"""
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.ask(one, "resources/subscribe", {"uri": "test://a"})
    hub.ask(two, "resources/subscribe", {"uri": "test://a"})
    hub.refuse(hub.sent[0])
    assert hub.methods == ["resources/subscribe"] * 2, "the next one is asked for itself"
    assert [(who, what.isError) for who, what, _ in hub.heard] == [(one, True)]
    hub.answer(hub.sent[1])
    hub.push(UPDATED, {"uri": "test://a"})
    assert hub.to(one) == [""]
    assert hub.to(two) == ["", UPDATED]


def test_what_never_reached_the_core_is_not_recorded() -> None:
    """A relay refuses what its policy forbids before it asks its link."""
    hub = Hub()
    hub.member()
    hub.push(UPDATED, {"uri": "test://a"})
    assert not hub.heard
    assert not hub.core._subscriptions


def test_last_unsubscribe_and_first_subscribe_stay_in_order() -> None:
    """TestPostSSE_ConcurrentLastUnsubscribeAndFirstSubscribe_SameURIAreOrdered"""
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.subscribed(one)
    hub.ask(one, "resources/unsubscribe", {"uri": "test://a"})
    hub.ask(two, "resources/subscribe", {"uri": "test://a"})
    assert hub.methods == ["resources/subscribe", "resources/unsubscribe"]
    hub.answer(hub.sent[-1])
    assert hub.methods[2:] == ["resources/subscribe"]
    hub.answer(hub.sent[-1])
    hub.push(UPDATED, {"uri": "test://a"})
    assert hub.to(one) == [""]
    assert hub.to(two) == ["", UPDATED]


def test_nobody_unsubscribes_another() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.subscribed(one)
    hub.ask(two, "resources/unsubscribe", {"uri": "test://a"})
    assert hub.methods == ["resources/subscribe"]
    assert hub.to(two) == [""]
    hub.ask(two, "resources/unsubscribe", {"uri": "test://never"})
    assert hub.methods[1:] == ["resources/unsubscribe"], "the server says what it thinks of it"
    hub.refuse(hub.sent[-1])
    assert hub.heard[-1][1].isError


def test_a_refused_unsubscribe_changes_nothing() -> None:
    hub = Hub()
    one = hub.member()
    hub.subscribed(one)
    hub.ask(one, "resources/unsubscribe", {"uri": "test://a"})
    hub.refuse(hub.sent[-1])
    hub.push(UPDATED, {"uri": "test://a"})
    assert hub.to(one) == ["", UPDATED]


def test_who_leaves_gives_its_subscriptions_back() -> None:
    """
    TestSessionRouter_PurgeSession, TestHandleDelete_PurgesRoutingState
    TestSessionRouter_Reap_DropsInactiveSessionState
    TestSessionRouter_Reap_NoStaleSessionsIsNoop
    TestKeyedMutex_EvictsAtZeroRefCount
    """
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.subscribed(one)
    hub.subscribed(two)
    hub.subscribed(one, "test://mine")
    hub.sent.clear()
    hub.do(hub.core.left(one, 0))
    (given,) = hub.sent
    assert given.message.method == "resources/unsubscribe"
    assert params(given) == {"uri": "test://mine"}
    assert given.context is OWN
    hub.answer(given)
    hub.push(UPDATED, {"uri": "test://a"})
    assert [who for who, _, _ in hub.heard] == [two]
    hub.do(hub.core.left(two, 0))
    hub.answer(hub.sent[-1])
    assert not hub.core._subscriptions
    assert not hub.core.entries


def test_what_is_refused_back_is_not_asked_again() -> None:
    hub = Hub()
    one = hub.member()
    hub.subscribed(one)
    hub.do(hub.core.left(one, 0))
    hub.refuse(hub.sent[-1])
    assert hub.methods == ["resources/subscribe", "resources/unsubscribe"]
    assert not hub.core._subscriptions


def test_what_is_given_back_can_be_asked_for_anew() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.subscribed(one)
    hub.do(hub.core.left(one, 0))
    hub.ask(two, "resources/subscribe", {"uri": "test://a"})
    hub.answer(hub.sent[-1])
    assert hub.methods[-1] == "resources/subscribe", "after the unsubscribe had its outcome"
    hub.answer(hub.sent[-1])
    assert hub.to(two) == [""]


def test_who_left_before_the_outcome_leaves_nothing_either() -> None:
    hub = Hub()
    one = hub.member()
    hub.ask(one, "resources/subscribe", {"uri": "test://a"})
    hub.do(hub.core.left(one, 0))
    assert hub.methods == ["resources/subscribe"], "its outcome has to be known"
    hub.answer(hub.sent[0])
    assert hub.methods == ["resources/subscribe", "resources/unsubscribe"]
    assert hub.dropped == ["late_answer"]
    hub.answer(hub.sent[1])
    assert not hub.core._subscriptions
    assert not hub.core.entries


def test_who_gives_up_waiting_holds_up_nobody() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.ask(one, "resources/subscribe", {"uri": "test://a"}, id=4)
    waiting = hub.ask(two, "resources/subscribe", {"uri": "test://a"})
    hub.do(hub.core.gaveUp(two, waiting, 0))
    hub.tell(one, "notifications/cancelled", {"requestId": 4})
    assert hub.methods == ["resources/subscribe"], "others may depend on it"
    hub.answer(hub.sent[0])
    assert (hub.to(one), hub.to(two)) == ([""], [])


def test_an_outcome_that_never_comes_is_not_waited_for_for_ever() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    call = hub.ask(one, "resources/subscribe", {"uri": "test://a"})
    hub.do(hub.core.gaveUp(one, call, 0))
    hub.ask(two, "resources/subscribe", {"uri": "test://a"})
    assert len(hub.sent) == 1
    hub.now = TIMEOUT
    hub.push("notifications/x")
    assert hub.methods == ["resources/subscribe"] * 2
    assert [entry.ours for entry in hub.forgotten] == [b"1"]


def test_outcomes_nobody_waits_for_are_bounded() -> None:
    hub = Hub(Limits(max_calls=2))
    for number in range(3):
        member = hub.member()
        hub.ask(member, "resources/subscribe", {"uri": f"test://{number}"})
        hub.do(hub.core.left(member, 0))
    assert hub.reached == ["max_calls"]
    assert len(hub.core.entries) == 2


def test_subscriptions_of_a_session_are_bounded() -> None:
    hub = Hub(Limits(max_subscriptions=2))
    one = hub.member()
    hub.subscribed(one, "test://a")
    hub.subscribed(one, "test://b")
    hub.ask(one, "resources/subscribe", {"uri": "test://b"})
    assert not hub.heard[-1][1].isError, "it has that one"
    hub.ask(one, "resources/subscribe", {"uri": "test://c"})
    answer = json.loads(hub.heard[-1][1].encode())
    assert answer["error"]["data"] == {"reason": "overloaded"}
    assert hub.reached == ["max_subscriptions"]
    assert hub.methods == ["resources/subscribe"] * 2
    assert not one.calls


def test_giving_back_is_done_a_few_at_a_time() -> None:
    hub = Hub()
    one = hub.member()
    for number in range(100):
        hub.subscribed(one, f"test://{number}")
    hub.sent.clear()
    hub.do(hub.core.left(one, 0))
    for done in range(100):
        assert len(hub.sent) == min(100, WINDOW + done)
        hub.answer(hub.sent[done])
    assert not hub.core._subscriptions
    assert not hub.core.entries


def test_a_full_queue_only_delays_giving_back() -> None:
    hub = Hub()
    one = hub.member()
    hub.subscribed(one)
    hub.levelled(one, "debug")
    other = hub.member()
    hub.levelled(other, "error")
    hub.sent.clear()
    hub.full = True
    hub.do(hub.core.left(one, 0))
    assert not hub.sent
    hub.full = False
    hub.push("notifications/x")
    assert not hub.sent, "not before there is room"
    hub.do(hub.core.drained(0))
    assert hub.methods == ["logging/setLevel", "resources/unsubscribe"]
    for send in list(hub.sent):
        hub.answer(send)
    assert not hub.core.entries


def test_what_a_full_queue_refused_leaves_no_trace() -> None:
    """TestSendMessageToDestination_ChannelFull"""
    hub = Hub(full=True)
    one = hub.member()
    for method, what in [
        ("tools/call", {}),
        ("resources/subscribe", {"uri": "test://a"}),
        ("logging/setLevel", {"level": "info"}),
    ]:
        asked = request(1, method, json.dumps(what))
        assert not hub.do(hub.core.request(one, asked, object(), CONTEXT, 0))
    assert not one.calls
    assert not hub.core.entries
    assert not hub.core.busy
    assert not hub.core._subscriptions


# Log levels.


def test_the_server_hears_the_most_verbose_level() -> None:
    """
    TestSessionRouter_SetLogLevel_MaxReconciliation
    TestPostSSE_LoggingDroppedAndUpstreamLevelIsMaxAcrossSessions
    """
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.levelled(one, "warning")
    hub.levelled(two, "error")
    assert [params(send)["level"] for send in hub.sent] == ["warning"]
    hub.levelled(two, "debug")
    hub.levelled(one, "info")
    assert [params(send)["level"] for send in hub.sent] == ["warning", "debug"]
    hub.ask(two, "logging/setLevel", {"level": "critical"})
    assert [params(send)["level"] for send in hub.sent] == ["warning", "debug", "info"]
    hub.answer(hub.sent[-1])
    assert (one.level, two.level) == ("info", "critical")


def test_who_leaves_takes_its_level_along() -> None:
    """TestSessionRouter_PurgeSession"""
    hub = Hub()
    one, two, three = hub.member(), hub.member(), hub.member()
    hub.levelled(one, "debug")
    hub.levelled(two, "error")
    hub.do(hub.core.left(three, 0))
    assert len(hub.sent) == 1
    hub.do(hub.core.left(one, 0))
    assert params(hub.sent[-1]) == {"level": "error"}
    hub.answer(hub.sent[-1])
    hub.do(hub.core.left(two, 0))
    assert len(hub.sent) == 2, "nobody wants any"
    hub.levelled(hub.member(), "error")
    assert len(hub.sent) == 2, "the server is there still"


def test_a_refused_level_leaves_no_trace() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    for member in (one, two):
        hub.ask(member, "logging/setLevel", {"level": "info"})
    assert len(hub.sent) == 1, "one after the other"
    hub.refuse(hub.sent[0])
    assert len(hub.sent) == 2
    hub.answer(hub.sent[1])
    assert [(who, what.isError) for who, what, _ in hub.heard] == [(one, True), (two, False)]
    assert (one.level, two.level) == ("", "info")


def test_who_left_before_the_outcome_changes_no_level() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.levelled(two, "error")
    hub.ask(one, "logging/setLevel", {"level": "debug"})
    hub.do(hub.core.left(one, 0))
    hub.answer(hub.sent[-1])
    assert params(hub.sent[-1]) == {"level": "error"}


@pytest.mark.parametrize("level", ["loud", "", "DEBUG", 5, None])
def test_no_level_is_refused_here(level: object) -> None:
    hub = Hub()
    member = hub.member()
    hub.ask(member, "logging/setLevel", {"level": level})
    assert json.loads(hub.heard[0][1].encode())["error"]["code"] == -32602
    assert not hub.sent


LOG = "notifications/message"


def log(level: str = "info") -> dict[str, str]:
    return {"level": level, "data": "x"}


def test_logs_of_a_call_go_to_its_session() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    call = hub.ask(one, "tools/call")
    hub.ask(two, "tools/call")
    hub.push(LOG, log(), hub.sent[0].entry)
    assert [(who, whose) for who, _, whose in hub.heard] == [(one, call)]


def test_logs_while_one_sessions_calls_run_are_its() -> None:
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.levelled(two, "debug")
    hub.ask(one, "tools/call", id=1)
    hub.ask(one, "tools/call", id=2)
    hub.push(LOG, log())
    assert (hub.to(one), hub.to(two)) == ([LOG], [])


def test_logs_while_several_run_are_nobodys() -> None:
    """TestDispatchResponses_LoggingMessageIsDropped"""
    hub = Hub()
    one, two = hub.member(), hub.member()
    hub.levelled(one, "debug")
    hub.ask(one, "tools/call")
    hub.ask(two, "tools/call")
    hub.push(LOG, log())
    hub.push("notifications/x")
    assert not hub.heard
    assert hub.dropped == ["of_several", "of_several"]


def test_logs_while_none_runs_are_theirs_who_asked() -> None:
    hub = Hub()
    one, two, three = hub.member(), hub.member(), hub.member()
    hub.levelled(one, "info")
    hub.levelled(two, "error")
    hub.push(LOG, log("warning"))
    assert (hub.to(one), hub.to(two), hub.to(three)) == ([LOG], [], [])
    hub.push(LOG, log("debug"))
    assert hub.dropped == ["not_wanted"]
    hub.heard.clear()
    hub.push("notifications/x")
    assert (hub.to(one), hub.to(two), hub.to(three)) == (["notifications/x"],) * 3


def test_what_a_given_up_call_causes_is_nobodys() -> None:
    hub = Hub(Limits(cancel_wait=1.0))
    one, two = hub.member(), hub.member()
    hub.levelled(two, "debug")
    hub.ask(one, "tools/call")
    hub.do(hub.core.left(one, 0))
    hub.push(LOG, log())
    hub.ask(two, "tools/call")
    hub.push(LOG, log())
    assert not hub.heard
    assert hub.dropped == ["client_gone", "of_several"]
    hub.now = 1.0
    hub.push(LOG, log())
    assert hub.to(two) == [LOG]
    assert len(hub.core.entries) == 1


# What the server says beside.


@pytest.mark.parametrize("what", ["tools", "resources", "prompts"])
def test_list_changed_is_for_all(what: str) -> None:
    """
    TestDispatchResponses_ListChangedBroadcastsToEverySession
    TestServerStreamRegistry_PerSessionSingleDelivery
    """
    hub = Hub()
    all = [hub.member() for _ in range(3)]
    hub.ask(all[0], "tools/call")
    hub.ask(all[1], "tools/call")
    hub.push(f"notifications/{what}/list_changed")
    assert [who for who, _, _ in hub.heard] == all


@pytest.mark.parametrize(
    "method",
    [
        "notifications/cancelled",
        "notifications/elicitation/complete",
        "notifications/tasks/status",
    ],
)
def test_what_nobody_can_have_asked_for_is_dropped(method: str) -> None:
    hub = Hub()
    hub.member()
    hub.push(method, {"requestId": 1})
    assert not hub.heard
    assert hub.dropped == ["not_offered"]


@pytest.mark.parametrize(
    "method", ["sampling/createMessage", "elicitation/create", "roots/list", "x", "tasks/get"]
)
def test_nobody_answers_the_server_for_another(method: str) -> None:
    """
    TestDispatchResponses_ServerRequestRejectedToBackend
    TestPostSSE_SamplingRequestNeverReachesClientAndBackendGetsError
    """
    hub = Hub()
    hub.ask(hub.member(), "tools/call")
    hub.do(hub.core.fromServer(request(8, method), hub.sent[0].entry, 0))
    answer = json.loads(hub.sent[-1].message.encode())
    assert (answer["id"], answer["error"]["code"]) == (8, -32601)
    assert hub.sent[-1].context is CONTEXT
    assert not hub.heard


def test_a_ping_is_answered() -> None:
    hub = Hub()
    hub.do(hub.core.fromServer(request(8, "ping"), None, 0))
    assert hub.sent[-1].message.encode() == b'{"jsonrpc":"2.0","id":8,"result":{}}'
    assert hub.sent[-1].context is OWN


# Everything at once.

URIS = st.sampled_from(["a", "b", "a/c"])
LEVELS = ["debug", "info", "error"]


@define(eq=False)
class Backend:
    """A server that does what it is asked, when it is told to."""

    held: set[str] = field(factory=set)
    level: str = ""
    inbox: list[Send] = field(factory=list)


class Sessions(RuleBasedStateMachine):
    """
    Sessions that come, ask and leave, and a server that grants or refuses in any order.

    believes, level: what each session was told it has.
    """

    members = Bundle("members")

    @initialize()
    def begin(self) -> None:
        self.hub = Hub()
        self.backend = Backend()
        self.taken = 0
        self.ids = 0
        self.open: dict[object, tuple[Member, int, str, Any]] = {}
        self.believes: dict[Member, set[str]] = {}
        self.level: dict[Member, str] = {}
        self.refused: set[str] = set()
        """URIs whose giving back the server refused."""

    def absorb(self) -> None:
        """Take what was sent and what was heard."""
        for send in self.hub.sent:
            if send.entry is not None:
                self.backend.inbox.append(send)
        self.hub.sent.clear()
        for member, what, call in self.hub.heard:
            if what.kind is not Kind.RESPONSE:
                continue
            asker, id, method, given = self.open.pop(call)
            assert asker is member
            assert what.id == b"%d" % id, "its own id"
            if method == "tools/call":
                assert json.loads(what.encode())["result"] == {"token": given}
            elif what.isError:
                continue
            elif method == "resources/subscribe":
                self.believes[member].add(given)
            elif method == "resources/unsubscribe":
                self.believes[member].discard(given)
            else:
                self.level[member] = given
        self.hub.heard.clear()

    def ask(self, member: Member, method: str, params: object, given: object) -> None:
        self.ids += 1
        call = object()
        id = 1 + self.ids % 3
        self.open[call] = (member, id, method, given)
        self.hub.ask(member, method, params, id, call)
        self.absorb()

    @rule(target=members)
    def comes(self) -> Member:
        member = self.hub.member()
        self.believes[member], self.level[member] = set(), ""
        return member

    @rule(member=members)
    def calls(self, member: Member) -> None:
        self.ask(member, "tools/call", {"token": self.ids}, self.ids)

    @rule(member=members, uri=URIS)
    def subscribes(self, member: Member, uri: str) -> None:
        self.ask(member, "resources/subscribe", {"uri": uri}, uri)

    @rule(member=members, uri=URIS)
    def unsubscribes(self, member: Member, uri: str) -> None:
        self.ask(member, "resources/unsubscribe", {"uri": uri}, uri)

    @rule(member=members, level=st.sampled_from(LEVELS))
    def sets(self, member: Member, level: str) -> None:
        self.ask(member, "logging/setLevel", {"level": level}, level)

    @rule(data=st.data())
    def givesUp(self, data: st.DataObject) -> None:
        if self.open:
            call = data.draw(st.sampled_from(list(self.open)))
            member, *_ = self.open.pop(call)
            self.hub.do(self.hub.core.gaveUp(member, call, self.hub.now))
            self.absorb()

    @rule(member=consumes(members))
    def leaves(self, member: Member) -> None:
        for call in [call for call, (who, *_) in self.open.items() if who is member]:
            del self.open[call]
        del self.believes[member], self.level[member]
        self.hub.do(self.hub.core.left(member, self.hub.now))
        self.absorb()

    @precondition(lambda self: self.backend.inbox)
    @rule(which=st.integers(0, 5), grants=st.booleans())
    def answers(self, which: int, grants: bool) -> None:
        inbox = self.backend.inbox
        self.process(inbox.pop(which % len(inbox)), grants)

    def process(self, send: Send, grants: bool) -> None:
        method, entry = send.message.method, send.entry
        assert entry is not None
        given = params(send)
        if method == "tools/call":
            self.hub.answer(send, f'"result":{json.dumps({"token": given["token"]})}')
        elif not grants:
            if entry.own and entry.uri:
                self.refused.add(entry.uri)
            self.hub.refuse(send)
        else:
            if method == "resources/subscribe":
                self.backend.held.add(given["uri"])
                self.refused.discard(given["uri"])
            elif method == "resources/unsubscribe":
                self.backend.held.discard(given["uri"])
                self.refused.discard(given["uri"])
                if entry.member is None:
                    # Whoever asked gave up waiting, and is out all the same.
                    for uris in self.believes.values():
                        uris.discard(given["uri"])
            else:
                self.backend.level = given["level"]
            self.hub.answer(send)
        self.absorb()

    @rule(uri=URIS)
    def updates(self, uri: str) -> None:
        self.hub.push(UPDATED, {"uri": uri})
        heard = {who for who, what, _ in self.hub.heard if what.method == UPDATED}
        assert len(heard) == len(self.hub.heard), "each once"
        wanted = {who for who, uris in self.believes.items() if uri in uris or uri[:1] in uris}
        assert heard == wanted
        self.absorb()

    @rule(member=members, level=st.sampled_from(LEVELS))
    def logs(self, member: Member, level: str) -> None:
        runs = {entry.member for entry in self.hub.core.entries.values()}
        self.hub.push(LOG, {"level": level})
        heard = [who for who, _, _ in self.hub.heard]
        for who in heard:
            mine = self.level[who]
            assert not mine or LEVELS.index(level) >= LEVELS.index(mine)
            assert runs <= {who}, "what runs is its own"
        self.absorb()

    @invariant()
    def oneAtATime(self) -> None:
        if not hasattr(self, "hub"):
            return
        core = self.hub.core
        uris = [entry.uri for entry in core.entries.values() if entry.uri]
        assert len(uris) == len(set(uris))
        assert sum(bool(entry.level) for entry in core.entries.values()) <= 1
        running = [entry.member for entry in core.entries.values() if entry.member is not None]
        assert set(core.busy) == set(running)
        for member in self.believes:
            assert member.running == running.count(member)
            assert set(member.topics) == self.believes[member]
            assert member.level == self.level[member]

    @invariant()
    def whoBelievesHas(self) -> None:
        if not hasattr(self, "hub"):
            return
        for uris in self.believes.values():
            assert uris <= self.backend.held

    @rule()
    def settles(self) -> None:
        """The server grants all that is left; then both sides agree."""
        for _ in range(1000):
            if not self.backend.inbox:
                break
            self.process(self.backend.inbox.pop(0), True)
        assert not self.open, "everybody got an answer"
        assert not self.hub.core.entries
        believed = set().union(*self.believes.values())
        assert self.backend.held - self.refused == believed - self.refused
        assert len(self.hub.core._subscriptions) == len(believed)

    def teardown(self) -> None:
        if hasattr(self, "hub"):
            self.settles()


Sessions.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck), deadline=None
)
TestSessions = Sessions.TestCase
