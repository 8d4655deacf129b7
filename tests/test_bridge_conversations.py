"""
Random conversations of a legacy client with a modern server, through the bridged link.

A plan says what each call does: what it tells and asks, and how it ends. A legacy server would
tell and ask just that on one request. Here a modern server does it in rounds, in any order among
calls; what the client sees of each call must be the plan.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field
from bridge_support import MODERN, Bridge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.bridge.asking import NotAskable, askedOf
from gateway.bridge.capabilities import greetingOf, initialized
from gateway.bridge.requests import refused, stamped
from gateway.bridge.results import asLegacy
from gateway.testing.scripted import Sent, message
from gateway.wire.envelope import Message, NotAMessage, NotJSON, decode
from gateway.wire.modern import OWN_META, withoutMetas
from gateway.wire.revisions import LEGACY

ASKED = {
    "elicitation/create": {
        "mode": "form",
        "message": "?",
        "requestedSchema": {"type": "object", "properties": {}},
    },
    "sampling/createMessage": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "\ud83d\ude00"}}],
        "maxTokens": 5,
    },
    "roots/list": None,
}
ANSWERS: dict[str, Any] = {
    "elicitation/create": {"action": "accept", "content": {"a": 1}},
    "sampling/createMessage": {
        "role": "assistant",
        "model": "m",
        "content": {"type": "text", "text": "t"},
    },
    "roots/list": {"roots": [{"uri": "file:///a"}]},
}

asks = st.lists(st.sampled_from(sorted(ASKED)), min_size=1, max_size=3)
rounds = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(asks, st.just([]))), min_size=0, max_size=3
)
endings = st.sampled_from(["result", "error", "refused"])
plans = st.lists(st.tuples(rounds, endings), min_size=1, max_size=4)


@define(eq=False)
class Running:
    """A call of a plan. step: the next thing to do; open: the client's open questions."""

    id: int
    call: object
    steps: list[tuple[str, Any]]
    expected: list[Any]
    seen: list[Any] = field(factory=list)
    open: list[dict[str, Any]] = field(factory=list)
    state: str | None = None
    given: dict[str, Any] | None = None
    told: int = 0


def steps(plan: Any) -> tuple[list[tuple[str, Any]], list[Any]]:
    """What the modern server does for a call, and what its legacy client must see of it."""
    rounds_, ending = plan
    does: list[tuple[str, Any]] = []
    sees: list[Any] = []
    for count, methods in rounds_:
        for _ in range(count):
            does.append(("progress", None))
            sees.append("progress")
        does.append(("ask", methods))
        sees += methods
    does.append(("end", ending))
    sees.append(ending)
    return does, sees


class World:
    """The client and the server at both ends of a bridge."""

    def __init__(self, bridge: Bridge, plans: Any) -> None:
        self.bridge = bridge
        self.calls: list[Running] = []
        for id, plan in enumerate(plans, 1):
            does, sees = steps(plan)
            call = bridge.ask(id, arguments={"n": id}, _meta={"progressToken": id})
            self.calls.append(Running(id, call, does, sees))

    def sentFor(self, running: Running) -> Sent:
        """The request of a call that the server works at."""
        own = [
            sent
            for sent in self.bridge.inner.of("tools/call")
            if self.bridge.params(sent)["arguments"]["n"] == running.id
        ]
        return own[-1]

    def hear(self) -> None:
        self.bridge.clock.advance(0)
        heard, self.bridge.heard = self.bridge.heard, []
        for one, origin in heard:
            if "method" not in one:
                running = self.calls[one["id"] - 1]
                kind = "result"
                if "error" in one:
                    kind = "refused" if one["error"]["code"] == -32002 else "error"
                running.seen.append(kind)
            elif one["method"] == "notifications/progress":
                running = self.calls[one["params"]["progressToken"] - 1]
                running.seen.append("progress")
                assert one["params"]["progress"] == len(running.seen)
            else:
                running = next(each for each in self.calls if each.call is origin)
                running.seen.append(one["method"])
                running.open.append(one)

    def work(self, running: Running) -> None:
        """The server does the next thing for a call, or the client answers a question."""
        bridge = self.bridge
        if running.open:
            question = running.open.pop()
            bridge.answer(question, ANSWERS[question["method"]])
        elif running.steps:
            self.serve(running)
        self.hear()

    def serve(self, running: Running) -> None:
        bridge, sent = self.bridge, self.sentFor(running)
        params = bridge.params(sent)
        assert params.get("requestState") == running.state
        assert params.get("inputResponses") == running.given
        what, how = running.steps.pop(0)
        if what == "progress":
            done = len(running.seen) + 1
            bridge.push("notifications/progress", sent, progressToken=running.id, progress=done)
        elif what == "ask":
            running.told += 1
            running.state = f"state {running.told}" if running.told % 2 or not how else None
            result: dict[str, Any] = {"resultType": "input_required"}
            if running.state is not None:
                result["requestState"] = running.state
            running.given = None
            if how:
                result["inputRequests"] = {
                    f"k{at}": {
                        "method": method,
                        **({"params": ASKED[method]} if ASKED[method] else {}),
                    }
                    for at, method in enumerate(how)
                }
                running.given = {f"k{at}": ANSWERS[method] for at, method in enumerate(how)}
            bridge.reply(sent, **result)
            bridge.clock.advance(3)
        elif how == "result":
            bridge.reply(sent, content=[{"type": "text", "text": str(running.id)}])
        else:
            bridge.inner.refuse(sent, -32002 if how == "refused" else -32603)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans, st.booleans(), st.sampled_from(["2025-11-25", "2025-06-18"]), st.data())
