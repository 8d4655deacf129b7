"""
A session with a Streamable HTTP server as one plain link.

Where the gateway's streams are its own, somebody has to do what a client does for itself: open
the server's GET stream, and resume what was cut (MCP 2025-11-25, basic/transports, Listening for
Messages from the Server, Resumability and Redelivery). Theory of operation:

 1. Once the server took `notifications/initialized`, its GET stream is opened. It is opened again
    when it ends, after the server's `retry`, with the last event id it carried. A server that
    refuses it has none.
 2. The last event id of each running call is kept. When its stream ends without the answer and
    there is an id, the rest is fetched by a GET with that id, as often as the server ends the
    stream (SEP-1699), but only so often without anything new.
 3. What may have run is never sent again. A call that cannot be resumed is settled as it was.
 4. A GET that is answered 404 says that the server lost the session. Calls that run have streams
    of their own and may still be answered; when none runs any more, the link is lost.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.links.backoff import backOff, jittered
from gateway.links.http_streams import UNKNOWN
from gateway.links.interfaces import (
    EventMark,
    ILink,
    ILinkListener,
    ListenRefused,
    Reason,
    Settled,
)
from gateway.links.streamable_http import StreamableHTTPLink
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message

__all__ = ["ResumingLink"]

RETRY = 1.0
"""Seconds to wait before a stream is resumed, where the server does not say."""

MAX_RETRY = 60.0
"""Seconds a server can make us wait."""

FRUITLESS = 5
"""How often a call is resumed without anything new coming of it."""


@define(eq=False, repr=False)
class _Course:
    """
    One stream of the server over all the connections it takes; the origin of its GETs.

    call: what it belongs to; None for the stream that belongs to no call. id: the call's.
    last: the id of the last event. fruitless: how often it was resumed for nothing.
    """

    context: CallContext
    call: object | None = None
    id: bytes = b""
    last: bytes | None = None
    retry: float = RETRY
    fruitless: int = 0
    held: bool = False
    timer: IDelayedCall | None = None
    opening: Deferred[None] | None = None

    def saw(self, mark: EventMark | None) -> None:
        """An event came."""
        self.fruitless = 0
        if mark is None:
            return
        if mark.id is not None:
            self.last = mark.id or None
        if mark.retry is not None and mark.retry.isdigit() and len(mark.retry) < 16:
            self.retry = min(int(mark.retry) / 1000, MAX_RETRY)

    def rest(self) -> None:
        """Wait for nothing any more."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()


