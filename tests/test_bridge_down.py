"""What a legacy server says, as the modern era has it: the pure parts of the way down."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from pool_support import ALICE, BOB, modern
from schema_support import RESULTS, conforms

from gateway.bridge.asmodern import (
    asModern,
    discovered,
    helloFor,
    isServed,
    listenEnded,
    tagged,
    towardsServer,
)
from gateway.bridge.inputs import (
    Declared,
    Malformed,
    accepted,
    answerTo,
    declaredBy,
    inputRequest,
    inputRequired,
    responsesOf,
    urlRequests,
)
from gateway.bridge.states import Named, States, bindingOf, newCall
from gateway.testing.scripted import message
from gateway.wire.envelope import Message, members

MODERN, LEGACY = "2026-07-28", "2025-11-25"
PREFIX = "io.modelcontextprotocol/"

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
SPELLINGS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])


def response(result: bytes | None = None, error: bytes | None = None) -> Message:
    part = b'"result":%b' % result if result is not None else b'"error":%b' % (error or b"{}")
    return message(b'{"jsonrpc":"2.0","id":1,%b}' % part)


def request(method: str, params: dict[str, Any]) -> Message:
    whole = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return message(json.dumps(whole).encode())


# requestState.

CALLS = st.binary(min_size=8, max_size=8)
BINDINGS = st.binary(min_size=32, max_size=32)


@given(CALLS, st.integers(0, 2**32 - 1), BINDINGS, st.floats(0, 1e9))
def test_aStateOpensForWhatItIsBoundTo(call: bytes, round: int, binding: bytes, now: float) -> None:
    states = States()
    state = states.seal(Named(call, round), binding, now + 1)
    assert states.open(state, binding, now) == Named(call, round)
    assert states.open(state, binding, now + 2) is None
    assert states.open(state, bytes(32 * [1]) if binding[0] != 1 else bytes(32), now) is None
    assert States().open(state, binding, now) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_noBitOfAStateMayChange(place: int, change: int) -> None:
    states, binding = States(), bytes(32)
    state = states.seal(Named(newCall(), 1), binding, 100.0).encode()
    at = place % len(state)
    other = state[:at] + bytes([state[at] ^ change]) + state[at + 1 :]
    assert states.open(other.decode("latin-1"), binding, 0.0) is None


@given(st.text() | st.text("ABCabc-_019=", max_size=120))
def test_whatIsNoStateIsNone(state: str) -> None:
    assert States().open(state, bytes(32), 0.0) is None


@given(OBJECTS, OBJECTS, st.permutations(range(4)))
def test_theBindingIsOfTheSalientParamsInAnyOrder(
    params: dict[str, Any], meta: dict[str, Any], order: list[int]
) -> None:
    items = list(params.items())
    shuffled = dict([items[at] for at in order if at < len(items)])
    retry = {**shuffled, "_meta": meta, "inputResponses": {}, "requestState": "x"}
    for name in ("_meta", "inputResponses", "requestState", "task"):
        params.pop(name, None)
    first = bindingOf(ALICE, "", "s", request("tools/call", {**params, "_meta": {}}))
    assert first == bindingOf(ALICE, "", "s", request("tools/call", retry))
    more = {**params, "more": 1} if params.get("more") != 1 else {**params, "more": 2}
    for other in (
        bindingOf(BOB, "", "s", request("tools/call", params)),
        bindingOf(ALICE, "c", "s", request("tools/call", params)),
        bindingOf(ALICE, "", "t", request("tools/call", params)),
        bindingOf(ALICE, "", "s", request("prompts/get", params)),
        bindingOf(ALICE, "", "s", request("tools/call", more)),
    ):
        assert other != first


def test_partsOfABindingDoNotRunTogether() -> None:
    one = request("tools/call", {"ab": "c"})
    assert bindingOf(ALICE, "ab", "c", one) != bindingOf(ALICE, "a", "bc", one)


# Requests.


@given(OBJECTS, OBJECTS, SPELLINGS)
def test_aRequestLosesWhatOnlyTheModernEraHas(
    params: dict[str, Any], meta: dict[str, Any], spelling: tuple[str, str]
) -> None:
    params = {name: value for name, value in params.items() if name != "_meta"}
    own = {
        PREFIX + "protocolVersion": "2026-07-28",
        PREFIX + "clientCapabilities": {},
        PREFIX + "logLevel": "info",
    }
    whole = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {**params, "inputResponses": {}, "requestState": "x", "_meta": {**meta, **own}},
    }
    sent = towardsServer(message(json.dumps(whole, separators=spelling).encode()))
    left = {key: value for key, value in params.items() if key != "task"}
    for name in ("inputResponses", "requestState"):
        left.pop(name, None)
    got = json.loads(sent.encode())["params"]
    assert got.pop("_meta", {}) == {key: value for key, value in meta.items() if key not in own}
    assert got == left
    for name, value in left.items():
        spelled = members(sent.fields["params"])[name]
        assert bytes(spelled) == json.dumps(value, separators=spelling).encode()


def test_numbersStayAsSpelled() -> None:
    spelled = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":1.0,"b":1e0,"_meta":{"t":2.0}}}'
    assert towardsServer(message(spelled)).encode() == spelled


@pytest.mark.parametrize("method", ["tools/list", "vendor/x", "completion/complete", "task"])
def test_otherMethodsAreServed(method: str) -> None:
    assert isServed(method)


@given(st.none() | VALUES, st.booleans(), st.booleans(), st.booleans())
def test_aHandshakeIsOneOfTheLegacyEra(
    info: Any, elicitation: bool, sampling: bool, roots: bool
) -> None:
    caps: dict[str, Any] = {"experimental": {"x": {}}, "extensions": {"a.b/c": {}}}
    if elicitation:
        caps["elicitation"] = {"url": {}}
    if sampling:
        caps["sampling"] = {"tools": {}, "context": {}}
    if roots:
        caps["roots"] = {"listChanged": True}
    asked = modern(caps=caps).withMeta(PREFIX + "clientInfo", json.dumps(info).encode())
    hello = json.loads(helloFor(asked, declaredBy(asked)))
    conforms(hello, LEGACY, "InitializeRequestParams")
    assert set(hello["capabilities"]) <= {"elicitation", "sampling", "roots"}
    assert hello["capabilities"].get("roots", {"listChanged": False}) == {"listChanged": False}


@pytest.mark.parametrize("more", ['"icons":5', '"title":null', '"websiteUrl":[]', '"x":1e999'])
def test_aHandshakeIsRefusedForNothingThatItsClientSaysOfItself(more: str) -> None:
    info = f'{{"name":"\\u00e9","version":"1",{more}}}'
    asked = modern().withMeta(PREFIX + "clientInfo", info.encode())
    hello = members(members(Raw(helloFor(asked, declaredBy(asked))))["clientInfo"])
    assert {name: bytes(value) for name, value in hello.items()} == {
        "name": b'"\\u00e9"',
        "version": b'"1"',
    }


def test_aNameOfAnyLengthIsNoName() -> None:
    for length, kept in ((1000, True), (1100, False)):
        info = {"name": "n" * length, "version": "1"}
        asked = modern().withMeta(PREFIX + "clientInfo", json.dumps(info).encode())
        said = json.loads(helloFor(asked, declaredBy(asked)))["clientInfo"]
        assert (said == info) is kept and (said["name"] == "mcp-gateway") is not kept


# Results and errors.

INFO = b'{"name":"s","version":"1.0"}'
PLAIN = {
    "tools/list": {"tools": []},
    "tools/call": {"content": []},
    "resources/list": {"resources": []},
    "resources/templates/list": {"resourceTemplates": []},
    "resources/read": {"contents": []},
    "prompts/list": {"prompts": []},
    "prompts/get": {"messages": []},
    "completion/complete": {"completion": {"values": []}},
}


@given(st.sampled_from(sorted(PLAIN)), OBJECTS, OBJECTS, SPELLINGS)
def test_aResultIsWholeAndOtherwiseTheServers(
    method: str, more: dict[str, Any], meta: dict[str, Any], spelling: tuple[str, str]
) -> None:
    result = {**more, **PLAIN[method], "_meta": meta, "resultType": "task"}
    result.pop("nextCursor", None)
    spelled = json.dumps(result, separators=spelling).encode()
    said = asModern(response(spelled), method, INFO, Declared())
    whole = json.loads(said.encode())["result"]
    conforms(whole, MODERN, RESULTS[method])
    assert whole.pop("resultType") == "complete"
    for name in ("ttlMs", "cacheScope"):
        if name in whole and name not in result:
            whole.pop(name)
    assert whole.pop("_meta") == {PREFIX + "serverInfo": json.loads(INFO), **meta}
    for name in whole:
        value = json.dumps(result[name], separators=spelling).encode()
        assert bytes(members(said.fields["result"])[name]) == value


def test_aServersOwnWordOfItselfStays() -> None:
    result = (
        b'{"content":[],"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"x","version":"1"}}}'
    )
    said = asModern(response(result), "tools/call", INFO, Declared())
    assert json.loads(said.encode())["result"]["_meta"][PREFIX + "serverInfo"]["name"] == "x"


@given(
    st.integers(-32100, -31990) | st.integers(),
    st.none() | VALUES,
    st.sampled_from(["tools/call", "tools/list"]),
    st.booleans(),
)
def test_noCodeMeansWhatTheServerDidNotMean(
    code: int, data: Any, method: str, hasURL: bool
) -> None:
    error: dict[str, Any] = {"code": code, "message": "m"}
    if data is not None:
        error["data"] = data
    declared = Declared(elicitation=("url",)) if hasURL else Declared()
    said = json.loads(
        asModern(response(error=json.dumps(error).encode()), method, INFO, declared).encode()
    )
    conforms(said, MODERN, "JSONRPCErrorResponse")
    got = said["error"]
    assert got["message"] == "m"
    if code == -32002:
        assert got == {**error, "code": -32602}
    elif -32099 <= code <= -32020:
        assert got["code"] == -32603 and got["data"]["code"] == code
        assert got["data"].get("data") == data
    else:
        assert got == error


@given(OBJECTS, st.booleans(), st.booleans())
def test_whatIsNoErrorAtAllIsOneAllTheSame(more: dict[str, Any], code: bool, why: bool) -> None:
    error = {**more, **({"code": 1.5} if code else {}), **({"message": 7} if why else {})}
    error.pop("code" if not code else "", None)
    said = asModern(response(error=json.dumps(error).encode()), "tools/call", None, Declared())
    conforms(json.loads(said.encode()), MODERN, "JSONRPCErrorResponse")


@given(VALUES.filter(lambda value: not isinstance(value, dict)))
def test_whatIsNoResultIsAnError(value: Any) -> None:
    said = asModern(response(json.dumps(value).encode()), "tools/call", INFO, Declared())
    conforms(json.loads(said.encode()), MODERN, "JSONRPCErrorResponse")


def test_elicitationsThatAreNoneOfAURL() -> None:
    error = b'{"code":-32042,"message":"m","data":{"elicitations":[1,{"mode":"form"}]}}'
    assert urlRequests(Raw(error)) == []
    said = asModern(response(error=error), "tools/call", None, Declared(elicitation=("url",)))
    assert json.loads(said.encode())["error"]["code"] == -32603


@given(OBJECTS, st.none() | VALUES, st.none() | VALUES)
def test_whatIsDiscovered(capabilities: dict[str, Any], info: Any, instructions: Any) -> None:
    for name in ("tools", "prompts", "resources", "logging", "completions"):
        capabilities.pop(name, None)
    for name in ("experimental", "extensions"):
        capabilities.pop(name, None)
    result: dict[str, Raw] = {"capabilities": Raw(json.dumps(capabilities).encode())}
    if instructions is not None:
        result["instructions"] = Raw(json.dumps(instructions).encode())
    if info is not None:
        info = {"name": "s", "version": "1", "more": info}
        result["serverInfo"] = Raw(json.dumps(info).encode())
    said = json.loads(discovered(b'"x"', result).encode())
    conforms(said["result"], MODERN, "DiscoverResult")
    assert said["id"] == "x"
    capabilities.pop("tasks", None)
    assert said["result"]["capabilities"] == capabilities
    assert said["result"].get("_meta", {}).get(PREFIX + "serverInfo") == info


# Questions and answers.


@given(OBJECTS, OBJECTS, SPELLINGS)
def test_aQuestionStaysAsItIs(
    params: dict[str, Any], meta: dict[str, Any], spelling: tuple[str, str]
) -> None:
    spelled = {**params, "elicitationId": "i", "task": {}, "_meta": {**meta, "progressToken": 1}}
    whole = {"jsonrpc": "2.0", "id": 5, "method": "elicitation/create", "params": spelled}
    question = message(json.dumps(whole, separators=spelling).encode())
    asked = json.loads(inputRequest(question))
    assert set(asked) == {"method", "params"}
    left = {key: value for key, value in params.items() if key not in ("elicitationId", "task")}
    left.pop("_meta", None)
    meta.pop("progressToken", None)
    if meta:
        left["_meta"] = meta
    assert asked["params"] == left


def test_anInputRequiredResult() -> None:
    roots = message(b'{"jsonrpc":"2.0","id":5,"method":"roots/list"}')
    said = json.loads(inputRequired(b"1", [("q1", inputRequest(roots))], "state", None).encode())
    conforms(said["result"], MODERN, "InputRequiredResult")
    assert said["result"]["inputRequests"] == {"q1": {"method": "roots/list"}}
    assert said["result"]["requestState"] == "state"


@given(st.dictionaries(NAMES, OBJECTS, max_size=3))
def test_responsesAreTakenAsSpelled(given: dict[str, Any]) -> None:
    asked = modern(params={"inputResponses": given})
    taken = responsesOf(asked)
    assert taken is not None and taken.keys() == given.keys()
    question = message(b'{"jsonrpc":"2.0","id":"e","method":"roots/list"}')
    for key, value in taken.items():
        assert value == json.dumps(given[key]).encode()
        assert json.loads(answerTo(question, value).encode())["result"] == given[key]


@given(VALUES)
def test_responsesThatAreNone(given: Any) -> None:
    well = isinstance(given, dict) and all(isinstance(one, dict) for one in given.values())
    asked = modern(params={"inputResponses": given})
    if well:
        assert responsesOf(asked) is not None
    else:
        with pytest.raises(Malformed):
            responsesOf(asked)
    assert responsesOf(modern()) is None


@given(
    st.fixed_dictionaries({}, optional={"elicitation": VALUES, "sampling": VALUES, "roots": VALUES})
)
def test_whatIsDeclaredIsComparedByWhatItLetsAServerAsk(caps: dict[str, Any]) -> None:
    declared = declaredBy(modern(caps=caps))
    assert declared == declaredBy(modern(caps={**caps, "experimental": {}}))
    for name, method in (
        ("elicitation", "elicitation/create"),
        ("sampling", "sampling/createMessage"),
        ("roots", "roots/list"),
    ):
        refusal = declared.refusal(request(method, {}))
        if not isinstance(caps.get(name), dict):
            assert refusal is not None and refusal.code == -32601
    unknown = declared.refusal(request("tasks/get", {}))
    assert unknown is not None and unknown.code == -32601
    assert declared.asks == any(isinstance(value, dict) for value in caps.values())


def test_whichAnswersLetACallGoOn() -> None:
    assert accepted(b'{"action":"accept"}') and accepted(b'{"roots":[]}')
    assert not accepted(b'{"action":"decline"}') and not accepted(b'{"action":1}')


def test_whatGoesOutOnAListensStream() -> None:
    changed = message(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
    assert json.loads(tagged(changed, b'"L"').encode())["params"] == {
        "_meta": {PREFIX + "subscriptionId": "L"}
    }
    ended = json.loads(listenEnded(b"7", INFO).encode())
    conforms(ended["result"], MODERN, "SubscriptionsListenResult")


def test_halfASurrogatePairAmongTheURLsToVisit() -> None:
    error = (
        b'{"code":-32042,"message":"visit","data":{"elicitations":'
        b'["\\ud800",{"mode":"url","message":"\\ud800","url":"u:v","elicitationId":"\\udfff"}]}}'
    )
    (named,) = urlRequests(Raw(error))
    assert named == (
        "url-1",
        b'{"method":"elicitation/create","params":{"mode":"url","message":"\\ud800","url":"u:v"}}',
    )
