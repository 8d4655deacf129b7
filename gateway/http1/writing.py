"""
Heads of answers and chunks of bodies, as bytes (RFC 9112 sections 4 and 7.1).

A head is made of cached parts: what the status and the fields say is the same for most answers, and
the date for all of a second. What is long is not kept: it comes from a server, and once only.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from gateway.wire.context import HeaderPairs

__all__ = [
    "CHUNKED",
    "CLOSE",
    "CONTINUE",
    "KEEP_ALIVE",
    "LAST_CHUNK",
    "chunk",
    "encodeAnswer",
    "encodeHead",
]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_REASONS = {int(status): status.phrase.encode("ascii") for status in HTTPStatus}
_SESSION = b"mcp-session-id"
_BREAKS = bytes.maketrans(b"\r\n\x00", b"   ")
_now = time.time
_dated: tuple[int, bytes] = (0, b"")
_LONGEST = 1024
"""Bytes of fields that are kept."""


class _TooLong(Exception):
    """Fields that are not kept; the argument holds them."""


def encodeHead(status: int, headers: HeaderPairs, framing: bytes = b"") -> bytes:
    """
    The head of an answer.

    headers: names in lower case. framing: encoded field lines that frame the body or tell of the
    connection.
    """
    return _fields(status, headers) + framing + _date() + b"\r\n"


def encodeAnswer(
    status: int,
    headers: HeaderPairs,
    body: bytes,
    connection: bytes = b"",
    bodiless: bool = False,
    length: int | None = None,
) -> bytes:
    """
    A whole answer.

    connection: as `framing` of `encodeHead`. bodiless: it answers HEAD, and only tells its length.
    length: bytes of the body, where `body` is only its beginning.
    """
    head = _fields(status, headers)
    if status == 204:
        return b"%b%b%b\r\n" % (head, connection, _date())
    told = b"%b%b%bContent-Length: %d\r\n\r\n" % (
        head,
        connection,
        _date(),
        len(body) if length is None else length,
    )
    return told if bodiless else told + body


def chunk(data: bytes) -> bytes:
    """A chunk; `data` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _fields(status: int, headers: HeaderPairs) -> bytes:
    if headers and headers[-1][0] == _SESSION:
        # Each id is written once: what else the answer says is the same for all.
        return _fields(status, headers[:-1]) + _line(*headers[-1])
    try:
        return _common(status, headers)
    except _TooLong as tooLong:
        written: bytes = tooLong.args[0]
        return written


@lru_cache(maxsize=256)
def _common(status: int, headers: HeaderPairs) -> bytes:
    line = b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"Unknown"))
    written = line + b"".join([_line(name, value) for name, value in headers])
    if len(written) > _LONGEST:
        raise _TooLong(written)
    return written


def _line(name: bytes, value: bytes) -> bytes:
    # A value comes from us or from what a server said: neither may begin another line.
    return b"%b: %b\r\n" % (name.title(), value.translate(_BREAKS).strip(b" "))


def _date() -> bytes:
    """RFC 9110 section 6.6.1: a server with a clock tells the date."""
    global _dated
    now = int(_now())
    if now != _dated[0]:
        _dated = (now, b"Date: %b\r\n" % formatdate(now, usegmt=True).encode("ascii"))
    return _dated[1]
