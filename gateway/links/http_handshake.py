"""
The handshake of a Streamable HTTP link of either era (`gateway.links.opening`; MCP,
basic/transports).
"""

from __future__ import annotations

from typing import Protocol, cast

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from gateway.http1.client import HTTPClient, ResponseHead
from gateway.links.early import EarlyMessages
from gateway.links.hello import INITIALIZE
from gateway.links.http_answer import Stream, Surroundings
from gateway.links.http_streams import CallStream
from gateway.links.interfaces import EventMark, ILinkListener, LinkFailed, Reason, Settled
from gateway.links.opening import Opening
from gateway.observe.observer import MessageDropped
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message

__all__ = ["Greeted", "Handshake"]


class Greeted(Protocol):
    """The link a handshake is for."""

    client: HTTPClient
    listener: ILinkListener
    around: Surroundings

    @property
    def closing(self) -> bool:
        """Whether it was closed."""

    def established(self, head: ResponseHead) -> Settled | None:
        """A 2xx answer came."""

    def post(self, stream: Stream, body: bytes, context: CallContext) -> bool:
        """POST a message, whose answer a stream takes. False at the bound."""

    def greeted(self, answer: Message, revision: str) -> None:
        """The server answered."""

    def close(self) -> Deferred[None]:
        """It failed."""


@implementer(ILinkListener)
@define(eq=False, repr=False)
class Handshake:
    """
    The first request of one link. It listens until the answer, and keeps what else comes before
    it for the link's own listener. It ends with the Deferred that `start` returns.

    timeout: seconds until LinkFailed(TIMEOUT).
    """

    _link: Greeted
    _opening: Opening
    _timeout: float
    _done: Deferred[None] = field(init=False)
    _stream: CallStream = field(init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _early: EarlyMessages = field(init=False)
    over: bool = field(default=False, init=False)

    def start(self, context: CallContext) -> Deferred[None]:
        """POST it. See `StreamableHTTPLink.handshake`."""
        link = self._link
        client = link.client
        self._early = EarlyMessages(client.server, client.limits, client.observer)
        self._done = Deferred(lambda _: self._givenUp())
        self._stream = CallStream(
            around=link.around,
            listener=cast(ILinkListener, self),
            origin=self,
            id=INITIALIZE,
            onAccepted=link.established,
        )
        if link.post(self._stream, self._opening.request, context):
            self._timer = link.client.clock.callLater(self._timeout, self._expired)
        else:
            self._fail(LinkFailed(Reason.OVERLOADED, "the server has no connection left"))
        return self._done

    def received(self, message: Message, origin: object, mark: EventMark | None = None) -> None:
        if message.kind is Kind.RESPONSE:
            self._answered(message)
        elif message.kind is Kind.REQUEST and self._opening.modern:
            client = self._link.client
            client.observer.observed(MessageDropped(client.server, "server_request"))
        else:
            self._early.add(message)

    def marked(self, origin: object, mark: EventMark) -> None:
        """A handshake is not resumed."""

    def ended(self, origin: object) -> None:
        """It is no GET."""

    def accepted(self, call: object) -> None:
        """It is no notification."""

    def drained(self) -> None:
        """It waits for no room."""

    def lost(self, reason: Reason, message: str) -> None:
        self._fail(LinkFailed(reason, message))

    def settled(self, call: object, settled: Settled) -> None:
        failed = LinkFailed(settled.reason, settled.message, settled.body, settled.status)
        self._fail(self._opening.failed(failed))

    def _answered(self, message: Message) -> None:
        link = self._link
        try:
            version = self._opening.judged(message)
        except LinkFailed as error:
            self._fail(error)
            return
        self._stop()
        link.greeted(message, version)
        self._done.callback(None)
        for kept in self._early.take():
            if not link.closing:
                link.listener.received(kept, None, None)

    def _expired(self) -> None:
        self._timer = None
        why = f"the server did not answer {self._opening.what} in time"
        self._fail(self._opening.failed(LinkFailed(Reason.TIMEOUT, why)))

    def _givenUp(self) -> None:
        self._stop()
        self._link.close()

    def _fail(self, error: LinkFailed) -> None:
        if not self.over:
            self._stop()
            self._link.close()
            self._done.errback(error)

    def _stop(self) -> None:
        self.over = True
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
