"""
The way of one session to its server: the link, what is heard on it, and what becomes of the session
when it is lost.

 1. A new link hears what was said to the last one; then what waited for it goes (`sender.py`).
 2. What a server refused because it lost the session did not run: it is sent once more on the next
    link. What may have run fails, or is sent once more where that may be (`replays.py`).
 3. The link of a session that the server forgot is retired: what runs on it may be answered still.
 4. Where `on_exit` is "lost", or the server comes back as less than was promised, the session ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.guard.policy import Direction
from gateway.links.interfaces import (
    EventMark,
    Hello,
    IHTTPLink,
    ILink,
    IServer,
    Outcome,
    Settled,
)
from gateway.observe.observer import IObserver, SessionRecovered
from gateway.relay.effects import Call, Effect, Forward
from gateway.relay.hearing import IKeptListener
from gateway.relay.keeper import LinkKeeper
from gateway.relay.readers import Readers
from gateway.relay.recovery import narrowed, repetitions
from gateway.relay.repeats import Repeats
from gateway.relay.router import Router
from gateway.relay.sender import Note, Sender, SessionOver
from gateway.relay.straight import Straight
from gateway.sessions.registry import Session, SessionRegistry
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message, members, text
from gateway.wire.refusals import Reason, callFailed

__all__ = ["Upstream"]


class _Relay(Protocol):
    """
    The relay, as its way to the server sees it.

    transparent, straight: see Relay. judges: whether there is a policy to ask. context: for what
    belongs to no call. onLost: told when the link is gone.
    """

    transparent: bool
    straight: Straight | None
    judges: bool
    context: CallContext
    onLost: Callable[[], None] | None

    def do(self, effects: list[Effect], mark: EventMark | None = None) -> None:
        """Do what the router asks."""

    def forward(self, effect: Forward) -> None:
        """Send something to the server."""

    def drop(self, why: str) -> None:
        """A message went nowhere."""

    def allows(self, direction: Direction, message: Message, context: CallContext) -> bool:
        """Whether the policy lets a message pass."""

    def passes(self, transparent: bool) -> None:
        """The first link tells whether its streams are the client's."""

    def arm(self) -> None:
        """A deadline may be nearer than before."""


_SPOILT = Settled(Outcome.MAYBE_RAN, Reason.BAD_ANSWER, "the server's answer is malformed")


