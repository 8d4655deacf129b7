"""Heads that are known but for their session: read as if they were new, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import AnsweringServer, Start, hello, rpc
from raw import start as start
from streams import Ear, Reading, cut, told

from gateway.http1.alike import AlikeHeads
from gateway.http1.request_head import BadRequest, RequestBounds, RequestLine
from gateway.http1.requests import RequestReader
from gateway.wire.context import HeaderPairs

A, B = b"a" * 43, b"B-_9" * 10 + b"xyz"
HOST = b"Host: a.example\r\n"
FIELD = b"POST /mcp HTTP/1.1\r\n%bA: b\r\nMcp-Session-Id: %b\r\nContent-Length: %d\r\n\r\n%b"
LATER = b"POST /mcp HTTP/1.1\r\n%bcontent-length: %d\r\nmcp-session-id: %b\r\n\r\n%b"
QUERY = b"POST /messages?session_id=%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b"
DELETE = b"DELETE /mcp HTTP/1.1\r\n%bMcp-Session-Id: %b\r\n\r\n"
NONE = b"POST /mcp HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b"


def field(session: bytes, body: bytes = b"hello", *lines: bytes) -> bytes:
    return FIELD % (HOST + b"".join(lines), session, len(body), body)


SPELLINGS = {
    "field": field,
    "later": lambda session, body=b"hello": LATER % (HOST, len(body), session, body),
    "query": lambda session, body=b"hello": QUERY % (session, HOST, len(body), body),
    "delete": lambda session, body=b"": DELETE % (HOST, session),
    "none": lambda session, body=b"hello": NONE % (HOST, len(body), body),
}


class Likes(Ear):
    """Counts the heads that were known but for their session."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.keeps = keeps
        self.alike = 0

    def memo(self) -> object | None:
        return self if self.keeps else None

    def alikeReceived(self, line: RequestLine, fields: HeaderPairs, memo: Any) -> bool:
        assert memo is not None
        self.alike += 1
        return self.headReceived(line, fields)


def connection(heads: AlikeHeads, pieces: Iterable[bytes], keeps: bool = True) -> Likes:
    """All that one connection brings; `reading` says how it ended."""
    ear = Likes(keeps)
    reader = RequestReader(ear, RequestBounds(), heads)
    try:
        for piece in pieces:
            reader.feed(piece)
            while ear.over and ear.reading.requests[-1].persistent:
                ear.over = False
                reader.proceed()
    except BadRequest as bad:
        ear.reading.refused = bad.status
    else:
        ear.reading.left = reader.reading
    return ear


def outcome(reading: Reading) -> object:
    fields = [one.headers for one in reading.requests]
    return told(reading.requests), fields, reading.refused, reading.left


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_head_that_differs_by_its_session_alone_is_known(spelling: str) -> None:
    one, heads = SPELLINGS[spelling], AlikeHeads()
    assert connection(heads, [one(A)]).alike == 0
    for pieces in ([one(B)], cut(one(B), [len(one(B)) - 2]), [one(A), one(B), one(A)]):
        ear = connection(heads, pieces)
        assert ear.alike >= (0 if len(pieces) == 2 and spelling == "delete" else 1)
        fresh = connection(AlikeHeads(), pieces)
        assert outcome(ear.reading) == outcome(fresh.reading)
    # The digits of the length are no part of it; the body is this request's own.
    if spelling != "delete":
        ear = connection(heads, [one(B, b"x" * 70_000) + one(A, b"y")])
        assert [request.body for request in ear.reading.complete] == [b"x" * 70_000, b"y"]
        assert ear.alike >= 1


def test_what_is_not_kept() -> None:
    for lines in (
        [b"Authorization: Bearer secret\r\n"],
        [b"Cookie: a=b\r\n"],
        [b"X-API-Key: secret\r\n"],
        [b"Expect: 100-continue\r\n"],
        [b"Connection: upgrade\r\nUpgrade: h2c\r\n"],
        [b"MCP-SESSION-ID: " + A + b"\r\n"],
        [b"X: " + b"x" * 3000 + b"\r\n"],
    ):
        heads = AlikeHeads()
        for session in (A, B):
            assert connection(heads, [field(session, b"hello", *lines)]).alike == 0, lines
    for one in (
        DELETE % (HOST + b"Transfer-Encoding: chunked\r\n", A) + b"0\r\n\r\n",
        DELETE % (HOST + b"Content-Length: 0\r\n", A),
    ):
        heads = AlikeHeads()
        for _ in range(2):
            assert connection(heads, [one]).alike == 0, one
    heads = AlikeHeads()
    for _ in range(2):
        assert connection(heads, [field(A)], keeps=False).alike == 0


