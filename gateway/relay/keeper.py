"""
Keeps one link for one session: makes the handshake, and makes it again when the link was lost.

Any number of callers wait for one attempt (single flight). After a loss the first attempt is made
at once; while links keep dying young, attempts are spaced by an exponential back-off with jitter.

A link whose session the server forgot is retired: the next is made while calls still run on it.
Each link has a listener of its own, which knows whom it hears, so that nothing a retired one says
is taken for the word of the one in use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.backoff import backOff, jittered
from gateway.links.interfaces import (
    EventMark,
    Hello,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    Settled,
)
from gateway.observe.observer import (
    BoundReached,
    IObserver,
    LinkLost,
    LinkOpened,
    MessageDropped,
)
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, Message
from gateway.wire.refusals import Reason

__all__ = ["IKeptListener", "LinkKeeper"]

_log = Logger()

_CREDENTIALS_REFUSED = (401, 403)
"""The HTTP statuses by which a server refuses who asks, not to work."""


class IKeptListener(ILinkListener):
    """Who hears the links of a keeper; `lost` is of the one in use, or being greeted."""

    def retiredLost(link: ILink, reason: Reason, message: str) -> None:
        """A retired link ended; what is pending on it may have run."""


@implementer(ILinkListener)
@define(eq=False)
class _Hearing:
    """
    What hears one link, for the keeper's listener.

    link: the one it hears; None until the keeper has it. failure: why it never will.
    """

    keeper: LinkKeeper
    listener: IKeptListener
    link: ILink | None = None
    failure: LinkFailed | None = None

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if message.kind is REQUEST and self.keeper.isRetired(self.link):
            # Its session is lost, so no answer could be delivered.
            self.keeper.dropped("session_lost")
        else:
            self.listener.received(message, origin, mark)

    def marked(self, origin: object | None, mark: EventMark) -> None:
        self.listener.marked(origin, mark)

    def ended(self, origin: object) -> None:
        self.listener.ended(origin)

    def accepted(self, call: object) -> None:
        self.listener.accepted(call)

    def settled(self, call: object, settled: Settled) -> None:
        self.listener.settled(call, settled)

    def drained(self) -> None:
        self.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        if self.link is None:
            self.failure = LinkFailed(reason, message)
        elif self.keeper.lost(self.link, reason):
            self.listener.lost(reason, message)
        else:
            self.listener.retiredLost(self.link, reason, message)


@define(eq=False)
class LinkKeeper:
    """
    One session's link to one server.

    Life: nothing until `acquire` → a link → `lost` or `retire` → nothing until the next `acquire`
    → … → `close`. Whoever made the keeper closes it; it closes its links.

    greet: awaited with each new link before anybody else gets it, whether it is a replacement,
        and the context of whoever needed it; what it raises fails the attempt and closes the link.
    isUsed: whether anything is still awaited on a link that was retired.
    ownStreams: what `IServer.link` is asked for.
    """

    server: IServer
    listener: IKeptListener
    clock: IReactorTime
    limits: Limits
    observer: IObserver
    greet: Callable[[ILink, bool, CallContext], Awaitable[None]]
    isUsed: Callable[[ILink], bool]
    ownStreams: bool = False
    link: ILink | None = None
    hello: Hello | None = None
    closed: bool = False
    _greeting: ILink | None = None
    _attempt: Deferred[None] | None = None
    _waiters: dict[Deferred[ILink], CallContext] = field(factory=dict)
    _opened: bool = False
    _openedAt: float = 0.0
    _retryAt: float = 0.0
    _youngDeaths: int = 0
    _retired: list[ILink] = field(factory=list)
    _closings: list[Deferred[None]] = field(factory=list)

    def acquire(self, context: CallContext) -> Deferred[ILink]:
        """
        The link, or a new one, whose handshake is made in this context.

        Fails with LinkFailed, or with what `greet` raised. Cancelling gives up waiting, not
        the attempt.
        """
        if self.link is not None:
            return succeed(self.link)
        waiter: Deferred[ILink] = Deferred(self._gaveUp)
        self._waiters[waiter] = context
        if self.closed:
            self._fire(LinkFailed(Reason.SHUTTING_DOWN, "the session is over"))
        elif self._attempt is None:
            self._start(context)
        return waiter

    def _start(self, context: CallContext) -> None:
        attempt = Deferred.fromCoroutine(self._make(context))
        self._attempt = attempt
        attempt.addBoth(self._done, context)

    def _gaveUp(self, waiter: Deferred[ILink]) -> None:
        self._waiters.pop(waiter, None)

    async def _make(self, context: CallContext) -> None:
        hello = self.hello
        if hello is None:
            raise LinkFailed(Reason.BAD_ANSWER, "there was no handshake yet")
        wait = self._retryAt - self.clock.seconds()
        if wait > 0:
            await deferLater(self.clock, wait)
        hearing = _Hearing(self, self.listener)
        try:
            link = await self.server.link(hello, hearing, context, self.ownStreams)
        except LinkFailed as error:
            # A server that refuses one client's credentials is well; others need not wait. Nor
            # does it help to wait where attempts fail at once for as long as they should.
            if error.retryAfter:
                self._retryAt = 0.0
            elif error.status not in _CREDENTIALS_REFUSED:
                self._backOff()
            raise
        if self.closed:
            await link.close()
            raise LinkFailed(Reason.SHUTTING_DOWN, "the session is over")
        if hearing.failure is not None:
            self._backOff()
            raise hearing.failure
        hearing.link = link
        again, self._opened = self._opened, True
        self._greeting, self._openedAt = link, self.clock.seconds()
        self.observer.observed(LinkOpened(self.server.name))
        try:
            await self.greet(link, again, context)
        except BaseException:
            if self._greeting is link:
                self._closing(link)
            raise
        finally:
            alive, self._greeting = self._greeting is link, None
        if not alive:
            raise LinkFailed(Reason.SERVER_EXITED, "the server went away during its start")
        self.link = link

    def _done(self, result: object, context: CallContext) -> None:
        self._attempt = None
        if isinstance(result, Failure):
            why = result.value
            if why is None or isinstance(why, CancelledError):
                why = LinkFailed(Reason.SHUTTING_DOWN, "the session is over")
            others: dict[Deferred[ILink], CallContext] = {}
            if isinstance(why, LinkFailed) and why.status in _CREDENTIALS_REFUSED:
                # Others wait, too, and theirs may be better.
                others = {
                    waiter: theirs
                    for waiter, theirs in self._waiters.items()
                    if theirs.headers != context.headers
                }
            self._fire(why, others)
        elif self.link is not None:
            self._fire(self.link)

    def _fire(
        self,
        result: ILink | BaseException,
        spared: dict[Deferred[ILink], CallContext] | None = None,
    ) -> None:
        """Tell the waiters; those spared wait for an attempt with the context of the first."""
        waiters, self._waiters = self._waiters, spared or {}
        if spared:
            self._start(next(iter(spared.values())))
        for waiter in waiters:
            if spared and waiter in spared:
                continue
            if isinstance(result, BaseException):
                waiter.errback(result)
            else:
                waiter.callback(result)

    def lost(self, link: ILink, reason: Reason) -> bool:
        """A link is gone by itself. Returns whether it was the one in use, or being greeted."""
        if link is self._greeting:
            self._greeting = None
        elif link is self.link:
            self.link = None
        else:
            if link in self._retired:
                self._retired.remove(link)
            return False
        self.observer.observed(LinkLost(self.server.name, reason.value))
        if self.clock.seconds() - self._openedAt >= self.limits.respawn_last:
            self._youngDeaths = 0
        self._backOff()
        return True

    def _backOff(self) -> None:
        delay = 0.0
        if self._youngDeaths:
            delay = backOff(self.limits, self._youngDeaths)
            reached = "respawn_last" if delay == self.limits.respawn_last else "respawn_first"
            self.observer.observed(BoundReached(reached, self.server.name))
            delay = jittered(delay)
        self._youngDeaths += 1
        self._retryAt = self.clock.seconds() + delay

    def retire(self) -> None:
        """
        Have the next `acquire` make another link: the server forgot this one's session.

        What is still answered on it may come in; `tidy` closes it when that is over, at the
        latest the next `retire`, or the end of the keeper.
        """
        self.tidy()
        if self.link is not None:
            self.observer.observed(LinkLost(self.server.name, Reason.SERVER_EXITED.value))
            self._retired.append(self.link)
            self.link = None

    def rest(self) -> None:
        """Close the link, for nobody needs it now; the next `acquire` makes another."""
        link, self.link = self.link, None
        if link is not None:
            self._youngDeaths, self._retryAt = 0, 0.0
            self._closing(link)

    def isRetired(self, link: ILink | None) -> bool:
        """Whether a link was retired, and not closed yet."""
        return link in self._retired

    @property
    def retired(self) -> bool:
        """Whether there are links that were retired, and not closed yet."""
        return bool(self._retired)

    def tidy(self) -> None:
        """Close the retired links that are not used any more."""
        for link in [one for one in self._retired if not self.isUsed(one)]:
            self._retired.remove(link)
            self._closing(link)

    def dropped(self, why: str) -> None:
        """A message went nowhere."""
        self.observer.observed(MessageDropped(self.server.name, why))

    def _closing(self, link: ILink) -> None:
        closing = link.close()
        self._closings.append(closing)

        def closed(result: object) -> None:
            self._closings.remove(closing)
            if isinstance(result, Failure):
                _log.failure("while a link closed", result)

        closing.addBoth(closed)

    async def close(self) -> None:
        """End the link and the attempt. Returns when nothing of them is left."""
        self.closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        links, self._retired = self._retired, []
        if self.link is not None:
            links.append(self.link)
            self.link = None
        for link in links:
            self._closing(link)
        for closing in list(self._closings):
            await _outcome(closing)


def _outcome(deferred: Deferred[None]) -> Deferred[None]:
    """Fires when another Deferred does, without taking its result away."""
    fires: Deferred[None] = Deferred()

    def passes(result: None) -> None:
        fires.callback(None)
        return result

    deferred.addBoth(passes)
    return fires
