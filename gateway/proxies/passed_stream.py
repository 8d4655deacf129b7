"""
How far an event stream has come whose bytes go straight through.

Nothing of it is held back or changed. What is read of it tells, when its server breaks it off,
whether its request has its answer, and how one can still be given: an event that was not finished
is finished as one of a type that no client of MCP knows, so that half a message is none, and the
next event is whole (WHATWG HTML, section 9.2.6).
"""

from __future__ import annotations

from attrs import define, field

from gateway.wire.envelope import RESPONSE, Message, NotAMessage, NotJSON, decode
from gateway.wire.sse import EventTooLong, SSEParser

__all__ = ["MOST", "PassedStream"]

MOST = 64 * 1024
"""Bytes of an event that are read for an answer; after a larger one nobody knows."""

_BLANK = (b"\n\n", b"\r\r", b"\n\r\n")
"""What an event ends with."""
_UNFINISHED = b"event: unfinished\n\n"


@define(eq=False)
class PassedStream:
    """
    One event stream on its way.

    answered: whether a response came in it; None where that is not known.
    """

    answered: bool | None = field(default=False, init=False)
    _parser: SSEParser = field(factory=lambda: SSEParser(MOST), init=False)
    _tail: bytes = field(default=b"\n\n", init=False)
    """Its last bytes: whether another event may follow."""

    def passed(self, data: bytes) -> None:
        """Bytes of it went to the client."""
        self._tail = (self._tail + data[-4:])[-4:]
        if self.answered is not False:
            return
        try:
            events = self._parser.feed(data)
        except EventTooLong as error:
            events = error.events
            self.answered = None
        for event in events:
            if event.data and event.event == b"message" and _isResponse(event.data):
                self.answered = True

    def finish(self) -> bytes:
        """What an event that was not finished is ended with, so that it is none."""
        if self._tail.endswith(_BLANK):
            return b""
        return _UNFINISHED if self._tail[-1:] in (b"\n", b"\r") else b"\n" + _UNFINISHED


def _isResponse(data: bytes) -> bool:
    try:
        message = decode(data)
    except (NotJSON, NotAMessage):
        return False
    return isinstance(message, Message) and message.kind is RESPONSE
