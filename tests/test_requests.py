"""RequestReader: every rule, every bound, any cut of any stream; h11 judges what it takes."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from malformed import (
    CHUNKS,
    CODINGS,
    EXPECTATIONS,
    FIELDS,
    REQUEST_LINES,
    TARGETS,
    VERSIONS,
)
from streams import (
    RULES,
    TOKENS,
    Ear,
    Reading,
    cut,
    difference,
    judge,
    mutated,
    read,
    stream,
    stricter,
    told,
)

from gateway.http1.request_head import BadRequest, RequestBounds, RequestLine
from gateway.http1.requests import RequestReader
from gateway.wire.context import HeaderPairs

HOST = b"Host: a.example\r\n"
NEXT = b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n"
SLICE = 1500
"""Streams of the default suite that h11 judges; the soak has a hundred times as many."""


def whole(data: bytes, **bounds: int) -> Reading:
    """The reading of a stream that comes whole, and the same byte by byte."""
    limits = RequestBounds(**bounds)
    at_once, dripped = read([data], limits), read(cut(data, range(len(data))), limits)
    assert told(at_once.requests) == told(dripped.requests) or at_once.refused
    assert (at_once.refused, at_once.limit) == (dripped.refused, dripped.limit), data
    return at_once


def head(*lines: bytes, line: bytes = b"POST /mcp HTTP/1.1") -> bytes:
    return b"\r\n".join([line, HOST[:-2], *lines, b"", b""])


def refused(data: bytes, **bounds: int) -> tuple[int, str]:
    """A stream is refused before any of it has become a request, or the end of one."""
    reading = whole(data, **bounds)
    assert reading.refused, data
    assert not reading.complete, data
    return reading.refused, reading.limit


def taken(data: bytes, **bounds: int) -> Reading:
    """A stream that is a request, and the next one right behind it."""
    reading = whole(data + NEXT, **bounds)
    assert not reading.refused, (data, reading.why)
    first, second = reading.requests
    assert first.ended and second.ended, data
    assert second.target == b"/next"
    return reading


# The rules.


def test_rule_1_a_request_line_is_that_and_nothing_else() -> None:
    for line in REQUEST_LINES:
        assert refused(head(line=line)) == (400, ""), line


def test_rule_2_the_version_is_1_0_or_1_1() -> None:
    for version in VERSIONS:
        assert refused(head(line=b"GET /mcp HTTP/" + version)) == (505, ""), version


def test_rule_2_the_preface_of_http_2_is_a_version_that_is_not_spoken() -> None:
    assert refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == (505, "")


@pytest.mark.parametrize("method", [b"GET", b"POST", b"BREW", b"M-SEARCH"])
def test_rule_3_a_target_is_visible_ascii_and_has_no_fragment(method: bytes) -> None:
    """What is no form of a target at all llhttp refuses, also for methods it does not know."""
    for target in TARGETS:
        assert refused(head(line=b"%b %b HTTP/1.1" % (method, target))) == (400, ""), target


def test_rule_3_other_targets_are_told_as_they_came() -> None:
    for target in (b"/", b"//", b"/%00%zz", b"/a?b?c", b"*", b"http://h:1/a", b"/\\"):
        assert taken(head(line=b"GET %b HTTP/1.1" % target)).requests[0].target == target


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_rule_4_any_token_is_a_method(framing: bytes) -> None:
    body = {b"": b"", b"C": b"hello", b"T": b"5\r\nhello\r\n0\r\n\r\n"}[framing[:1]]
    lines = (framing,) if framing else ()
    for method in (b"GET", b"HEAD", b"TRACE", b"get", b"PRI", b"M-SEARCH", b"!#$%&'*+-.^_`|~"):
        request = taken(head(*lines, line=method + b" /mcp HTTP/1.1") + body).requests[0]
        assert (request.method, request.target) == (method, b"/mcp")
        assert request.body == (b"hello" if framing else b"")


@pytest.mark.parametrize("target", [b"a.example:443", b"/mcp", b"[::1]:80", b"*"])
def test_rule_4_connect_begins_no_tunnel(target: bytes) -> None:
    data = head(b"Content-Length: 5", line=b"CONNECT %b HTTP/1.1" % target) + b"hello"
    request = taken(data).requests[0]
    assert (request.method, request.target, request.body) == (b"CONNECT", target, b"hello")


def test_rule_5_a_transfer_encoding_is_chunked_once() -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    for lines, status in CODINGS:
        assert refused(head(*lines) + body) == (status, ""), lines
        upgraded = [*lines, b"Connection: upgrade", b"Upgrade: h2c"]
        assert refused(head(*upgraded) + body)[0] in (400, 501), lines


def test_rule_5_chunks_are_not_of_http_1_0() -> None:
    data = head(b"Transfer-Encoding: chunked", line=b"POST /mcp HTTP/1.0") + b"0\r\n\r\n"
    assert refused(data) == (400, "")


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"CHUNKED", b" chunked  "])
def test_rule_5_its_name_is_case_insensitive(coding: bytes) -> None:
    data = head(b"Transfer-Encoding:" + coding) + b"5\r\nhello\r\n0\r\n\r\n"
    request = taken(data).requests[0]
    assert (request.length, request.body) == (None, b"hello")


def test_rule_5_llhttp_takes_no_tab_after_chunked() -> None:
    """It may; where there is an Upgrade it is not asked, and the tab is whitespace as any."""
    lines = [b"Transfer-Encoding: chunked\t"]
    body = b"5\r\nhello\r\n0\r\n\r\n"
    assert refused(head(*lines) + body) == (400, "")
    taken(head(*lines, b"Connection: upgrade", b"Upgrade: h2c") + body)


def test_rule_6_the_only_expectation_is_100_continue() -> None:
    for value in EXPECTATIONS:
        assert refused(head(b"Expect: " + value)) == (417, ""), value


@pytest.mark.parametrize(
    ("version", "lines", "continues", "ended"),
    [
        (b"1.1", [b"Content-Length: 5"], True, False),
        (b"1.1", [b"Transfer-Encoding: chunked"], True, False),
        (b"1.1", [b"Content-Length: 0"], False, True),
        (b"1.1", [], False, True),
        (b"1.0", [b"Content-Length: 5"], False, False),
    ],
)
def test_rule_6_who_expects_100_and_who_does_not(
    version: bytes, lines: list[bytes], continues: bool, ended: bool
) -> None:
    data = head(b"Expect: 100-Continue", *lines, line=b"POST /mcp HTTP/" + version)
    (request,) = whole(data).requests
    assert (request.continues, request.ended) == (continues, ended)


@pytest.mark.parametrize("method", [b"GET", b"POST", b"BREW", b"CONNECT"])
def test_rule_7_an_upgrade_is_ignored(method: bytes) -> None:
    framings = (
        ([], b""),
        ([b"Content-Length: 5"], b"hello"),
        ([b"Content-Length: 0"], b""),
        ([b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    )
    upgrades = (b"websocket", b"h2c", b"TLS/1.0, x")
    closes = ([], [b"Connection: close"])
    for (framing, body), upgrade, close in product(framings, upgrades, closes):
        lines = [b"Connection: keep-alive, Upgrade", b"Upgrade: " + upgrade, *framing, *close]
        reading = whole(head(*lines, line=method + b" /mcp HTTP/1.1") + body + NEXT)
        assert not reading.refused, lines
        request = reading.requests[0]
        assert request.method == method
        assert request.body == (b"hello" if body else b"")
        assert request.persistent is not bool(close)
        assert len(request.headers) == 1 + len(lines)
        assert len(reading.complete) == (1 if close else 2)


def test_rule_7_of_a_refused_upgrades_body_nothing_is_taken_for_a_request() -> None:
    lines = [b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(NEXT)]
    reading = taken(head(*lines) + NEXT)
    assert [request.body for request in reading.requests] == [NEXT, b""]


def test_rule_7_one_empty_line_before_a_request_is_nothing() -> None:
    reading = whole((b"\r\n" + NEXT) * 3)
    assert [request.target for request in reading.complete] == [b"/next"] * 3
    assert refused(b"\r\n\r\n" + NEXT) == (400, "")
    assert refused(b"\r" + NEXT) == (400, "")
    assert refused(b"\n" + NEXT) == (400, "")
    assert whole(b"\r\n").left == ""


# Heads that llhttp judges; that it does is our rule, too.


def test_a_malformed_field() -> None:
    for lines in FIELDS:
        assert refused(head(*lines) + b"hello") == (400, ""), lines


@pytest.mark.parametrize("value", [b"5", b"005", b"5  ", b"  5"])
def test_a_length(value: bytes) -> None:
    request = taken(head(b"Content-Length:" + value) + b"hello").requests[0]
    assert (request.length, request.body) == (5, b"hello")
    assert request.headers[-1] == (b"content-length", value.strip())


def test_whitespace_around_a_value_is_none_of_it() -> None:
    fields = [b"A:x", b"B:  x", b"C: x \t ", b"D:", b"E: \t", b"F: \xff y\t z"]
    values = [value for _, value in taken(head(*fields)).requests[0].headers]
    assert values == [b"a.example", b"x", b"x", b"x", b"", b"", b"\xff y\t z"]


def test_fields_keep_their_order_and_an_underscore_is_no_dash() -> None:
    names = (b"Content_Length", b"Mcp_Session_Id", b"X-A", b"x-a", b"Transfer_Encoding")
    fields = [b"%b: %d" % (name, n) for n, name in enumerate(names)]
    request = taken(head(*fields)).requests[0]
    assert request.headers[1:] == tuple((n.lower(), b"%d" % i) for i, n in enumerate(names))
    assert request.length == 0


@pytest.mark.parametrize(
    ("version", "connection", "persistent"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"close"], False),
        (b"1.1", [b"Close"], False),
        (b"1.1", [b"keep-alive"], True),
        (b"1.1", [b"x, close , y"], False),
        (b"1.1", [b"x", b"close"], False),
        (b"1.1", [b"keep-alive, close"], False),
        (b"1.1", [b"closed"], True),
        (b"1.0", [], False),
        (b"1.0", [b"close"], False),
        (b"1.0", [b"keep-alive"], True),
        (b"1.0", [b"Keep-Alive"], True),
    ],
)
@pytest.mark.parametrize("body", [b"", b"hello"])
def test_which_connections_persist(
    version: bytes, connection: list[bytes], persistent: bool, body: bytes
) -> None:
    lines = [b"Connection: " + value for value in connection]
    if body:
        lines.append(b"Content-Length: 5")
    data = head(*lines, line=b"POST /mcp HTTP/" + version) + body
    assert whole(data).requests[0].persistent is persistent
    assert len(whole(data + NEXT).complete) == (2 if persistent else 1)


# Chunks.

CHUNKED = head(b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b"2\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        (b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"),
        (b'5;a;b=c;d="e f"\r\nhello\r\n0;z\r\n\r\n', b"hello"),
        (b"5\r\nhello\r\n0\r\nX-T: y\r\nA:\r\n\r\n", b"hello"),
        (b"0\r\n0: 0\r\n\r\n", b""),
    ],
)
def test_a_chunked_body(body: bytes, says: bytes) -> None:
    request = taken(CHUNKED + body).requests[0]
    assert request.body == says
    assert len(request.headers) == 2, "trailers are thrown away"


def test_a_malformed_chunked_body() -> None:
    for body in CHUNKS:
        assert refused(CHUNKED + body) == (400, ""), body


@pytest.mark.parametrize(
    "body", [b"0\r\n", b"0\r\n\r", b"5\r\nhello\r\n0\r\nX: y\r\n", b"5\r\nhel", b"f", b"5;a"]
)
def test_a_body_whose_end_is_missing_has_not_ended(body: bytes) -> None:
    reading = whole(CHUNKED + body)
    assert not reading.refused
    assert not reading.complete
    assert reading.left == "body"


def test_a_piece_of_a_body_is_told_as_one_piece() -> None:
    ear = Ear()
    reader = RequestReader(ear, RequestBounds())
    reader.feed(CHUNKED + b"1\r\nx\r\n" * 5000)
    assert ear.pieces == [b"x" * 5000]


def test_a_body_of_line_breaks_is_read_in_linear_time() -> None:
    """Counted, not timed: how many bytes are handed to llhttp, and how often."""
    ear = Ear()
    reader = RequestReader(ear, RequestBounds())
    reader.feed(CHUNKED)
    fed: list[int] = []
    parse = reader._parse
    type(reader)._parse = lambda self, data: (fed.append(len(data)), parse(data))[1]  # type: ignore[method-assign]
    try:
        body = b"\r\n" * 32_000
        reader.feed(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    finally:
        type(reader)._parse = parse.__func__  # type: ignore[attr-defined,method-assign]
    assert len(fed) == 1
    assert ear.reading.requests[0].body == body


# Bounds.

LINE = b"GET /%b HTTP/1.1\r\n"
OVERHEAD = len(LINE % b"") - 2


@pytest.mark.parametrize("over", [0, 1])
def test_bound_of_the_request_line(over: int) -> None:
    line = LINE % (b"x" * (1000 + over - OVERHEAD))
    data = line + HOST + b"\r\n"
    if over:
        assert refused(data, max_head_line=1000) == (414, "max_head_line")
        assert refused(line[:-1], max_head_line=1000) == (414, "max_head_line")
        assert refused(b"x" * 1003, max_head_line=1000) == (414, "max_head_line")
    else:
        taken(data, max_head_line=1000)


def test_a_malformed_line_is_not_too_long_because_much_follows() -> None:
    assert refused(b"GET  / HTTP/1.1\r\n" + HOST * 100, max_head_line=1000) == (400, "")
    assert refused(b"\x16\x03" + b"x" * 2000, max_head_line=1000) == (400, "")


@pytest.mark.parametrize("over", [0, 1])
def test_bound_of_a_fields_line(over: int) -> None:
    data = head(b"X-Long: " + b"x" * (1000 + over - 8))
    if over:
        assert refused(data, max_head_line=1000) == (431, "max_head_line")
    else:
        taken(data, max_head_line=1000)


@pytest.mark.parametrize("over", [0, 1])
def test_bound_of_the_fields_number(over: int) -> None:
    data = head(*[b"X-%d: x" % n for n in range(19 + over)])
    if over:
        assert refused(data, max_head_fields=20) == (431, "max_head_fields")
    else:
        assert len(taken(data, max_head_fields=20).requests[0].headers) == 20


@pytest.mark.parametrize("over", [0, 1])
def test_bound_of_the_head(over: int) -> None:
    size = len(head(b"X: "))
    data = head(b"X: " + b"x" * (500 - size + over))
    if over:
        assert refused(data, max_head=500) == (431, "max_head")
        assert refused(data[:-4] + b"x" * 100, max_head=500) == (431, "max_head")
    else:
        taken(data, max_head=500)


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("chunks", [1, 3, 50])
def test_bound_of_chunk_extensions(over: int, chunks: int) -> None:
    """Of all chunks together, the last one's with them."""
    extensions = [b";abc"] * (chunks - 1)
    extensions.append(b";" + b"x" * (200 + over - 4 * len(extensions) - 1))
    body = b"".join(b"5%b\r\nhello\r\n" % extension for extension in extensions[:-1])
    data = CHUNKED + body + b"0%b\r\n\r\n" % extensions[-1]
    if over:
        assert refused(data, max_chunk_extensions=200) == (400, "max_chunk_extensions")
    else:
        taken(data, max_chunk_extensions=200)


