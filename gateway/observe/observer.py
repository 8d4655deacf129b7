"""
What happened, as typed events in the past tense.

Events carry no payload of a message and no secret: sessions appear as a short tag, servers by
their configured names.
"""

from __future__ import annotations

import msgspec
from zope.interface import Interface, implementer

__all__ = [
    "BoundReached",
    "CallAnswered",
    "CallFailed",
    "CallRepeated",
    "CallStarted",
    "CircuitClosed",
    "CircuitOpened",
    "ConfigurationReloaded",
    "EraFound",
    "Event",
    "IObserver",
    "LinkLost",
    "LinkOpened",
    "MemoryPressed",
    "MessageDropped",
    "NoiseSkipped",
    "NullObserver",
    "ReloadRefused",
    "RequestRefused",
    "SessionEnded",
    "SessionMissed",
    "SessionOpened",
    "SessionRecovered",
]


# Structs, and no attrs classes: each call makes some (see `gateway.wire.envelope`).
class Event(msgspec.Struct, frozen=True):
    """Something that happened."""


class RequestRefused(Event, frozen=True):
    """A request was refused on a rung of the ladder."""

    rung: str
    status: int
    code: int
    server: str = ""


class SessionOpened(Event, frozen=True):
    server: str
    tag: str


class SessionMissed(Event, frozen=True):
    """A request named a session that is not there for it."""

    server: str


class SessionRecovered(Event, frozen=True):
    """A session got a new link and kept its id."""

    server: str
    tag: str


class SessionEnded(Event, frozen=True):
    """
    reason: deleted, idle, absolute, unused, lost, stream_closed, memory, replaced, shutdown.
    """

    server: str
    tag: str
    reason: str


class CallStarted(Event, frozen=True):
    server: str
    method: str


class CallAnswered(Event, frozen=True):
    """seconds: from the request to its answer."""

    server: str
    method: str
    seconds: float
    error: bool


class CallFailed(Event, frozen=True):
    """reason: `data.reason` of the wire contract."""

    server: str
    method: str
    reason: str


class CallRepeated(Event, frozen=True):
    """A call that may have run was sent once more, as its server's `replay` allows."""

    server: str
    method: str


class MessageDropped(Event, frozen=True):
    """
    why: late_answer, unknown_id, unknown_token, stray_response, stray_cancel, undeliverable,
    no_stream, client_gone, repeat_failed, forbidden, and the like.
    """

    server: str
    why: str


class BoundReached(Event, frozen=True):
    """limit: the name of the field in `gateway.guard.limits.Limits`, or `memory_limit`."""

    limit: str
    server: str = ""


class MemoryPressed(Event, frozen=True):
    """Memory is as short as this stage says now, 0 for not at all; used, limit: bytes."""

    stage: int
    used: int
    limit: int


class LinkOpened(Event, frozen=True):
    server: str


class LinkLost(Event, frozen=True):
    server: str
    reason: str


class NoiseSkipped(Event, frozen=True):
    """A server wrote something that is no message; size in bytes."""

    server: str
    size: int


class CircuitOpened(Event, frozen=True):
    """A server keeps failing and is left alone; seconds: for how long. Again for each probe."""

    server: str
    seconds: float


class CircuitClosed(Event, frozen=True):
    """A server that was left alone works again."""

    server: str


class EraFound(Event, frozen=True):
    """Which eras a server speaks was found, or found to be otherwise; None: not known."""

    server: str
    modern: bool | None
    legacy: bool | None


class ConfigurationReloaded(Event, frozen=True):
    """Another configuration is in force; the servers that it added, changed and removed."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


class ReloadRefused(Event, frozen=True):
    """A configuration was not taken, and nothing changed; why: mistakes, draining, stopped."""

    why: str
    mistakes: int = 0


class IObserver(Interface):
    """Hears what happened. Must return quickly and raise nothing."""

    def observed(event: Event) -> None:
        """An event happened."""


@implementer(IObserver)
class NullObserver:
    """Hears nothing."""

    def observed(self, event: Event) -> None:
        pass
