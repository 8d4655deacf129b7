"""Messages for a client that has no stream open: bounded in time, number and bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.wire.envelope import Message

__all__ = ["WaitingRoom"]


@define(eq=False)
class _Waiting:
    message: Message
    until: float
    size: int


@define(eq=False)
class WaitingRoom:
    """
    Keeps messages until they are taken or their time is over.

    queue: what waits, in the order it came.
    """

    limits: Limits
    # A list, and dicts in place of sets: empty, a deque takes 0.75 KiB in each session, a set 0.2.
    queue: list[_Waiting] = field(factory=list, init=False)
    _bytes: int = field(default=0, init=False)

    @property
    def due(self) -> float:
        """When the time of the first is over; never without one."""
        return self.queue[0].until if self.queue else float("inf")

    def add(self, message: Message, now: float) -> list[tuple[str, Message]]:
        """Let a message wait. Returns what had to go for it, each with the bound it broke."""
        waiting = _Waiting(message, now + self.limits.queued_for, len(message.encode()))
        if waiting.size > self.limits.max_queued_bytes:
            # It would push out everything else and then go itself.
            return [("max_queued_bytes", message)]
        self.queue.append(waiting)
        self._bytes += waiting.size
        gone: list[tuple[str, Message]] = []
        while self.queue:
            if len(self.queue) > self.limits.max_queued_messages:
                bound = "max_queued_messages"
            elif self._bytes > self.limits.max_queued_bytes:
                bound = "max_queued_bytes"
            else:
                break
            gone.append((bound, self._pop()))
        return gone

    def _pop(self) -> Message:
        waiting = self.queue.pop(0)
        self._bytes -= waiting.size
        return waiting.message

    def takeDue(self, now: float) -> list[Message]:
        """Take out what waited too long."""
        out: list[Message] = []
        while self.queue and self.queue[0].until <= now:
            out.append(self._pop())
        return out

    def remove(self, id: bytes) -> None:
        """Take out the request with this id, if it waits."""
        for waiting in self.queue:
            if waiting.message.id == id:
                self.queue.remove(waiting)
                self._bytes -= waiting.size
                return

    def sweep(self, takes: Callable[[Message], bool]) -> None:
        """Offer every message, in order; what `takes` says True to is taken out."""
        queue, self.queue, self._bytes = self.queue, [], 0
        for waiting in queue:
            if not takes(waiting.message):
                self.queue.append(waiting)
                self._bytes += waiting.size
