"""
Server-sent events, both ways (WHATWG HTML, section 9.2 "Server-sent events").

What the parser keeps to (9.2.5 parsing, 9.2.6 interpretation):

 1. One byte order mark at the start of the stream is skipped.
 2. A line ends with CRLF, CR or LF; a CRLF that two chunks share is one end.
 3. A line that starts with a colon is a comment. Any other is `field`, or `field:value`, less one
    space after the colon; unknown fields are ignored.
 4. Values of `data` are joined by LF. An `id` with NUL and a `retry` that is not all digits are
    ignored. An empty `event` means "message".
 5. A blank line ends the event. What is unfinished when the stream ends is discarded.

One difference: an event without data but with an id or a retry is reported too, as MCP
2025-11-25 primes streams and sets reconnection times with such events (SEP-1699).
"""

from __future__ import annotations

import re

from attrs import define, field

from gateway.wire.pieces import pack

__all__ = [
    "EventTooLong",
    "SSEParser",
    "ServerSentEvent",
    "comment",
    "encodeEvent",
    "encodeRetry",
]

# As numbers: to look for a byte as bytes raises, and clears, a TypeError each time.
_LF, _CR = b"\n\r"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_UNSAFE = re.compile(rb"[\r\n\x00]")
# A whole event, as nearly every server writes it: it needs no look at each line.
_COMMON = re.compile(
    rb"(?:event: message\r?\n)?(?:id: ([^\r\n\x00]*+)\r?\n)?(?:event: message\r?\n)?"
    rb"data: ([^\r\n]*+)\r?\n\r?\n"
)


# Not frozen, though nobody changes one: a stream makes many, and freezing trebles its cost.
@define
class ServerSentEvent:
    """
    One event.

    data: its data lines joined by LF; None where it had no data field at all.
    event: its type; b"message" where it named none.
    id: the id this event set; None where it set none (an earlier one then stays the last).
    retry: the reconnection time it set, in milliseconds as spelled; None where it set none.
    """

    data: bytes | None = None
    event: bytes = b"message"
    id: bytes | None = None
    retry: bytes | None = None


class EventTooLong(Exception):
    """
    An event, or a line of any kind, is over the parser's limit; the stream is of no more use.

    events: what was complete before it in the same chunk.
    """

    def __init__(self, limit: int, events: list[ServerSentEvent]) -> None:
        super().__init__(f"an event is over {limit} bytes")
        self.events = events


def encodeEvent(
    data: bytes,
    *,
    event: bytes = b"message",
    id: bytes | None = None,
    retry: int | None = None,
) -> bytes:
    """
    One event, with the blank line that ends it.

    data: its text; each CRLF, CR or LF in it starts another data line, and reads back as LF.
    event: its type; b"" writes none.
    id: its id, where it has one.
    retry: a reconnection time in milliseconds.
    Raises: ValueError for CR, LF or NUL in event or id, and for a negative retry.
    """
    if id is None and retry is None and event == b"message":
        head = b"event: message\ndata: "
    else:
        head = _head(event, id, retry)
    if _LF in data or _CR in data:
        data = _LINE_END.sub(b"\ndata: ", data)
    return b"%b%b\n\n" % (head, data)


def _head(event: bytes, id: bytes | None, retry: int | None) -> bytes:
    """An event up to its first data."""
    parts: list[bytes] = []
    for name, value in ((b"event", event or None), (b"id", id)):
        if value is None:
            continue
        if _UNSAFE.search(value) is not None:
            raise ValueError(f"CR, LF or NUL in {name.decode()}")
        parts.append(b"%b: %b\n" % (name, value))
    if retry is not None:
        if retry < 0:
            raise ValueError("retry is negative")
        parts.append(b"retry: %d\n" % retry)
    parts.append(b"data: ")
    return b"".join(parts)


def comment(text: bytes = b"") -> bytes:
    """A comment, which keeps a quiet connection alive; each line of text is a line of it."""
    if not text:
        return b":\n\n"
    return b": %b\n\n" % _LINE_END.sub(b"\n: ", text)


