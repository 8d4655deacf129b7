"""Server-sent events: what is written reads back, however it is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.wire.sse import EventTooLong, ServerSentEvent, SSEParser, comment, encodeEvent

PLENTY = 1 << 20

# Bytes that mean something to a parser, in far higher density than chance gives.
_PIECES = st.sampled_from(
    [
        *(b"\r", b"\n", b"\r\n", b"\n\n", b":", b": ", b" ", b"\x00", b"\xef\xbb\xbf", b"\xef"),
        *(b"data", b"data:", b"data: x", b"event", b"event: y", b"id", b"id: 7", b"id:\x00"),
        *(b"retry: 10", b"retry: 1x", b"retry:", b"DATA: z", b"\xe2\x80\xa8", b"\x0b\x0c\x1c\x85"),
        *(b"event: message\n", b"id: 8\n", b"data: y\n\n", b"data: y\r\n\r\n", b"data: y\n\r\n"),
    ]
)
_STREAMS = st.lists(st.one_of(_PIECES, st.binary(max_size=4)), max_size=30).map(b"".join)
_NAMES = st.binary(max_size=20).filter(lambda value: re.search(rb"[\r\n\x00]", value) is None)
_WRITTEN = st.fixed_dictionaries(
    {"data": st.one_of(_STREAMS, st.binary(max_size=60)), "event": _NAMES},
    optional={
        "id": st.one_of(st.none(), _NAMES),
        "retry": st.one_of(st.none(), st.integers(min_value=0)),
    },
)


@st.composite
def _cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """A stream, whole and in chunks, some of them empty."""
    stream = draw(streams)
    places = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    starts, ends = [0, *places], [*places, len(stream)]
    return stream, [stream[a:b] for a, b in zip(starts, ends, strict=True)]


def _read(chunks: list[bytes], limit: int = PLENTY) -> tuple[list[ServerSentEvent], bool, bool]:
    """The events, whether the limit was passed, whether something was left unfinished."""
    parser = SSEParser(limit)
    events: list[ServerSentEvent] = []
    for chunk in chunks:
        try:
            events += parser.feed(chunk)
        except EventTooLong as error:
            events += error.events
            return events, True, parser.unfinished
    return events, False, parser.unfinished


def _reference(stream: bytes) -> list[ServerSentEvent]:
    """The specification's algorithm, word for word, over a whole stream."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    events = []
    data: bytes | None = None
    event, id, retry = b"", None, None
    for line in re.split(rb"\r\n|\n|\r", stream)[:-1]:
        if line == b"":
            if data is not None or id is not None or retry is not None:
                body = None if data is None else data[:-1]
                events.append(ServerSentEvent(body, event or b"message", id, retry))
            data, event, id, retry = None, b"", None, None
            continue
        if line.startswith(b":"):
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data = (data or b"") + value + b"\n"
        elif name == b"event":
            event = value
        elif name == b"id" and b"\x00" not in value:
            id = value
        elif name == b"retry" and re.fullmatch(rb"[0-9]+", value):
            retry = value
    return events


def _writtenEvent(data: bytes, **fields: object) -> ServerSentEvent:
    """What an event that was written should read back as."""
    retry = fields.get("retry")
    return ServerSentEvent(
        re.sub(rb"\r\n|\r", b"\n", data),
        fields.get("event") or b"message",  # type: ignore[arg-type]
        fields.get("id"),  # type: ignore[arg-type]
        None if retry is None else b"%d" % retry,  # type: ignore[str-bytes-safe, operator]
    )


@settings(max_examples=250, deadline=None)
@given(st.lists(_WRITTEN, max_size=4), st.data())
def test_writtenEventsReadBackHoweverTheyAreCut(
    written: list[dict[str, object]], data: st.DataObject
) -> None:
    stream = b"".join(encodeEvent(**fields) for fields in written)  # type: ignore[arg-type]
    _, chunks = data.draw(_cut(st.just(stream)))
    expected = [_writtenEvent(**fields) for fields in written]  # type: ignore[arg-type]
    assert _read(chunks) == (expected, False, False)


@settings(max_examples=600, deadline=None)
@given(_cut(_STREAMS))
@example((b"data: a\r\n\r\n", [b"data: a\r", b"\n\r", b"\n"]))
@example((b"\xef\xbb\xbfdata\n\n", [b"\xef", b"", b"\xbb", b"\xbfdata\n\n"]))
def test_cutsDoNotMatterAndTheReferenceAgrees(cut: tuple[bytes, list[bytes]]) -> None:
    stream, chunks = cut
    expected = _reference(stream)
    whole = _read([stream])
    assert whole[:2] == (expected, False)
    assert _read(chunks) == whole
    assert _read([stream[i : i + 1] for i in range(len(stream))]) == whole


@settings(max_examples=300, deadline=None)
@given(_cut(_STREAMS), st.integers(1, 30))
def test_theLimitIsMetAtTheSameEventHoweverCut(cut: tuple[bytes, list[bytes]], limit: int) -> None:
    stream, chunks = cut
    whole, over, _ = _read([stream], limit)
    assert _read(chunks, limit)[:2] == (whole, over)
    assert whole == _reference(stream)[: len(whole)]


