"""What a recovered session owes both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_support import request

from gateway.relay.recovery import learn, narrowed, repetitions
from gateway.sessions.record import SessionRecord
from gateway.testing.scripted import RESULT
from gateway.wire.context import ANONYMOUS
from gateway.wire.envelope import members

REVISION = b'"2025-06-18"'


def record(capabilities: bytes = b"{}", **more: object) -> SessionRecord:
    return SessionRecord(
        id="s",
        server="s",
        generation=1,
        principal=ANONYMOUS,
        revision="2025-06-18",
        capabilities=capabilities,
        **more,  # type: ignore[arg-type]
    )


def isNarrowed(before: bytes, after: bytes, revision: bytes = REVISION) -> bool:
    result = b'{"protocolVersion":%b,"capabilities":%b}' % (revision, after)
    return narrowed(record(before), members(result))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (b"{}", b"{}", False),
        (b"{}", b'{"tools":{}}', False),
        (b'{"tools":{}}', b"{}", True),
        (b'{"tools":{}}', b'{"tools":null}', True),
        (b'{"tools":{"listChanged":true}}', b'{"tools":{}}', True),
        (b'{"tools":{"listChanged":true}}', b'{"tools":{"listChanged":false}}', True),
        (b'{"tools":{"listChanged":false}}', b'{"tools":{}}', False),
        (b'{"tools":{}}', b'{"tools":{"listChanged":true},"x":{}}', False),
        (b'{"experimental":{"a":{"b":1}}}', b'{"experimental":{"a":{}}}', True),
        (b'{"experimental":{"a":{"b":1}}}', b'{"experimental":{"a":{"b":2}}}', False),
        (b'{"x":null}', b"{}", False),
        (b"{}", b"[]", False),
    ],
)
def test_fewer_capabilities_are_narrower(before: bytes, after: bytes, expected: bool) -> None:
    assert isNarrowed(before, after) is expected


@pytest.mark.parametrize("revision", [b'"2025-03-26"', b'"2025-11-25"', b"20250618", b"null"])
def test_another_revision_is_narrower(revision: bytes) -> None:
    assert isNarrowed(b"{}", b"{}", revision)
    assert narrowed(record(), {})


capabilities = st.recursive(
    st.sampled_from([b"true", b"false", b"null", b"1", b"{}"]),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(
        lambda d: b"{" + b",".join(b'"%b":%b' % (k.encode(), v) for k, v in d.items()) + b"}"
    ),
    max_leaves=8,
).filter(lambda data: data.startswith(b"{"))


@given(capabilities)
def test_the_same_again_is_not_narrower(data: bytes) -> None:
    assert not isNarrowed(data, data)


def test_repetitions_come_in_order_and_say_only_what_was_said() -> None:
    result = members(RESULT)
    said, told = repetitions(record(), result)
    assert said == []
    assert [one.method for one in told] == ["notifications/tools/list_changed"]

    full = record(initialized=True, log_level=b'"info"', subscriptions=["a", 'quote"d', "é"])
    said, _ = repetitions(full, result)
    assert [one.method for one in said] == [
        "notifications/initialized",
        "logging/setLevel",
        *["resources/subscribe"] * 3,
    ]
    assert said[1].param("level") == b'"info"'
    assert [one.paramText("uri") for one in said[2:]] == full.subscriptions

    every = (
        b'{"capabilities":{"tools":{"listChanged":true},"resources":{"listChanged":true},'
        b'"prompts":{"listChanged":true},"logging":{"listChanged":true}}}'
    )
    _, told = repetitions(record(), members(every))
    assert [one.method.split("/")[1] for one in told] == ["tools", "resources", "prompts"]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_a_record_learns_the_subscriptions_that_are_left(steps: list[tuple[bool, str]]) -> None:
    known = record()
    expected: list[str] = []
    for subscribes, uri in steps:
        method = "resources/subscribe" if subscribes else "resources/unsubscribe"
        changes = subscribes is (uri not in expected)
        assert learn(known, request(1, method, f'{{"uri":"{uri}"}}')) is changes
        if changes:
            (expected.append if subscribes else expected.remove)(uri)
    assert known.subscriptions == expected


def test_what_is_no_subscription_teaches_nothing() -> None:
    known = record()
    for method, params in [
        ("resources/subscribe", "{}"),
        ("resources/subscribe", '{"uri":1}'),
        ("resources/subscribe", '{"uri":"\\ud800"}'),
        ("resources/read", '{"uri":"a"}'),
        ("tools/call", '{"uri":"a"}'),
    ]:
        assert not learn(known, request(1, method, params))
    assert known == record()
