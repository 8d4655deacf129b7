"""
Reads HTTP/1.1 requests off a connection, over llhttp (`httptools`). Sans-IO.

llhttp judges the fields of the head and the framing of the body, and refuses most of what is
malformed. What it lets through is left to us, each with its clause:

 1. The request line is `method SP target SP HTTP/d.d CRLF`, and nothing else: llhttp takes
    several spaces, no version at all, and versions that are none (RFC 9112 section 3).
 2. The version is 1.0 or 1.1 (RFC 9110 section 15.6.6: 505).
 3. A target has visible ASCII characters and no fragment (RFC 9112 section 3.2).
 4. Any token is a method (RFC 9110 section 9.1), where llhttp knows a list. What it does not
    know, and CONNECT, whose body it would take for a tunnel's, it is shown as POST.
 5. `Transfer-Encoding` is `chunked`, once (RFC 9112 section 6.1: 501), and never in HTTP/1.0
    (the same: 400).
 6. `Expect` is `100-continue` (RFC 9110 section 10.1.1: 417).
 7. `Upgrade` is ignored (RFC 9110 section 7.8), and so is one empty line before a request line
    (RFC 9112 section 2.2).
 8. Bounds, of which llhttp has none: on the request line (414), each field line, their number and
    the head as a whole (431), on chunk extensions and trailers (400), which are thrown away.

A head that was taken may be remembered, and needs no second look then (`gateway.http1.heads` for
those of one connection, `gateway.http1.alike` for those of all).

One request is read at a time: what comes after its end waits, unparsed, for `proceed`. llhttp does
not tell where it is, so the ends are found here, too: a head ends with CRLF CRLF, a body with a
length after so many bytes, a chunked one by the sizes of its chunks (`gateway.http1.chunks`).
llhttp is fed up to there, and where it does not find the same end, the request is refused.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from attrs import frozen
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.http1.alike import AlikeHeads, Cut, cut
from gateway.http1.chunks import BadChunk, ChunkLines
from gateway.http1.heads import KnownHeads
from gateway.wire.context import HeaderPairs
from gateway.wire.headers import TCHAR

__all__ = ["BadRequest", "RequestBounds", "RequestLine", "RequestOwner", "RequestReader"]

_END = b"\r\n\r\n"
_BREAK = b"\r\n"
_LINE = re.compile(rb"(" + TCHAR + rb"++) ([!-\"$-~]++) HTTP/([0-9]\.[0-9])\r\n")
# What may become a request line when more of it comes.
_BEGUN = re.compile(TCHAR + rb"*+(?: (?:[!-\"$-~]++(?: [HTP/0-9.]{0,8}\r?)?)?)?")
_DIGITS = 20
"""Of a length: 64 bits hold no larger one."""
_NO_FIELDS: dict[bytes, bytes] = {}
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


class RequestOwner(Protocol):
    """Hears what is read; may call `RequestReader.stop` meanwhile, and nothing else of it."""

    def headReceived(self, line: RequestLine, fields: HeaderPairs) -> bool:
        """
        A head came; the names of its fields are in lower case.

        Returns: whether it may be remembered. Of a remembered one `fields` is the same object
            again, and the Content-Length in it is not to be believed.
        """

    def requestReceived(self, line: RequestLine, fields: HeaderPairs, body: bytes) -> None:
        """
        In place of the other three: a remembered head came, and all of its body with it.

        line: of the time before; its length, too.
        """

    def memo(self) -> object | None:
        """What was made of the last head, for `alikeReceived`; None where that may not be kept."""

    def alikeReceived(self, line: RequestLine, fields: HeaderPairs, memo: Any) -> bool:
        """
        In place of `headReceived`: a head came that is new but for its session and its length.

        memo: of a head that it is like, perhaps of another connection.
        """

    def bodyReceived(self, data: bytes) -> None:
        """Bytes of the body came."""

    def requestEnded(self) -> None:
        """The request is complete; the next is read after `proceed`."""


class RequestReader:
    """
    Reads the requests of one connection, one at a time.

    Life: `feed` with what comes → the owner hears of one request, to its end → `proceed` → of the
    next … until BadRequest is raised, or `stop`. Nothing may be fed after either.

    alike: what is kept of heads for all connections of a listener; None: nothing.
    reading: what of a request has come in part: "", "head" or "body".
    """

    __slots__ = (
        "_alike",
        "_body",
        "_bounds",
        "_chunks",
        "_complete",
        "_cut",
        "_ended",
        "_fields",
        "_first",
        "_headed",
        "_known",
        "_left",
        "_line",
        "_owner",
        "_parser",
        "_persistent",
        "_rest",
        "_size",
        "_skipped",
        "_stopped",
        "_tail",
        "_unparsed",
        "_upgrade",
        "reading",
    )

    def __init__(
        self, owner: RequestOwner, bounds: RequestBounds, alike: AlikeHeads | None = None
    ) -> None:
        self._owner = owner
        self._alike = alike
        self._bounds = bounds
        # There while a request is read by it: idle connections are many.
        self._parser: Any = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._first: dict[bytes, bytes] = _NO_FIELDS
        self._body: list[bytes] = []
        self._rest = b""
        self._stopped = False
        self._known: KnownHeads[tuple[RequestLine, HeaderPairs]] = KnownHeads()
        self._begin()

    def _begin(self) -> None:
        self.reading = ""
        self._line: RequestLine | None = None
        # What was read last and may be the beginning of an end.
        self._tail = b""
        self._size = self._left = 0
        self._chunks: ChunkLines | None = None
        self._skipped = self._upgrade = self._persistent = False
        self._unparsed = False
        self._cut: Cut | None = None
        # What llhttp found, and what we found.
        self._headed = self._complete = self._ended = False

    # From the connection.

    def feed(self, data: bytes) -> None:
        """Take what came. Raises BadRequest."""
        if self._stopped:
            return
        if self._ended:
            self._rest += data
        else:
            self._take(data)

    @property
    def waiting(self) -> int:
        """Bytes that wait for `proceed`."""
        return len(self._rest)

    def proceed(self) -> None:
        """Read the next request, of which some may have come. Raises BadRequest."""
        rest, self._rest = self._rest, b""
        if self._line is None:
            # It was remembered and came whole, and has left nothing else behind.
            self._ended = False
        else:
            self._begin()
        if rest and not self._stopped:
            self._take(rest)

    def forget(self) -> None:
        """Know none of the heads that came before."""
        self._known = KnownHeads()

    def stop(self) -> None:
        """Read nothing more, whatever comes."""
        if not self._stopped:
            self._stopped = True
            self._rest = b""
            # It holds our methods.
            self._parser = None

    def _take(self, data: bytes) -> None:
        while data and not self._stopped:
            line = self._line
            if line is None:
                known = None if self._tail or self._skipped else self._takeKnown(data)
                if self._ended:
                    self.reading = ""
                    return
                data = self._takeLine(data) if known is None else known
            elif self.reading == "head":
                data = self._takeFields(data, line)
            elif line.length is None:
                data = self._takeChunks(data)
            else:
                data = self._takeBody(data)
            if self._ended and not self._stopped:
                self.reading, self._parser = "", None
                self._rest = data
                self._owner.requestEnded()
                return

    # The head.

    def _takeKnown(self, data: bytes) -> bytes | None:
        """Returns what is left to read, or None if the head is none that is remembered."""
        known = self._known.find(data)
        if known is None:
            return None if self._alike is None else self._takeAlike(data, self._alike)
        (line, fields), body, length = known
        if len(data) - body < length:
            line = RequestLine(line.method, line.target, line.version, line.persistent)
            line.length = self._left = length
            self._line, self._unparsed, self.reading = line, True, "body"
            self._owner.headReceived(line, fields)
            return data[body:]
        self._ended = True
        self._rest = data[body + length :]
        self._owner.requestReceived(line, fields, data[body : body + length])
        return b""

    def _takeAlike(self, data: bytes, heads: AlikeHeads) -> bytes | None:
        """The same, of what is kept for all connections."""
        head = self._cut = cut(data)
        like = None if head is None else heads.find(head)
        if head is None or like is None:
            return None
        self._cut = None
        session = head.session
        line = RequestLine(like.method, like.targetOf(session), like.version, like.persistent)
        line.length = self._left = head.length
        fields = like.fieldsOf(session)
        self._line, self._unparsed, self.reading = line, True, "body"
        if self._owner.alikeReceived(line, fields, like.memo) and head.length:
            self._known.remember((line, fields))
        if head.length or self._stopped:
            return data[head.end :]
        self._ended, self.reading = True, ""
        self._rest = data[head.end :]
        self._owner.requestEnded()
        return b""

    def _takeLine(self, data: bytes) -> bytes:
        """Rules 1 to 4."""
        head = self._tail + data if self._tail else data
        if head[0] == 13 and not self._skipped:
            if len(head) == 1:
                self._tail = head
                return b""
            if head[1] == 10:
                self._skipped, self._tail = True, b""
                return head[2:]
        match = _LINE.match(head)
        # Its CRLF included.
        most = self._bounds.max_head_line + 2
        if match is None or match.end() > most:
            begun = _BEGUN.fullmatch(head[:most]) is not None
            if begun and len(head) >= most:
                raise BadRequest(414, "the request line is too long", "max_head_line")
            if not begun:
                raise BadRequest(400, "malformed request line")
            self.reading, self._tail = "head", head
            return b""
        method, target, version = match.groups()
        if version not in (b"1.1", b"1.0"):
            raise BadRequest(505, "HTTP/1.1 is spoken here")
        self._line = RequestLine(method, target, version)
        self.reading = "head"
        self._first = {}
        if self._parser is None:
            self._parser = HttpRequestParser(self)
        if method in _SHOWN:
            self._parse(match[0])
        else:
            shown = b"/" if method == b"CONNECT" else target
            self._parse(b"POST %b HTTP/%b\r\n" % (shown, version))
        # The blank line that ends a head may follow at once.
        self._size, self._tail = match.end(), _BREAK
        return head[match.end() :]

    def _takeFields(self, data: bytes, line: RequestLine) -> bytes:
        held = len(self._tail)
        window = self._tail + data
        end = window.find(_END)
        if end < 0:
            part, rest, self._tail = data, b"", window[-3:]
        else:
            end += 4 - held
            part, rest, self._tail = data[:end], data[end:], b""
        self._size += len(part)
        if self._size > self._bounds.max_head:
            raise BadRequest(431, "the head is too large", "max_head")
        self._parse(part)
        if len(self._fields) > self._bounds.max_head_fields:
            raise BadRequest(431, "too many header fields", "max_head_fields")
        self._agree(self._headed, end >= 0)
        if end >= 0:
            self._headEnded(line)
        return rest

    def _headEnded(self, line: RequestLine) -> None:
        """Rules 5, 6 and 8."""
        first, fields = self._first, self._fields
        longest = self._bounds.max_head_line
        if self._size > longest and any(len(n) + len(v) + 2 > longest for n, v in fields):
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
            bounds = self._bounds
            self._chunks = ChunkLines(bounds.max_chunk_extensions, bounds.max_trailers)
        elif (declared := first.get(b"content-length")) is not None:
            if len(declared) > _DIGITS:
                raise BadRequest(400, "Content-Length is too long")
            line.length = self._left = int(declared)
        if b"expect" in first:
            if first[b"expect"].lower() != b"100-continue":
                raise BadRequest(417, "the only expectation is 100-continue")
            # RFC 9110 section 10.1.1: to be ignored in HTTP/1.0.
            line.continues = line.version == b"1.1"
        self.reading = "body"
        if self._upgrade:
            self._known.key, self._cut = None, None
            self._ignoreUpgrade(line, fields)
        self._ended = line.length == 0
        self._agree(self._complete, self._ended)
        line.continues = line.continues and not self._ended
        line.persistent = self._persistent
        self._fields, self._first = [], _NO_FIELDS
        pairs = tuple(fields)
        remembers = self._owner.headReceived(line, pairs) and not self._stopped
        if line.continues or line.length is None:
            return
        if remembers and line.length:
            self._known.remember((line, pairs))
        self._keep(line, pairs)

    def _keep(self, line: RequestLine, fields: HeaderPairs) -> None:
        """Keep a head for all connections, if it may be."""
        head, self._cut = self._cut, None
        if head is None or self._alike is None or self._stopped or head.length != line.length:
            return
        memo = self._owner.memo()
        if memo is not None:
            persistent = self._persistent
            self._alike.keep(head, line.method, line.target, line.version, persistent, fields, memo)

    # The body.

    def _takeBody(self, data: bytes) -> bytes:
        part, rest = data[: self._left], data[self._left :]
        self._left -= len(part)
        self._tell(part, self._left == 0)
        return rest

    def _takeChunks(self, data: bytes) -> bytes:
        assert self._chunks is not None
        try:
            end, ended = self._chunks.take(data)
        except BadChunk as bad:
            raise BadRequest(400, str(bad), bad.limit) from None
        self._tell(data[:end], ended)
        return data[end:]

    def _tell(self, part: bytes, ended: bool) -> None:
        if self._unparsed:
            self._owner.bodyReceived(part)
            self._ended = ended
            return
        self._parse(part)
        self._agree(self._complete, ended)
        body, self._body = self._body, []
        if body:
            # As one: there may be a piece for every byte.
            self._owner.bodyReceived(body[0] if len(body) == 1 else b"".join(body))
        self._ended = ended

    # llhttp's side.

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._upgrade = True
        except HttpParserError:
            raise BadRequest(400, "malformed request") from None

    def _agree(self, theirs: bool, ours: bool) -> None:
        """What llhttp takes for an end is one, and the other way round."""
        if theirs is not ours:
            raise BadRequest(400, "malformed request")

    def _ignoreUpgrade(self, line: RequestLine, fields: list[tuple[bytes, bytes]]) -> None:
        """Rule 7: llhttp takes what follows for another protocol; show it the framing alone."""
        self._upgrade = self._headed = self._complete = False
        options = b",".join(value for name, value in fields if name == b"connection").lower()
        head = b"POST / HTTP/" + line.version + b"\r\n"
        if b"close" in [option.strip(b" \t") for option in options.split(b",")]:
            head += b"connection: close\r\n"
        if line.length is None:
            head += b"transfer-encoding: chunked\r\n"
        else:
            head += b"content-length: %d\r\n" % line.length
        self._parser = HttpRequestParser(self)
        self._parse(head + b"\r\n")

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp read a field, of the head or of a trailer section."""
        if self.reading == "head":
            name, value = name.lower(), value.rstrip(b" \t")
            self._fields.append((name, value))
            self._first.setdefault(name, value)

    def on_headers_complete(self) -> None:
        """llhttp read the end of the head; what it says of the connection is soon forgotten."""
        self._headed = True
        self._persistent = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """llhttp read bytes of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """llhttp read the end of the request."""
        self._complete = True
