"""
Responses as they come over one connection, sans-IO (RFC 9112 sections 4 to 8).

llhttp (`httptools`) parses heads and chunks; the rules that it leaves open are here:

 1. A head starts with `HTTP/1.1` or `HTTP/1.0` and a status from 100 to 599. Its lines end with
    CRLF, have at most 16 KiB and no control characters. All of it, interim (1xx) heads included,
    has at most `maxHead` bytes.
 2. Interim heads are passed over; 101 is refused, for nobody asks for an upgrade.
 3. One framing: a single `Content-Length` of at most 18 digits, or a single `Transfer-Encoding:
    chunked` in HTTP/1.1, or neither, and then the body ends with the connection. A response with
    status 204 or 304 has no body. The answer to HEAD cannot be told from others: nobody sends it.
 4. Of a chunked body, at most `maxHead` bytes in a row and one read more may be anything else than
    data: extensions and trailers. They are dropped.
 5. What comes after the end of a response in the same read makes it bad. Nothing else may be fed
    until the next request is on its way: bytes that nobody asked for cost the connection.
 6. A connection serves on after a response in HTTP/1.1 without `close` in its `Connection`, in any
    case, and with a length.

Each read gives events, in order: a `ResponseHead`, bytes of the body, `END`; or, in the place of
what should come next, one `BadResponse`, and nothing is read any more. However the bytes are cut,
the events are the same but for where those of the body are cut. (After rule 5 an `END` may come
before the `BadResponse`.)
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, Literal

import msgspec
from attrs import define, field, frozen
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.http1.heads import KnownHeads

__all__ = ["END", "BadResponse", "End", "Event", "ResponseHead", "ResponseReader"]

MAX_LINE = 16_384
"""Bytes of a header line."""

_MAX_DIGITS = 18
_START = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_BARE_LF = re.compile(rb"(?:^|[^\r])\n")
_SPACE = b" \t"


class End(Enum):
    """The body is complete."""

    END = "end"


END: Final = End.END


# A Struct, as most answers make one (see `gateway.wire.envelope`).
class ResponseHead(msgspec.Struct):
    """
    The final head of an answer.

    status: its status code. pairs: its fields in order, (name in lower case, value).
    length: bytes of the body, where the head tells. The Content-Length among the fields may be that
        of an earlier response with the same head.
    mediaType: the media type in lower case, without parameters; b"" where it is missing or twice.
    encoded: whether the body has a content coding.
    """

    status: int
    pairs: list[tuple[bytes, bytes]]
    length: int | None = None
    mediaType: bytes = b""
    encoded: bool = False

    def __post_init__(self) -> None:
        types = self.values(b"content-type")
        one = types[0] if len(types) == 1 else b""
        self.mediaType = one.split(b";")[0].strip().lower()
        codings = b",".join(self.values(b"content-encoding")).lower().split(b",")
        self.encoded = any(one.strip() not in (b"", b"identity") for one in codings)

    def withLength(self, length: int) -> ResponseHead:
        """The same head, of a body of another length."""
        if length == self.length:
            return self
        # Every Struct has it; the stubs do not tell.
        head: ResponseHead = self.__copy__()  # type: ignore[attr-defined]
        head.length = length
        return head

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a field; name: in lower case."""
        return [value for one, value in self.pairs if one == name]


@frozen
class BadResponse:
    """
    A response that breaks a rule.

    why: which. bound: whether it is the one on sizes.
    """

    why: str
    bound: bool = False


Event = ResponseHead | bytes | Literal[End.END] | BadResponse


class _Broken(Exception):
    """A rule is broken; bound: whether it is the one on sizes."""

    def __init__(self, why: str, bound: bool = False) -> None:
        super().__init__(why)
        self.bound = bound