def test_an_extension_without_end_is_refused_before_its_end() -> None:
    assert refused(CHUNKED + b"5;" + b"x" * 200, max_chunk_extensions=200) == (
        400,
        "max_chunk_extensions",
    )


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("lines", [1, 4])
def test_bound_of_trailers(over: int, lines: int) -> None:
    size, rest = divmod(300 + 2 + over, lines)
    trailers = b"".join(
        b"X: %b\r\n" % (b"x" * (size - 5 + (rest if n == 0 else 0))) for n in range(lines)
    )
    assert len(trailers) == 302 + over
    data = CHUNKED + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n"
    if over:
        assert refused(data, max_trailers=300) == (400, "max_trailers")
    else:
        taken(data, max_trailers=300)


def test_a_trailer_is_no_extension_however_it_comes() -> None:
    data = CHUNKED + b"0\r\nX: " + b"x" * 3000 + b"\r\n\r\n"
    taken(data, max_chunk_extensions=10)


# One after the other.


def test_what_comes_after_a_request_waits() -> None:
    ear = Ear()
    reader = RequestReader(ear, RequestBounds())
    reader.feed(NEXT * 2 + b"GET")
    assert len(ear.reading.requests) == 1
    assert reader.waiting == len(NEXT) + 3
    reader.feed(b" /third")
    assert reader.waiting == len(NEXT) + 10
    reader.proceed()
    assert len(ear.reading.requests) == 2
    reader.proceed()
    assert (reader.waiting, reader.reading) == (0, "head")
    reader.feed(b" HTTP/1.1\r\n\r\n")
    assert [request.target for request in ear.reading.complete] == [b"/next", b"/next", b"/third"]


