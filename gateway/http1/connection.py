"""
One connection to an HTTP server: it carries one request after the other, never two at once.

 1. To plain TCP a request is written to the socket at once, without the reactor's buffer, which
    costs two turns of its poller. What the socket does not take, and of a large request all but its
    beginning, goes out as the socket takes it, piece by piece (`gateway.http1.outflow`).
 2. `send` tells whether anything can have reached the server: a socket that is known to be closed,
    or to have something to say before it was asked, is sent nothing.
 3. A connection goes back to its pool when a response ended, if the request was out and the server
    keeps it open. An idle one is read: its end, or anything the server says, closes it.
 4. Silence is measured by the pool's beat, so it is noticed up to two beats late.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, ITCPTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection as TCPConnection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.http1.outflow import Outflow
from gateway.http1.peers import watchPeer
from gateway.http1.responses import END, BadResponse, ResponseHead, ResponseReader

__all__ = ["Asking", "Connection", "Fault", "Owner"]

_log = Logger(namespace="gateway.http1")


class Fault(Enum):
    """How a request failed."""

    UNSENT = "nothing of it was sent"
    CUT = "the connection was lost after it was sent"
    BAD = "what came is no acceptable HTTP"
    STALLED = "the server said nothing for too long"


class Asking(Protocol):
    """A request, as the connection that carries it sees it."""

    paused: bool
    headWait: float | None
    """Seconds of silence before the head; None: its asker has a deadline of its own."""
    bodyWait: float | None
    """Seconds of silence in the body; None: as above."""

    def headReceived(self, head: ResponseHead) -> bool:
        """The final head came. Returns: False if no more of the response is wanted."""

    def again(self) -> None:
        """The connection let go of a response of which no more was wanted."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body came."""

    def ended(self) -> None:
        """The response is complete."""

    def failed(self, fault: Fault) -> None:
        """It failed."""


class Owner(Protocol):
    """What a connection belongs to."""

    limits: Limits
    bounded: Callable[[str], None]

    def opened(self, connection: Connection) -> None:
        """It is up, if not yet secured."""

    def released(self, connection: Connection) -> None:
        """It is free for another request."""

    def closed(self, connection: Connection) -> None:
        """It is gone."""


