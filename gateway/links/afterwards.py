"""What goes on after a while, unless its owner is over before."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Afterwards"]


@define(eq=False, repr=False)
class Afterwards:
    """
    The timers of one owner; `forget` ends them all.
    """

    clock: IReactorTime
    _timers: dict[IDelayedCall, None] = field(factory=dict, init=False)

    def do(self, delay: float, what: Callable[[], object]) -> None:
        """Do something in `delay` seconds."""

        def due() -> None:
            self._timers.pop(timer)
            what()

        timer = self.clock.callLater(delay, due)
        self._timers[timer] = None

    def forget(self) -> None:
        """Do none of it."""
        timers, self._timers = self._timers, {}
        for timer in timers:
            timer.cancel()
