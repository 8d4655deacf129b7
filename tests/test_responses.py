"""How responses are read: the rules of `gateway.http1.responses`, against h11 as another judge."""

from __future__ import annotations

import re
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.http1.responses import (
    END,
    BadResponse,
    End,
    Event,
    ResponseHead,
    ResponseReader,
)

MAX_HEAD = 8192
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, cuts: list[int] | None = None) -> tuple[list[Event], ResponseReader]:
    """The events of a response that comes in pieces; each cut is a place in it."""
    reader = ResponseReader(MAX_HEAD)
    reader.expect()
    events: list[Event] = []
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or ())})
    for start, end in pairwise(places):
        events += reader.feed(data[start:end])
        if isinstance(events[-1:] and events[-1], BadResponse):
            break
    return events, reader


def bodyOf(events: list[Event]) -> bytes:
    return b"".join(event for event in events if isinstance(event, bytes))


def normal(events: list[Event]) -> tuple[object, ...]:
    """Events without how the body is cut; an END that was taken back does not count."""
    heads = [(e.status, e.pairs) for e in events if isinstance(e, ResponseHead)]
    bad = isinstance(events[-1:] and events[-1], BadResponse)
    return (heads, bodyOf(events), bad or END in events, bad)


# What is read.


def test_aResponseInOneRead() -> None:
    data = OK + b"Content-Type: Text/Plain; a=b\r\nX:\r\nX:  1 \r\nContent-Length: 2\r\n\r\nab"
    (head, body, end), reader = read(data)
    assert isinstance(head, ResponseHead)
    assert (head.status, body, end) == (200, b"ab", END)
    assert head.values(b"x") == [b"", b"1"]
    assert head.mediaType == b"text/plain"
    assert not head.encoded
    assert reader.reusable


@pytest.mark.parametrize(
    ("rest", "body", "reusable"),
    [
        (b"Content-Length: 0\r\n\r\n", b"", True),
        (b"Content-Length: 000000000000000002\r\n\r\nab", b"ab", True),
        (b'Transfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n1;x="y"\r\nc\r\n0\r\n\r\n', b"abc", True),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0;e\r\nT: u\r\nV: w\r\n\r\n", b"a", True),
        (b"Connection: keep-alive\r\nContent-Length: 1\r\n\r\na", b"a", True),
        (b"Connection: x, Close\r\nContent-Length: 1\r\n\r\na", b"a", False),
        (b"Connection: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", b"a", False),
        (b"Connection: enclosed\r\nContent-Length: 1\r\n\r\na", b"a", True),
        (b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"", False),
        (b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 1\r\n\r\na", b"a", True),
    ],
)
def test_howABodyEnds(rest: bytes, body: bytes, reusable: bool) -> None:
    events, reader = read(OK + rest)
    assert (bodyOf(events), events[-1]) == (body, END)
    assert reader.reusable is reusable
    assert [isinstance(event, ResponseHead) for event in events].count(True) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_aResponseWithoutABody(head: bytes) -> None:
    events, reader = read(head)
    assert events[1:] == [END]
    assert reader.reusable


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_aBodyThatEndsWithItsConnection(version: bytes) -> None:
    events, reader = read(b"HTTP/%b 200 OK\r\n\r\nab" % version)
    events += reader.feed(b"c")
    assert (bodyOf(events), END in events) == (b"abc", False)
    assert reader.eof()
    assert not reader.reusable


@pytest.mark.parametrize(
    "data", [b"", OK, OK + b"Content-Length: 2\r\n\r\na", CHUNKED, CHUNKED + b"1\r\na\r\n"]
)
def test_anEndThatComesTooSoon(data: bytes) -> None:
    events, reader = read(data)
    assert END not in events
    assert not reader.eof()


def test_anOlderVersionIsNotUsedAgain() -> None:
    data = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na"
    events, reader = read(data)
    assert events[-1] is END
    assert not reader.reusable


def test_interimHeadsArePassedOver() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\n"
    events, _ = read(interim + OK + b"Content-Length: 1\r\n\r\na")
    (head, body, end) = events
    assert isinstance(head, ResponseHead)
    assert (head.status, head.values(b"link"), body, end) == (200, [], b"a", END)


def test_oneResponseAfterTheOther() -> None:
    """Nothing of one response, its trailers least of all, gets into the next."""
    reader = ResponseReader(MAX_HEAD)
    for data in (
        CHUNKED + b"1\r\na\r\n0\r\nT: u\r\n\r\n",
        b"HTTP/1.1 204 X\r\nA: b\r\n\r\n",
        OK + b"Content-Length: 1\r\nC: d\r\n\r\na",
    ) * 2:
        reader.expect()
        events = reader.feed(data)
        assert events[-1] is END
        head = events[0]
        assert isinstance(head, ResponseHead)
        assert len(head.pairs) in (1, 2)
        assert head.values(b"t") == []


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ([], False),
        ([b"identity"], False),
        ([b""], False),
        ([b"Identity, identity"], False),
        ([b"gzip"], True),
        ([b"identity", b"br"], True),
    ],
)
def test_contentCodings(value: list[bytes], encoded: bool) -> None:
    head = ResponseHead(200, [(b"content-encoding", one) for one in value])
    assert head.encoded is encoded


