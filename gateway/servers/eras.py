"""
A server of whichever era, for clients of both (docs/eras.md).

It stands before the configured server. A legacy client's link is made so:

 1. `era` says "legacy": by the server. "modern": a BridgedLink. "auto": as follows.
 2. What is known to speak the modern era alone gets a BridgedLink at once.
 3. Everything else is asked for `initialize`, as if there were no other era. Where that works,
    nothing more is asked.
 4. Where it fails, it may be a server of the modern era alone: that is found out
    (`gateway.servers.finding`).
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.bridged import BridgedLink
from gateway.links.interfaces import Hello, ILink, ILinkListener, ITwoEraServer, LinkFailed
from gateway.observe.observer import IObserver
from gateway.servers.before import Before
from gateway.servers.finding import EraFinder, letGo
from gateway.servers.verdicts import Verdict, Verdicts
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext

__all__ = ["EraServer"]


@implementer(ITwoEraServer)
@define(eq=False, repr=False)
class EraServer(Before):
    """
    Gives clients of both eras a link to another server.

    inner: the configured server; drained with this one.
    verdicts: the gateway's; what is found is kept there.
    """

    inner: ITwoEraServer
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    verdicts: Verdicts
    _finder: EraFinder = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._finder = EraFinder(self.inner, self.clock, self.observer, self.verdicts)

    @property
    def verdict(self) -> Verdict:
        """What is known of the server, or configured."""
        return self._finder.verdict

    # Legacy clients.

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """See IServer. A BridgedLink, which is no IHTTPLink, where the server is modern only."""
        era = self.inner.settings.era
        if era == "legacy":
            return self.inner.link(hello, listener, context, ownStreams)
        if era == "modern":
            return Deferred.fromCoroutine(self._bridge(hello, listener, context))
        return Deferred.fromCoroutine(self._link(hello, listener, context, ownStreams))

    async def _link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool
    ) -> ILink:
        finder = self._finder
        if finder.verdict.onlyModern:
            try:
                return await self._bridge(hello, listener, context)
            except LinkFailed as failed:
                if not finder.doubted(failed):
                    raise
        try:
            link = await self.inner.link(hello, listener, context, ownStreams)
        except LinkFailed as failed:
            if await finder.onlyModern(failed, context):
                return await self._bridge(hello, listener, context)
            raise
        finder.spokeLegacy(link.answer)
        return link

    async def _bridge(
        self, hello: Hello, listener: ILinkListener, context: CallContext
    ) -> BridgedLink:
        bridged = BridgedLink(
            hello,
            listener,
            self.clock,
            self.limits,
            self.observer,
            self.name,
            isinstance(self.settings, HTTPSettings),
        )
        link = await self.modernLink(bridged, context)
        try:
            bridged.begin(link)
        except BaseException:
            letGo(link)
            raise
        return bridged

    # Modern clients.

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        """See ITwoEraServer. Keeps the verdict by what becomes of it."""
        return self._finder.modernLink(listener, context)

    def findModern(self, context: CallContext) -> Deferred[bool]:
        """
        Whether the server speaks the modern era; asks it where that is not known.

        Fails with LinkFailed where it could not be asked, or is modern but speaks no revision of
        ours. Cancelling stops the wait, and not what others wait for.
        """
        return self._finder.findModern(context)

    def doubt(self) -> bool:
        """What is known proved wrong; see EraFinder."""
        return self._finder.doubt()

    def drain(self) -> Deferred[None]:
        """See IServer."""
        self._finder.stop()
        return self.inner.drain()
