"""
Children that are started ahead (`warm`): each waits, its pipes open, for a handshake.

What a client says in its handshake is the handshake, so none can be made ahead; what takes long at
most servers, starting the program and loading what it needs, can.

 1. There are `warm` of them, as far as that can be; one that is taken is replaced.
 2. One that exits before it is taken is replaced after a back-off, longer each time one dies young;
    then it is a failure for the breaker, too. While the circuit is open none is started.
 3. Where none is ready, whoever asks starts a child as without this.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gateway.guard.limits import Limits
from gateway.links.backoff import backOff, jittered
from gateway.links.interfaces import LinkFailed, Reason
from gateway.links.stdio import StdioLink
from gateway.servers.breaker import Attempt

__all__ = ["WarmPool"]


@define(eq=False)
class _Warm:
    attempt: Attempt
    since: float


@define(eq=False, repr=False)
class WarmPool:
    """
    The children of one server that nobody has yet. Life: made → `take` → `stop`; its server closes
    the children.

    most: how many. start: starts one and gives it, or None where none may be started now; it is
    given what to call when the child exits unused. Raises LinkFailed. spoilt: told of one that died
    young.
    """

    most: int
    limits: Limits
    clock: IReactorTime
    start: Callable[[Callable[[StdioLink], None]], tuple[StdioLink, Attempt] | None]
    spoilt: Callable[[Attempt, LinkFailed], None]
    _ready: dict[StdioLink, _Warm] = field(factory=dict, init=False)
    _failures: int = field(default=0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._later(0.0)

    def __len__(self) -> int:
        return len(self._ready)

    def take(self) -> tuple[StdioLink, Attempt] | None:
        """The child that waits longest, if there is one."""
        for link, warm in self._ready.items():
            del self._ready[link]
            if self._timer is None:
                self._later(0.0)
            return link, warm.attempt
        return None

    def stop(self) -> None:
        """Start no more, and give none."""
        self._stopped = True
        self._ready.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _later(self, delay: float) -> None:
        if self._timer is None and not self._stopped:
            self._timer = self.clock.callLater(delay, self._fill)

    def _fill(self) -> None:
        self._timer = None
        if len(self._ready) >= self.most:
            return
        try:
            started = self.start(self._exited)
        except LinkFailed:
            started = None
        if started is None:
            self._rest()
            return
        link, attempt = started
        self._ready[link] = _Warm(attempt, self.clock.seconds())
        if len(self._ready) < self.most:
            # One in a turn: starting a process takes a while.
            self._later(0.0)

    def _exited(self, link: StdioLink) -> None:
        warm = self._ready.pop(link, None)
        if warm is None:
            return
        if self.clock.seconds() - warm.since < self.limits.circuit_young:
            why = "the server exited before its handshake"
            self.spoilt(warm.attempt, LinkFailed(Reason.SERVER_EXITED, why))
        else:
            self._failures = 0
        self._rest()

    def _rest(self) -> None:
        self._failures += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._later(jittered(backOff(self.limits, self._failures)))
