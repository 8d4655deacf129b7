"""
Towards the server: what a session sends goes to its link, or waits for the link being made.

A call that an HTTP server refused because its session is lost provably did not run: it is sent
once more on the next link. A second refusal ends the session.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.guard.limits import Limits
from gateway.links.interfaces import ILink, LinkFailed
from gateway.observe.observer import BoundReached, IObserver, MessageDropped
from gateway.relay.effects import Call
from gateway.relay.hearing import NOBODY
from gateway.relay.keeper import LinkKeeper
from gateway.wire.context import CallContext
from gateway.wire.envelope import RESPONSE, Message
from gateway.wire.refusals import Reason

__all__ = ["Note", "Sender", "SessionOver"]

_log = Logger()


class SessionOver(Exception):
    """The session cannot go on with what the server came back with."""


@define(eq=False)
class Note:
    """A notification or response on its way to an HTTP server, until the server took it."""

    message: Message
    context: CallContext
    taken: Deferred[None] = field(factory=Deferred)
    replayed: bool = False
    via: ILink | None = None

    def done(self) -> None:
        """The server took it, or never will."""
        if not self.taken.called:
            self.taken.callback(None)


class _Outcome(Protocol):
    """The upstream, as its sender sees it."""

    def unsent(self, call: Call, reason: Reason, why: str) -> None:
        """A call could not be sent."""

    def isRunning(self, call: Call) -> bool:
        """Whether anybody still waits for a call."""

    def forgotten(self, link: ILink | None) -> None:
        """The server forgot the session of this link."""

    def over(self) -> None:
        """The session is lost."""


@define(eq=False)
class Sender:
    """
    The way of one session to its server.

    notes: whether notifications and responses are followed until the server took them, as over
    HTTP, where each has a request of its own and could overtake another.
    endsWithLink: whether the session is over when a lost link cannot be made again.
    """

    keeper: LinkKeeper
    outcome: _Outcome
    limits: Limits
    clock: IReactorTime
    observer: IObserver
    name: str
    notes: bool
    endsWithLink: bool
    _outgoing: list[tuple[Message, Call | Note | None, CallContext]] = field(
        factory=list, init=False
    )
    _held: int = field(default=0, init=False)
    _followed: dict[Note, None] = field(factory=dict, init=False)
    _notes: dict[Note, None] = field(factory=dict, init=False)
    """Those whose end is not known, though nobody may wait for it any more."""

    def send(self, message: Message, call: Call | Note | None, context: CallContext) -> bool:
        """Send, or wait for the link. False: not taken, a queue is full."""
        link = self.keeper.link
        if link is not None and not self._outgoing:
            if call is not None:
                call.via = link
            return link.send(message, call, context)
        if message.kind is RESPONSE:
            # Whoever asked went away with the link.
            self._undelivered(call)
            return True
        bound = ""
        if len(self._outgoing) >= self.limits.max_stdin_messages:
            bound = "max_stdin_messages"
        elif self._held >= self.limits.max_stdin_bytes:
            bound = "max_stdin_bytes"
        if bound:
            self.observer.observed(BoundReached(bound, self.name))
            return False
        self._wait(message, call, context)
        return True

    def _wait(self, message: Message, call: Call | Note | None, context: CallContext) -> None:
        self._outgoing.append((message, call, context))
        self._held += len(message.encode())
        if len(self._outgoing) == 1:
            acquired = self.keeper.acquire(context)
            acquired.addCallbacks(lambda _: self._linked(), self._notLinked)
            acquired.addErrback(lambda failure: _log.failure("while sending", failure))

    def again(self, message: Message, call: Call | Note) -> None:
        """The server refused this for its session is lost: once more on the next link."""
        if call.replayed:
            self.outcome.over()
            return
        call.replayed = True
        via, call.via = call.via, None
        self.outcome.forgotten(via)
        if message.kind is RESPONSE:
            # Whoever asked went away with its session.
            self._undelivered(call)
        else:
            self._wait(message, call, call.context)

    def tell(self, message: Message, context: CallContext) -> bool | Deferred[bool]:
        """Send a notification or response. Returns: see `Relay.message`."""
        if not self.notes:
            return self.send(message, None, context)
        note = Note(message, context)
        if not self.send(message, note, context):
            return False
        told: Deferred[bool] = Deferred()
        self.followed(note).addCallback(lambda _: told.callback(True))
        return told

    def followed(self, note: Note) -> Deferred[None]:
        """Fires once the server took a note that was sent, after `queue_wait` at the latest."""
        if note.taken.called:
            return note.taken
        timer = self.clock.callLater(self.limits.queue_wait, self._waited, note)
        self._followed[note] = None
        self._notes[note] = None

        def taken(_: None) -> None:
            self._followed.pop(note, None)
            if timer.active():
                timer.cancel()

        return note.taken.addCallback(taken)

    def ended(self, note: Note) -> None:
        """The server took a note, or never will."""
        self._notes.pop(note, None)
        note.done()

    def lost(self, link: ILink | None) -> None:
        """A link is gone: nobody knows whether the notes on it were taken."""
        for note in [note for note in self._notes if note.via is not None and note.via is link]:
            self._undelivered(note)

    def isUsed(self, link: ILink) -> bool:
        """Whether a note is on its way on a link."""
        return any(note.via is link for note in self._notes)

    def _taken(self) -> list[tuple[Message, Call | Note | None, CallContext]]:
        outgoing, self._outgoing, self._held = self._outgoing, [], 0
        return outgoing

    def _waited(self, note: Note) -> None:
        self.observer.observed(BoundReached("queue_wait", self.name))
        note.done()

    def _linked(self) -> None:
        outgoing = self._taken()
        for message, call, context in outgoing:
            if isinstance(call, Call):
                if not self.outcome.isRunning(call):
                    continue
                if not self.send(message, call, context):
                    self.outcome.unsent(call, Reason.OVERLOADED, "the server does not keep up")
            elif not self.send(message, call, context):
                self._undelivered(call)

    def _notLinked(self, failure: Failure) -> None:
        outgoing = self._taken()
        error = failure.value
        if isinstance(error, SessionOver) or (self.endsWithLink and isinstance(error, LinkFailed)):
            self.outcome.over()
        elif not isinstance(error, LinkFailed):
            _log.failure("a handshake broke", failure)
            error = LinkFailed(Reason.BAD_ANSWER, "the handshake with the server broke")
        for _, call, _ in outgoing:
            if not isinstance(call, Call):
                self._undelivered(call)
            elif isinstance(error, LinkFailed):
                self.outcome.unsent(call, error.reason, error.message)

    def _undelivered(self, note: Call | Note | None) -> None:
        self.observer.observed(MessageDropped(self.name, "undeliverable"))
        if isinstance(note, Note):
            self.ended(note)

    def forget(self) -> None:
        """The session is over: nothing waits any more."""
        self.outcome = NOBODY
        if self._outgoing:
            self._taken()
        self._notes.clear()
        for note in list(self._followed):
            note.done()
