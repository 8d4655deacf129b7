"""
A server whose one link is shared by all sessions (`isolation = "shared"`).

It stands before the configured server and asks it for one link, in the gateway's own name; every
session gets a link of its own on that. `gateway.servers.sharing` says what is whose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from attrs import define, field, frozen
from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.links.hello import ownHello
from gateway.links.interfaces import (
    EventMark,
    Health,
    Hello,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    Reason,
    Settled,
)
from gateway.observe.observer import IObserver, MessageDropped
from gateway.servers.sharing import Deliver, Dropped, Effect, Entry, Member, Send, Sharing
from gateway.settings import ServerSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, members, notification, quote, text
from gateway.wire.revisions import LEGACY

__all__ = ["SharedLink", "SharedServer"]

_log = Logger()


@frozen(eq=False)
class _Note:
    """A notification of a session on its way to an HTTP server."""

    member: Member
    call: object


@implementer(ILink)
@define(eq=False, repr=False)
class SharedLink:
    """One session's part of the shared link. It ends with `close`, or with the shared one."""

    answer: Message
    listener: ILinkListener
    _hub: _Hub
    member: Member = field(init=False)
    over: bool = field(default=False, init=False)
    refused: bool = field(default=False, init=False)

    @property
    def sessionless(self) -> bool:
        """See ILink."""
        return self._hub.link.sessionless

    @property
    def multiplexed(self) -> bool:
        """See ILink."""
        return self._hub.link.multiplexed

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink."""
        if self.over:
            return False
        taken = self._hub.send(self.member, message, call, context)
        self.refused = self.refused or not taken
        return taken

    def cancel(self, call: object) -> None:
        """See ILink; but the server, which goes on, is told if it was not."""
        if not self.over:
            self._hub.gaveUp(self.member, call)

    def hold(self, origin: object | None) -> None:
        """See ILink: only the stream of a call of its own is ever held."""
        entry = self.member.calls.get(origin)
        if entry is not None and not self.multiplexed:
            self._hub.link.hold(entry)

    def release(self, origin: object | None) -> None:
        """See ILink."""
        entry = self.member.calls.get(origin)
        if entry is not None and not self.multiplexed:
            self._hub.link.release(entry)

    def close(self) -> Deferred[None]:
        """Leave the shared link. Fires at once."""
        if not self.over:
            self.over = True
            self._hub.left(self.member)
        return succeed(None)


@implementer(ILinkListener)
@define(eq=False, repr=False)
class _Hub:
    """The shared link and who is on it. It hears the server; listeners hear it."""

    server: SharedServer
    link: ILink = field(init=False)
    core: Sharing = field(init=False)
    over: bool = field(default=False, init=False)
    retired: bool = field(default=False, init=False)
    _later: dict[int, IDelayedCall] = field(factory=dict, init=False)

    @core.default
    def _core(self) -> Sharing:
        return Sharing(self.server.context)

    def greet(self, link: ILink) -> None:
        """The handshake is done: say so."""
        self.link = link
        if not link.send(notification("notifications/initialized"), self, self.server.context):
            self._dropped("undeliverable")

    def join(self, hello: Hello, listener: ILinkListener) -> SharedLink:
        """A link for one session."""
        shared = SharedLink(_answerFor(hello, self.link.answer), listener, self)
        shared.member = self.core.join(shared)
        return shared

    # From the sessions.

    def send(
        self, member: Member, message: Message, call: object | None, context: CallContext
    ) -> bool:
        """A session says something. False: the queue is full."""
        if message.kind is Kind.REQUEST:
            return self._do(self.core.request(member, message, call, context), soon=True)
        if message.kind is Kind.RESPONSE:
            # It was asked nothing.
            self._dropped("stray_response")
            return self._taken(member, call)
        effects = self.core.notification(member, message, context)
        sends = [effect for effect in effects if isinstance(effect, Send)]
        if not sends:
            self._do(effects)
            return self._taken(member, call)
        note = None if call is None else _Note(member, call)
        return self.link.send(sends[0].message, note, context)

    def _taken(self, member: Member, call: object | None) -> bool:
        """Nothing has to be sent; a note that is followed is told so, as if it had been."""
        if call is not None:
            self._soon(lambda: self.accepted(_Note(member, call)))
        return True

    def gaveUp(self, member: Member, call: object) -> None:
        entry = member.calls.get(call)
        self._do(self.core.gaveUp(member, call))
        if entry is not None and entry.ours not in self.core.entries:
            self.link.cancel(entry)

    def left(self, member: Member) -> None:
        entries = list(member.calls.values())
        self._do(self.core.left(member))
        for entry in entries:
            if entry.ours not in self.core.entries:
                self.link.cancel(entry)
        self._emptied()

    def _emptied(self) -> None:
        """A link whose session the server forgot is closed when nobody is on it."""
        if self.retired and not self.core.members and not self.over:
            self.end()
            self.link.close().addErrback(lambda failure: _log.failure("on closing", failure))

    # ILinkListener, of the shared link.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        self._do(self.core.fromServer(message, origin if isinstance(origin, Entry) else None))

    def marked(self, origin: object | None, mark: EventMark) -> None:
        """Its streams are resumed below."""

    def ended(self, origin: object) -> None:
        """There are no streams of its own."""

    def accepted(self, call: object) -> None:
        if isinstance(call, _Note) and not self._linkOf(call.member).over:
            self._linkOf(call.member).listener.accepted(call.call)

    def settled(self, call: object, settled: Settled) -> None:
        if settled.status == 404 and not self.link.sessionless:
            self.retire()
        if isinstance(call, Entry):
            member = call.member
            effects = self.core.settled(call)
            if member is not None and not self._linkOf(member).over:
                self._linkOf(member).listener.settled(call.call, settled)
            self._do(effects)
        elif isinstance(call, _Note) and not self._linkOf(call.member).over:
            self._linkOf(call.member).listener.settled(call.call, settled)

    def drained(self) -> None:
        for link in self._links():
            if link.refused:
                link.refused = False
                link.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        links = self._links()
        self.end()
        for link in links:
            link.over = True
        for link in links:
            link.listener.lost(reason, message)

    # Inside.

    def retire(self) -> None:
        """Let nobody join any more: the server forgot this session."""
        self.retired = True
        self.server.forget(self)

    def end(self) -> None:
        """Tell nobody anything any more."""
        self.over = True
        self.server.forget(self)
        for later in self._later.values():
            later.cancel()
        self._later.clear()

    def _links(self) -> list[SharedLink]:
        return [self._linkOf(member) for member in self.core.members]

    @staticmethod
    def _linkOf(member: Member) -> SharedLink:
        return cast(SharedLink, member.host)

    def _do(self, effects: list[Effect], soon: bool = False) -> bool:
        """Do all; soon: listeners hear of it later. False: something could not be sent."""
        fine = True
        queue = list(effects)
        while queue and not self.over:
            effect = queue.pop(0)
            if isinstance(effect, Dropped):
                self._dropped(effect.why)
            elif isinstance(effect, Send):
                if self.link.send(effect.message, effect.entry, effect.context):
                    continue
                if effect.entry is None:
                    self._dropped("undeliverable")
                else:
                    fine = False
                    queue += self.core.notTaken(effect.entry)
            elif soon:
                self._soon(lambda effect=effect: self._deliver(effect))  # type: ignore[misc]
            else:
                self._deliver(effect)
        return fine

    def _deliver(self, effect: Deliver) -> None:
        link = self._linkOf(effect.member)
        if not link.over:
            origin = None if link.multiplexed else effect.call
            link.listener.received(effect.message, origin, None)

    def _soon(self, act: Callable[[], None]) -> None:
        """Not from within `send`."""
        number = max(self._later, default=0) + 1

        def due() -> None:
            del self._later[number]
            act()

        self._later[number] = self.server.clock.callLater(0, due)

    def _dropped(self, why: str) -> None:
        self.server.observer.observed(MessageDropped(self.server.name, why))


@implementer(IServer)
@define(eq=False, repr=False)
class SharedServer:
    """
    Gives every session a SharedLink on the one link of another server.

    inner: the configured server; drained with this one.
    The link is made when the first session needs it, in the gateway's own name and with no
    client's header fields, and kept until it is lost.
    """

    inner: IServer
    clock: IReactorTime
    observer: IObserver
    context: CallContext = field(init=False)
    _hub: _Hub | None = field(default=None, init=False)
    _making: Deferred[None] | None = field(default=None, init=False)
    _waiters: list[Deferred[_Hub]] = field(factory=list, init=False)
    _draining: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.context = CallContext(self.inner.name)

    @property
    def name(self) -> str:
        """See IServer."""
        return self.inner.name

    @property
    def settings(self) -> ServerSettings:
        """See IServer."""
        return self.inner.settings

    @property
    def generation(self) -> int:
        """See IServer."""
        return self.inner.generation

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """See IServer. Never an IHTTPLink: no stream is one session's own."""
        return self._ready().addCallback(lambda hub: cast(ILink, hub.join(hello, listener)))

    def _ready(self) -> Deferred[_Hub]:
        if self._hub is not None:
            return succeed(self._hub)
        waiter: Deferred[_Hub] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        if self._making is None:
            # One attempt for all who wait; who leaves gives up nobody else's.
            self._making = Deferred.fromCoroutine(self._make())
            self._making.addBoth(self._made)
        return waiter

    async def _make(self) -> None:
        if self._draining:
            raise LinkFailed(Reason.SHUTTING_DOWN, "the server is being shut down")
        hub = _Hub(self)
        link = await self.inner.link(ownHello(LEGACY[0]), cast(ILinkListener, hub), self.context)
        hub.greet(link)
        self._hub = hub

    def _made(self, result: object) -> None:
        self._making = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if self._hub is not None:
                waiter.callback(self._hub)
            elif isinstance(result, Failure) and not result.check(CancelledError):
                waiter.errback(result)
            else:
                why = "the server went away during its start"
                waiter.errback(LinkFailed(Reason.SERVER_EXITED, why))

    def forget(self, hub: _Hub) -> None:
        """This link is over, or no longer to be joined."""
        if self._hub is hub:
            self._hub = None

    def health(self) -> Health:
        """See IServer."""
        return self.inner.health()

    def drain(self) -> Deferred[None]:
        """See IServer."""
        self._draining = True
        if self._making is not None:
            self._making.cancel()
        if self._hub is not None:
            self._hub.lost(Reason.SHUTTING_DOWN, "the gateway is shutting down")
        return self.inner.drain()


def _answerFor(hello: Hello, answer: Message) -> Message:
    """
    The server's answer to `initialize` as one client gets it: in the revision that client asked
    for, where it is one of ours, and without tasks, which would be everybody's.
    """
    result = members(answer.fields.get("result"))
    asked = members(hello.params).get("protocolVersion")
    if asked is not None and (text(bytes(asked)) or "") in LEGACY:
        result["protocolVersion"] = Raw(bytes(asked))
    capabilities = members(result.get("capabilities"))
    if capabilities.pop("tasks", None) is not None:
        result["capabilities"] = Raw(_object(capabilities))
    return Message(Kind.RESPONSE, {**answer.fields, "result": Raw(_object(result))}, answer.id)


def _object(fields: dict[str, Raw]) -> bytes:
    spelled = (b"%b:%b" % (quote(name), bytes(value)) for name, value in fields.items())
    return b"{%b}" % b",".join(spelled)