def test_an_owner_that_stops_hears_nothing_more() -> None:
    class Deaf(Ear):
        at = "head"

        def headReceived(self, line: RequestLine, fields: HeaderPairs) -> bool:
            remembers = super().headReceived(line, fields)
            if self.at == "head":
                reader.stop()
            return remembers

        def bodyReceived(self, data: bytes) -> None:
            super().bodyReceived(data)
            if self.at == "body":
                reader.stop()

        def requestEnded(self) -> None:
            super().requestEnded()
            reader.stop()

    for at, ended in (("head", False), ("body", False), ("end", True)):
        for pieces in ([0], range(10_000)):
            deaf = Deaf()
            deaf.at = at
            reader = RequestReader(deaf, RequestBounds())
            data = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + NEXT + b"\x00"
            for piece in cut(data, pieces):
                reader.feed(piece)
            reader.proceed()
            reader.stop()
            (request,) = deaf.reading.requests
            assert request.ended is ended


# Any cut, any stream.


def same(data: bytes, places: list[int], **bounds: int) -> None:
    """
    Wherever a stream is cut, it is read the same. A stream with two faults may be refused for
    either; of a request that is refused in its body, some of the body may have been told.
    """
    limits = RequestBounds(**bounds)
    once, again = read([data], limits), read(cut(data, places), limits)
    assert told(once.complete) == told(again.complete)
    assert bool(once.refused) is bool(again.refused), (once, again)
    assert once.left == again.left
    for one, other in zip(once.requests, again.requests, strict=False):
        assert one.framing == other.framing
        assert one.body.startswith(other.body) or other.body.startswith(one.body)
    if not once.refused:
        assert told(once.requests) == told(again.requests)