@pytest.mark.parametrize("session", [b"", A[:-1], A + b"a", A[:-1] + b"=", b" " + A, A + b" "])
def test_an_id_of_another_form_is_read_as_if_it_were_new(session: bytes) -> None:
    heads = AlikeHeads()
    connection(heads, [field(A)])
    ear = connection(heads, [field(session)])
    assert ear.alike == 0
    assert (b"mcp-session-id", session.strip()) in ear.reading.requests[0].headers


def test_they_are_few() -> None:
    heads = AlikeHeads()
    many = [field(A, b"hello", b"X: %d\r\n" % n) for n in range(33)]
    for one in many:
        connection(heads, [one])
    assert connection(heads, [many[0]]).alike == 0
    assert connection(heads, [many[-1]]).alike == 1


TOKENS = (
    *(b"\r\n", b"\r", b"\n", b" ", b":", b"\x00", A, B, b"0", b"5", b"%", b"?session_id="),
    *(b"Mcp-Session-Id: ", b"mcp-session-id: ", b"Content-Length: ", b"Transfer-Encoding: chunked"),
    *(b"\r\nMcp-Session-Id: " + A, b"\r\nContent-Length: 5", b"\r\nX:", b"\r\n x", b"HTTP/1.1"),
)


def changed(random: Random, data: bytes) -> bytes:
    for _ in range(random.randrange(3)):
        at = random.randrange(len(data))
        data = data[:at] + random.choice(TOKENS) + data[at + random.choice((0, 0, 1, 9, 43)) :]
    return data


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32).map(Random), st.lists(st.integers(0, 600), max_size=3))
def test_whatever_came_before_a_stream_is_read_the_same(random: Random, places: list[int]) -> None:
    heads = AlikeHeads()
    makes = list(SPELLINGS.values())
    for make in makes:
        # What other connections brought, good and bad.
        connection(heads, [make(A)])
        connection(heads, [changed(random, make(B))])
    data = b"".join(changed(random, random.choice(makes)(random.choice((A, B)))) for _ in range(3))
    warm = connection(heads, cut(data, places)).reading
    assert outcome(warm) == outcome(connection(AlikeHeads(), cut(data, places)).reading)


@pytest_twisted.ensureDeferred
async def test_each_session_is_the_one_that_its_head_names(start: Start) -> None:
    stack = await start({"one": AnsweringServer("one"), "two": AnsweringServer("two")})
    sessions = [await stack.open() for _ in range(3)]
    version = (b"MCP-Protocol-Version", b"2025-06-18")
    for session in sessions:
        named = [(b"Mcp-Session-Id", session), version]
        answer = await stack.ask(b"POST", b"/mcp", rpc("ping", 1), named)
        assert answer.status == 200
    ended = [(b"Mcp-Session-Id", sessions[1]), version]
    assert (await stack.ask(b"DELETE", b"/mcp", None, ended)).status == 204
    for session, status in zip(sessions, (200, 404, 200), strict=True):
        named = [(b"Mcp-Session-Id", session), version]
        assert (await stack.ask(b"POST", b"/mcp", rpc("ping", 2), named)).status == status
        answer = await stack.ask(b"DELETE", b"/mcp", None, named)
        assert answer.status == (204 if status == 200 else 404)
    assert len(stack.shared.registry) == 0


@pytest_twisted.ensureDeferred
async def test_sessions_on_one_connection_are_each_the_one_that_its_target_names(
    start: Start,
) -> None:
    """As a reverse proxy sends them: heads that were known, of several sessions, one by one."""
    stack = await start({"one": AnsweringServer("one")})
    talks = [await stack.openSSE() for _ in range(2)]
    unknown = talks[0][1][:-43] + b"x" * 43
    client = await stack.connect()
    for endpoint in (talk[1] for talk in talks):
        for body in (hello(), rpc("notifications/initialized")):
            assert (await stack.ask(b"POST", endpoint, body)).status == 202
    for stream, _ in talks:
        assert (await stream.message())["id"] == 1
    for number, place in enumerate((0, 1, 0, 1, 2, 0, 2, 1, 1, 0, 2, 2, 0, 1), 2):
        target = unknown if place == 2 else talks[place][1]
        client.send(stack.request(b"POST", target, rpc("ping", number)))
        answer = await client.response()
        if place == 2:
            assert answer.status == 404
            continue
        assert answer.status == 202, (number, answer)
        assert (await talks[place][0].message())["id"] == number