def test_aMediaTypeThatComesTwiceIsNone() -> None:
    pairs = [(b"content-type", b"text/event-stream"), (b"content-type", b"application/json")]
    assert ResponseHead(200, pairs).mediaType == b""
    assert ResponseHead(200, []).mediaType == b""


# What is refused.


@pytest.mark.parametrize(
    "data",
    [
        # Acceptance 72: heads.
        b"nonsense\r\n\r\n",
        b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"\n" + OK,
        b" " + OK,
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\x01K\r\n\r\n",
        b"HTTP/1.1 200 O\rK\r\n\r\n",
        b"HTTP/1.1 200 O\x7fK\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        OK.replace(b"\r", b"") + b"A: b\n\n",
        OK + b"A: b\n\r\n",
        OK + b"A: b\n",
        OK + b"A: b\r\r\n\r\n",
        OK + b" A: b\r\n\r\n",
        OK + b"A: b\r\n c\r\n\r\n",
        OK + b"A:\r\n\tc\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b": b\r\n\r\n",
        OK + b"A\r\n\r\n",
        OK + b"A(: b\r\n\r\n",
        OK + b"A: \x00\r\n\r\n",
        OK + b"A: \x7f\r\n\r\n",
        OK + b"A: b\rc\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
        # Framing.
        OK + b"Content-Length: +1\r\n\r\na",
        OK + b"Content-Length: -1\r\n\r\na",
        OK + b"Content-Length: 0x1\r\n\r\na",
        OK + b"Content-Length: 1,1\r\n\r\na",
        OK + b"Content-Length: 1 1\r\n\r\na",
        OK + b"Content-Length: \xb2\r\n\r\na",
        OK + b"Content-Length:\r\n\r\na",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
        OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
        OK + b"Content-Length: " + b"1" * 19 + b"\r\n\r\na",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"\r\n",
        CHUNKED + b"0x1\r\na\r\n",
        CHUNKED + b"-1\r\na\r\n",
        CHUNKED + b" 1\r\na\r\n",
        CHUNKED + b"1 \r\na\r\n",
        CHUNKED + b"1\na\r\n",
        CHUNKED + b"1;\r\na\r\n",
        CHUNKED + b"1;a\x01\r\na\r\n",
        CHUNKED + b"1\r\nab\r\n",
        CHUNKED + b"1\r\na\n",
        CHUNKED + b"f" * 17 + b"\r\n",
        CHUNKED + b"0\r\nA b\r\n\r\n",
        CHUNKED + b"0\r\n\n",
        # More than one response.
        OK + b"Content-Length: 1\r\n\r\nab",
        OK + b"Content-Length: 1\r\n\r\na\r\n",
        OK + b"Content-Length: 0\r\n\r\n" + OK,
        b"HTTP/1.1 204 X\r\n\r\na",
        b"HTTP/1.1 304 X\r\nContent-Length: 1\r\n\r\na",
        CHUNKED + b"0\r\n\r\n\r\n",
        CHUNKED + b"0\r\n\r\n\n",
        CHUNKED + b"0\r\n\r\n\r",
        CHUNKED + b"0\r\nA: b\r\n\r\n\r\n",
        CHUNKED + b"0\r\n\r\n" + OK,
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
    ],
)
@pytest.mark.acceptance(72)
def test_acceptance_72_whatIsNoOneResponseIsRefused(data: bytes) -> None:
    for cuts in ([], list(range(len(data)))):
        events, reader = read(data, cuts)
        assert isinstance(events[-1], BadResponse)
        assert not events[-1].bound
        assert reader.feed(b"x") == []
        assert not reader.eof()


