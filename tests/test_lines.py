"""LineSplitter: its rules, driven by hypothesis."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.lines import LineSplitter, LineTooLong

STREAMS = st.lists(
    st.one_of(
        st.sampled_from([b"\n", b"\r\n", b"\r", b"", b"\r\r\n", b"\n\n", b"\x00", b"\xff"]),
        st.binary(max_size=20),
        st.just(b'{"jsonrpc":"2.0","id":1,"result":{}}\n'),
    )
).map(b"".join)


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def fed(limit: int, chunks: list[bytes]) -> tuple[list[bytes], bool]:
    """Every line, and whether one was too long."""
    splitter = LineSplitter(limit)
    lines: list[bytes] = []
    for chunk in chunks:
        try:
            lines += splitter.feed(chunk)
        except LineTooLong as error:
            return lines + error.lines, True
        assert splitter.pending <= limit + 1
    return lines, False


@pytest.mark.acceptance(54)
@given(STREAMS, st.lists(st.integers(0, 10_000)))
def test_acceptance_54_any_chunking_gives_the_same_lines(data: bytes, cuts: list[int]) -> None:
    expected = [line[:-1] if line.endswith(b"\r") else line for line in data.split(b"\n")[:-1]]
    assert fed(1000_000, chunked(data, cuts)) == (expected, False)


@pytest.mark.acceptance(54)
def test_acceptance_54_cut_at_every_byte() -> None:
    data = b'{"a":"\xc3\xa9"}\r\n\r\n{"b":2}\n'
    for at in range(len(data) + 1):
        assert fed(100, [data[:at], data[at:]]) == ([b'{"a":"\xc3\xa9"}', b"", b'{"b":2}'], False)
    assert fed(100, [bytes([byte]) for byte in data])[0] == [b'{"a":"\xc3\xa9"}', b"", b'{"b":2}']


@given(STREAMS, st.lists(st.integers(0, 10_000)), st.integers(0, 12))
def test_the_limit_does_not_depend_on_chunks(data: bytes, cuts: list[int], limit: int) -> None:
    pieces = chunked(data, cuts)
    lines, broken = fed(limit, pieces)
    ended = data if data.endswith(b"\n") else data + b"\n"
    wholeLines, wholeBroken = fed(limit, [ended])
    assert all(len(line) <= limit for line in lines)
    if broken:
        assert (lines, broken) == (wholeLines, wholeBroken)
    else:
        assert lines == wholeLines[: len(lines)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_of_the_limit_passes_and_one_more_byte_does_not(end: bytes) -> None:
    assert fed(5, [b"12345", end]) == ([b"12345"], False)
    assert fed(5, [b"ok\n12345", b"6" + end]) == ([b"ok"], True)
    assert fed(5, [b"ok\n123456" + end]) == ([b"ok"], True)


def test_the_lines_before_one_too_long_are_told_and_later_chunks_refused() -> None:
    splitter = LineSplitter(3)
    with pytest.raises(LineTooLong) as caught:
        splitter.feed(b"a\nb\nlonger")
    assert caught.value.lines == [b"a", b"b"]
    assert splitter.pending == 0
    with pytest.raises(LineTooLong) as caught:
        splitter.feed(b"c\n")
    assert caught.value.lines == []
