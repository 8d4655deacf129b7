"""The header fields of modern requests: values, annotations of tools, requests against them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mcp.shared import inbound

from gateway.wire.annotations import (
    MAX_ANNOTATIONS,
    MAX_PATH,
    MAX_SCHEMA,
    InvalidTool,
    ToolList,
    judgeTools,
)
from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import Message, decode
from gateway.wire.exchange import RequestHead
from gateway.wire.headers import isFieldValue
from gateway.wire.mcp_headers import MAX_SAFE_INTEGER, ToolHeaders, decodeValue, encodeValue
from gateway.wire.revisions import VERSION_CLAIM

ROOM = 1024 * 1024


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}


def annotated(header: Any, type: Any = "string") -> dict[str, Any]:
    return {"type": type, "x-mcp-header": header}


def listed(*tools: Any, **more: Any) -> bytes:
    return json.dumps({"tools": tools, **more}).encode()


def message(method: str, params: Any = None, version: str | None = "2026-07-28") -> Message:
    params = dict(params or {})
    if version is not None:
        params["_meta"] = {VERSION_CLAIM: version}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    decoded = decode(json.dumps(body).encode())
    assert isinstance(decoded, Message)
    return decoded


def call(name: Any, arguments: Any = None, **more: Any) -> Message:
    return message("tools/call", {"name": name, "arguments": arguments, **more})


def spelledCall(arguments: str) -> Message:
    """A call of `t` whose arguments are spelled as given."""
    body = (
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":'
        + arguments
        + ',"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}'
    )
    decoded = decode(body.encode())
    assert isinstance(decoded, Message)
    return decoded


def head(*pairs: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead(b"POST", b"/mcp", b"", pairs)


def knowing(*tools: Any) -> ToolHeaders:
    headers = ToolHeaders(ROOM)
    assert headers.learn(listed(*tools), first=True).invalid == ()
    return headers


def params(pairs: HeaderPairs) -> dict[bytes, bytes]:
    return {name: value for name, value in pairs if name.startswith(b"mcp-param-")}


# values


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        # the specification's own examples
        ("us-west1", b"us-west1"),
        ("Hello, 世界", b"=?base64?SGVsbG8sIOS4lueVjA==?="),
        (" padded ", b"=?base64?IHBhZGRlZCA=?="),
        ("line1\nline2", b"=?base64?bGluZTEKbGluZTI=?="),
        ("=?base64?literal?=", b"=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        # ours
        ("", b""),
        ("a b", b"a b"),
        ("a\tb", b"=?base64?YQli?="),
        ("\x7f", b"=?base64?fw==?="),
        ("=?base64?=", b"=?base64?PT9iYXNlNjQ/PQ==?="),
        ("=?BASE64?x?=", b"=?BASE64?x?="),
        ("=?base64?x", b"=?base64?x"),
    ],
)
def test_values_are_encoded_where_they_must_be(value: str, encoded: bytes) -> None:
    assert encodeValue(value) == encoded
    assert decodeValue(encoded) == value


@given(st.text())
@example("\U0001f600")
def test_what_is_encoded_is_decoded(value: str) -> None:
    encoded = encodeValue(value)
    assert isFieldValue(encoded) and encoded == encoded.strip() and encoded.isascii()
    assert decodeValue(encoded) == value


@given(st.binary())
def test_decoding_raises_nothing_and_takes_one_spelling(value: bytes) -> None:
    said = decodeValue(value)
    if said is not None and value.startswith(b"=?base64?") and value.endswith(b"?="):
        assert base64.b64encode(said.encode()) == value[9:-2]


@pytest.mark.parametrize(
    "value",
    [
        b"\xc3\xa9",
        b"a\x00",
        b"a\x7f",
        b"=?base64?=",
        b"=?base64?YQ?=",  # no padding
        b"=?base64?YR==?=",  # bits that say nothing
        b"=?base64?Y Q==?=",
        b"=?base64?_-8=?=",  # the other alphabet
        b"=?base64?/w==?=",  # not UTF-8
        b"=?base64?7aCA?=",  # half a surrogate pair
        b"=?base64?YQ==\n?=",
    ],
)
def test_malformed_values(value: bytes) -> None:
    assert decodeValue(value) is None


def test_half_a_surrogate_pair_is_no_value() -> None:
    with pytest.raises(ValueError):
        encodeValue("\ud800")


# annotations


@pytest.mark.parametrize("kind", ["string", "integer", "boolean"])
def test_valid_annotations(kind: str) -> None:
    judged = judgeTools(listed(tool("t", a=annotated("A-b.c_1", kind)), tool("u")))
    assert judged.invalid == ()
    (annotation,) = judged.annotations["t"]
    assert annotation.field == b"mcp-param-a-b.c_1" and annotation.path == ("a",)
    assert judged.names == {"u"}


def nested(depth: int) -> dict[str, Any]:
    schema = annotated("Deep")
    for _ in range(depth - 1):
        schema = {"type": "object", "properties": {"n": schema}}
    return schema


def test_nested_properties_are_reachable() -> None:
    (annotation,) = judgeTools(listed(tool("t", n=nested(3)))).annotations["t"]
    assert annotation.path == ("n", "n", "n")
    assert judgeTools(listed(tool("t", n=nested(MAX_PATH)))).invalid == ()
    assert judgeTools(listed(tool("t", n=nested(MAX_PATH + 1)))).invalid
    assert judgeTools(listed(tool("t", n=nested(100)))).invalid


def schemaWith(keyword: str, value: Any) -> dict[str, Any]:
    return {"name": "t", "inputSchema": {"type": "object", keyword: value}}


HERE = annotated("Here")

INVALID = [
    tool("t", a=annotated("")),
    tool("t", a=annotated("a b")),
    tool("t", a=annotated("a:")),
    tool("t", a=annotated("a\r\n")),
    tool("t", a=annotated("é")),
    tool("t", a=annotated(1)),
    tool("t", a=annotated(None)),
    tool("t", a=annotated({"type": "string"})),
    tool("t", a=annotated("A"), b=annotated("a")),
    tool("t", a=annotated("A"), b=annotated("A")),
    tool("t", a=annotated("A", "number")),
    tool("t", a=annotated("A", "object")),
    tool("t", a=annotated("A", "array")),
    tool("t", a=annotated("A", "null")),
    tool("t", a=annotated("A", ["string", "null"])),
    tool("t", a={"x-mcp-header": "A"}),
    {"name": "t", "inputSchema": {"type": "object", "x-mcp-header": "Root"}},
    {"name": "t", "inputSchema": {"type": "string", "x-mcp-header": "Root"}},
    tool("t", **{f"p{n}": annotated(f"H{n}") for n in range(MAX_ANNOTATIONS + 1)}),
    tool("t", a=annotated("A"), b={"description": "x" * MAX_SCHEMA}),
    schemaWith("oneOf", [HERE]),
    schemaWith("anyOf", [{"properties": {"a": HERE}}]),
    schemaWith("allOf", [{}, HERE]),
    schemaWith("not", HERE),
    schemaWith("if", {"properties": {"a": HERE}}),
    schemaWith("then", {"properties": {"a": HERE}}),
    schemaWith("else", {"properties": {"a": HERE}}),
    schemaWith("items", HERE),
    schemaWith("items", [HERE]),
    schemaWith("prefixItems", [HERE]),
    schemaWith("contains", HERE),
    schemaWith("$defs", {"d": HERE}),
    schemaWith("definitions", {"d": HERE}),
    schemaWith("patternProperties", {"d": HERE}),
    schemaWith("dependentSchemas", {"d": HERE}),
    schemaWith("dependencies", {"d": HERE}),
    schemaWith("additionalProperties", HERE),
    schemaWith("additionalItems", HERE),
    schemaWith("propertyNames", HERE),
    schemaWith("unevaluatedProperties", HERE),
    schemaWith("unevaluatedItems", HERE),
    schemaWith("contentSchema", HERE),
    schemaWith("properties", {"a": {"items": {"properties": {"b": HERE}}}}),
    schemaWith("properties", {"a": {"type": "array", "items": HERE}}),
]


@pytest.mark.parametrize("broken", INVALID)
def test_invalid_tools_are_left_out(broken: dict[str, Any]) -> None:
    result = (
        b'{"x": 1.0, "tools": [ {"name":"one", "n": 1.50},'
        + json.dumps(broken).encode()
        + b'  ,{"name":"two","s":"\\ud800"} ],"nextCursor":"","tTlMs":1e3}'
    )
    judged = judgeTools(result)
    assert [invalid.name for invalid in judged.invalid] == ["t"]
    assert judged.invalid[0].why
    assert judged.valid == (
        b'{"x":1.0,"tools":[{"name":"one", "n": 1.50},{"name":"two","s":"\\ud800"}],'
        b'"nextCursor":"","tTlMs":1e3}'
    )
    assert "t" not in judged.annotations and "t" not in judged.names


@pytest.mark.parametrize(
    "schema",
    [
        schemaWith("default", HERE),
        schemaWith("enum", [HERE]),
        schemaWith("const", HERE),
        schemaWith("examples", [HERE]),
        schemaWith("description", "x-mcp-header"),
        schemaWith("properties", {"x-mcp-header": {"type": "object"}}),
        schemaWith("properties", {"x-mcp-header": HERE}),
        schemaWith("properties", [HERE]),
        schemaWith("$ref", "#/x"),
        {"name": "t"},
        {"name": "t", "inputSchema": True},
        {"name": 5},
        "no tool",
        None,
    ],
)
def test_what_is_no_annotation_makes_no_tool_invalid(schema: Any) -> None:
    result = listed(schema)
    judged = judgeTools(result)
    assert judged.invalid == () and judged.valid is result


def test_an_escape_hides_no_annotation() -> None:
    schema = json.dumps(tool("t", a=annotated("A", "number")))
    assert judgeTools(b'{"tools":[%b]}' % schema.encode()).invalid
    hidden = schema.replace("x-mcp-header", "x\\u002dmcp-header")
    assert judgeTools(b'{"tools":[%b]}' % hidden.encode()).invalid


def test_half_surrogate_pairs_do_no_harm() -> None:
    schema = json.dumps(tool("t", a=annotated("A"))).replace('"type": "object"', '"d":"\\ud800"')
    judged = judgeTools(b'{"tools":[%b]}' % schema.encode())
    assert judged.invalid == () and judged.annotations["t"]
    schema = json.dumps(tool("t", a=annotated("\ud800")))
    assert judgeTools(b'{"tools":[%b]}' % schema.encode()).invalid


@pytest.mark.parametrize("result", [b"{}", b'{"tools":null}', b'{"tools":{}}', b"[]", b"1", b""])
def test_what_is_no_list_has_no_tools(result: bytes) -> None:
    assert judgeTools(result) == ToolList(result, (), {}, frozenset(), more=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["x-mcp-header", "properties", "items", "type", "allOf", "$defs"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_any_list_is_judged_and_what_is_valid_stays(tools: list[Any]) -> None:
    result = listed(*tools)
    judged = judgeTools(result)
    kept = json.loads(judged.valid)["tools"]
    assert len(kept) + len(judged.invalid) == len(tools)
    again = judgeTools(judged.valid)
    assert again.valid is judged.valid and again.invalid == ()


# what is held


def test_a_list_replaces_and_a_page_adds() -> None:
    headers = ToolHeaders(ROOM)
    headers.learn(listed(tool("a", p=annotated("P"))), first=True)
    headers.learn(listed(tool("b", p=annotated("P")), nextCursor="1"), first=True)
    headers.learn(listed(tool("c", p=annotated("P")), nextCursor=""), first=False)

    def held(name: str) -> bool:
        return bool(params(headers.fieldsFor(call(name, {"p": "v"}))))

    # Until the list has ended, nobody knows that a tool is gone.
    assert held("a") and held("b") and held("c")
    headers.learn(listed(tool("d", p=annotated("P"))), first=False)
    assert not held("a") and held("b") and held("c") and held("d")
    headers.learn(listed(tool("b"), tool("c", p=annotated("P", "number"))), first=False)
    assert not held("b") and not held("c") and held("d")
    headers.learn(listed(tool("e", p=annotated("P"))), first=True)
    assert not held("d") and held("e")
    headers.forget()
    assert not held("e")


def test_what_is_held_is_bounded() -> None:
    headers = ToolHeaders(2000)
    many = [tool(f"t{n}", p=annotated("P")) for n in range(100)]
    headers.learn(listed(*many), first=True)
    assert headers.full
    assert params(headers.fieldsFor(call("t0", {"p": "v"})))
    assert not params(headers.fieldsFor(call("t99", {"p": "v"})))
    assert (
        headers.disagreement(head(*headers.fieldsFor(call("t99", {"p": "v"}))), call("t99")) is None
    )
    headers.learn(listed(*many[-3:]), first=True)
    assert not headers.full
    assert params(headers.fieldsFor(call("t99", {"p": "v"})))
    for _ in range(50):
        headers.learn(listed(*many[-3:]), first=False)
    assert not headers.full


def test_invalid_tools_are_told() -> None:
    headers = ToolHeaders(ROOM)
    judged = headers.learn(listed(tool("t", a=annotated("A", "number"))), first=True)
    why = "x-mcp-header on a property that is no integer, string or boolean"
    assert judged.invalid == (InvalidTool("t", why),)


# requests


def test_the_standard_fields() -> None:
    headers = ToolHeaders(ROOM)
    version = (b"mcp-protocol-version", b"2026-07-28")
    assert headers.fieldsFor(message("tools/list")) == (version, (b"mcp-method", b"tools/list"))
    assert headers.fieldsFor(call("get_weather")) == (
        version,
        (b"mcp-method", b"tools/call"),
        (b"mcp-name", b"get_weather"),
    )
    assert headers.fieldsFor(message("resources/read", {"uri": "file:///é", "name": "n"})) == (
        version,
        (b"mcp-method", b"resources/read"),
        (b"mcp-name", encodeValue("file:///é")),
    )
    prompt = message("prompts/get", {"name": " p"})
    assert headers.fieldsFor(prompt)[2] == (b"mcp-name", encodeValue(" p"))


@pytest.mark.parametrize("name", [None, 5, {}, "\ud800", True])
def test_a_name_that_is_none_has_no_field(name: Any) -> None:
    headers = ToolHeaders(ROOM)
    names = [name for name, _ in headers.fieldsFor(call(name))]
    assert names == [b"mcp-protocol-version", b"mcp-method"]


@pytest.mark.parametrize("method", ["a\r\nx: y", "é", " a", ""])
def test_a_method_that_cannot_stand_in_a_field_has_none(method: str) -> None:
    assert ToolHeaders(ROOM).fieldsFor(message(method)) == (
        (b"mcp-protocol-version", b"2026-07-28"),
    )


WEATHER = tool(
    "t",
    s=annotated("S"),
    i=annotated("I", "integer"),
    b=annotated("B", "boolean"),
    o={"type": "object", "properties": {"deep": annotated("Deep"), "more": annotated("More")}},
    free={"type": "string"},
)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ("{}", {}),
        ("[]", {}),
        ("null", {}),
        ('{"s":null,"i":null,"b":null,"o":null}', {}),
        ('{"s":"v","free":"x"}', {b"s": b"v"}),
        ('{"s":"caf\\u00e9"}', {b"s": encodeValue("café")}),
        ('{"s":"\\ud83d\\ude00"}', {b"s": encodeValue("\U0001f600")}),
        ('{"s":"\\ud800","i":1}', {b"i": b"1"}),
        ('{"s":""}', {b"s": b""}),
        ('{"i":42}', {b"i": b"42"}),
        ('{"i":-7}', {b"i": b"-7"}),
        ('{"i":42.0}', {b"i": b"42"}),
        ('{"i":4.2e1}', {b"i": b"42"}),
        ('{"i":-0}', {b"i": b"0"}),
        ('{"i":9007199254740991}', {b"i": b"9007199254740991"}),
        ('{"i":9007199254740993}', {b"i": b"9007199254740993"}),
        ('{"i":1e999999999}', {b"i": b"1e999999999"}),
        ('{"i":1.5}', {b"i": b"1.5"}),
        ('{"b":true}', {b"b": b"true"}),
        ('{"b":false}', {b"b": b"false"}),
        ('{"o":{"deep":"d"}}', {b"deep": b"d"}),
        ('{"o":{"deep":"d","more":"m"}}', {b"deep": b"d", b"more": b"m"}),
        ('{"o":[{"deep":"d"}]}', {}),
        ('{"deep":"d"}', {}),
        ('{"s":{"x":1},"i":[1]}', {}),
        ('{"s":5}', {b"s": b"5"}),
        ('{"s":"a","s":"b"}', {b"s": b"b"}),
    ],
)
def test_parameters_go_in_fields(arguments: str, fields: dict[bytes, bytes]) -> None:
    headers = knowing(WEATHER)
    request = spelledCall(arguments)
    written = headers.fieldsFor(request)
    assert params(written) == {b"mcp-param-" + name: value for name, value in fields.items()}
    assert headers.disagreement(head(*written), request) is None


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.text(),
    st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.text(), st.dictionaries(st.sampled_from(["s", "i", "b"]), VALUES))
def test_what_we_write_agrees(name: str, arguments: dict[str, Any]) -> None:
    known = json.loads(json.dumps(WEATHER))
    known["name"] = name
    headers = knowing(known)
    request = call(name, arguments)
    written = headers.fieldsFor(request)
    assert headers.disagreement(head(*written), request) is None
    assert {key for key, value in arguments.items() if value is not None} == {
        field.removeprefix(b"mcp-param-").decode() for field in params(written)
    }
    for left in range(len(written)):
        missing = written[:left] + written[left + 1 :]
        assert headers.disagreement(head(*missing), request) is not None
        twice = (*written, written[left])
        assert headers.disagreement(head(*twice), request) is not None


GOOD = (
    (b"mcp-protocol-version", b"2026-07-28"),
    (b"mcp-method", b"tools/call"),
    (b"mcp-name", b"t"),
)


def without(name: bytes) -> HeaderPairs:
    return tuple(pair for pair in GOOD if pair[0] != name)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (without(b"mcp-protocol-version"), "MCP-Protocol-Version is missing"),
        (without(b"mcp-method"), "Mcp-Method is missing"),
        (without(b"mcp-name"), "Mcp-Name is missing"),
        ((*GOOD, (b"mcp-name", b"t")), "Mcp-Name is given more than once"),
        (
            (*without(b"mcp-method"), (b"mcp-method", b"Tools/call")),
            "Mcp-Method is not what the body says",
        ),
        (
            (*without(b"mcp-method"), (b"mcp-method", encodeValue(" tools/call"))),
            "Mcp-Method is not what the body says",
        ),
        (
            (*without(b"mcp-method"), (b"mcp-method", b"tools/c\xe9ll")),
            "Mcp-Method is malformed",
        ),
        (
            (*without(b"mcp-protocol-version"), (b"mcp-protocol-version", b"2025-11-25")),
            "MCP-Protocol-Version is not what the body says",
        ),
        ((*without(b"mcp-name"), (b"mcp-name", b"T")), "Mcp-Name is not what the body says"),
        ((*without(b"mcp-name"), (b"mcp-name", b"=?base64?dA?=")), "Mcp-Name is malformed"),
        ((*without(b"mcp-name"), (b"mcp-name", b"=?base64?dA==?=")), None),
        ((*without(b"mcp-name"), (b"mcp-name", b" t\t")), None),
        ((*GOOD, (b"mcp-param-s", b"v")), "Mcp-Param-S says what the body does not"),
        ((*GOOD, (b"mcp-param-unknown", b"v")), None),
    ],
)
def test_fields_against_the_body(fields: HeaderPairs, why: str | None) -> None:
    assert knowing(WEATHER).disagreement(head(*fields), call("t", {"s": None})) == why


@pytest.mark.parametrize(
    ("arguments", "field", "value", "agrees"),
    [
        ('{"i":42}', b"i", b"42", True),
        ('{"i":42}', b"i", b"42.0", True),
        ('{"i":42.0}', b"i", b"42", True),
        ('{"i":42}', b"i", b"=?base64?NDI=?=", True),
        ('{"i":42}', b"i", b"042", True),
        ('{"i":42}', b"i", b"43", False),
        ('{"i":42}', b"i", b"42.5", False),
        ('{"i":42}', b"i", b"4.2e1", False),
        ('{"i":42}', b"i", b"+42", False),
        ('{"i":42}', b"i", b"", False),
        ('{"i":42}', b"i", b"9" * 5000, False),
        ('{"i":1.5}', b"i", b"1.5", True),
        ('{"i":1.5}', b"i", b"1", False),
        ('{"i":9007199254740993}', b"i", b"9007199254740993", True),
        ('{"i":9007199254740993}', b"i", b"9007199254740992", False),
        ('{"b":true}', b"b", b"true", True),
        ('{"b":true}', b"b", b"True", False),
        ('{"b":true}', b"b", b"1", False),
        ('{"s":"42"}', b"s", b"42", True),
        ('{"s":"42"}', b"s", b"42.0", False),
        ('{"s":"é"}', b"s", b"=?base64?w6k=?=", True),
        ('{"s":"é"}', b"s", b"\xc3\xa9", False),
        ('{"s":"null"}', b"s", b"null", True),
        ('{"s":null}', b"s", b"null", False),
        ('{"s":{}}', b"s", b"{}", False),
        ("{}", b"s", b"", False),
        ("null", b"s", b"x", False),
    ],
)
def test_parameters_against_the_body(
    arguments: str, field: bytes, value: bytes, agrees: bool
) -> None:
    fields = (*GOOD, (b"mcp-param-" + field, value))
    disagreement = knowing(WEATHER).disagreement(head(*fields), spelledCall(arguments))
    assert (disagreement is None) is agrees


def test_a_missing_parameter_is_told_only_where_the_tool_is_held() -> None:
    request = call("t", {"s": "v"})
    why = "Mcp-Param-S is missing"
    assert knowing(WEATHER).disagreement(head(*GOOD), request) == why
    assert ToolHeaders(ROOM).disagreement(head(*GOOD), request) is None


def test_a_name_that_the_body_lacks_is_the_servers_to_judge() -> None:
    headers = ToolHeaders(ROOM)
    assert headers.disagreement(head(*without(b"mcp-name")), call(None)) is None
    assert headers.disagreement(head(*GOOD), call(5)) == "Mcp-Name says what the body does not"
    fields = ((b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", b"tools/list"))
    assert headers.disagreement(head(*fields, (b"mcp-name", b"x")), message("tools/list")) is None


# beside the SDK


SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(
                ["string", "integer", "boolean", "number", "object", ["string"]]
            ),
            "x-mcp-header": st.sampled_from(["A", "a", "B-1", "", "a b", "é"]) | st.none(),
            "default": st.just({"x-mcp-header": "D"}),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from(["s", "i", "x-mcp-header"]), inner),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "$defs": st.dictionaries(st.sampled_from(["s"]), inner),
        },
    ),
    max_leaves=6,
)


@given(SCHEMAS)
def test_the_sdk_finds_the_same_annotations(schema: Any) -> None:
    judged = judgeTools(listed({"name": "t", "inputSchema": schema}))
    assert bool(judged.invalid) is (inbound.find_invalid_x_mcp_header(schema) is not None)
    if not judged.invalid:
        annotations = judged.annotations.get("t", ())
        theirs = inbound.x_mcp_header_map(schema)
        assert {one.path: one.field.decode() for one in annotations} == {
            path: f"mcp-param-{name}".lower() for path, name in theirs.items()
        }


@given(st.text())
def test_the_sdk_writes_and_reads_the_same_values(value: str) -> None:
    assert inbound.encode_header_value(value).encode() == encodeValue(value)
    assert inbound.decode_header_value(encodeValue(value).decode()) == value


ARGUMENTS = st.dictionaries(
    st.sampled_from(["s", "i", "b"]),
    st.none()
    | st.booleans()
    | st.text(max_size=5)
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER),
)


@given(ARGUMENTS)
def test_the_sdk_takes_what_we_write_and_we_what_it_does(arguments: dict[str, Any]) -> None:
    headers, request, schema = knowing(WEATHER), call("t", arguments), WEATHER["inputSchema"]
    ours = {name.decode(): value.decode() for name, value in headers.fieldsFor(request)}
    assert inbound.validate_mcp_param_headers(schema, arguments, ours) is None
    theirs = inbound.mcp_param_headers(inbound.x_mcp_header_map(schema), arguments)
    pairs = tuple((name.lower().encode(), value.encode()) for name, value in theirs.items())
    assert headers.disagreement(head(*GOOD, *pairs), request) is None
