"""
Whose calls wait until others of the same principal's have ended. Pure.

 1. A principal at `max_calls_per_principal` has `max_waiting_per_principal` more calls wait, first
    come, first served. What is beyond that is turned away (`gateway.guard.load`).
 2. Each principal has a queue of its own, so nobody waits for another's flood.
 3. Who waits is counted among its principal's calls, and in the total, for it holds memory, too.
 4. Whoever lets a call wait ends it when its time is over, when it is cancelled, and at the end.
 5. Whoever ends a call serves the queue from within, so what a turn does wrong is logged, and hits
    neither that call nor those that wait behind.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from attrs import define, field
from twisted.logger import Logger

__all__ = ["Queue", "Turn"]

_log = Logger()


class Turn(Protocol):
    """A call that waits."""

    def waits(self) -> bool:
        """Whether it still does."""

    def comes(self) -> None:
        """There is room: it may begin."""


class _Account(Protocol):
    """How many calls of a principal there are, those that wait included."""

    calls: int


class _Load(Protocol):
    """How many of them may run, and whether none may begin just now."""

    each: int
    suspended: int


@define(eq=False)
class Queue:
    """
    The calls of one principal that wait for their turn.

    serving: whether `serve` is under way; then it sees whatever joins or ends.
    """

    account: _Account
    load: _Load
    serving: bool = field(default=False, init=False)
    _turns: deque[Turn] = field(factory=deque, init=False)

    def __len__(self) -> int:
        return len(self._turns)

    def join(self, turn: Turn) -> None:
        """One more; it is counted in the account already."""
        self._turns.append(turn)

    def serve(self) -> None:
        """Something ended: begin what there is room for."""
        if self.serving or self.load.suspended:
            # What began has ended from within; it is seen below.
            return
        self.serving = True
        try:
            self._tidy()
            while self._turns and self.account.calls - len(self._turns) < self.load.each:
                try:
                    self._turns.popleft().comes()
                except Exception:
                    _log.failure("while a call's turn came")
                self._tidy()
        finally:
            self.serving = False

    def _tidy(self) -> None:
        """Leave out what was ended meanwhile."""
        self._turns = deque(turn for turn in self._turns if turn.waits())
