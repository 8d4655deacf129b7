"""
Reads HTTP/1.1 requests off a connection, over llhttp (`httptools`). Sans-IO.

llhttp reads the fields of the head and the framing of the body; by which rules of ours a head is
judged beside is in `gateway.http1.request_head`. One empty line before a request line is ignored
(RFC 9112 section 2.2). Chunk extensions and trailers are bounded (400), and thrown away.

A head that was taken may be remembered, and needs no second look then (`gateway.http1.heads` for
those of one connection, `gateway.http1.alike` for those of all).

One request is read at a time: what comes after its end waits, unparsed, for `proceed`. llhttp does
not tell where it is, so the ends are found here, too: a head ends with CRLF CRLF, a body with a
length after so many bytes, a chunked one by the sizes of its chunks (`gateway.http1.chunks`).
llhttp is fed up to there, and where it does not find the same end, the request is refused.
"""

from __future__ import annotations

from typing import Any, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.http1.alike import AlikeHeads, Cut, cut
from gateway.http1.chunks import BadChunk, ChunkLines
from gateway.http1.heads import KnownHeads
from gateway.http1.request_head import (
    BadRequest,
    RequestBounds,
    RequestLine,
    judgeFields,
    lineOf,
    withoutUpgrade,
)
from gateway.wire.context import HeaderPairs

__all__ = ["RequestOwner", "RequestReader"]

_END = b"\r\n\r\n"
_BREAK = b"\r\n"
_NO_FIELDS: dict[bytes, bytes] = {}


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
        head = self._tail + data if self._tail else data
        if head[0] == 13 and not self._skipped:
            if len(head) == 1:
                self._tail = head
                return b""
            if head[1] == 10:
                self._skipped, self._tail = True, b""
                return head[2:]
        found = lineOf(head, self._bounds.max_head_line)
        if found is None:
            self.reading, self._tail = "head", head
            return b""
        self._line, end = found
        self.reading = "head"
        self._first = {}
        if self._parser is None:
            self._parser = HttpRequestParser(self)
        self._parse(self._line.asShown())
        # The blank line that ends a head may follow at once.
        self._size, self._tail = end, _BREAK
        return head[end:]

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
        fields, bounds = self._fields, self._bounds
        judgeFields(line, fields, self._first, self._size, bounds)
        if line.length is None:
            self._chunks = ChunkLines(bounds.max_chunk_extensions, bounds.max_trailers)
        else:
            self._left = line.length
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
        """llhttp takes what follows for another protocol; show it the framing alone."""
        self._upgrade = self._headed = self._complete = False
        self._parser = HttpRequestParser(self)
        self._parse(withoutUpgrade(line, fields))

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
