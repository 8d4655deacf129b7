"""
The heads that a connection has sent before. Pure.

What a client says in the head of a POST it says again and again, but for the length. So a head that
llhttp and our own rules have taken is remembered, and the same bytes on the same connection, but
for the digits of its one Content-Length, need no second look (measured: 9 of 38 µs a call).
"""

from __future__ import annotations

from gateway.wire.context import HeaderPairs

__all__ = ["KnownHeads", "RequestLine"]

_END = b"\r\n\r\n"
_DECLARED = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_DIGITS = 5
"""Digits of a Content-Length at most: what is longer is read as if it were new."""

_MOST = 2
_LARGEST = 4 * 1024
"""Heads that a connection remembers, and bytes of one of them, so that many cost little."""


class RequestLine:
    """
    What a head says beside its fields.

    version: "1.0" or "1.1". persistent: whether the connection may be used after this request
    (RFC 9112 section 9.3). length: bytes of the body as declared; None where it is chunked.
    continues: whether the client waits for 100 (Continue) before it sends the body.
    """

    __slots__ = ("continues", "length", "method", "persistent", "target", "version")

    def __init__(
        self, method: bytes, target: bytes, version: bytes, persistent: bool = True
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.persistent = persistent
        self.length: int | None = 0
        self.continues = False


class KnownHeads:
    """
    What one connection remembers.

    key: of the head that was looked for last; b"" where it has none.
    """

    __slots__ = ("_heads", "key")

    def __init__(self) -> None:
        # Most connections never need one.
        self._heads: dict[bytes, tuple[RequestLine, HeaderPairs]] | None = None
        self.key = b""

    def find(self, data: bytes) -> tuple[RequestLine, HeaderPairs, int, int] | None:
        """
        The head that some bytes begin with, if all of it is there and it is remembered.

        Returns: its line and fields as they were the last time, the Content-Length in them
            included; and its end in the bytes, and the length of its body now.
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
        return known[0], known[1], end + 4, length

    def remember(self, line: RequestLine, fields: HeaderPairs) -> None:
        """Remember the head that was looked for last; it was found to be good."""
        if self.key and line.length and not line.continues:
            if self._heads is None or len(self._heads) >= _MOST:
                self._heads = {}
            self._heads[self.key] = (line, fields)
