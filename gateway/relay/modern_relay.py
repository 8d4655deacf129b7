"""
The modern calls to one stdio server: one child for all callers, driven by the pure ModernRouter
(MCP 2026-07-28, basic/transports/stdio).

The child is made for the first call, and made again for the next one after it was lost, once for
all who wait and with a back-off, as relays of sessions do it (`gateway.relay.keeper`). Its output
is never held back, for it is everybody's: a stream whose reader is slow is bounded, and drops.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, Direction, IPolicy, permits
from gateway.links.interfaces import (
    EventMark,
    Hello,
    ILink,
    ILinkListener,
    IServer,
    ITwoEraServer,
    LinkFailed,
    Settled,
)
from gateway.observe.observer import (
    CallAnswered,
    CallFailed,
    Event,
    IObserver,
    MessageDropped,
)
from gateway.relay.effects import Answer, Call, Deliver, Forget, Forward
from gateway.relay.hearing import IKeptListener
from gateway.relay.keeper import LinkKeeper
from gateway.relay.modern_router import Ended, ModernEffect, ModernRouter, towardsServer
from gateway.relay.replays import Replays
from gateway.relay.target import Target
from gateway.relay.times import CallTimes
from gateway.servers.before import Before
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason, callFailed
from gateway.wire.tool_hints import ToolHints

__all__ = ["ModernRelay"]

_log = Logger()
_NEVER = float("inf")
_NO_HELLO = Hello(b"{}")
"""There is no handshake to repeat: `server/discover` is the gateway's own."""


@implementer(IServer)
@define(eq=False, repr=False)
class _Modern(Before):
    """A server, as a LinkKeeper sees it: its links are of the modern era."""

    inner: ITwoEraServer

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        return self.inner.modernLink(listener, context)


