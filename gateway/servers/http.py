"""
A server that is reached over HTTP.

Its links share one set of connections, and nothing else: each session with the server is a link
of its own.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.http1.client import HTTPClient
from gateway.http1.pool import SystemTrust
from gateway.http1.urls import parseURL
from gateway.links.http_sse import HTTPSSELink
from gateway.links.http_sse_stream import NoEventStream
from gateway.links.interfaces import (
    Health,
    Hello,
    ILink,
    ILinkListener,
    ITwoEraServer,
    LinkFailed,
    NotModern,
    Reason,
)
from gateway.links.modern_http import ModernHTTPLink
from gateway.links.opening import SAYS_NOTHING, Discover
from gateway.links.resuming import ResumingLink
from gateway.links.streamable_http import StreamableHTTPLink
from gateway.observe.observer import BoundReached, IObserver
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext, HeaderPairs
from gateway.wire.headers import configuredHeaders

__all__ = ["HTTPServer"]

Transport = Literal["streamable-http", "sse"]


def _speaksAnother(tried: Transport, error: LinkFailed) -> bool:
    """Whether a handshake failed as it does with a server that speaks the other transport."""
    if error.status in SAYS_NOTHING or error.status >= 500:
        return False
    if tried == "sse":
        return isinstance(error, NoEventStream)
    # A JSON-RPC error with status 200 comes from who understood the question.
    return error.reason is Reason.BAD_ANSWER and (error.status > 0 or error.answer is None)


@implementer(ITwoEraServer)
@define(eq=False, repr=False)
class HTTPServer:
    """
    A configured HTTP server. It holds nothing open before its first link; `drain` ends it.

    settings: its configuration; a URL or header that cannot be used is a ValueError here.
    reactor: connects. clock: measures every time.
    policy: whom to trust over TLS; the system's certificate authorities by default.
    generation: counts up when its configuration is replaced.
    transport: what it spoke at the last handshake; None before the first.
    """

    settings: HTTPSettings
    limits: Limits
    reactor: Any
    clock: IReactorTime
    observer: IObserver
    policy: IPolicyForHTTPS = field(factory=SystemTrust)
    generation: int = 1
    transport: Transport | None = field(default=None, init=False)
    name: str = field(init=False)
    _client: HTTPClient = field(init=False)
    _configured: HeaderPairs = field(init=False)
    _links: set[StreamableHTTPLink | HTTPSSELink | ModernHTTPLink] = field(factory=set, init=False)
    _draining: bool = field(default=False, init=False)
    _provedModern: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        self.name = settings.name
        self._configured = configuredHeaders(settings.headers)
        self._client = HTTPClient(
            parseURL(settings.url),
            settings.name,
            self.limits,
            self.reactor,
            self.clock,
            self.observer,
            self.policy,
        )
        self._client.whenRoom(self._roomAgain)

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """See IServer."""
        return Deferred.fromCoroutine(self._link(hello, listener, context, ownStreams))

    async def _link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool
    ) -> ILink:
        """
        Make the handshake over the transport that the server speaks.

        Where the configuration does not say which, the server is asked in the specification's
        order (MCP 2025-11-25, basic/transports, Backwards Compatibility), first for what it
        spoke the last time; the time is the same for both.
        """
        until = self.clock.seconds() + self.settings.handshake_timeout
        failed: LinkFailed | None = None
        for transport in self._candidates():
            try:
                link = await self._shake(transport, hello, listener, context, ownStreams, until)
            except LinkFailed as error:
                if not _speaksAnother(transport, error):
                    raise
                # What the first one said is why there was a second.
                failed = failed or error
            else:
                self.transport = transport
                return link
        assert failed is not None
        raise failed

    def _candidates(self) -> tuple[Transport, ...]:
        if self.settings.transport != "auto":
            return (self.settings.transport,)
        if self.transport == "sse":
            return ("sse", "streamable-http")
        return ("streamable-http", "sse")

    async def _shake(
        self,
        transport: Transport,
        hello: Hello,
        listener: ILinkListener,
        context: CallContext,
        ownStreams: bool,
        until: float,
    ) -> ILink:
        if self._draining:
            raise LinkFailed(Reason.SHUTTING_DOWN, "the gateway is shutting down")
        made: ILink
        link: StreamableHTTPLink | HTTPSSELink
        forwards, gone = self.settings.forward_authorization, self._links.discard
        if transport == "sse":
            made = link = HTTPSSELink(self._client, listener, self._configured, forwards, gone)
        elif ownStreams:
            made = link = StreamableHTTPLink(
                self._client, listener, self._configured, forwards, gone
            )
        else:
            made = resuming = ResumingLink(listener)
            link = StreamableHTTPLink(self._client, resuming, self._configured, forwards, gone)
            resuming.inner = link
        self._links.add(link)
        await link.handshake(hello, context, max(0.0, until - self.clock.seconds()))
        return made

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        """
        See ITwoEraServer.

        Until the server proved to be modern, or is configured to be, it has `era_probe` seconds to
        answer. HTTP+SSE is a transport of the legacy era alone: who is configured to speak it is
        not asked.
        """
        return Deferred.fromCoroutine(self._modernLink(listener, context))

    async def _modernLink(self, listener: ILinkListener, context: CallContext) -> ILink:
        settings = self.settings
        if self._draining:
            raise LinkFailed(Reason.SHUTTING_DOWN, "the gateway is shutting down")
        if settings.transport == "sse":
            raise NotModern(Reason.BAD_ANSWER, "the server speaks HTTP+SSE")
        timeout, patient = settings.handshake_timeout, settings.era == "modern"
        if not self._provedModern and not patient:
            timeout = min(timeout, self.limits.era_probe)
        link = ModernHTTPLink(
            self._client,
            listener,
            self._configured,
            settings.forward_authorization,
            self._links.discard,
        )
        self._links.add(link)
        try:
            await link.handshake(Discover(http=True), context, timeout)
        except LinkFailed as failed:
            if failed.reason is Reason.TIMEOUT and not (self._provedModern or patient):
                self.observer.observed(BoundReached("era_probe", self.name))
            raise
        self._provedModern = True
        return link

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
        return closing.addCallback(lambda _: self._client.close())

    def _roomAgain(self) -> None:
        for link in list(self._links):
            link.roomAgain()
