"""
The door of twisted.web: a Resource that turns each Request into an Exchange.

Rungs 1 and 2 of the ladder are climbed here, for every path. What passes goes to the Klein app,
whose URL map gives back the resource of a proxy. Works at our own listener and under any host's
Site.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import Interface, implementer

from gateway.doors.channel import RequestChannel
from gateway.proxies import crossorigin
from gateway.proxies.ladder import Ladder
from gateway.wire import refusals
from gateway.wire.context import HeaderPairs
from gateway.wire.exchange import RequestHead

__all__ = ["Door", "IRequestExchange", "MountedDoor", "ProxyResource", "RequestExchange"]

_log = Logger()

# What the paths of our routes are made of. Anything else, percent-encoding included, is another
# spelling, and only the exact one routes.
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9._~/-]*\Z")


class IRequestExchange(Interface):
    """The Exchange of a twisted.web Request, kept with it on its way through the URL map."""


@implementer(IPushProducer)
@define(eq=False)
class _RequestSink:
    """The open body of a Request; its transport tells it when to pause."""

    _request: Request
    onDrained: Callable[[], None] | None = None
    blocked: bool = False
    moved: int = 0
    _over: bool = False

    def __attrs_post_init__(self) -> None:
        if not self._over:
            self._request.registerProducer(self, True)

    def write(self, data: bytes) -> bool:
        if not self._over:
            self._request.write(data)
        return not self.blocked

    def close(self) -> None:
        if self.stop():
            self._request.finish()

    def abort(self) -> None:
        if self.stop():
            _abort(self._request)

    def stop(self) -> bool:
        """The body is over. Returns whether it was not before."""
        if self._over:
            return False
        self._over = True
        # A request whose connection is lost has no channel, and no producer, any more.
        if self._request.channel is not None:
            self._request.unregisterProducer()
        return True

    # IPushProducer

    def pauseProducing(self) -> None:
        self.blocked = True

    def resumeProducing(self) -> None:
        if self.blocked and not self._over:
            self.blocked = False
            if self.onDrained is not None:
                self.onDrained()

    def stopProducing(self) -> None:
        """The connection is lost; `onGone` of the exchange says so."""
        self.blocked = True


def _abort(request: Request) -> None:
    channel = request.channel
    if channel is not None:
        # HTTP/1.1's channel aborts its connection, HTTP/2's stream resets itself.
        getattr(channel, "abortConnection", channel.loseConnection)()


@define(eq=False)
class RequestExchange:
    """An Exchange over a twisted.web Request."""

    head: RequestHead
    _request: Request
    allowed: bool = False
    found: Any = None
    onGone: Callable[[], None] | None = None
    _sink: _RequestSink | None = None
    _answered: bool = False
    _gone: bool = False

    def __attrs_post_init__(self) -> None:
        self._request.notifyFinish().addErrback(self._vanished)

    def _vanished(self, _: Failure) -> None:
        self._gone = True
        if self._sink is not None:
            self._sink.stop()
        tell, self.onGone = self.onGone, None
        if tell is not None and not self._answered:
            tell()

    def collect(self, limit: int, then: Callable[[bytes | None], None]) -> None:
        content = self._request.content
        if content is None:
            then(b"")
            return
        body = content.read(limit + 1)
        then(None if len(body) > limit else body)

    def answer(self, status: int, headers: HeaderPairs, body: bytes = b"") -> None:
        if self._gone or self._answered:
            return
        self._answered = True
        self._begin(status, headers)
        request = self._request
        if status != 204:
            request.setHeader(b"content-length", b"%d" % len(body))
        if body and request.method != b"HEAD":
            request.write(body)
        request.finish()

    def open(self, status: int, headers: HeaderPairs) -> _RequestSink:
        if self._gone:
            # Nobody reads it: it is cut as the stream of a reader that blocks.
            return _RequestSink(self._request, blocked=True, over=True)
        sink = self._sink = _RequestSink(self._request)
        self._begin(status, headers)
        # The head goes out now, not with the first event.
        self._request.write(b"")
        return sink

    def abort(self) -> None:
        if not self._gone:
            _abort(self._request)

    def _begin(self, status: int, headers: HeaderPairs) -> None:
        request = self._request
        request.setResponseCode(status)
        fields = request.responseHeaders
        fields.removeHeader(b"server")
        fields.removeHeader(b"content-type")
        if not self.allowed and isinstance(request.channel, RequestChannel):
            # A Host that is none, or foreign: nothing behind it on this connection is heard.
            request.channel.hearNoMore()
        # A foreign Origin is told nothing that lets its page read the refusal.
        shared = crossorigin.shared(self.head) if self.allowed else ()
        for name, value in headers + shared:
            fields.addRawHeader(name, value)


def _headOf(request: Request, mounted: bool) -> RequestHead:
    raw, _, query = request.uri.partition(b"?")
    depth = len(request.prepath or ()) if mounted else 0
    path = raw
    if depth:
        # prepath is percent-decoded; the raw path has as many segments.
        path = b"/" + b"/".join(raw.split(b"/")[1 + depth :])
    host = request.getHost()
    peer = request.getClientAddress()
    return RequestHead(
        method=request.method,
        path=path,
        query=query,
        headers=tuple(
            (name.lower(), value)
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        ),
        peer=getattr(peer, "host", "") or "",
        port=getattr(host, "port", 0) or 0,
        tls=request.isSecure(),
        mounted=mounted,
    )


@implementer(IResource)
@define(eq=False)
class _Root:
    """What a Site needs of a resource beside `render`, where everything below is the app's."""

    isLeaf: bool = field(default=True, init=False)
    server: object = field(default=None, init=False)

    def getChildWithDefault(self, name: bytes, request: IRequest) -> IResource:
        """Never asked: it is a leaf."""
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """The URL map is the app's alone."""
        raise ValueError("routes are added to the Klein app")

    def render(self, request: Request) -> int:
        """Serve a request."""
        raise NotImplementedError


