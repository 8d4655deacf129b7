"""
Our own listener: the connections of one port, what they share, and their end.

`listen` puts the same in front of a host's own Site, for hosts that want the strict parser, the
bounds and the time-outs for their other resources, too.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocolNegotiationFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.web.server import Site
from zope.interface import implementer

from gateway.doors.llhttp import Connection
from gateway.guard.limits import Limits
from gateway.http1.alike import AlikeHeads
from gateway.http1.peers import watchPeer
from gateway.http1.request_head import RequestBounds
from gateway.observe.observer import BoundReached, IObserver, RequestRefused
from gateway.wire.exchange import Serve
from gateway.wire.refusals import Refusal

__all__ = ["Listener"]

LOOK = 1.0
"""Seconds between two looks at the times of the connections."""

RESERVED_FILES = 64
"""Descriptors that are left to children, the store and the log, whatever comes."""

BACKLOG = 4096
"""Connections the kernel keeps until we accept them; 50, Twisted's default, is soon full."""

HALF_OPEN = 60.0
"""Seconds after which a peer that vanished without a word is found."""

_UNSENT = 128 * 1024
"""
Bytes the kernel keeps beside what is on its way. Its megabytes would hide for a minute that a slow
reader reads.
"""

_log = Logger()


@implementer(IProtocolNegotiationFactory)
class Listener(ServerFactory):
    """
    The connections of one port.

    Life: made → `listen` on an endpoint → connections come and go → `close` ends the port,
    `hangUp` the connections. See `gateway.doors.llhttp.Owner` for the attributes.
    """

    noisy = False

    def __init__(
        self,
        site: Site,
        limits: Limits,
        clock: IReactorTime,
        observer: IObserver,
        *,
        routes: Mapping[bytes, Serve] | None = None,
        maxBody: int | None = None,
    ) -> None:
        self.site = site
        self.limits = limits
        self.clock = clock
        self.observer = observer
        self.routes: Mapping[bytes, Serve] = routes or {}
        self.maxBody = maxBody
        self.closing = False
        self.now = clock.seconds()
        self.bounds = self._bounds()
        self.alike = AlikeHeads()
        self.port: IListeningPort | None = None
        self._accepted = 0
        self._connections: set[Connection] = set()
        self._looking: IDelayedCall | None = None
        self._emptied: Deferred[None] | None = None

    def _bounds(self) -> RequestBounds:
        names = RequestBounds.__attrs_attrs__
        return RequestBounds(**{one.name: getattr(self.limits, one.name) for one in names})

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def listen(self, endpoint: IStreamServerEndpoint) -> Deferred[IListeningPort]:
        """Start. Fires with the port; fails with CannotListenError."""
        return endpoint.listen(self).addCallback(self._listening)

    def _listening(self, port: IListeningPort) -> IListeningPort:
        self.port = port
        # What is accepted inherits these; to set them for each connection would cost more.
        listening = getattr(port, "socket", None)
        if isinstance(listening, socket.socket) and listening.family != socket.AF_UNIX:
            listening.listen(BACKLOG)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            watchPeer(listening, HALF_OPEN)
            # Not every system has it.
            with suppress(AttributeError, OSError):
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        return port

    def stopListening(self) -> Deferred[None] | None:
        """
        Listen no more, but accept first who is connected and only waits for that: what the kernel
        still holds when a port closes it resets. As IListeningPort.stopListening.
        """
        port = self.port
        assert port is not None
        accept = getattr(port, "doRead", None)
        before = -1
        while accept is not None and before < self._accepted:
            before = self._accepted
            accept()
        stopped: Deferred[None] | None = port.stopListening()
        # Twisted closes it in the next turn, until when further ones would come. (Not shut down: a
        # socket that was handed over goes on elsewhere.)
        listening = getattr(port, "socket", None)
        if isinstance(listening, socket.socket):
            listening.close()
        return stopped

    # ServerFactory

    def doStart(self) -> None:
        self.site.doStart()
        super().doStart()

    def doStop(self) -> None:
        super().doStop()
        self.site.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        self._accepted += 1
        return Connection(self)

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 alone, for TLS endpoints to negotiate (ALPN, RFC 7301)."""
        return [b"http/1.1"]

    # Owner

    def opened(self, connection: Connection) -> int:
        """See Owner."""
        self._connections.add(connection)
        if self._looking is None:
            self.now = self.clock.seconds()
            self._looking = self.clock.callLater(LOOK, self._look)
        over = max(len(self._connections) - self.limits.max_connections, _overFiles(connection))
        if over > 0:
            self.bounded("max_connections")
        return over

    def closed(self, connection: Connection) -> None:
        """See Owner."""
        self._connections.discard(connection)
        if self._connections:
            return
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def bounded(self, limit: str) -> None:
        """See Owner."""
        self.observer.observed(BoundReached(limit))

    def refused(self, refusal: Refusal) -> None:
        """See Owner."""
        self.observer.observed(RequestRefused("framing", refusal.status, refusal.code))

    @property
    def unheard(self) -> bool:
        """Whether a connection was accepted whose first request has not come yet."""
        return any(not connection.greeted for connection in self._connections)

    def serve(self, routes: Mapping[bytes, Serve]) -> None:
        """Serve these routes from now on, also on connections that are open."""
        self.routes = routes
        self.bounds = self._bounds()
        self.alike.forget()
        for connection in self._connections:
            connection.forget()

    # Time, and the end.

    def _look(self) -> None:
        self._looking = self.clock.callLater(LOOK, self._look)
        now = self.now = self.clock.seconds()
        for connection in list(self._connections):
            try:
                connection.look(now)
            except Exception:
                _log.failure("while a connection's time passed")
                connection.cut()

    def hangUp(self, patience: float, onCut: Callable[[], None] = lambda: None) -> Deferred[None]:
        """
        Close every connection once what is written has gone out, and cut those whose client
        does not read it within `patience` seconds; `onCut` is called then. Fires when all are gone.
        """
        self.closing = True
        if not self._connections:
            return succeed(None)
        emptied = self._emptied = Deferred()

        def cut() -> None:
            onCut()
            for connection in list(self._connections):
                connection.cut()

        def gone(_: None) -> None:
            if cutting.active():
                cutting.cancel()

        cutting = self.clock.callLater(patience, cut)
        emptied.addCallback(gone)
        for connection in list(self._connections):
            connection.hangUp()
        return emptied


def _overFiles(connection: Connection) -> int:
    """How far a connection reaches into the descriptors that are kept back."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    fileno = getattr(connection.transport, "fileno", None)
    if files == resource.RLIM_INFINITY or fileno is None:
        return 0
    # A new descriptor is the lowest that is free, so everything below it is taken.
    return int(fileno()) + 1 - (files - min(RESERVED_FILES, files // 2))
