"""
The heads that have come on a connection before. Pure.

What a client says in the head of a POST it says again and again, but for the length, and so does a
server in its answers, for a second at a time. So a head that llhttp and our own rules have taken is
remembered, and the same bytes on the same connection, but for the digits of its one Content-Length,
need no second look (measured: 9 of 38 µs a call for requests, 4 of 36 for responses).
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["KnownHeads"]

_END = b"\r\n\r\n"
_DECLARED = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_DIGITS = 5
"""Digits of a Content-Length at most: what is longer is read as if it were new."""

_MOST = 2
_LARGEST = 4 * 1024
"""Heads that a connection remembers, and bytes of one of them, so that many cost little."""

_Known = TypeVar("_Known")


class KnownHeads(Generic[_Known]):
    """
    What one connection remembers, with what was made of it.

    key: of the head that was looked for last; b"" where it has none, and to have it forgotten.
    """

    __slots__ = ("_heads", "key")

    def __init__(self) -> None:
        # Most connections never need one.
        self._heads: dict[bytes, _Known] | None = None
        self.key = b""

    def find(self, data: bytes) -> tuple[_Known, int, int] | None:
        """
        The head that some bytes begin with, if all of it is there and it is remembered.

        Returns: what was made of it the last time; its end in the bytes, and the length of its
            body now, which is above 0.
        """
        self.key = b""
        end = data.find(_END)
        if end < 0 or end > _LARGEST:
            return None
        at = data.find(_DECLARED[0], 0, end)
        if at < 0:
            at = data.find(_DECLARED[1], 0, end)
            if at < 0:
                return None
        at += len(_DECLARED[0])
        stop = data.find(b"\r\n", at)
        digits = data[at:stop]
        if not digits.isdigit() or len(digits) > _DIGITS:
            return None
        self.key = data[:at] + data[stop:end]
        known = None if self._heads is None else self._heads.get(self.key)
        length = int(digits)
        if known is None or not length:
            return None
        return known, end + 4, length

    def remember(self, known: _Known) -> None:
        """Remember the head that was looked for last: it is good, and its body has a length."""
        if self.key:
            if self._heads is None or len(self._heads) >= _MOST:
                self._heads = {}
            self._heads[self.key] = known
