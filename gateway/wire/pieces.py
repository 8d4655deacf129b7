"""
What comes in pieces and is wanted whole, without the room that small pieces would take.

Joining all of it each time some more comes would be quadratic, and a buffer that grows is copied;
so pieces are kept, and only what is small is joined, a number of them at a time.
"""

from __future__ import annotations

__all__ = ["PIECES", "pack"]

PIECES = 1024
"""Pieces that are looked at together."""

_SMALL = 1024
"""
Bytes of a piece, on average, below which they are joined: one of two bytes takes the room of fifty.
"""


def pack(pieces: list[bytes], kept: int, between: bytes = b"") -> int:
    """
    Join the pieces behind the first `kept` ones if there are many and they are small.

    between: what stands between two pieces.
    Returns: how many need not be looked at again.
    """
    if len(pieces) - kept < PIECES:
        return kept
    fresh = pieces[kept:]
    if sum(map(len, fresh)) < PIECES * _SMALL:
        pieces[kept:] = [between.join(fresh)]
    return len(pieces)
