"""Ids, routes and deadlines of one session (wire contract, "How an answer travels")."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.guard.limits import Limits
from gateway.links.interfaces import Reason
from gateway.observe.observer import BoundReached, CallStarted, Event, MessageDropped
from gateway.relay.effects import (
    Answer,
    Call,
    Changed,
    Deliver,
    Effect,
    Forget,
    Forward,
    OwnEnded,
)
from gateway.relay.router import Router
from gateway.sessions.record import SessionRecord
from gateway.testing.scripted import message
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.envelope import Message

CONTEXT = CallContext("scripted")
EVERYTHING = b'{"capabilities":{"sampling":{},"elicitation":{},"roots":{},"tasks":{}}}'
NEVER = float("inf")

spelledIDs = st.one_of(
    st.integers().map(lambda n: b"%d" % n),
    st.text(st.characters(codec="ascii"), max_size=20).map(lambda s: json.dumps(s).encode()),
    st.text(st.characters(codec="utf-8"), max_size=20).map(
        lambda s: json.dumps(s, ensure_ascii=False).encode()
    ),
    st.sampled_from([b"1", b'"1"', b"1.0", b"1e0", b"-0", b"9007199254740993", b'"\\u0031"']),
    st.just(b'"' + b"x" * 4000 + b'"'),
)


@define(eq=False)
class Stream:
    """Stands for a stream."""

    name: str = ""


def makeRouter(
    *,
    limits: Limits | None = None,
    strict: bool = False,
    initialized: bool = True,
    initialize: bytes = EVERYTHING,
    timeout: float = 600.0,
    maxTimeout: float = 3600.0,
) -> Router:
    record = SessionRecord(
        id="s",
        server="scripted",
        generation=1,
        principal=ANONYMOUS,
        initialize=initialize,
        initialized=initialized,
    )
    return Router(record, limits or Limits(), timeout, maxTimeout, strict)


def ask(
    router: Router,
    id: bytes = b"1",
    *,
    target: object = None,
    streams: bool = True,
    token: bytes | None = None,
    method: str = "tools/call",
    params: bytes = b"",
    now: float = 0.0,
) -> tuple[Call, Message]:
    """A request of the client. Returns its call, and what the server got."""
    if token is not None:
        params = b'{"_meta":{"progressToken":%b}}' % token
    data = b'{"jsonrpc":"2.0","id":%b,"method":"%b","params":%b}'
    request = message(data % (id, method.encode(), params or b"{}"))
    effects = router.request(request, target or Stream(), streams, CONTEXT, now)
    (forward,) = only(effects, Forward)
    assert forward.call is not None and forward.context is CONTEXT
    return forward.call, forward.message


def answer(router: Router, upstream: bytes, result: bytes = b"{}", origin: Any = None) -> Any:
    data = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (upstream, result)
    return router.fromServer(message(data), origin, 0.0)


def notify(method: str, params: bytes = b"{}") -> Message:
    return message(b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (method.encode(), params))


def request(method: str = "ping", id: bytes = b"7", params: bytes = b"{}") -> Message:
    data = b'{"jsonrpc":"2.0","id":%b,"method":"%b","params":%b}'
    return message(data % (id, method.encode(), params))


def response(id: bytes, result: bytes = b"{}") -> Message:
    return message(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, result))


def only(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def events(effects: list[Effect]) -> list[Event]:
    return only(effects, Event)


def dropped(effects: list[Effect]) -> list[str]:
    return [event.why for event in events(effects) if isinstance(event, MessageDropped)]


def error(told: Message) -> tuple[int, str | None]:
    found = json.loads(told.encode())["error"]
    return found["code"], found.get("data", {}).get("reason")


# Ids and tokens.


@pytest.mark.acceptance(23, 26)
@given(ids=st.lists(spelledIDs, min_size=1, max_size=20))
def test_acceptance_26_ids_of_any_spelling_come_back_byte_for_byte(ids: list[bytes]) -> None:
    router = makeRouter()
    calls = [ask(router, id, token=id) for id in ids]
    assert len({sent.id for _, sent in calls}) == len(ids)
    for id, (call, sent) in zip(ids, calls, strict=True):
        assert sent.meta("progressToken") == sent.id
        (told,) = router.fromServer(
            notify("notifications/progress", b'{"progressToken":%b,"progress":1}' % sent.id),
            None,
            0.0,
        )
        assert told.target is call.target and told.message.param("progressToken") == id
    for id, (call, sent) in reversed(list(zip(ids, calls, strict=True))):
        assert sent.id is not None
        (end,) = answer(router, sent.id, b'{"for":%b}' % sent.id)
        assert end.call is call and end.message.id == id
        assert end.message.encode() == (
            b'{"jsonrpc":"2.0","id":%b,"result":{"for":%b}}' % (id, sent.id)
        )
    assert not router.calls


@pytest.mark.acceptance(26)
@given(ids=st.lists(spelledIDs, min_size=1, max_size=20, unique=True))
def test_acceptance_26_ids_and_tokens_of_server_requests_survive(ids: list[bytes]) -> None:
    router = makeRouter()
    stream = Stream()
    router.attached(stream)
    asked = []
    for id in ids:
        params = b'{"_meta":{"progressToken":%b}}' % id
        (told,) = router.fromServer(request("sampling/createMessage", id, params), None, 0.0)
        assert isinstance(told, Deliver) and told.target is stream
        assert told.message.meta("progressToken") == told.message.id
        asked.append(told.message.id)
    assert len(set(asked)) == len(ids)
    for id, ours in zip(ids, asked, strict=True):
        progress = notify("notifications/progress", b'{"progressToken":%b,"progress":1}' % ours)
        (forward,) = router.notification(progress, 0.0)
        assert forward.message.param("progressToken") == id
    for id, ours in zip(ids, asked, strict=True):
        (forward,) = router.response(response(ours, b'{"role":"user"}'), 0.0)
        assert forward.message.id == id and forward.call is None
        assert dropped(router.response(response(ours), 0.0)) == ["stray_response"]


@pytest.mark.acceptance(26)
@given(id=spelledIDs)
def test_acceptance_26_cancelled_names_the_id_its_receiver_knows(id: bytes) -> None:
    router = makeRouter()
    _, sent = ask(router, id)
    cancelled = notify("notifications/cancelled", b'{"requestId":%b,"reason":"r"}' % id)
    (forward,) = router.notification(cancelled, 0.0)
    assert forward.message.param("requestId") == sent.id
    assert forward.message.param("reason") == b'"r"'

    (told,) = router.fromServer(request("roots/list", id), None, 0.0)
    void = notify("notifications/cancelled", b'{"requestId":%b}' % id)
    (deliver,) = router.fromServer(void, None, 0.0)
    assert isinstance(told, Deliver) and deliver.target is told.target
    assert deliver.message.param("requestId") == told.message.id


@pytest.mark.acceptance(24)
@given(order=st.permutations(range(50)))
@settings(max_examples=20)
def test_acceptance_24_fifty_calls_with_one_id_each_get_their_own_answer(order: list[int]) -> None:
    router = makeRouter()
    calls = [ask(router, b"1") for _ in range(50)]
    for index in order:
        call, sent = calls[index]
        assert sent.id is not None
        (end,) = answer(router, sent.id, b'{"n":%d}' % index)
        assert end.call is call and end.message.id == b"1"
        assert json.loads(end.message.encode())["result"] == {"n": index}


def test_of_two_calls_with_one_id_the_newest_is_cancelled_first() -> None:
    router = makeRouter()
    _, first = ask(router, b"1")
    _, second = ask(router, b"1")
    cancelled = notify("notifications/cancelled", b'{"requestId":1}')
    assert [
        only(router.notification(cancelled, 0.0), Forward)[0].message.param("requestId")
        for _ in range(2)
    ] == [second.id, first.id]
    assert dropped(router.notification(cancelled, 0.0)) == ["stray_cancel"]


def test_a_call_without_a_token_gets_none() -> None:
    router = makeRouter()
    _, sent = ask(router, params=b'{"_meta":{"x":1}}')
    assert bytes(sent.fields["params"]) == b'{"_meta":{"x":1}}'
    progress = notify("notifications/progress", b'{"progressToken":%b}' % (sent.id or b""))
    assert dropped(router.fromServer(progress, None, 0.0)) == ["unknown_token"]


@pytest.mark.acceptance(57)
def test_acceptance_57_strays_and_doubles_are_dropped_and_counted() -> None:
    router = makeRouter()
    call, sent = ask(router)
    assert sent.id is not None
    assert dropped(answer(router, b"99")) == ["unknown_id"]
    assert dropped(answer(router, b'"x"')) == ["unknown_id"]
    assert dropped(answer(router, b"9" * 4000)) == ["unknown_id"]
    assert only(answer(router, sent.id), Answer)[0].call is call
    assert dropped(answer(router, sent.id)) == ["late_answer"]
    cancelled = notify("notifications/cancelled", b'{"requestId":1}')
    assert dropped(router.notification(cancelled, 0.0)) == ["stray_cancel"]
    assert dropped(router.fromServer(cancelled, None, 0.0)) == ["stray_cancel"]
    assert dropped(router.notification(notify("notifications/cancelled"), 0.0)) == ["stray_cancel"]
    assert dropped(router.response(response(b"5"), 0.0)) == ["stray_response"]
    progress = notify("notifications/progress", b'{"progressToken":"no"}')
    assert dropped(router.notification(progress, 0.0)) == ["unknown_token"]
    assert dropped(router.fromServer(progress, None, 0.0)) == ["unknown_token"]


def test_a_response_to_what_the_client_was_not_asked_yet_is_stray() -> None:
    router = makeRouter(initialized=False)
    assert router.fromServer(request("roots/list"), None, 0.0) == []
    assert dropped(router.response(response(b"1"), 0.0)) == ["stray_response"]
    router.attached(Stream())
    effects = router.notification(notify("notifications/initialized"), 0.0)
    (told,) = only(effects, Deliver)
    assert only(router.response(response(told.message.id), 0.0), Forward)


# Streams.


@pytest.mark.acceptance(78)
def test_acceptance_78_each_message_goes_to_exactly_one_stream() -> None:
    router = makeRouter()
    logged = notify("notifications/message", b'{"level":"info","data":1}')
    changed = notify("notifications/tools/list_changed")

    def target(what: Message, origin: object = None) -> object:
        (effect,) = router.fromServer(what, origin, 0.0)
        assert isinstance(effect, Deliver)
        return effect.target

    only_, _ = ask(router)
    # A session's only running call: its own stream for requests and log messages.
    assert target(logged) is only_.target
    assert target(request("roots/list", b"1")) is only_.target
    assert target(changed) is only_.target
    get = Stream("get")
    router.attached(get)
    assert target(logged) is only_.target
    assert target(request("roots/list", b"2")) is only_.target
    assert target(changed) is get
    newer = Stream("newer")
    router.attached(newer)
    assert target(changed) is newer
    other, _ = ask(router)
    # Two calls: the GET stream, unless the link says where it belongs.
    assert target(logged) is newer
    assert target(logged, only_) is only_.target
    assert target(changed, other) is other.target
    assert target(request("roots/list", b"3"), only_) is only_.target
    router.detached(newer)
    assert target(logged) is get
    router.detached(get)
    router.detached(get)
    assert target(logged) is other.target
    assert router.streams == []


def test_a_request_of_the_gateway_is_no_running_call_of_the_session() -> None:
    router = makeRouter()
    router.attached(Stream())
    call, _ = ask(router)
    router.ownRequest(request("logging/setLevel"), CONTEXT, 0.0)
    (told,) = router.fromServer(notify("notifications/message"), None, 0.0)
    assert isinstance(told, Deliver) and told.target is call.target


def test_a_call_whose_client_takes_json_only_is_no_stream() -> None:
    router = makeRouter()
    call, sent = ask(router, streams=False, token=b'"t"')
    assert router.fromServer(notify("notifications/message"), call, 0.0) == []
    progress = notify("notifications/progress", b'{"progressToken":%b}' % (sent.id or b""))
    assert dropped(router.fromServer(progress, call, 0.0)) == ["no_stream_for_progress"]
    streaming, _ = ask(router)
    effects = router.attached(Stream())
    assert effects == []
    assert router.streams and streaming.streams


def test_what_waits_goes_to_the_next_stream_in_order() -> None:
    router = makeRouter()
    for n in range(3):
        assert router.fromServer(notify("notifications/message", b"[%d]" % n), None, 0.0) == []
    stream = Stream()
    told = only(router.attached(stream), Deliver)
    assert [bytes(one.message.fields["params"]) for one in told] == [b"[0]", b"[1]", b"[2]"]
    assert all(one.target is stream for one in told)
    assert router.attached(Stream()) == []

    router = makeRouter()
    router.fromServer(request("roots/list"), None, 0.0)
    target = Stream()
    effects = router.request(request("tools/list"), target, True, CONTEXT, 1.0)
    assert [effect.target for effect in only(effects, Deliver)] == [target]


def test_without_a_stream_for_thirty_seconds_a_request_is_refused() -> None:
    router = makeRouter()
    assert router.fromServer(request("roots/list", b'"r"'), None, 0.0) == []
    assert router.fromServer(notify("notifications/message"), None, 5.0) == []
    assert router.soonest == 30.0
    assert router.expired(29.9) == []
    effects = router.expired(30.0)
    assert events(effects) == [BoundReached("queued_for", "scripted")]
    (forward,) = only(effects, Forward)
    assert forward.message.id == b'"r"' and error(forward.message)[0] == -32603
    assert router.soonest == 35.0
    effects = router.expired(35.0)
    assert dropped(effects) == ["no_stream"]
    assert router.soonest == NEVER


def test_the_waiting_room_is_bounded_in_number_and_bytes() -> None:
    router = makeRouter(limits=Limits(max_queued_messages=2))
    router.fromServer(request("roots/list", b"7"), None, 0.0)
    router.fromServer(notify("notifications/message", b"[1]"), None, 0.0)
    effects = router.fromServer(notify("notifications/message", b"[2]"), None, 0.0)
    assert events(effects) == [BoundReached("max_queued_messages", "scripted")]
    assert [forward.message.id for forward in only(effects, Forward)] == [b"7"]
    assert len(only(router.attached(Stream()), Deliver)) == 2

    router = makeRouter(limits=Limits(max_queued_bytes=200))
    big = notify("notifications/message", b'["%b"]' % (b"x" * 100))
    assert router.fromServer(big, None, 0.0) == []
    effects = router.fromServer(big, None, 0.0)
    assert events(effects)[0] == BoundReached("max_queued_bytes", "scripted")
    assert dropped(effects) == ["no_stream"]
    # What is too large by itself pushes nothing out.
    huge = notify("notifications/message", b'["%b"]' % (b"x" * 300))
    assert dropped(router.fromServer(huge, None, 0.0)) == ["no_stream"]
    assert len(only(router.attached(Stream()), Deliver)) == 1


def test_a_capability_the_client_did_not_declare() -> None:
    router = makeRouter(initialize=b'{"capabilities":{"roots":{}}}')
    router.attached(Stream())
    for method in ("sampling/createMessage", "elicitation/create", "tasks/list"):
        (forward,) = router.fromServer(request(method, b'"q"'), None, 0.0)
        assert isinstance(forward, Forward) and forward.call is None
        assert forward.message.id == b'"q"' and error(forward.message) == (-32601, None)
    (told,) = router.fromServer(request("roots/list"), None, 0.0)
    assert isinstance(told, Deliver)
    (told,) = router.fromServer(request("ping"), None, 0.0)
    assert isinstance(told, Deliver)


def test_server_requests_other_than_ping_wait_for_initialized() -> None:
    router = makeRouter(initialized=False)
    stream = Stream()
    router.attached(stream)
    assert router.fromServer(request("roots/list", b"1"), None, 0.0) == []
    assert isinstance(router.fromServer(request("ping", b"2"), None, 0.0)[0], Deliver)
    assert isinstance(router.fromServer(notify("notifications/message"), None, 0.0)[0], Deliver)
    initialized = notify("notifications/initialized")
    effects = router.notification(initialized, 1.0)
    assert only(effects, Forward)[0].message is initialized
    assert isinstance(effects[1], Changed) and router.record.initialized
    (told,) = only(effects, Deliver)
    assert told.target is stream and told.message.method == "roots/list"
    assert dropped(router.notification(initialized, 1.0)) == ["initialized_twice"]


def test_unanswered_server_requests_are_bounded() -> None:
    router = makeRouter(limits=Limits(max_server_requests=1))
    router.attached(Stream())
    router.fromServer(request("ping", b"1"), None, 0.0)
    effects = router.fromServer(request("ping", b"2"), None, 0.0)
    assert events(effects) == [BoundReached("max_server_requests", "scripted")]
    assert error(only(effects, Forward)[0].message) == (-32603, None)


def test_a_stream_that_takes_nothing_more_refuses_the_servers_request() -> None:
    router = makeRouter()
    router.attached(Stream())
    (told,) = router.fromServer(request("roots/list", b'"r"'), None, 0.0)
    (forward,) = router.undeliverable(told.message, 1.0)
    assert forward.message.id == b'"r"' and error(forward.message) == (-32603, None)
    assert dropped(router.undeliverable(told.message, 1.0)) == ["undeliverable"]
    assert dropped(router.undeliverable(notify("notifications/message"), 1.0)) == ["undeliverable"]


def test_a_cancelled_server_request_that_still_waits_is_not_asked() -> None:
    router = makeRouter()
    router.fromServer(request("roots/list", b"4"), None, 0.0)
    void = notify("notifications/cancelled", b'{"requestId":4}')
    assert router.fromServer(void, None, 0.0) == []
    assert router.attached(Stream()) == []


def test_a_void_request_is_told_on_another_stream_if_its_own_is_gone() -> None:
    router = makeRouter()
    first, second = Stream(), Stream()
    router.attached(first)
    (told,) = router.fromServer(request("elicitation/create", b"4"), None, 0.0)
    router.detached(first)
    router.attached(second)
    void = notify("notifications/cancelled", b'{"requestId":4}')
    (deliver,) = router.fromServer(void, None, 0.0)
    assert deliver.target is second and deliver.message.param("requestId") == told.message.id


def test_strict_a_message_goes_only_where_the_link_says() -> None:
    router = makeRouter(strict=True, initialized=False)
    call, sent = ask(router, token=b'"t"')
    stream = Stream()
    router.attached(stream)
    assert dropped(router.fromServer(notify("notifications/message"), None, 0.0)) == ["no_stream"]
    (told,) = router.fromServer(request("roots/list"), stream, 0.0)
    assert isinstance(told, Deliver) and told.target is stream
    (refused,) = router.fromServer(request("roots/list", b"8"), Stream(), 0.0)
    assert isinstance(refused, Forward) and error(refused.message) == (-32603, None)
    # The client vanished and resumed the call's stream on the attached one.
    call.present = False
    progress = notify("notifications/progress", b'{"progressToken":%b}' % (sent.id or b""))
    (told,) = router.fromServer(progress, stream, 0.0)
    assert isinstance(told, Deliver) and told.target is stream
    assert told.message.param("progressToken") == b'"t"'
    (end,) = answer(router, sent.id or b"", origin=stream)
    assert end.call.target is stream and end.call.present


def test_strict_what_the_gateway_itself_tells_waits_for_a_stream() -> None:
    router = makeRouter(strict=True)
    changed = notify("notifications/tools/list_changed")
    assert router.told(changed, 0.0) == []
    stream = Stream()
    assert [effect.target for effect in only(router.attached(stream), Deliver)] == [stream]
    (told,) = router.told(changed, 0.0)
    assert isinstance(told, Deliver) and told.target is stream


# Deadlines.


def timedOut(effects: list[Effect], call: Call) -> bool:
    (end,) = only(effects, Answer)
    assert end.call is call and error(end.message) == (-32000, "timeout")
    assert end.failed == "timeout"
    return True


@pytest.mark.acceptance(49)
def test_acceptance_49_a_call_times_out_and_is_cancelled_at_the_server() -> None:
    router = makeRouter(timeout=10.0)
    call, sent = ask(router, b'"c"')
    assert router.soonest == 10.0
    assert router.expired(9.9) == []
    effects = router.expired(10.0)
    assert timedOut(effects, call)
    (forward,) = only(effects, Forward)
    assert forward.message.method == "notifications/cancelled"
    assert forward.message.param("requestId") == sent.id
    assert [effect.call for effect in only(effects, Forget)] == [call]
    assert router.soonest == NEVER
    assert dropped(answer(router, sent.id or b"")) == ["late_answer"]


@pytest.mark.acceptance(49)
def test_acceptance_49_progress_extends_up_to_the_cap() -> None:
    router = makeRouter(timeout=10.0, maxTimeout=25.0)
    call, sent = ask(router, token=b"1", streams=False)
    for now in (8.0, 16.0, 24.0):
        assert router.expired(now) == []
        router.fromServer(
            notify("notifications/progress", b'{"progressToken":%b}' % (sent.id or b"")), None, now
        )
    assert router.expired(24.9) == []
    assert router.soonest == 25.0
    assert timedOut(router.expired(25.0), call)


@pytest.mark.acceptance(49)
def test_acceptance_49_deadlines_stand_still_while_the_client_is_asked() -> None:
    router = makeRouter(timeout=10.0, maxTimeout=1000.0)
    router.attached(Stream())
    call, _ = ask(router)
    (first,) = router.fromServer(request("elicitation/create", b"1"), None, 4.0)
    (second,) = router.fromServer(request("elicitation/create", b"2"), None, 5.0)
    later, sent = ask(router, token=b"1", now=50.0)
    latest, _ = ask(router, now=60.0)
    router.expired(100.0)
    router.response(response(first.message.id), 100.0)
    assert router.expired(100.0) == []
    progressed = notify("notifications/progress", b'{"progressToken":%b}' % (sent.id or b""))
    router.fromServer(progressed, None, 150.0)
    router.response(response(second.message.id), 200.0)
    # 4 of 10 seconds had gone for the first; none for the others.
    assert router.soonest <= 206.0
    assert router.expired(205.9) == []
    assert timedOut(router.expired(206.0), call)
    assert router.soonest == 210.0
    assert router.expired(209.9) == []
    ends = only(router.expired(210.0), Answer)
    assert [end.call for end in ends] == [later, latest]


@pytest.mark.acceptance(49)
def test_acceptance_49_the_cap_holds_while_the_client_is_asked() -> None:
    router = makeRouter(timeout=10.0, maxTimeout=100.0)
    router.attached(Stream())
    call, _ = ask(router)
    (told,) = router.fromServer(request("elicitation/create", b'"e"'), None, 5.0)
    assert router.expired(99.9) == []
    assert timedOut(router.expired(100.0), call)
    # Nobody waits for ever: the server's request has a cap, too, and its client hears of it.
    assert router.soonest == 105.0
    effects = router.expired(105.0)
    (refused,) = only(effects, Forward)
    assert refused.message.id == b'"e"' and error(refused.message) == (-32603, None)
    (void,) = only(effects, Deliver)
    assert void.message.param("requestId") == told.message.id
    assert router.soonest == NEVER


def test_a_cancelled_call_is_given_up_after_a_second_unless_answered() -> None:
    router = makeRouter()
    call, sent = ask(router, b"1")
    answered, second = ask(router, b"2")
    for id in (b"1", b"2"):
        router.notification(notify("notifications/cancelled", b'{"requestId":%b}' % id), 5.0)
    assert router.soonest == 6.0
    assert answer(router, second.id or b"")[0].call is answered
    effects = router.expired(6.0)
    (end,) = only(effects, Answer)
    assert end.call is call and error(end.message) == (-32000, "cancelled")
    assert [effect.call for effect in only(effects, Forget)] == [call]
    assert not only(effects, Forward)
    assert dropped(answer(router, sent.id or b"")) == ["late_answer"]


def test_the_loss_of_the_link_fails_all_at_once() -> None:
    router = makeRouter()
    calls = [ask(router, b"%d" % n)[0] for n in range(50)]
    router.notification(notify("notifications/cancelled", b'{"requestId":3}'), 0.0)
    stream = Stream()
    router.attached(stream)
    (asked,) = router.fromServer(request("roots/list", b"1"), None, 0.0)
    effects = router.linkLost(Reason.SERVER_EXITED, "gone", 1.0)
    ends = only(effects, Answer)
    assert [end.call for end in ends] == calls
    assert {error(end.message) for end in ends} == {(-32000, "server_exited")}
    (void,) = only(effects, Deliver)
    assert void.target is stream and void.message.param("requestId") == asked.message.id
    assert router.expired(10_000.0) == [] and not router.calls
    assert dropped(router.response(response(asked.message.id), 2.0)) == ["stray_response"]
    # A call of the next link has its whole time.
    ask(router, now=100.0)
    assert router.soonest == 700.0


def test_a_call_that_settles_without_an_answer() -> None:
    router = makeRouter()
    call, _ = ask(router, b'"a"')
    (end,) = router.settled(call, Reason.OUTCOME_UNKNOWN, "cut")
    assert end.message.id == b'"a"' and error(end.message) == (-32000, "outcome_unknown")
    assert router.settled(call, Reason.OUTCOME_UNKNOWN, "cut") == []
    call, _ = ask(router, b'"b"')
    own = message(b'{"jsonrpc":"2.0","id":9,"error":{"code":-1,"message":"m"}}')
    (end,) = router.settled(call, Reason.BAD_ANSWER, "refused", own)
    assert end.message.id == b'"b"' and error(end.message) == (-1, None)


def test_running_calls_are_bounded() -> None:
    router = makeRouter(limits=Limits(max_calls=1))
    ask(router)
    effects = router.request(request("tools/list", b'"z"'), Stream(), True, CONTEXT, 0.0)
    assert events(effects) == [BoundReached("max_calls", "scripted")]
    (end,) = only(effects, Answer)
    assert end.message.id == b'"z"' and error(end.message) == (-32000, "overloaded")
    assert len(router.calls) == 1


def test_a_started_call_is_told_to_the_observer() -> None:
    effects = makeRouter().request(request("tools/list"), Stream(), True, CONTEXT, 0.0)
    assert events(effects) == [CallStarted("scripted", "tools/list")]


def test_own_requests_are_answered_to_nobody() -> None:
    router = makeRouter(timeout=5.0)
    stream = Stream()
    router.attached(stream)
    sent = [
        only(router.ownRequest(request("logging/setLevel", b"0"), CONTEXT, 0.0), Forward)[0]
        for _ in range(3)
    ]
    assert not only(answer(router, sent[0].message.id), Answer)
    assert router.settled(sent[1].call, Reason.BAD_ANSWER, "no") == [OwnEnded(sent[1].call, False)]
    assert not only(router.expired(5.0), Answer)
    assert not router.calls


# What the record learns.


def test_the_record_learns_what_has_to_be_said_again() -> None:
    router = makeRouter(limits=Limits(max_subscriptions=2))
    record = router.record

    def granted(method: str, params: bytes) -> list[Effect]:
        _, sent = ask(router, method=method, params=params)
        effects: list[Effect] = answer(router, sent.id or b"")
        return effects

    assert only(granted("logging/setLevel", b'{"level":"debug"}'), Changed)
    assert record.log_level == b'"debug"'
    for uri in (b"a", b"b"):
        assert only(granted("resources/subscribe", b'{"uri":"%b"}' % uri), Changed)
    assert not only(granted("resources/subscribe", b'{"uri":"b"}'), Changed)
    effects = granted("resources/subscribe", b'{"uri":"c"}')
    assert events(effects) == [BoundReached("max_subscriptions", "scripted")]
    assert record.subscriptions == ["b", "c"]
    granted("resources/unsubscribe", b'{"uri":"b"}')
    assert record.subscriptions == ["c"]
    assert not only(granted("resources/unsubscribe", b'{"uri":"x"}'), Changed)

    _, sent = ask(router, method="resources/subscribe", params=b'{"uri":"no"}')
    refused = b'{"jsonrpc":"2.0","id":%b,"error":{"code":-1,"message":"m"}}' % (sent.id or b"")
    assert not only(router.fromServer(message(refused), None, 0.0), Changed)
    assert record.subscriptions == ["c"]


# Everything at once.


class Traffic(RuleBasedStateMachine):
    """Any traffic, in any order: every call ends once, and with what is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.router = makeRouter(timeout=10.0, maxTimeout=40.0, limits=Limits(max_calls=8))
        self.running: dict[bytes, Call] = {}
        self.ended: list[Call] = []
        self.touched: dict[int, float] = {}
        self.toAnswer: dict[bytes, bytes] = {}
        self.serverIDs = 0
        self.told: dict[bytes, int] = {}
        self.wasAsked = False

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer):
                call = effect.call
                assert all(call is not one for one in self.ended), "answered twice"
                self.ended.append(call)
                self.running.pop(call.upstream, None)
                assert effect.message.id == call.id
                if not effect.failed:
                    result = json.loads(effect.message.encode())["result"]
                    assert result == {"for": int(call.upstream)}
            elif isinstance(effect, Deliver):
                open_ = [*self.router.streams, *(c.target for c in self.running.values())]
                assert any(effect.target is one for one in open_)
                marker = effect.message.param("marker")
                if marker is not None:
                    self.told[marker] = self.told.get(marker, 0) + 1
                    assert self.told[marker] == 1, "told twice"
                if effect.message.id is not None:
                    self.toAnswer[effect.message.id] = effect.message.param("marker") or b""
            elif isinstance(effect, Forward) and effect.message.method == "":
                self.wasAsked = True

    @rule(id=st.sampled_from([b"1", b'"1"', b"1.0"]), streams=st.booleans())
    def ask(self, id: bytes, streams: bool) -> None:
        asked = request("tools/call", id, b'{"_meta":{"progressToken":%b}}' % id)
        effects = self.router.request(asked, Stream(), streams, CONTEXT, self.now)
        for effect in only(effects, Forward):
            self.running[effect.call.upstream] = effect.call
            self.touched[int(effect.call.upstream)] = self.now
        self.take(effects)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answerOne(self, data: st.DataObject) -> None:
        upstream = data.draw(st.sampled_from(sorted(self.running)))
        effects = answer(self.router, upstream, b'{"for":%b}' % upstream)
        assert len(only(effects, Answer)) == 1
        self.take(effects)

    @rule(upstream=st.integers(0, 40))
    def answerAny(self, upstream: int) -> None:
        self.take(answer(self.router, b"%d" % upstream, b'{"for":%d}' % upstream))

    @rule(upstream=st.integers(0, 40))
    def progress(self, upstream: int) -> None:
        told = notify("notifications/progress", b'{"progressToken":%d}' % upstream)
        self.take(self.router.fromServer(told, None, self.now))
        self.touched[upstream] = self.now

    @rule(id=st.sampled_from([b"1", b'"1"', b"1.0"]))
    def cancel(self, id: bytes) -> None:
        cancelled = notify("notifications/cancelled", b'{"requestId":%b}' % id)
        self.take(self.router.notification(cancelled, self.now))

    @rule(method=st.sampled_from(["ping", "roots/list", None]))
    def serverSays(self, method: str | None) -> None:
        self.serverIDs += 1
        marker = b'{"marker":%d}' % self.serverIDs
        said = (
            notify("notifications/message", marker)
            if method is None
            else request(method, b"%d" % self.serverIDs, marker)
        )
        self.wasAsked = self.wasAsked or method is not None
        self.take(self.router.fromServer(said, None, self.now))

    @precondition(lambda self: self.toAnswer)
    @rule(data=st.data())
    def clientAnswers(self, data: st.DataObject) -> None:
        ours = data.draw(st.sampled_from(sorted(self.toAnswer)))
        marker = self.toAnswer.pop(ours)
        for effect in self.router.response(response(ours), self.now):
            if isinstance(effect, Forward):
                assert effect.message.id == marker, "answered what was not asked"

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.router.soonest <= until:
            assert self.router.soonest >= 0
            self.now = max(self.now, self.router.soonest)
            self.take(self.router.expired(self.now))
            assert self.router.soonest > self.now, "time does not go on"
        self.now = until

    @rule()
    def lookEarly(self) -> None:
        if self.router.soonest > self.now:
            assert self.router.expired(self.now) == [], "something was due before `soonest`"

    @rule()
    def attach(self) -> None:
        self.take(self.router.attached(Stream()))

    @precondition(lambda self: self.router.streams)
    @rule()
    def detach(self) -> None:
        self.router.detached(self.router.streams[0])

    @rule()
    def loseLink(self) -> None:
        before = len(self.running)
        effects = self.router.linkLost(Reason.SERVER_EXITED, "gone", self.now)
        assert len(only(effects, Answer)) == before
        self.take(effects)
        assert not self.running

    @invariant()
    def runningAreTheSame(self) -> None:
        assert self.router.calls == self.running

    @invariant()
    def noneIsOverdue(self) -> None:
        for call in self.running.values():
            assert self.now < call.started + 40.0
            if not self.wasAsked:
                assert self.now < self.touched[int(call.upstream)] + 10.0


