"""
A modern request straight through to a modern HTTP server (MCP 2026-07-28, basic/transports/
streamable-http): nothing is read of it but what policy and record need, and nothing is rewritten.

 Up    the body's bytes as they came; Content-Type, Accept, MCP-Protocol-Version and every `Mcp-*`
       field, and of the rest what goes to any HTTP server (`gateway.wire.headers`).
 Down  the status, the bytes of the body as they come, comments of an event stream included, and
       every end-to-end field but those that are not the server's to say here (`_OURS`).

 1. What is no event stream is kept until it is whole, if it is small, so that a body that breaks
    off is an answer, too; a larger one goes on as it comes, up to `max_answer` bytes.
 2. A client that does not read has its server not read, and is cut after `reader_blocked` seconds.
    A client that is gone has cancelled: the connection to the server is closed at once.
 3. Silence lasts `timeout` seconds at most, before the head and between bytes, and all of it
    `max_timeout`; the stream of a `subscriptions/listen` has neither once its head is there.
 4. What fails before the head is answered, and so is what fails in an event stream that has no
    answer yet, be it broken off or ended: by one error in a last event. Of any other body all that
    is left is to cut the connection.
 5. Policy was asked of the request. Of what comes back it is not: nobody reads that here.
 6. Where the connection is cut and its client was given nothing yet, a request that changes nothing
    is sent once more, if the server's `replay` allows (`gateway.relay.replays`). What tools do is
    not known here, for lists of them are not read either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from gateway.http1.client import Fault, Outgoing, ResponseHead
from gateway.observe.observer import (
    BoundReached,
    CallAnswered,
    CallFailed,
    CallRepeated,
    CallStarted,
)
from gateway.proxies.passed_stream import PassedStream
from gateway.proxies.shared import Shared
from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import Message, members
from gateway.wire.exchange import EventSink, Exchange, RequestHead
from gateway.wire.headers import isFieldValue, nominated
from gateway.wire.modern import LISTEN, listenCompleted
from gateway.wire.refusals import Reason, Refusal, modernCallFailed
from gateway.wire.sse import encodeEvent

__all__ = ["Passing", "fieldsBack", "fieldsUp"]

WHOLE = 64 * 1024
"""Bytes of a body that are kept until it is whole."""

_UP = frozenset({b"content-type", b"accept", b"mcp-protocol-version"})
_PARAM = b"mcp-param-"

_OURS = frozenset(
    {
        # Hop-by-hop fields, and what frames the body (RFC 9110 section 7.6.1).
        b"connection",
        b"content-length",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # The door dates what it sends.
        b"date",
        # There are no sessions, and no cookies between the gateway and a server.
        b"mcp-session-id",
        b"set-cookie",
        b"set-cookie2",
        # What holds for the server's own origin.
        b"alt-svc",
        b"clear-site-data",
        b"content-location",
        b"location",
        b"nel",
        b"report-to",
        b"reporting-endpoints",
        b"strict-transport-security",
        # What a web server in front of the gateway would obey, and give out a file of its own.
        b"x-litespeed-location",
        b"x-lighttpd-send-file",
        b"x-lighttpd-send-tempfile",
        b"x-sendfile",
    }
)
_OUR_FAMILIES = (b"access-control-", b"proxy-", b"x-accel-")
_ALLOWED = b"x-accel-buffering"
"""Of `_OUR_FAMILIES`, what a server says of its own stream."""

_MODERN_ERRORS = frozenset({b"-32020", b"-32021", b"-32022", b"-32601", b"-32602", b"-32700"})
"""The codes by which a modern server refuses with a status of 400 or 404."""

_FAULTS = {
    Fault.UNSENT: (Reason.UPSTREAM_UNREACHABLE, "the server could not be reached"),
    Fault.CUT: (Reason.OUTCOME_UNKNOWN, "the connection to the server was lost"),
    Fault.BAD: (Reason.BAD_ANSWER, "the server's answer is malformed"),
    Fault.STALLED: (Reason.TIMEOUT, "the server did not answer in time"),
}


def fieldsUp(head: RequestHead) -> HeaderPairs:
    """
    What a modern request brings that its server gets as it is, beside what may be forwarded to any.

    A parameter's field may have an underscore in its name, which is the server's own choice.
    """
    return tuple(
        (name, value)
        for name, value in head.headers
        if (name in _UP or (name.startswith(_PARAM) and b"_" in name)) and isFieldValue(value)
    )


def fieldsBack(pairs: Iterable[tuple[bytes, bytes]]) -> HeaderPairs:
    """The fields of a server's answer, in lower case, that its client gets."""
    pairs = list(pairs)
    hops = nominated(pairs)
    return tuple(
        (name, value)
        for name, value in pairs
        if name not in _OURS
        and name not in hops
        and (name == _ALLOWED or not name.startswith(_OUR_FAMILIES))
    )