@implementer(IKeptListener)
@define(eq=False)
class ModernRelay:
    """
    What modern clients call at one stdio server. See ModernCalls.

    Life: made by the server's endpoint → requests → `stop`, which closes the child.
    """

    server: ITwoEraServer
    policy: IPolicy
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    router: ModernRouter = field(init=False)
    _keeper: LinkKeeper = field(init=False)
    _waiting: dict[Call, None] = field(factory=dict, init=False)
    """The calls for which the link is being made, in order."""
    _cancels: list[Forward] = field(factory=list, init=False)
    """The cancellations that the child's queue did not take: never more than calls were sent."""
    _acquiring: bool = field(default=False, init=False)
    _stopped: bool = field(default=False, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _dueAt: float = field(default=_NEVER, init=False)
    _used: float = field(default=0.0, init=False)
    _resting: IDelayedCall | None = field(default=None, init=False)
    _judges: bool = field(init=False)
    _own: CallContext = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.server.settings
        self.router = ModernRouter(
            self.server.name,
            self.limits,
            settings.timeout,
            settings.max_timeout,
            CallTimes.of(settings) if settings.tool_timeouts else None,
            Replays(settings.replay, ToolHints(self.limits.max_tool_hints)),
        )
        self._keeper = LinkKeeper(
            _Modern(self.server),
            self,
            self.clock,
            self.limits,
            self.observer,
        )
        self._keeper.hello = _NO_HELLO
        self._judges = not isinstance(self.policy, AllowAll)
        self._own = CallContext(self.server.name)

    # ModernCalls.

    @property
    def running(self) -> bool:
        """See ModernCalls."""
        return self.router.running

    def request(self, message: Message, target: Target, context: CallContext) -> None:
        """See ModernCalls."""
        if self._stopped:
            failed = callFailed(message.id, Reason.SHUTTING_DOWN, "the gateway is shutting down")
            self.observer.observed(CallFailed(self.server.name, message.method, failed.why.value))
            self.clock.callLater(0, target.answer, failed)
            return
        now = self._used = self.clock.seconds()
        effects = self.router.request(message, target, context, now)
        if isinstance(effects[-1], Answer):
            # A target hears nothing from within `request`.
            self._do(effects[:-1])
            self.clock.callLater(0, self._do, effects[-1:])
        else:
            self._do(effects)

    def gone(self, target: Target) -> None:
        """See ModernCalls."""
        self._do(self.router.gone(target))

    def slow(self, target: Target, blocked: bool) -> None:
        """See ModernCalls: the child is everybody's."""

    def stop(self) -> Deferred[None]:
        """See ModernCalls."""
        self._stopped = True
        self._do(self.router.stopped(Reason.SHUTTING_DOWN, "the gateway is shutting down"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        return self._keeper.close()

    # Towards the server.

    def _forward(self, effect: Forward) -> None:
        call, link = effect.call, self._keeper.link
        if call is None:
            # A cancellation. Where the link is lost, so is what it cancels.
            if link is not None and not self._cancel(link, effect):
                self._cancels.append(effect)
        elif link is not None:
            self._send(link, call, effect.message)
        else:
            self._waiting[call] = None
            self._acquire()

    def _cancel(self, link: ILink, effect: Forward) -> bool:
        return link.send(effect.message, None, effect.context or self._own)

    def _acquire(self) -> None:
        if self._acquiring or not self._waiting:
            return
        self._acquiring = True
        first = next(iter(self._waiting))
        self._keeper.acquire(first.context).addCallbacks(self._made, self._notMade).addErrback(
            lambda failure: _log.failure("while calls went to a new child", failure)
        )

    def _made(self, link: ILink) -> None:
        self._acquiring = False
        idle = self.server.settings.idle_stop
        if idle is not None and self._resting is None:
            self._resting = self.clock.callLater(idle, self._rest, idle)
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            if self._keeper.link is link:
                self._send(link, call, towardsServer(call))
            elif call.upstream in self.router.calls:
                # It was lost meanwhile.
                self._waiting[call] = None
        self._acquire()

    def _notMade(self, failure: Failure) -> None:
        self._acquiring = False
        error = failure.value
        if isinstance(error, LinkFailed):
            reason, why = error.reason, error.message
        else:
            _log.failure("a child could not be made", failure)
            reason, why = Reason.BAD_ANSWER, "the server could not be reached"
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            self._do(self.router.settled(call, reason, why))

    def _send(self, link: ILink, call: Call, message: Message) -> None:
        if call.upstream not in self.router.calls:
            return
        if link.send(message, call, call.context):
            call.via = link
        elif call.via is None:
            why = "the server does not keep up"
            # A call fails in a turn of its own: its target hears nothing from within `request`.
            self.clock.callLater(0, self._unsent, call, why)

    def _unsent(self, call: Call, why: str) -> None:
        self._do(self.router.settled(call, Reason.OVERLOADED, why))

    # IKeptListener.

    def greet(self, link: ILink, again: bool, context: CallContext) -> Deferred[None] | None:
        """There is nothing to say to a server again: nothing was said to the last one."""
        return None

    def isUsed(self, link: ILink) -> bool:
        """Links are never retired here."""
        return False

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        self._do(self.router.fromServer(message, self.clock.seconds()))

    def marked(self, origin: object | None, mark: EventMark) -> None:
        """A child has no events."""

    def ended(self, origin: object) -> None:
        """A child has no streams."""

    def accepted(self, call: object) -> None:
        """A child accepts nothing in particular."""

    def settled(self, call: object, settled: Settled) -> None:
        if isinstance(call, Call):
            self._do(self.router.settled(call, settled.reason, settled.message, settled.body))

    def drained(self) -> None:
        # Calls that were not taken were failed at once.
        link = self._keeper.link
        while self._cancels and link is not None and self._cancel(link, self._cancels[0]):
            del self._cancels[0]

    def lost(self, reason: Reason, message: str) -> None:
        self._cancels.clear()
        self._do(self.router.lost(reason, message, self.clock.seconds()))

    def retiredLost(self, link: ILink, reason: Reason, message: str) -> None:
        """Links are never retired here."""

    # Effects.

    def _do(self, effects: list[ModernEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Forward):
                self._forward(effect)
            elif isinstance(effect, Deliver):
                self._deliver(effect)
            elif isinstance(effect, Answer):
                self._answer(effect)
            elif isinstance(effect, Forget):
                self._waiting.pop(effect.call, None)
                if effect.call.via is not None:
                    effect.call.via.cancel(effect.call)
            elif isinstance(effect, Ended):
                target: Target = effect.call.target  # type: ignore[assignment]
                target.close()
            elif isinstance(effect, Event):
                self.observer.observed(effect)
        self._arm()

    def _deliver(self, effect: Deliver) -> None:
        target: Target = effect.target  # type: ignore[assignment]
        message = effect.message
        if self._judges and not self._allows(message, target):
            self._drop("forbidden")
        elif not target.deliver(message):
            self.observer.observed(self.router.undeliverable())

    def _allows(self, message: Message, target: Target) -> bool:
        context = self.router.contextOf(target) or self._own
        return permits(self.policy, Direction.TO_CLIENT, message, context)

    def _answer(self, effect: Answer) -> None:
        call, message = effect.call, effect.message
        name, method = self.server.name, call.request.method
        if effect.failed:
            self.observer.observed(CallFailed(name, method, effect.failed))
        else:
            self._used = self.clock.seconds()
            took = self._used - call.started
            self.observer.observed(CallAnswered(name, method, took, message.isError))
        target: Target = call.target  # type: ignore[assignment]
        target.answer(message)

    def _drop(self, why: str) -> None:
        self.observer.observed(MessageDropped(self.server.name, why))

    # Time.

    def _rest(self, idle: float) -> None:
        """Nobody may have used the child for a while: then it ends."""
        self._resting = None
        if self.router.calls:
            self._used = self.clock.seconds()
        left = self._used + idle - self.clock.seconds()
        if left > 0:
            self._resting = self.clock.callLater(left, self._rest, idle)
        else:
            self._cancels.clear()
            self._keeper.rest()

    def _arm(self) -> None:
        soonest = self.router.soonest
        if soonest >= self._dueAt or self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._dueAt = soonest
        self._timer = self.clock.callLater(max(0.0, soonest - self.clock.seconds()), self._due)

    def _due(self) -> None:
        self._timer, self._dueAt = None, _NEVER
        self._do(self.router.expired(self.clock.seconds()))
