"""
A relay joins one session to one server: it drives the pure Router and does what it asks.

Thin: beside the router it has the Sender (towards the server), the Readers (back-pressure) and the
timer of the router's deadlines. The per-call path is plain callbacks, for a coroutine per call
costs more than the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from msgspec import Raw
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, Direction, IPolicy, permits
from gateway.links.interfaces import (
    EventMark,
    Hello,
    IHTTPLink,
    ILink,
    IServer,
    Outcome,
    Settled,
)
from gateway.observe.observer import (
    CallAnswered,
    CallFailed,
    Event,
    IObserver,
    MessageDropped,
    SessionRecovered,
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
from gateway.relay.keeper import IKeptListener, LinkKeeper
from gateway.relay.readers import Readers
from gateway.relay.recovery import narrowed, repetitions
from gateway.relay.repeats import Repeats
from gateway.relay.replays import Replays
from gateway.relay.router import Router
from gateway.relay.sender import Note, Sender, SessionOver
from gateway.relay.target import Stream, Target
from gateway.relay.times import CallTimes
from gateway.sessions.events import EventLog
from gateway.sessions.registry import Session, SessionRegistry
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message, members, text
from gateway.wire.refusals import Reason, callFailed
from gateway.wire.tool_hints import ToolHints

__all__ = ["Relay", "Target"]

_log = Logger()


_NEVER = float("inf")

_ENDINGS = {
    "lost": (Reason.SERVER_EXITED, "the session is lost"),
    "shutdown": (Reason.SHUTTING_DOWN, "the gateway is shutting down"),
    "replaced": (Reason.SHUTTING_DOWN, "the server is being replaced"),
}
"""What running calls are told when the session ends, by the reason of its end."""

_RECEDES = ("shutdown", "replaced")
"""The ends that are the gateway's own doing: clients shall come again, a little later."""


