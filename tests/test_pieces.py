"""What comes in pieces is whole in the end, and small pieces take little room meanwhile."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.pieces import PIECES, pack
from gateway.wire.sse import SSEParser


@given(st.lists(st.tuples(st.integers(1, 3 * PIECES), st.sampled_from([0, 1, 900, 3000]))))
def test_packed_or_not_it_is_the_same(runs: list[tuple[int, int]]) -> None:
    for between in (b"", b"\n"):
        plain: list[bytes] = []
        packed: list[bytes] = []
        kept = 0
        for many, size in runs:
            for number in range(many):
                piece = b"%x" % number * size
                plain.append(piece[:size])
                packed.append(piece[:size])
                kept = pack(packed, kept, between)
        assert between.join(packed) == between.join(plain)
        assert len(packed) <= len(plain)


def test_small_pieces_take_little_more_room_than_they_have_bytes() -> None:
    pieces: list[bytes] = []
    kept = 0
    for number in range(200_000):
        pieces.append(b"%02d" % (number % 100))
        kept = pack(pieces, kept)
    assert sum(map(sys.getsizeof, pieces)) + sys.getsizeof(pieces) < 1.2 * 400_000


def test_an_event_of_many_lines_and_a_line_of_many_pieces() -> None:
    lines = [b"%d" % number if number % 3 else b"" for number in range(5 * PIECES)]
    text = b"".join(b"data: %b\n" % line for line in lines) + b"\n"
    long = b"data: " + b"x" * 5000 + b"\n\n"
    parser = SSEParser(1024 * 1024)
    events = [one for at in range(0, len(text), 7) for one in parser.feed(text[at : at + 7])]
    events += [one for byte in long for one in parser.feed(bytes([byte]))]
    events += parser.feed(b"data: last\n\n")
    assert [one.data for one in events] == [b"\n".join(lines), b"x" * 5000, b"last"]
    assert not parser.unfinished