def encodeRetry(retry: int) -> bytes:
    """A reconnection time in milliseconds, and nothing that a client would hear as an event."""
    return b"retry: %d\n\n" % retry


@define(eq=False)
class SSEParser:
    """
    Events out of the bytes of one stream, however they are cut. One parser lives as long as its
    stream; nothing closes it.

    limit: how many bytes of lines one event may have, line ends and finished comments aside.
    """

    limit: int
    _start: bytes | None = field(default=b"", init=False)
    """What may yet become a byte order mark; None once the start is behind us."""
    _afterCR: bool = field(default=False, init=False)
    _line: list[bytes] = field(factory=list, init=False)
    """The line that has not ended, in pieces; the bytes of it, and how many are packed."""
    _lineSize: int = field(default=0, init=False)
    _linePacked: int = field(default=0, init=False)
    _size: int = field(default=0, init=False)
    """Bytes of this event's finished lines."""
    _over: bool = field(default=False, init=False)
    _data: list[bytes] = field(factory=list, init=False)
    _packed: int = field(default=0, init=False)
    _event: bytes = field(default=b"", init=False)
    _id: bytes | None = field(default=None, init=False)
    _retry: bytes | None = field(default=None, init=False)

    @property
    def unfinished(self) -> bool:
        """Whether bytes of an event, or of a line, still wait for their end."""
        return bool(self._size or self._line or self._start)

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """
        Take the next bytes of the stream.

        Returns: the events they complete.
        Raises: EventTooLong, from then on always.
        """
        if self._over:
            raise EventTooLong(self.limit, [])
        if self._start is not None:
            data = self._started(data)
        if not data:
            return []
        if self._afterCR and data[0] == 0x0A:
            data = data[1:]
        events: list[ServerSentEvent] = []
        if not (self._size or self._line) and len(data) <= self.limit:
            at = 0
            while (found := _COMMON.match(data, at)) is not None:
                events.append(ServerSentEvent(found[2], b"message", found[1]))
                at = found.end()
                if at == len(data):
                    self._afterCR = False
                    return events
            data = data[at:]
        self._afterCR = data[-1:] == b"\r"
        # Of bytes, unlike of str, this splits at CRLF, CR and LF only.
        lines = data.splitlines()
        tail = lines.pop() if lines and data[-1] not in b"\r\n" else b""
        if self._line and lines:
            self._line.append(lines[0])
            lines[0] = b"".join(self._line)
            self._line.clear()
            self._lineSize = self._linePacked = 0
        for line in lines:
            if line:
                self._lineEnded(line, events)
            else:
                self._eventEnded(events)
        if tail:
            self._lineSize += len(tail)
            self._bound(self._lineSize, events)
            self._line.append(tail)
            self._linePacked = pack(self._line, self._linePacked)
        return events

    def _started(self, data: bytes) -> bytes:
        """What follows the byte order mark; nothing as long as it cannot be told."""
        data = (self._start or b"") + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(_BOM)

    def _bound(self, more: int, events: list[ServerSentEvent]) -> None:
        if self._size + more > self.limit:
            self._over = True
            raise EventTooLong(self.limit, events)

    def _lineEnded(self, line: bytes, events: list[ServerSentEvent]) -> None:
        self._bound(len(line), events)
        name, colon, value = line.partition(b":")
        if colon and not name:
            return
        self._size += len(line)
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._packed = pack(self._data, self._packed, b"\n")
        elif name == b"event":
            self._event = value
        elif name == b"id":
            if b"\x00" not in value:
                self._id = value
        elif name == b"retry" and value.isdigit():
            self._retry = value

    def _eventEnded(self, events: list[ServerSentEvent]) -> None:
        if self._data or self._id is not None or self._retry is not None:
            data = b"\n".join(self._data) if self._data else None
            events.append(ServerSentEvent(data, self._event or b"message", self._id, self._retry))
            self._data.clear()
            self._packed = 0
        self._event, self._id, self._retry = b"", None, None
        self._size = 0
