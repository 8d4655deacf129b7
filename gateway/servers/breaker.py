"""
A circuit breaker: a server that keeps failing is left alone for a while. Pure.

 1. What counts as a failure: an attempt that came to nothing, and a link that died by itself
    within `circuit_young` seconds of its handshake. Whoever drives the breaker judges which
    attempts count.
 2. `circuit_failures` of them within `circuit_window` seconds, with no good link between, open
    the circuit. A link is good once it has lived for `circuit_young` seconds.
 3. While it is open nothing is attempted. After a cool-down one attempt, the probe, goes through;
    its success closes the circuit, its failure keeps it open. A probe that is given up says
    nothing: the next asker makes another.
 4. The cool-down is `circuit_first` seconds, and twice as long each time up to `circuit_last`,
    until the circuit has stayed closed for `circuit_window` seconds.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from gateway.guard.limits import Limits

__all__ = ["Attempt", "Breaker"]


@define(eq=False)
class Attempt:
    """
    One attempt that was let through, and the link it made.

    probe: whether it decides about an open circuit. since: when it succeeded.
    """

    probe: bool
    since: float = 0.0
    _died: bool = False


@define(eq=False)
class Breaker:
    """
    The breaker of one server. Times are seconds of one monotonic clock.

    Whoever was let through by `begin` says once how it went: `succeeded`, `failed` or
    `abandoned`; and after a success `died`, if it did.
    """

    limits: Limits
    _failures: deque[float] = field(factory=deque, init=False)
    _young: deque[Attempt] = field(factory=deque, init=False)
    _goodSince: float = field(default=float("-inf"), init=False)
    _until: float | None = field(default=None, init=False)
    _probe: Attempt | None = field(default=None, init=False)
    _coolDown: float = field(default=0.0, init=False)
    _closedAt: float = field(default=float("-inf"), init=False)

    @property
    def isOpen(self) -> bool:
        """Whether nothing but a probe is let through."""
        return self._until is not None

    def begin(self, now: float) -> Attempt | None:
        """Let an attempt through; None while the circuit is open."""
        if self._until is None:
            return Attempt(probe=False)
        if now < self._until or self._probe is not None:
            return None
        self._probe = Attempt(probe=True)
        return self._probe

    def wait(self, now: float) -> float:
        """Seconds after which asking again may help; 0 while the circuit is closed."""
        if self._until is None:
            return 0.0
        if self._probe is not None:
            return float(self.limits.retry_after)
        return max(0.0, self._until - now)

    def succeeded(self, attempt: Attempt, now: float) -> bool:
        """An attempt made a link. Returns whether that closed the circuit."""
        self._prove(now)
        attempt.since = now
        self._young.append(attempt)
        if self._until is None:
            return False
        self._until = self._probe = None
        self._closedAt = now
        self._failures.clear()
        return True

    def failed(self, attempt: Attempt, now: float) -> bool:
        """An attempt failed. Returns whether that opened the circuit, or keeps it open."""
        if attempt is self._probe:
            self._open(now)
            return True
        if self._until is not None:
            # It began before the circuit opened; nothing new.
            return False
        return self._count(now)

    def abandoned(self, attempt: Attempt) -> None:
        """An attempt was given up, or says nothing of the server."""
        if attempt is self._probe:
            self._probe = None

    def died(self, attempt: Attempt, now: float) -> bool:
        """A link died by itself. Returns whether that opened the circuit."""
        if now - attempt.since >= self.limits.circuit_young:
            return False
        attempt._died = True
        if self._until is not None:
            return False
        if attempt.probe:
            self._open(now)
            return True
        return self._count(now)

    def _prove(self, now: float) -> None:
        """Find out which links turned out to be good."""
        while self._young and now - self._young[0].since >= self.limits.circuit_young:
            attempt = self._young.popleft()
            if not attempt._died:
                self._goodSince = attempt.since

    def _count(self, now: float) -> bool:
        self._prove(now)
        self._failures.append(now)
        since = max(self._goodSince, now - self.limits.circuit_window)
        while self._failures[0] <= since:
            self._failures.popleft()
        if len(self._failures) < self.limits.circuit_failures:
            return False
        self._open(now)
        return True

    def _open(self, now: float) -> None:
        limits = self.limits
        lasted = self._until is None and now - self._closedAt >= limits.circuit_window
        longer = limits.circuit_first if lasted else self._coolDown * 2
        self._coolDown = min(longer, limits.circuit_last)
        self._until = now + self._coolDown
        self._probe = None
        self._failures.clear()
