"""
The answer to one HTTP request of a Streamable HTTP link, told to a listener in order.

`Stream` is what the kinds of request share; `gateway.links.http_streams` has the kinds. Its life:

 1. *open*: it collects the body, or takes it as events and tells each as it comes. Held, it stops
    at once, even between two events of one chunk; the end waits for what came before it.
 2. *told*: nothing more is said of it; it has left its link's table. The server may still owe
    the end of the body: it gets LINGER for it, so that the connection can be used again.
 3. *gone*: nothing of it is left, on the wire or here.

`leave` goes from 1 to 2, the end of the body or `abort` to 3. Every callback may do either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from io import SEEK_END, BytesIO
from typing import ClassVar

import msgspec
from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gateway.guard.limits import Limits
from gateway.http1.client import Fault, Outgoing, ResponseHead
from gateway.links.interfaces import EventMark, ILinkListener
from gateway.observe.observer import IObserver, MessageDropped
from gateway.wire.envelope import Message, NotAMessage, NotJSON, decode, salvageID
from gateway.wire.sse import EventTooLong, ServerSentEvent, SSEParser

__all__ = ["LINGER", "Stream", "Surroundings", "isMeantAsMessage"]

_NONE: deque[ServerSentEvent] = deque()
LINGER = 1.0
"""Seconds a server gets to end a body of which all that matters was told."""


def isMeantAsMessage(data: bytes) -> bool:
    """
    Whether what is no message was meant as one. A log line may quote a message, and JSON that is no
    message may have an id, too.
    """
    return data.lstrip()[:1] in (b"{", b"[") and b'"jsonrpc"' in data


@define(eq=False, repr=False)
class Surroundings:
    """
    What the streams of one link share.

    onTold: called when a stream has left. onGone: when nothing of it is left. onRefused: with
        the status of each refusal, before the listener hears of it.
    """

    server: str
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    onTold: Callable[[Stream], None]
    onGone: Callable[[Stream], None]
    onRefused: Callable[[int], None]


# A Struct, as each call makes one (see `gateway.wire.envelope`).
class Stream(msgspec.Struct, eq=False, kw_only=True):
    """
    One request and its answer; see the module. Its link opens it and closes it by `abort`.

    origin: the call or stream its messages belong to.
    listener: what hears of them.
    outgoing: the request; set once it was sent.
    """

    around: Surroundings
    listener: ILinkListener
    origin: object | None
    outgoing: Outgoing | None = None
    held: bool = False
    told: bool = False
    gone: bool = False
    _parser: SSEParser | None = None
    _events: deque[ServerSentEvent] = _NONE
    """What came and was not told; only an event stream has its own."""
    _tooLong: bool = False
    _collected: bytes | BytesIO | None = None
    """A buffer from its second piece on: what it becomes is given up without a copy."""
    _size: int = 0
    _limit: int = 0
    _end: Fault | bool = False
    """How the body ended: True in order; False as long as it has not."""
    _timer: IDelayedCall | None = None
    LINGER: ClassVar[float] = LINGER
    # What it holds holds it, and credentials.
    __repr__ = object.__repr__

    def hold(self) -> None:
        """Read and tell nothing until `release`."""
        self.held = True
        if self.outgoing is not None:
            self.outgoing.pause()

    def release(self) -> None:
        """Tell what waits, and read on."""
        self.held = False
        self._tell()
        if not self.held and self.outgoing is not None:
            self.outgoing.resume()

    def expect(self, seconds: float) -> None:
        """Give the server so long to answer, then call `lingered`."""
        if not self.gone and self._timer is None:
            self._timer = self.around.clock.callLater(seconds, self._expired)

    def answered(self) -> None:
        """What was expected came."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def leave(self) -> None:
        """Say nothing more."""
        if not self.told:
            self.told = True
            self.around.onTold(self)

    def abort(self) -> None:
        """Say nothing more, and cut the connection where the body has not ended."""
        self._events.clear()
        self.leave()
        if self.outgoing is not None:
            self.outgoing.abort()
        self._vanish()

    def linger(self) -> None:
        """Give the server LINGER to end the body, then call `lingered`."""
        if not self.gone and self._end is False and self._timer is None:
            self._timer = self.around.clock.callLater(self.LINGER, self._expired)

    # What the client says.

    def headReceived(self, head: ResponseHead) -> None:
        """The head came: choose how to take the body, or leave."""
        raise NotImplementedError

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body came."""
        if self._parser is not None:
            try:
                events = self._parser.feed(data)
            except EventTooLong as error:
                events = error.events
                self._tooLong = True
            if len(events) == 1 and not (self._events or self.held or self.told or self._tooLong):
                # Nearly always; the queue is for what cannot be told at once.
                self._eventReceived(events[0])
                return
            self._events.extend(events)
            self._tell()
        elif self._collected is not None:
            self._size += len(data)
            if self._size > self._limit:
                self._collected = b""
                self.tooLarge()
            elif not self._collected:
                self._collected = data
            else:
                self._append(self._collected, data)

    def bodyEnded(self) -> None:
        """The body is complete."""
        self._end = True
        self._ended()

    def failed(self, fault: Fault) -> None:
        """The request, or its answer, failed."""
        self._end = fault
        self._ended()

    # What the kinds of stream differ in.

    def messageReceived(self, message: Message, mark: EventMark | None) -> None:
        """A message came in an event."""
        raise NotImplementedError

    def noiseReceived(self, data: bytes, id: bytes | None) -> None:
        """An event came that holds no message; id: the one it seems to have nevertheless."""
        raise NotImplementedError

    def tooLarge(self) -> None:
        """The body, or an event of it, is over its limit. Leaves."""
        raise NotImplementedError

    def ended(self, end: Fault | bool, body: bytes) -> None:
        """The answer ended, and everything before its end was told. Leaves."""
        raise NotImplementedError

    def lingered(self) -> None:
        """The server did not end the body in time."""
        self.abort()

    # The common part.

    def collect(self, limit: int) -> None:
        """Collect the body, up to a limit."""
        self._collected, self._limit = b"", limit

    def parse(self) -> None:
        """Take the body as an event stream."""
        self._parser, self._events = SSEParser(self.around.limits.max_answer), deque()

    @property
    def collected(self) -> bytes:
        """What was collected of the body."""
        collected = self._collected or b""
        return collected if isinstance(collected, bytes) else collected.getvalue()

    def _append(self, collected: bytes | BytesIO, data: bytes) -> None:
        if isinstance(collected, bytes):
            collected = self._collected = BytesIO(collected)
            collected.seek(0, SEEK_END)
        collected.write(data)

    def _tell(self) -> None:
        while self._events and not self.held:
            event = self._events.popleft()
            if not self.told:
                self._eventReceived(event)
            elif event.data:
                self.around.observer.observed(MessageDropped(self.around.server, "after_answer"))
        if self._events:
            return
        if self._tooLong:
            self._tooLong = False
            if self.told:
                self.abort()
            else:
                self.tooLarge()
        elif self._end is not False:
            self._ended()

    def _ended(self) -> None:
        if not self.told:
            if self._parser is not None and (self.held or self._events):
                return
            self.ended(self._end, self.collected)
        self._vanish()

    def _vanish(self) -> None:
        if self.gone:
            return
        self.gone = True
        if self._timer is not None:
            self.answered()
        self.around.onGone(self)

    def _expired(self) -> None:
        self._timer = None
        self.lingered()

    def _eventReceived(self, event: ServerSentEvent) -> None:
        mark = None
        if event.id is not None or event.retry is not None:
            mark = EventMark(event.id, event.retry)
        # Other types are none of MCP's; an empty data field primes the stream.
        if not event.data or event.event != b"message":
            if mark is not None:
                self.listener.marked(self.origin, mark)
            return
        try:
            decoded = decode(event.data)
        except NotJSON:
            self.noiseReceived(event.data, salvageID(event.data))
            return
        except NotAMessage as bad:
            self.noiseReceived(event.data, bad.answered)
            return
        if isinstance(decoded, Message):
            self.messageReceived(decoded, mark)
            return
        for one in decoded:
            if self.told:
                return
            if isinstance(one, Message):
                self.messageReceived(one, mark)
                mark = None
            else:
                self.noiseReceived(event.data, one.answered)
