"""
The door of our own listener: HTTP/1.1 over llhttp, strict and quick.

The way of a request: the reader (`gateway.http1.requests`) tells it to the reception, which hands
it to who serves it (`gateway.doors.reception`). Here is what its connection sees to: order, times,
and its end.

 1. Answers go out in the order of the requests: one request is served at a time, and what a client
    sends ahead waits, at most one read of it, unparsed; meanwhile its connection is not read, and
    its end is looked for (rules 5 and 8).
 2. A request that was answered before its body was read is drained where the rest is small, and
    its connection is closed otherwise. Nothing in such a body is ever taken for a request.
 3. After a malformed request nothing more is read: it is answered, and the connection closed, with
    what comes meanwhile thrown away, so that the answer is not lost to a reset.
 4. 100 (Continue) goes out when the body is asked for, so after every check of the head.
 5. A peer that ends its side is gone: what it asked goes on, but nobody is answered.
 6. A body that nobody has asked for yet is not read on: who may have it is still being found out.
 7. Of what a client pipelined, `TURN` requests are served in one turn of the reactor.
 8. Times are looked at once a second for all connections of a listener together: a timer of its
    own for each would cost more than the request.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import select
from enum import Enum
from typing import Any, cast
from typing import Protocol as Interface

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.doors.channel import RequestChannel
from gateway.doors.exchange import LLExchange
from gateway.doors.reception import Reception, Serving
from gateway.guard.limits import Limits
from gateway.http1.alike import AlikeHeads
from gateway.http1.outflow import Outflow
from gateway.http1.request_head import BadRequest, RequestBounds, RequestLine
from gateway.http1.requests import RequestOwner, RequestReader
from gateway.http1.writing import CLOSE, KEEP_ALIVE, encodeAnswer
from gateway.wire import refusals
from gateway.wire.refusals import Refusal

__all__ = ["DRAIN", "LINGER", "Connection"]

DRAIN = 64 * 1024
"""Bytes of a refused body that are read and thrown away to keep the connection."""

LINGER = 2.0
"""Seconds for which a connection that is closed early is still read, and what comes thrown away."""

DISCARD = 1024 * 1024
"""Bytes that are thrown away at most before such a connection is cut."""

TURN = 16
"""Requests of one connection that are served before others have their turn."""

SPARE = 16
"""Connections over what there is room for that are told so; what comes on top of them is cut."""

# Linux alone tells of a peer's end without reading up to it.
_ENDED = getattr(select, "POLLRDHUP", 0)
_NEVER = float("inf")
_STOPPED = RequestReader(cast(RequestOwner, None), RequestBounds())
_STOPPED.stop()
_log = Logger()


class _Phase(Enum):
    IDLE = "waits for a request"
    HEAD = "waits for the rest of a head"
    BODY = "waits for the rest of a body"
    ANSWER = "waits for the answer, or for the client to take it"
    CLOSING = "waits for its end"


_IDLE, _HEAD, _BODY, _ANSWER, _CLOSING = _Phase


class Owner(Serving, Interface):
    """
    What a connection needs of its listener.

    closing: whether answers shall be the last of their connections. alike: what is kept of heads.
    """

    limits: Limits
    bounds: RequestBounds
    alike: AlikeHeads
    clock: IReactorTime
    closing: bool

    def opened(self, connection: Connection) -> int:
        """A connection was accepted. Returns how many there are over what there is room for."""

    def closed(self, connection: Connection) -> None:
        """It is gone."""

    def bounded(self, limit: str) -> None:
        """A limit was reached."""

    def refused(self, refusal: Refusal) -> None:
        """A request was refused before anybody else saw it."""


class Connection(Protocol):
    """
    One connection of a listener. Life: accepted → requests, one after the other → closed by its
    client, by `hangUp`, by a time that is over, or after what it could not go on from.

    out: what goes out. requestComplete: whether all of the present request has come.
    tls: whether it is encrypted. For the others see `gateway.doors.reception.Receiving`.
    """

    out: Outflow

    def __init__(self, listener: Owner) -> None:
        self.clock: IReactorTime = listener.clock
        self.requestComplete = False
        self.tls = False
        self._listener = listener
        # Both are made with the first transport, and refer to us.
        self._reception: Reception | None = None
        self._reader = _STOPPED
        self.serving: LLExchange | RequestChannel | None = None
        self._phase = _IDLE
        self._due = _NEVER
        self._since = self.heard = 0.0
        self.seen = 0
        self._moved = 0
        self._closes = self.greeted = self._answered = False
        self._running = self._again = self._paused = False
        self._going: IDelayedCall | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.tls = ISSLTransport.providedBy(transport)
        listener = self._listener
        self._reception = Reception(self, listener)
        self._reader = RequestReader(self._reception, listener.bounds, listener.alike)
        self.out = Outflow(transport, self._drained)
        # The time for a first head counts from here.
        self._wait(_HEAD, listener.limits.head_timeout)
        over = listener.opened(self)
        if over > SPARE:
            self.cut()
        elif over > 0:
            self._refuse(refusals.tooManyConnections(listener.limits.retry_after))

    def dataReceived(self, data: bytes) -> None:
        if self._phase is _CLOSING:
            # Rule 3; but nobody is read for ever.
            self.seen += len(data)
            if self.seen > DISCARD:
                self.cut()
        else:
            self._run(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._phase, self._due = _CLOSING, _NEVER
        self._listener.closed(self)
        self._reader.stop()
        # What is left of a connection need not wait for the garbage collector.
        self._reader, self._reception = _STOPPED, None
        self.out.stopProducing()
        if self._going is not None:
            self._going.cancel()
        serving, self.serving = self.serving, None
        if serving is not None:
            serving.vanished()

    # Reading.

    def _run(self, data: bytes) -> None:
        """Read on, and serve what is complete, one after the other."""
        self._running = True
        try:
            if data:
                self._reader.feed(data)
            turn = TURN
            while self._again and self._phase is not _CLOSING and turn:
                turn -= 1
                self._again = self.requestComplete = self._answered = False
                self._reader.proceed()
        except BadRequest as bad:
            self.refuseMalformed(bad)
        except Exception:
            _log.failure("a connection broke the gateway")
            self.cut()
        finally:
            self._running = False
        if self._phase is not _CLOSING:
            if self._again and self._going is None:
                self._going = self.clock.callLater(0, self._goOn)
            self._settle()

    def _goOn(self) -> None:
        """Rule 7."""
        self._going = None
        self._run(b"")

    def _settle(self) -> None:
        """Know what is waited for, and whether to read on."""
        reading, undecided = self._reader.reading, False
        if reading == "head":
            if self._phase is not _HEAD:
                self._wait(_HEAD, self._listener.limits.head_timeout)
        elif reading == "body":
            # Rule 6.
            undecided = isinstance(self.serving, LLExchange) and self.serving.undecided
            if undecided:
                self._phase, self._due = _ANSWER, _NEVER
            elif self._phase is not _BODY:
                self._phase, self._due = _BODY, 0.0
                self._since = self.heard = self.clock.seconds()
        elif self.serving is None and not self.requestComplete:
            if self.greeted:
                self._wait(_IDLE, self._listener.limits.keep_alive)
        elif self._phase is not _ANSWER:
            self._phase, self._due = _ANSWER, _NEVER
        ahead = undecided or self._reader.waiting > 0
        if ahead is not self._paused:
            self._paused = ahead
            transport: Any = self.transport
            (transport.pauseProducing if ahead else transport.resumeProducing)()

    def _wait(self, phase: _Phase, seconds: float) -> None:
        self._phase, self._due = phase, self.clock.seconds() + seconds

    def forget(self) -> None:
        """Take no head for known that came before: who serves it may be another now."""
        if self._reception is not None:
            self._reception.forget()
            self._reader.forget()

    # Carrier.

    def ending(self, line: RequestLine) -> bytes:
        """See Carrier."""
        rest = 0 if self.requestComplete else line.length
        drained = rest is not None and rest <= DRAIN and not (rest and line.continues)
        closing = self._listener.closing and not isinstance(self.serving, RequestChannel)
        if line.persistent and drained and not closing:
            return KEEP_ALIVE if line.version == b"1.0" else b""
        self._closes = True
        return CLOSE

    def decided(self) -> None:
        """See Carrier."""
        if not self._running and self._phase is not _CLOSING:
            self._settle()

    def answered(self) -> None:
        """See Carrier."""
        self.serving, self._answered = None, True
        if self._closes:
            self.hangUp()
        elif self.requestComplete:
            self.proceed()
        else:
            self.decided()

    def proceed(self) -> None:
        """The request is complete and answered: read on, once the client took the answer."""
        if self.out.blocked:
            self._stalled()
        elif self._running:
            self._again = True
        elif self._reader.waiting or self._paused:
            self._again = True
            self._run(b"")
        else:
            self.requestComplete = self._answered = False
            self._reader.proceed()
            self._phase = _IDLE
            self._due = self._listener.now + self._listener.limits.keep_alive

    def _stalled(self, phase: _Phase = _ANSWER) -> None:
        """The client does not take what was written; it has so much time to take some."""
        self._moved = self.out.moved
        self._wait(phase, self._listener.limits.reader_blocked)

    def _drained(self) -> None:
        if self.serving is not None:
            self.serving.drained()
        elif self.requestComplete and self._phase is not _CLOSING:
            self.proceed()

    def cut(self) -> None:
        """See Carrier."""
        self._phase, self._due = _CLOSING, _NEVER
        transport: Any = self.transport
        transport.abortConnection()

    # Its end.

    def refuseMalformed(self, bad: BadRequest) -> None:
        """Rule 3."""
        if bad.limit:
            self._listener.bounded(bad.limit)
        self._refuse(refusals.badRequest(bad.status, str(bad)))

    def refuseBody(self) -> None:
        """The body for a Request is over the limit."""
        self._listener.bounded("max_body")
        self._refuse(refusals.tooLarge(self._listener.limits.max_body))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what no proxy can, unless an answer went out or has begun, and close."""
        serving, self.serving = self.serving, None
        self._listener.refused(refusal)
        if serving is not None:
            serving.vanished()
            if serving.begun:
                self.cut()
                return
        elif self._answered:
            self.hangUp()
            return
        body = refusal.body()
        self.out.write(encodeAnswer(refusal.status, refusal.fields(), body, CLOSE))
        self.hangUp()

    def hangUp(self) -> None:
        """Close it once everything is written; what still comes is thrown away."""
        if self._phase is _CLOSING:
            return
        unread = not self.requestComplete or self._reader.waiting > 0
        self._reader.stop()
        self.seen, self._moved = 0, self.out.moved
        self._wait(_CLOSING, self._listener.limits.reader_blocked)
        self.out.close(self._linger if unread and not self.tls else self._lose)

    def _lose(self) -> None:
        transport: Any = self.transport
        # TLS ends when the client says so, too, and takes what is on its way meanwhile.
        self._readOn()
        # The last piece has as long as those before.
        self._wait(_CLOSING, self._listener.limits.reader_blocked)
        transport.loseConnection()

    def _linger(self) -> None:
        self._readOn()
        lose = getattr(self.transport, "loseWriteConnection", None)
        if lose is None:
            # Not every transport has two sides to close.
            self._lose()
        else:
            lose()
            self._wait(_CLOSING, LINGER)

    def _readOn(self) -> None:
        if self._paused:
            self._paused = False
            transport: Any = self.transport
            transport.resumeProducing()

    # Time.

    def look(self, now: float) -> None:
        """Some time has passed."""
        phase = self._phase
        if self._paused and phase is _ANSWER and self._leftUnread():
            self.cut()
            return
        answers = phase is _ANSWER or phase is _CLOSING
        if answers and self._due != _NEVER and self.out.blocked and self.out.moved != self._moved:
            # It takes some, if slowly.
            self._stalled(phase)
        if now < self._due:
            # A proxy looks after its own streams.
            own = isinstance(self.serving, RequestChannel) and self._due == _NEVER
            if own and phase is _ANSWER and self.out.blocked:
                self._stalled()
            return
        if phase is _IDLE:
            self._listener.bounded("keep_alive")
            self.requestComplete = True
            self.hangUp()
        elif phase is _HEAD:
            self._listener.bounded("head_timeout")
            if self.tls and not self.greeted and not self._reader.reading:
                # Nothing can be told before the handshake.
                self.cut()
            else:
                self._refuse(refusals.tooSlow())
        elif phase is _BODY:
            limit = self._slow(now)
            if limit:
                self._listener.bounded(limit)
                self._refuse(refusals.tooSlow())
        elif phase is _ANSWER and not self.out.blocked:
            self._due = _NEVER
        else:
            if self.out.blocked:
                self._listener.bounded("reader_blocked")
            self.cut()

    def _leftUnread(self) -> bool:
        """Whether the peer ended its side, where nobody reads what would tell."""
        fileno = getattr(self.transport, "fileno", None)
        number = -1 if fileno is None or not _ENDED else fileno()
        if number < 0:
            return False
        poll = select.poll()
        poll.register(number, _ENDED)
        return bool(poll.poll(0))

    def _slow(self, now: float) -> str:
        """The limit that a body which still comes is over, if any."""
        limits = self._listener.limits
        took = now - self._since
        if took >= limits.body_grace and self.seen < limits.min_body_rate * took:
            return "min_body_rate"
        return "body_silence" if now - self.heard >= limits.body_silence else ""
