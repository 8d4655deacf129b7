"""The heads of answers, as bytes."""

from __future__ import annotations

import tracemalloc

from gateway.http1.writing import encodeAnswer, encodeHead


def head(n: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"x-%d" % field, b"%d" % n * 2000) for field in range(4))


def test_whatServersSayAtLengthIsNotKept() -> None:
    whole = b"".join(b"%b: %b\r\n" % (name.title(), value) for name, value in head(7))
    assert encodeAnswer(200, head(7), b"{}").startswith(b"HTTP/1.1 200 OK\r\n" + whole)
    tracemalloc.start()
    try:
        for n in range(100, 400):
            assert encodeHead(200, head(n)) == encodeHead(200, head(n))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1024 * 1024
