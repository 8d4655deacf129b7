"""
The event log of one session: what was sent on its numbered streams, for resumption
(MCP 2025-11-25, basic/transports, Resumability and Redelivery). Pure.

An event id carries its stream and its place in it, and a tag that only this session's key makes:
an id of another session, or one made up, names nothing. Events are kept for `logged_for` seconds,
at most `max_logged_events` of them in at most `max_logged_bytes`; the final answers of streams have
a budget of their own, as many in at most `max_answer` bytes.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from hashlib import blake2b

from attrs import define, field

from gateway.guard.limits import Limits

__all__ = ["EventLog", "NumberedStream"]

_ID = re.compile(rb"([0-9]{1,9})-([0-9]{1,9})-[0-9a-f]{16}\Z")


@define(eq=False)
class NumberedStream:
    """
    One stream whose events have ids.

    owner: whatever serves the stream, for whoever finds it by an event id.
    last: the number of its last event. ended: whether there will be no more.
    kept: how many of its events are kept. forgotten: the number of the newest that is not, and
    bound: the limit for which.
    """

    number: int
    owner: object
    last: int = 0
    ended: bool = False
    kept: int = 0
    forgotten: int = 0
    bound: str = ""


@define(eq=False)
class _Logged:
    stream: NumberedStream
    number: int
    data: bytes
    until: float
    final: bool


@define(eq=False)
class EventLog:
    """The numbered streams of one session and what is kept of them."""

    limits: Limits
    _key: bytes = field(factory=lambda: secrets.token_bytes(16))
    _streams: dict[int, NumberedStream] = field(factory=dict, init=False)
    _events: deque[_Logged] = field(factory=deque, init=False)
    _count: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)
    _finals: int = field(default=0, init=False)
    _finalBytes: int = field(default=0, init=False)
    _opened: int = field(default=0, init=False)
    _cut: dict[NumberedStream, float] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._events)

    def open(self, owner: object) -> NumberedStream:
        """Begin a stream."""
        self._opened += 1
        stream = self._streams[self._opened] = NumberedStream(self._opened, owner)
        return stream

    def idOf(self, stream: NumberedStream, number: int) -> bytes:
        """The id of an event; number 0 is before the first."""
        place = b"%d-%d" % (stream.number, number)
        tag = blake2b(place, key=self._key, digest_size=8).hexdigest()
        return place + b"-" + tag.encode()

    def append(self, stream: NumberedStream, data: bytes, now: float, final: bool = False) -> bytes:
        """Keep an event; final: the last of its stream. Returns its id."""
        self.expire(now)
        stream.last += 1
        stream.kept += 1
        until = now + self.limits.logged_for
        self._events.append(_Logged(stream, stream.last, data, until, final))
        if final:
            stream.ended = True
            self._finals += 1
            self._finalBytes += len(data)
        else:
            self._count += 1
            self._bytes += len(data)
        self._bound()
        return self.idOf(stream, stream.last)

    def close(self, stream: NumberedStream) -> None:
        """A stream ended without another event; nothing is left to resume if none is kept."""
        stream.ended = True
        self._tidy(stream)

    def cut(self, stream: NumberedStream, now: float) -> None:
        """
        The connection of a stream is gone, and what it was for goes elsewhere.

        It can be resumed for `logged_for` seconds; of too many such streams the first is left.
        """
        if stream.number in self._streams:
            self._cut[stream] = now + self.limits.logged_for
        if len(self._cut) > self.limits.max_logged_events:
            self._leave(next(iter(self._cut)))

    def resumed(self, stream: NumberedStream) -> None:
        """It has a connection again."""
        self._cut.pop(stream, None)

    def _leave(self, stream: NumberedStream) -> None:
        del self._cut[stream]
        self.close(stream)

    def find(self, id: bytes, now: float) -> tuple[NumberedStream, int] | None:
        """The stream an event id names and the event's number; None for anything not ours."""
        self.expire(now)
        match = _ID.match(id)
        if match is None:
            return None
        stream = self._streams.get(int(match[1]))
        number = int(match[2])
        if stream is None or number > stream.last:
            return None
        if not secrets.compare_digest(id, self.idOf(stream, number)):
            return None
        return stream, number

    def after(self, stream: NumberedStream, number: int) -> tuple[str, list[tuple[bytes, bytes]]]:
        """
        What came on a stream after an event.

        Returns: the limit for which something of it is no longer kept, "" if all is kept; and
            what is kept, as (id, data).
        """
        kept = [
            (self.idOf(stream, event.number), event.data)
            for event in self._events
            if event.stream is stream and event.number > number
        ]
        return stream.bound if stream.forgotten > number else "", kept

    def exhausted(self, stream: NumberedStream, number: int) -> bool:
        """Whether nothing is kept, and nothing will come, on a stream after an event."""
        return stream.ended and not self.after(stream, number)[1]

    def expire(self, now: float) -> None:
        """Let go of what was kept long enough."""
        while self._events and self._events[0].until <= now:
            self._drop(self._events.popleft(), "logged_for")
        while self._cut and next(iter(self._cut.values())) <= now:
            self._leave(next(iter(self._cut)))

    def _bound(self) -> None:
        limits = self.limits
        while self._count > limits.max_logged_events:
            self._dropFirst("max_logged_events", final=False)
        while self._bytes > limits.max_logged_bytes:
            self._dropFirst("max_logged_bytes", final=False)
        while self._finals > limits.max_logged_events:
            self._dropFirst("max_logged_events", final=True)
        while self._finalBytes > limits.max_answer:
            self._dropFirst("max_answer", final=True)

    def _dropFirst(self, bound: str, *, final: bool) -> None:
        for event in self._events:
            if event.final is final:
                self._events.remove(event)
                self._drop(event, bound)
                return

    def _drop(self, event: _Logged, bound: str) -> None:
        if event.final:
            self._finals -= 1
            self._finalBytes -= len(event.data)
        else:
            self._count -= 1
            self._bytes -= len(event.data)
        event.stream.kept -= 1
        event.stream.forgotten = max(event.stream.forgotten, event.number)
        event.stream.bound = bound
        self._tidy(event.stream)

    def _tidy(self, stream: NumberedStream) -> None:
        if stream.ended and not stream.kept:
            self._streams.pop(stream.number, None)
