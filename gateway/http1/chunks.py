"""
Where a chunked body ends (RFC 9112 section 7.1), found by the sizes of its chunks. Pure.

llhttp decodes the body; but it does not tell where it stopped, lets extensions through that have
no name, and has no bounds. So the lines around the data are read here, too.
"""

from __future__ import annotations

import re

from gateway.wire.headers import TCHAR

__all__ = ["BadChunk", "ChunkLines"]

_BREAK = b"\r\n"
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]*+")
_EXTENSIONS = re.compile(
    rb"(?:;%b++(?:=(?:%b++"
    rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"))?)*+' % (TCHAR, TCHAR)
)
_DIGITS = 16
"""Of a chunk's size: 64 bits hold no larger one."""


class BadChunk(Exception):
    """The body is not chunked as it should. limit: the bound that was reached, if one was."""

    def __init__(self, why: str, limit: str = "") -> None:
        super().__init__(why)
        self.limit = limit


class ChunkLines:
    """
    The lines around the data of one body.

    maxExtensions, maxTrailers: bytes of all of them together.
    """

    __slots__ = (
        "_excess",
        "_left",
        "_tail",
        "_trailers",
        "_trailing",
        "maxExtensions",
        "maxTrailers",
    )

    def __init__(self, maxExtensions: int, maxTrailers: int) -> None:
        self.maxExtensions = maxExtensions
        self.maxTrailers = maxTrailers
        self._tail = b""
        self._left = self._excess = self._trailers = 0
        self._trailing = False

    def take(self, data: bytes) -> tuple[int, bool]:
        """
        Take the next bytes.

        Returns: how many of them belong to the body, and whether it ends with them.
        Raises: BadChunk.
        """
        at, ended = 0, False
        while at < len(data) and not ended:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1
            line = self._tail + data[at : end or len(data)]
            at = end or len(data)
            self._tail = b"" if end else line
            ended = self._take(line, end > 0)
        return at, ended

    def _take(self, line: bytes, whole: bool) -> bool:
        text = line.rstrip(_BREAK)
        if self._trailing:
            if text and self._trailers + len(text) > self.maxTrailers:
                raise BadChunk("the trailer section is too long", "max_trailers")
            self._trailers += len(line) if whole else 0
            return whole and not text
        digits = _HEXADECIMAL.match(text)
        assert digits is not None
        excess = self._excess + len(text) - digits.end()
        if excess > self.maxExtensions:
            raise BadChunk("chunk extensions are too long", "max_chunk_extensions")
        if digits.end() > _DIGITS or (whole and not digits[0]):
            raise BadChunk("malformed chunk size")
        if whole:
            if _EXTENSIONS.fullmatch(text, digits.end()) is None:
                raise BadChunk("malformed chunk extension")
            self._excess = excess
            size = int(digits[0], 16)
            self._left = size + len(_BREAK) if size else 0
            self._trailing = not size
        return False
