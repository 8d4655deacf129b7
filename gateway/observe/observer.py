"""
What happened, as typed events in the past tense.

Events carry no payload of a message and no secret: sessions appear as a short tag, servers by
their configured names.
"""

from __future__ import annotations

from attrs import frozen
from zope.interface import Interface, implementer

__all__ = [
    "BoundReached",
    "CallAnswered",
    "CallFailed",
    "CallStarted",
    "CircuitClosed",
    "CircuitOpened",
    "Event",
    "IObserver",
    "LinkLost",
    "LinkOpened",
    "MessageDropped",
    "NoiseSkipped",
    "NullObserver",
    "RequestRefused",
    "SessionEnded",
    "SessionMissed",
    "SessionOpened",
    "SessionRecovered",
]


@frozen
class Event:
    """Something that happened."""


@frozen
class RequestRefused(Event):
    """A request was refused on a rung of the ladder."""

    rung: str
    status: int
    code: int
    server: str = ""


@frozen
class SessionOpened(Event):
    server: str
    tag: str


@frozen
class SessionMissed(Event):
    """A request named a session that is not there for it."""

    server: str


@frozen
class SessionRecovered(Event):
    """A session got a new link and kept its id."""

    server: str
    tag: str


@frozen
class SessionEnded(Event):
    """reason: deleted, idle, absolute, unused, lost, stream_closed, shutdown."""

    server: str
    tag: str
    reason: str


@frozen
class CallStarted(Event):
    server: str
    method: str


@frozen
class CallAnswered(Event):
    """seconds: from the request to its answer."""

    server: str
    method: str
    seconds: float
    error: bool


@frozen
class CallFailed(Event):
    """reason: `data.reason` of the wire contract."""

    server: str
    method: str
    reason: str


@frozen
class MessageDropped(Event):
    """
    why: late_answer, unknown_id, unknown_token, stray_response, stray_cancel, undeliverable,
    no_stream, client_gone, repeat_failed, forbidden, and the like.
    """

    server: str
    why: str


@frozen
class BoundReached(Event):
    """limit: the name of the field in `gateway.guard.limits.Limits`."""

    limit: str
    server: str = ""


@frozen
class LinkOpened(Event):
    server: str


@frozen
class LinkLost(Event):
    server: str
    reason: str


@frozen
class NoiseSkipped(Event):
    """A server wrote something that is no message; size in bytes."""

    server: str
    size: int


@frozen
class CircuitOpened(Event):
    """A server keeps failing and is left alone; seconds: for how long. Again for each probe."""

    server: str
    seconds: float


@frozen
class CircuitClosed(Event):
    """A server that was left alone works again."""

    server: str


class IObserver(Interface):
    """Hears what happened. Must return quickly and raise nothing."""

    def observed(event: Event) -> None:
        """An event happened."""


@implementer(IObserver)
class NullObserver:
    """Hears nothing."""

    def observed(self, event: Event) -> None:
        pass
