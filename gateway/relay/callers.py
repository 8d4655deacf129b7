"""
Who has which session with a legacy server, and who waits for one.

A caller is a principal, which of its callers it is, and what its client lets a server ask: nobody
else is ever given its sessions. Where the server may ask something, a call has a session to itself,
so that a question is its call's without doubt; the one used last is taken first, so that calls in
sequence see one server's state. Where it may ask nothing, all calls of the caller share one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import count

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gateway.guard.limits import Limits
from gateway.guard.load import MEMORY
from gateway.links.interfaces import IServer, LinkFailed
from gateway.observe.observer import BoundReached, IObserver, MessageDropped
from gateway.relay.listens import Listens
from gateway.relay.parked import ModernCall
from gateway.relay.pooled import Pooled
from gateway.relay.relay import Relay
from gateway.sessions.ids import tagOf
from gateway.sessions.record import SessionRecord
from gateway.sessions.registry import SHED, Session
from gateway.wire.context import CallContext
from gateway.wire.refusals import Reason
from gateway.wire.tool_hints import ToolHints

__all__ = ["Caller", "Callers"]

_log = Logger()

_NEVER = float("inf")

_CREDENTIALS_REFUSED = (401, 403)
"""The HTTP statuses by which a server refuses who asks, not to work."""


@define(eq=False)
class Caller:
    """
    One caller.

    key: what it is known by. exclusive: whether each of its calls has a session to itself.
    keeps: whether its sessions outlive their calls. hello: the `params` of its handshakes.
    context: of its first call. audience: who listens to its sessions, which callers share that
    differ in nothing but what their clients let a server ask.
    idle: its sessions that no call has, the one used last at the end.
    hints: what the lists of tools said that it was given.
    """

    key: Hashable
    exclusive: bool
    keeps: bool
    hello: bytes
    context: CallContext
    audience: Listens
    hints: ToolHints
    sessions: dict[Pooled, None] = field(factory=dict, init=False)
    idle: dict[Pooled, None] = field(factory=dict, init=False)
    waiting: int = field(default=0, init=False)

    @property
    def open(self) -> Pooled | None:
        """A session of it whose handshake is made."""
        return next((pooled for pooled in self.sessions if pooled.isOpen), None)


@define(eq=False)
class Callers:
    """
    All callers of one server.

    makeRelay: makes the live part of a session. begin: told that a call has a session now.
    onEnded, onLost: told that a session is over, or that its link is gone.
    forget: told that a caller is forgotten who had this audience. onIdle: told when to call
    `endIdle` at the latest.
    """

    server: IServer
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    makeRelay: Callable[[Session, CallContext], Relay]
    begin: Callable[[ModernCall], None]
    onEnded: Callable[[Pooled], None]
    onLost: Callable[[Pooled], None]
    forget: Callable[[Listens], None]
    onIdle: Callable[[float], None]
    waiting: dict[ModernCall, Caller] = field(factory=dict, init=False)
    closing: list[Deferred[None]] = field(factory=list, init=False)
    _callers: dict[Hashable, Caller] = field(factory=dict, init=False)
    _sessions: dict[Pooled, Caller] = field(factory=dict, init=False)
    _ids: count[int] = field(factory=lambda: count(1), init=False)
    _serving: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)

    def newID(self) -> bytes:
        """An id that nothing else has that goes into a relay here."""
        return b"%d" % next(self._ids)

    def known(self, key: Hashable) -> Caller | None:
        """The caller with this key; it is known while it has sessions or waiting calls."""
        return self._callers.get(key)

    def has(self, audience: Listens) -> bool:
        """Whether a caller is known that has this audience."""
        return any(caller.audience is audience for caller in self._callers.values())

    # Taking and giving back.

    def take(self, call: ModernCall, caller: Caller) -> Reason | None:
        """
        Give a call a session: `begin` is told, now or later. None, or why not: too many wait.
        """
        self._callers[caller.key] = caller
        self.waiting[call] = caller
        caller.waiting += 1
        self.serve()
        if call not in self.waiting:
            return None
        limits, principal = self.limits, call.context.principal
        if len(self.waiting) > limits.max_modern_waiting:
            self._bound("max_modern_waiting")
            self.leave(call)
            return Reason.OVERLOADED
        his = sum(one.context.principal == principal for one in self.waiting)
        if his > limits.max_modern_waiting_per_principal:
            self._bound("max_modern_waiting_per_principal")
            self.leave(call)
            return Reason.RATE_LIMITED
        full = len(caller.audience.sessions) >= limits.max_pooled_sessions
        self._bound("max_pooled_sessions" if full else "max_pooled_total")
        return None

    def leave(self, call: ModernCall) -> None:
        """A call waits no longer."""
        caller = self.waiting.pop(call, None)
        if caller is not None:
            caller.waiting -= 1
            self._tidy(caller)

    def release(self, call: ModernCall) -> None:
        """A call gives its session back, and may take another."""
        pooled, call.pooled = call.pooled, None
        if pooled is None:
            return
        pooled.calls.pop(call, None)
        caller = self._sessions.get(pooled)
        if caller is None or pooled.session.ended:
            # Who waits is served when it is taken out.
            return
        if not pooled.calls:
            self._rest(pooled, caller)
        if not self.waiting:
            return
        if pooled.isOpen or pooled.session.ended:
            self.serve()
        else:
            # Not from within the loss of its link: the relay is not done with it.
            self.clock.callLater(0, self.serve)

    def unused(self, pooled: Pooled) -> None:
        """Nobody listens to a session any more."""
        caller = self._sessions.get(pooled)
        if caller is not None and not pooled.calls:
            self._rest(pooled, caller)

    def _rest(self, pooled: Pooled, caller: Caller) -> None:
        if not caller.keeps and caller.audience.home is not pooled:
            self.end(pooled)
            return
        pooled.idleSince = self.clock.seconds()
        caller.idle[pooled] = None
        self.onIdle(pooled.idleSince + self.limits.pooled_idle)

    def serve(self) -> None:
        """See who of the waiting, in order, can have a session now."""
        # A call may be over as soon as it begins, and give its session back from within.
        self._again = True
        if self._serving:
            return
        self._serving = True
        try:
            while self._again:
                self._again = False
                for call, caller in list(self.waiting.items()):
                    if call not in self.waiting:
                        continue
                    pooled = self._free(caller)
                    if pooled is not None:
                        del self.waiting[call]
                        caller.waiting -= 1
                        self._give(call, caller, pooled)
        finally:
            self._serving = False

    def _give(self, call: ModernCall, caller: Caller, pooled: Pooled) -> None:
        caller.idle.pop(pooled, None)
        pooled.calls[call] = None
        call.pooled = pooled
        self.begin(call)

    def _free(self, caller: Caller) -> Pooled | None:
        """A session for one more call of a caller, made if there is room for it."""
        if caller.exclusive:
            if caller.idle:
                return next(reversed(caller.idle))
        elif caller.sessions:
            return next(iter(caller.sessions))
        most = self.limits.max_pooled_sessions
        ours = caller.audience.sessions
        if len(ours) >= most and not self._endLongestIdle(ours, "max_pooled_sessions"):
            return None
        if len(self._sessions) < self.limits.max_pooled_total or self._endLongestIdle(
            self._sessions, "max_pooled_total"
        ):
            return self._make(caller)
        return None

    def forListening(self, caller: Caller) -> Pooled | None:
        """A session of a caller, which no call need have; None where there is no room."""
        for known in caller.audience.sessions:
            return known
        self._callers[caller.key] = caller
        before, self._serving = self._serving, True
        try:
            pooled = self._free(caller)
        finally:
            self._serving = before
        if pooled is None:
            self._bound("max_pooled_total")
            self._tidy(caller)
        else:
            caller.idle[pooled] = None
        return pooled

    def _make(self, caller: Caller) -> Pooled:
        now = self.clock.seconds()
        record = SessionRecord(
            id="",
            server=self.server.name,
            generation=self.server.generation,
            principal=caller.context.principal,
            transport="pooled",
            initialized=True,
        )
        session = Session(record, now, now, tagOf(f"{id(self)}/{next(self._ids)}"))
        relay = self.makeRelay(session, caller.context)
        relay.router.shareHints(caller.hints)
        relay.greetAs(caller.hello)
        pooled = Pooled(
            session,
            relay,
            caller.audience,
            caller.exclusive,
            self.newID,
            self._dropped,
            self._bound,
            self.onIdle,
            now,
        )
        relay.onLost = lambda: self.onLost(pooled)
        self._sessions[pooled] = caller
        caller.sessions[pooled] = None
        caller.audience.sessions[pooled] = None
        session.whenEnded(lambda _: self._ended(pooled))
        return pooled

    # The end.

    def end(self, pooled: Pooled, reason: str = "dismissed") -> None:
        """End a session."""
        closed = Deferred.fromCoroutine(pooled.relay.dismiss(reason))
        self._closes(closed)
        self._ended(pooled)

    def refused(self, pooled: Pooled, failed: LinkFailed) -> None:
        """
        A handshake failed. If the server itself refused the first one of a session, that may be
        due to what one client says of itself, or to its credentials: nothing is kept of it, and
        the next call makes a session anew.
        """
        itself = failed.answer is not None or failed.status in _CREDENTIALS_REFUSED
        if itself and not pooled.result and pooled in self._sessions:
            self.end(pooled)

    def _closes(self, closed: Deferred[None]) -> None:
        self.closing.append(closed)

        def over(result: object) -> None:
            self.closing.remove(closed)

        closed.addErrback(lambda failure: _log.failure("while a pooled session ended", failure))
        closed.addBoth(over)

    def _ended(self, pooled: Pooled) -> None:
        caller = self._sessions.pop(pooled, None)
        if caller is None:
            return
        for held in (caller.sessions, caller.idle, caller.audience.sessions):
            held.pop(pooled, None)
        if pooled.relay.closing is not None and not pooled.relay.closing.called:
            self._closes(pooled.relay.closing)
        self.onEnded(pooled)
        self._tidy(caller)
        self.serve()

    def _tidy(self, caller: Caller) -> None:
        if caller.sessions or caller.waiting:
            return
        if self._callers.pop(caller.key, None) is not None:
            self.forget(caller.audience)

    def endAll(self, reason: str) -> None:
        """End every session."""
        for pooled in list(self._sessions):
            self.end(pooled, reason)

    # Idle ones.

    def _isIdle(self, pooled: Pooled, caller: Caller) -> bool:
        return pooled in caller.idle and caller.audience.home is not pooled

    def _endLongestIdle(self, among: Iterable[Pooled], bound: str) -> bool:
        idle = [pooled for pooled in among if self._isIdle(pooled, self._sessions[pooled])]
        if not idle:
            return False
        self._bound(bound)
        self.end(min(idle, key=lambda pooled: pooled.idleSince))
        return True

    def shed(self, part: float) -> int:
        """
        Memory is short: end some of the idle sessions, the longest unused first.

        part: of those there are, how many; SHED at least.
        Returns: how many.
        """
        idle = [one for one, caller in self._sessions.items() if self._isIdle(one, caller)]
        idle.sort(key=lambda one: one.idleSince)
        ending = idle[: max(SHED, int(len(idle) * part))]
        for pooled in ending:
            self._bound(MEMORY)
            self.end(pooled, "memory")
        return len(ending)

    def endIdle(self) -> float:
        """End what was idle or kept for too long. Returns when to look again; never without any."""
        now, soonest = self.clock.seconds(), _NEVER
        for pooled, caller in list(self._sessions.items()):
            soonest = min(soonest, pooled.expire(now))
            if not self._isIdle(pooled, caller):
                continue
            until = pooled.idleSince + self.limits.pooled_idle
            if until <= now:
                self._bound("pooled_idle")
                self.end(pooled)
            else:
                soonest = min(soonest, until)
        return soonest

    def _bound(self, name: str) -> None:
        self.observer.observed(BoundReached(name, self.server.name))

    def _dropped(self, why: str) -> None:
        self.observer.observed(MessageDropped(self.server.name, why))
