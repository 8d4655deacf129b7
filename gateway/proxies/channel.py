"""
What goes to a client on one stream, whether the stream is open just now or not.

A relay knows channels; the ClientStream beneath comes and goes with its connection. With an event
log the channel outlives it: what is sent meanwhile is kept, and a client that comes back with the
last id it saw gets the rest, on the same channel (MCP 2025-11-25, Resumability and Redelivery).
"""

from __future__ import annotations

from typing import Protocol

from attrs import define, field

from gateway.links.interfaces import EventMark
from gateway.observe.observer import BoundReached
from gateway.proxies.shared import Shared
from gateway.proxies.streams import ClientStream
from gateway.sessions.events import EventLog, NumberedStream
from gateway.wire.envelope import Message
from gateway.wire.exchange import Exchange
from gateway.wire.refusals import lostWithSession
from gateway.wire.sse import comment, encodeEvent, encodeRetry

__all__ = ["Channel", "ChannelOwner"]

RETRY = 1000
"""Milliseconds after which a client shall resume a stream that was cut (SEP-1699)."""


class ChannelOwner(Protocol):
    """Serves a channel's connections."""

    def connect(self, exchange: Exchange, channel: Channel, after: int | None = None) -> None:
        """Put an exchange under the channel; after: the event from which it is resumed."""


@define(eq=False)
class Channel:
    """
    One stream to a client. A relay's target.

    log: keeps what is sent and numbers it; without it, event ids are the server's own, if any.
    stream: the open connection, if there is one.
    owner: who puts another connection under it when it is resumed.
    """

    shared: Shared
    server: str
    log: EventLog | None = None
    stream: ClientStream | None = field(default=None, init=False)
    owner: ChannelOwner | None = field(default=None, init=False)
    ended: bool = field(default=False, init=False)
    _numbered: NumberedStream | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if self.log is not None:
            self._numbered = self.log.open(self)

    @property
    def resumable(self) -> bool:
        """Whether the channel outlives its connection."""
        return self.log is not None

    def prime(self) -> None:
        """Give the client an id to resume from before there is anything to tell it."""
        if self.log is not None and self._numbered is not None and self.stream is not None:
            id = self.log.idOf(self._numbered, self._numbered.last)
            self.stream.write(encodeEvent(b"", event=b"", id=id, retry=RETRY))

    def resume(self, stream: ClientStream, number: int) -> None:
        """Go on, on another connection, after the event with this number."""
        if self.log is None or self._numbered is None:
            raise ValueError("this channel has no log")
        lost, kept = self.log.after(self._numbered, number)
        self.log.resumed(self._numbered)
        if lost:
            self.shared.observer.observed(BoundReached(lost, self.server))
            stream.write(comment(b"gap: events before the next one are no longer kept"))
        for id, data in kept:
            stream.write(encodeEvent(data, id=id), replayed=True)
        if self.ended:
            if stream.keepsUp:
                self.log.told(self._numbered)
            stream.close()
        else:
            self.stream = stream

    def cut(self) -> None:
        """The connection is gone, and what the channel was for goes elsewhere now."""
        self.stream = None
        if self.log is not None and self._numbered is not None:
            self.log.cut(self._numbered, self.shared.clock.seconds())

    # A relay's target.

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        """Send a message that is no answer. False: it was not taken."""
        stream = self.stream
        if self.ended or (stream is None and self.log is None):
            return False
        if stream is not None and not stream.hasRoom():
            return False
        data = message.encode()
        plain = mark is None and self.log is None
        event = encodeEvent(data) if plain else self._event(data, mark, False)
        if stream is not None:
            stream.write(event)
        return True

    def marked(self, mark: EventMark) -> None:
        """Send an event that has no message: it primes the stream, or sets its retry."""
        if self.stream is not None and self.log is None:
            self.stream.write(self._event(b"", mark, False))

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        """Send the answer to a call; more may follow."""
        self._answer(message.encode(), mark, False)

    def answerEncoded(self, body: bytes) -> None:
        """Send an encoded answer; more may follow."""
        self._answer(body, None, False)

    def finish(self, body: bytes, mark: EventMark | None = None) -> None:
        """Send the last answer, encoded, and end."""
        self._answer(body, mark, True)
        self.close()

    def _answer(self, body: bytes, mark: EventMark | None, final: bool) -> None:
        if self.ended:
            return
        event = self._event(body, mark, final)
        if self.stream is not None:
            self.stream.writeAnswer(event)
            if self.log is not None and self._numbered is not None and self.stream.keepsUp:
                self.log.told(self._numbered)

    def lost(self, id: bytes) -> None:
        """The session is lost; the call with this id ends."""
        self.answer(lostWithSession(id))

    def recede(self, retry: int) -> None:
        """Tell the client, before the stream ends, in how many milliseconds to come again."""
        if self.stream is not None and not self.ended:
            self.stream.write(encodeRetry(retry))

    def close(self) -> None:
        """End in order; what was kept can still be fetched."""
        self.ended = True
        if self.log is not None and self._numbered is not None:
            self.log.close(self._numbered)
        if self.stream is not None:
            self.stream.close()

    def _event(self, data: bytes, mark: EventMark | None, final: bool) -> bytes:
        if self.log is not None and self._numbered is not None:
            now = self.shared.clock.seconds()
            return encodeEvent(data, id=self.log.append(self._numbered, data, now, final))
        if mark is None:
            return encodeEvent(data)
        retry = int(mark.retry) if mark.retry is not None and len(mark.retry) < 16 else None
        event = b"message" if data else b""
        return encodeEvent(data, event=event, id=mark.id, retry=retry)
