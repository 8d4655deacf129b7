"""
How the answer to one POST travels (wire contract, "How an answer travels").

The head waits for the first message, `head_wait` seconds at most. If that is the answer, or only
JSON is acceptable, the answer is a JSON body; else an event stream. A session that negotiated
2025-11-25 gets its stream at once.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from gateway.links.interfaces import EventMark
from gateway.observe.observer import BoundReached
from gateway.proxies.channel import Channel
from gateway.proxies.shared import Shared
from gateway.proxies.streams import ClientStream, ReaderWatch, openStream
from gateway.sessions.events import EventLog
from gateway.wire.envelope import Message, encodeBatch
from gateway.wire.exchange import Exchange
from gateway.wire.refusals import JSON_TYPE, lostWithSession, sessionNotFound

__all__ = ["Reply", "ReplyOwner"]


class ReplyOwner(ReaderWatch, Protocol):
    """The relay, as a reply sees it."""

    def readerOpened(self, reader: object, target: Reply) -> None:
        """A reply became a stream."""

    def readerClosed(self, reader: object) -> None:
        """It ended."""

    def gone(self, target: Reply) -> None:
        """The client no longer waits."""


# A Struct, as each call makes one (see `gateway.wire.envelope`).
class Reply(msgspec.Struct, eq=False):
    """
    The answer to one POST. A relay's target for its calls.

    exchange: where it goes; None once there is a stream, which may be kept long after its request.
    json, events: what its client accepts. log: numbers the events of a stream, so that a client
    that was cut off can resume it.
    Life: made for the POST → `start` → messages and answers → done, or gone with its client.
    """

    exchange: Exchange | None
    shared: Shared
    server: str
    owner: ReplyOwner
    json: bool
    events: bool
    log: EventLog | None = None
    _channel: Channel | None = None
    _batch: list[bytes] | None = None
    _expected: int = 1
    _done: bool = False
    _started: float = 0.0

    def collect(self, known: list[bytes], expected: int) -> None:
        """Answer a batch whole: `known` are answers it has already, of `expected`."""
        self._batch = known
        self._expected = expected

    def start(self, openNow: bool) -> None:
        """Wait for messages; openNow: with the stream open and primed."""
        self._started = self.shared.clock.seconds()
        assert self.exchange is not None
        self.exchange.onGone = self._gone
        if openNow and self.events:
            self._open().prime()
        elif self.events:
            self.shared.pulse.join(self)

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        """Send a message that is no answer. False: it was not taken."""
        if self._done or not self.events:
            return False
        return (self._channel or self._open()).deliver(message, mark)

    def marked(self, mark: EventMark) -> None:
        """Send an event that has no message."""
        if not self._done and self.events:
            self._open().marked(mark)

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        """Send the answer to a call; the last one ends the reply."""
        if self._done:
            return
        body = message.encode()
        if self._batch is not None:
            self._batch.append(body)
            if len(self._batch) == self._expected:
                self.finishBatch()
        else:
            self._finish(body, mark)

    def finishBatch(self) -> None:
        """Send what was collected as the answer to a batch."""
        body = encodeBatch(self._batch or ())
        self._batch = None
        self._finish(body)

    def _finish(self, body: bytes, mark: EventMark | None = None) -> None:
        self._end()
        exchange = self.exchange
        if exchange is not None and (self.json or self._isLarge(body)):
            exchange.onGone = None
            exchange.answer(200, (JSON_TYPE,), body)
        else:
            channel = self._open()
            # It may be kept, and refers to us: nothing comes any more that it would be asked for.
            self._channel = None
            channel.finish(body, mark)

    def _isLarge(self, body: bytes) -> bool:
        """Whether an answer is too large for the event parsers in the field."""
        if len(body) <= self.shared.limits.max_json_answer_stream:
            return False
        bound = BoundReached("max_json_answer_stream", self.server)
        self.shared.observer.observed(bound)
        return True

    def lost(self, id: bytes) -> None:
        """The session is lost: the one 404, or an error where the stream is open already."""
        if self._done:
            return
        exchange = self.exchange
        if exchange is None:
            self.answer(lostWithSession(id))
            return
        self._end()
        exchange.onGone = None
        refusal = sessionNotFound()
        body = refusal.body(None if self._batch is not None else id)
        exchange.answer(refusal.status, refusal.fields(), body)

    def recede(self, retry: int) -> None:
        """Its client has got an answer, and has nothing to come again for."""

    def close(self) -> None:
        """The session is over: end what is open; who got nothing yet is cut."""
        done = self._done
        self._end()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        elif not done and self.exchange is not None:
            self.exchange.onGone = None
            self.exchange.abort()

    def beat(self, now: float) -> None:
        """The head has waited long enough."""
        if now - self._started >= self.shared.limits.head_wait:
            self._open()

    def _open(self) -> Channel:
        if self._channel is None:
            self.shared.pulse.leave(self)
            channel = self._channel = Channel(self.shared, self.server, self.log)
            channel.owner = self
            exchange, self.exchange = self.exchange, None
            assert exchange is not None
            self.connect(exchange, channel)
        return self._channel

    def connect(self, exchange: Exchange, channel: Channel, after: int | None = None) -> None:
        """Put an exchange under the channel; after: the event from which it is resumed."""

        def closed() -> None:
            self.owner.readerClosed(stream)
            if channel.stream is stream:
                channel.stream = None
                if not self._done and not channel.resumable:
                    self._gone()

        stream: ClientStream = openStream(
            exchange, self.shared, self.server, closed, watch=self.owner
        )
        if after is None:
            channel.stream = stream
        else:
            channel.resume(stream, after)
        if not stream.closed:
            self.owner.readerOpened(stream, self)

    def _gone(self) -> None:
        self._end()
        self._channel = None
        self.owner.gone(self)

    def _end(self) -> None:
        if not self._done:
            self._done = True
            self.shared.pulse.leave(self)
