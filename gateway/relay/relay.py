"""
A relay joins one session to one server: it drives the pure Router and does what it asks.

Thin: beside the router it has the Upstream (the way to the server), the Readers (back-pressure) and
the timer of the router's deadlines. The per-call path is plain callbacks, for a coroutine per call
costs more than the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, Direction, IPolicy, permits
from gateway.guard.turns import Turn
from gateway.links.interfaces import (
    EventMark,
    ILink,
    IServer,
)
from gateway.observe.observer import (
    CallAnswered,
    CallFailed,
    Event,
    IObserver,
    MessageDropped,
)
from gateway.relay.effects import (
    Answer,
    Call,
    Deliver,
    Effect,
    Forget,
    Forward,
    OwnEnded,
)
from gateway.relay.ending import endCall, endStream, lastWord, whatever
from gateway.relay.readers import Readers
from gateway.relay.replays import replaysOf
from gateway.relay.router import Router
from gateway.relay.straight import Straight
from gateway.relay.target import Target
from gateway.relay.times import NEVER, CallTimes
from gateway.relay.upstream import Upstream
from gateway.sessions.events import EventLog
from gateway.sessions.registry import Session, SessionRegistry
from gateway.wire.context import CallContext
from gateway.wire.envelope import RESPONSE, Message
from gateway.wire.refusals import Reason, callFailed
from gateway.wire.tool_hints import ToolHints

__all__ = ["Relay", "Target"]

_log = Logger()


@define(eq=False)
class Relay:
    """
    The live part of a session.

    Life: made with the session by the proxy that opened it → `open` makes the handshake →
    requests and messages → the session's end closes the streams and the link.

    transparent: whether client's and server's streams are the same ones: each message goes
    where the server put it, and event ids pass. Asked for so, the first link tells whether it
    can be: it cannot where the server does not speak Streamable HTTP.
    onLost: called when the link is gone, or the server forgot its session; the next call makes
    another.
    hints: what is known of the server's tools; the session's own without.
    straight: what is known of streams that go straight through; None where none do.
    """

    session: Session
    server: IServer
    registry: SessionRegistry
    policy: IPolicy
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    context: CallContext
    transparent: bool = False
    events: EventLog | None = None
    onLost: Callable[[], None] | None = None
    hints: ToolHints | None = None
    router: Router = field(init=False)
    readers: Readers = field(init=False)
    upstream: Upstream = field(init=False)
    closing: Deferred[None] | None = field(default=None, init=False)
    judges: bool = field(init=False)
    straight: Straight | None = field(default=None, init=False)
    _name: str = field(init=False)
    """The server's, which is asked of all that stands before it."""
    _timer: IDelayedCall | None = field(default=None, init=False)
    _dueAt: float = field(default=NEVER, init=False)
    _over: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.judges = not isinstance(self.policy, AllowAll)
        settings, self._name = self.server.settings, self.server.name
        self.router = Router(
            self.session.record,
            self.limits,
            settings.timeout,
            settings.max_timeout,
            self.transparent,
            times=CallTimes.of(settings) if settings.tool_timeouts else None,
            replays=replaysOf(settings.replay, self.hints, self.limits.max_tool_hints),
        )
        self.readers = Readers(self.router.calls)
        self.upstream = Upstream(
            self.session,
            self.server,
            self.registry,
            self.limits,
            self.clock,
            self.observer,
            self.router,
            self.readers,
            self,
        )
        self.session.live = self
        self.session.whenEnded(self._sessionEnded)

    # Set-up.

    async def open(self, params: bytes) -> Message:
        """
        Make the session's handshake with the `params` of the client's `initialize`.

        Returns the server's response. Raises LinkFailed, or StoreRefused.
        """
        self.greetAs(params)
        link = await self.upstream.acquire(self.context)
        self.upstream.negotiated(link.answer)
        await self.registry.changed(self.session)
        return link.answer

    def greetAs(self, params: bytes) -> None:
        """Make the handshake with these `params`, the gateway's own, when a link is needed."""
        self.upstream.greetAs(params)

    def serveAll(self, params: bytes) -> None:
        """Serve all clients of a server without sessions; `params`: see `greetAs`."""
        self.router.serveAll()
        self.greetAs(params)

    def passes(self, transparent: bool) -> None:
        """The first link tells whether its streams are the client's; see `transparent`."""
        self.transparent = transparent
        self.router.passes(transparent)
        if transparent:
            self.events = None
        if transparent and not self.router.common:
            # Without a session nobody could resume a stream; so it has no event ids.
            self.straight = self.straight or Straight(self, self.router, self.limits)

    # The link.

    @property
    def link(self) -> ILink | None:
        """The link, while there is one."""
        return self.upstream.keeper.link

    def acquire(self, context: CallContext) -> Deferred[ILink]:
        """
        The link, made again if it was lost; a handshake for it is made in this context.

        Fails with LinkFailed or SessionOver.
        """
        return self.upstream.acquire(context)

    def abandon(self, link: ILink) -> None:
        """
        The server forgot this link's session: the next `acquire` makes another, unless that
        is the end of our session.
        """
        self.upstream.abandon(link)

    def spoilt(self, link: ILink, id: bytes) -> None:
        """A stream of this link brought what is no message, but was meant as this id's answer."""
        if not self.session.ended:
            self.upstream.spoilt(link, id)

    def over(self) -> None:
        """The session is lost: its clients get the one 404."""
        self.upstream.over()

    async def dismiss(self, reason: str = "dismissed") -> None:
        """End a relay whose session is in no registry. Returns when its link is closed."""
        self.session.ended = self.session.ended or reason
        self._sessionEnded(self.session.ended)
        if self.closing is not None:
            await self.closing

    # From the client, by its proxy.

    def request(
        self,
        message: Message,
        target: Target,
        streams: bool,
        context: CallContext,
        queue: Callable[[Turn], None] | None = None,
    ) -> None:
        """
        Relay a request; `target` gets its answer, and before it, if `streams`, the rest.

        queue: takes the request's turn, where it has to wait for that.
        """
        now = self.clock.seconds()
        self.session.callStarted(now)
        if self.session.ended:
            self._refuse(message, target, now, Reason.SHUTTING_DOWN, "the session is over")
            return
        if self.judges and not self.allows(Direction.TO_SERVER, message, context):
            self._refuse(message, target, now, Reason.FORBIDDEN, "not permitted")
            return
        effects = self.router.request(message, target, streams, context, now)
        if queue is not None:
            call = self.router.held(effects)
            if call is not None:
                self._waits(call)
                queue(HeldCall(self, call))
        self.do(effects)
        self.readers.weigh()

    def _waits(self, call: Call) -> None:
        """A call waits, and nothing of it is sent: for who counts calls beside the session, too."""

    def _refuse(
        self, message: Message, target: Target, now: float, reason: Reason, why: str
    ) -> None:
        assert message.id is not None
        refused = callFailed(message.id, reason, why)
        self._ended(message.method, now, refused, reason.value)
        target.answer(refused)

    def message(self, message: Message, context: CallContext) -> bool | Deferred[bool]:
        """
        Relay a notification or a response.

        Returns: True if it is on its way, False if the server's queue is full. Over HTTP a Deferred
            that fires with True once the server took it, `queue_wait` seconds from now at the
            latest.
        """
        now = self.clock.seconds()
        self.session.use(now)
        if self.session.ended:
            self.drop("undeliverable")
            return True
        if message.kind is RESPONSE:
            effects = self.router.response(message, now)
        elif self.judges and not self.allows(Direction.TO_SERVER, message, context):
            self.drop("forbidden")
            return True
        else:
            effects = self.router.notification(message, now)
        told: bool | Deferred[bool] = True
        for effect in effects:
            if isinstance(effect, Forward):
                told = self.upstream.sender.tell(effect.message, context)
                if told is False:
                    self.router.notTaken(message, now)
            else:
                self.do([effect])
        self.arm()
        return told

    def opens(self, stream: Target, link: ILink) -> None:
        """A stream of the server's is opened on this link for a client's; until `detach`."""
        if self.straight is not None:
            self.straight.opens(stream, link)
        self.upstream.tidy()

    def attach(self, stream: Target) -> None:
        """The client opened a stream for what belongs to no call."""
        self.do(self.router.attached(stream))

    def detach(self, stream: Target) -> None:
        """It ended, and the server's with it."""
        self.router.detached(stream)
        if self.straight is not None:
            self.straight.detach(stream)
        self.upstream.tidy()

    def gone(self, target: object) -> None:
        """The client no longer waits on this target; its calls go on (MCP: no cancel)."""
        for call in self.router.calls.values():
            if call.target is target:
                call.present = False
                if call.numbered and call.via is not None:
                    # The server will give the rest when the client resumes the stream.
                    call.via.cancel(call)

    def allows(self, direction: Direction, message: Message, context: CallContext) -> bool:
        """Whether the policy lets a message pass."""
        return not self.judges or permits(self.policy, direction, message, context)

    # A stream's watch.

    def readerOpened(self, reader: object, target: object) -> None:
        """A stream is open; `target` is what the router knows it by."""
        self.readers.opened(reader, target)

    def readerClosed(self, reader: object) -> None:
        """It ended."""
        self.readers.closed(reader)

    def readerBlocked(self, reader: object) -> None:
        """Its client does not read."""
        self.readers.blocked(reader)

    def readerDrained(self, reader: object) -> None:
        """It reads again."""
        self.readers.drained(reader)

    # Effects.

    def do(self, effects: list[Effect], mark: EventMark | None = None) -> None:
        """Do what the router asks, in order."""
        for effect in effects:
            # Not by isinstance, which asks the metaclass of a Struct each time it is another.
            if type(effect) is Forward:
                self.forward(effect)
            elif type(effect) is Answer:
                call = effect.call
                self._ended(call.request.method, call.started, effect.message, effect.failed)
                if call.present:
                    try:
                        call.target.answer(effect.message, mark)  # type: ignore[attr-defined]
                    except Exception:
                        # The others of these calls have ended, too, and wait for their answers.
                        _log.failure("while a call was answered")
                elif self.straight is None or not self.straight.unheard(call, effect.message):
                    self.drop("client_gone")
                if self.readers.slow:
                    self.readers.weigh()
            elif type(effect) is Deliver:
                if not effect.target.deliver(effect.message, mark):  # type: ignore[attr-defined]
                    undone = self.router.undeliverable(effect.message, self.clock.seconds())
                    self.do(undone)
            elif isinstance(effect, Event):
                self.observer.observed(effect)
            elif isinstance(effect, Forget):
                if effect.call.via is not None:
                    effect.call.via.cancel(effect.call)
            elif isinstance(effect, OwnEnded):
                self.upstream.ownEnded(effect.call, effect.granted)
            else:
                self.registry.changed(self.session).addErrback(
                    lambda failure: _log.failure("a session's change is not stored", failure)
                )
        if self.router.due.at < self._dueAt:
            self.arm()

    def forward(self, effect: Forward) -> None:
        """Send something to the server; a call that is not taken fails."""
        call = effect.call
        if self.upstream.sender.send(effect.message, call, effect.context or self.context):
            return
        if call is None:
            self.drop("undeliverable")
        else:
            self.upstream.unsent(call, Reason.OVERLOADED, "the server does not keep up")

    def ended(self, call: Call, answer: Message, reason: Reason) -> None:
        """A call was taken out and failed; its answer goes another way."""
        self._ended(call.request.method, call.started, answer, reason.value)
        self.upstream.tidy()

    def _ended(self, method: str, started: float, message: Message, failed: str) -> None:
        now = self.clock.seconds()
        self.session.callEnded(now)
        if failed:
            self.observer.observed(CallFailed(self._name, method, failed))
        else:
            self.observer.observed(CallAnswered(self._name, method, now - started, message.isError))

    def drop(self, why: str) -> None:
        """A message went nowhere."""
        self.observer.observed(MessageDropped(self._name, why))

    # Time.

    def arm(self) -> None:
        """See to it that what is due next is done then."""
        soonest = self.router.due.at
        if soonest >= self._dueAt or self.session.ended:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._dueAt = soonest
        self._timer = self.clock.callLater(max(0.0, soonest - self.clock.seconds()), self._due)

    def _due(self) -> None:
        self._timer, self._dueAt = None, NEVER
        self.do(self.router.expired(self.clock.seconds()))
        self.upstream.tidy()

    # The end.

    def _sessionEnded(self, reason: str) -> None:
        if self._over:
            # What ends may have it dismissed, and what is dismissed may have ended.
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        for call in self.router.withdrawn():
            if call.via is not None:
                whatever(call.via.cancel, call)
            whatever(self._withdraw, call, reason)
        for target in self.readers.targets:
            whatever(endStream, target, reason, self.limits.retry_after * 1000)
        if self.events is not None:
            self.events.forget()
        if self.straight is not None:
            # It refers to us, too.
            straight, self.straight = self.straight, None
            straight.end()
        self.closing = self.upstream.close()
        # It refers to us, and what refers to each other waits for the garbage collector.
        self.session.live = None

    def _withdraw(self, call: Call, reason: str) -> None:
        if call.target is None:
            return
        answer, why = lastWord(call.id, reason)
        self._ended(call.request.method, call.started, answer, why.value)
        if call.present:
            endCall(call.target, answer, reason)  # type: ignore[arg-type]
        else:
            self.drop("client_gone")


@define(eq=False)
class HeldCall:
    """A call of a relay that waits. A Turn."""

    relay: Relay
    call: Call

    def waits(self) -> bool:
        """See Turn."""
        return self.relay.router.isHeld(self.call)

    def comes(self) -> None:
        """See Turn."""
        self.relay.do(self.relay.router.released(self.call))