@implementer(ILink, ILinkListener)
@define(eq=False, repr=False)
class ResumingLink:
    """
    Made for the handshake of `inner`, whose listener it is. Whoever asked for it closes it.

    listener: hears what the server says, with the call it belongs to as its origin.
    """

    listener: ILinkListener
    inner: StreamableHTTPLink = field(init=False)
    multiplexed: ClassVar[bool] = False
    _calls: dict[object, _Course] = field(factory=dict, init=False)
    _ids: dict[bytes, _Course] = field(factory=dict, init=False)
    _general: _Course | None = field(default=None, init=False)
    _greeting: tuple[object | None, CallContext] | None = field(default=None, init=False)
    _gone: bool = field(default=False, init=False)
    _over: bool = field(default=False, init=False)
    _log: Logger = field(factory=Logger, init=False)

    @property
    def answer(self) -> Message:
        """See ILink."""
        return self.inner.answer

    @property
    def sessionless(self) -> bool:
        """See ILink."""
        return self.inner.sessionless

    # ILink.

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink."""
        if not self.inner.send(message, call, context):
            return False
        if message.kind is Kind.REQUEST and message.id is not None and call is not None:
            course = _Course(context, call, message.id)
            self._calls[call] = self._ids[message.id] = course
        elif message.method == "notifications/initialized" and call is not None:
            self._greeting = (call, context)
        return True

    def cancel(self, call: object) -> None:
        """See ILink."""
        course = self._calls.get(call)
        if course is not None:
            self._leave(course)
        self.inner.cancel(call)

    def hold(self, origin: object | None) -> None:
        """See ILink: of origins it knows calls."""
        self._hold(origin, True)

    def release(self, origin: object | None) -> None:
        """See ILink."""
        self._hold(origin, False)

    def _hold(self, origin: object | None, hold: bool) -> None:
        tell = self.inner.hold if hold else self.inner.release
        tell(origin)
        course = self._calls.get(origin)
        if course is not None:
            course.held = hold
            tell(course)

    def close(self) -> Deferred[None]:
        """See ILink."""
        self._stop()
        return self.inner.close()

    def _stop(self) -> None:
        self._over = True
        for course in (*self._calls.values(), self._general):
            if course is not None:
                course.rest()
        self._calls.clear()
        self._ids.clear()
        self._general = None

    # ILinkListener, of the inner link.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if self._over:
            return
        course = origin if isinstance(origin, _Course) else self._calls.get(origin)
        if course is not None:
            course.saw(mark)
        call = origin if course is None else course.call
        if message.kind is Kind.RESPONSE and message.id is not None:
            answered = self._ids.get(message.id)
            if answered is not None:
                call = answered.call
                self._leave(answered)
                if origin is not call:
                    self.inner.cancel(call)
        self.listener.received(message, call, None)
        self._end()

    def marked(self, origin: object | None, mark: EventMark) -> None:
        course = origin if isinstance(origin, _Course) else self._calls.get(origin)
        if course is not None:
            course.saw(mark)

    def accepted(self, call: object) -> None:
        self._greeted(call)
        self.listener.accepted(call)

    def settled(self, call: object, settled: Settled) -> None:
        course = self._calls.get(call)
        if course is not None:
            if settled.reason is Reason.OUTCOME_UNKNOWN and course.last is not None:
                self._later(course, course.retry)
                return
            self._leave(course)
        elif settled.status != 404:
            self._greeted(call)
        self.listener.settled(call, settled)
        self._end()

    def drained(self) -> None:
        self.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        self._stop()
        self.listener.lost(reason, message)

    def ended(self, origin: object) -> None:
        if not isinstance(origin, _Course) or self._over:
            return
        origin.fruitless += 1
        delay = origin.retry
        if origin.call is None:
            # A server may end its stream at once each time; it is asked ever more seldom.
            delay = max(delay, self._spaced(origin.fruitless))
        self._later(origin, delay)

    # The courses.

    def _greeted(self, note: object) -> None:
        """What the server was told last: the time to listen has come if it was our greeting."""
        if self._greeting is None or self._greeting[0] is not note or self._general is not None:
            return
        self._general = _Course(self._greeting[1])
        self._greeting = None
        self._listen(self._general)

    def _spaced(self, failures: int) -> float:
        return jittered(backOff(self.inner.client.limits, failures))

    def _later(self, course: _Course, delay: float) -> None:
        if course.call is not None and course.fruitless > FRUITLESS:
            self._unknown(course)
            return
        course.rest()
        course.timer = self.inner.client.clock.callLater(delay, self._listen, course)

    def _listen(self, course: _Course) -> None:
        course.timer = None
        course.opening = self.inner.listen(course, course.last, course.context)
        if course.held:
            self.inner.hold(course)
        course.opening.addCallbacks(
            self._opened, self._notOpened, callbackArgs=(course,), errbackArgs=(course,)
        )
        course.opening.addErrback(lambda failure: self._log.failure("while listening", failure))

    def _opened(self, _: None, course: _Course) -> None:
        course.opening = None

    def _notOpened(self, failure: Failure, course: _Course) -> None:
        course.opening = None
        if self._over or (course is not self._general and course.call not in self._calls):
            return
        error = failure.value
        status = error.status if isinstance(error, ListenRefused) else 0
        if status == 404 and not self.sessionless:
            self._gone = True
        if status and status < 500 and status not in (408, 429):
            if course.call is not None:
                self._unknown(course)
            self._end()
            return
        course.fruitless += 1
        self._later(course, self._spaced(course.fruitless))

    def _unknown(self, course: _Course) -> None:
        self._leave(course)
        self.listener.settled(course.call, UNKNOWN)
        self._end()

    def _leave(self, course: _Course) -> None:
        """A call is over: nothing of it is waited for."""
        course.rest()
        self._calls.pop(course.call, None)
        self._ids.pop(course.id, None)
        self.inner.cancel(course)

    def _end(self) -> None:
        """End the link of a session that is lost, once no call runs on it."""
        if self._gone and not self._calls and not self._over:
            self._stop()
            self.inner.close()
            self.listener.lost(Reason.SERVER_EXITED, "the server lost its session")