@implementer(IHandshakeListener)
class Connection(TwistedProtocol):
    """
    One connection. The pool's endpoint opens it; it ends by `close`, `abort`, or its peer.

    onReady: called once when requests can be sent; over TLS, when the server's name is verified.
    onLost: called if it is lost before.
    asking: the request it carries.
    flushed: whether all of that is with the operating system.
    heard: whether something happened since the last beat.
    """

    def __init__(
        self,
        owner: Owner,
        encrypted: bool,
        onReady: Callable[[Connection], None],
        onLost: Callable[[Failure], None],
    ) -> None:
        self._owner = owner
        self._encrypted = encrypted
        self._onReady = onReady
        self._onLost = onLost
        self._reader = ResponseReader(owner.limits.max_upstream_head)
        self._socket: socket.socket | None = None
        self._poll: select.poll | None = None
        self._since = 0.0
        self._out: Outflow | None = None
        self._dead = False
        self.asking: Asking | None = None
        self.ready = False
        self.flushed = True
        self.heard = True

    # Its life.

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        plain = getattr(transport, "transport", transport) if self._encrypted else transport
        if isinstance(plain, TCPConnection):
            watchPeer(plain.socket, self._owner.limits.upstream_half_open)
            if plain is transport:
                self._socket = plain.socket
                # In place of the endpoint's wrapper, which only passes on what it hears.
                plain.protocol = self
                if hasattr(select, "poll"):
                    self._poll = select.poll()
                    self._poll.register(plain.socket, select.POLLIN)
        self._owner.opened(self)
        if not self._encrypted:
            self._becomeReady()

    def handshakeCompleted(self) -> None:
        """TLS is up and the server's name verified."""
        self._becomeReady()

    def _becomeReady(self) -> None:
        self.ready = True
        self._onReady(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._dead, self._socket, self._out = True, None, None
        asking, self.asking = self.asking, None
        self._owner.closed(self)
        if not self.ready:
            self._onLost(reason)
        elif asking is not None:
            # Over TLS too, only an announced end is one (RFC 9112 section 9.8).
            inOrder = reason.check(ConnectionDone) is not None
            if self._reader.eof() and inOrder:
                self._tell(asking.ended)
            else:
                self._tell(asking.failed, Fault.CUT)

    def close(self) -> None:
        """Close it in order; it must be idle."""
        if self._encrypted:
            # Otherwise the peer would have to agree.
            self.abort()
        elif not self._dead:
            self._dead = True
            self.transport.loseConnection()  # type: ignore[union-attr]

    def abort(self) -> None:
        """Cut it; what it carries hears nothing more."""
        self.asking = None
        if not self._dead:
            self._dead = True
            self.transport.abortConnection()  # type: ignore[union-attr]

    # Requests.

    def send(
        self, asking: Asking, request: bytes, rest: memoryview | None = None, fresh: bool = False
    ) -> bool:
        """
        Carry a request.

        rest: what follows of a large one. fresh: nothing was sent on it before.

        Returns: False if it can carry none any more; nothing was sent, and it is closed.
        """
        if self._dead or (not fresh and self._poll is not None and self._poll.poll(0)):
            self.abort()
            return False
        sock = self._socket
        if sock is None:
            self.transport.write(request)  # type: ignore[union-attr]
        else:
            try:
                sent = sock.send(request)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.abort()
                return False
            if sent < len(request):
                self._follow(request[sent:])
        if rest is not None:
            self._follow(rest)
        self._reader.expect()
        self.asking = asking
        self.heard = True
        return True

    def _follow(self, data: bytes | memoryview) -> None:
        """Send what is left of a request."""
        if self._out is None:
            self._out = Outflow(self.transport, self._flush)
        self._out.follow(data)
        self.flushed = not self._out.blocked
        if self.flushed:
            self._flush()

    def _flush(self) -> None:
        """All of a request is with the operating system."""
        out, self._out = self._out, None
        self.flushed = True
        if out is not None:
            out.close(lambda: None)

    def pause(self) -> None:
        """Read no more of the body. The head is always read."""
        if not self._dead and not self._reader.awaiting:
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def resume(self) -> None:
        """Read on."""
        if not self._dead:
            self.heard = True
            self.transport.resumeProducing()  # type: ignore[union-attr]

    def _leave(self, whole: bool) -> None:
        """No more is wanted of a response. whole: all of it came."""
        if whole:
            self._release()
        else:
            self.abort()

    def _release(self) -> None:
        """The response is complete."""
        asking, self.asking = self.asking, None
        if self._dead or not self.flushed or not self._reader.reusable:
            self.abort()
            return
        if asking is not None and asking.paused:
            self.resume()
        self.heard = True
        self._owner.released(self)

    # Responses.

    def dataReceived(self, data: bytes) -> None:
        asking = self.asking
        if asking is None:
            self.abort()
            return
        self.heard = True
        try:
            self._deliver(asking, data)
        except Exception:
            # A receiver raised: a fault of ours, and its request must still end.
            _log.failure("while an answer was taken")
            if self.asking is asking:
                self.abort()
                self._tell(asking.failed, Fault.BAD)

    def _deliver(self, asking: Asking, data: bytes) -> None:
        events = self._reader.feed(data)
        for event in events:
            if event is END:
                self._release()
                asking.ended()
                return
            if isinstance(event, bytes):
                asking.dataReceived(event)
            elif isinstance(event, ResponseHead):
                if not asking.headReceived(event):
                    self._leave(events[-1] is END)
                    asking.again()
                    return
                if asking.paused and self.asking is asking:
                    self.pause()
            else:
                self._refuse(asking, event)
                return
            if self.asking is not asking:
                return

    def _refuse(self, asking: Asking, bad: BadResponse) -> None:
        if bad.bound:
            self._owner.bounded("max_upstream_head")
        _log.debug("a bad response: {why}", why=bad.why)
        self.abort()
        asking.failed(Fault.BAD)

    def _tell(self, told: Callable[..., None], *arguments: Fault) -> None:
        try:
            told(*arguments)
        except Exception:
            _log.failure("while the end of an answer was taken")

    # Silence.

    def beat(self, now: float) -> None:
        """Some time has passed; `now` in seconds of the gateway's clock."""
        if self.heard:
            self.heard, self._since = False, now
            return
        limits, asking, silent = self._owner.limits, self.asking, now - self._since
        if asking is None:
            if self.ready and silent >= limits.upstream_keep_alive:
                self.close()
        elif self._reader.awaiting:
            if asking.headWait is not None and silent >= asking.headWait:
                self._stall(asking, "upstream_first_byte")
        elif asking.bodyWait is not None and silent >= asking.bodyWait and not asking.paused:
            self._stall(asking, "upstream_idle")

    def _stall(self, asking: Asking, limit: str) -> None:
        self._owner.bounded(limit)
        self.abort()
        self._tell(asking.failed, Fault.STALLED)
