"""A legacy client before a modern server: the bridged link, its pure parts and its cores."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bridge_support import DISCOVERED, MODERN, Bridge, greeting
from schema_support import conforms
from zope.interface.verify import verifyObject

from gateway.bridge.capabilities import clientCapabilities, greetingOf, serverCapabilities
from gateway.guard.limits import Limits
from gateway.links.interfaces import ILink, ILinkListener, Reason
from gateway.testing.scripted import message
from gateway.wire.revisions import LEGACY

META = "io.modelcontextprotocol/"
FORM = {"type": "object", "properties": {"a": {"type": "string"}}}
ELICIT = {
    "method": "elicitation/create",
    "params": {"mode": "form", "message": "?", "requestedSchema": FORM},
}
ROOTS = {"method": "roots/list"}
SAMPLE = {
    "method": "sampling/createMessage",
    "params": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}],
        "maxTokens": 5,
    },
}


@pytest.fixture(params=[False, True], ids=["stdio", "http"])
def bridge(request: pytest.FixtureRequest) -> Bridge:
    return Bridge(http=request.param)


# The handshake.


@pytest.mark.parametrize("revision", LEGACY)
def test_initialize_is_answered_in_the_clients_revision(revision: str) -> None:
    bridge = Bridge(revision)
    answer = json.loads(bridge.link.answer.encode())
    conforms(answer["result"], revision, "InitializeResult")
    assert answer["result"]["protocolVersion"] == revision
    assert answer["result"]["serverInfo"] == {"name": "m", "version": "1.0"}
    assert answer["result"]["instructions"] == "be good"
    capabilities = answer["result"]["capabilities"]
    assert "extensions" not in capabilities
    assert ("completions" in capabilities) is (revision >= "2025-03-26")
    assert capabilities["resources"] == {"subscribe": True, "listChanged": True}
    assert capabilities["logging"] == {}


def test_an_unknown_revision_becomes_the_newest_legacy_one() -> None:
    for asked in ("2099-01-01", MODERN):
        assert greetingOf(greeting(asked)).revision == LEGACY[0]
    assert greetingOf(b"[]").revision == LEGACY[0]


def test_a_server_that_does_not_say_who_it_is() -> None:
    discovered = {**DISCOVERED, "_meta": {}}
    answer = json.loads(Bridge(discovered=discovered).link.answer.encode())
    assert answer["result"]["serverInfo"] == {"name": "scripted", "version": "unknown"}


def test_what_a_client_declared_in_the_modern_era() -> None:
    declared = (
        b'{"roots":{"listChanged":true},"sampling":{"tools":{},"x":1.0},"tasks":{},'
        b'"elicitation":{"url":{},"form":{}},"experimental":{"e":{"n":1e0}}}'
    )
    newest = (
        b'{"roots":{},"sampling":{"tools":{},"x":1.0},'
        b'"elicitation":{"url":{},"form":{}},"experimental":{"e":{"n":1e0}}}'
    )
    assert clientCapabilities(declared, "2025-11-25") == newest
    older = clientCapabilities(declared, "2025-06-18")
    assert older == newest.replace(b'"tools":{},', b"").replace(b'"url":{},', b"")
    only = clientCapabilities(b'{"elicitation":{"url":{}}}', "2025-06-18")
    assert only == b"{}"
    assert clientCapabilities(b"7", "2025-06-18") == b"{}"
    assert serverCapabilities(b"[]", "2025-06-18") == b"{}"


# Requests.


def test_each_request_says_who_asks(bridge: Bridge) -> None:
    call = bridge.ask(7, arguments={"n": 1}, _meta={"progressToken": 7, "x": 1})
    params = bridge.params()
    assert params["_meta"] == {
        META + "protocolVersion": MODERN,
        META + "clientInfo": {"name": "c", "version": "1"},
        META + "clientCapabilities": {"roots": {}, "sampling": {}, "elicitation": {}},
        "progressToken": 7,
        "x": 1,
    }
    bridge.push("notifications/progress", bridge.last, progressToken=7, progress=1)
    bridge.reply(content=[], _meta={META + "serverInfo": {"name": "m", "version": "1"}, "k": 1})
    assert bridge.heard[0][1] is (call if bridge.http else None)
    progress, answer = bridge.take()
    assert progress["params"] == {"progressToken": 7, "progress": 1}
    assert answer == {"jsonrpc": "2.0", "id": 7, "result": {"content": [], "_meta": {"k": 1}}}


def test_what_is_answered_here(bridge: Bridge) -> None:
    bridge.ask(1, "ping")
    bridge.ask(2, "logging/setLevel", level="info")
    bridge.ask(3, "logging/setLevel", level="loud")
    assert not bridge.heard
    assert bridge.take()[:2] == [{"jsonrpc": "2.0", "id": id, "result": {}} for id in (1, 2)]
    assert not bridge.inner.sent
    bridge.ask(4)
    assert bridge.params()["_meta"][META + "logLevel"] == "info"
    bridge.push("notifications/message", bridge.last, level="info", data="x")
    assert bridge.take()[0]["method"] == "notifications/message"


def test_an_unknown_log_level() -> None:
    bridge = Bridge()
    bridge.ask(3, "logging/setLevel", level="loud")
    assert bridge.take()[0]["error"]["code"] == -32602


@pytest.mark.parametrize(
    "method", ["tasks/get", "tasks/result", "server/discover", "subscriptions/listen", "initialize"]
)
def test_what_no_legacy_server_has_or_no_modern_one(bridge: Bridge, method: str) -> None:
    bridge.ask(1, method)
    (answer,) = bridge.take()
    assert answer["error"]["code"] == -32601
    assert not bridge.inner.sent
    if method.startswith("tasks/"):
        assert "2025-11-25" in answer["error"]["message"]
        assert MODERN in answer["error"]["message"]


def test_what_means_nothing_in_a_legacy_call_does_not_go_up(bridge: Bridge) -> None:
    bridge.ask(1, task={"ttl": 1}, requestState="forged", inputResponses={})
    assert set(bridge.params()) == {"name", "_meta"}


def test_parameters_in_an_array_cannot_be_stamped() -> None:
    bridge = Bridge()
    assert bridge.send({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": []}, object())
    assert bridge.take()[0]["error"]["code"] == -32602


def test_notifications_end_here_and_are_accepted(bridge: Bridge) -> None:
    notes = [object() for _ in range(4)]
    for note, method in zip(
        notes, ("initialized", "roots/list_changed", "progress", "other"), strict=True
    ):
        bridge.tell(f"notifications/{method}", note)
    assert not bridge.taken
    bridge.clock.advance(0)
    assert bridge.taken == notes
    assert bridge.observed.dropped == ["not_modern", "not_modern"]


# Results and errors.


def test_a_result_of_a_type_nobody_knows(bridge: Bridge) -> None:
    bridge.ask(1)
    bridge.reply(resultType="task", task={})
    error = bridge.take()[0]["error"]
    assert error["code"] == -32603
    assert "type task" in error["message"]
    assert "2025-11-25" in error["message"]


def test_only_some_methods_may_ask(bridge: Bridge) -> None:
    bridge.ask(1, "tools/list")
    bridge.reply(resultType="input_required", requestState="s")
    assert bridge.take()[0]["error"]["code"] == -32603


def test_lists_lose_what_is_for_caches(bridge: Bridge) -> None:
    bridge.ask(1, "prompts/list")
    bridge.reply(prompts=[], ttlMs=5, cacheScope="public", nextCursor="n")
    assert bridge.take()[0]["result"] == {"prompts": [], "nextCursor": "n"}


@pytest.mark.parametrize("revision", LEGACY)
def test_tools_that_a_legacy_client_can_parse(revision: str) -> None:
    bridge = Bridge(revision)
    bridge.ask(1, "tools/list")
    schema = {"type": "object", "properties": {"a": True, "b": False, "c": {"type": "null"}}}
    tools = [
        {"name": "any", "inputSchema": {"type": "object"}, "outputSchema": {"type": "array"}},
        {"name": "bool", "inputSchema": schema, "outputSchema": schema},
        {"name": "of", "inputSchema": {"type": "object"}, "outputSchema": {"anyOf": [{}]}},
    ]
    bridge.reply(tools=tools, ttlMs=1, cacheScope="public")
    first, second, third = bridge.take()[0]["result"]["tools"]
    assert "outputSchema" not in first
    assert "outputSchema" not in third
    assert second["inputSchema"]["properties"] == {"a": {}, "b": {"not": {}}, "c": {"type": "null"}}


@pytest.mark.parametrize("revision", LEGACY)
def test_structured_content_that_is_no_object(revision: str) -> None:
    bridge = Bridge(revision)
    text = {"type": "text", "text": "x"}
    for id, (content, structured, kept) in enumerate(
        [
            ([text], [1, 2], [text]),
            ([], [1.0], [{"type": "text", "text": "[1.0]"}]),
            ([], "s", [{"type": "text", "text": '"s"'}]),
            ([], None, [{"type": "text", "text": "null"}]),
        ]
    ):
        bridge.ask(id)
        bridge.reply(content=content, structuredContent=structured)
        assert bridge.take()[0]["result"] == {"content": kept}
    bridge.ask(9)
    bridge.reply(content=[], structuredContent={"a": 1})
    assert bridge.take()[0]["result"]["structuredContent"] == {"a": 1}


def test_blocks_that_a_revision_does_not_have() -> None:
    link = {"type": "resource_link", "uri": "a:b", "name": "n"}
    audio = {"type": "audio", "data": "", "mimeType": "audio/wav"}
    for revision, kinds in (
        ("2024-11-05", ["text", "text"]),
        ("2025-03-26", ["text", "audio"]),
        ("2025-06-18", ["resource_link", "audio"]),
    ):
        bridge = Bridge(revision)
        bridge.ask(1)
        bridge.reply(content=[link, audio])
        bridge.ask(2, "prompts/get", name="p")
        bridge.reply(messages=[{"role": "user", "content": link}])
        called, got = bridge.take()
        assert [block["type"] for block in called["result"]["content"]] == kinds
        if kinds[0] == "text":
            assert json.loads(called["result"]["content"][0]["text"]) == link
        assert got["result"]["messages"][0]["content"]["type"] == kinds[0]


def test_a_resource_that_is_not_there(bridge: Bridge) -> None:
    def error(code: int, said: str, data: bytes = b"") -> Any:
        bridge.ask(1, "resources/read", uri="a:b")
        sent = bridge.last
        body = b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":"%b"%b}}'
        data = data and b',"data":' + data
        origin = sent.call if bridge.http else None
        bridge.inner.push(body % (sent.id, code, said.encode(), data), origin)
        return bridge.take()[0]["error"]

    gone = {"code": -32002, "message": "Resource not found", "data": {"uri": "a:b"}}
    assert error(-32602, "Resource not found", b'{"uri":"a:b"}') == gone
    assert error(-32602, "Resource not found") == gone
    assert error(-32602, "none such", b'{"uri":"a:b"}')["code"] == -32002
    assert error(-32602, "Invalid or expired requestState")["code"] == -32602
    assert error(-32603, "Resource not found")["code"] == -32603
    missing = error(-32021, "no", b'{"requiredCapabilities":{"elicitation":{"url":{}}}}')
    assert missing["code"] == -32600
    assert "elicitation.url" in missing["message"]
    assert missing["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}
    assert error(-32022, "no")["code"] == -32603


def test_an_error_with_an_http_status_is_the_legacy_one() -> None:
    bridge = Bridge(http=True)
    call = bridge.ask(1, "resources/read", uri="a:b")
    body = message(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"not found"}}')
    bridge.inner.settle(bridge.last, Reason.BAD_ANSWER, "refused", status=400, body=body)
    ((settledCall, settled),) = bridge.ends
    assert settledCall is call
    assert settled.body is not None
    assert b"-32002" in settled.body.encode()


def test_a_full_queue_takes_nothing(bridge: Bridge) -> None:
    bridge.inner.full = True
    call = object()
    assert not bridge.send({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, call)
    bridge.inner.full = False
    bridge.link.drained()
    assert bridge.drains == 1
    bridge.cancel(call)
    assert not bridge.inner.sent


# Rounds.


def test_what_the_server_asks_for_is_asked_of_the_client(bridge: Bridge) -> None:
    call = bridge.ask(5, arguments={"x": 1}, _meta={"progressToken": 5})
    first = bridge.last
    asked = {"e": ELICIT, "s": SAMPLE, "r": ROOTS}
    bridge.reply(resultType="input_required", inputRequests=asked, requestState="st\u00e4te")
    assert all(origin is call for _, origin in bridge.heard)
    questions = bridge.take()
    methods = ["elicitation/create", "sampling/createMessage", "roots/list"]
    assert [question["method"] for question in questions] == methods
    results = [
        {"action": "accept", "content": {"a": "b"}},
        {"role": "assistant", "model": "m", "content": {"type": "text", "text": "t"}},
        {"roots": []},
    ]
    for question, result in reversed(list(zip(questions, results, strict=True))):
        assert bridge.last is first
        bridge.answer(question, result)
    second = bridge.last
    assert second.id != first.id
    params = bridge.params(second)
    assert params.pop("inputResponses") == dict(zip("esr", results, strict=True))
    assert params.pop("requestState") == "st\u00e4te"
    assert params == bridge.params(first)
    bridge.reply(content=[])
    assert bridge.take() == [{"jsonrpc": "2.0", "id": 5, "result": {"content": []}}]
    assert not bridge.observed.events


def test_without_a_state_none_is_sent_back(bridge: Bridge) -> None:
    bridge.ask(1)
    bridge.reply(resultType="input_required", inputRequests={"r": ROOTS}, requestState="1")
    bridge.answer(*bridge.take(), {"roots": []})
    bridge.reply(resultType="input_required", inputRequests={"r": ROOTS})
    bridge.answer(*bridge.take(), {"roots": []})
    assert "requestState" not in bridge.params()


def test_a_result_that_asks_for_nothing_is_followed_at_once_then_after_a_while() -> None:
    bridge = Bridge()
    bridge.ask(1)
    bridge.reply(resultType="input_required", requestState="1")
    assert len(bridge.inner.requests) == 2
    assert "inputResponses" not in bridge.params()
    assert bridge.params()["requestState"] == "1"
    bridge.reply(resultType="input_required", requestState="2")
    assert len(bridge.inner.requests) == 2
    bridge.clock.advance(0.7)
    assert len(bridge.inner.requests) == 3
    bridge.reply(content=[])
    assert bridge.take()[0]["result"] == {"content": []}


def test_a_call_that_is_asked_for_more_and_more_fails(bridge: Bridge) -> None:
    bridge = Bridge(http=bridge.http, limits=Limits(max_input_rounds=2))
    bridge.ask(1)
    for _ in range(2):
        bridge.reply(resultType="input_required", inputRequests={"r": ROOTS})
        bridge.answer(*bridge.take(), {"roots": []})
    bridge.reply(resultType="input_required", inputRequests={"r": ROOTS})
    assert bridge.take()[0]["error"]["code"] == -32603
    assert bridge.reached == ["max_input_rounds"]


def test_what_the_client_refuses_fails_the_call(bridge: Bridge) -> None:
    bridge.ask(1)
    bridge.reply(resultType="input_required", inputRequests={"s": SAMPLE, "r": ROOTS})
    sample, roots = bridge.take()
    bridge.answer(sample, error={"code": -1, "message": "User rejected", "data": 1.0})
    cancelled, failed = bridge.take()
    assert cancelled["method"] == "notifications/cancelled"
    assert cancelled["params"]["requestId"] == roots["id"]
    assert failed["id"] == 1
    assert "User rejected" in failed["error"]["message"]
    assert "sampling/createMessage" in failed["error"]["message"]
    assert failed["error"]["data"]["error"]["data"] == 1.0
    bridge.answer(roots, {"roots": []})
    assert bridge.observed.dropped == ["stray_response"]
    assert len(bridge.inner.requests) == 1


def test_a_refusal_from_within_leaves_the_rest_unasked(bridge: Bridge) -> None:
    heard = bridge.received

    def received(message: Any, origin: object, mark: Any = None) -> None:
        heard(message, origin)
        if message.method:
            bridge.answer(
                json.loads(message.encode()), error={"code": -32601, "message": "not offered"}
            )

    bridge.link.listener = type("L", (), {"received": staticmethod(received)})()
    bridge.ask(1)
    bridge.reply(resultType="input_required", inputRequests={"s": SAMPLE, "r": ROOTS})
    question, failed = bridge.take()
    assert question["method"] == "sampling/createMessage"
    assert "not offered" in failed["error"]["message"]


def test_inputs_that_a_revision_does_not_have() -> None:
    url = {
        "method": "elicitation/create",
        "params": {"mode": "url", "message": "?", "url": "https://a.invalid/"},
    }
    choices = {"type": "array", "items": {"type": "string", "enum": ["x"]}}
    several = {
        "method": "elicitation/create",
        "params": {
            "message": "?",
            "requestedSchema": {"type": "object", "properties": {"a": choices}},
        },
    }
    tools = {**SAMPLE, "params": {**SAMPLE["params"], "tools": []}}  # type: ignore[dict-item]
    parts = {
        "method": "sampling/createMessage",
        "params": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}],
            "maxTokens": 1,
        },
    }
    for asked in (url, several, tools, parts):
        old = Bridge("2025-06-18")
        old.ask(1)
        old.reply(resultType="input_required", inputRequests={"k": asked})
        (failed,) = old.take()
        assert failed["error"]["code"] == -32603
        assert "2025-06-18" in failed["error"]["message"]
        new = Bridge()
        new.ask(1)
        new.reply(resultType="input_required", inputRequests={"k": asked})
        (question,) = new.take()
        question.get("params", {}).pop("elicitationId", None)
        assert question["params"] == asked["params"]
    bridge = Bridge()
    bridge.ask(1)
    bridge.reply(resultType="input_required", inputRequests={"k": {"method": "x/y"}})
    assert "x/y" in bridge.take()[0]["error"]["message"]


def test_forms_and_messages_of_older_revisions() -> None:
    bridge = Bridge("2025-06-18")
    bridge.ask(1)
    titled = {"type": "string", "oneOf": [{"const": "r", "title": "Red"}]}
    form = {"type": "object", "properties": {"a": titled}}
    elicit = {**ELICIT, "params": {"mode": "form", "message": "?", "requestedSchema": form}}
    block = {"type": "text", "text": "a"}
    sample = {
        "method": "sampling/createMessage",
        "params": {"messages": [{"role": "user", "content": [block]}], "maxTokens": 1},
    }
    bridge.reply(resultType="input_required", inputRequests={"e": elicit, "s": sample})
    form, sampling = bridge.take()
    assert "mode" not in form["params"]
    assert form["params"]["requestedSchema"]["properties"]["a"] == {
        "type": "string",
        "enum": ["r"],
        "enumNames": ["Red"],
    }
    assert sampling["params"]["messages"][0]["content"] == block


# Cancellation.


def test_a_cancelled_call_is_cancelled_upstream(bridge: Bridge) -> None:
    call = bridge.ask(3)
    sent = bridge.last
    bridge.tell("notifications/cancelled", requestId=3, reason="tired")
    said = bridge.inner.of("notifications/cancelled")
    if bridge.http:
        assert not said
        assert bridge.inner.cancelled == [sent.call]
    else:
        assert bridge.params(said[0]) == {"requestId": json.loads(sent.id), "reason": "tired"}
        bridge.reply(sent, resultType="input_required", inputRequests={"r": ROOTS})
        assert bridge.take() == []
    bridge.cancel(call)
    assert len(bridge.inner.of("notifications/cancelled")) == len(said)
    bridge.tell("notifications/cancelled", requestId=3)
    bridge.reply(sent, content=[])
    assert bridge.observed.dropped == ["stray_cancel", "late_answer"]
    assert bridge.take() == []


def test_a_call_that_is_given_up_is_cancelled_upstream(bridge: Bridge) -> None:
    call = bridge.ask(3)
    sent = bridge.last
    bridge.cancel(call)
    assert len(bridge.inner.of("notifications/cancelled")) == (0 if bridge.http else 1)
    assert bridge.inner.cancelled == [sent.call]


@pytest.mark.parametrize("how", ["cancelled", "given up"])
def test_a_call_that_ends_while_the_client_is_asked(bridge: Bridge, how: str) -> None:
    call = bridge.ask(3)
    bridge.reply(resultType="input_required", inputRequests={"r": ROOTS})
    (question,) = bridge.take()
    if how == "cancelled":
        bridge.tell("notifications/cancelled", requestId=3)
    else:
        bridge.cancel(call)
    (cancelled,) = bridge.take()
    assert cancelled["params"] == {"requestId": question["id"]}
    assert not bridge.inner.of("notifications/cancelled")
    bridge.answer(question, {"roots": []})
    assert bridge.observed.dropped == ["stray_response"]
    assert len(bridge.inner.requests) == 1


# Back-pressure and the end.


def test_it_is_a_link_and_a_listener(bridge: Bridge) -> None:
    assert verifyObject(ILink, bridge.link)
    assert verifyObject(ILinkListener, bridge.link)
    assert bridge.link.sessionless
    assert bridge.link.multiplexed is not bridge.http


def test_a_held_call_is_held_in_each_round() -> None:
    bridge = Bridge(http=True)
    call = bridge.ask(1)
    bridge.link.hold(call)
    assert bridge.inner.held == [bridge.last.call]
    bridge.reply(resultType="input_required", requestState="s")
    assert bridge.inner.held[1:] == [bridge.last.call]
    bridge.link.release(call)
    assert len(bridge.inner.held) == 1
    bridge.link.hold(object())


def test_a_lost_link_is_lost_once(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    bridge.ask(1, "ping")
    bridge.inner.lose()
    assert bridge.losses == [(Reason.SERVER_EXITED, "the server exited")]
    assert not bridge.clock.getDelayedCalls()
    assert not bridge.send({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, object())
    assert bridge.take() == []


def test_close_ends_the_modern_link(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    bridge.ask(1, "ping")
    bridge.link.close()
    assert bridge.inner.closed
    assert not bridge.clock.getDelayedCalls()


# The stream of changes.


def listens(bridge: Bridge) -> list[Any]:
    """The filters of the streams that were asked for."""
    return [bridge.params(one)["notifications"] for one in bridge.inner.of("subscriptions/listen")]


def ended(bridge: Bridge) -> list[Any]:
    """The streams that were ended, by the calls or ids the server knows them by."""
    if bridge.http:
        return bridge.inner.cancelled
    return [bridge.params(one)["requestId"] for one in bridge.inner.of("notifications/cancelled")]


def named(bridge: Bridge, sent: Any) -> Any:
    return sent.call if bridge.http else json.loads(sent.id)


LISTS = {"toolsListChanged": True, "resourcesListChanged": True}


def test_changes_of_lists_are_told_once_the_client_is_ready(bridge: Bridge) -> None:
    assert not bridge.inner.sent
    bridge.tell("notifications/initialized")
    assert listens(bridge) == [LISTS]
    sent = bridge.acknowledge()
    bridge.pushOn(sent, "notifications/tools/list_changed")
    assert bridge.heard[0][1] is None
    (told,) = bridge.take()
    assert told["method"] == "notifications/tools/list_changed"
    assert not told["params"]


def test_a_server_that_declares_no_changes_is_not_listened_to(bridge: Bridge) -> None:
    discovered = {**DISCOVERED, "capabilities": {"tools": {}}}
    bridge = Bridge(http=bridge.http, discovered=discovered)
    bridge.tell("notifications/initialized")
    bridge.ask(1, "resources/subscribe", uri="a:b")
    bridge.ask(2, "resources/unsubscribe", uri="a:b")
    assert [answer["error"]["code"] for answer in bridge.take()] == [-32601, -32601]
    assert not bridge.inner.sent


def test_a_subscription_is_granted_when_its_stream_is_acknowledged(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    first = bridge.acknowledge()
    bridge.ask(1, "resources/subscribe", uri="a:b")
    assert bridge.take() == []
    assert listens(bridge)[1] == {**LISTS, "resourceSubscriptions": ["a:b"]}
    second = bridge.acknowledge()
    assert bridge.take() == [{"jsonrpc": "2.0", "id": 1, "result": {}}]
    # Both are open for a while, and no change is lost or told twice.
    assert not ended(bridge)
    bridge.pushOn(first, "notifications/tools/list_changed")
    bridge.pushOn(second, "notifications/resources/list_changed")
    bridge.pushOn(first, "notifications/resources/list_changed")
    bridge.pushOn(second, "notifications/resources/updated", uri="a:b")
    told = ["resources/list_changed", "resources/updated"]
    assert [one["method"].split("/", 1)[1] for one in bridge.take()] == told
    assert bridge.observed.dropped == ["duplicate"]
    bridge.clock.advance(1)
    assert [one["method"] for one in bridge.take()] == ["notifications/tools/list_changed"]
    assert ended(bridge) == [named(bridge, first)]
    bridge.pushOn(first, "notifications/tools/list_changed")
    assert bridge.take() == []
    bridge.ask(2, "resources/subscribe", uri="a:b")
    assert bridge.take() == [{"jsonrpc": "2.0", "id": 2, "result": {}}]
    bridge.ask(3, "resources/unsubscribe", uri="a:b")
    assert bridge.take() == [{"jsonrpc": "2.0", "id": 3, "result": {}}]
    assert listens(bridge)[2:] == [LISTS]


def test_many_subscriptions_take_two_streams(bridge: Bridge) -> None:
    for id in range(50):
        bridge.ask(id, "resources/subscribe", uri=f"a:{id}")
    assert len(listens(bridge)) == 1
    bridge.acknowledge()
    bridge.acknowledge()
    assert [answer["id"] for answer in bridge.take()] == list(range(50))
    assert len(listens(bridge)) == 2
    assert len(listens(bridge)[1]["resourceSubscriptions"]) == 50


def test_what_is_about_to_be_left_out_is_not_granted_at_once(bridge: Bridge) -> None:
    bridge.ask(1, "resources/subscribe", uri="a:b")
    bridge.acknowledge()
    bridge.ask(2, "resources/unsubscribe", uri="a:b")
    bridge.ask(3, "resources/subscribe", uri="a:b")
    bridge.ask(4, "resources/subscribe", uri="a:b")
    assert [answer["id"] for answer in bridge.take()] == [1, 2]
    bridge.acknowledge()
    assert bridge.take() == []
    bridge.acknowledge()
    assert [answer["id"] for answer in bridge.take()] == [3, 4]


def test_a_stream_that_ends_while_another_opens_is_made_up_for(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    first = bridge.acknowledge()
    bridge.ask(1, "resources/subscribe", uri="a:b")
    end(bridge, first, "cut")
    assert bridge.take() == []
    bridge.acknowledge()
    told = bridge.take()
    assert told[0]["id"] == 1
    assert len(told) == 4
    bridge.clock.advance(100)
    assert len(listens(bridge)) == 2


def test_an_old_stream_that_ends_has_told_what_it_told(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    first = bridge.acknowledge()
    bridge.ask(1, "resources/subscribe", uri="a:b")
    bridge.acknowledge()
    bridge.pushOn(first, "notifications/tools/list_changed")
    assert len(bridge.take()) == 1
    end(bridge, first, "in order")
    # It may have ended before the server knew of the other one.
    assert [one["method"].split("/", 1)[1] for one in bridge.take()] == [
        "tools/list_changed",
        "tools/list_changed",
        "resources/list_changed",
        "resources/updated",
    ]
    bridge.clock.advance(100)
    assert len(listens(bridge)) == 2
    assert bridge.take() == []


def test_what_a_server_leaves_out_is_not_granted(bridge: Bridge) -> None:
    bridge.ask(1, "resources/subscribe", uri="a:1")
    bridge.acknowledge(resourceSubscriptions=[])
    assert bridge.take()[0]["error"]["code"] == -32602
    assert len(listens(bridge)) == 1
    bridge.ask(2, "resources/subscribe")
    assert bridge.take()[0]["error"]["code"] == -32602


def test_a_server_that_takes_a_resource_no_more_is_not_asked_for_it_over_and_over(
    bridge: Bridge,
) -> None:
    bridge.ask(1, "resources/subscribe", uri="a:1")
    bridge.acknowledge()
    bridge.ask(2, "resources/subscribe", uri="a:2")
    sent = bridge.acknowledge()
    end(bridge, sent, "cut")
    bridge.clock.advance(10)
    opened = len(listens(bridge))
    assert listens(bridge)[-1]["resourceSubscriptions"] == ["a:1", "a:2"]
    bridge.acknowledge(resourceSubscriptions=["a:1"])
    bridge.clock.advance(100)
    assert len(listens(bridge)) == opened
    # It may take it again.
    bridge.ask(3, "resources/subscribe", uri="a:2")
    assert listens(bridge)[-1]["resourceSubscriptions"] == ["a:1", "a:2"]
    bridge.acknowledge()
    assert bridge.take()[-1] == {"jsonrpc": "2.0", "id": 3, "result": {}}


def test_a_subscription_that_was_given_up_is_not_asked_for_over_and_over(bridge: Bridge) -> None:
    call = bridge.ask(1, "resources/subscribe", uri="a:1")
    bridge.cancel(call)
    bridge.acknowledge(resourceSubscriptions=[])
    bridge.clock.advance(100)
    assert len(listens(bridge)) == 1


def test_nor_has_it_others_refused(bridge: Bridge) -> None:
    """The server refuses streams with that resource, whatever else is asked for."""
    bridge.tell("notifications/initialized")
    bridge.acknowledge()
    call = bridge.ask(1, "resources/subscribe", uri="bad:1")
    assert listens(bridge)[-1]["resourceSubscriptions"] == ["bad:1"]
    bridge.cancel(call)
    bridge.inner.refuse(bridge.last, -32602, "bad uri")
    bridge.clock.advance(100)
    bridge.ask(2, "resources/subscribe", uri="a:2")
    assert listens(bridge)[-1]["resourceSubscriptions"] == ["a:2"]
    bridge.acknowledge()
    assert bridge.take()[0] == {"jsonrpc": "2.0", "id": 2, "result": {}}


def test_what_is_subscribed_to_stays_so_where_another_call_for_it_is_given_up(
    bridge: Bridge,
) -> None:
    first = bridge.ask(1, "resources/subscribe", uri="a:1")
    bridge.ask(2, "resources/subscribe", uri="a:1")
    bridge.cancel(first)
    bridge.acknowledge()
    assert bridge.take() == [{"jsonrpc": "2.0", "id": 2, "result": {}}]
    # The next is asked for together with another that is not there yet.
    bridge.ask(3, "resources/subscribe", uri="a:2")
    call = bridge.ask(4, "resources/subscribe", uri="a:1")
    bridge.cancel(call)
    bridge.acknowledge()
    bridge.clock.advance(100)
    assert listens(bridge)[-1]["resourceSubscriptions"] == ["a:1", "a:2"]


def test_the_oldest_of_too_many_subscriptions_goes(bridge: Bridge) -> None:
    bridge = Bridge(http=bridge.http, limits=Limits(max_subscriptions=1))
    bridge.ask(1, "resources/subscribe", uri="a:1")
    bridge.acknowledge()
    bridge.ask(2, "resources/subscribe", uri="a:2")
    bridge.acknowledge()
    assert listens(bridge)[-1]["resourceSubscriptions"] == ["a:2"]
    assert bridge.reached == ["max_subscriptions"]


def end(bridge: Bridge, sent: Any, how: str) -> None:
    if how == "in order":
        bridge.reply(sent, _meta={META + "subscriptionId": json.loads(sent.id)})
    elif how == "cancelled":
        bridge.push("notifications/cancelled", sent, requestId=json.loads(sent.id))
    else:
        bridge.inner.settle(sent, Reason.OUTCOME_UNKNOWN)


@pytest.mark.parametrize("how", ["in order", "cancelled", "cut"])
def test_a_stream_that_ends_is_opened_again_and_the_client_looks_anew(
    bridge: Bridge, how: str
) -> None:
    bridge.tell("notifications/initialized")
    bridge.ask(1, "resources/subscribe", uri="a:b")
    bridge.acknowledge()
    sent = bridge.acknowledge()
    bridge.clock.advance(2)
    bridge.take()
    end(bridge, sent, how)
    assert len(listens(bridge)) == 2
    bridge.clock.advance(0.7)
    assert len(listens(bridge)) == 3
    assert bridge.take() == []
    bridge.acknowledge()
    told = bridge.take()
    assert [one["method"].split("/", 1)[1] for one in told] == [
        "tools/list_changed",
        "resources/list_changed",
        "resources/updated",
    ]
    assert told[2]["params"] == {"uri": "a:b"}


def test_the_back_off_grows(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    for _ in range(3):
        end(bridge, bridge.inner.last("subscriptions/listen"), "cut")
        bridge.clock.advance(60)
    count = len(listens(bridge))
    end(bridge, bridge.inner.last("subscriptions/listen"), "cut")
    bridge.clock.advance(3)
    assert len(listens(bridge)) == count
    bridge.clock.advance(2)
    assert len(listens(bridge)) == count + 1


@pytest.mark.parametrize("settles", [False, True])
def test_a_server_that_does_not_know_how_to_listen_is_asked_no_more(
    bridge: Bridge, settles: bool
) -> None:
    bridge.tell("notifications/initialized")
    bridge.ask(1, "resources/subscribe", uri="a:b")
    sent = bridge.last
    if settles:
        body = message(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}')
        bridge.inner.settle(sent, Reason.BAD_ANSWER, "refused", status=404, body=body)
    else:
        bridge.inner.refuse(sent, -32601)
    assert bridge.take()[0]["error"]["code"] == -32601
    bridge.clock.advance(1000)
    bridge.ask(2, "resources/subscribe", uri="a:b")
    assert bridge.take()[0]["error"]["code"] == -32601
    assert len(listens(bridge)) == 1


def test_a_stream_that_is_refused_fails_the_subscription_it_was_for(bridge: Bridge) -> None:
    bridge.tell("notifications/initialized")
    bridge.acknowledge()
    bridge.ask(1, "resources/subscribe", uri="a:b")
    bridge.inner.refuse(bridge.last, -32602, "bad uri")
    assert bridge.take()[0]["error"] == {"code": -32602, "message": "bad uri"}
    bridge.clock.advance(0.7)
    assert len(listens(bridge)) == 2
    bridge.ask(2, "resources/subscribe", uri="a:c")
    bridge.inner.settle(bridge.last)
    assert bridge.take()[0]["error"]["code"] == -32603


def test_a_stream_that_is_never_acknowledged_is_given_up(bridge: Bridge) -> None:
    call = bridge.ask(1, "resources/subscribe", uri="a:b")
    sent = bridge.last
    bridge.clock.advance(60)
    assert bridge.reached == ["upstream_first_byte"]
    assert ended(bridge) == [named(bridge, sent)]
    assert bridge.take()[0]["error"]["code"] == -32603
    bridge.cancel(call)


def test_a_stream_for_which_there_is_no_room_is_opened_later(bridge: Bridge) -> None:
    bridge.inner.full = True
    bridge.tell("notifications/initialized")
    bridge.inner.full = False
    assert not listens(bridge)
    bridge.clock.advance(0.7)
    assert len(listens(bridge)) == 1


def test_nothing_to_listen_to_ends_the_stream(bridge: Bridge) -> None:
    discovered = {**DISCOVERED, "capabilities": {"resources": {"subscribe": True}}}
    bridge = Bridge(http=bridge.http, discovered=discovered)
    bridge.tell("notifications/initialized")
    assert not bridge.inner.sent
    bridge.ask(1, "resources/subscribe", uri="a:b")
    sent = bridge.acknowledge()
    bridge.ask(2, "resources/unsubscribe", uri="a:b")
    assert ended(bridge) == [named(bridge, sent)]
    bridge.ask(3, "resources/subscribe", uri="a:b")
    bridge.ask(4, "resources/unsubscribe", uri="a:b")
    bridge.acknowledge()
    assert len(ended(bridge)) == 2
    assert [answer["result"] for answer in bridge.take()] == [{}] * 4


def test_what_a_server_must_not_say_is_dropped(bridge: Bridge) -> None:
    bridge.inner.push(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    bridge.inner.push(b'{"jsonrpc":"2.0","id":77,"result":{}}')
    bridge.push("notifications/cancelled", requestId=1)
    meta = {META + "subscriptionId": 77}
    bridge.push("notifications/tools/list_changed", _meta=meta)
    assert bridge.take() == []
    dropped = ["unexpected_request", "unknown_id", "late_notification", "late_notification"]
    assert bridge.observed.dropped == dropped