@implementer(IKeptListener)
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
    sender: Sender = field(init=False)
    repeats: Repeats = field(init=False)
    closing: Deferred[None] | None = field(default=None, init=False)
    _keeper: LinkKeeper = field(init=False)
    _streams: dict[object, ILink] = field(factory=dict, init=False)
    """Whose stream a client's is, straight through."""
    _timer: IDelayedCall | None = field(default=None, init=False)
    _dueAt: float = field(default=_NEVER, init=False)
    _judges: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.server.settings
        http = isinstance(settings, HTTPSettings)
        self.router = Router(
            self.session.record,
            self.limits,
            settings.timeout,
            settings.max_timeout,
            self.transparent,
            times=CallTimes.of(settings) if settings.tool_timeouts else None,
            replays=Replays(settings.replay, self.hints or ToolHints(self.limits.max_tool_hints)),
        )
        self.readers = Readers(self.router.calls)
        self._keeper = LinkKeeper(
            self.server,
            self,
            self.clock,
            self.limits,
            self.observer,
            self._greet,
            self._isUsed,
            self.transparent,
        )
        self.sender = Sender(
            self._keeper,
            self,
            self.limits,
            self.clock,
            self.observer,
            self.server.name,
            notes=http,
            endsWithLink=http,
        )
        self.repeats = Repeats(self._ask, lambda: self._drop("repeat_failed"))
        self._judges = not isinstance(self.policy, AllowAll)
        self.session.live = self
        self.session.whenEnded(self._sessionEnded)

    # Set-up.

    async def open(self, params: bytes) -> Message:
        """
        Make the session's handshake with the `params` of the client's `initialize`.

        Returns the server's response. Raises LinkFailed, or StoreRefused.
        """
        self.greetAs(params)
        link = await self._keeper.acquire(self.context)
        self._negotiated(members(link.answer.fields.get("result")))
        await self.registry.changed(self.session)
        return link.answer

    def _negotiated(self, result: dict[str, Raw]) -> None:
        record = self.session.record
        version = result.get("protocolVersion")
        record.revision = (version is not None and text(bytes(version))) or ""
        record.capabilities = bytes(result.get("capabilities", b"{}"))

    @property
    def link(self) -> ILink | None:
        """The link, while there is one."""
        return self._keeper.link

    def acquire(self, context: CallContext) -> Deferred[ILink]:
        """
        The link, made again if it was lost; a handshake for it is made in this context.

        Fails with LinkFailed or SessionOver.
        """
        return self._keeper.acquire(context)

    def abandon(self, link: ILink) -> None:
        """
        The server forgot this link's session: the next `acquire` makes another, unless that
        is the end of our session.
        """
        if self._lostOnExit:
            self.over()
        else:
            self._forgetRepeats(link)
            self.forgotten(link)
            self._tidy()

    def _forgetRepeats(self, link: object) -> None:
        """What was not said again on this link yet is said on the next."""
        if link is self.readers.link:
            self.repeats.forget()

    @property
    def _lostOnExit(self) -> bool:
        return self.server.settings.on_exit == "lost"

    def greetAs(self, params: bytes) -> None:
        """Make the handshake with these `params`, the gateway's own, when a link is needed."""
        self.session.record.initialize = params
        self._keeper.hello = Hello(params)
        self.router.greeted()

    def serveAll(self, params: bytes) -> None:
        """Serve all clients of a server without sessions; `params`: see `greetAs`."""
        self.router.common = True
        self.greetAs(params)

    async def dismiss(self, reason: str = "dismissed") -> None:
        """End a relay whose session is in no registry. Returns when its link is closed."""
        self.session.ended = self.session.ended or reason
        self._sessionEnded(self.session.ended)
        if self.closing is not None:
            await self.closing

    async def _greet(self, link: ILink, again: bool, context: CallContext) -> None:
        """A new link: what was said to the last one is said again, then what waited goes."""
        transparent = self.transparent and IHTTPLink.providedBy(link)
        if again and transparent is not self.transparent:
            raise SessionOver
        self.transparent = transparent
        self.router.passes(transparent)
        if transparent:
            self.events = None
        self.readers.linked(link)
        record = self.session.record
        if not again and not record.initialized:
            return
        result = members(link.answer.fields.get("result"))
        if again and narrowed(record, result):
            raise SessionOver
        said, told = repetitions(record, result)
        for message in said:
            if message.kind is REQUEST:
                continue
            note = Note(message, context, replayed=True, via=link) if self.sender.notes else None
            if not link.send(message, note, context):
                self._drop("repeat_failed")
            elif note is not None:
                await self.sender.followed(note)
                if self.readers.link is not link:
                    # Lost meanwhile; the keeper says so.
                    return
        asked = [message for message in said if message.kind is REQUEST]
        self.repeats.start(asked, link, context)
        if again:
            self.observer.observed(SessionRecovered(self.server.name, self.session.tag))
            for message in told:
                if not self._judges or self._allows(Direction.TO_CLIENT, message, self.context):
                    self._do(self.router.told(message, self.clock.seconds()))
        else:
            self._negotiated(result)

    def _ask(self, message: Message, link: ILink, context: CallContext) -> Call | None:
        """Send a request of the gateway's own; None if it was not taken."""
        for effect in self.router.ownRequest(message, context, self.clock.seconds()):
            if isinstance(effect, Forward) and effect.call is not None:
                call = effect.call
                call.via = link
                if link.send(effect.message, call, context):
                    self._arm()
                    return call
                self.router.settled(call, Reason.OVERLOADED, "")
        return None

    # From the client, by its proxy.

    def request(
        self, message: Message, target: Target, streams: bool, context: CallContext
    ) -> None:
        """Relay a request; `target` gets its answer, and before it, if `streams`, the rest."""
        now = self.clock.seconds()
        self.session.callStarted(now)
        if self._judges and not self._allows(Direction.TO_SERVER, message, context):
            assert message.id is not None
            refused = callFailed(message.id, Reason.FORBIDDEN, "not permitted")
            self._ended(message.method, now, refused, Reason.FORBIDDEN.value)
            target.answer(refused)
            return
        self._do(self.router.request(message, target, streams, context, now))
        self.readers.weigh()

    def message(self, message: Message, context: CallContext) -> Deferred[bool]:
        """
        Relay a notification or a response.

        Fires with True once it is on its way (`queue_wait` seconds at the latest), with False
        if the server's queue is full.
        """
        now = self.clock.seconds()
        self.session.use(now)
        if message.kind is RESPONSE:
            effects = self.router.response(message, now)
        elif self._judges and not self._allows(Direction.TO_SERVER, message, context):
            self._drop("forbidden")
            return succeed(True)
        else:
            effects = self.router.notification(message, now)
        told: Deferred[bool] = succeed(True)
        for effect in effects:
            if isinstance(effect, Forward):
                following = self._tell(effect.message, context)
                if following is None:
                    self.router.notTaken(message, now)
                    told = succeed(False)
                else:
                    told = following
            else:
                self._do([effect])
        self._arm()
        return told

    def _tell(self, message: Message, context: CallContext) -> Deferred[bool] | None:
        """Send a notification or response; None if it was not taken."""
        if self.sender.notes:
            return self.sender.note(message, context)
        return succeed(True) if self.sender.send(message, None, context) else None

    def opens(self, stream: Target, link: ILink) -> None:
        """A stream of the server's is opened on this link for a client's; until `detach`."""
        self._streams[stream] = link
        self._tidy()

    def attach(self, stream: Target) -> None:
        """The client opened a stream for what belongs to no call."""
        self._do(self.router.attached(stream))

    def detach(self, stream: Target) -> None:
        """It ended, and the server's with it."""
        self.router.detached(stream)
        link = self._streams.pop(stream, None)
        if link is not None:
            link.cancel(stream)
        self._tidy()

    def gone(self, target: object) -> None:
        """The client no longer waits on this target; its calls go on (MCP: no cancel)."""
        for call in self.router.calls.values():
            if call.target is target:
                call.present = False
                if call.numbered and call.via is not None:
                    # The server will give the rest when the client resumes the stream.
                    call.via.cancel(call)

    def _allows(self, direction: Direction, message: Message, context: CallContext) -> bool:
        return permits(self.policy, direction, message, context)

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

    # IKeptListener.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if self.session.ended:
            return
        if (
            self._judges
            and message.kind is not RESPONSE
            and not self._allows(Direction.TO_CLIENT, message, self.context)
        ):
            self._drop("forbidden")
            if message.kind is REQUEST:
                refused = callFailed(message.id, Reason.FORBIDDEN, "not permitted")
                context = origin.context if isinstance(origin, Call) else None
                self._forward(Forward(refused, None, context))
            return
        effects = self.router.fromServer(message, origin, self.clock.seconds())
        if not self.transparent:
            mark = None
        elif mark is not None and mark.id is not None and isinstance(origin, Call):
            for effect in effects:
                if isinstance(effect, Deliver) and effect.target is origin.target:
                    origin.numbered = True
        self._do(effects, mark)
        if self._keeper.retired:
            self._tidy()

    def marked(self, origin: object | None, mark: EventMark) -> None:
        if not self.transparent:
            return
        if isinstance(origin, Call):
            if origin.present and origin.streams:
                origin.numbered = origin.numbered or mark.id is not None
                origin.target.marked(mark)  # type: ignore[attr-defined]
        elif origin in self.router.streams:
            origin.marked(mark)  # type: ignore[attr-defined]

    def ended(self, origin: object) -> None:
        if origin in self.router.streams:
            origin.close()  # type: ignore[attr-defined]

    def accepted(self, call: object) -> None:
        if isinstance(call, Note):
            self.sender.ended(call)
            self._tidy()

    def settled(self, call: object, settled: Settled) -> None:
        if not self.session.ended:
            self._settled(call, settled)
            self._tidy()

    def _settled(self, call: object, settled: Settled) -> None:
        gone = settled.status == 404 and not _isSessionless(call)
        if gone:
            self._forgetRepeats(call.via)  # type: ignore[attr-defined]
        if gone and self._lostOnExit:
            self.over()
        elif isinstance(call, Note):
            if gone and not call.replayed:
                self.sender.again(call.message, call)
            else:
                self._drop("undeliverable")
                self.sender.ended(call)
        elif isinstance(call, Call) and self.isRunning(call):
            if gone and call.target is not None:
                self.sender.again(self.router.towardsServer(call), call)
            elif call.numbered and settled.reason is Reason.OUTCOME_UNKNOWN:
                # The server closed a stream that its client can resume (SEP-1699).
                call.present = False
                call.target.close()  # type: ignore[attr-defined]
            else:
                self._unanswered(call, settled)

    def _unanswered(self, call: Call, settled: Settled) -> None:
        again: list[Effect] = []
        if settled.outcome is Outcome.MAYBE_RAN and not settled.status:
            again = self.router.repeated(call, settled.reason, self.clock.seconds())
        self._do(again or self.router.settled(call, settled.reason, settled.message, settled.body))

    def drained(self) -> None:
        # The client's own were refused at once.
        self.repeats.more()

    def lost(self, reason: Reason, message: str) -> None:
        link = self.readers.link
        self.readers.linked(None)
        self.repeats.forget()
        if self.session.ended:
            return
        now, final = self.clock.seconds(), self._lostOnExit
        self._do(self.router.linkLost(reason, message, now, link, final))
        self.sender.lost(link)
        if self._lostOnExit:
            self.over()
        elif self.onLost is not None:
            self.onLost()

    def retiredLost(self, link: ILink, reason: Reason, message: str) -> None:
        self._do(self.router.retiredLost(link, reason, message, self.clock.seconds()))
        self.sender.lost(link)

    def _isUsed(self, link: ILink) -> bool:
        if any(call.via is link for call in self.router.calls.values()):
            return True
        return link in self._streams.values() or self.sender.isUsed(link)

    def _tidy(self) -> None:
        if self._keeper.retired:
            self._keeper.tidy()

    # The sender's outcome.

    def unsent(self, call: Call, reason: Reason, why: str) -> None:
        self._do(self.router.settled(call, reason, why))

    def isRunning(self, call: Call) -> bool:
        return call.upstream in self.router.calls

    def forgotten(self, link: ILink | None) -> None:
        if link is not None and link is self._keeper.link:
            self._keeper.retire()
            self._do(self.router.forgotten(self.clock.seconds()))
            if self.onLost is not None:
                self.onLost()

    def over(self) -> None:
        """The session is lost: its clients get the one 404."""
        self.registry.end(self.session, "lost")

    # Effects.

    def _do(self, effects: list[Effect], mark: EventMark | None = None) -> None:
        for effect in effects:
            # Not by isinstance, which asks the metaclass of a Struct each time it is another.
            if type(effect) is Forward:
                self._forward(effect)
            elif type(effect) is Answer:
                call = effect.call
                self._ended(call.request.method, call.started, effect.message, effect.failed)
                if call.present:
                    call.target.answer(effect.message, mark)  # type: ignore[attr-defined]
                else:
                    self._drop("client_gone")
                if self.readers.slow:
                    self.readers.weigh()
            elif type(effect) is Deliver:
                if not effect.target.deliver(effect.message, mark):  # type: ignore[attr-defined]
                    undone = self.router.undeliverable(effect.message, self.clock.seconds())
                    self._do(undone)
            elif isinstance(effect, Event):
                self.observer.observed(effect)
            elif isinstance(effect, Forget):
                if effect.call.via is not None:
                    effect.call.via.cancel(effect.call)
            elif isinstance(effect, OwnEnded):
                self.repeats.ended(effect.call, effect.granted)
            else:
                self.registry.changed(self.session).addErrback(
                    lambda failure: _log.failure("a session's change is not stored", failure)
                )
        self._arm()

    def _forward(self, effect: Forward) -> None:
        call = effect.call
        if self.sender.send(effect.message, call, effect.context or self.context):
            return
        if call is None:
            self._drop("undeliverable")
        else:
            self.unsent(call, Reason.OVERLOADED, "the server does not keep up")

    def _ended(self, method: str, started: float, message: Message, failed: str) -> None:
        now = self.clock.seconds()
        self.session.callEnded(now)
        if failed:
            self.observer.observed(CallFailed(self.server.name, method, failed))
        else:
            self.observer.observed(
                CallAnswered(self.server.name, method, now - started, message.isError)
            )

    def _drop(self, why: str) -> None:
        self.observer.observed(MessageDropped(self.server.name, why))

    # Time.

    def _arm(self) -> None:
        soonest = self.router.soonest
        if soonest >= self._dueAt or self.session.ended:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._dueAt = soonest
        self._timer = self.clock.callLater(max(0.0, soonest - self.clock.seconds()), self._due)

    def _due(self) -> None:
        self._timer, self._dueAt = None, _NEVER
        self._do(self.router.expired(self.clock.seconds()))
        self._tidy()

    # The end.

    def _sessionEnded(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self.repeats.forget()
        for call in self.router.withdrawn():
            if call.via is not None:
                call.via.cancel(call)
            self._withdraw(call, reason)
        for target in self.readers.targets:
            stream: Stream = target  # type: ignore[assignment]
            if reason in _RECEDES:
                stream.recede(self.limits.retry_after * 1000)
            stream.close()
        self.sender.forget()
        if self.events is not None:
            self.events.forget()
        self.closing = Deferred.fromCoroutine(self._keeper.close())
        self.closing.addErrback(lambda failure: _log.failure("while a link closed", failure))

    def _withdraw(self, call: Call, reason: str) -> None:
        if call.target is None:
            return
        why, message = _ENDINGS.get(reason, (Reason.CANCELLED, "the session was ended"))
        answer = callFailed(call.id, why, message)
        self._ended(call.request.method, call.started, answer, why.value)
        target: Target = call.target  # type: ignore[assignment]
        if not call.present:
            self._drop("client_gone")
        elif reason == "lost":
            target.lost(call.id)
        else:
            target.answer(answer)


def _isSessionless(sent: object) -> bool:
    """Whether something went to a server that keeps no sessions, so that none can be lost."""
    return isinstance(sent, (Call, Note)) and sent.via is not None and sent.via.sessionless
