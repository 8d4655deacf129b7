"""
How many requests to one server are on their way, and what waits for its turn.

Requests of one kind share a lane; each lane has a bound of its own, so that none starves another.
The lanes of a server share one queue, which is bounded in number and bytes; within its lane, what
came first goes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gateway.guard.limits import Limits

__all__ = ["Lane", "Queue", "Queueing"]


class Queueing(Protocol):
    """A request."""

    @property
    def size(self) -> int:
        """Bytes of its body."""

    def abort(self) -> None:
        """Give it up."""

    def start(self) -> None:
        """Its turn has come."""


@define(eq=False, repr=False)
class Queue:
    """
    The room for what waits.

    bounded: told the name of each limit that is reached.
    onRoom: called, in a turn of its own, when there is room again after something was not taken.
    """

    _limits: Limits
    _clock: IReactorTime
    _bounded: Callable[[str], None]
    onRoom: Callable[[], None] | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)
    _full: bool = field(default=False, init=False)
    _soon: IDelayedCall | None = field(default=None, init=False)

    def enter(self, size: int) -> bool:
        """Whether there is room for a request with so large a body; if so, it is taken."""
        if self._count >= self._limits.max_upstream_queue:
            self._bounded("max_upstream_queue")
        elif self._bytes + size > self._limits.max_upstream_queue_bytes:
            self._bounded("max_upstream_queue_bytes")
        else:
            self._count += 1
            self._bytes += size
            return True
        self._full = True
        return False

    def leave(self, size: int) -> None:
        """A request waits no more."""
        self._count -= 1
        self._bytes -= size
        if self._full and self._soon is None:
            self._full = False
            self._soon = self._clock.callLater(0, self._room)

    def _room(self) -> None:
        self._soon = None
        if self.onRoom is not None:
            self.onRoom()

    def stop(self) -> None:
        """Call nobody."""
        self._full = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None


@define(eq=False, repr=False)
class Lane:
    """
    Requests of one kind: those on their way, and those that wait.

    bound: how many are on their way at once. limit: the name of that bound.
    queue: where the others wait; None: they are not taken.
    """

    _bound: int
    _limit: str
    _bounded: Callable[[str], None]
    _queue: Queue | None = None
    _running: set[Queueing] = field(factory=set, init=False)
    _waiting: dict[Queueing, None] = field(factory=dict, init=False)

    def enter(self, request: Queueing, beyondBound: bool = False) -> bool:
        """
        Start a request, or let it wait. beyondBound: start it in any case.

        Returns: False at the bound; it was not taken.
        """
        if len(self._running) < self._bound or beyondBound:
            self._running.add(request)
            request.start()
            return True
        self._bounded(self._limit)
        if self._queue is None or not self._queue.enter(request.size):
            return False
        self._waiting[request] = None
        return True

    def leave(self, request: Queueing) -> None:
        """A request is over, or was given up."""
        if request in self._running:
            self._running.discard(request)
            if self._waiting and len(self._running) < self._bound:
                following = next(iter(self._waiting))
                self._dequeue(following)
                self._running.add(following)
                following.start()
        elif request in self._waiting:
            self._dequeue(request)

    def _dequeue(self, request: Queueing) -> None:
        del self._waiting[request]
        if self._queue is not None:
            self._queue.leave(request.size)

    def all(self) -> list[Queueing]:
        """Every request: those that wait first, or they would be next when others are given up."""
        return [*self._waiting, *self._running]
