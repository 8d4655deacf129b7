"""
What the listener of a bridged link is to hear, in order, and never from within what it calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gateway.bridge.effects import Tell
from gateway.links.interfaces import Settled

__all__ = ["Accepted", "Item", "News", "Settlement"]

_T = TypeVar("_T")


@frozen
class Accepted:
    """A notification or response counts as taken."""

    call: object


@frozen
class Settlement:
    """A call ended without an answer."""

    call: object
    settled: Settled


Item = Tell | Accepted | Settlement
"""A message, or what becomes of something that was sent."""


@define(eq=False, repr=False)
class News(Generic[_T]):
    """
    Items on their way to one listener. Its owner adds, and then says when they are told.

    tell: tells one. It ends with `forget`: nothing more is told.
    """

    clock: IReactorTime
    tell: Callable[[_T], None]
    _waiting: deque[_T] = field(factory=deque, init=False)
    _telling: bool = field(default=False, init=False)
    _turn: IDelayedCall | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)

    def add(self, item: _T) -> None:
        """One more, to be told after those before it."""
        if not self._over:
            self._waiting.append(item)

    def soon(self) -> None:
        """Tell them in a turn of their own: the listener is calling just now."""
        if self._waiting and self._turn is None:
            self._turn = self.clock.callLater(0, self._turned)

    def _turned(self) -> None:
        self._turn = None
        self.now()

    def now(self) -> None:
        """Tell all there are. What is added meanwhile is told, too."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._waiting:
                self.tell(self._waiting.popleft())
        finally:
            self._telling = False

    def forget(self) -> None:
        """Nobody listens any more."""
        self._over = True
        self._waiting.clear()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()