@define(eq=False)
class Door(_Root):
    """
    The root resource of a gateway.

    mounted: whether it hangs in a host's Site rather than in our own.
    """

    ladder: Ladder
    app: Resource
    mounted: bool

    def render(self, request: Request) -> int:
        """Let a request in, or refuse it at once."""
        exchange = RequestExchange(_headOf(request, self.mounted), request)
        if not self.ladder.foot(exchange):
            return NOT_DONE_YET
        if _PLAIN_PATH.match(exchange.head.path) is None:
            self.ladder.refuse(exchange, refusals.notFound(), "route")
            return NOT_DONE_YET
        request.setComponent(IRequestExchange, exchange)
        self.app.render(request)
        return NOT_DONE_YET


@define(eq=False)
class MountedDoor(_Root):
    """
    A gateway's place in a host's Site: the same resource across its starts and stops.

    door: the door there is now, None while the gateway is not started. retryAfter: in seconds.
    """

    door: Callable[[], Door | None]
    retryAfter: int

    def render(self, request: Request) -> int:
        """Serve a request, or say that there is no gateway just now."""
        door = self.door()
        if door is not None:
            return door.render(request)
        refusal = refusals.shuttingDown(self.retryAfter)
        RequestExchange(_headOf(request, True), request).answer(
            refusal.status, refusal.fields(), refusal.body()
        )
        return NOT_DONE_YET


class ProxyResource(Resource):
    """What the URL map gives back: serves the Request's Exchange."""

    isLeaf = True

    def __init__(self, serve: Callable[[RequestExchange], None]) -> None:
        super().__init__()
        self._serve = serve

    def render(self, request: IRequest) -> int:
        """Serve the exchange the door made for this request."""
        exchange = request.getComponent(IRequestExchange)  # type: ignore[attr-defined]
        try:
            self._serve(exchange)
        except Exception:
            # Klein's answer to it would be a page of HTML.
            _log.failure("a request broke the gateway")
            exchange.abort()
        return NOT_DONE_YET