class _Parts:
    """What llhttp finds in a response: it calls these."""

    __slots__ = ("complete", "pairs", "pieces")

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.complete = False

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Broken("more came than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name.lower(), value.strip(_SPACE)))

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


class _Phase(Enum):
    IDLE = "nothing is awaited"
    HEAD = "a head is awaited"
    LENGTH = "a body with a length"
    CHUNKED = "a body in chunks"
    CLOSE = "a body that ends with its connection"
    BROKEN = "nothing is read any more"


_IDLE, _HEAD, _LENGTH, _CHUNKED, _CLOSE, _BROKEN = _Phase


@define(eq=False, repr=False)
class ResponseReader:
    """
    Reads the responses of one connection, one after the other. `expect` before each request.

    maxHead: bytes of a response's heads.
    reusable: whether another request can follow; meaningful once the response has ended.
    """

    _maxHead: int
    reusable: bool = field(default=False, init=False)
    _phase: _Phase = field(default=_IDLE, init=False)
    _head: bytearray | None = field(default=None, init=False)
    """A head that is not whole."""
    _seen: int = field(default=0, init=False)
    """Bytes of interim heads; in a chunked body, of what is no data, since the last data."""
    _left: int = field(default=0, init=False)
    """Bytes of the body still to come."""
    _tail: bytes = field(default=b"", init=False)
    """The last bytes of a chunked body."""
    _parts: _Parts = field(factory=_Parts, init=False)
    _parser: HttpResponseParser | None = field(default=None, init=False)
    _known: KnownHeads[ResponseHead] = field(factory=KnownHeads, init=False)

    @property
    def awaiting(self) -> bool:
        """Whether the final head has not come yet."""
        return self._phase is _HEAD

    def expect(self) -> None:
        """A request is sent: its response may come."""
        assert self._phase is _IDLE
        self._phase, self._seen = _HEAD, 0

    def feed(self, data: bytes) -> list[Event]:
        """Bytes came; not empty. Returns: what is in them."""
        events: list[Event] = []
        try:
            if self._phase is _CHUNKED:
                self._readChunks(data, events)
                return events
            if self._phase is _HEAD:
                data = self._readHead(data, events)
                if self._phase is _HEAD or (not data and self._phase is not _LENGTH):
                    return events
            self._readBody(data, events)
        except _Broken as error:
            self._phase, self._parser = _BROKEN, None
            events.append(BadResponse(str(error), error.bound))
        return events

    def eof(self) -> bool:
        """The connection was closed, in order. Returns: whether that is the end of the body."""
        ended = self._phase is _CLOSE
        self._phase, self._parser = _BROKEN, None
        return ended

    # Heads.

    def _readHead(self, data: bytes, events: list[Event]) -> bytes:
        """Returns: what follows the final head."""
        while True:
            kept, fresh = self._head, 0
            if kept is not None:
                fresh = len(kept)
                kept += data
                self._known.key = None
            elif (known := self._known.find(data)) is not None:
                same, end, length = known
                self._bound(end)
                events.append(same.withLength(length))
                self.reusable = True
                if end + length == len(data):
                    events += (data[end:], END)
                    self._phase = _IDLE
                    return b""
                self._phase, self._left = _LENGTH, length
                return data[end:]
            whole = data if kept is None else kept
            end = whole.find(b"\r\n\r\n", max(0, fresh - 3))
            if end < 0:
                self._keep(whole, fresh)
                return b""
            self._head = None
            head, data = bytes(whole[: end + 4]), bytes(whole[end + 4 :])
            self._bound(len(head))
            status = self._parse(head)
            if status >= 200:
                events.append(self._judge(head, status))
                return data
            if status == 101:
                raise _Broken("an upgrade nobody asked for")
            self._seen += len(head)
            if not data:
                return b""

    def _keep(self, data: bytes | bytearray, fresh: int) -> None:
        """Keep a head that is not whole, unless it can be none. fresh: where it goes on."""
        if not data.startswith(_START[: len(data)]) or _BARE_LF.search(data, max(0, fresh - 1)):
            raise _Broken("no head of a response")
        self._bound(len(data))
        if self._head is None:
            self._head = bytearray(data)

    def _bound(self, size: int) -> None:
        if self._seen + size > self._maxHead:
            raise _Broken("the head is too large", bound=True)

    def _parse(self, head: bytes) -> int:
        """Have llhttp read a whole head. Returns: its status."""
        match = _STATUS.match(head)
        if match is None:
            raise _Broken("no status line")
        self._parts = parts = _Parts()
        self._parser = HttpResponseParser(parts)
        self._execute(head)
        return int(match[2])

    def _execute(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            raise _Broken(str(error)) from None

    def _judge(self, head: bytes, status: int) -> ResponseHead:
        """Judge the fields of a final head, and see how its body ends."""
        pairs = self._parts.pairs
        length: bytes | None = None
        coding: bytes | None = None
        old = head[7] == 0x30
        closes = old
        for name, value in pairs:
            if len(value) + len(name) >= MAX_LINE:
                raise _Broken("a line that is too long")
            if name == b"content-length":
                if length is not None or not value.isdigit() or len(value) > _MAX_DIGITS:
                    raise _Broken("an ambiguous length of the body")
                length = value
            elif name == b"transfer-encoding":
                if coding is not None or old or value.lower() != b"chunked":
                    raise _Broken("an ambiguous framing of the body")
                coding = value
            elif name == b"connection" and b"close" in value.lower():
                closes = closes or b"close" in [one.strip(_SPACE) for one in _tokens(value)]
        if coding is not None and length is not None:
            raise _Broken("two framings of the body")
        self.reusable = not closes
        told: int | None = None
        if status in (204, 304) or length is not None:
            told = 0 if length is None or status in (204, 304) else int(length)
            self._phase, self._left = _LENGTH, told
        elif coding is not None:
            self._phase, self._seen, self._tail = _CHUNKED, 0, b""
        else:
            self._phase, self.reusable = _CLOSE, False
        if coding is None:
            # Nothing but chunks needs it.
            self._parser = None
        else:
            # Trailers are none of the head.
            self._parts.pairs = []
        made = ResponseHead(status, pairs, told)
        if self.reusable and told:
            self._known.remember(made)
        return made

    # Bodies.

    def _readBody(self, data: bytes, events: list[Event]) -> None:
        phase = self._phase
        if phase is _LENGTH:
            left = self._left = self._left - len(data)
            if left < 0:
                data = data[:left]
            if data:
                events.append(data)
            if left < 0:
                raise _Broken("the body is longer than its head told")
            if left == 0:
                self._phase = _IDLE
                events.append(END)
        elif phase is _CHUNKED:
            self._readChunks(data, events)
        elif phase is _CLOSE:
            events.append(data)
        elif phase is _IDLE:
            raise _Broken("data that nobody asked for")

    def _readChunks(self, data: bytes, events: list[Event]) -> None:
        parts = self._parts
        pieces = parts.pieces = []
        try:
            self._execute(data)
        finally:
            events.extend(pieces)
        self._tail = data[-5:] if len(data) > 4 else (self._tail + data)[-5:]
        if parts.complete:
            # llhttp passes over line ends before the next message.
            if self._tail[-4:] != b"\r\n\r\n" or self._tail[:1] == b"\n":
                raise _Broken("more came than one response")
            self._phase, self._parser = _IDLE, None
            events.append(END)
        elif pieces:
            self._seen = 0
        else:
            self._seen += len(data)
            if self._seen > self._maxHead:
                raise _Broken("extensions or trailers that are too large", bound=True)


def _tokens(value: bytes) -> list[bytes]:
    return value.lower().split(b",")