def test_a_conversation_is_that_with_a_legacy_server(
    plans: Any, http: bool, revision: str, data: st.DataObject
) -> None:
    bridge = Bridge(revision, http)
    world = World(bridge, plans)
    while True:
        busy = [running for running in world.calls if running.steps or running.open]
        if not busy:
            break
        world.work(data.draw(st.sampled_from(busy)))
    for running in world.calls:
        assert running.seen == running.expected
    ids = [sent.id for sent in bridge.inner.requests]
    assert len(set(ids)) == len(ids)
    assert not bridge.observed.events
    _leavesNothing(bridge)


def _leavesNothing(bridge: Bridge) -> None:
    conversation = bridge.link._conversation
    for held in (
        conversation._errands,
        conversation._named,
        conversation._rounds,
        conversation._questions,
        conversation._asked,
    ):
        assert not held


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans, st.booleans(), st.data())
def test_calls_that_are_given_up_leave_nothing_and_are_heard_of_no_more(
    plans: Any, http: bool, data: st.DataObject
) -> None:
    bridge = Bridge(http=http)
    world = World(bridge, plans)
    given: list[Running] = []
    while True:
        busy = [
            running
            for running in world.calls
            if (running.steps or running.open) and running not in given
        ]
        if not busy:
            break
        running = data.draw(st.sampled_from(busy))
        how = data.draw(st.sampled_from(["work", "work", "work", "refuse", "cancel", "give up"]))
        if how == "work":
            world.work(running)
            continue
        if how == "refuse" and running.open:
            question = running.open.pop()
            bridge.answer(question, error={"code": -1, "message": "no"})
            (failed,) = [one for one in bridge.take() if "error" in one]
            assert failed["id"] == running.id
            given.append(running)
            continue
        if how == "cancel":
            bridge.tell("notifications/cancelled", requestId=running.id)
        bridge.cancel(running.call)
        cancelled = [one["params"]["requestId"] for one in bridge.take()]
        assert sorted(cancelled) == sorted(question["id"] for question in running.open)
        given.append(running)
    bridge.clock.advance(100)
    assert bridge.take() == []
    _leavesNothing(bridge)


# The pure parts, with anything.

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "_meta", "resultType", "ttlMs", "content", "structuredContent", "tools", "type",
                "inputSchema", "outputSchema", "properties", "uri", "data", "code", "message",
                "requestedSchema", "oneOf", "messages", "mode",
                "io.modelcontextprotocol/serverInfo",
            ]
        )
        | st.text(max_size=3),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
METHODS = ["tools/call", "tools/list", "prompts/get", "resources/read", "x/y", "prompts/list"]


def spelled(value: Any) -> bytes:
    return json.dumps(value).encode()


def of(body: dict[str, Any]) -> Message | None:
    try:
        decoded = decode(spelled(body))
    except (NotAMessage, NotJSON):
        return None
    assert isinstance(decoded, Message)
    return decoded


@settings(max_examples=400, deadline=None)
@given(values, st.sampled_from(METHODS), st.sampled_from(LEGACY), st.booleans())
def test_any_result_becomes_one_and_one_of_the_legacy_era_stays(
    value: Any, method: str, revision: str, error: bool
) -> None:
    request = message(spelled({"jsonrpc": "2.0", "id": 1, "method": method}))
    answer = of({"jsonrpc": "2.0", "id": 1, "error" if error else "result": value})
    if answer is None:
        return
    legacy = asLegacy(request, answer, revision)
    assert decode(legacy.encode())
    assert asLegacy(request, legacy, revision).encode() == legacy.encode()
    if not error and isinstance(value, dict) and method == "x/y":
        kept = {key: each for key, each in value.items() if key not in ("resultType", "_meta")}
        after = json.loads(bytes(legacy.fields["result"]))
        assert {key: each for key, each in after.items() if key != "_meta"} == kept


@settings(max_examples=300, deadline=None)
@given(values, st.sampled_from(METHODS), st.sampled_from(LEGACY))
def test_any_request_is_stamped_and_keeps_what_it_says(
    params: Any, method: str, revision: str
) -> None:
    request = of({"jsonrpc": "2.0", "id": "é", "method": method, "params": params})
    if request is None:
        return
    greeting = greetingOf(spelled({"protocolVersion": revision, "capabilities": params}))
    if refused(request) is not None:
        return
    modern = stamped(request, greeting, b'"info"')
    assert modern.meta("io.modelcontextprotocol/protocolVersion") == spelled(MODERN)
    back = json.loads(withoutMetas(modern, OWN_META).encode())
    before = json.loads(request.encode())
    for one in (before, back):
        given = one.setdefault("params", {})
        if not isinstance(given.get("_meta"), dict) or not given["_meta"]:
            given.pop("_meta", None)
    assert back == before
    assert back["id"] == before["id"]


@settings(max_examples=300, deadline=None)
@given(values, st.sampled_from(LEGACY), st.sampled_from([*ASKED, "x"]))
def test_any_input_is_asked_for_or_refused(value: Any, revision: str, method: str) -> None:
    inputs = {"a": {"method": method, "params": value}, "b": value}
    for one in (spelled(inputs), spelled({"a": inputs["a"]}), spelled(value)):
        try:
            asked = askedOf(one, revision, lambda: "id")
        except NotAskable:
            continue
        for _, request in asked:
            assert decode(request.encode())


@settings(max_examples=200, deadline=None)
@given(values, st.sampled_from(LEGACY))
def test_any_discovery_is_answered(value: Any, revision: str) -> None:
    discovered = of({"jsonrpc": "2.0", "id": 1, "result": {"capabilities": value, "_meta": value}})
    assert discovered is not None
    answer = initialized(discovered, revision, "n")
    result = json.loads(answer.encode())["result"]
    assert result["protocolVersion"] == revision
    assert result["serverInfo"]["name"]
