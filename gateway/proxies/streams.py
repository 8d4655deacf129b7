"""
An event stream to a client: bounded, with a heartbeat, cut when its reader blocks.

Back-pressure: above the sink's mark the stream keeps what comes in an outbox. Notifications and
requests are refused once it holds `max_stream_bytes`; answers have a budget of their own
(`max_answer`) and are never refused, but past it the reader is cut, as it is after
`reader_blocked` seconds without reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from gateway.observe.observer import BoundReached
from gateway.proxies.shared import Shared
from gateway.wire.context import HeaderPairs
from gateway.wire.exchange import EventSink, Exchange
from gateway.wire.sse import comment

__all__ = ["STREAM_HEADERS", "ClientStream", "ReaderWatch", "openStream"]

STREAM_HEADERS: HeaderPairs = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)

_HEARTBEAT = comment()


class ReaderWatch(Protocol):
    """Wants to know whether the reader of a stream keeps up."""

    def readerBlocked(self, reader: object) -> None:
        """The reader does not read."""

    def readerDrained(self, reader: object) -> None:
        """It reads again."""


@define(eq=False)
class ClientStream:
    """
    One open stream: the connection beneath a Channel.

    Life: opened by a proxy → messages → closed by the proxy or the session's end, or gone with
    its client. `onClosed` is called once, however it ends.
    """

    sink: EventSink
    shared: Shared
    server: str
    onClosed: Callable[[], None]
    watch: ReaderWatch | None = None
    closed: bool = field(default=False, init=False)
    _closing: bool = field(default=False, init=False)
    _outbox: list[tuple[bytes, int]] = field(factory=list, init=False)
    _held: int = field(default=0, init=False)
    _blockedSince: float | None = field(default=None, init=False)
    _moved: int = field(default=0, init=False)
    _lastWrite: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lastWrite = self.shared.clock.seconds()
        self.sink.onDrained = self._drained
        self.shared.pulse.join(self)

    @property
    def keepsUp(self) -> bool:
        """Whether everything written so far went to the connection."""
        return not self.closed and self._blockedSince is None

    def hasRoom(self) -> bool:
        """Whether a message that is no answer is taken; if not, its reader does not keep up."""
        if self.closed or self._closing:
            return False
        if self._held >= self.shared.limits.max_stream_bytes:
            self._bound("max_stream_bytes")
            return False
        return True

    def writeAnswer(self, data: bytes) -> None:
        """Write an event that holds an answer."""
        if self._held > self.shared.limits.max_answer:
            self._bound("max_answer")
            self.abort()
        else:
            self.write(data)

    def close(self) -> None:
        """End the stream once what it holds is written."""
        if self._outbox:
            self._closing = True
        elif not self.closed:
            self.sink.close()
            self.gone()

    # The body.

    def write(self, data: bytes, replayed: bool = False) -> None:
        """
        Write encoded events, now or when the reader reads again.

        replayed: whether they are kept in the event log. Such take no room from what comes after
            them, since the log's bounds are the bounds on them.
        """
        if self.closed or self._closing:
            return
        if self._blockedSince is not None:
            room = 0 if replayed else len(data)
            self._outbox.append((data, room))
            self._held += room
            return
        now = self.shared.clock.seconds()
        self._lastWrite = now
        if not self.sink.write(data):
            self._blockedSince, self._moved = now, self.sink.moved
            if self.watch is not None:
                self.watch.readerBlocked(self)

    def _drained(self) -> None:
        if self.closed:
            return
        now = self.shared.clock.seconds()
        self._lastWrite = now
        while self._outbox:
            data, room = self._outbox.pop(0)
            self._held -= room
            if not self.sink.write(data):
                self._blockedSince, self._moved = now, self.sink.moved
                return
        self._blockedSince = None
        if self._closing:
            self.sink.close()
            self.gone()
        elif self.watch is not None:
            self.watch.readerDrained(self)

    def beat(self, now: float) -> None:
        """Cut a blocked reader; keep a quiet stream alive."""
        limits = self.shared.limits
        if self._blockedSince is not None:
            if self.sink.moved != self._moved:
                # It reads, if slowly: a large event takes its time.
                self._blockedSince, self._moved = now, self.sink.moved
            elif now - self._blockedSince >= limits.reader_blocked:
                self._bound("reader_blocked")
                self.abort()
        elif now - self._lastWrite >= limits.heartbeat:
            self.write(_HEARTBEAT)

    def abort(self) -> None:
        """Cut the connection."""
        if not self.closed:
            self.sink.abort()
            self.gone()

    def gone(self) -> None:
        """The stream is over: its client vanished, or it was closed."""
        if self.closed:
            return
        self.closed = True
        self.sink.onDrained = None
        self._outbox.clear()
        self.shared.pulse.leave(self)
        # It refers to us: see `Outflow.stopProducing`.
        tell, self.onClosed = self.onClosed, _nothing
        tell()

    def _bound(self, name: str) -> None:
        self.shared.observer.observed(BoundReached(name, self.server))


def _nothing() -> None:
    pass


def openStream(
    exchange: Exchange,
    shared: Shared,
    server: str,
    onClosed: Callable[[], None],
    headers: HeaderPairs = (),
    watch: ReaderWatch | None = None,
) -> ClientStream:
    """Answer an exchange with an event stream."""
    sink = exchange.open(200, STREAM_HEADERS + headers)
    stream = ClientStream(sink, shared, server, onClosed, watch)
    exchange.onGone = stream.gone
    return stream
