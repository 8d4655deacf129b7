"""
A monotonic clock for every deadline.

`reactor.seconds` is the wall clock: a step forward fires its timers early, a step back freezes
them. This clock measures with `time.monotonic`, and a timer that its reactor fires too early is
armed again. (A host's reactor whose wall clock steps back still wakes late; in our own process
`gateway.tap` makes the reactor itself monotonic.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

__all__ = ["MonotonicClock"]


@implementer(IDelayedCall)
@define(eq=False)
class _MonotonicCall:
    """One timer of a MonotonicClock; armed again for as long as it fires too early."""

    _clock: MonotonicClock
    _due: float
    _call: Callable[[], object]
    _armed: IDelayedCall | None = None
    _called: bool = False
    _cancelled: bool = False

    def arm(self) -> None:
        delay = max(0.0, self._due - self._clock.seconds())
        self._armed = self._clock.reactor.callLater(delay, self._fired)

    def _fired(self) -> None:
        self._armed = None
        if self._clock.seconds() < self._due:
            self.arm()
        else:
            self._called = True
            self._call()

    def active(self) -> bool:
        return not self._called and not self._cancelled

    def _stop(self) -> None:
        """Take the timer away; raises if the call is over."""
        if self._called:
            raise AlreadyCalled
        if self._cancelled:
            raise AlreadyCancelled
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None

    def cancel(self) -> None:
        self._stop()
        self._cancelled = True

    def getTime(self) -> float:
        return self._due

    def reset(self, secondsFromNow: float) -> None:
        self._stop()
        self._due = self._clock.seconds() + secondsFromNow
        self.arm()

    def delay(self, secondsLater: float) -> None:
        self._stop()
        self._due += secondsLater
        self.arm()


@implementer(IReactorTime)
@define(eq=False)
class MonotonicClock:
    """IReactorTime over a reactor's timers, measured in monotonic seconds."""

    reactor: IReactorTime
    # No method: a call asks six times.
    seconds: Callable[[], float] = field(default=time.monotonic, alias="monotonic")
    """Monotonic seconds since some point in the past."""

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> IDelayedCall:
        """Call once, `delay` monotonic seconds from now."""
        call = _MonotonicCall(self, self.seconds() + delay, lambda: callable(*args, **kwargs))
        call.arm()
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """The reactor's delayed calls."""
        return list(self.reactor.getDelayedCalls())
