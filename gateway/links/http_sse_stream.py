"""The stream of an HTTP+SSE link (MCP 2024-11-05, basic/transports): what came on its GET."""

from __future__ import annotations

from typing import Protocol

from gateway.http1.client import Fault, ResponseHead
from gateway.links.http_answer import Stream, isMeantAsMessage
from gateway.links.interfaces import EventMark, LinkFailed, Reason
from gateway.observe.observer import BoundReached, NoiseSkipped
from gateway.wire.envelope import Message
from gateway.wire.sse import ServerSentEvent

__all__ = ["EventStream", "NoEventStream"]


class NoEventStream(LinkFailed):
    """
    The server answered the GET with something else than an event stream: it may speak another
    transport. status: of its answer.
    """


class Opened(Protocol):
    """The link that a stream is of."""

    def fail(self, error: LinkFailed) -> None:
        """There is no stream."""

    def endpointReceived(self, reference: bytes) -> None:
        """The server said where to POST."""

    def messageReceived(self, message: Message) -> None:
        """The server said something."""

    def malformedReceived(self, id: bytes) -> None:
        """The server said what is no message, but seems to be the answer of this id."""

    def losing(self, reason: Reason, message: str) -> None:
        """The stream is over, and the session with it."""


class EventStream(Stream, eq=False, kw_only=True):
    """The GET: everything the server says. link: hears it."""

    link: Opened
    opened: bool = False

    def headReceived(self, head: ResponseHead) -> None:
        if head.status != 200:
            self._refused(f"the server refused with HTTP status {head.status}", head.status)
        elif head.mediaType != b"text/event-stream" or head.encoded:
            self._refused("the server did not answer with an event stream", 200)
        else:
            self.opened = True
            if self.outgoing is not None:
                # It is the session and cannot be had again, so silence is no reason to end it.
                self.outgoing.bodyWait = None
            self.parse()

    def _refused(self, why: str, status: int) -> None:
        self.leave()
        self.link.fail(NoEventStream(Reason.BAD_ANSWER, why, status=status))
        self.abort()

    def _eventReceived(self, event: ServerSentEvent) -> None:
        if event.event == b"endpoint":
            self.link.endpointReceived(event.data or b"")
        else:
            super()._eventReceived(event)

    def messageReceived(self, message: Message, mark: EventMark | None) -> None:
        self.link.messageReceived(message)

    def noiseReceived(self, data: bytes, id: bytes | None) -> None:
        # One bad message is no reason to end the stream of all the others.
        self.around.observer.observed(NoiseSkipped(self.around.server, len(data)))
        if id is not None and isMeantAsMessage(data):
            self.link.malformedReceived(id)

    def tooLarge(self) -> None:
        self.around.observer.observed(BoundReached("max_answer", self.around.server))
        self.leave()
        self.link.losing(Reason.BAD_ANSWER, "the server sent a message that is too large")
        self.abort()

    def ended(self, end: Fault | bool, body: bytes) -> None:
        self.leave()
        if self.opened:
            self.link.losing(Reason.SERVER_EXITED, "the server ended its event stream")
        elif end is Fault.UNSENT:
            why = "the server cannot be reached"
            self.link.fail(LinkFailed(Reason.UPSTREAM_UNREACHABLE, why))
        elif end is Fault.STALLED:
            why = "the server opened no event stream in time"
            self.link.fail(LinkFailed(Reason.TIMEOUT, why))
        else:
            why = "the connection to the server was lost"
            self.link.fail(LinkFailed(Reason.BAD_ANSWER, why))
