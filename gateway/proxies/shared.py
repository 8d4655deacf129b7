"""What the proxies of one gateway share."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from gateway.guard.authentication import IAuthenticator
from gateway.guard.hosts import HostGuard
from gateway.guard.limits import Limits
from gateway.guard.load import Load
from gateway.guard.policy import IPolicy
from gateway.observe.observer import IObserver
from gateway.proxies.pulse import Pulse
from gateway.sessions.registry import SessionRegistry

__all__ = ["Shared"]


@define(eq=False)
class Shared:
    """
    The one registry, the limits, the clock and the guards, for all three proxies.

    accepting: whether new sessions are taken; False while the gateway drains.
    load: the registry's.
    """

    registry: SessionRegistry
    guard: HostGuard
    authenticator: IAuthenticator
    policy: IPolicy
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    accepting: bool = True
    load: Load = field(init=False)
    pulse: Pulse = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.load = self.registry.load
        self.pulse = Pulse(self.clock)
