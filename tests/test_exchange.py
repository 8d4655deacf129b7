"""The head of a request: its fields, in order and by name."""

from __future__ import annotations

import attrs
import pytest

from gateway.wire.exchange import RequestHead

HEAD = RequestHead(
    b"POST",
    b"/servers/a%2Fb/mcp",
    b"x=1&x=2",
    (
        (b"host", b"a"),
        (b"accept", b"application/json"),
        (b"x-empty", b""),
        (b"accept", b"text/event-stream"),
        (b"host", b"b"),
    ),
)


def test_theFirstOfSeveralFieldsCounts() -> None:
    assert HEAD.header(b"host") == b"a"
    assert HEAD.header(b"accept") == b"application/json"


def test_allOfSeveralFieldsInOrder() -> None:
    assert HEAD.headerValues(b"accept") == [b"application/json", b"text/event-stream"]
    assert HEAD.headerValues(b"host") == [b"a", b"b"]


def test_aMissingFieldIsNotAnEmptyOne() -> None:
    assert HEAD.header(b"x-empty") == b""
    assert HEAD.headerValues(b"x-empty") == [b""]
    assert HEAD.header(b"x-none") is None
    assert HEAD.headerValues(b"x-none") == []
    assert RequestHead(b"GET", b"/", b"", ()).header(b"host") is None


def test_namesAreLowerCase() -> None:
    assert HEAD.header(b"Host") is None


def test_headsCompareByWhatTheySay() -> None:
    same = RequestHead(HEAD.method, HEAD.path, HEAD.query, HEAD.headers)
    assert same == HEAD
    assert hash(same) == hash(HEAD)
    other = attrs.evolve(HEAD, headers=((b"host", b"c"),))
    assert other != HEAD
    assert other.header(b"host") == b"c"


def test_aHeadDoesNotChange() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        HEAD.path = b"/other"  # type: ignore[misc]
