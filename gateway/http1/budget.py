"""How often a connect may be tried again: seldom enough to spare a server that is down."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

__all__ = ["RetryBudget"]

SHARE = 0.2
"""Second tries for each first one."""

RATE = 10.0
"""Second tries a second, on top of that."""

_MOST = 100.0
"""What the shares add up to at most."""


@define(eq=False, repr=False)
class RetryBudget:
    """The second tries that one server may still get: a fifth of the first, and ten a second."""

    _clock: IReactorTime
    _shares: float = field(default=0.0, init=False)
    _steady: float = field(default=RATE, init=False)
    _at: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._at = self._clock.seconds()

    def attempted(self) -> None:
        """A first try is made."""
        self._shares = min(_MOST, self._shares + SHARE)

    def spend(self) -> bool:
        """Whether a second try may be made now; it is counted."""
        now = self._clock.seconds()
        self._steady = min(RATE, self._steady + (now - self._at) * RATE)
        self._at = now
        if self._steady >= 1:
            self._steady -= 1
        elif self._shares >= 1:
            self._shares -= 1
        else:
            return False
        return True
