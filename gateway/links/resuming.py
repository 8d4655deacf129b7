"""
A session with a Streamable HTTP server as one plain link.

Where the gateway's streams are its own, somebody has to do what a client does for itself: open
the server's GET stream, and resume what was cut (MCP 2025-11-25, basic/transports, Listening for
Messages from the Server, Resumability and Redelivery). Theory of operation:

 1. Once the server was told `notifications/initialized`, its GET stream is opened. It is opened
    again when it ends, after the server's `retry`, with the last event id it carried.
 2. The last event id of each running call is kept. When its stream ends without the answer and
    there is an id, the rest is fetched by a GET with that id, as often as the server ends the
    stream (SEP-1699).
 3. What may have run is never sent again. A call that cannot be resumed is settled as it was.
 4. A GET that fails is tried again after a back-off, one that is refused ever more seldom, since
    credentials change, and not all that answers is the server. Only 405 says that it has no GET
    stream. An id that is refused again and again is given up where it is no call's.
 5. A stream that is resumed and brings nothing new has a back-off, too, if it is no call's; a
    call's is resumed `max_resumptions` times so. `Course` tells what is new.
 6. A 404 says that the server lost the session: from then on no stream is opened. Calls that have
    one may still be answered, what waited for one is settled. Whoever was told by the 404 of what
    it sent closes the link; where only a GET found out, the link is lost once no call runs.
 7. The listener hears nothing from within `send`, `cancel` or `close`.
 8. What a GET brings and is no message is skipped; where it seems to be the answer to a call, that
    call is over, too, for no other will come.
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
from gateway.links.course import Course
from gateway.links.http_streams import UNKNOWN, badAnswer
from gateway.links.interfaces import (
    EventMark,
    ILink,
    ILinkListener,
    LinkFailed,
    ListenRefused,
    Reason,
    Settled,
)
from gateway.links.streamable_http import StreamableHTTPLink
from gateway.observe.observer import BoundReached
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message

__all__ = ["ResumingLink"]

_log = Logger()

SELDOM = 20
"""How many times `respawn_last` a server that refuses its GET stream is left alone, at most."""

_CREDENTIALS = (401, 403, 407)
"""The HTTP statuses by which a server refuses who asks, not what is asked for."""

_OUTAGES = (408, 429)
"""The HTTP statuses below 500 that mean: not now."""


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
    _calls: dict[object, Course] = field(factory=dict, init=False)
    _ids: dict[bytes, Course] = field(factory=dict, init=False)
    _general: Course | None = field(default=None, init=False)
    """The stream that belongs to no call; None before it is opened and after the session."""
    _greeting: tuple[object, Course] | None = field(default=None, init=False)
    """`notifications/initialized` on its way: what it is known by, and what follows it."""
    _newest: CallContext | None = field(default=None, init=False)
    """Of the last request, where its credentials go with the GETs."""
    _lost: bool = field(default=False, init=False)
    """Whether the server lost the session."""
    _told: bool = field(default=False, init=False)
    """Whether our user knows that."""
    _over: bool = field(default=False, init=False)
    _turn: IDelayedCall | None = field(default=None, init=False)

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
        greeting = None
        if message.method == "notifications/initialized":
            course = Course(context)
            # Where nobody asks, it must still be heard whether the server took it.
            greeting = (course if call is None else call, course)
        if not self.inner.send(message, call if greeting is None else greeting[0], context):
            return False
        if message.kind is Kind.REQUEST and message.id is not None and call is not None:
            self._calls[call] = self._ids[message.id] = Course(context, call, message.id)
            if self.inner.forwardAuthorization:
                # They may have been renewed. Such a link is one client's, never shared.
                self._newest = context
        self._greeting = greeting or self._greeting
        return True

    def cancel(self, call: object) -> None:
        """See ILink."""
        course = self._calls.get(call)
        if course is not None:
            self._leave(course)
        self.inner.cancel(call)
        if self._isEnding() and self._turn is None:
            self._turn = self.inner.client.clock.callLater(0, self._turned)

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
        turn, self._turn = self._turn, None
        if turn is not None and turn.active():
            turn.cancel()
        for course in (*self._calls.values(), self._general):
            if course is not None:
                course.rest()
        self._calls.clear()
        self._ids.clear()
        self._general = self._greeting = None

    # ILinkListener, of the inner link.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if self._over:
            return
        course = self._courseOf(origin)
        call = origin
        if course is not None:
            course.saw(mark, message)
            call = course.call
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
        course = self._courseOf(origin)
        if course is not None:
            course.saw(mark)

    def accepted(self, call: object) -> None:
        self._greeted(call)
        if not isinstance(call, Course):
            self.listener.accepted(call)

    def settled(self, call: object, settled: Settled) -> None:
        lost = settled.status == 404 and not self.sessionless
        course = self._calls.get(call)
        if course is not None:
            if settled.reason is Reason.OUTCOME_UNKNOWN and self._resumes(course):
                self._later(course, course.retry)
                return
            self._leave(course)
        elif not lost:
            # What refused it may have been none of the server.
            self._greeted(call)
        if not isinstance(call, Course):
            self._told = self._told or lost
            self.listener.settled(call, settled)
        if lost:
            self._loseSession()
        self._end()

    def drained(self) -> None:
        self.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        self._stop()
        self.listener.lost(reason, message)

    def ended(self, origin: object) -> None:
        if not isinstance(origin, Course) or self._over:
            return
        clock, limits = self.inner.client.clock, self.inner.client.limits
        origin.ended(clock.seconds(), limits.respawn_last)
        origin.fruitless += 1
        delay = origin.retry
        if origin.call is None:
            # A server may end its stream at once each time; it is asked ever more seldom.
            delay = self._backOff(origin.fruitless, delay)
        self._later(origin, delay)

    # The courses.

    def _courseOf(self, origin: object | None) -> Course | None:
        return origin if isinstance(origin, Course) else self._calls.get(origin)

    def _resumes(self, course: Course) -> bool:
        """Whether the server may have more of a call's stream."""
        return course.last is not None and not self._lost

    def _greeted(self, note: object) -> None:
        """What the server was told last: the time to listen has come if it was our greeting."""
        if self._greeting is None or self._greeting[0] is not note or self._general is not None:
            return
        _, self._general = self._greeting
        self._greeting = None
        if not self._lost:
            self._listen(self._general)

    def _backOff(self, failures: int, least: float = 0.0, refused: bool = False) -> float:
        """How long to wait after so many failures in a row: tells, where that is our own bound."""
        limits = self.inner.client.limits
        delay = backOff(limits, failures)
        last = delay >= limits.respawn_last
        if refused:
            longest = SELDOM * limits.respawn_last
            delay = min(longest, limits.respawn_first * 2.0 ** min(failures - 1, 32))
        delay = jittered(delay)
        if delay <= least:
            return least
        self._bounded("respawn_last" if last else "respawn_first")
        return delay

    def _bounded(self, limit: str) -> None:
        self.inner.client.observer.observed(BoundReached(limit, self.inner.client.server))

    def _later(self, course: Course, delay: float) -> None:
        if course.call is None:
            if course is not self._general:
                return
        elif course.fruitless > self.inner.client.limits.max_resumptions:
            self._bounded("max_resumptions")
            self._unknown(course)
            return
        elif not self._resumes(course):
            self._unknown(course)
            return
        course.rest()
        course.timer = self.inner.client.clock.callLater(delay, self._listen, course)

    def _listen(self, course: Course) -> None:
        course.timer = None
        context = self._newest or course.context
        opening = self.inner.listen(course, course.last, context, self._spoilt)
        if course.held:
            self.inner.hold(course)
        opening.addCallbacks(
            self._opened, self._notOpened, callbackArgs=(course,), errbackArgs=(course,)
        )
        opening.addErrback(lambda failure: _log.failure("while listening", failure))

    def _opened(self, _: None, course: Course) -> None:
        course.opened(self.inner.client.clock.seconds())

    def _notOpened(self, failure: Failure, course: Course) -> None:
        if self.inner.closing or not self._isOurs(course):
            return
        error = failure.value
        status = error.status if isinstance(error, ListenRefused) and error.asked else 0
        refused = 0 < status < 500 and status not in _OUTAGES
        if isinstance(error, LinkFailed):
            refused = error.reason is Reason.BAD_ANSWER
        if status == 404 and not self.sessionless:
            if course.call is not None:
                self._unknown(course)
            self._loseSession()
            self._end()
        elif status == 405:
            if course.call is not None:
                self._unknown(course)
        else:
            course.fruitless += 1
            failures = course.fruitless
            if refused:
                mayBeTheID = course.call is None and status not in _CREDENTIALS
                patience = self.inner.client.limits.max_resumptions
                course.refused(patience if mayBeTheID else float("inf"))
                failures = course.refusals
            self._later(course, self._backOff(failures, refused=refused))

    def _spoilt(self, id: bytes) -> None:
        """A GET brought what is no message, but seems to be the answer of this id (rule 8)."""
        course = self._ids.get(id)
        if course is None:
            return
        self._leave(course)
        self.inner.cancel(course.call)
        self.listener.settled(course.call, badAnswer("the server's answer is malformed"))
        self._end()

    def _isOurs(self, course: Course) -> bool:
        """Whether anybody still waits for a course."""
        return course is self._general or self._calls.get(course.call) is course

    def _unknown(self, course: Course) -> None:
        self._leave(course)
        self.listener.settled(course.call, UNKNOWN)
        self._end()

    def _leave(self, course: Course) -> None:
        """A call is over: nothing of it is waited for."""
        course.rest()
        if self._calls.get(course.call) is course:
            del self._calls[course.call]
        if self._ids.get(course.id) is course:
            del self._ids[course.id]
        self.inner.cancel(course)

    # The end.

    def _loseSession(self) -> None:
        """The server lost the session: open no stream any more."""
        self._lost = True
        general, self._general = self._general, None
        if general is not None:
            general.rest()
            self.inner.cancel(general)
        for course in list(self._calls.values()):
            if course.timer is not None and not self._over:
                self._unknown(course)

    def _isEnding(self) -> bool:
        return self._lost and not (self._told or self._calls or self._over)

    def _turned(self) -> None:
        self._turn = None
        self._end()

    def _end(self) -> None:
        """End the link of a session that is lost, once no call runs on it."""
        if self._isEnding():
            self._stop()
            self.inner.close()
            self.listener.lost(Reason.SERVER_EXITED, "the server lost its session")
