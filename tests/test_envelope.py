"""
Envelopes: what is judged, and that nothing else changes.

The judge here (`_judge`) is written from the rules over the standard library's parser, and the
codec must agree with it on anything. GATEWAY_THOROUGH multiplies the number of examples.
"""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.wire.envelope import (
    MAX_BATCH,
    MAX_DEPTH,
    MAX_ID,
    MAX_MEMBERS,
    Kind,
    Message,
    NotAMessage,
    NotJSON,
    decode,
    encodeBatch,
    members,
    notification,
    quote,
    salvageID,
    text,
)

_THOROUGH = int(os.environ.get("GATEWAY_THOROUGH", "1"))


def _examples(count: int) -> settings:
    return settings(
        max_examples=count * _THOROUGH,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# JSON, as texts: spelling is what these tests are about.

_SPACES = st.sampled_from([b"", b"", b"", b"", b" ", b"\n", b"\r\n  ", b"\t"])
_NUMBERS = st.one_of(
    st.integers().map(lambda n: b"%d" % n),
    st.sampled_from(
        b"-0 0.0 1.0 1e0 1E+05 -1.50e-10 1e999 9007199254740993 1.0000000000000000000001".split()
    ),
    st.just(b"1" + b"0" * 30),
)
_ESCAPES = (
    rb"\" \\ \/ \b \f \n \r \t \u0000 \u0069 \u00E9 \u2028 \ud800 \uDFFF \udc00 \ud83d\ude00"
    rb" \uD7FF \ue000 \\ud800 \ud7ff\\"
).split()
_CHARACTERS = st.characters(codec="utf-8", min_codepoint=32, exclude_characters='"\\').map(
    lambda character: character.encode()
)
_STRINGS = st.lists(
    st.one_of(_CHARACTERS, st.sampled_from([*_ESCAPES, b"{", b"]"])), max_size=6
).map(lambda parts: b'"' + b"".join(parts) + b'"')
_SCALARS = st.one_of(st.sampled_from([b"null", b"true", b"false"]), _NUMBERS, _STRINGS)


def _listed(opening: bytes, items: list[bytes], spaces: bytes, closing: bytes) -> bytes:
    return opening + spaces + (spaces + b"," + spaces).join(items) + spaces + closing


def _members(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    member = st.tuples(_STRINGS, _SPACES, values).map(lambda m: m[0] + m[1] + b":" + m[1] + m[2])
    return st.lists(member, max_size=4)


def _arrays(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(_listed, st.just(b"["), st.lists(values, max_size=4), _SPACES, st.just(b"]"))


def _objects(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(_listed, st.just(b"{"), _members(values), _SPACES, st.just(b"}"))


_VALUES = st.recursive(_SCALARS, lambda v: st.one_of(_arrays(v), _objects(v)), max_leaves=8)
_IDS = st.one_of(
    _NUMBERS, _STRINGS.filter(lambda spelled: not re.search("[\ud800-\udfff]", json.loads(spelled)))
)


@st.composite
def _messages(draw: st.DrawFn) -> dict[str, bytes]:
    """The members of a good message, as spelled, in any order."""
    kind = draw(st.sampled_from(Kind))
    fields = {"jsonrpc": b'"2.0"'}
    if kind is not Kind.NOTIFICATION:
        fields["id"] = draw(_IDS)
    if kind is Kind.RESPONSE:
        if draw(st.booleans()):
            fields["result"] = draw(_VALUES)
        else:
            fields["error"] = draw(_objects(_VALUES))
    else:
        fields["method"] = draw(st.sampled_from([b'"tools/call"', b'"\\u0078"', b'""']))
        if draw(st.booleans()):
            fields["params"] = draw(st.one_of(_objects(_VALUES), _arrays(_VALUES)))
    for name in draw(st.lists(st.sampled_from(["Method", "x", "é", "ID"]), unique=True)):
        fields[name] = draw(_VALUES)
    return {name: fields[name] for name in draw(st.permutations(list(fields)))}


def _spelled(fields: dict[str, bytes], spaces: bytes = b"") -> bytes:
    """A message's text; the names are spelled plainly."""
    items = [b'"%b"%b:%b%b' % (k.encode(), spaces, spaces, v) for k, v in fields.items()]
    return spaces + _listed(b"{", items, spaces, b"}") + spaces


def _loads(data: bytes) -> object:
    """A JSON text as a value that tells spelling of numbers, order and twins apart."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(
        data.decode("utf-8"),
        parse_int=str,
        parse_float=str,
        parse_constant=refuse,
        object_pairs_hook=lambda pairs: ("object", tuple(pairs)),
    )


def _one(data: bytes) -> Message:
    message = decode(data)
    assert isinstance(message, Message)
    return message


def _line(data: bytes) -> bytes:
    return data.replace(b"\r", b" ").replace(b"\n", b" ")


def _fields(message: Message) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in message.fields.items()}


REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"x"'


def _judge(data: bytes) -> str:
    """What the rules make of a text: "not JSON", "not a message", "batch" or the kind."""
    try:
        found = _loads(data)
    except (ValueError, RecursionError):
        return "not JSON"
    if isinstance(found, list):
        return "batch" if len(found) <= MAX_BATCH else "not a message"
    if not isinstance(found, tuple):
        return "not a message"
    names = [name for name, _ in found[1]]
    if len(set(names)) < len(names) or any(re.search("[\ud800-\udfff]", name) for name in names):
        return "not JSON"
    fields = dict(found[1])
    # Numbers are strings here: what is spelled with quotes has to be looked up in the text.
    values = {
        name: type(value)
        for name, value in json.loads(data, object_pairs_hook=lambda p: dict(p)).items()
    }
    half = {name for name in fields if re.search("[\ud800-\udfff]", str(fields[name]))}
    if "id" in fields and (values["id"] not in (int, float, str) or "id" in half):
        return "not a message"
    if fields.get("jsonrpc") != "2.0" or values["jsonrpc"] is not str:
        return "not a message"
    if "method" in fields:
        bad = values["method"] is not str or "method" in half or {"result", "error"} & set(fields)
        if bad or values.get("params", dict) not in (dict, list):
            return "not a message"
        return "request" if "id" in fields else "notification"
    if ("result" in fields) == ("error" in fields) or "id" not in fields:
        return "not a message"
    return "not a message" if values.get("error", dict) is not dict else "response"


def _verdict(data: bytes) -> str:
    try:
        found = decode(data)
    except NotJSON:
        return "not JSON"
    except NotAMessage:
        return "not a message"
    return "batch" if isinstance(found, list) else found.kind.value


# What passes, passes unchanged.


@pytest.mark.acceptance(32)
@_examples(200)
@given(_messages(), _SPACES)
def test_acceptance_32_valuesComeBackByteForByte(fields: dict[str, bytes], spaces: bytes) -> None:
    data = _spelled(fields, spaces)
    message = _one(data)
    assert _fields(message) == fields
    assert list(message.fields) == list(fields)
    encoded = message.encode()
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    assert encoded == _spelled({name: _line(value) for name, value in fields.items()})
    assert _loads(encoded) == _loads(data)
    assert _one(encoded).encode() == encoded


@pytest.mark.acceptance(23)
@_examples(100)
@given(_IDS, _messages())
def test_acceptance_23_anyIDComesBackByteForByte(id: bytes, fields: dict[str, bytes]) -> None:
    message = _one(_spelled(fields))
    under = message.withID(b"77")
    assert under.id == b"77"
    assert _loads(under.encode()) == _loads(message.withID(b"77").encode())
    back = _one(under.encode()).withID(id)
    assert back.id == id
    assert _one(back.encode()).id == id
    assert _fields(back) == {**{n: _line(v) for n, v in fields.items()}, "id": id}


@pytest.mark.acceptance(23)
@pytest.mark.parametrize(
    "id",
    [
        *(b"0", b"-5", b"1", b'"1"', b"1.0", b"1e0", b"1.5", b"1e2", b"-0", b"9007199254740993"),
        *(
            b"1" + b"0" * 30,
            b'""',
            b'"\\u0061\\"\\\\\\/"',
            '"é\u2028😀"'.encode(),
            b'"\\ud83d\\ude00"',
        ),
        *(b'"' + b"x" * (MAX_ID - 2) + b'"', b"9" * MAX_ID),
    ],
)
def test_acceptance_23_theseIDsComeBack(id: bytes) -> None:
    request = _one(b'{"jsonrpc":"2.0","id":' + id + b',"method":"x"}')
    assert (request.kind, request.id) == (Kind.REQUEST, id)
    assert request.encode() == b'{"jsonrpc":"2.0","id":' + id + b',"method":"x"}'
    response = _one(b'{"jsonrpc":"2.0","id": ' + id + b' ,"result":1}')
    assert (response.kind, response.id) == (Kind.RESPONSE, id)


@pytest.mark.acceptance(23)
@pytest.mark.parametrize(
    "id",
    [
        *(
            b"null",
            b"true",
            b"false",
            b"{}",
            b"[]",
            b"[1]",
            b'{"a":1}',
            b'"\\ud800"',
            b'"\\udc00x"',
        ),
        *(b"9" * (MAX_ID + 1), b'"' + b"x" * (MAX_ID - 1) + b'"'),
    ],
)
@pytest.mark.parametrize("rest", [b'"method":"x"', b'"result":1', b'"error":{}'])
def test_acceptance_23_theseIDsAreRefused(id: bytes, rest: bytes) -> None:
    with pytest.raises(NotAMessage) as caught:
        decode(b'{"jsonrpc":"2.0",' + rest + b',"id":' + id + b"}")
    assert caught.value.id is None


def test_kinds() -> None:
    request = _one(REQUEST + b"}")
    assert (request.kind, request.id, request.method, request.isError) == (
        Kind.REQUEST,
        b"1",
        "x",
        False,
    )
    said = _one(b'{"method":"a/\\u0062","jsonrpc":"2.\\u0030"}')
    assert (said.kind, said.id, said.method) == (Kind.NOTIFICATION, None, "a/b")
    answer = _one(b'{"id":"a","result":null,"jsonrpc":"2.0"}')
    assert (answer.kind, answer.id, answer.method, answer.isError) == (
        Kind.RESPONSE,
        b'"a"',
        "",
        False,
    )
    assert _one(b'{"id":1,"error":{"code":1},"jsonrpc":"2.0"}').isError


def test_aPrettyPrintedMessageBecomesOneLine() -> None:
    value = {"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": [1, {"b": "c\nd"}]}}
    data = json.dumps(value, indent=4).replace("\n", "\r\n").encode()
    encoded = _one(data).encode()
    assert len(encoded.splitlines()) == 1
    assert json.loads(encoded) == value


# What breaks a rule, and which.


@pytest.mark.acceptance(21)
@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"{", b"x", b"{}{}", b"[1,]", b"NaN", b"\x00", b"{'a':1}", b'"', b"\\ud800"),
        REQUEST + b',"params":{"a":NaN}}',
        REQUEST + b',"params":{"a":Infinity}}',
        REQUEST + b',"params":{"a":-Infinity}}',
        REQUEST + b',"params":{"a":01}}',
        REQUEST + b',"params":{"a":1.}}',
        REQUEST + b',"params":{"a":+1}}',
        REQUEST + b',"params":{"a":.5}}',
        REQUEST + b',"params":{"a":"\x01"}}',
        REQUEST + b',"params":{"a":"\n"}}',
        REQUEST + b',"params":{"a":"\\x"}}',
        REQUEST + b',"params":{"a":"\\ud8"}}',
        REQUEST + b',"params":{"a":"\\uD8GG\\ud800"}}',
        REQUEST + b',"params":{"a":\\ud800}}',
        REQUEST + b',"params":{"a":"\xff"}}',
        REQUEST + b',"params":{"a":"\xc0\xaf"}}',
        REQUEST + b',"params":{"a":"\xed\xa0\x80"}}',
        REQUEST + b',"params":["\\ud800",]}',
        REQUEST + b"},",
        REQUEST + b"}\x00",
        # What others take for whitespace.
        REQUEST + b"}\x0b",
        REQUEST + b"\x0c}",
        REQUEST + b"\xc2\xa0}",
        b"\xe2\x80\xa8" + REQUEST + b"}",
        REQUEST + b",}",
        b"\xef\xbb\xbf" + REQUEST + b"}",
        *((REQUEST + b"}").decode().encode(name) for name in ("utf-16", "utf-16-le", "utf-32-be")),
    ],
)
def test_acceptance_21_whatIsNoJSON(data: bytes) -> None:
    with pytest.raises(NotJSON):
        decode(data)


@pytest.mark.acceptance(21)
@pytest.mark.parametrize(
    "data",
    [
        REQUEST + b',"params":{"a":1},"result":"\\ud800"}',
        '{"jsonrpc":"2.0","method":"é","id":"ü😀"}'.encode(),
        REQUEST + b',"params":{"\\u0022":"\\ud83d\\ude00\\ud800","a":1.5e+3,"b":[true,null]}}',
        b" [" + REQUEST + b"} , 1 ]",
    ],
)
def test_acceptance_21_truncatedAtEveryByte(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(NotJSON):
            decode(data[:end])


@pytest.mark.acceptance(21)
@pytest.mark.parametrize("spaces", [b"", b" ", b"\r\n\t "])
@pytest.mark.parametrize("half", [b"1", b'"\\ud800"'])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b'"id"', b'"id"'),
        (b'"id"', b'"\\u0069d"'),
        (b'"\\u0069\\u0064"', b'"\\u0069d"'),
        (b'"\\u00e9"', '"é"'.encode()),
        (b'"\\ud83d\\ude00"', b'"\\uD83D\\uDE00"'),
        (b'"\\ud83d\\ude00"', '"😀"'.encode()),
        (b'""', b'""'),
        (b'"\\/"', b'"/"'),
    ],
)
@pytest.mark.parametrize("values", [(b"1", b"2"), (b"1", b"1"), (b"12", b"1"), (b"1", b"12")])
def test_acceptance_21_aMemberTwiceHoweverSpelled(
    spaces: bytes, half: bytes, first: bytes, second: bytes, values: tuple[bytes, bytes]
) -> None:
    for between in ([], [b'"params":[1]']):
        items = [
            first + spaces + b":" + spaces + values[0],
            *between,
            second + spaces + b":" + spaces + values[1],
            b'"method":"x"',
            b'"jsonrpc":"2.0"',
            b'"half":' + half,
        ]
        with pytest.raises(NotJSON, match="twice"):
            decode(_listed(b"{", items, spaces, b"}"))


@pytest.mark.acceptance(21)
@_examples(120)
@given(_messages(), _VALUES, _SPACES, st.data())
def test_acceptance_21_anyMemberTwiceIsRefused(
    fields: dict[str, bytes], value: bytes, spaces: bytes, data: st.DataObject
) -> None:
    items = [b'"%b":%b' % (name.encode(), value) for name, value in fields.items()]
    twin = data.draw(st.sampled_from(list(fields)))
    spelled = "".join(f"\\u{ord(c):04x}" if data.draw(st.booleans()) else c for c in twin).encode()
    place = data.draw(st.integers(0, len(items)))
    items.insert(place, b'"%b"%b:%b' % (spelled, spaces, value))
    with pytest.raises(NotJSON, match="twice"):
        decode(_listed(b"{", items, spaces, b"}"))


@pytest.mark.acceptance(21)
def test_acceptance_21_halfASurrogatePairInANameIsRefused() -> None:
    for name in (b'"\\ud800"', b'"a\\udc00b"', b'"\\ud83d\\ud83d\\ude00"'):
        with pytest.raises(NotJSON, match="half"):
            decode(REQUEST + b"," + name + b":1}")
    whole = _one(REQUEST + b',"\\ud83d\\ude00":"\\ud800"}')
    assert bytes(whole.fields["😀"]) == b'"\\ud800"'
    # An escaped backslash before it makes it plain text.
    assert "\\ud800" in _one(REQUEST + b',"\\\\ud800":1}').fields


@pytest.mark.acceptance(21)
@pytest.mark.parametrize(
    "value",
    [
        *(b'{"a":1,"a":2}', b'{"id":1,"\\u0069d":1}', b'{"a":{"":0,"":0}}', b'"\\ud800"'),
        *(b'{"\\ud800":"\\udfff\\\\ud800"}', b'{"\\ud800":1,"\\ud801":2,"\\u0001":3}'),
        *(b"1" * 5000, b"1e99999", b"-1.5e-99999", b'["\\u0000\\ufffe"]', b'"\\\\\\ud800"'),
    ],
)
def test_acceptance_21_theSameInsideIsRelayed(value: bytes) -> None:
    for data in (
        REQUEST + b',"params":[' + value + b"]}",
        REQUEST + b',"params":{"a":' + value + b"}}",
        b'{"jsonrpc":"2.0","id":1,"result":' + value + b"}",
    ):
        assert _one(data).encode() == data
    assert bytes(_one(data).fields["result"]) == value


@pytest.mark.acceptance(21)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'["]",', b"]")])
def test_acceptance_21_depth(opening: bytes, closing: bytes) -> None:
    def nested(levels: int) -> bytes:
        return REQUEST + b',"params":' + opening * levels + b"0" + closing * levels + b"}"

    deepest = nested(MAX_DEPTH - 1)
    assert _one(deepest).encode() == deepest
    for levels in (MAX_DEPTH, MAX_DEPTH + 1, 1000, 2000, 100_000):
        with pytest.raises(NotJSON, match="nested"):
            decode(nested(levels))
    half = b',"b":"\\ud800"}'
    assert _one(deepest[:-1] + half).encode() == deepest[:-1] + half
    with pytest.raises(NotJSON, match="nested"):
        decode(nested(MAX_DEPTH)[:-1] + half)


def test_depthOfBatches() -> None:
    def nested(levels: int) -> bytes:
        return b"[" + REQUEST + b',"params":' + b"[" * levels + b"]" * levels + b"}]"

    (deepest,) = decode(nested(MAX_DEPTH - 2))  # type: ignore[misc]
    assert isinstance(deepest, Message)
    with pytest.raises(NotJSON, match="nested"):
        decode(nested(MAX_DEPTH - 1))


def test_bracketsInStringsAndNextToEachOtherAreNotDepth() -> None:
    for params in (
        b'["' + b"[" * 2000 + b'"]',
        b'["' + b'\\"[' * 2000 + b'"]',
        b"[" + b'"[",' * 2000 + b'"\\\\","{","\\\\\\"[[["]',
        b"[" + b"[],{}," * 2000 + b"0]",
    ):
        data = REQUEST + b',"params":' + params + b"}"
        assert _one(data).encode() == data


def test_tooManyMembers() -> None:
    def many(count: int, value: bytes) -> bytes:
        return REQUEST + b"".join(b',"x%d":%b' % (i, value) for i in range(count - 3)) + b"}"

    for value in (b"1", b'"\\ud800"'):
        assert len(_one(many(MAX_MEMBERS, value)).fields) == MAX_MEMBERS
        with pytest.raises(NotJSON, match="members"):
            decode(many(MAX_MEMBERS + 1, value))


@pytest.mark.acceptance(22)
@pytest.mark.parametrize(
    ("data", "id"),
    [
        (b"{}", None),
        (b"3", None),
        (b'"x"', None),
        (b"null", None),
        (b' "\\ud800" ', None),
        (b'{"id":1,"method":"x"}', b"1"),
        (b'{"jsonrpc":"1.0","id":1,"method":"x"}', b"1"),
        (b'{"jsonrpc":2.0,"id":1,"method":"x"}', b"1"),
        (b'{"JSONRPC":"2.0","id":1,"method":"x"}', b"1"),
        (b'{"jsonrpc":"2.0","id":1,"Method":"x"}', b"1"),
        (b'{"jsonrpc":"2.0","id":1}', b"1"),
        (b'{"jsonrpc":"2.0"}', None),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', b"1"),
        (b'{"jsonrpc":"2.0","id":1,"method":null}', b"1"),
        (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', b"1"),
        (REQUEST + b',"params":5}', b"1"),
        (REQUEST + b',"params":"x"}', b"1"),
        (REQUEST + b',"params":null}', b"1"),
        (REQUEST + b',"result":1}', b"1"),
        (REQUEST + b',"error":{}}', b"1"),
        (b'{"jsonrpc":"2.0","id":"q","result":1,"error":{}}', b'"q"'),
        (b'{"jsonrpc":"2.0","id":1,"error":"x"}', b"1"),
        (b'{"jsonrpc":"2.0","result":1}', None),
        (b'{"jsonrpc":"2.0","error":{}}', None),
    ],
)
def test_acceptance_22_whatIsNoMessage(data: bytes, id: bytes | None) -> None:
    with pytest.raises(NotAMessage) as caught:
        decode(data)
    assert caught.value.id == id
    assert str(caught.value)


# The codec and the judge agree on anything.

_TOKENS = st.sampled_from(
    [
        *(b'"jsonrpc"', b'"2.0"', b'"id"', b'"method"', b'"params"', b'"result"', b'"error"'),
        *(b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"1", b"-1.5e3", b'"a"', b"null"),
        *(b'"\\ud800"', b'"\\u0069d"', b"\xff", b'"', b"\\", b"\x00", b"NaN", b"true", b'""'),
        *(b'"jsonrpc":"2.0",', b'"id":1,', b'"method":"x"', b'"params":{}', b'"\xc3\xa9"'),
    ]
)


@st.composite
def _spoiled(draw: st.DrawFn) -> bytes:
    """A message with a few bytes taken out, put in or swapped."""
    data = bytearray(_spelled(draw(_messages()), draw(_SPACES)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 3))
        data[start : start + length] = draw(st.one_of(_TOKENS, st.just(b""), st.binary(max_size=2)))
    return bytes(data)


@pytest.mark.acceptance(21, 22)
@_examples(200)
@given(_spoiled())
@example(REQUEST + b',"\\ud800":1}')
@example(REQUEST + b',"params":["\\\\ud800"],"x":"\\\\\\ud800"}')
def test_acceptance_21_22_spoiledMessagesAreJudgedByTheRules(data: bytes) -> None:
    assert _verdict(data) == _judge(data)


@pytest.mark.acceptance(21, 22)
@_examples(500)
@given(st.one_of(st.lists(_TOKENS, max_size=25).map(b"".join), st.binary(max_size=40)))
def test_acceptance_21_22_anyBytesAreJudgedByTheRules(data: bytes) -> None:
    assert _verdict(data) == _judge(data)
    salvageID(data)
    members(data)
    text(data)


# Batches.


def test_aBatchFailsMemberByMember() -> None:
    twice = REQUEST + b',"id":2}'
    found = decode(b" [ " + REQUEST + b"} ,\n3, " + twice + b', {"id":7}, {"a":"\\ud800"}]\n')
    assert isinstance(found, list)
    assert [type(item) for item in found] == [Message, *[NotAMessage] * 4]
    assert isinstance(found[0], Message)
    assert found[0].encode() == REQUEST + b"}"
    assert isinstance(found[3], NotAMessage)
    assert found[3].id == b"7"


def test_batchesThatHoldNothingOrTooMuch() -> None:
    assert decode(b"[]") == []
    assert decode(b" [ \n] ") == []
    full = decode(encodeBatch([REQUEST + b"}"] * MAX_BATCH))
    assert isinstance(full, list)
    assert len(full) == MAX_BATCH
    with pytest.raises(NotAMessage):
        decode(encodeBatch([REQUEST + b"}"] * (MAX_BATCH + 1)))


@_examples(50)
@given(st.lists(_messages(), max_size=4), _SPACES)
def test_theMembersOfABatchAreAsTheyWouldBeAlone(
    batch: list[dict[str, bytes]], spaces: bytes
) -> None:
    texts = [_spelled(fields, spaces) for fields in batch]
    found = decode(_listed(b"[", texts, spaces, b"]"))
    assert isinstance(found, list)
    assert [_fields(item) for item in found if isinstance(item, Message)] == batch
    again = decode(encodeBatch(item.encode() for item in found if isinstance(item, Message)))
    assert isinstance(again, list)
    assert len(again) == len(batch)


# Looking into params, and changing them.


def test_parameters() -> None:
    message = _one(
        REQUEST + b',"params":{"name":"\\u0061b","n": 1.0 ,"o":{"x":[1, 2]},"half":"\\ud800",'
        b'"_meta":{"progressToken":1e0,"t":"\\ud83d\\ude00"}}}'
    )
    assert message.param("name") == b'"\\u0061b"'
    assert message.paramText("name") == "ab"
    assert message.param("n") == b"1.0"
    assert message.paramText("n") is None
    assert message.param("o") == b'{"x":[1, 2]}'
    assert message.param("half") == b'"\\ud800"'
    assert message.paramText("half") is None
    assert message.param("none") is None
    assert message.paramText("none") is None
    assert message.meta("progressToken") == b"1e0"
    assert message.meta("t") == b'"\\ud83d\\ude00"'
    assert message.meta("none") is None


@pytest.mark.parametrize(
    "rest", [b"", b',"params":{}', b',"params":["_meta"]', b',"params":{"_meta":5}']
)
def test_parametersThatAreNotThere(rest: bytes) -> None:
    message = _one(REQUEST + rest + b"}")
    assert message.param("x") is None
    assert message.meta("x") is None


def test_metaHiddenByEscapesIsFound() -> None:
    message = _one(REQUEST + b',"params":{"\\u005fmeta":{"\\u0061":1}}}')
    assert message.meta("a") == b"1"


@pytest.mark.parametrize(
    "name", [b'"_meta"', b'"\\u005fmeta"', b'"\\ud800","_meta"'.replace(b",", b":0,")]
)
def test_manyAndDoubleParametersWithHalfAPairDoNotRaise(name: bytes) -> None:
    many = b"".join(b'"%d":"\\ud800",' % i for i in range(MAX_MEMBERS * 2))
    message = _one(REQUEST + b',"params":{' + many + b'"0":1,"0":2,' + name + b':{"a":"\\udc00"}}}')
    assert message.param("1") == b'"\\ud800"'
    assert message.param("0") == b"2"
    assert message.meta("a") == b'"\\udc00"'


def test_withParamReplacesOrAdds() -> None:
    message = _one(REQUEST + b',"params":{"a":1,"b": {"c" :2},"d":"\\ud83d"}}')
    changed = message.withParam("b", b"1.0")
    assert changed.encode() == REQUEST + b',"params":{"a":1,"b":1.0,"d":"\\ud83d"}}'
    assert changed.param("b") == b"1.0"
    assert message.param("b") == b'{"c" :2}'
    assert (changed.kind, changed.id, changed.method) == (message.kind, message.id, "x")
    added = _one(REQUEST + b"}").withParam("n", b'"v"')
    assert added.encode() == REQUEST + b',"params":{"n":"v"}}'
    array = _one(REQUEST + b',"params":[1]}')
    assert array.withParam("n", b"1").encode() == array.encode()
    assert array.withMeta("n", b"1").encode() == array.encode()


@pytest.mark.parametrize(
    "params",
    [
        b'{"a":1,"b": {"c" :2},"d":"\\ud83d"}',
        b'{"\\ud800":1,"b":"\\ud800","\\u0061":2}',
        b'{"b":1,"b":2, "a" : [1 ,2]}',
        b'{"\\u0062":1}',
        b"{}",
        b"[1]",
    ],
)
@pytest.mark.parametrize("name", ["b", "n"])
def test_whatWasReadBeforeIsChangedAlike(params: bytes, name: str) -> None:
    data = REQUEST + b',"params":' + params + b"}"
    asked = _one(data)
    asked.param("b")
    changed = asked.withParam(name, b"9")
    assert changed.encode() == _one(data).withParam(name, b"9").encode()
    assert changed.param(name) == (None if params[:1] == b"[" else b"9")
    assert asked.encode() == _one(data).encode()


def test_withMetaReplacesOrAdds() -> None:
    token = REQUEST + b',"params":{"_meta":{"progressToken":"a","k":"\\ud800"},"x":1.0}}'
    assert (
        _one(token).withMeta("progressToken", b"7").encode()
        == REQUEST + b',"params":{"_meta":{"progressToken":7,"k":"\\ud800"},"x":1.0}}'
    )
    for rest in (b"", b',"params":{}', b',"params":{"_meta":5}'):
        changed = _one(REQUEST + rest + b"}").withMeta("k", b"[]")
        assert changed.encode() == REQUEST + b',"params":{"_meta":{"k":[]}}}'


def test_namesWithHalfAPairSurviveAChange() -> None:
    params = b'{"\\ud800":"\\udc00","\\uD83D\\ude00":1,"\\\\ud800":2,"_meta":{"\\udfff":3,"t":4}}'
    message = _one(REQUEST + b',"params":' + params + b"}")
    changed = message.withMeta("t", b"5")
    assert changed.encode() == message.encode().replace(b'"t":4', b'"t":5')


@pytest.mark.acceptance(32)
@_examples(120)
@given(_objects(_VALUES), _objects(_VALUES), _VALUES)
def test_acceptance_32_aChangedParameterChangesNothingElse(
    params: bytes, meta: bytes, value: bytes
) -> None:
    inner = params[1:-1].strip()
    whole = b'{"_meta":' + meta + (b"," + inner if inner else b"") + b"}"
    message = _one(REQUEST + b',"params":' + whole + b"}")
    changed = message.withMeta("token", value)
    assert changed.meta("token") == value
    assert _one(changed.encode()).meta("token") == _line(value)

    def last(data: bytes) -> dict[str, object]:
        return dict(_loads(data)[1])  # type: ignore[index]

    before, after = last(whole), last(bytes(changed.fields["params"]))
    if '"_meta"' in str(list(before)).replace("'", '"') and before["_meta"] == _loads(meta):
        after_meta, before_meta = after.pop("_meta"), before.pop("_meta")
        assert dict(after_meta[1]) == {  # type: ignore[index]
            **dict(before_meta[1]),  # type: ignore[index]
            "token": _loads(value),
        }
    assert list(after) == list(before)
    assert after == before


# The small ones.


def test_textAndQuote() -> None:
    for value in ("", "a", 'q"\\', "é\u2028😀", "\x00\n"):
        assert text(quote(value)) == value
        assert b"\n" not in quote(value)
    assert text(None) is None
    assert text(b"1") is None
    assert text(b"") is None
    assert text(b'"\\ud800"') is None
    assert text(b'"\\ud83d\\ude00"') == "😀"


def test_members() -> None:
    assert members(None) == {}
    assert members(b"[1]") == {}
    assert members(b"1") == {}
    assert members(b"") == {}
    assert members(b"{bad") == {}
    assert {k: bytes(v) for k, v in members(Raw(b'{"a": 1, "\\u0062":[ ]}')).items()} == {
        "a": b"1",
        "b": b"[ ]",
    }


def test_notificationsOfOurOwn() -> None:
    bare = notification("notifications/initialized")
    assert bare.encode() == b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
    told = notification("notifications/cancelled", requestId=b'"1"', reason=quote('no "x"'))
    assert (told.kind, told.id, told.method) == (
        Kind.NOTIFICATION,
        None,
        "notifications/cancelled",
    )
    assert _fields(_one(told.encode())) == _fields(told)
    assert told.param("requestId") == b'"1"'


@pytest.mark.parametrize(
    ("data", "id"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{"items":[{"id":3}]', b"7"),
        (b'{"result":{"items":[{"id":3}],"t":"\\"}"},"jsonrpc":"2.0","id" : 7 }', b"7"),
        (b'{"jsonrpc":"2.0","id":7,"result":NaN}', b"7"),
        (b'{"jsonrpc":"2.0","id":7,"result":"\xff"}', b"7"),
        (b'{"jsonrpc":"2.0","id":7,"result":' + b"[" * 2000 + b"]" * 2000 + b"}", b"7"),
        (b'{"id":1,"jsonrpc":"2.0","id":2,"result":1}', b"2"),
        (b'{"jsonrpc":"2.0","result":{"id":3}', None),
        (b'{"jsonrpc":"2.0","result":[{"id":3},{"id":4}', None),
        (b'{"jsonrpc":"2.0","result":"\\"id\\":3,"}', None),
        (b'{"jsonrpc":"2.0","id":"7","result":NaN}', None),
        (b'{"jsonrpc":"2.0","id":7', None),
        (b'{"jsonrpc":"2.0","id":70.5,"result":NaN}', None),
        (b'{"id":' + b"1" * 30 + b"}", None),
        (b'[{"id":7}]', None),
        (b'"id":7,', None),
        (b"", None),
        # What asks has an id of its own.
        (b'{"id":1,"method":"x","params":NaN}', None),
        (b'{"method" : "x","params":{"method":1},"id":1,"a":NaN}', None),
        (b'{"id":1,"result":{"method":"x"},"a":NaN}', b"1"),
        (b'{"id":1,"result":"method","a":NaN}', b"1"),
    ],
)
def test_salvageID(data: bytes, id: bytes | None) -> None:
    assert salvageID(data) == id


# Nothing takes more than its length: quadratic work on these would take hours.

_SIZE = 4 * 1024 * 1024


@pytest.mark.acceptance(21)
@pytest.mark.parametrize(
    ("head", "piece", "tail"),
    [
        (b"", b"[", b""),
        (b"", b'{"a":', b""),
        (b"", b'{"a":1,', b""),
        (b"", b"[]", b""),
        (b"[", b"[],", b"0]"),
        (b"[", b"{},", b"{}]"),
        (b"[", b"1,", b"1]"),
        (b"[", b'"\\ud800",', b"1]"),
        (REQUEST + b',"params":[', b"{},", b"{}]}"),
        (REQUEST + b',"params":["', b"\\ud800", b'"]}'),
        (REQUEST + b',"params":["', b"\\ud83d\\ude00\\ud800", b'"]}'),
        (REQUEST + b',"params":["', b"\\\\", b'\\ud800"]}'),
        (REQUEST + b',"params":["', b"\\\\ud800", b'\\ud800"]}'),
        (REQUEST + b',"params":["', b'\\"', b""),
        (REQUEST + b',"params":["', b'\\"[', b"\\"),
        (REQUEST + b',"params":["', b"\\", b""),
        (b"", b'"', b""),
        (b"[" * 600, b'"\\', b""),
        (b"", b" ", b""),
        (b"{", b" ", b"}"),
        (b'{"a"', b" ", b"x"),
        (REQUEST, b" ", b"}"),
        (b"{", b'"a":1,', b'"a":1}'),
        (b"{", b'"a":"\\ud800",', b'"a":1}'),
        (b"{", b'"\\ud800":0,', b'"a":1}'),
        (b"", b'"id":', b""),
        (b'{"id":', b"1", b"}"),
        (b"", b'{"id":1}', b""),
        (b"", b"\x00", b""),
        (b"", b"\xc3\xa9", b""),
    ],
)
def test_acceptance_21_worstCasesEnd(head: bytes, piece: bytes, tail: bytes) -> None:
    data = head + piece * (_SIZE // len(piece)) + tail
    try:
        found = decode(data)
    except (NotJSON, NotAMessage):
        pass
    else:
        assert isinstance(found, Message)
        found.meta("x")
        found.withMeta("x", b"1").encode()
    salvageID(data)


@pytest.mark.acceptance(21)
@pytest.mark.parametrize("value", [b"1", b'"\\ud800"'])
def test_acceptance_21_hundredsOfThousandsOfMembersEnd(value: bytes) -> None:
    many = b"{" + b",".join(b'"%x":%b' % (i, value) for i in range(300_000)) + b"}"
    with pytest.raises(NotJSON, match="members"):
        decode(many)
    message = _one(REQUEST + b',"params":' + many + b"}")
    assert message.withMeta("x", b"1").meta("x") == b"1"


@pytest.mark.parametrize("size", [10, 5_000, 500_000])
@pytest.mark.parametrize("many", [0, 1, 63, 64, 65, 3000])
def test_a_progress_token_is_found_wherever_it_stands(size: int, many: int) -> None:
    filler = quote("_" * many + "x" * size + '"_met_a')
    for params in (
        b'{"a":%b,"_meta":{"progressToken":7}}',
        b'{"_meta":{"progressToken":7},"a":%b}',
        b'{"\\u005fmeta":{"progressToken":7},"a":%b}',
    ):
        data = b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + params % filler + b"}"
        message = decode(data)
        assert isinstance(message, Message)
        assert message.meta("progressToken") == b"7"
        assert message.withMeta("progressToken", b"8").meta("progressToken") == b"8"
    none = decode(b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + filler + b"}}")
    assert isinstance(none, Message) and none.meta("progressToken") is None


@pytest.mark.parametrize("space", [b"", b" ", b"\n", b"\r\n", b"\r"])
def test_a_line_is_the_message_and_its_end(space: bytes) -> None:
    data = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":%b1%b}}' % (space, space)
    message = decode(data)
    assert isinstance(message, Message)
    assert message.encodeLine() == message.encode() + b"\n"
    assert message.encodeLine().count(b"\n") == 1 and b"\r" not in message.encodeLine()


def test_encoding_a_line_leaves_nothing() -> None:
    message = decode(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    assert isinstance(message, Message)
    message.encodeLine()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        message.encodeLine()
    assert sys.getallocatedblocks() - before < 100
