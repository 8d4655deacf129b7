"""
Keeps one link for one session: makes the handshake, and makes it again when the link was lost.

Any number of callers wait for one attempt (single flight). After a loss the first attempt is made
at once; while links keep dying young, attempts are spaced by an exponential back-off with jitter.

A link whose session the server forgot is retired: the next is made while calls still run on it.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.guard.limits import Limits
from gateway.links.backoff import backOff, jittered
from gateway.links.interfaces import Hello, ILink, IServer, LinkFailed
from gateway.observe.observer import (
    BoundReached,
    IObserver,
    LinkLost,
    LinkOpened,
    MessageDropped,
)
from gateway.relay.hearing import NOBODY, Hearing, IKeptListener
from gateway.wire.context import CallContext
from gateway.wire.refusals import Reason

__all__ = ["LinkKeeper"]

_log = Logger()

_CREDENTIALS_REFUSED = (401, 403)
"""The HTTP statuses by which a server refuses who asks, not to work."""


@define(eq=False)
class LinkKeeper:
    """
    One session's link to one server.

    Life: nothing until `acquire` → a link → `lost` or `retire` → nothing until the next `acquire`
    → … → `close`. Whoever made the keeper closes it; it closes its links.

    listener: hears the links, and greets them; nobody does when the keeper is closed.
    ownStreams: what `IServer.link` is asked for.
    """

    server: IServer
    listener: IKeptListener
    clock: IReactorTime
    limits: Limits
    observer: IObserver
    ownStreams: bool = False
    link: ILink | None = None
    hello: Hello | None = None
    closed: bool = False
    _greeting: ILink | None = None
    _attempt: Deferred[ILink] | None = None
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

    def _gaveUp(self, waiter: Deferred[ILink]) -> None:
        self._waiters.pop(waiter, None)

    # An attempt. Callbacks, for behind a shared server there is a link at once.

    def _start(self, context: CallContext) -> None:
        hello = self.hello
        if hello is None:
            self._fire(LinkFailed(Reason.BAD_ANSWER, "there was no handshake yet"))
            return
        hearing = Hearing(self)
        asked = hello, hearing, context, self.ownStreams
        wait = self._retryAt - self.clock.seconds()
        if wait > 0:
            waited: Deferred[None] = deferLater(self.clock, wait)
            attempt = waited.addCallback(lambda _: self.server.link(*asked))
        else:
            attempt = self.server.link(*asked)
        self._attempt = attempt
        made = attempt.addCallbacks(self._made, self._refused, callbackArgs=(hearing, context))
        made.addBoth(self._done, context)

    def _refused(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, LinkFailed):
            # A server that refuses one client's credentials is well; others need not wait. Nor
            # does it help to wait where attempts fail at once for as long as they should.
            if error.retryAfter:
                self._retryAt = 0.0
            elif error.status not in _CREDENTIALS_REFUSED:
                self._backOff()
        return failure

    def _made(self, link: ILink, hearing: Hearing, context: CallContext) -> Deferred[None] | None:
        if self.closed:
            self._closing(link)
            raise LinkFailed(Reason.SHUTTING_DOWN, "the session is over")
        if hearing.failure is not None:
            self._backOff()
            raise hearing.failure
        hearing.link = link
        again, self._opened = self._opened, True
        self._greeting, self._openedAt = link, self.clock.seconds()
        self.observer.observed(LinkOpened(self.server.name))
        try:
            greeting = self.listener.greet(link, again, context)
        except Exception:
            self._notGreeted(link)
            raise
        if greeting is None:
            self._greeted(None, link)
            return None
        return greeting.addCallbacks(
            self._greeted, self._notGreetedAgain, callbackArgs=(link,), errbackArgs=(link,)
        )

    def _greeted(self, _: None, link: ILink) -> None:
        alive, self._greeting = self._greeting is link, None
        if self.closed:
            # The session ended because of what was said.
            self._closing(link)
            raise LinkFailed(Reason.SHUTTING_DOWN, "the session is over")
        if not alive:
            raise LinkFailed(Reason.SERVER_EXITED, "the server went away during its start")
        self.link = link

    def _notGreetedAgain(self, failure: Failure, link: ILink) -> Failure:
        self._notGreeted(link)
        return failure

    def _notGreeted(self, link: ILink) -> None:
        if self._greeting is link:
            self._greeting = None
            self._closing(link)

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
            if waiter.called or (spared and waiter in spared):
                # It gave up while others were told, or is told later.
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
        for link in [one for one in self._retired if not self.listener.isUsed(one)]:
            self._retired.remove(link)
            self._closing(link)

    def dropped(self, why: str) -> None:
        """A message went nowhere."""
        self.observer.observed(MessageDropped(self.server.name, why))

    def _closing(self, link: ILink) -> None:
        closing = link.close()
        self._closings.append(closing)
        closing.addBoth(self._closed, closing)

    def _closed(self, result: object, closing: Deferred[None]) -> None:
        self._closings.remove(closing)
        if isinstance(result, Failure):
            _log.failure("while a link closed", result)

    def close(self) -> Deferred[None]:
        """End the link and the attempt. Fires when nothing of them is left."""
        self.closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        links, self._retired = self._retired, []
        if self.link is not None:
            links.append(self.link)
            self.link = None
        self.listener = NOBODY
        for link in links:
            self._closing(link)
        if not self._closings:
            return succeed(None)
        return DeferredList([_outcome(one) for one in self._closings]).addCallback(lambda _: None)


def _outcome(deferred: Deferred[None]) -> Deferred[None]:
    """Fires when another Deferred does, without taking its result away."""
    fires: Deferred[None] = Deferred()

    def passes(result: None) -> None:
        fires.callback(None)
        return result

    deferred.addBoth(passes)
    return fires
