"""
A server that is reached over HTTP.

Its links share one set of connections, and nothing else: each session with the server is a link
of its own.
"""

from __future__ import annotations

from typing import Any, cast

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.http_client import HTTPClient, parseURL
from gateway.links.http_connections import Connections
from gateway.links.interfaces import (
    Health,
    Hello,
    ILink,
    ILinkListener,
    IServer,
    LinkFailed,
    Reason,
)
from gateway.links.streamable_http import StreamableHTTPLink
from gateway.observe.observer import BoundReached, IObserver
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext, HeaderPairs
from gateway.wire.headers import configuredHeaders

__all__ = ["HTTPServer"]


@implementer(IServer)
@define(eq=False, repr=False)
class HTTPServer:
    """
    A configured HTTP server. It holds nothing open before its first link; `drain` ends it.

    settings: its configuration; a URL or header that cannot be used is a ValueError here.
    reactor: connects. clock: measures every time.
    agent: what sends, in place of connections of our own; it must follow no redirects, retry
        nothing, keep no cookies and decode nothing.
    generation: counts up when its configuration is replaced.
    """

    settings: HTTPSettings
    limits: Limits
    reactor: Any
    clock: IReactorTime
    observer: IObserver
    agent: IAgent | None = None
    generation: int = 1
    name: str = field(init=False)
    _connections: Connections | None = field(default=None, init=False)
    _client: HTTPClient = field(init=False)
    _configured: HeaderPairs = field(init=False)
    _links: set[StreamableHTTPLink] = field(factory=set, init=False)
    _draining: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        self.name = settings.name
        self._configured = configuredHeaders(settings.headers)
        uri = parseURL(settings.url)
        agent = self.agent
        if agent is None:
            self._connections = Connections(
                uri, self.limits, self.reactor, self.clock, bounded=self._bounded
            )
            agent = cast(IAgent, self._connections.agent)
        self._client = HTTPClient(
            agent,
            settings.url.encode("ascii"),
            settings.name,
            self.limits,
            self.clock,
            self.observer,
        )
        self._client.onRoom = self._roomAgain

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """See IServer. The link is an IHTTPLink."""
        return Deferred.fromCoroutine(self._link(hello, listener, context))

    async def _link(self, hello: Hello, listener: ILinkListener, context: CallContext) -> ILink:
        if self._draining:
            raise LinkFailed(Reason.SHUTTING_DOWN, "the gateway is shutting down")
        link = StreamableHTTPLink(
            self._client,
            listener,
            self._configured,
            self.settings.forward_authorization,
            self._links.discard,
        )
        self._links.add(link)
        await link.handshake(hello, context, self.settings.handshake_timeout)
        return cast(ILink, link)

    def health(self) -> Health:
        """What the last attempt to reach it showed."""
        reached = self._client.reached
        if reached is None:
            return Health.UNKNOWN
        return Health.UP if reached else Health.DOWN

    def drain(self) -> Deferred[None]:
        """
        Close every link, telling those that use them, then every connection.

        It makes no link from then on. Fires when no connection is left.
        """
        self._draining = True
        links = list(self._links)
        for link in links:
            link.losing(Reason.SHUTTING_DOWN, "the gateway is shutting down")
        closing = gatherResults([link.close() for link in links], consumeErrors=True)
        return closing.addCallback(lambda _: self._disconnect())

    def _bounded(self, limit: str) -> None:
        self.observer.observed(BoundReached(limit, self.name))

    def _disconnect(self) -> Deferred[None]:
        self._client.abort()
        return succeed(None) if self._connections is None else self._connections.close()

    def _roomAgain(self) -> None:
        for link in list(self._links):
            link.roomAgain()
