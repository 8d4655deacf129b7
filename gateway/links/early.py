"""What a server says before it answered `initialize`: kept, bounded, until somebody listens."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, IObserver, MessageDropped
from gateway.wire.envelope import Message

__all__ = ["EarlyMessages"]


@define(eq=False, repr=False)
class EarlyMessages:
    """
    The messages of one link's handshake, in order.

    At most `max_queued_messages` and `max_queued_bytes`: the oldest go first.
    """

    server: str
    limits: Limits
    observer: IObserver
    _kept: deque[tuple[Message, int]] = field(factory=deque, init=False)
    _size: int = field(default=0, init=False)

    def add(self, message: Message) -> None:
        """Keep one."""
        size = sum(len(name) + len(value) for name, value in message.fields.items())
        self._kept.append((message, size))
        self._size += size
        limits = self.limits
        while len(self._kept) > limits.max_queued_messages or self._size > limits.max_queued_bytes:
            over = "max_queued_messages"
            if self._size > limits.max_queued_bytes:
                over = "max_queued_bytes"
            self._size -= self._kept.popleft()[1]
            self.observer.observed(BoundReached(over, self.server))
            self.observer.observed(MessageDropped(self.server, "before_answer"))

    def take(self) -> list[Message]:
        """All of them; none is left."""
        kept, self._kept, self._size = [message for message, _ in self._kept], deque(), 0
        return kept
