"""
Our own listener's Site: what twisted.web leaves open is closed here as far as it allows.

Bodies are counted while they arrive and kept in memory up to the limit, never in a file; what
comes after the limit is thrown away unread, and the ladder answers 413.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

__all__ = ["GatewaySite", "OpenConnections"]


class _BoundedRequest(Request):
    """A Request whose body is bounded, and for which "*" is a path like any other."""

    site: GatewaySite
    _received = 0

    def gotLength(self, length: int | None) -> None:
        self.site = self.channel.site  # type: ignore[attr-defined]
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        # One byte over the limit is kept, so that the ladder sees that it was passed.
        room = self.site.maxBody + 1 - self._received
        if room > 0 and self.content is not None:
            self.content.write(data[:room])
            self._received += min(room, len(data))

    def process(self) -> None:
        if self.path == b"*":
            self.path = b"/*"
        super().process()


class GatewaySite(Site):
    """
    The Site of our own listener.

    maxBody: bytes kept of a request's body.
    """

    noisy = False

    def __init__(self, resource: IResource, maxBody: int, **kwargs: Any) -> None:
        super().__init__(
            resource,
            requestFactory=_BoundedRequest,
            # A form is no message: the ladder refuses it, with what else there is in its body.
            parsePOSTFormSubmission=False,
            **kwargs,
        )
        self.maxBody = maxBody
        self.displayTracebacks = False

    def log(self, request: http.Request) -> None:
        """No access log by default: observers hear what happens, and a line costs as a call."""


class _Connection(ProtocolWrapper):
    """Tells its factory when it is over, timers included."""

    factory: OpenConnections

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.factory.connectionEnded()


class OpenConnections(WrappingFactory):
    """The connections of one listener, so that they can be hung up when it stops."""

    protocol = _Connection
    noisy = False
    _emptied: Deferred[None] | None = None

    def connectionEnded(self) -> None:
        """One of them is over."""
        if not self.protocols and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def hangUp(
        self, clock: IReactorTime, patience: float, onCut: Callable[[], None] = lambda: None
    ) -> Deferred[None]:
        """
        Close every connection once what is written has gone out, and cut those whose client
        does not read it within `patience` seconds; `onCut` is called then. Fires when all are
        gone.
        """
        if not self.protocols:
            return succeed(None)
        emptied = self._emptied = Deferred()

        def cut() -> None:
            onCut()
            for connection in list(self.protocols):
                connection.abortConnection()

        def gone(_: None) -> None:
            if cutting.active():
                cutting.cancel()

        cutting = clock.callLater(patience, cut)
        emptied.addCallback(gone)
        for connection in list(self.protocols):
            connection.loseConnection()
        return emptied
