"""
The head of a request: what it says, and the rules that it keeps beside llhttp's. Pure.

llhttp judges the fields and refuses most of what is malformed. What it lets through is left to us,
each with its clause:

 1. The request line is `method SP target SP HTTP/d.d CRLF`, and nothing else: llhttp takes
    several spaces, no version at all, and versions that are none (RFC 9112 section 3).
 2. The version is 1.0 or 1.1 (RFC 9110 section 15.6.6: 505).
 3. A target has visible ASCII characters and no fragment (RFC 9112 section 3.2).
 4. Any token is a method (RFC 9110 section 9.1), where llhttp knows a list. What it does not
    know, and CONNECT, whose body it would take for a tunnel's, it is shown as POST.
 5. `Transfer-Encoding` is `chunked`, once (RFC 9112 section 6.1: 501), and never in HTTP/1.0
    (the same: 400).
 6. `Expect` is `100-continue` (RFC 9110 section 10.1.1: 417).
 7. `Upgrade` is ignored (RFC 9110 section 7.8).
 8. Bounds, of which llhttp has none: on the request line (414), each field line, their number and
    the head as a whole (431).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from attrs import frozen

from gateway.wire.headers import TCHAR

__all__ = [
    "BadRequest",
    "RequestBounds",
    "RequestLine",
    "judgeFields",
    "lineOf",
    "withoutUpgrade",
]

_LINE = re.compile(rb"(" + TCHAR + rb"++) ([!-\"$-~]++) HTTP/([0-9]\.[0-9])\r\n")
# What may become a request line when more of it comes.
_BEGUN = re.compile(TCHAR + rb"*+(?: (?:[!-\"$-~]++(?: [HTP/0-9.]{0,8}\r?)?)?)?")
_DIGITS = 20
"""Of a length: 64 bits hold no larger one."""
_SHOWN = frozenset((b"GET", b"POST", b"DELETE", b"OPTIONS", b"HEAD", b"PUT", b"PATCH", b"TRACE"))


class BadRequest(Exception):
    """
    What came is no request we take; nothing more can be read from its connection.

    status: the HTTP status of the refusal. limit: the setting that was reached, if one was.
    """

    def __init__(self, status: int, why: str, limit: str = "") -> None:
        super().__init__(why)
        self.status = status
        self.limit = limit


@frozen
class RequestBounds:
    """Bytes of a head, of a line of it, of chunk extensions and trailers; number of fields."""

    max_head: int = 16 * 1024
    max_head_line: int = 8 * 1024
    max_head_fields: int = 100
    max_chunk_extensions: int = 4 * 1024
    max_trailers: int = 16 * 1024


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

    def asShown(self) -> bytes:
        """The line that llhttp is shown (rule 4)."""
        method, target = self.method, self.target
        if method not in _SHOWN:
            method, target = b"POST", b"/" if method == b"CONNECT" else target
        return b"%b %b HTTP/%b\r\n" % (method, target, self.version)


def lineOf(head: bytes, longest: int) -> tuple[RequestLine, int] | None:
    """
    The request line that a head begins with (rules 1 to 4), and where it ends.

    longest: bytes of it, its end aside. Returns: None as long as it is not whole.
    Raises: BadRequest.
    """
    match = _LINE.match(head)
    # Its CRLF included.
    most = longest + 2
    if match is None or match.end() > most:
        begun = _BEGUN.fullmatch(head[:most]) is not None
        if begun and len(head) >= most:
            raise BadRequest(414, "the request line is too long", "max_head_line")
        if not begun:
            raise BadRequest(400, "malformed request line")
        return None
    method, target, version = match.groups()
    if version not in (b"1.1", b"1.0"):
        raise BadRequest(505, "HTTP/1.1 is spoken here")
    return RequestLine(method, target, version), match.end()


def judgeFields(
    line: RequestLine,
    fields: Sequence[tuple[bytes, bytes]],
    first: Mapping[bytes, bytes],
    size: int,
    bounds: RequestBounds,
) -> None:
    """
    Judge the fields of a whole head (rules 5, 6 and 8), and note in its line what they say of the
    body.

    fields, first: all of them, and the first of each name; names in lower case. size: bytes of the
    head. Raises: BadRequest.
    """
    longest = bounds.max_head_line
    if size > longest and any(len(n) + len(v) + 2 > longest for n, v in fields):
        raise BadRequest(431, "a header field is too long", "max_head_line")
    coding = first.get(b"transfer-encoding")
    if coding is not None:
        if line.version == b"1.0":
            raise BadRequest(400, "a transfer coding in HTTP/1.0")
        # llhttp overlooks the first of two where a tab is behind it.
        codings = [value for name, value in fields if name == b"transfer-encoding"]
        if len(codings) > 1 or coding.lower() != b"chunked":
            raise BadRequest(501, "the only transfer coding is chunked")
        line.length = None
    elif (declared := first.get(b"content-length")) is not None:
        if len(declared) > _DIGITS:
            raise BadRequest(400, "Content-Length is too long")
        line.length = int(declared)
    if b"expect" in first:
        if first[b"expect"].lower() != b"100-continue":
            raise BadRequest(417, "the only expectation is 100-continue")
        # RFC 9110 section 10.1.1: to be ignored in HTTP/1.0.
        line.continues = line.version == b"1.1"


def withoutUpgrade(line: RequestLine, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A head with the framing of this one alone (rule 7)."""
    options = b",".join(value for name, value in fields if name == b"connection").lower()
    head = b"POST / HTTP/" + line.version + b"\r\n"
    if b"close" in [option.strip(b" \t") for option in options.split(b",")]:
        head += b"connection: close\r\n"
    if line.length is None:
        head += b"transfer-encoding: chunked\r\n"
    else:
        head += b"content-length: %d\r\n" % line.length
    return head + b"\r\n"
