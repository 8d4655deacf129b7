"""
What the server says to the client that is no answer: which stream takes it, and where it waits
while there is none. Pure.

 1. The client gets a request of the server under an id of the gateway's own (`questions.py`).
 2. A message goes to exactly one stream (`routes.py`); without one it waits (`waiting.py`), bounded
    in time, number and bytes. What cannot wait is dropped and counted; of a request the server
    is told.
 3. While a request is unanswered the deadlines of the calls stand still. It has a cap of its own.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, MessageDropped
from gateway.relay.calls import Calls
from gateway.relay.effects import Call, Deliver, Effect, Forward
from gateway.relay.questions import Question, Questions
from gateway.relay.routes import Routes
from gateway.relay.times import Due
from gateway.relay.waiting import WaitingRoom
from gateway.sessions.record import SessionRecord
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, Message, emptyResult, members, notification
from gateway.wire.refusals import errorMessage

__all__ = ["Deliveries"]

_NEEDS = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
    "tasks/get": "tasks",
    "tasks/result": "tasks",
    "tasks/list": "tasks",
    "tasks/cancel": "tasks",
}
"""The client capability a server's request needs."""


@define(eq=False)
class Deliveries:
    """
    The way of one session's messages to its client.

    record: the session's record. calls: its running calls; their streams carry messages, too.
    cap: seconds for which a request of the server waits for the client's answer. due: told when
    something here is due. strict, common: see Router.
    """

    record: SessionRecord
    limits: Limits
    calls: Calls
    cap: float
    due: Due
    strict: bool
    common: bool = False
    _routes: Routes = field(init=False)
    _questions: Questions = field(factory=Questions, init=False)
    _waiting: WaitingRoom = field(init=False)
    _capabilities: tuple[str, ...] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._routes = Routes(self.calls.running, self.strict)
        self._waiting = WaitingRoom(self.limits)

    def passes(self, strict: bool) -> None:
        """See Router."""
        self.strict = self._routes.strict = strict

    def greeted(self) -> None:
        """The record's `initialize` is new."""
        self._capabilities = None

    def _offers(self, capability: str) -> bool:
        """Whether the client declared a capability; most are never asked."""
        if self._capabilities is None:
            declared = members(self.record.initialize).get("capabilities")
            self._capabilities = tuple(members(declared))
        return capability in self._capabilities

    # Streams.

    @property
    def streams(self) -> list[Any]:
        """The attached streams, the newest last."""
        return self._routes.attached

    def attached(self, stream: object) -> list[Effect]:
        """The client opened a stream for what belongs to no call."""
        self._routes.attached.append(stream)
        return self.flushed()

    def detached(self, stream: object) -> None:
        """A stream ended."""
        if stream in self._routes.attached:
            self._routes.attached.remove(stream)

    def flushed(self) -> list[Effect]:
        """Send what waited, in order, to the streams there are now."""
        effects: list[Effect] = []
        if not self._waiting.queue:
            return effects

        def takes(message: Message) -> bool:
            request = message.kind is REQUEST
            logs = message.method == "notifications/message"
            target = None if self._isHeld(message) else self._routes.any(request or logs)
            if target is not None:
                effects.append(self._deliver(message, target))
            return target is not None

        self._waiting.sweep(takes)
        return effects

    # Messages of the server.

    def progressed(self, message: Message, call: Call, origin: object) -> Effect:
        """Progress of a call came."""
        assert call.token is not None
        target = self._routes.ofCall(call, origin)
        if target is None:
            return self._dropped("no_stream_for_progress")
        return Deliver(message.withParam("progressToken", call.token), target)

    def notified(self, message: Message, origin: object, now: float) -> list[Effect]:
        """A notification came that names nothing."""
        return self._routed(message, origin, now, message.method == "notifications/message")

    def asked(self, message: Message, origin: object, now: float) -> list[Effect]:
        """A request of the server came."""
        assert message.id is not None
        context = origin.context if isinstance(origin, Call) else None
        if self.common:
            if message.method == "ping":
                return [Forward(emptyResult(message.id), None, context)]
            return [_refused(message.id, -32601, "No one client could answer", context)]
        needed = _NEEDS.get(message.method)
        if needed is not None and not self._offers(needed):
            why = f"The client does not offer {needed}"
            return [_refused(message.id, -32601, why, context)]
        if len(self._questions) >= self.limits.max_server_requests:
            return [
                BoundReached("max_server_requests", self.record.server),
                _refused(message.id, -32603, "Too many requests wait for the client", context),
            ]
        until = now + self.cap
        question = self._questions.ask(message, until)
        self.due.by(until)
        self.calls.pause(now)
        return self._routed(question, origin, now, True)

    def cancelled(self, message: Message, now: float) -> list[Effect]:
        """The server cancels a request of its own."""
        ours = self._questions.named(message.param("requestId"))
        if ours is None:
            return [self._dropped("stray_cancel")]
        return self._void(ours, message.withParam("requestId", ours), now)

    def forgotten(self, now: float) -> list[Effect]:
        """Whoever asked is gone: its requests are void."""
        effects: list[Effect] = []
        for ours in self._questions.all():
            cancelled = notification("notifications/cancelled", requestId=ours)
            effects += self._void(ours, cancelled, now)
        return effects

    def told(self, message: Message, now: float) -> list[Effect]:
        """Tell the client something of the gateway's own."""
        if self.common:
            return [self._dropped("no_stream")]
        target = self._routes.any(False)
        return self._wait(message, now) if target is None else [Deliver(message, target)]

    def undeliverable(self, message: Message, now: float) -> list[Effect]:
        """The stream of a `Deliver` did not take it."""
        if message.kind is REQUEST:
            return self._unanswered(message, now, "The client does not keep up")
        return [self._dropped("undeliverable")]

    # The client's answers.

    def answered(self, message: Message, now: float) -> list[Effect]:
        """The client answered a request of the server."""
        assert message.id is not None
        question = self._questions.find(message.id)
        if question is None or question.target is None:
            return [self._dropped("stray_response")]
        self._close(message.id, now)
        return [Forward(message.withID(question.id), None)]

    def notTaken(self, message: Message, now: float) -> None:
        """That answer was not taken by the server: the client may give it again."""
        if message.id is not None and self._questions.reopen(message.id):
            self.calls.pause(now)

    def progressOf(self, message: Message) -> Effect:
        """The client tells how far it is with a request of the server."""
        asked = self._questions.find(message.param("progressToken"))
        if asked is None or asked.token is None:
            return self._dropped("unknown_token")
        return Forward(message.withParam("progressToken", asked.token), None)

    # Time, and the end.

    def expired(self, now: float) -> list[Effect]:
        """Give up what waited too long, and tell when the next is due."""
        effects: list[Effect] = []
        for message in self._waiting.takeDue(now):
            effects.append(BoundReached("queued_for", self.record.server))
            effects += self._unheard(message, now)
        for ours in self._questions.overdue(now):
            question = self._questions.find(ours)
            assert question is not None
            effects.append(_refused(question.id, -32603, "The client did not answer in time"))
            cancelled = notification("notifications/cancelled", requestId=ours, reason=b'"timeout"')
            effects += self._void(ours, cancelled, now)
        self.due.by(self._waiting.due)
        self.due.by(self._questions.due)
        return effects

    def withdrawn(self) -> None:
        """The session is over: what waited for a stream waits no more, and may be much."""
        self._waiting.sweep(lambda message: True)

    # Inside.

    def _routed(
        self, message: Message, origin: object, now: float, toOnlyCall: bool
    ) -> list[Effect]:
        target = None if self._isHeld(message) else self._routes.of(origin, toOnlyCall)
        if target is None:
            return self._unheard(message, now) if self.strict else self._wait(message, now)
        return [self._deliver(message, target)]

    def _deliver(self, message: Message, target: object) -> Deliver:
        if message.kind is REQUEST:
            question = self._questions.find(message.id)
            if question is not None:
                question.target = target
        return Deliver(message, target)

    def _isHeld(self, message: Message) -> bool:
        """Whether a request of the server waits for `notifications/initialized`."""
        return (
            message.kind is REQUEST
            and message.method != "ping"
            and not self.record.initialized
            and not self.strict
        )

    def _wait(self, message: Message, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for bound, dropped in self._waiting.add(message, now):
            effects.append(BoundReached(bound, self.record.server))
            effects += self._unheard(dropped, now)
        self.due.by(self._waiting.due)
        return effects

    def _unheard(self, message: Message, now: float) -> list[Effect]:
        if message.kind is REQUEST:
            return self._unanswered(message, now, "The client has no stream open")
        return [self._dropped("no_stream")]

    def _unanswered(self, message: Message, now: float, why: str) -> list[Effect]:
        """A request of the server cannot reach the client."""
        if message.id is None or self._questions.find(message.id) is None:
            return [self._dropped("undeliverable")]
        question = self._close(message.id, now)
        return [_refused(question.id, -32603, why)]

    def _void(self, ours: bytes, cancelled: Message, now: float) -> list[Effect]:
        """Nobody waits for the client's answer any more: tell it so, if it was asked."""
        target = self._close(ours, now).target
        if target is None:
            self._waiting.remove(ours)
            return []
        if self._routes.isOpen(target):
            return [Deliver(cancelled, target)]
        return self.told(cancelled, now)

    def _close(self, ours: bytes, now: float) -> Question:
        question = self._questions.close(ours)
        if not self._questions:
            self.calls.resume(now)
        return question

    def _dropped(self, why: str) -> MessageDropped:
        return MessageDropped(self.record.server, why)


def _refused(id: bytes, code: int, message: str, context: CallContext | None = None) -> Forward:
    return Forward(errorMessage(id, code, message), None, context)