Traffic.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTraffic = Traffic.TestCase


# Routes that all clients of a server share.


def makeCommon(**limits: int) -> Router:
    router = makeRouter(strict=True, limits=Limits(**limits))
    router.serveAll()
    return router


def test_nobody_answers_for_another_where_routes_are_common() -> None:
    router = makeCommon()
    call, _ = ask(router)
    for asked in ("roots/list", "sampling/createMessage"):
        (refused,) = router.fromServer(request(asked, b'"q"'), call, 0.0)
        assert isinstance(refused, Forward) and refused.message.id == b'"q"'
        assert error(refused.message)[0] == -32601
        assert refused.context is call.context, "it goes with the credentials of the call"
    (pong,) = router.fromServer(request("ping", b'"q"'), call, 0.0)
    assert isinstance(pong, Forward)
    assert pong.message.encode() == b'{"jsonrpc":"2.0","id":"q","result":{}}'
    assert dropped(router.response(response(b"1"), 0.0)) == ["stray_response"]
    progress = notify("notifications/progress", b'{"progressToken":1,"progress":1}')
    assert dropped(router.notification(progress, 0.0)) == ["unknown_token"]
    cancelled = notify("notifications/cancelled", b'{"requestId":1}')
    assert dropped(router.notification(cancelled, 0.0)) == ["stray_cancel"]
    assert call.cancelling is None
    (forward,) = router.notification(notify("notifications/roots/list_changed"), 0.0)
    assert isinstance(forward, Forward)
    assert dropped(router.told(notify("notifications/tools/list_changed"), 0.0)) == ["no_stream"]


def test_common_routes_have_no_bound_of_a_session_and_learn_nothing() -> None:
    router = makeCommon(max_calls=2)
    for n in range(10):
        ask(router, b"%d" % n)
    for method, params in (
        ("logging/setLevel", b'{"level":"debug"}'),
        ("resources/subscribe", b'{"uri":"x:"}'),
    ):
        call, _ = ask(router, method=method, params=params)
        (answered,) = answer(router, call.upstream)
        assert isinstance(answered, Answer)
    assert router.record.log_level == b"" and router.record.subscriptions == []


def test_own_requests_take_no_room_of_the_clients() -> None:
    router = makeRouter(limits=Limits(max_calls=2))
    for _ in range(5):
        assert only(router.ownRequest(request("logging/setLevel"), CONTEXT, 0.0), Forward)
    for n in range(2):
        ask(router, b"%d" % n)
    effects = router.request(request(), Stream(), True, CONTEXT, 0.0)
    assert BoundReached("max_calls", "scripted") in events(effects)


def test_a_timed_out_call_is_cancelled_with_its_own_context() -> None:
    router = makeRouter(timeout=5.0)
    ask(router)
    (cancelled,) = only(router.expired(5.0), Forward)
    assert cancelled.context is CONTEXT
