"""What a relay needs of a stream to a client."""

from __future__ import annotations

from typing import Protocol

from gateway.links.interfaces import EventMark
from gateway.wire.envelope import Message

__all__ = ["Stream", "Target"]


class Target(Protocol):
    """Where a relay sends what the client shall get: the answer to a POST, or a stream."""

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        """Send a message that is no answer. False: it was not taken."""

    def marked(self, mark: EventMark) -> None:
        """Send an event that has no message."""

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        """Send the answer to a call."""

    def lost(self, id: bytes) -> None:
        """The session is lost and the call with this id got no answer."""

    def close(self) -> None:
        """The session is over: end in order."""


class Stream(Protocol):
    """The open stream of a client's connection, as a relay sees it when its session ends."""

    def recede(self, retry: int) -> None:
        """It ends because of the gateway: the client shall come again in `retry` milliseconds."""

    def close(self) -> None:
        """The session is over: end in order."""
