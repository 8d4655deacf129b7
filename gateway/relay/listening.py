"""Who listens to the legacy sessions of a pool, and the sessions that are kept alive for it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.guard.limits import Limits
from gateway.links.backoff import backOff, jittered
from gateway.links.interfaces import LinkFailed
from gateway.relay.callers import Caller, Callers
from gateway.relay.listens import BadFilter, Filter, Listens, filterOf
from gateway.relay.pooled import Pooled
from gateway.relay.replies import Replies, Reply
from gateway.relay.sender import SessionOver
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason, callFailed

__all__ = ["Listening"]

_log = Logger()


class _Pool(Protocol):
    """The pool, as its listeners see it."""

    replies: Replies

    def callerOf(self, reply: Reply) -> Caller:
        """Who asks."""

    def answer(self, reply: Reply, message: Message) -> None:
        """Answer a request."""

    def refuse(self, reply: Reply, code: int, why: str) -> None:
        """Answer a request with an error."""

    def fail(self, reply: Reply, reason: Reason, why: str) -> None:
        """Fail a request."""

    def dropped(self, why: str) -> None:
        """A message reached nobody."""

    def bound(self, name: str) -> None:
        """A bound was reached."""

    def arm(self, when: float) -> None:
        """Look at `when` for what nobody used."""


@define(eq=False)
class Listening:
    """
    Every `subscriptions/listen` of a pool, by whose it is.

    While somebody listens, one session of the caller's is its audience's home: it does not end for
    being idle, and its link is made again when it is lost.
    """

    pool: _Pool
    callers: Callers
    limits: Limits
    clock: IReactorTime
    _replies: dict[Reply, Listens] = field(factory=dict, init=False)
    """Those that are not over, acknowledged or not."""
    _audiences: dict[Hashable, Listens] = field(factory=dict, init=False)
    _reviving: dict[Listens, IDelayedCall | None] = field(factory=dict, init=False)
    """Whose home is being brought back, and when it is tried again."""
    _stopped: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self._replies)

    def audienceOf(self, who: Hashable) -> Listens:
        """Who listens to the sessions of a caller."""
        audience = self._audiences.get(who)
        if audience is None:
            pool = self.pool
            audience = Listens(who, pool.replies, self.limits, pool.dropped, pool.bound)
            self._audiences[who] = audience
        return audience

    def forget(self, audience: Listens) -> None:
        """An audience may be one of nothing."""
        if audience.home is not None or self._hasListeners(audience):
            return
        if not self.callers.has(audience):
            self._audiences.pop(audience.who, None)

    def _hasListeners(self, audience: Listens) -> bool:
        return any(one is audience for one in self._replies.values())

    # From the client.

    def listen(self, reply: Reply) -> None:
        """A request to listen came."""
        try:
            wanted = filterOf(reply.message)
        except BadFilter as error:
            self.pool.refuse(reply, -32602, f"Invalid params: {error}")
            return
        full = self._full(reply)
        if full is not None:
            self.pool.fail(reply, full, "too many streams listen to the server")
            return
        caller = self.pool.callerOf(reply)
        audience = caller.audience
        pooled = audience.home or self.callers.forListening(caller)
        if pooled is None:
            why = "there is no room for a session with the server"
            self.pool.fail(reply, Reason.OVERLOADED, why)
            self.forget(audience)
            return
        audience.home = pooled
        self._replies[reply] = audience
        acquired = pooled.acquire(reply.context)
        acquired.addCallbacks(
            # Nothing is said from within the request.
            lambda _: self.clock.callLater(0, self._start, reply, audience, wanted, pooled),
            lambda failure: self._notStarted(reply, audience, pooled, failure),
        )
        acquired.addErrback(lambda failure: _log.failure("while a listen began", failure))

    def _full(self, reply: Reply) -> Reason | None:
        """Why there is no room for one more stream; None where there is."""
        limits, principal = self.limits, reply.context.principal
        if len(self._replies) >= limits.max_listens:
            self.pool.bound("max_listens")
            return Reason.OVERLOADED
        his = sum(one.context.principal == principal for one in self._replies)
        if his >= limits.max_listens_per_principal:
            self.pool.bound("max_listens_per_principal")
            return Reason.RATE_LIMITED
        return None

    def _start(self, reply: Reply, audience: Listens, wanted: Filter, pooled: Pooled) -> None:
        if self._replies.get(reply) is not audience:
            return
        if audience.home is pooled and pooled.isOpen:
            audience.start(reply, wanted, pooled)
            return
        # Lost again within the turn.
        self._over(reply, audience)
        self.pool.fail(reply, Reason.SERVER_EXITED, "the server went away")

    def _notStarted(
        self, reply: Reply, audience: Listens, pooled: Pooled, failure: Failure
    ) -> None:
        error = failure.value
        if isinstance(error, SessionOver):
            pooled.relay.over()
        elif isinstance(error, LinkFailed):
            self.callers.refused(pooled, error)
        if self._replies.get(reply) is not audience:
            return
        self._over(reply, audience)
        if isinstance(error, SessionOver):
            # Each time one session less is there to be lost, and a new one has nothing to lose.
            self.listen(reply)
            return
        if not isinstance(error, LinkFailed):
            _log.failure("a handshake broke", failure)
            error = LinkFailed(Reason.BAD_ANSWER, "the handshake with the server broke")
        failed = callFailed(reply.id, error.reason, error.message, error.retryAfter)
        self.pool.answer(reply, failed)

    def gone(self, reply: Reply) -> None:
        """The client closed the stream."""
        audience = self._replies.get(reply)
        if audience is not None:
            audience.end(reply)
            self._over(reply, audience)

    def stop(self) -> None:
        """End every stream in order."""
        self._stopped = True
        for timer in self._reviving.values():
            if timer is not None:
                timer.cancel()
        self._reviving.clear()
        replies, self._replies = self._replies, {}
        for reply, audience in replies.items():
            if not audience.finish(reply):
                why = "the gateway is shutting down"
                self.pool.fail(reply, Reason.SHUTTING_DOWN, why)
        for audience in self._audiences.values():
            audience.home = None
        self._audiences.clear()

    def _over(self, reply: Reply, audience: Listens) -> None:
        """A stream is over: no session is kept for an audience of nobody."""
        del self._replies[reply]
        if self._hasListeners(audience):
            return
        home, audience.home = audience.home, None
        timer = self._reviving.pop(audience, None)
        if timer is not None:
            timer.cancel()
        if home is not None:
            self.callers.unused(home)
        self.forget(audience)

    # From the sessions.

    def linkLost(self, pooled: Pooled) -> None:
        """A session's link is gone: who listens to it needs another."""
        for audience in self._audiences.values():
            if audience.home is pooled and audience.wanted:
                self._revive(audience)

    def sessionEnded(self, pooled: Pooled) -> None:
        """A session is over: who listens to it needs another."""
        for audience in self._audiences.values():
            if audience.home is pooled:
                audience.home = None
                if audience.wanted:
                    self._revive(audience)

    def _revive(self, audience: Listens) -> None:
        if not self._stopped and audience not in self._reviving:
            # Not from within the loss: the relay is not done with it.
            self._reviving[audience] = self.clock.callLater(0, self._acquire, audience)

    def _acquire(self, audience: Listens) -> None:
        """Bring an audience's home back, or make another."""
        self._reviving[audience] = None
        if not audience.wanted:
            del self._reviving[audience]
            return
        reply = audience.newest
        replaced = audience.home is None
        pooled = audience.home or self.callers.forListening(self.pool.callerOf(reply))
        if pooled is None:
            del self._reviving[audience]
            self._finish(audience, list(audience.streams))
            return
        audience.home = pooled
        acquired = pooled.acquire(reply.context)
        acquired.addCallbacks(
            lambda _: self._revived(audience, pooled, replaced),
            lambda failure: self._notRevived(audience, pooled, failure),
        )
        acquired.addErrback(lambda failure: _log.failure("while a session came back", failure))

    def _revived(self, audience: Listens, pooled: Pooled, replaced: bool) -> None:
        self._reviving.pop(audience, None)
        if audience.home is pooled and not self._stopped:
            self._finish(audience, audience.unhonoured(pooled))
            audience.recovered(pooled, replaced=replaced)

    def _finish(self, audience: Listens, replies: list[Reply]) -> None:
        """End streams in order: what they were promised cannot be kept."""
        for reply in replies:
            audience.finish(reply)
            self._over(reply, audience)

    def _notRevived(self, audience: Listens, pooled: Pooled, failure: Failure) -> None:
        self._reviving.pop(audience, None)
        error = failure.value
        if isinstance(error, SessionOver):
            # Another server: the end of this session makes another.
            pooled.relay.over()
        if audience.home is not pooled:
            # It ended while it was waited for.
            if audience.wanted:
                self._revive(audience)
            return
        if not isinstance(error, LinkFailed):
            _log.failure("a handshake broke", failure)
        if audience.wanted and not self._stopped:
            audience.attempts += 1
            delay = jittered(backOff(self.limits, audience.attempts))
            if isinstance(error, LinkFailed):
                delay = max(delay, error.retryAfter)
            self._reviving[audience] = self.clock.callLater(delay, self._acquire, audience)
