"""
One stream of a Streamable HTTP server over all the connections it takes.

What a `ResumingLink` remembers of it: where to resume it, and whether that gets anywhere.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall

from gateway.links.interfaces import EventMark
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message
from gateway.wire.headers import isFieldValue

__all__ = ["Course"]

RETRY = 1.0
"""Seconds to wait before a stream is resumed, where the server does not say."""

MIN_RETRY = 0.1
"""Seconds a server has to wait for us, however little it asks for."""

MAX_RETRY = 60.0
"""Seconds a server can make us wait."""

REMEMBERED = 256
"""How many event ids and messages are known again."""


@define(eq=False, repr=False)
class Course:
    """
    One stream; the origin of its GETs.

    call, id: the call it belongs to, and its id; None for the stream that belongs to no call.
    context: what its GETs go with.
    last: the id of the last event. retry: seconds to wait before it is resumed.
    fruitless: how often in a row it was resumed, and nothing new came.
    refusals: how often the server refused it since it was open.
    held: whether its reader wants no more now. timer: waits to resume it.
    """

    context: CallContext
    call: object | None = None
    id: bytes = b""
    last: bytes | None = None
    retry: float = RETRY
    fruitless: int = 0
    refusals: int = 0
    held: bool = False
    timer: IDelayedCall | None = None
    _openedAt: float = field(default=0.0, init=False)
    _had: dict[int, None] = field(factory=dict, init=False)
    """Hashes of the newest event ids and messages."""

    def saw(self, mark: EventMark | None, message: Message | None = None) -> None:
        """
        An event came.

        It is new if its id is, or its message: a server may number each connection anew, or
        repeat what it cannot tell we have, and neither must cut off a stream or resume it for ever.
        """
        things: list[bytes] = []
        if mark is not None:
            if mark.id:
                things.append(mark.id)
            if mark.id is not None:
                # What cannot stand in a header cannot be resumed from; an empty id is none.
                self.last = mark.id if mark.id and isFieldValue(mark.id) else None
            if mark.retry is not None and mark.retry.isdigit() and len(mark.retry) < 16:
                self.retry = min(max(int(mark.retry) / 1000, MIN_RETRY), MAX_RETRY)
        if message is not None:
            things.append(message.encode())
        for one in map(hash, things):
            if one not in self._had:
                self._had[one] = None
                self.fruitless = 0
        while len(self._had) > REMEMBERED:
            del self._had[next(iter(self._had))]

    def opened(self, now: float) -> None:
        """A connection of its own is open."""
        self._openedAt = now
        self.refusals = 0

    def ended(self, now: float, lasting: float) -> None:
        """It ended; what held for so many seconds was not in vain."""
        if now - self._openedAt >= lasting:
            self.fruitless = 0

    def refused(self, patience: float) -> None:
        """The server refused it; after so many times the id is given up."""
        self.refusals += 1
        if self.refusals >= patience:
            self.last = None

    def rest(self) -> None:
        """Wait for nothing any more."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()