@pytest.mark.acceptance(72)
def test_acceptance_72_aHeadIsBoundedToTheByte() -> None:
    ends = b"Content-Length: 0\r\n\r\n"
    # In lines that are short enough.
    lines = b"".join(b"A: %b\r\n" % (b"b" * 995) for _ in range(8))
    filler = MAX_HEAD - len(OK) - len(lines) - len(ends) - len(b"A: \r\n")
    interim = b"HTTP/1.1 100 C\r\n\r\n"
    for size, bad in ((filler, False), (filler + 1, True)):
        data = OK + lines + b"A: " + b"b" * size + b"\r\n" + ends
        for cuts in ([], [100, 5000], list(range(len(data)))):
            events, _ = read(data, cuts)
            assert events[-1] == (BadResponse("the head is too large", bound=True) if bad else END)
            assert isinstance(read(interim + data, cuts)[0][-1], BadResponse)
    for endless in (OK + b"A: " + b"b" * MAX_HEAD, interim * 600, OK + b"A: b\r\n" * 2000):
        for cuts in ([], [7, 4000, 8191]):
            assert read(endless, cuts)[0] == [BadResponse("the head is too large", bound=True)]


def test_aLineIsBounded() -> None:
    reader = ResponseReader(65536)
    reader.expect()
    (bad,) = reader.feed(OK + b"A: " + b"b" * 16_384 + b"\r\n\r\n")
    assert isinstance(bad, BadResponse)


@pytest.mark.parametrize("start", [b"1;", b"0\r\nA: "])
def test_whatIsNoDataInABodyIsBounded(start: bytes) -> None:
    reader = ResponseReader(MAX_HEAD)
    reader.expect()
    reader.feed(CHUNKED + start)
    fed = 0
    while not (events := reader.feed(b"a" * 1000)):
        fed += 1000
    assert events == [BadResponse("extensions or trailers that are too large", bound=True)]
    assert fed <= MAX_HEAD


def test_dataBetweenMakesRoomForMoreExtensions() -> None:
    reader = ResponseReader(MAX_HEAD)
    reader.expect()
    reader.feed(CHUNKED)
    for _ in range(100):
        assert reader.feed(b"1;" + b"e" * 1000) == []
        assert reader.feed(b"\r\na\r\n") == [b"a"]
    assert reader.feed(b"0\r\n\r\n") == [END]


def test_whatNobodyAskedForIsRefused() -> None:
    reader = ResponseReader(MAX_HEAD)
    assert isinstance(reader.feed(OK)[0], BadResponse)
    reader = ResponseReader(MAX_HEAD)
    reader.expect()
    assert reader.feed(b"HTTP/1.1 204 X\r\n\r\n")[-1] is END
    assert isinstance(reader.feed(b"\r\n")[0], BadResponse)


def test_aLongBodyIsNotCopied() -> None:
    reader = ResponseReader(MAX_HEAD)
    reader.expect()
    reader.feed(OK + b"Content-Length: 200000\r\n\r\n")
    data = b"x" * 100_000
    assert reader.feed(data)[0] is data
    assert reader.feed(data) == [data, END]


# However it is cut, and whoever judges.