@define(eq=False)
class Passing:
    """
    One request on its way through, and its answer. A Receiver.

    Life: made for the POST → `sent` with what carries it → the answer's end, or `stop`; or gone
    with its client.

    onEnd: told when nothing of it is left. onNotModern: told where the answer shows a server that
    is not of the modern era. again: sends the request once more; None where that may not be.
    """

    exchange: Exchange
    shared: Shared
    server: str
    message: Message
    timeout: float
    max_timeout: float
    onEnd: Callable[[Passing], None]
    onNotModern: Callable[[], object]
    again: Callable[[Passing], Outgoing | None] | None = None
    _outgoing: Outgoing | None = field(default=None, init=False)
    _sink: EventSink | None = field(default=None, init=False)
    _head: ResponseHead | None = field(default=None, init=False)
    _kept: bytearray = field(factory=bytearray, init=False)
    _size: int = field(default=0, init=False)
    _events: PassedStream | None = field(default=None, init=False)
    """How far the answer has come, where it is an event stream that can be read."""
    _over: bool = field(default=False, init=False)
    _started: float = field(init=False)
    _heard: float = field(init=False)
    _blockedSince: float | None = field(default=None, init=False)
    _moved: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._started = self._heard = self.shared.clock.seconds()

    @property
    def listens(self) -> bool:
        """Whether its stream stays open for as long as anybody listens."""
        return self.message.method == LISTEN

    def sent(self, outgoing: Outgoing) -> None:
        """It is on its way; hear of its client's end, and of the time."""
        self._outgoing = outgoing
        self.exchange.onGone = self._gone
        self.shared.pulse.join(self)
        self.shared.observer.observed(CallStarted(self.server, self.message.method))

    def stop(self) -> None:
        """The gateway ends: so does this, a `subscriptions/listen` in order."""
        if self._over:
            return
        sink = self._sink
        if sink is None or not self.listens:
            self._fail(Reason.SHUTTING_DOWN, "the gateway is shutting down")
            return
        self._end()
        self._last(sink, listenCompleted(self.message.id or b"null").encode())
        sink.close()

    # Receiver.

    def headReceived(self, head: ResponseHead) -> None:
        """See Receiver."""
        self._heard = self.shared.clock.seconds()
        self._head = head
        if not (200 <= head.status < 300 or head.status >= 400):
            self._fail(Reason.BAD_ANSWER, "the server answered with a redirect")
        elif head.mediaType == b"text/event-stream" and head.status != 204:
            # 204 has no body, whatever its type (RFC 9112 section 6.3).
            if head.status < 300 and not head.encoded:
                self._events = PassedStream()
            self._open(head)
        elif head.length is not None and head.length > self.shared.limits.max_answer:
            self._tooLarge()

    def dataReceived(self, data: bytes) -> None:
        """See Receiver."""
        self._heard = self.shared.clock.seconds()
        head = self._head
        if self._over or head is None or not data:
            return
        if self._events is not None:
            self._events.passed(data)
        elif head.mediaType != b"text/event-stream":
            self._size += len(data)
            if self._size > self.shared.limits.max_answer:
                self._tooLarge()
                return
        if self._sink is None:
            self._kept += data
            if len(self._kept) <= WHOLE:
                return
            data = bytes(self._kept)
            self._kept.clear()
            self._open(head)
        self._write(data)

    def bodyEnded(self) -> None:
        """See Receiver."""
        head, sink = self._head, self._sink
        if self._over or head is None:
            return
        if not self.listens and self._events is not None and self._events.answered is False:
            self._fail(Reason.OUTCOME_UNKNOWN, "the server ended the stream without an answer")
            return
        self._end()
        if sink is not None:
            sink.close()
        else:
            body = bytes(self._kept)
            self.exchange.onGone = None
            self.exchange.answer(head.status, fieldsBack(head.pairs), body)
            if head.status in (400, 404, 405) and not _isModern(body):
                self.onNotModern()
        took = self.shared.clock.seconds() - self._started
        method = self.message.method
        self.shared.observer.observed(
            CallAnswered(self.server, method, took, head.status >= 400),
        )

    def failed(self, fault: Fault) -> None:
        """See Receiver."""
        if self._over:
            return
        self._outgoing = None
        if fault is not Fault.CUT or self._sink is not None or not self._repeat():
            self._fail(*_FAULTS[fault])

    def _repeat(self) -> bool:
        """Rule 6. Returns whether it was sent again."""
        again, self.again = self.again, None
        outgoing = None if again is None else again(self)
        if outgoing is None:
            return False
        self._outgoing, self._head, self._size = outgoing, None, 0
        self._kept.clear()
        self.shared.observer.observed(CallRepeated(self.server, self.message.method))
        return True

    # The answer.

    def _open(self, head: ResponseHead) -> None:
        sink = self._sink = self.exchange.open(head.status, fieldsBack(head.pairs))
        sink.onDrained = self._drained
        if sink.blocked:
            self._block()

    def _write(self, data: bytes) -> None:
        if self._sink is not None and not self._sink.write(data):
            self._block()

    def _block(self) -> None:
        if self._blockedSince is None and self._sink is not None:
            self._blockedSince, self._moved = self.shared.clock.seconds(), self._sink.moved
            if self._outgoing is not None:
                self._outgoing.pause()

    def _drained(self) -> None:
        if self._over or self._blockedSince is None:
            return
        self._blockedSince = None
        self._heard = self.shared.clock.seconds()
        if self._outgoing is not None:
            self._outgoing.resume()

    def _tooLarge(self) -> None:
        self._bound("max_answer")
        self._fail(Reason.BAD_ANSWER, "the server's answer is too large")

    # Time.

    def beat(self, now: float) -> None:
        """Some time has passed; `now` in seconds of the gateway's clock."""
        sink = self._sink
        if self._blockedSince is not None and sink is not None:
            if sink.moved != self._moved:
                # It reads, if slowly.
                self._blockedSince, self._moved = now, sink.moved
            elif now - self._blockedSince >= self.shared.limits.reader_blocked:
                self._bound("reader_blocked")
                self._end()
                self._failure(Reason.TIMEOUT)
                # It would not read an error either.
                sink.abort()
            return
        if self.listens and sink is not None:
            return
        if now - self._heard >= self.timeout or now - self._started >= self.max_timeout:
            self._fail(*_FAULTS[Fault.STALLED])

    # The end.

    def _gone(self) -> None:
        """The client closed: that cancels its request."""
        if self._over:
            return
        self._end()
        self._failure(Reason.CANCELLED)

    def _fail(self, reason: Reason, message: str) -> None:
        """Answer with a failure; where the head is out already, in a last event, or cut."""
        sink = self._sink
        self._end()
        self._failure(reason)
        refusal = failure(self.shared, reason, message)
        body = refusal.body(self.message.id)
        if sink is None:
            self.exchange.onGone = None
            self.exchange.answer(refusal.status, refusal.fields(), body)
        elif self._events is None or self._events.answered is not False:
            sink.abort()
        else:
            self._last(sink, body)
            sink.close()

    def _last(self, sink: EventSink, body: bytes) -> None:
        """Say a last message in an event stream, if it can be read."""
        if self._events is not None:
            sink.write(self._events.finish() + encodeEvent(body))

    def _failure(self, reason: Reason) -> None:
        failed = CallFailed(self.server, self.message.method, reason.value)
        self.shared.observer.observed(failed)

    def _end(self) -> None:
        self._over = True
        self.shared.pulse.leave(self)
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.abort()
        if self._sink is not None:
            self._sink.onDrained = None
        self.onEnd(self)

    def _bound(self, name: str) -> None:
        self.shared.observer.observed(BoundReached(name, self.server))


def failure(shared: Shared, reason: Reason, message: str) -> Refusal:
    """The refusal for a modern call that the gateway fails; says when to come again."""
    again = reason in (Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.SHUTTING_DOWN)
    return modernCallFailed(reason, message, shared.limits.retry_after if again else 0)


def _isModern(body: bytes) -> bool:
    """Whether the body of a refusal is one that a modern server gives; it may be without an id."""
    error = members(members(body).get("error"))
    return bytes(error.get("code", b"")) in _MODERN_ERRORS
