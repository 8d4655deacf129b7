"""
The shared link: drives the pure Sharing and does what it asks.

What a session hears because another one said something it hears in a turn of its own: no listener
is called from within what a session calls. What was said first is heard first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.interfaces import (
    EventMark,
    ILink,
    ILinkListener,
    LinkFailed,
    Outcome,
    Reason,
    Settled,
)
from gateway.observe.observer import BoundReached, IObserver, MessageDropped
from gateway.servers.entries import (
    Deliver,
    Dropped,
    Effect,
    Entry,
    Forgotten,
    Member,
    Reached,
    Send,
)
from gateway.servers.shared_link import SharedLink
from gateway.servers.sharing import Sharing
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, notification

__all__ = ["Hub", "HubParts"]

_T = TypeVar("_T")

_log = Logger()

_BUSY = Settled(Outcome.NOT_SENT, Reason.OVERLOADED, "the server does not keep up")


@frozen
class HubParts:
    """
    What the hubs of one server share.

    name: the server's. context: for what the gateway says in its own name. timeout: seconds a
    request may take. follows: whether the link tells that a note was accepted, as over HTTP.
    forget: told when nobody can join a hub any more. unused: told when nobody is on it any more.
    """

    name: str
    context: CallContext
    timeout: float
    follows: bool
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    forget: Callable[[Hub], None]
    unused: Callable[[Hub], None] = lambda hub: None


class _Note(msgspec.Struct, frozen=True, eq=False):
    """A notification of a session on its way to an HTTP server."""

    link: SharedLink
    call: object


class _Settlement(msgspec.Struct, frozen=True):
    """A session is to hear that a call or note ended without an answer; accepted: with None."""

    link: SharedLink
    call: object
    settled: Settled | None


@implementer(ILinkListener)
@define(eq=False, repr=False)
class Hub:
    """
    The shared link and who is on it: hears the server; the sessions' listeners hear it.

    Life: made for a handshake → `greet` → `join`, `send`, … → over: the link was lost, or its
    session was and nothing runs on it any more.

    answers: what `initialize` gives the sessions, by the revisions they ask for, of which there
    are few; None for any other.
    """

    parts: HubParts
    link: ILink = field(init=False)
    core: Sharing = field(init=False)
    over: bool = field(default=False, init=False)
    retired: bool = field(default=False, init=False)
    answers: dict[str | None, Message] = field(factory=dict, init=False)
    _greeting: Deferred[None] | None = field(default=None, init=False)
    _news: deque[Deliver | _Settlement] = field(factory=deque, init=False)
    _telling: bool = field(default=False, init=False)
    _turn: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        parts = self.parts
        self.core = Sharing(parts.context, parts.limits, parts.timeout)

    def greet(self, link: ILink) -> Deferred[None]:
        """
        The handshake is made: say so to the server.

        Fires when it took that, at the latest after `queue_wait`. Fails with LinkFailed.
        """
        self.link = link
        said = notification("notifications/initialized")
        if not link.send(said, self if self.parts.follows else None, self.parts.context):
            self._dropped("undeliverable")
            return succeed(None)
        if not self.parts.follows:
            return succeed(None)
        greeting: Deferred[None] = Deferred()
        self._greeting = greeting
        timer = self.parts.clock.callLater(self.parts.limits.queue_wait, self._greeted, True)

        def done(result: _T) -> _T:
            self._greeting = None
            if timer.active():
                timer.cancel()
            return result

        return greeting.addBoth(done)

    def _greeted(self, late: bool = False) -> None:
        greeting, self._greeting = self._greeting, None
        if late:
            self.parts.observer.observed(BoundReached("queue_wait", self.parts.name))
        if greeting is not None:
            greeting.callback(None)

    def join(self, answer: Message, listener: ILinkListener) -> SharedLink:
        """A link for one more session; answer: what `initialize` gave it."""
        shared = SharedLink(answer, listener, self)
        shared.member = self.core.join(shared)
        return shared

    # From the sessions.

    def send(
        self, member: Member, message: Message, call: object | None, context: CallContext
    ) -> bool:
        """A session says something. False: the queue is full."""
        if message.kind is Kind.REQUEST:
            effects = self.core.request(member, message, call, context, self._now())
            return self._do(effects, member.calls.get(call), soon=True)
        note = None if call is None else _Note(_linkOf(member), call)
        effects = []
        if message.kind is Kind.RESPONSE:
            # It was asked nothing.
            effects.append(Dropped("stray_response"))
        else:
            effects = self.core.notification(member, message, context)
        for effect in effects:
            if type(effect) is Send:
                return self._sendNote(effect, note)
        self._do(effects)
        if note is not None:
            # Followed like one that was sent.
            self._news.append(_Settlement(note.link, note.call, None))
            self._tellSoon()
        return True

    def _sendNote(self, effect: Send, note: _Note | None) -> bool:
        if not self.link.send(effect.message, note, effect.context):
            return False
        if effect.stops is not None:
            effect.stops.cancelled = True
        return True

    def gaveUp(self, member: Member, call: object) -> None:
        """A session waits no longer for a call."""
        self._do(self.core.gaveUp(member, call, self._now()), soon=True)
        self._retire()

    def left(self, member: Member) -> None:
        """A session left."""
        self._do(self.core.left(member, self._now()), soon=True)
        # What it was still to hear it hears no more, and it need not refer to its link, which
        # refers to it.
        member.host = None
        if self.retired:
            self._retire()
        if not (self.core.members or self.over):
            self.parts.unused(self)

    # ILinkListener, of the shared link.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if self.over:
            return
        entry = origin if isinstance(origin, Entry) else None
        self._do(self.core.fromServer(message, entry, self._now()))
        if self.retired:
            self._retire()

    def marked(self, origin: object | None, mark: EventMark) -> None:
        """What is resumed is resumed by the link."""

    def ended(self, origin: object) -> None:
        """No stream of the link's was opened here."""

    def accepted(self, call: object) -> None:
        if call is self:
            self._greeted()
        elif isinstance(call, _Note) and not self.over:
            self._news.append(_Settlement(call.link, call.call, None))
            self._tell()

    def settled(self, call: object, settled: Settled) -> None:
        if self.over:
            return
        if settled.status == 404 and not self.link.sessionless:
            self._stale(call)
        if call is self:
            self._greeted()
        elif isinstance(call, _Note):
            self._news.append(_Settlement(call.link, call.call, settled))
        elif isinstance(call, Entry):
            if call.member is not None:
                self._news.append(_Settlement(_linkOf(call.member), call.call, settled))
            self._do(self.core.settled(call, self._now()))
        self._tell()
        self._retire()

    def drained(self) -> None:
        if self.over:
            return
        self._do(self.core.drained(self._now()))
        for link in self._links():
            if link.refused and not link.over:
                link.refused = False
                link.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        if self.over:
            return
        for news in list(self._news):
            # Who is not told `lost` hears what was left to hear.
            link = _linkFor(news)
            if link is not None and link.doomed:
                self._tellOne(news)
        self._news.clear()
        self.over = True
        self.parts.forget(self)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        greeting, self._greeting = self._greeting, None
        if greeting is not None:
            greeting.errback(LinkFailed(reason, message))
        links = self._links()
        for link in links:
            link.over = True
        settled = Settled(Outcome.MAYBE_RAN, reason, message)
        for link in links:
            if not link.doomed:
                link.listener.lost(reason, message)
                continue
            # Its user has another link, and would take `lost` to be about that.
            for call in list(link.member.calls):
                link.listener.settled(call, settled)

    def rest(self) -> None:
        """End the link, for nobody needs it now."""
        if not self.over:
            self.link.close().addErrback(lambda failure: _log.failure("a link closed", failure))
            self.lost(Reason.SHUTTING_DOWN, "nobody used the server")

    # A session that the server forgot.

    def _stale(self, call: object) -> None:
        """Nobody joins any more; who is told of it by this call's end makes another link."""
        self.retired = True
        self.parts.forget(self)
        if isinstance(call, _Note):
            call.link.doomed = True
        elif isinstance(call, Entry) and call.member is not None:
            _linkOf(call.member).doomed = True
        elif call is self and self._greeting is not None:
            self.lost(Reason.SERVER_EXITED, "the server lost its session")

    def _retire(self) -> None:
        """End what nothing runs on any more, if the server forgot the session."""
        if self.retired and not self.over and not self.core.busy and not self._news:
            self.link.close().addErrback(lambda failure: _log.failure("a link closed", failure))
            self.lost(Reason.SERVER_EXITED, "the server lost its session")

    # Inside.

    def _now(self) -> float:
        return self.parts.clock.seconds()

    def _links(self) -> list[SharedLink]:
        return [_linkOf(member) for member in self.core.members]

    def _do(self, effects: list[Effect], asked: Entry | None = None, *, soon: bool = False) -> bool:
        """
        Do all. soon: the sessions hear of it in a turn of their own.

        Returns: False if the queue is full for what was asked just now.
        """
        taken = True
        for effect in effects:
            if self.over:
                break
            # Not by isinstance: see `Relay.do`.
            if type(effect) is Deliver:
                self._news.append(effect)
            elif type(effect) is Send and effect.entry is not None:
                entry, member = effect.entry, effect.entry.member
                full = entry.own and self.core.full
                if full or not self.link.send(effect.message, entry, effect.context):
                    # They are done with the rest.
                    effects.extend(self.core.notTaken(entry))
                    if entry is asked:
                        taken = False
                    elif member is not None:
                        self._news.append(_Settlement(_linkOf(member), entry.call, _BUSY))
            elif type(effect) is Send:
                if not self._sendNote(effect, None):
                    self._dropped("undeliverable")
            elif isinstance(effect, Forgotten):
                self.link.cancel(effect.entry)
            elif isinstance(effect, Reached):
                self.parts.observer.observed(BoundReached(effect.limit, self.parts.name))
            elif isinstance(effect, Dropped):
                self._dropped(effect.why)
        if self._news:
            if soon:
                self._tellSoon()
            else:
                self._tell()
        return taken

    def _tellSoon(self) -> None:
        if self._news and self._turn is None and not self.over:
            self._turn = self.parts.clock.callLater(0, self._turned)

    def _turned(self) -> None:
        self._turn = None
        self._tell()
        self._retire()

    def _tell(self) -> None:
        """Let the sessions hear what there is for them."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._news:
                self._tellOne(self._news.popleft())
        finally:
            self._telling = False

    def _tellOne(self, news: Deliver | _Settlement) -> None:
        link = _linkFor(news)
        if link is None or link.over:
            return
        if isinstance(news, Deliver):
            call = None if self.link.multiplexed else news.call
            link.listener.received(news.message, call, None)
        elif news.settled is None:
            link.listener.accepted(news.call)
        else:
            link.listener.settled(news.call, news.settled)

    def _dropped(self, why: str) -> None:
        self.parts.observer.observed(MessageDropped(self.parts.name, why))


def _linkOf(member: Member) -> SharedLink:
    return cast(SharedLink, member.host)


def _linkFor(news: Deliver | _Settlement) -> SharedLink | None:
    """Whose news it is; None where that session left."""
    if isinstance(news, Deliver):
        return cast("SharedLink | None", news.member.host)
    return news.link
