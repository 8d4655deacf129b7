"""
One request at our own listener's door, and its answer: an Exchange right on the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from io import SEEK_END, BytesIO
from typing import Any, Protocol

from gateway.http1.outflow import PIECE, Outflow
from gateway.http1.request_head import RequestLine
from gateway.http1.writing import CHUNKED, CONTINUE, LAST_CHUNK, chunk, encodeAnswer, encodeHead
from gateway.proxies import crossorigin
from gateway.wire.context import HeaderPairs
from gateway.wire.exchange import RequestHead

__all__ = ["Carrier", "LLExchange", "LLSink"]


_FIRST = PIECE // 2
"""Bytes of a large body that go out with its head."""


class Carrier(Protocol):
    """
    The connection of an exchange.

    out: what goes out on it. requestComplete: whether all of the request has come.
    """

    out: Outflow
    requestComplete: bool

    def ending(self, line: RequestLine) -> bytes:
        """The field line that tells the client what becomes of the connection; may be empty."""

    def decided(self) -> None:
        """Whether the body is wanted is known now."""

    def answered(self) -> None:
        """The answer is complete."""

    def cut(self) -> None:
        """Cut the connection."""


class LLExchange:
    """
    One request at this door, and its one answer. See `gateway.wire.exchange.Exchange`.

    Life: made with the head → `collect`, if the proxy wants the body → `answer`, or `open` and the
    sink's end, or `abort`; or gone with its client.

    undecided: whether nobody has asked for the body yet, nor answered. What comes of it meanwhile
    is kept; the connection sees to it that this is no more than one read.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_connection",
        "_limit",
        "_then",
        "allowed",
        "found",
        "head",
        "line",
        "onGone",
        "sink",
        "undecided",
    )

    def __init__(
        self,
        connection: Carrier,
        line: RequestLine,
        head: RequestHead,
        body: bytes = b"",
    ) -> None:
        self._connection: Carrier | None = connection
        self.line = line
        self.head = head
        self.allowed = False
        self.found: Any = None
        self.onGone: Callable[[], None] | None = None
        self.sink: LLSink | None = None
        self.undecided = True
        self._then: Callable[[bytes | None], None] | None = None
        # Most bodies come in one piece; others give up what they became without a copy.
        self._body: bytes | BytesIO = body
        self._limit = 0
        self._answered = False

    def collect(self, limit: int, then: Callable[[bytes | None], None]) -> None:
        """See Exchange."""
        connection = self._connection
        if connection is None:
            return
        self.undecided = False
        if connection.requestComplete:
            body = self._taken()
            then(body if len(body) <= limit else None)
            return
        self._limit, self._then = limit, then
        if self.line.continues and not self._body:
            connection.out.write(CONTINUE)
        connection.decided()

    def answer(self, status: int, headers: HeaderPairs, body: bytes = b"") -> None:
        """See Exchange."""
        connection = self._connection
        if connection is None or self._answered:
            return
        self._answered, self.undecided = True, False
        if not self.allowed:
            # A Host that is none, or foreign: nothing behind it on this connection is heard.
            self.line.persistent = False
        # Two parts of one answer in two packets would cost both sides; what is large is no copy.
        bodiless, size = self.head.method == b"HEAD", len(body)
        connection.out.write(
            encodeAnswer(
                status,
                self._shared(headers),
                body if size <= PIECE else body[:_FIRST],
                connection.ending(self.line),
                bodiless,
                size,
            )
        )
        if size > PIECE and not bodiless and status != 204:
            connection.out.follow(memoryview(body)[_FIRST:])
        self._over(connection)

    def open(self, status: int, headers: HeaderPairs) -> LLSink:
        """See Exchange."""
        connection, self._answered, self.undecided = self._connection, True, False
        sink = self.sink = LLSink(self, connection, self.line.version == b"1.1")
        if connection is not None:
            if not sink.chunked:
                # RFC 9112 section 6.3: only the end of the connection ends such a body.
                self.line.persistent = False
            framing = (CHUNKED if sink.chunked else b"") + connection.ending(self.line)
            connection.out.write(encodeHead(status, self._shared(headers), framing))
            head = self.head
            if head.method == b"GET":
                # Such a stream may stay for hours; its request's fields need not.
                self.head = RequestHead(head.method, head.path, head.query, ())
            sink.blocked = connection.out.blocked
            if not connection.requestComplete:
                connection.decided()
        return sink

    def abort(self) -> None:
        """See Exchange."""
        if self._connection is not None:
            self._connection.cut()

    def _shared(self, headers: HeaderPairs) -> HeaderPairs:
        # A foreign Origin is told nothing that lets its page read the refusal.
        return headers + crossorigin.shared(self.head) if self.allowed else headers

    def _over(self, connection: Carrier) -> None:
        self._connection, self._then, self._body, self.onGone = None, None, b"", None
        connection.answered()

    # The connection's side.

    @property
    def begun(self) -> bool:
        """Whether an answer has begun that has not ended."""
        return self.sink is not None

    def bodyReceived(self, data: bytes) -> None:
        """Bytes of the body came; kept only if it is collected, and up to the limit."""
        then = self._then
        if then is None and not self.undecided:
            return
        body = self._body
        size = len(data) + (len(body) if isinstance(body, bytes) else body.tell())
        if then is not None and size > self._limit:
            self._then, self._body = None, b""
            then(None)
        elif not body:
            self._body = data
        else:
            if isinstance(body, bytes):
                body = self._body = BytesIO(body)
                body.seek(0, SEEK_END)
            body.write(data)

    def _taken(self) -> bytes:
        body, self._body = self._body, b""
        return body if isinstance(body, bytes) else body.getvalue()

    def bodyEnded(self) -> None:
        """The body is complete."""
        then, self._then = self._then, None
        if then is not None:
            then(self._taken())

    def ended(self) -> None:
        """The sink was closed."""
        if self._connection is not None:
            self._over(self._connection)

    def drained(self) -> None:
        """The peer took what was written."""
        if self.sink is not None:
            self.sink.drained()

    def vanished(self) -> None:
        """The connection is gone."""
        self._connection, self._then, self._body, self.undecided = None, None, b"", False
        if self.sink is not None:
            self.sink.gone()
        tell, self.onGone = self.onGone, None
        if tell is not None:
            tell()


