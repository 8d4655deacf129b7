"""
How the answer to one modern POST travels (wire contract, "Modern era"; MCP 2026-07-28,
basic/transports/streamable-http, Receiving Messages).

 1. The head waits for the first message, `head_wait` seconds at most, and for a
    `subscriptions/listen` but a beat of the pulse.
 2. If that is the answer, it is a JSON body, with the HTTP status of its error code; so is any
    answer of a client that accepts JSON only, and a large one that is not on a stream yet.
 3. Else it is an event stream: no event ids, nothing to resume. What cannot be sent is not taken.
 4. A client that closes, before the head or after, has cancelled: who answers is told so at once.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from gateway.links.interfaces import EventMark
from gateway.observe.observer import BoundReached
from gateway.proxies.shared import Shared
from gateway.proxies.streams import ClientStream, openStream
from gateway.wire.envelope import Message
from gateway.wire.exchange import Exchange
from gateway.wire.modern import errorCode, statusOf
from gateway.wire.refusals import JSON_TYPE, FailedCall, Reason, callFailed, failedModern
from gateway.wire.sse import encodeEvent

__all__ = ["ModernReply"]


@define(eq=False)
class ModernReply:
    """
    The answer to one modern POST. A relay's target.

    Life: made for the POST → `start` → messages and one answer → done, or gone with its client.

    exchange: where it goes; None once there is a stream.
    json, events: what its client accepts. listens: whether it is a `subscriptions/listen`.
    onGone: told when the client closed before it was answered.
    onEnd: told when nothing of it is left, however it ended.
    onAnswer: told of the server's answer before the client is.
    onSlow: told when the client does not read its stream, and when it reads again.
    """

    exchange: Exchange | None
    shared: Shared
    server: str
    id: bytes
    json: bool
    events: bool
    listens: bool
    onGone: Callable[[ModernReply], None]
    onEnd: Callable[[ModernReply], None]
    onAnswer: Callable[[Message], None]
    onSlow: Callable[[ModernReply, bool], None]
    _stream: ClientStream | None = field(default=None, init=False)
    _done: bool = field(default=False, init=False)
    _started: float = field(init=False)

    def start(self) -> None:
        """Wait for messages."""
        self._started = self.shared.clock.seconds()
        assert self.exchange is not None
        self.exchange.onGone = self._closed
        if self.events:
            self.shared.pulse.join(self)

    def beat(self, now: float) -> None:
        """The head may have waited long enough."""
        if self.listens or now - self._started >= self.shared.limits.head_wait:
            self._open()

    # Target.

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        """Send a message that is no answer. False: it was not taken."""
        if self._done or not self.events:
            return False
        stream = self._open()
        if not stream.hasRoom():
            return False
        stream.write(encodeEvent(message.encode()))
        return True

    def marked(self, mark: EventMark) -> None:
        """There are no event ids in the modern era."""

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        """Send the answer."""
        if self._done:
            return
        if isinstance(message, FailedCall):
            status, message = failedModern(message)
        else:
            status = statusOf(errorCode(message)) if message.isError else 200
            self.onAnswer(message)
        body, exchange = message.encode(), self.exchange
        if exchange is not None and (self.json or status != 200 or self._isLarge(body)):
            self._end()
            exchange.onGone = None
            exchange.answer(status, (JSON_TYPE,), body)
        else:
            stream = self._open()
            self._end()
            stream.writeAnswer(encodeEvent(body))
            stream.close()

    def _isLarge(self, body: bytes) -> bool:
        """Whether an answer is too large for the event parsers in the field."""
        if len(body) <= self.shared.limits.max_json_answer_stream:
            return False
        bound = BoundReached("max_json_answer_stream", self.server)
        self.shared.observer.observed(bound)
        return True

    def lost(self, id: bytes) -> None:
        """What ran the call is lost, and gave no answer."""
        self.answer(callFailed(id, Reason.SERVER_EXITED, "the server went away"))

    def close(self) -> None:
        """End without an answer, as a `subscriptions/listen` may: its client listens again."""
        if self._done:
            return
        if self._stream is None:
            self.lost(self.id)
        else:
            self._end()
            self._stream.close()

    # The stream.

    def _open(self) -> ClientStream:
        if self._stream is None:
            self.shared.pulse.leave(self)
            exchange, self.exchange = self.exchange, None
            assert exchange is not None
            self._stream = openStream(exchange, self.shared, self.server, self._closed, watch=self)
        return self._stream

    def readerBlocked(self, reader: object) -> None:
        """The client does not read."""
        self.onSlow(self, True)

    def readerDrained(self, reader: object) -> None:
        """It reads again."""
        self.onSlow(self, False)

    def _closed(self) -> None:
        """The client is gone, or its stream was cut because it does not read."""
        if not self._done:
            self._end()
            self.onGone(self)

    def _end(self) -> None:
        self._done = True
        self.shared.pulse.leave(self)
        self.onEnd(self)