@implementer(IKeptListener)
@define(eq=False)
class Upstream:
    """
    What a relay has of its server.

    Life: made with the relay → `acquire` makes a link, and makes it again when it was lost →
    `close`, after which nothing of it refers to the relay.

    keeper: has the link. sender: sends on it, or waits for it. repeats: asks a server that came
    back again; None until one has.
    """

    session: Session
    server: IServer
    registry: SessionRegistry
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    router: Router
    readers: Readers
    relay: _Relay
    keeper: LinkKeeper = field(init=False)
    sender: Sender = field(init=False)
    repeats: Repeats | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        server = self.server
        http = isinstance(server.settings, HTTPSettings)
        self.keeper = LinkKeeper(
            server, self, self.clock, self.limits, self.observer, self.relay.transparent
        )
        self.sender = Sender(
            self.keeper,
            self,
            self.limits,
            self.clock,
            self.observer,
            server.name,
            notes=http,
            endsWithLink=http,
        )

    # The link.

    def acquire(self, context: CallContext) -> Deferred[ILink]:
        """See Relay."""
        return self.keeper.acquire(context)

    def greetAs(self, params: bytes) -> None:
        """See Relay."""
        self.session.record.initialize = params
        self.keeper.hello = Hello(params)
        self.router.greeted()

    def negotiated(self, answer: Message) -> None:
        """Write down what the server answered to `initialize`."""
        result = members(answer.fields.get("result"))
        record, version = self.session.record, result.get("protocolVersion")
        record.revision = (version is not None and text(bytes(version))) or ""
        record.capabilities = bytes(result.get("capabilities", b"{}"))

    def greet(self, link: ILink, again: bool, context: CallContext) -> Deferred[None] | None:
        """See IKeptListener."""
        relay = self.relay
        transparent = relay.transparent and IHTTPLink.providedBy(link)
        if again and transparent is not relay.transparent:
            raise SessionOver
        relay.passes(transparent)
        self.readers.linked(link)
        if not again and not self.session.record.initialized:
            return None
        return Deferred.fromCoroutine(self._greetAgain(link, again, context))

    async def _greetAgain(self, link: ILink, again: bool, context: CallContext) -> None:
        """What was said to the last link is said again; again: whether there was one."""
        record = self.session.record
        result = members(link.answer.fields.get("result"))
        if again and narrowed(record, result):
            raise SessionOver
        said, told = repetitions(record, result)
        for message in said:
            if message.kind is REQUEST:
                continue
            note = Note(message, context, replayed=True, via=link) if self.sender.notes else None
            if not link.send(message, note, context):
                self.relay.drop("repeat_failed")
            elif note is not None:
                await self.sender.followed(note)
                if self.readers.link is not link or self.session.ended:
                    # Lost meanwhile, and the keeper says so; or over.
                    return
        asked = [message for message in said if message.kind is REQUEST]
        if asked:
            self.repeats = self.repeats or Repeats(self._ask, self._notRepeated)
            self.repeats.start(asked, link, context)
        if not again:
            self.negotiated(link.answer)
            return
        self.observer.observed(SessionRecovered(self.server.name, self.session.tag))
        relay = self.relay
        for message in told:
            if relay.allows(Direction.TO_CLIENT, message, relay.context):
                relay.do(self.router.told(message, self.clock.seconds()))

    def _ask(self, message: Message, link: ILink, context: CallContext) -> Call | None:
        """Send a request of the gateway's own; None if it was not taken."""
        for effect in self.router.ownRequest(message, context, self.clock.seconds()):
            if isinstance(effect, Forward) and effect.call is not None:
                call = effect.call
                call.via = link
                if link.send(effect.message, call, context):
                    self.relay.arm()
                    return call
                self.router.settled(call, Reason.OVERLOADED, "")
        return None

    def _notRepeated(self) -> None:
        self.relay.drop("repeat_failed")

    def ownEnded(self, call: Call, granted: bool) -> None:
        """A request of the gateway's own is over."""
        if self.repeats is not None:
            self.repeats.ended(call, granted)

    # IKeptListener.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        relay = self.relay
        if (
            relay.judges
            and message.kind is not RESPONSE
            and not relay.allows(Direction.TO_CLIENT, message, relay.context)
        ):
            relay.drop("forbidden")
            if message.kind is REQUEST:
                refused = callFailed(message.id, Reason.FORBIDDEN, "not permitted")
                context = origin.context if isinstance(origin, Call) else None
                relay.forward(Forward(refused, None, context))
            return
        effects = self.router.fromServer(message, origin, self.clock.seconds())
        straight = relay.straight
        if straight is None:
            mark = None
        elif mark is not None and mark.id is not None:
            straight.received(origin, mark.id, effects)
        relay.do(effects, mark)
        if self.keeper.retired:
            self.keeper.tidy()

    def marked(self, origin: object | None, mark: EventMark) -> None:
        if self.relay.straight is not None:
            self.relay.straight.marked(origin, mark)

    def ended(self, origin: object) -> None:
        if origin in self.router.streams:
            origin.close()  # type: ignore[attr-defined]

    def accepted(self, call: object) -> None:
        if isinstance(call, Note):
            self.sender.ended(call)
            self.tidy()

    def settled(self, call: object, settled: Settled) -> None:
        self._settled(call, settled)
        self.tidy()

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
                self.relay.drop("undeliverable")
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

    def spoilt(self, link: ILink, id: bytes) -> None:
        """What came on a stream is no message, but was meant as the answer of this id."""
        call = self.router.calls.get(id)
        if call is not None and call.via is link:
            link.cancel(call)
            self.settled(call, _SPOILT)

    def _unanswered(self, call: Call, settled: Settled) -> None:
        again: list[Effect] = []
        if settled.outcome is Outcome.MAYBE_RAN and not settled.status:
            again = self.router.repeated(call, settled.reason, self.clock.seconds())
        self.relay.do(
            again or self.router.settled(call, settled.reason, settled.message, settled.body)
        )

    def drained(self) -> None:
        # The client's own were refused at once.
        if self.repeats is not None:
            self.repeats.more()

    def lost(self, reason: Reason, message: str) -> None:
        relay, link = self.relay, self.readers.link
        self._forgetRepeats(link)
        self.readers.linked(None)
        now, final = self.clock.seconds(), self._lostOnExit
        relay.do(self.router.linkLost(reason, message, now, link, final))
        self.sender.lost(link)
        if final:
            self.over()
        elif relay.onLost is not None:
            relay.onLost()

    def retiredLost(self, link: ILink, reason: Reason, message: str) -> None:
        self.relay.do(self.router.retiredLost(link, reason, message, self.clock.seconds()))
        self.sender.lost(link)

    def isUsed(self, link: ILink) -> bool:
        """See IKeptListener."""
        if any(call.via is link for call in self.router.calls.values()):
            return True
        straight = self.relay.straight
        return (straight is not None and straight.isUsed(link)) or self.sender.isUsed(link)

    def tidy(self) -> None:
        """Let retired links go on which nothing runs any more."""
        if self.keeper.retired:
            self.keeper.tidy()

    # The server lost its session.

    @property
    def _lostOnExit(self) -> bool:
        return self.server.settings.on_exit == "lost"

    def abandon(self, link: ILink) -> None:
        """See Relay."""
        if self._lostOnExit:
            self.over()
        else:
            self._forgetRepeats(link)
            self.forgotten(link)
            self.tidy()

    def _forgetRepeats(self, link: object) -> None:
        """What was not said again on this link yet is said on the next."""
        if self.repeats is not None and link is self.readers.link:
            self.repeats.forget()

    # The sender's outcome.

    def unsent(self, call: Call, reason: Reason, why: str) -> None:
        """A call could not be sent."""
        self.relay.do(self.router.settled(call, reason, why))

    def isRunning(self, call: Call) -> bool:
        """Whether anybody still waits for a call."""
        return call.upstream in self.router.calls

    def forgotten(self, link: ILink | None) -> None:
        """The server forgot the session of this link."""
        if link is not None and link is self.keeper.link:
            relay = self.relay
            self.keeper.retire()
            relay.do(self.router.forgotten(self.clock.seconds()))
            if relay.onLost is not None:
                relay.onLost()

    def over(self) -> None:
        """The session is lost: its clients get the one 404."""
        self.registry.end(self.session, "lost")

    # The end.

    def close(self) -> Deferred[None]:
        """Nothing is sent, nor heard, any more. Fires when the link is closed."""
        self.repeats = None
        self.sender.forget()
        closing = self.keeper.close()
        # Keeper and sender refer to nobody now, and neither do we: see `hearing.py`.
        del self.relay
        return closing


def _isSessionless(sent: object) -> bool:
    """Whether something went to a server that keeps no sessions, so that none can be lost."""
    return isinstance(sent, (Call, Note)) and sent.via is not None and sent.via.sessionless