class LLSink:
    """The open body of an exchange. See `gateway.wire.exchange.EventSink`."""

    __slots__ = ("_connection", "_exchange", "blocked", "chunked", "onDrained")

    def __init__(self, exchange: LLExchange, connection: Carrier | None, chunked: bool) -> None:
        self._exchange: LLExchange | None = exchange
        self._connection = connection
        self.chunked = chunked
        self.onDrained: Callable[[], None] | None = None
        # A stream to nobody is cut as the stream of a reader that blocks.
        self.blocked = connection is None

    @property
    def moved(self) -> int:
        """See EventSink."""
        return 0 if self._connection is None else self._connection.out.moved

    def write(self, data: bytes) -> bool:
        """See EventSink."""
        connection = self._connection
        if connection is not None:
            out = connection.out
            if not self.chunked:
                out.write(data)
            elif len(data) <= PIECE:
                out.write(chunk(data))
            else:
                out.write(b"%x\r\n%b" % (len(data), data[:_FIRST]))
                out.follow(memoryview(data)[_FIRST:])
                out.follow(b"\r\n")
            self.blocked = out.blocked
        return not self.blocked

    def close(self) -> None:
        """See EventSink."""
        connection, self._connection = self._connection, None
        exchange, self._exchange = self._exchange, None
        if connection is not None and exchange is not None:
            if self.chunked:
                connection.out.write(LAST_CHUNK)
            exchange.ended()

    def abort(self) -> None:
        """See EventSink."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()

    def drained(self) -> None:
        """The peer took what was written."""
        self.blocked = False
        if self.onDrained is not None:
            self.onDrained()

    def gone(self) -> None:
        """The connection is lost."""
        # The exchange refers to us: what is left of both need not wait for the garbage collector.
        self._connection = self._exchange = None
        self.blocked = True
