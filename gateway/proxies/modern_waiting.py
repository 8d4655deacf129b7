"""A modern request that waits for its principal's turn (`gateway.guard.turns`)."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from gateway.observe.observer import CallFailed
from gateway.proxies.admitted import Admitted
from gateway.proxies.shared import Shared
from gateway.wire.refusals import Reason

__all__ = ["ModernWaiting"]


@define(eq=False)
class ModernWaiting:
    """
    One request. A Turn.

    Life: made → `join` → its turn comes, its time is over (`timeout` seconds), its client leaves,
    or `stop`.

    go: serves it. fail: answers it with a failure. onEnd: told when it waits no more.
    """

    shared: Shared
    admitted: Admitted
    timeout: float
    go: Callable[[Admitted], None]
    fail: Callable[[Admitted, Reason, str], None]
    onEnd: Callable[[ModernWaiting], None]
    _until: float = field(default=0.0, init=False)
    _over: bool = field(default=False, init=False)

    def join(self) -> None:
        """Wait from now on."""
        load, principal = self.shared.load, self.admitted.context.principal
        account = load.accountOf(principal)
        load.total.calls += 1
        account.calls += 1
        load.wait(account, self)
        self._until = self.shared.clock.seconds() + self.timeout
        self.shared.pulse.join(self)
        self.admitted.exchange.onGone = self._gone

    def waits(self) -> bool:
        """See Turn."""
        return not self._over

    def comes(self) -> None:
        """See Turn."""
        self._leave()
        self.admitted.exchange.onGone, self.admitted.hadRoom = None, True
        self.go(self.admitted)

    def beat(self, now: float) -> None:
        """Some time has passed."""
        if now >= self._until:
            self._leave()
            self.fail(self.admitted, Reason.TIMEOUT, "the call's turn did not come in time")

    def stop(self) -> None:
        """The gateway ends, or the server."""
        self._leave()
        self.fail(self.admitted, Reason.SHUTTING_DOWN, "the gateway is shutting down")

    def _gone(self) -> None:
        """The client closed: that cancels its request."""
        self._leave()
        message, server = self.admitted.message, self.admitted.context.server
        assert message is not None
        failed = CallFailed(server, message.method, Reason.CANCELLED.value)
        self.shared.observer.observed(failed)

    def _leave(self) -> None:
        self._over = True
        self.shared.pulse.leave(self)
        self.onEnd(self)
        load, principal = self.shared.load, self.admitted.context.principal
        load.total.calls -= 1
        load.accountOf(principal).left()
        load.forget(principal)
