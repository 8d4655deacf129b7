"""
One beat for everything that waits: heads, heartbeats and blocked readers are looked at together.

A timer of its own for each open answer would cost more than the answer.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Beating", "Pulse"]


class Beating(Protocol):
    """Something that wants to know that time passes."""

    def beat(self, now: float) -> None:
        """Some time has passed; `now` in seconds of the pulse's clock."""


@define(eq=False)
class Pulse:
    """Beats for its members every `interval` seconds, and not at all without members."""

    clock: IReactorTime
    interval: float = 0.5
    _members: dict[Beating, None] = field(factory=dict)
    _timer: IDelayedCall | None = None
    _log: Logger = field(factory=Logger, init=False)

    def __len__(self) -> int:
        return len(self._members)

    def join(self, member: Beating) -> None:
        """Beat for a member from now on."""
        self._members[member] = None
        if self._timer is None:
            self._timer = self.clock.callLater(self.interval, self._beat)

    def leave(self, member: Beating) -> None:
        """Beat for it no more."""
        self._members.pop(member, None)

    def _beat(self) -> None:
        self._timer = None
        now = self.clock.seconds()
        for member in list(self._members):
            if member not in self._members:
                # It left because of what another one did.
                continue
            try:
                member.beat(now)
            except Exception:
                self._log.failure("while time passed")
        if self._members:
            self._timer = self.clock.callLater(self.interval, self._beat)

    def stop(self) -> None:
        """Beat no more; the members are forgotten."""
        self._members.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
