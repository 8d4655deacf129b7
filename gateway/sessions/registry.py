"""
The one session registry of a gateway, for all proxies and servers.

A Session is what a client holds. Life: `create` puts it in the registry and in the store →
`changed` and `opened` after its handshake → used by requests, open streams and running calls →
`end`ed by its client, by its deadlines or by whoever lost its server. The end happens once and is
told to everybody who asked with `whenEnded`; whoever opened a stream or a link closes it then.

Deadlines, on a monotonic clock: never used, idle (nothing holds it), absolute (running calls
finish first, but no new request finds it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.guard.limits import Limits
from gateway.guard.load import MEMORY, Account, Load
from gateway.observe.observer import (
    BoundReached,
    IObserver,
    SessionEnded,
    SessionMissed,
    SessionOpened,
)
from gateway.sessions.ids import looksLikeSessionID, newSessionID, tagOf
from gateway.sessions.record import SessionRecord
from gateway.sessions.store import Gone, ISessionStore, Local, Remote
from gateway.wire.context import Principal

__all__ = ["SHED", "AtCapacity", "Session", "SessionRegistry"]

_FINISHES = ("absolute", "replaced")
"""The ends for which running calls are waited."""

SWEEP = 1.0
"""Seconds between two looks for sessions whose time is over."""


SHED = 16
"""How many idle sessions are ended at once, at least, where memory is short."""


class AtCapacity(Exception):
    """There is no room for another session."""


@define(eq=False)
class Session:
    """
    A session that is in the registry.

    record: what can be written down of it.
    opening: whether its handshake still runs; then no deadline counts but the handshake's own.
    live: what serves it now (streams and relay); set by the proxy that opened it, None in the end.
    tag: what stands for it in logs.
    retired: whether its server was replaced or removed: what runs may finish, nothing else begins.
    onSweep: called with the time now and then, for what its live part keeps for a while.
    account, total: where its running calls are counted: its principal's, and the gateway's; its
        own where it is in no registry. address: its client's.
    """

    record: SessionRecord
    created: float
    last_used: float
    tag: str
    opening: bool = True
    used: bool = False
    live: object = None
    ended: str = ""
    retired: bool = False
    onSweep: Callable[[float], None] | None = None
    account: Account = field(factory=Account)
    total: Account = field(factory=Account)
    address: str = ""
    _streams: int = 0
    _calls: int = 0
    _whenEnded: list[Callable[[str], None]] = field(factory=list)

    def whenEnded(self, told: Callable[[str], None]) -> None:
        """Call `told(reason)` when the session ends; at once if it has ended."""
        if self.ended:
            told(self.ended)
        else:
            self._whenEnded.append(told)

    def opened(self, now: float) -> None:
        """Its client was told its id; its deadlines count from now."""
        self.opening = False
        self.created = self.last_used = now

    def use(self, now: float) -> None:
        """A request of its client came."""
        self.used = True
        self.last_used = now

    def streamOpened(self, now: float) -> None:
        """An open stream keeps the session from being idle."""
        self._streams += 1
        self.use(now)

    def streamClosed(self, now: float) -> None:
        """A stream of `streamOpened` ended."""
        self._streams -= 1
        self.last_used = now

    def callStarted(self, now: float) -> None:
        """A running call keeps the session from being idle and from its absolute end."""
        self._calls += 1
        self.account.calls += 1
        self.total.calls += 1
        self.used = True
        self.last_used = now

    def callEnded(self, now: float) -> None:
        """A call of `callStarted` ended."""
        self._calls -= 1
        self.account.calls -= 1
        self.total.calls -= 1
        self.last_used = now
        if self.account.queue is not None:
            self.account.serve()

    def overdue(self, now: float, limits: Limits) -> str:
        """
        Why no request may find the session any more: replaced, unused, idle, absolute; else "".
        """
        if self.opening or self.record.transport == "sse":
            # A handshake has a time-out of its own; over HTTP+SSE the session is its stream.
            return ""
        if self.retired:
            return "replaced"
        if now - self.created >= limits.session_absolute:
            return "absolute"
        if not self.used and not self._streams and not self._calls:
            return "unused" if now - self.created >= limits.session_unused else ""
        if self._streams or self._calls:
            return ""
        return "idle" if now - self.last_used >= limits.session_idle else ""

    @property
    def busy(self) -> bool:
        """Whether a call or its handshake runs."""
        return self._calls > 0 or self.opening

    @property
    def running(self) -> int:
        """How many calls run."""
        return self._calls


@define(eq=False)
class SessionRegistry:
    """
    Every session of one gateway.

    clock: measures deadlines; must be monotonic.
    store: hears of changes, and is asked about sessions that are not here.
    load: what the gateway carries; of these sessions alone without.
    """

    clock: IReactorTime
    limits: Limits
    store: ISessionStore
    observer: IObserver
    load: Load = field()
    _sessions: dict[str, Session] = field(factory=dict)
    _sweep: IDelayedCall | None = None
    _log: Logger = field(factory=Logger, init=False)

    @load.default
    def _load(self) -> Load:
        return Load(self.limits, self.observer)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def hasRoom(self, principal: Principal, address: str = "") -> bool:
        """Whether `create` would find room; says so to the observer if not."""
        return self.load.hasRoom(len(self._sessions), principal, address)

    def create(
        self,
        server: str,
        generation: int,
        principal: Principal,
        transport: str,
        address: str = "",
    ) -> Deferred[Session]:
        """
        Make a session under a fresh id.

        address: the client's.

        Fails with AtCapacity, or with StoreRefused when the store did not take it; then nothing
        is left of it.
        """
        if not self.hasRoom(principal, address):
            return fail(AtCapacity())
        now = self.clock.seconds()
        record = SessionRecord(
            id=newSessionID(),
            server=server,
            generation=generation,
            principal=principal,
            transport=transport,
        )
        session = Session(
            record,
            now,
            now,
            tagOf(record.id),
            account=self.load.sessionOpened(principal, address),
            total=self.load.total,
            address=address,
        )
        self._sessions[record.id] = session
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP, self._swept)
        stored = self.store.put(record)
        return stored.addCallbacks(
            self._opened, self._refused, callbackArgs=(session,), errbackArgs=(session,)
        )

    def _opened(self, _: None, session: Session) -> Session:
        self.observer.observed(SessionOpened(session.record.server, session.tag))
        return session

    def _refused(self, failure: Failure, session: Session) -> Failure:
        self._forget(session, "refused")
        return failure

    def find(
        self, id: str, server: str, principal: Principal, *, starts: bool = True
    ) -> Session | None:
        """
        The session under this id, if it is this server's and this principal's and alive.

        starts: whether it is looked for to start something. What belongs to a running call
            finds a session whose absolute time is over, or whose server was replaced, too, for
            running calls finish first.
        """
        session = self._sessions.get(id)
        if session is None:
            return None
        record = session.record
        if record.server != server:
            return None
        if record.principal is not principal and record.principal != principal:
            return None
        if session.ended:
            return None
        overdue = session.overdue(self.clock.seconds(), self.limits)
        if overdue and (starts or overdue not in _FINISHES or not session.running):
            return None
        return session

    def locate(self, id: str, server: str, principal: Principal) -> Deferred[Local | Remote | Gone]:
        """Where a session is that `find` may not know: here, with another process, nowhere."""
        if self.find(id, server, principal) is not None:
            return succeed(Local())
        self.observer.observed(SessionMissed(server))
        if id in self._sessions or not looksLikeSessionID(id):
            return succeed(Gone())
        return cast("Deferred[Local | Remote | Gone]", self.store.locate(id))

    def changed(self, session: Session) -> Deferred[None]:
        """
        Write a session's changed record to the store; one without an id is in no registry, and
        nothing of it is kept. Fails with StoreRefused.
        """
        if session.ended or not session.record.id:
            return succeed(None)
        return self.store.put(session.record)

    def end(self, session: Session, reason: str) -> Deferred[None]:
        """
        End a session: nobody finds it any more, everybody who asked is told.

        Fires when the store has forgotten it. Ending it again does nothing.
        """
        if session.ended:
            return succeed(None)
        self._forget(session, reason)
        self.observer.observed(SessionEnded(session.record.server, session.tag, reason))
        removed = self.store.remove(session.record.id)
        return removed.addErrback(
            lambda failure: self._log.failure("a session record stays in the store", failure)
        )

    def _forget(self, session: Session, reason: str) -> None:
        session.ended = reason
        record = session.record
        if self._sessions.pop(record.id, None) is not None:
            self.load.sessionClosed(session.account, session.address)
        if not self._sessions and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        told, session._whenEnded = session._whenEnded, []
        for tell in told:
            try:
                tell(reason)
            except Exception:
                self._log.failure("while a session ended")
        # Both may refer to the session: what is left of it need not wait for the garbage collector.
        session.live = session.onSweep = None
        # Its calls have ended now, too.
        self.load.forget(record.principal)

    def endIdle(self, part: float) -> int:
        """
        Memory is short: end some of the sessions in which no call runs, the longest unused first.

        part: of those there are, how many; SHED at least.
        Returns: how many.
        """
        idle = [one for one in self._sessions.values() if not (one.running or one.opening)]
        idle.sort(key=lambda one: one.last_used)
        ending = idle[: max(SHED, int(len(idle) * part))]
        for session in ending:
            self.observer.observed(BoundReached(MEMORY, session.record.server))
            self.end(session, "memory")
        return len(ending)

    def _swept(self) -> None:
        self._sweep = self.clock.callLater(SWEEP, self._swept)
        now = self.clock.seconds()
        for session in list(self._sessions.values()):
            if session.onSweep is not None:
                session.onSweep(now)
            reason = session.overdue(now, self.limits)
            # What was retired is ended by whoever retired it.
            if session.retired or (reason == "absolute" and session.running):
                continue
            if reason:
                self.observer.observed(BoundReached("session_" + reason, session.record.server))
                self.end(session, reason)