token = st.from_regex(rb"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True)
value = st.from_regex(rb"[!-~\x80-\xff]([\t -~\x80-\xff]{0,10}[!-~])?", fullmatch=True)
FRAMING = (b"content-length", b"transfer-encoding", b"connection", b"upgrade")
fields = st.lists(
    st.tuples(token.filter(lambda name: name.lower() not in FRAMING), value), max_size=4
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """One good response."""
    lines = draw(fields)
    status = draw(st.sampled_from([200, 200, 200, 202, 204, 304, 404, 500, 599]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    if draw(st.booleans()):
        close = draw(st.sampled_from([b"close", b"keep-alive", b"Close", b"x, close"]))
        lines.append((b"Connection", close))
    body = draw(st.binary(max_size=40))
    kind = draw(st.sampled_from(["length", "chunked", "close"]))
    if version == b"1.0" and kind == "chunked":
        kind = "length"
    if kind == "length" or status in (204, 304):
        lines.append((b"Content-Length", b"%d" % len(body)))
    elif kind == "chunked":
        lines.append((b"Transfer-Encoding", b"chunked"))
        cuts = sorted(draw(st.sets(st.integers(0, len(body)), max_size=4)) | {0, len(body)})
        chunks = [body[a:b] for a, b in pairwise(cuts)]
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"']))
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(one), extension, one) for one in chunks if one)
        body += draw(st.sampled_from([b"0\r\n\r\n", b"0;a\r\n\r\n", b"0\r\nT: u\r\n\r\n"]))
    if status in (204, 304):
        body = b""
    lines = draw(st.permutations(lines))
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    head = b"HTTP/%b %d %b\r\n" % (version, status, draw(st.sampled_from([b"OK", b"", b"a b"])))
    return interim + head + b"".join(b"%b: %b\r\n" % pair for pair in lines) + b"\r\n" + body


INTERESTING = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"\x7f", b"\xff", b":", b";", b",", b"0", b"1",
    b"a", b"-", b"+", b"chunked", b"close", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n", b"0\r\n\r\n",
]  # fmt: skip


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A response with something wrong in it, mostly."""
    data = draw(responses())
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 4))
        data = data[:place] + draw(st.sampled_from([*INTERESTING, b""])) + data[place + length :]
    return data


@settings(max_examples=400, deadline=None)
@given(mutants(), st.lists(st.integers(0, 400), max_size=12))
@example(CHUNKED + b"0\r\n\r\n\r\n", list(range(80)))
@example(OK + b"Content-Length: 1\r\n\r\nab", list(range(80)))
def test_anyCutGivesTheSameEvents(data: bytes, cuts: list[int]) -> None:
    whole, _ = read(data)
    pieces, _ = read(data, cuts)
    assert normal(pieces) == normal(whole)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=200), mutants()))
def test_onlyEventsComeOfAnyBytes(data: bytes) -> None:
    events, reader = read(data)
    for event in events:
        assert isinstance(event, ResponseHead | bytes | End | BadResponse)
    kinds = [type(event) for event in events]
    assert kinds.count(ResponseHead) <= 1
    assert BadResponse not in kinds[:-1]
    assert End not in kinds[:-1]
    reader.eof()


def judged(data: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool]:
    """What h11 makes of it: status, fields, body, whether the connection goes on."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, pairs, body, eof = 0, [], b"", False
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            assert not eof, "h11 reads on"
            connection.receive_data(b"")
            eof = True
        elif isinstance(event, h11.Response):
            status = event.status_code
            pairs = [(bytes(name), bytes(value)) for name, value in event.headers]
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert connection.trailing_data[0] == b""
            goesOn = connection.their_state is h11.DONE and not eof
            return status, pairs, body, goesOn
        else:
            assert isinstance(event, h11.InformationalResponse), event


@settings(max_examples=1500, deadline=None)
@given(mutants())
def test_whatIsAcceptedH11ReadsAlike(data: bytes) -> None:
    """Acceptance 17, towards servers: no response is framed as another judge would not."""
    events, reader = read(data)
    if not events or isinstance(events[-1], BadResponse):
        return
    ended = events[-1] is END
    if not ended and not reader.eof():
        return
    head = events[0]
    assert isinstance(head, ResponseHead)
    status, pairs, body, goesOn = judged(data)
    assert (status, body) == (head.status, bodyOf(events))
    # h11 spells the value of Transfer-Encoding in lower case.
    lowered = [(name, value.lower()) for name, value in pairs]
    assert lowered == [(name, value.lower()) for name, value in head.pairs]
    # We may be more careful to use a connection again, never less.
    assert goesOn or not (ended and reader.reusable)


@settings(max_examples=300, deadline=None)
@given(responses())
def test_goodResponsesAreAccepted(data: bytes) -> None:
    events, reader = read(data)
    assert not isinstance(events[-1], BadResponse)
    assert events[-1] is END or reader.eof()
    assert judged(data)[2] == bodyOf(events)


def test_theReasonOfARefusalShowsNothingOfTheResponse() -> None:
    events, _ = read(OK + b"Secret-Token: s3cret\x00\r\n\r\n")
    assert not re.search("s3cret", repr(events))


# Heads that come again.

HEADS = (
    OK + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n",
    OK + b"content-length: %d\r\nX: 1\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n",
    OK + b"Content-Encoding: br\r\nContent-Length: %d\r\nContent-Type: Text/X;q\r\n\r\n",
    OK + b"Content-Length: %d\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: %d\r\n\r\n",
    OK + b"X-Content-Length: 1\r\nContent-Length: %d\r\n\r\n",
    OK + b"Content-Length: %d\r\ncontent-length: 1\r\n\r\n",
)
ANSWERS = st.tuples(st.sampled_from(HEADS), st.binary(max_size=120))


@given(st.lists(ANSWERS, min_size=2, max_size=8), st.lists(st.integers(0, 400), max_size=3))
def test_aConnectionReadsEachResponseAsIfItWereItsFirst(
    answers: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """But for the Content-Length among the fields: `length` tells."""
    reader = ResponseReader(MAX_HEAD)
    for head, body in answers:
        data = head % len(body) + body
        expected, fresh = read(data, cuts)
        reader.expect()
        events: list[Event] = []
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in pairwise(places):
            events += reader.feed(data[start:end])
            if isinstance(events[-1:] and events[-1], BadResponse):
                break
        assert _told(events) == _told(expected)
        if END not in events:
            return
        assert reader.reusable == fresh.reusable
        if not reader.reusable:
            return


def _told(events: list[Event]) -> list[object]:
    return [
        (
            event.status,
            event.length,
            event.mediaType,
            event.encoded,
            [pair for pair in event.pairs if pair[0] != b"content-length"],
        )
        if isinstance(event, ResponseHead)
        else event
        for event in events
    ]