cuts = st.lists(st.integers(0, 1500), max_size=12)
randoms = st.integers(0, 2**32).map(Random)


@settings(max_examples=300, deadline=None)
@given(randoms, cuts)
def test_any_cut_of_a_stream_gives_the_same(random: Random, places: list[int]) -> None:
    data = stream(random)
    same(data, places)
    reading = read(cut(data, places))
    assert not reading.refused
    assert reading.requests[-1].ended


@settings(max_examples=500, deadline=None)
@given(randoms, cuts)
def test_any_cut_of_a_mutated_stream_gives_the_same(random: Random, places: list[int]) -> None:
    same(mutated(random), places)


@settings(max_examples=300, deadline=None)
@given(randoms, cuts)
def test_any_cut_gives_the_same_at_the_bounds(random: Random, places: list[int]) -> None:
    same(
        stream(random),
        places,
        max_head=random.randrange(40, 300),
        max_head_line=random.randrange(15, 60),
        max_head_fields=random.randrange(1, 6),
        max_chunk_extensions=random.randrange(1, 12),
        max_trailers=random.randrange(1, 16),
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=8), st.sampled_from(TOKENS)), max_size=20), cuts)
@example([b"\r"], [])
@example([b"GET / HTTP/1.1\r\n\r"], [])
def test_only_bad_request_escapes(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    for one in (data, CHUNKED + data, head() + data, b"GET / HTTP/1.1\r\n" + data):
        same(one, places)


# h11 judges.


def test_h11_takes_every_request_we_take_and_ends_it_where_we_do() -> None:
    seed = Random().randrange(2**32)
    print(f"streams seed {seed}")
    used: set[str] = set()
    for number in range(SLICE):
        random = Random(seed + number)
        data = mutated(random) if number % 4 else stream(random)
        ours, theirs = read([data]), judge(data)
        assert not difference(data, ours, theirs), (seed + number, data)
        rules = stricter(ours, theirs)
        assert rules != [], (seed + number, ours.why, data)
        used.update(rules or ())
    # Otherwise nothing was judged.
    assert len(used) > 5


def test_a_well_formed_request_breaks_no_rule_by_which_we_are_stricter() -> None:
    for body in (b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"):
        raw = b"POST /mcp HTTP/1.1\r\n" + HOST + body
        assert not [rule for rule, pattern in RULES.items() if pattern.search(raw)]


# Heads that were read before.


class Knowing(Ear):
    """Counts what it is told of as known."""

    known = 0

    def requestReceived(self, line: RequestLine, fields: HeaderPairs, body: bytes) -> None:
        self.known += 1
        super().requestReceived(line, fields, body)


def conversation(*requests: bytes, remembers: bool = True) -> tuple[Knowing, int]:
    """Each request in a read of its own; what was told, and the status of a refusal."""
    ear = Knowing()
    ear.remembers = remembers
    reader = RequestReader(ear, RequestBounds())
    for one in requests:
        try:
            reader.feed(one)
            while ear.over:
                ear.over = False
                reader.proceed()
        except BadRequest as bad:
            return ear, bad.status
    return ear, 0


def posted(declared: bytes, body: bytes, *lines: bytes) -> bytes:
    return head(*lines, b"Content-Length: " + declared) + body


@pytest.mark.parametrize("spelling", [b"Content-Length", b"content-length"])
def test_a_head_that_differs_by_its_length_alone_is_known(spelling: bytes) -> None:
    def one(body: bytes) -> bytes:
        return head(b"A: b", spelling + b": %d" % len(body), b"C: d") + body

    bodies = [b"hello", b"x" * 1234, b"y", b"x" * 99_999]
    ear, status = conversation(*map(one, bodies))
    assert status == 0
    assert ear.known == 3
    assert [request.body for request in ear.reading.complete] == bodies
    # One after the other in one read, and cut anywhere.
    joined = b"".join(map(one, bodies[:3]))
    assert [request.body for request in read([joined]).complete] == bodies[:3]
    for place in range(len(one(b"hello")), len(joined) - 1200):
        assert [one.body for one in read(cut(joined, [place])).complete] == bodies[:3]


def test_a_remembered_head_makes_nothing_good_that_is_not() -> None:
    good = posted(b"5", b"hello")
    for declared, status in (
        (b"+5", 400),
        (b"-5", 400),
        (b"5,5", 400),
        (b"5 5", 400),
        (b"0x5", 400),
        (b"", 400),
        (b"\xd9\xa5", 400),
        (b"5\r\nContent-Length: 5", 400),
        (b"5\r\ncontent-length: 6", 400),
        (b"5\r\nTransfer-Encoding: chunked", 400),
        (b"5\r\n x", 400),
        (b"5\x00", 400),
        (b"5\n", 400),
    ):
        ear, refused_ = conversation(good, good, posted(declared, b"hello"))
        assert (refused_, ear.known) == (status, 1), declared
        assert len(ear.reading.complete) == 2


def test_what_is_said_otherwise_is_read_as_if_it_were_new() -> None:
    good = posted(b"5", b"hello")
    for other, body in (
        (posted(b"005", b"hello"), b"hello"),
        (posted(b"5 ", b"hello"), b"hello"),
        (posted(b"0", b""), b""),
        (posted(b"000005", b"hello"), b"hello"),
        (posted(b"5", b"hello", b"X: y"), b"hello"),
        (head(b"Content-Length:5") + b"hello", b"hello"),
        (head(b"CONTENT-LENGTH: 5") + b"hello", b"hello"),
        (head(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"\r\n" + good, b"hello"),
    ):
        ear, status = conversation(good, other, other, good)
        assert status == 0, other
        assert [request.body for request in ear.reading.complete] == [
            b"hello",
            body,
            body,
            b"hello",
        ]


def test_what_is_not_remembered() -> None:
    for lines in (
        [b"Expect: 100-continue"],
        [b"Connection: upgrade", b"Upgrade: h2c"],
    ):
        one = posted(b"5", b"hello", *lines)
        ear, status = conversation(one, one, one)
        assert (status, ear.known) == (0, 0), lines
    one = posted(b"5", b"hello")
    assert conversation(one, one, remembers=False)[0].known == 0
    long = posted(b"5", b"hello", b"X: " + b"x" * 5000)
    assert conversation(long, long)[0].known == 0


def test_two_heads_are_remembered_and_more_take_their_place() -> None:
    requests = [posted(b"5", b"hello", b"X: %d" % n) for n in range(3)]
    assert conversation(*requests[:2] * 3)[0].known == 4
    ear, status = conversation(*requests * 3)
    assert status == 0
    assert len(ear.reading.complete) == 9


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"5", b"12", b"1234", b"0", b"005", b"5 "]), max_size=6), cuts)
def test_a_remembered_head_is_read_as_it_would_be_anew(
    lengths: list[bytes], places: list[int]
) -> None:
    parts = []
    for declared in lengths:
        body = (b"\r\n\r\nContent-Length: 5\r\n\r\n" * 60)[: int(declared)]
        parts.append(posted(declared, body))
    data = b"".join(parts)
    same(data, places)
    remembered, anew = read(cut(data, places)), judge(data)
    assert not difference(data, remembered, anew)
    assert len(remembered.complete) == len(lengths)
