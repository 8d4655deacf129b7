"""
The event log of one session: what was sent on its numbered streams, for resumption
(MCP 2025-11-25, basic/transports, Resumability and Redelivery). Pure.

An event id carries its stream and its place in it, and a tag that only this session's key makes:
an id of another session, or one made up, names nothing. What is kept is bounded for the whole
session, however many streams it has:

 1. Nothing is kept longer than `logged_for` seconds.
 2. Of events, `max_logged_events` in `max_logged_bytes`. Those of streams that ended go first, in
    the order the streams ended; then the oldest.
 3. Final answers have a budget of their own, as many in `max_answer` bytes, so that what else was
    said pushes none out. Those that were written to a connection go first, then the oldest. With
    its answer goes what is left of a stream.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
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
    forgotten: the number of the newest event that is not kept, and bound: the limit for which.
    """

    number: int
    owner: object
    last: int = 0
    ended: bool = False
    forgotten: int = 0
    bound: str = ""
    _kept: list[_Logged] = field(factory=list, init=False)


@define(eq=False)
class _Logged:
    stream: NumberedStream
    number: int
    data: bytes
    until: float
    final: bool


# What most sessions have; never written to.
_NOTHING: OrderedDict[_Logged, None] = OrderedDict()


@define(eq=False)
class _Shelf:
    """
    What is kept under one bound in number and one in bytes, in the order it came.

    sizeBound: the name of the bound in bytes.
    """

    most: int
    mostBytes: int
    sizeBound: str
    size: int = 0
    events: OrderedDict[_Logged, None] = field(default=_NOTHING)
    _first: OrderedDict[_Logged, None] = field(default=_NOTHING)

    def put(self, event: _Logged) -> None:
        if self.events is _NOTHING:
            self.events = OrderedDict()
        self.events[event] = None
        self.size += len(event.data)

    def letGoFirst(self, event: _Logged) -> None:
        """Of what is too much, this goes before what was not named here."""
        if event in self.events:
            if self._first is _NOTHING:
                self._first = OrderedDict()
            self._first[event] = None

    def take(self, event: _Logged) -> None:
        del self.events[event]
        self._first.pop(event, None)
        self.size -= len(event.data)

    def broken(self) -> str:
        """The name of the bound that is broken, or ""."""
        if len(self.events) > self.most:
            return "max_logged_events"
        return self.sizeBound if self.size > self.mostBytes else ""

    def next(self) -> _Logged:
        """What goes next."""
        return next(iter(self._first or self.events))


# What a log has that keeps nothing; never written to.
_EMPTY = _Shelf(0, 0, "")


@define(eq=False)
class EventLog:
    """The numbered streams of one session and what is kept of them."""

    limits: Limits
    _key: bytes = b""
    _streams: dict[int, NumberedStream] = field(factory=dict, init=False)
    _events: _Shelf = field(default=_EMPTY, init=False)
    _answers: _Shelf = field(default=_EMPTY, init=False)
    _opened: int = field(default=0, init=False)
    _cut: dict[NumberedStream, float] = field(factory=dict, init=False)

    def _start(self) -> None:
        limits = self.limits
        most = limits.max_logged_events
        self._events = _Shelf(most, limits.max_logged_bytes, "max_logged_bytes")
        self._answers = _Shelf(most, limits.max_answer, "max_answer")

    def __len__(self) -> int:
        return len(self._events.events) + len(self._answers.events)

    @property
    def streams(self) -> int:
        """How many streams could be resumed, or are running."""
        return len(self._streams)

    def open(self, owner: object) -> NumberedStream:
        """Begin a stream."""
        # Many sessions have no stream, and need no key.
        self._key = self._key or secrets.token_bytes(16)
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
        if self._events is _EMPTY:
            self._start()
        self.expire(now)
        stream.last += 1
        event = _Logged(stream, stream.last, data, now + self.limits.logged_for, final)
        stream._kept.append(event)
        if final:
            self._answers.put(event)
            self._end(stream)
        else:
            self._events.put(event)
        self._bound()
        return self.idOf(stream, stream.last)

    def told(self, stream: NumberedStream) -> None:
        """The final answer of a stream was written to a connection."""
        if stream._kept and stream._kept[-1].final:
            self._answers.letGoFirst(stream._kept[-1])

    def close(self, stream: NumberedStream) -> None:
        """A stream ended without another event; nothing is left to resume if none is kept."""
        if not stream.ended:
            self._end(stream)
        self._tidy(stream)

    def _end(self, stream: NumberedStream) -> None:
        stream.ended = True
        for event in stream._kept:
            self._events.letGoFirst(event)

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
            for event in stream._kept
            if event.number > number
        ]
        return stream.bound if stream.forgotten > number else "", kept

    def exhausted(self, stream: NumberedStream, number: int) -> bool:
        """Whether nothing is kept, and nothing will come, on a stream after an event."""
        return stream.ended and not (stream._kept and stream._kept[-1].number > number)

    def expire(self, now: float) -> None:
        """Let go of what was kept long enough."""
        for shelf in (self._events, self._answers):
            while shelf.events and (event := next(iter(shelf.events))).until <= now:
                self._drop(event, "logged_for")
        while self._cut and next(iter(self._cut.values())) <= now:
            self._leave(next(iter(self._cut)))

    def forget(self) -> None:
        """The session is over: keep nothing."""
        for stream in self._streams.values():
            stream._kept.clear()
            stream.owner = None
        self._streams.clear()
        self._cut.clear()
        self._events = self._answers = _EMPTY

    def _bound(self) -> None:
        for shelf in (self._events, self._answers):
            while bound := shelf.broken():
                self._drop(shelf.next(), bound)

    def _drop(self, event: _Logged, bound: str) -> None:
        stream = event.stream
        # Without its answer the rest of a stream is of no use.
        for gone in list(stream._kept) if event.final else [stream._kept[0]]:
            (self._answers if gone.final else self._events).take(gone)
            stream._kept.remove(gone)
            stream.forgotten = max(stream.forgotten, gone.number)
        stream.bound = bound
        self._tidy(stream)

    def _tidy(self, stream: NumberedStream) -> None:
        if stream.ended and not stream._kept:
            self._streams.pop(stream.number, None)
            # Nobody finds it any more, and its owner refers to it.
            stream.owner = None
