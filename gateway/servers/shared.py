"""
A server whose one link is shared by all sessions (`isolation = "shared"`, docs/isolation.md).

It stands before the configured server and asks it for one link, in the gateway's own name; every
session gets a link of its own on that. `gateway.servers.sharing` says what is whose.
"""

from __future__ import annotations

from attrs import define, field
from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.hello import ownHello
from gateway.links.interfaces import (
    Hello,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    Reason,
)
from gateway.observe.observer import IObserver
from gateway.servers.before import Before
from gateway.servers.hub import Hub, HubParts
from gateway.servers.shared_link import SharedLink
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, members, quote, text
from gateway.wire.revisions import LEGACY
from gateway.wire.strictjson import withMember, withoutMember

__all__ = ["SharedLink", "SharedServer"]

_log = Logger()


@implementer(IServer)
@define(eq=False, repr=False)
class SharedServer(Before):
    """
    Gives every session a SharedLink on the one link of another server.

    inner: the configured server; drained with this one.
    The link is made when the first session needs it, in the gateway's own name and with no
    client's header fields, and kept until it is lost, also while no session is on it, but not for
    longer than `idle_stop`.
    """

    inner: IServer
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    _parts: HubParts = field(init=False)
    _hub: Hub | None = field(default=None, init=False)
    _making: Deferred[None] | None = field(default=None, init=False)
    _waiters: dict[Deferred[Hub], None] = field(factory=dict, init=False)
    _draining: bool = field(default=False, init=False)
    _resting: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.inner.settings
        self._parts = HubParts(
            self.inner.name,
            CallContext(self.inner.name),
            settings.timeout,
            isinstance(settings, HTTPSettings),
            self.limits,
            self.clock,
            self.observer,
            self._forget,
            self._unused,
        )

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """See IServer. Never an IHTTPLink: no stream is one session's own."""

        if self._hub is not None:
            return succeed(self._joined(self._hub, hello, listener))
        return self._ready().addCallback(self._joined, hello, listener)

    def _joined(self, hub: Hub, hello: Hello, listener: ILinkListener) -> ILink:
        self._wake()
        return hub.join(self._answerFor(hello, hub), listener)

    def _answerFor(self, hello: Hello, hub: Hub) -> Message:
        """
        The server's answer to `initialize` as one client gets it: in the revision that this client
        asked for, where it is one of ours, and without tasks, which would be everybody's.
        """
        asked = members(hello.params).get("protocolVersion")
        revision = None if asked is None else text(bytes(asked))
        key = revision if revision in LEGACY else None
        answer = hub.answers.get(key)
        if answer is None:
            answer = hub.answers[key] = _answerIn(key, hub.link.answer)
        return answer

    def _ready(self) -> Deferred[Hub]:
        if self._hub is not None:
            return succeed(self._hub)
        waiter: Deferred[Hub] = Deferred(lambda waiter: self._waiters.pop(waiter, None))
        self._waiters[waiter] = None
        if self._making is None:
            # One attempt for all who wait; who leaves gives up nobody else's.
            self._making = Deferred.fromCoroutine(self._make())
            self._making.addBoth(self._made)
        return waiter

    async def _make(self) -> None:
        if self._draining:
            raise _drained()
        hub = Hub(self._parts)
        link = await self.inner.link(ownHello(LEGACY[0]), hub, self._parts.context)
        try:
            await hub.greet(link)
        except BaseException:
            link.close().addErrback(lambda failure: _log.failure("a link closed", failure))
            raise
        if hub.over:
            raise LinkFailed(Reason.SERVER_EXITED, "the server went away during its start")
        self._hub = hub
        self._unused(hub)

    def _made(self, result: object) -> None:
        self._making = None
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if waiter.called:
                # Who waited gave up while the others were told.
                continue
            if self._hub is not None:
                waiter.callback(self._hub)
            elif self._draining:
                waiter.errback(_drained())
            elif isinstance(result, Failure) and not result.check(CancelledError):
                waiter.errback(result)
            else:
                why = "the server went away during its start"
                waiter.errback(LinkFailed(Reason.SERVER_EXITED, why))

    def _forget(self, hub: Hub) -> None:
        """Nobody can join this one any more."""
        if self._hub is hub:
            self._hub = None
            self._wake()

    def _unused(self, hub: Hub) -> None:
        """Nobody is on it: after a while without anybody it ends."""
        idle = self.inner.settings.idle_stop
        if idle is not None and self._hub is hub:
            self._wake()
            self._resting = self.clock.callLater(idle, self._rest, hub)

    def _rest(self, hub: Hub) -> None:
        self._resting = None
        if self._hub is hub and not hub.core.members:
            hub.rest()

    def _wake(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.cancel()

    def drain(self) -> Deferred[None]:
        """See IServer. The sessions that are on the link are told."""
        self._draining = True
        self._wake()
        if self._making is not None:
            self._making.cancel()
        if self._hub is not None:
            self._hub.lost(Reason.SHUTTING_DOWN, "the gateway is shutting down")
        return self.inner.drain()


def _drained() -> LinkFailed:
    return LinkFailed(Reason.SHUTTING_DOWN, "the gateway is shutting down")


def _answerIn(revision: str | None, answer: Message) -> Message:
    """An answer to `initialize` in a revision, or in its own, and without tasks."""
    before = result = bytes(answer.fields.get("result", b"{}"))
    if revision is not None:
        result = withMember(result, "protocolVersion", quote(revision))
    capabilities = members(result).get("capabilities")
    if "tasks" in members(capabilities):
        rest = withoutMember(bytes(capabilities or b"{}"), "tasks")
        result = withMember(result, "capabilities", rest)
    if result == before:
        return answer
    fields = {**answer.fields, "result": Raw(result)}
    return Message(answer.kind, fields, answer.id)
