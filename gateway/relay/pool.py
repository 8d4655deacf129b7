"""
Modern clients (MCP 2026-07-28) to one legacy server: their requests run in pooled sessions.

A modern request carries all that a handshake would have said; a legacy server has state for each
session. So each caller has sessions of its own here, each a Session and a Relay that no registry
knows, whose handshakes are made in the gateway's name and say what the caller's client said. Ids,
progress, deadlines, recovery and back-off are the relay's; what a message of one era is in the
other is `gateway.bridge`'s; who has which session is `callers`'; what is left is here: which
request is what, and the times of what waits.

Each call goes into its relay under an id of the pool's, so that equal ids of two clients are two.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.bridge.asmodern import (
    LEVELS,
    asModern,
    discovered,
    helloFor,
    isServed,
    metaOf,
    towardsServer,
)
from gateway.bridge.inputs import Malformed, accepted, inputRequired, responsesOf
from gateway.guard.limits import Limits
from gateway.links.interfaces import IServer, LinkFailed
from gateway.observe.observer import BoundReached, CallFailed, IObserver, MessageDropped
from gateway.relay.callers import Caller, Callers
from gateway.relay.identity import Identity
from gateway.relay.listening import Listening
from gateway.relay.openings import DISCOVER, Openings
from gateway.relay.parked import ModernCall, Stage
from gateway.relay.parking import Parking
from gateway.relay.pooled import ROOTS, Pooled
from gateway.relay.relay import Relay
from gateway.relay.replies import Replies, Reply
from gateway.relay.target import Target
from gateway.relay.times import CallTimes
from gateway.sessions.registry import Session
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, text
from gateway.wire.modern import LISTEN, LOG_LEVEL
from gateway.wire.refusals import FailedCall, Reason, callFailed, errorMessage
from gateway.wire.tool_hints import ToolHints

__all__ = ["LegacyPool"]

_log = Logger()

_NEVER = float("inf")


@define(eq=False)
class LegacyPool:
    """
    Answers the modern requests to one legacy server: a `ModernCalls`.

    makeRelay: makes the live part of a session that no registry knows, for the server.
    running: whether a call runs that its client still waits for.
    Life: made by whoever serves the server → `request` and `gone` → `stop`.
    """

    server: IServer
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    makeRelay: Callable[[Session, CallContext], Relay]
    replies: Replies = field(init=False)
    _callers: Callers = field(init=False)
    _times: CallTimes = field(init=False)
    _identity: Identity = field(init=False)
    _calls: dict[Reply, ModernCall] = field(factory=dict, init=False)
    _openings: Openings = field(init=False)
    _parked: Parking = field(init=False)
    _listening: Listening = field(init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _dueAt: float = field(default=_NEVER, init=False)
    _stopping: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.replies = Replies(self.clock, self.dropped)
        self._identity = Identity(self.server)
        self._parked = Parking(self._identity, self.limits, self.bound, self.dropped)
        self._times = CallTimes.of(self.server.settings)
        self._openings = Openings(self)
        self._callers = Callers(
            self.server,
            self.limits,
            self.clock,
            self.observer,
            self.makeRelay,
            self._openings.begin,
            lambda pooled: self._listening.sessionEnded(pooled),
            lambda pooled: self._listening.linkLost(pooled),
            lambda audience: self._listening.forget(audience),
            self.arm,
        )
        self._listening = Listening(self, self._callers, self.limits, self.clock)

    @property
    def running(self) -> bool:
        """Whether a call runs that its client still waits for; listening does not count."""
        return len(self.replies) > len(self._listening)

    @property
    def parked(self) -> bool:
        """Whether calls wait for input of their clients."""
        return len(self._parked) > 0

    def parks(self, message: Message, context: CallContext) -> bool:
        """Whether a request continues a call that is parked here, be it in time or not."""
        return self._parked.holds(message, context, self.clock.seconds())

    def shed(self, part: float) -> int:
        """Memory is short: end this part of the idle sessions. Returns how many."""
        return self._callers.shed(part)

    # ModernCalls.

    def request(self, message: Message, target: Target, context: CallContext) -> None:
        """Relay a request; see `ModernCalls`."""
        with self.replies.opened(message, target, context) as reply:
            self._request(reply)

    def _request(self, reply: Reply) -> None:
        message, method = reply.message, reply.message.method
        if self._stopping:
            self.fail(reply, Reason.SHUTTING_DOWN, "the gateway is shutting down")
        elif not isServed(method):
            self.refuse(reply, -32601, "Method not found")
        elif (level := message.meta(LOG_LEVEL)) is not None and text(level) not in LEVELS:
            # server/utilities/logging, Error Handling.
            self.refuse(reply, -32602, "Invalid params: this is no log level")
        elif method == LISTEN:
            self._listening.listen(reply)
        elif message.param("requestState") is not None:
            self._retry(reply)
        else:
            self._fresh(reply)

    def gone(self, target: Target) -> None:
        """The client closed the response stream; see `ModernCalls`."""
        reply = self.replies.gone(target)
        if reply is None:
            return
        call = self._calls.pop(reply, None)
        if call is None:
            self._listening.gone(reply)
        else:
            call.reply = None
            call.slow(False)
            self._abandon(call, "the client is gone")

    def slow(self, target: Target, blocked: bool) -> None:
        """Its client does not read, or reads again; see `ModernCalls`."""
        reply = self.replies.of(target)
        call = None if reply is None else self._calls.get(reply)
        if call is not None:
            call.slow(blocked)

    def stop(self) -> Deferred[None]:
        """Take no more, answer what runs; see `ModernCalls`."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._dueAt = None, _NEVER
        self._listening.stop()
        why = "the gateway is shutting down"
        for call in [*self._callers.waiting, *self._openings]:
            self.ended(call, callFailed(call.id, Reason.SHUTTING_DOWN, why))
        self._callers.endAll("shutdown")
        self._parked.forget()
        ended: Deferred[list[None]] = gatherResults(list(self._callers.closing))
        return ended.addCallback(lambda _: None)

    # A call.

    def _fresh(self, reply: Reply) -> None:
        """A request that continues no other."""
        try:
            responses = responsesOf(reply.message)
        except Malformed:
            self.refuse(reply, -32602, "Invalid params: inputResponses")
            return
        if responses is not None and not all(map(accepted, responses.values())):
            # Only a call that the server refused until a URL was visited is answered without a
            # state; asked again it would say the same again.
            self.refuse(reply, -32603, "The elicitation that the call needs was not accepted")
            return
        caller = self.callerOf(reply)
        ready = caller.open
        if reply.message.method == DISCOVER and ready is not None:
            self.answer(reply, discovered(reply.id, ready.result))
            return
        call = ModernCall(
            self,
            self._callers.newID(),
            towardsServer(reply.message),
            reply,
            reply.context,
            reply.declared,
            self.clock.seconds() + self._times.times(reply.message)[0],
        )
        self._calls[reply] = call
        self._take(call, caller)

    def callerOf(self, reply: Reply) -> Caller:
        """Who asks; nothing is remembered of a new one."""
        declared = reply.declared
        who = reply if self._identity.eachCall else self._identity.of(reply.context)
        caller = self._callers.known((who, declared))
        if caller is not None:
            return caller
        keeps = not self._identity.eachCall
        # A shared server asks nobody anything.
        asks = declared.asks and self.server.settings.isolation != "shared"
        return Caller(
            (who, declared),
            asks or not keeps,
            keeps,
            helloFor(reply.message, declared),
            reply.context,
            self._listening.audienceOf(who),
            ToolHints(self.limits.max_tool_hints),
        )

    def _take(self, call: ModernCall, caller: Caller) -> None:
        call.stage = Stage.WAITING
        full = self._callers.take(call, caller)
        if full is not None:
            why = "too many calls wait for a session with the server"
            self.ended(call, callFailed(call.id, full, why))
        elif call.stage is Stage.WAITING:
            self.arm(min(call.due, self._parked.makeRoom(caller, self.clock.seconds())))

    def takeAgain(self, call: ModernCall, reply: Reply) -> None:
        """A call needs another session than it had."""
        self._take(call, self.callerOf(reply))

    def refused(self, pooled: Pooled, failed: LinkFailed) -> None:
        """The handshake of a session failed."""
        self._callers.refused(pooled, failed)

    def _abandon(self, call: ModernCall, why: str) -> None:
        """Nobody waits for a call any more."""
        if call.stage in (Stage.WAITING, Stage.OPENING):
            self.ended(call, callFailed(call.id, Reason.CANCELLED, why))
        else:
            call.cancel(why)

    def ended(self, call: ModernCall, answer: Message) -> None:
        """A call is over upstream, or never began."""
        if call.stage is Stage.OVER:
            return
        # The roots are not asked for the call's sake.
        call.refuse("The call is over", but=ROOTS if call in self._parked else "")
        began = call.stage in (Stage.SENT, Stage.CANCELLED)
        call.stage = Stage.OVER
        call.slow(False)
        self._callers.leave(call)
        self._openings.leave(call)
        info = None if call.pooled is None else call.pooled.serverInfo
        if not isinstance(answer, FailedCall):
            if call.method != DISCOVER:
                answer = asModern(answer, call.method, info, call.declared)
        elif not began and call.reply is not None:
            self.observer.observed(CallFailed(self.server.name, call.method, answer.why.value))
        reply, call.reply = call.reply, None
        self._callers.release(call)
        if reply is not None:
            self._calls.pop(reply, None)
            self.answer(reply, answer)
        elif call in self._parked:
            # Whoever comes with its state gets it.
            call.outcome = answer
        elif began:
            self.dropped("client_gone")

    # Questions.

    def questioned(self, call: ModernCall) -> None:
        """The server asked something: what it asks beside it goes together."""
        if not call.flushing:
            call.flushing = True
            self.clock.callLater(self.limits.ask_wait, self._ask, call)

    def _ask(self, call: ModernCall) -> None:
        """Have the client that waits answer what the server asks."""
        call.flushing = False
        reply = call.reply
        if not call.questions or reply is None or call.stage is not Stage.SENT:
            # A parked call asks with its next retry.
            return
        if not self._parked.hasRoom(call.context.principal):
            call.refuse("Too many calls wait for their clients")
            return
        requests = call.ask()
        state = self._parked.park(call, self.clock.seconds())
        call.slow(False)
        self.arm(call.until)
        if self._callers.waiting:
            self.arm(self._parked.dueBeside(call))
        call.reply = None
        self._calls.pop(reply, None)
        assert call.pooled is not None
        meta = metaOf(call.pooled.serverInfo)
        self.answer(reply, inputRequired(reply.id, requests, state, meta))

    def _retry(self, reply: Reply) -> None:
        """A request that continues a parked call."""
        call = self._parked.find(reply.message, reply.context, self.clock.seconds())
        if call is None:
            self.refuse(reply, -32602, "requestState is not valid")
            return
        try:
            responses = responsesOf(reply.message) or {}
        except Malformed:
            self.refuse(reply, -32602, "Invalid params: inputResponses")
            return
        self._parked.leave(call)
        call.declared, call.context = reply.declared, reply.context
        call.respond(responses)
        if call.outcome is not None:
            call.refuse("The call is over")
            self.answer(reply, call.outcome)
            return
        call.reply = reply
        self._calls[reply] = call
        if call.questions:
            self.questioned(call)

    # Answers of our own.

    def answer(self, reply: Reply, message: Message) -> None:
        """Answer a request."""
        self.replies.answer(reply, message)

    def refuse(self, reply: Reply, code: int, why: str) -> None:
        """Answer a request with an error."""
        self.answer(reply, errorMessage(reply.id, code, why))

    def fail(self, reply: Reply, reason: Reason, why: str) -> None:
        """Fail a request."""
        self.observer.observed(CallFailed(self.server.name, reply.message.method, reason.value))
        self.answer(reply, callFailed(reply.id, reason, why))

    def dropped(self, why: str) -> None:
        """A message reached nobody."""
        self.observer.observed(MessageDropped(self.server.name, why))

    def bound(self, name: str) -> None:
        """A bound was reached."""
        self.observer.observed(BoundReached(name, self.server.name))

    # Time.

    def arm(self, when: float) -> None:
        """Look at `when` for what waited too long."""
        if when >= self._dueAt or self._stopping:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._dueAt = when
        self._timer = self.clock.callLater(max(0.0, when - self.clock.seconds()), self._due)

    def _due(self) -> None:
        """End what waited too long, and what nobody used."""
        self._timer, self._dueAt = None, _NEVER
        now = self.clock.seconds()
        for call in [*self._callers.waiting, *self._openings]:
            if call.due <= now and call.stage is not Stage.OVER:
                why = "no session with the server was ready in time"
                self.ended(call, callFailed(call.id, Reason.TIMEOUT, why))
        self._parked.expire(now)
        waits = [self._parked.makeRoom(one, now) for one in set(self._callers.waiting.values())]
        waits += [call.due for call in (*self._callers.waiting, *self._openings)]
        waits += self._parked.dues
        self.arm(min(self._callers.endIdle(), *waits, _NEVER))
