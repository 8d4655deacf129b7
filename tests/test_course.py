"""What is remembered of one stream of a server, over all its connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_support import notify

from gateway.links.course import MAX_RETRY, MIN_RETRY, REMEMBERED, RETRY, Course
from gateway.links.interfaces import EventMark
from gateway.wire.context import CallContext


def course() -> Course:
    return Course(CallContext("up"))


@pytest.mark.parametrize(
    ("retry", "seconds"),
    [
        (b"2500", 2.5),
        (b"0", MIN_RETRY),
        (b"99999999", MAX_RETRY),
        (b"9" * 20, RETRY),
        (b"", RETRY),
        (b"1.5", RETRY),
        (b"-1", RETRY),
        (None, RETRY),
    ],
)
def test_the_servers_retry_within_reason(retry: bytes | None, seconds: float) -> None:
    one = course()
    one.saw(EventMark(b"e", retry))
    assert one.retry == seconds


def test_the_last_id_counts_and_an_empty_one_is_none() -> None:
    one = course()
    for id, last in [(b"a", b"a"), (None, b"a"), (b"b", b"b"), (b"", None), (b"x\x01", None)]:
        one.saw(EventMark(id, b"100"))
        assert one.last == last


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.booleans())
def test_each_thing_is_new_once(ids: list[str], numbered: bool) -> None:
    one, had = course(), set()
    for id in ids:
        one.fruitless = 3
        if numbered:
            one.saw(EventMark(id.encode()))
        else:
            one.saw(None, notify("notifications/x", f'{{"x":"{id}"}}'))
        assert one.fruitless == (3 if id in had else 0)
        had.add(id)


def test_a_known_message_under_a_new_id_is_new_and_so_is_the_reverse() -> None:
    one = course()
    for mark, text, isNew in [
        ("1", "a", True),
        ("1", "a", False),
        ("2", "a", True),
        ("2", "b", True),
        ("1", "b", False),
    ]:
        one.fruitless = 1
        one.saw(EventMark(mark.encode()), notify("notifications/x", f'{{"x":"{text}"}}'))
        assert (one.fruitless == 0) is isNew


def test_what_it_remembers_is_bounded() -> None:
    one = course()
    for n in range(10 * REMEMBERED):
        one.saw(EventMark(b"%d" % n), notify("notifications/x", f'{{"x":{n}}}'))
    assert len(one._had) == REMEMBERED
    one.fruitless = 1
    one.saw(EventMark(b"%d" % n))
    assert one.fruitless == 1


def test_an_id_is_given_up_after_so_many_refusals_in_a_row() -> None:
    one = course()
    one.saw(EventMark(b"a"))
    one.refused(2)
    one.opened(0.0)
    one.refused(2)
    assert one.last == b"a"
    one.refused(2)
    assert one.last is None


def test_what_lasted_was_not_in_vain() -> None:
    one = course()
    for held, left in [(29.0, 4), (30.0, 0)]:
        one.fruitless = 4
        one.opened(100.0)
        one.ended(100.0 + held, 30.0)
        assert one.fruitless == left