@pytest.mark.acceptance(54)
def test_acceptance_54_anAnswerCutAtEveryByteIsTheSame() -> None:
    answer = '{"jsonrpc":"2.0","id":1,"result":{"t":"\u2028é\\n: x"}}'.encode()
    stream = comment() + encodeEvent(answer, id=b"7") + comment(b"still here")
    expected = [ServerSentEvent(answer, id=b"7")]
    for at in range(len(stream) + 1):
        assert _read([stream[:at], stream[at:]]) == (expected, False, False)
    for size in range(1, len(stream)):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert _read(chunks) == (expected, False, False)


@pytest.mark.acceptance(79)
@pytest.mark.parametrize(
    "data",
    [b"a\rb", b"a\nb", b"a\r\nb", b"\n\ndata: x", b"a\r\rid: 5\r\revent: z", b"\n", b"\r\n\r\n"],
)
def test_acceptance_79_noLineEndInDataStartsAnotherEventOrField(data: bytes) -> None:
    stream = encodeEvent(data, event=b"message", id=b"1")
    assert _read([stream])[0] == [_writtenEvent(data, id=b"1")]


@pytest.mark.acceptance(79)
@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_acceptance_79_whatUnicodeCallsALineEndIsNone(separator: str) -> None:
    data = f"a{separator}data: b{separator}{separator}".encode()
    stream = encodeEvent(data, event=data, id=data)
    assert _read([stream]) == ([ServerSentEvent(data, data, data)], False, False)


@pytest.mark.acceptance(79)
@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\r\n", b"\x00", b"\n\ndata: x"])
def test_acceptance_79_lineEndsInEventAndIDAreRefused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="event"):
        encodeEvent(b"", event=b"a" + bad)
    with pytest.raises(ValueError, match="id"):
        encodeEvent(b"", id=bad + b"1")


@pytest.mark.acceptance(79)
@given(st.binary(max_size=40))
def test_acceptance_79_commentsHoldNothingBut(text: bytes) -> None:
    assert _read([comment(text)]) == ([], False, False)


def test_theBytesOfAnEvent() -> None:
    assert encodeEvent(b"{}") == b"event: message\ndata: {}\n\n"
    assert encodeEvent(b"a\r\nb") == b"event: message\ndata: a\ndata: b\n\n"
    assert (
        encodeEvent(b"x", event=b"endpoint", id=b"3", retry=1500)
        == b"event: endpoint\nid: 3\nretry: 1500\ndata: x\n\n"
    )
    assert encodeEvent(b"", event=b"", id=b"") == b"id: \ndata: \n\n"
    assert comment() == b":\n\n"
    assert comment(b"a\nb") == b": a\n: b\n\n"
    with pytest.raises(ValueError, match="retry"):
        encodeEvent(b"", retry=-1)


def test_primingEventsAreReported() -> None:
    # MCP 2025-11-25, SEP-1699: an id and empty data; some servers leave the data out.
    assert _read([b"id: 1\ndata:\n\n", b"id: 2\n\n", b"retry: 50\n\n", b"event: x\n\n"])[0] == [
        ServerSentEvent(b"", id=b"1"),
        ServerSentEvent(id=b"2"),
        ServerSentEvent(retry=b"50"),
    ]


def test_anIDWithNULAndARetryThatIsNoNumberAreIgnored() -> None:
    stream = b"id: 1\x002\nretry: -5\nretry: 1.5\nretry\ndata: x\n\n"
    assert _read([stream])[0] == [ServerSentEvent(b"x")]


def test_nothingOfOneEventReachesTheNext() -> None:
    stream = b"event: a\nid: 1\nretry: 2\ndata: x\n\ndata: y\n\nevent: b\n\ndata: z\n\n"
    assert _read([stream])[0] == [
        ServerSentEvent(b"x", b"a", b"1", b"2"),
        ServerSentEvent(b"y"),
        ServerSentEvent(b"z"),
    ]


def test_anUnfinishedEventIsNotReported() -> None:
    assert _read([b"data: x\n"]) == ([], False, True)
    assert _read([b"data: x"]) == ([], False, True)
    assert _read([b"data: x\n\n:"]) == ([ServerSentEvent(b"x")], False, True)
    assert _read([b"data: x\n\n: c\n"]) == ([ServerSentEvent(b"x")], False, False)
    assert _read([b"\xef\xbb"]) == ([], False, True)
    assert _read([]) == ([], False, False)


@pytest.mark.parametrize("data", [b"data: 345678", b":2345678", b"x2345678\n"])
def test_anEventOrLineOverTheLimitEndsTheStream(data: bytes) -> None:
    parser = SSEParser(7)
    with pytest.raises(EventTooLong) as caught:
        parser.feed(b"data: x\n\n" + data)
    assert caught.value.events == [ServerSentEvent(b"x")]
    with pytest.raises(EventTooLong):
        parser.feed(b"\n\n")


def test_theLimitIsForOneEventAndNotForComments() -> None:
    parser = SSEParser(7)
    for _ in range(50):
        assert parser.feed(b"data: x\n\n") == [ServerSentEvent(b"x")]
        assert parser.feed(b": ping\n") == []
    with pytest.raises(EventTooLong):
        parser.feed(b"data\ndata\n")


def test_aLargeEventInSmallChunksEnds() -> None:
    parser = SSEParser(8 << 20)
    stream = encodeEvent(b"x" * (1 << 20) + b"\n" * 100_000)
    events = []
    for at in range(0, len(stream), 7):
        events += parser.feed(stream[at : at + 7])
    assert [len(event.data or b"") for event in events] == [(1 << 20) + 100_000]
