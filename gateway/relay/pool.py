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

from collections.abc import Callable, Hashable

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

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
from gateway.bridge.states import Named, States, bindingOf
from gateway.guard.limits import Limits
from gateway.links.interfaces import IServer, LinkFailed
from gateway.observe.observer import BoundReached, CallFailed, IObserver, MessageDropped
from gateway.relay.callers import Caller, Callers
from gateway.relay.listening import Listening
from gateway.relay.parked import ModernCall, Stage
from gateway.relay.pooled import ROOTS, Pooled
from gateway.relay.relay import Relay
from gateway.relay.replies import Replies, Reply
from gateway.relay.sender import SessionOver
from gateway.relay.target import Target
from gateway.relay.times import CallTimes
from gateway.sessions.registry import Session
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.envelope import Message, text
from gateway.wire.headers import credentialsAmong
from gateway.wire.modern import LISTEN, LOG_LEVEL, MAY_ASK
from gateway.wire.refusals import FailedCall, Reason, callFailed, errorMessage
from gateway.wire.tool_hints import ToolHints

__all__ = ["LegacyPool"]

_log = Logger()

_NEVER = float("inf")

_DISCOVER = "server/discover"


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
    _states: States = field(factory=States, init=False)
    _calls: dict[Reply, ModernCall] = field(factory=dict, init=False)
    _opening: dict[ModernCall, None] = field(factory=dict, init=False)
    _parked: dict[bytes, ModernCall] = field(factory=dict, init=False)
    _listening: Listening = field(init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _dueAt: float = field(default=_NEVER, init=False)
    _stopping: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.replies = Replies(self.clock, self.dropped)
        self._times = CallTimes.of(self.server.settings)
        self._callers = Callers(
            self.server,
            self.limits,
            self.clock,
            self.observer,
            self.makeRelay,
            self._begin,
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
        for call in [*self._callers.waiting, *self._opening]:
            self.ended(call, callFailed(call.id, Reason.SHUTTING_DOWN, why))
        self._callers.endAll("shutdown")
        self._parked.clear()
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
        if reply.message.method == _DISCOVER and ready is not None:
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
        who = self._whoIs(reply)
        caller = self._callers.known((who, declared))
        if caller is not None:
            return caller
        keeps = self.server.settings.callers != "call"
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

    def _whoIs(self, reply: Reply) -> Hashable:
        if self.server.settings.callers == "call":
            return reply
        context = reply.context
        # An HTTP server knows its clients by credentials of theirs, where they are forwarded.
        return context.principal, self._callerName(context), credentialsAmong(context.headers)

    def _callerName(self, context: CallContext) -> str:
        """What tells the callers of one principal apart."""
        name = context.caller if self.server.settings.callers.startswith("header:") else ""
        if context.principal == ANONYMOUS:
            # Nobody but the server knows whose its credentials are. Those of a known principal may
            # be renewed while a call is parked.
            name += f" {credentialsAmong(context.headers)!r}"
        return name

    def _bindingOf(self, request: Message, context: CallContext) -> bytes:
        """What a state is bound to: the same for a request as the server gets it and its retry."""
        name = self._callerName(context)
        return bindingOf(context.principal, name, self.server.name, request)

    def _take(self, call: ModernCall, caller: Caller) -> None:
        call.stage = Stage.WAITING
        if not self._callers.take(call, caller):
            why = "too many calls wait for a session with the server"
            self.ended(call, callFailed(call.id, Reason.OVERLOADED, why))
        elif call.stage is Stage.WAITING:
            self.arm(min(call.due, self._makeRoom(caller)))

    def _makeRoom(self, caller: Caller) -> float:
        """
        Where nobody answers what a caller's calls ask, the oldest must not hold up the rest: it is
        given up once it was parked for `parked_beside`.

        Returns: when to look again.
        """
        held = [call for pooled in caller.audience.sessions for call in pooled.calls]
        parked = [call for call in self._parked.values() if call in held]
        if not parked or len(parked) < len(held):
            return _NEVER
        limits = self.limits
        due = parked[0].until - limits.parked_for + limits.parked_beside
        if due > self.clock.seconds():
            return due
        self.bound("parked_beside")
        self._giveUp(parked[0], "The client asks for something else")
        return _NEVER

    def _giveUp(self, call: ModernCall, why: str) -> None:
        """A parked call waits for its client no longer."""
        del self._parked[call.name]
        if call.outcome is not None:
            call.refuse(why)
            self.dropped("client_gone")
        else:
            call.cancel(why)

    def _begin(self, call: ModernCall) -> None:
        """A call has a session: make it ready."""
        pooled = call.pooled
        assert pooled is not None
        call.stage = Stage.OPENING
        if pooled.isOpen:
            self._ready(call, pooled)
            return
        self._opening[call] = None
        self.arm(call.due)
        acquired = pooled.acquire(call.context)
        acquired.addCallbacks(
            lambda _: self._opened(call, pooled),
            lambda failure: self._closed(call, pooled, failure),
        )
        acquired.addErrback(lambda failure: _log.failure("while a pooled session opened", failure))

    def _opened(self, call: ModernCall, pooled: Pooled) -> None:
        pooled.audience.linked(pooled)
        if call.pooled is pooled and call.stage is Stage.OPENING:
            self._ready(call, pooled)

    def _closed(self, call: ModernCall, pooled: Pooled, failure: Failure) -> None:
        """The handshake of a call's session did not come about."""
        error = failure.value
        if isinstance(error, SessionOver):
            # What came back is another server; nothing was promised to anybody.
            pooled.relay.over()
        elif not isinstance(error, LinkFailed):
            _log.failure("a handshake broke", failure)
            error = LinkFailed(Reason.BAD_ANSWER, "the handshake with the server broke")
        else:
            self._callers.refused(pooled, error)
        if call.pooled is not pooled or call.stage is not Stage.OPENING:
            return
        if isinstance(error, LinkFailed):
            failed = callFailed(call.id, error.reason, error.message, error.retryAfter)
            self.ended(call, failed)
        elif call.reply is not None:
            # Each time one session less is there to be lost, and a new one has nothing to lose.
            self._opening.pop(call, None)
            call.pooled = None
            self._take(call, self.callerOf(call.reply))

    def _ready(self, call: ModernCall, pooled: Pooled) -> None:
        if call.method == _DISCOVER:
            self.ended(call, discovered(call.id, pooled.result))
            return
        self._opening[call] = None
        pooled.levelled(call, call.context, lambda: self._send(call, pooled))
        if call.stage is Stage.OPENING:
            self.arm(call.due)

    def _send(self, call: ModernCall, pooled: Pooled) -> None:
        self._opening.pop(call, None)
        if call.pooled is not pooled or call.stage is not Stage.OPENING:
            return
        if pooled.session.ended:
            self.ended(call, callFailed(call.id, Reason.SERVER_EXITED, "the session is lost"))
        else:
            call.stage = Stage.SENT
            call.asker = pooled
            pooled.relay.request(call.request.withID(call.id), call, True, call.context)
            if call.method in MAY_ASK and call.stage is Stage.SENT:
                for question in pooled.takeHeld():
                    call.deliver(question)

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
        call.refuse("The call is over", but=ROOTS if call.name in self._parked else "")
        began = call.stage in (Stage.SENT, Stage.CANCELLED)
        call.stage = Stage.OVER
        call.slow(False)
        self._callers.leave(call)
        self._opening.pop(call, None)
        info = None if call.pooled is None else call.pooled.serverInfo
        if not isinstance(answer, FailedCall):
            if call.method != _DISCOVER:
                answer = asModern(answer, call.method, info, call.declared)
        elif not began and call.reply is not None:
            self.observer.observed(CallFailed(self.server.name, call.method, answer.why.value))
        reply, call.reply = call.reply, None
        self._callers.release(call)
        if reply is not None:
            self._calls.pop(reply, None)
            self.answer(reply, answer)
        elif call.name in self._parked:
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
        if len(self._parked) >= self.limits.max_parked:
            self.bound("max_parked")
            call.refuse("Too many calls wait for their clients")
            return
        requests = call.ask()
        call.until = self.clock.seconds() + self.limits.parked_for
        binding = self._bindingOf(call.request, call.context)
        state = self._states.seal(Named(call.name, call.round), binding, call.until)
        self._parked[call.name] = call
        call.slow(False)
        self.arm(call.until)
        if self._callers.waiting:
            self.arm(call.until - self.limits.parked_for + self.limits.parked_beside)
        call.reply = None
        self._calls.pop(reply, None)
        assert call.pooled is not None
        meta = metaOf(call.pooled.serverInfo)
        self.answer(reply, inputRequired(reply.id, requests, state, meta))

    def _retry(self, reply: Reply) -> None:
        """A request that continues a parked call."""
        message = reply.message
        binding = self._bindingOf(message, reply.context)
        named = self._states.open(message.paramText("requestState"), binding, self.clock.seconds())
        call = None if named is None else self._parked.get(named.call)
        if call is None or named is None or call.round != named.round:
            self.refuse(reply, -32602, "requestState is not valid")
            return
        try:
            responses = responsesOf(message) or {}
        except Malformed:
            self.refuse(reply, -32602, "Invalid params: inputResponses")
            return
        del self._parked[call.name]
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
        for call in [*self._callers.waiting, *self._opening]:
            if call.due <= now and call.stage is not Stage.OVER:
                why = "no session with the server was ready in time"
                self.ended(call, callFailed(call.id, Reason.TIMEOUT, why))
        for call in [call for call in self._parked.values() if call.until <= now]:
            self.bound("parked_for")
            self._giveUp(call, "The client did not answer in time")
        waits = [self._makeRoom(caller) for caller in set(self._callers.waiting.values())]
        waits += [call.due for call in (*self._callers.waiting, *self._opening)]
        waits += [call.until for call in self._parked.values()]
        self.arm(min(self._callers.endIdle(), *waits, _NEVER))
