"""
Ids and routes between one legacy session and one link: which message goes where, under which id.

Pure: it takes messages and `now`, returns effects, and calls nothing. Theory of operation:

 1. A request of the client gets an id of the gateway's own towards the server, and its progress
    token, if any, becomes that id; the answer and the progress get the client's spelling back.
    So equal ids of two clients, or two equal ids in flight, never meet.
 2. A request of the server gets an id of the gateway's own towards the client, the same way.
 3. `notifications/cancelled` names the id its receiver knows.
 4. Each message for the client goes to exactly one stream (wire contract, "How an answer
    travels"): an answer and progress to their call's; what the link says belongs to a call to
    that call's; server requests and log messages of a session's only running call to that
    call's; otherwise to the newest GET stream; without one to the newest running call's;
    without one it waits, bounded in time, number and bytes.
 5. A call ends exactly once: by its answer, its deadline, its cancellation, the loss of the link
    or the end of the session. What comes later is dropped and counted.
 6. The deadline of a call moves with its progress and stands still while a request of the server
    is unanswered; its cap does not. A request of the server has such a cap, too.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, CallRepeated, CallStarted, MessageDropped
from gateway.relay.effects import (
    Answer,
    Call,
    Changed,
    Deliver,
    Effect,
    Forget,
    Forward,
    OwnEnded,
)
from gateway.relay.numbered import Numbered
from gateway.relay.questions import Questions
from gateway.relay.recovery import learn
from gateway.relay.replays import Replays, told
from gateway.relay.routes import Routes
from gateway.relay.times import CallTimes
from gateway.relay.waiting import WaitingRoom
from gateway.sessions.record import SessionRecord
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message, emptyResult, members, notification
from gateway.wire.refusals import Reason, callFailed, errorMessage

__all__ = ["Router"]

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

_NAMING = {
    "notifications/cancelled": "stray_cancel",
    "notifications/progress": "unknown_token",
}
"""What names a request by a small id, and why it is dropped where ids are everybody's."""

_NEVER = float("inf")


@define(eq=False)
class Router:
    """
    The routes of one session. One at a time; its relay drives it and forgets it.

    record: the session's record; what the traffic teaches is written to it.
    timeout, max_timeout: seconds a call may take without progress, and at all.
    times: the same where tools have times of their own. replays: which calls are sent once more.
    strict: whether a message goes only where the link says it belongs, and nowhere else: the
        streams of client and server are the same ones then.
    common: whether all clients of a server share these routes, as one without sessions has them
        do. Then what names no call of a client's own cannot be told to be that client's: its
        answers, progress and cancellations are dropped, the server's requests are refused, the
        record learns nothing, and the bound on calls is that on connections.
    """

    record: SessionRecord
    limits: Limits
    timeout: float
    max_timeout: float
    strict: bool = False
    common: bool = False
    times: CallTimes | None = None
    replays: Replays = field(factory=lambda: Replays("none"))
    calls: dict[bytes, Call] = field(factory=dict, init=False)
    soonest: float = field(default=_NEVER, init=False)
    numbered: Numbered = field(init=False)
    _routes: Routes = field(init=False)
    _questions: Questions = field(factory=Questions, init=False)
    _waiting: WaitingRoom = field(init=False)
    _pausedSince: float | None = field(default=None, init=False)
    _lastID: int = field(default=0, init=False)
    _capabilities: tuple[str, ...] = field(default=(), init=False)

    def __attrs_post_init__(self) -> None:
        self._routes = Routes(self.calls, self.strict)
        self.numbered = Numbered(self.limits)
        self._waiting = WaitingRoom(self.limits)
        self.greeted()

    def passes(self, strict: bool) -> None:
        """The first link tells whether its streams are the client's: see `strict`."""
        self.strict = self._routes.strict = strict

    def greeted(self) -> None:
        """The record's `initialize` is new: learn what the client can do."""
        declared = members(self.record.initialize).get("capabilities")
        self._capabilities = tuple(members(declared))

    # From the client.

    def request(
        self, message: Message, target: object, streams: bool, context: CallContext, now: float
    ) -> list[Effect]:
        """A request came; its answer and what belongs to it go to `target`."""
        assert message.id is not None
        timeout, most = self.timeout, self.max_timeout
        if self.times is not None:
            timeout, most = self.times.times(message)
        call = Call(
            id=message.id,
            upstream=self._nextID(),
            request=message,
            token=message.meta("progressToken"),
            target=target,
            streams=streams,
            context=context,
            started=now,
            deadline=self._standing(now) + timeout,
            cap=now + most,
            timeout=timeout,
        )
        server = self.record.server
        if target is not None and self._isFull():
            answer = callFailed(call.id, Reason.OVERLOADED, "too many calls run in this session")
            return [
                BoundReached("max_calls", server),
                Answer(call, answer, Reason.OVERLOADED.value),
            ]
        self.calls[call.upstream] = call
        self._due(min(call.deadline, call.cap))
        effects: list[Effect] = [
            CallStarted(server, message.method),
            Forward(self.towardsServer(call), call, context),
        ]
        if streams and self._waiting:
            effects += self._flush()
        return effects

    def _isFull(self) -> bool:
        most = self.limits.max_calls
        if self.common or len(self.calls) < most:
            return False
        return sum(call.target is not None for call in self.calls.values()) >= most

    def towardsServer(self, call: Call) -> Message:
        """The call's request under the ids the server gets."""
        message = call.request
        if call.token is not None:
            message = message.withMeta("progressToken", call.upstream)
        return message.withID(call.upstream)

    def ownRequest(self, message: Message, context: CallContext, now: float) -> list[Effect]:
        """A request of the gateway itself; `OwnEnded` tells its end. It counts for no bound."""
        effects = self.request(message, None, False, context, now)
        for effect in effects:
            if isinstance(effect, Forward) and effect.call is not None:
                effect.call.present = False
        return effects

    def notification(self, message: Message, now: float) -> list[Effect]:
        """A notification of the client came."""
        if self.common and message.method in _NAMING:
            return [self._dropped(_NAMING[message.method])]
        if message.method == "notifications/cancelled":
            return self._cancelledByClient(message, now)
        if message.method == "notifications/progress":
            asked = self._questions.find(message.param("progressToken"))
            if asked is None or asked.token is None:
                return [self._dropped("unknown_token")]
            return [Forward(message.withParam("progressToken", asked.token), None)]
        if message.method == "notifications/initialized":
            if self.record.initialized:
                return [self._dropped("initialized_twice")]
            self.record.initialized = True
            return [Forward(message, None), Changed(), *self._flush()]
        return [Forward(message, None)]

    def response(self, message: Message, now: float) -> list[Effect]:
        """The client answered a request of the server."""
        assert message.id is not None
        question = self._questions.find(message.id)
        if question is None or question.target is None:
            return [self._dropped("stray_response")]
        self._questions.close(message.id)
        self._resume(now)
        return [Forward(message.withID(question.id), None)]

    def notTaken(self, message: Message, now: float) -> None:
        """What was just forwarded was not taken: the client may send it again."""
        if message.method == "notifications/initialized":
            self.record.initialized = False
        elif (
            message.id is not None
            and self._questions.reopen(message.id)
            and self._pausedSince is None
        ):
            self._pausedSince = now

    def _cancelledByClient(self, message: Message, now: float) -> list[Effect]:
        id = message.param("requestId")
        for call in reversed(self.calls.values()):
            if call.id == id and call.cancelling is None and call.target is not None:
                call.cancelling = now + self.limits.cancel_wait
                self._due(call.cancelling)
                return [Forward(message.withParam("requestId", call.upstream), None)]
        return [self._dropped("stray_cancel")]

    # From the server.

    def fromServer(self, message: Message, origin: object, now: float) -> list[Effect]:
        """
        The server sent a message.

        origin: the call or the attached stream it belongs to, or None where the link has one
            stream for all.
        """
        if message.kind is RESPONSE:
            return self._answered(message, origin)
        if message.kind is REQUEST:
            return self._requestOfServer(message, origin, now)
        if message.method == "notifications/progress":
            return self._progress(message, origin, now)
        if message.method == "notifications/cancelled":
            return self._cancelledByServer(message, now)
        return self._routed(message, origin, now, message.method == "notifications/message")

    def _answered(self, message: Message, origin: object) -> list[Effect]:
        assert message.id is not None
        call = self.calls.pop(message.id, None)
        if call is None:
            again = self.numbered.again(message, origin)
            if again is not None:
                return [Deliver(again, origin)]
            known = message.id.isdigit() and 0 < int(message.id) <= self._lastID
            return [self._dropped("late_answer" if known else "unknown_id")]
        effects: list[Effect] = []
        granted = not message.isError
        if granted and not self.common and learn(self.record, call.request):
            effects.append(Changed())
            if len(self.record.subscriptions) > self.limits.max_subscriptions:
                del self.record.subscriptions[0]
                effects.append(BoundReached("max_subscriptions", self.record.server))
        if call.target is None:
            return [*effects, OwnEnded(call, granted)]
        if self.replays.learns and not self.replays.learn(call.request, message):
            effects.append(BoundReached("max_tool_hints", self.record.server))
        if not call.present and origin in self._routes.attached:
            # The client vanished from its own stream and resumed it on this one.
            call.target, call.present = origin, True
        effects.append(Answer(call, message.withID(call.id)))
        return effects

    def _progress(self, message: Message, origin: object, now: float) -> list[Effect]:
        call = self.calls.get(message.param("progressToken") or b"")
        if call is None or call.token is None:
            return [self._dropped("unknown_token")]
        call.deadline = self._standing(now) + call.timeout
        target = self._routes.ofCall(call, origin)
        if target is None:
            return [self._dropped("no_stream_for_progress")]
        return [Deliver(message.withParam("progressToken", call.token), target)]

    def _requestOfServer(self, message: Message, origin: object, now: float) -> list[Effect]:
        assert message.id is not None
        context = origin.context if isinstance(origin, Call) else None
        if self.common:
            if message.method == "ping":
                return [Forward(emptyResult(message.id), None, context)]
            return [self._refused(message.id, -32601, "No one client could answer", context)]
        needed = _NEEDS.get(message.method)
        if needed is not None and needed not in self._capabilities:
            why = f"The client does not offer {needed}"
            return [self._refused(message.id, -32601, why, context)]
        if len(self._questions) >= self.limits.max_server_requests:
            return [
                BoundReached("max_server_requests", self.record.server),
                self._refused(message.id, -32603, "Too many requests wait for the client", context),
            ]
        until = now + self.max_timeout
        question = self._questions.ask(message, until)
        self._due(until)
        if self._pausedSince is None:
            self._pausedSince = now
        return self._routed(question, origin, now, True)

    def _cancelledByServer(self, message: Message, now: float) -> list[Effect]:
        ours = self._questions.named(message.param("requestId"))
        if ours is None:
            return [self._dropped("stray_cancel")]
        return self._void(ours, message.withParam("requestId", ours), now)

    def _void(self, ours: bytes, cancelled: Message, now: float) -> list[Effect]:
        """Nobody waits for the client's answer any more: tell it so, if it was asked."""
        question = self._questions.close(ours)
        self._resume(now)
        target = question.target
        if target is None:
            self._waiting.remove(ours)
            return []
        if self._routes.isOpen(target):
            return [Deliver(cancelled, target)]
        return self.told(cancelled, now)

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

    def _unanswered(self, message: Message, now: float, why: str) -> list[Effect]:
        """A request of the server cannot reach the client."""
        if message.id is None or self._questions.find(message.id) is None:
            return [self._dropped("undeliverable")]
        question = self._questions.close(message.id)
        self._resume(now)
        return [self._refused(question.id, -32603, why)]

    # Streams.

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

    def attached(self, stream: object) -> list[Effect]:
        """The client opened a stream for what belongs to no call."""
        self._routes.attached.append(stream)
        return self._flush()

    def detached(self, stream: object) -> None:
        """A stream ended."""
        self.numbered.left(stream)
        if stream in self._routes.attached:
            self._routes.attached.remove(stream)

    @property
    def streams(self) -> list[Any]:
        """The attached streams, the newest last."""
        return self._routes.attached

    def _wait(self, message: Message, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for bound, dropped in self._waiting.add(message, now):
            effects.append(BoundReached(bound, self.record.server))
            effects += self._unheard(dropped, now)
        self._due(self._waiting.due)
        return effects

    def _unheard(self, message: Message, now: float) -> list[Effect]:
        if message.kind is REQUEST:
            return self._unanswered(message, now, "The client has no stream open")
        return [self._dropped("no_stream")]

    def _flush(self) -> list[Effect]:
        """Send what waited, in order, to the streams there are now."""
        effects: list[Effect] = []

        def takes(message: Message) -> bool:
            request = message.kind is REQUEST
            logs = message.method == "notifications/message"
            target = None if self._isHeld(message) else self._routes.any(request or logs)
            if target is not None:
                effects.append(self._deliver(message, target))
            return target is not None

        self._waiting.sweep(takes)
        return effects

    def _isHeld(self, message: Message) -> bool:
        """Whether a request of the server waits for `notifications/initialized`."""
        return (
            message.kind is REQUEST
            and message.method != "ping"
            and not self.record.initialized
            and not self.strict
        )

    # Ends.

    def repeated(self, call: Call, reason: Reason, now: float) -> list[Effect]:
        """
        A call that may have run got no answer: send it once more, where that may be; else nothing
        is done. What still comes of its first run finds its id no more.
        """
        if self.calls.get(call.upstream) is not call or not self.replays.mayRepeat(
            call, reason, now
        ):
            return []
        del self.calls[call.upstream]
        call.upstream, call.via, call.ran = self._nextID(), None, reason
        self.calls[call.upstream] = call
        again = CallRepeated(self.record.server, call.request.method)
        return [again, Forward(self.towardsServer(call), call, call.context)]

    def settled(
        self, call: Call, reason: Reason, message: str, body: Message | None = None
    ) -> list[Effect]:
        """A call ended without an answer; body: the server's own error, where it gave one."""
        if self.calls.pop(call.upstream, None) is None:
            return []
        if body is not None and call.target is not None:
            return [Answer(call, body.withID(call.id))]
        return self._failed(call, reason, message)

    def linkLost(
        self, reason: Reason, message: str, now: float, link: object = None, final: bool = False
    ) -> list[Effect]:
        """
        The link is gone: what was pending on it, or waited for it, fails at once or is sent once
        more, and the server's requests are void. What runs on another goes on.

        final: whether there will be no other link.
        """
        calls = [call for call in self.calls.values() if call.via is None or call.via is link]
        again = [] if final else self._again(calls, reason, now)
        effects = self._failAll(calls, reason, message) + self.forgotten(now)
        return effects + again

    def retiredLost(self, link: object, reason: Reason, message: str, now: float) -> list[Effect]:
        """A link of a lost session is gone: what was pending on it fails, or is sent once more."""
        calls = [call for call in self.calls.values() if call.via is link]
        again = self._again(calls, reason, now)
        return self._failAll(calls, reason, message) + again

    def _again(self, calls: list[Call], reason: Reason, now: float) -> list[Effect]:
        """Send once more what may be; of these calls, the others are left."""
        effects: list[Effect] = []
        for call in list(calls):
            # What has no link was not sent on it; what becomes of that is known.
            again = self.repeated(call, reason, now) if call.via is not None else []
            if again:
                calls.remove(call)
                effects += again
        return effects

    def forgotten(self, now: float) -> list[Effect]:
        """The server lost its session, and with it whoever asked: its requests are void."""
        effects: list[Effect] = []
        for ours in self._questions.all():
            cancelled = notification("notifications/cancelled", requestId=ours)
            effects += self._void(ours, cancelled, now)
        return effects

    def withdrawn(self) -> list[Call]:
        """Take every running call out: the session is over, its answers come from elsewhere."""
        calls = list(self.calls.values())
        self.calls.clear()
        # What waited for a stream waits no more, and may be much.
        self._waiting.sweep(lambda message: True)
        return calls

    def _failAll(self, calls: list[Call], reason: Reason, message: str) -> list[Effect]:
        effects: list[Effect] = []
        for call in calls:
            del self.calls[call.upstream]
            effects += self._failed(call, reason, message)
        return effects

    def _failed(self, call: Call, reason: Reason, message: str) -> list[Effect]:
        if call.target is None:
            return [OwnEnded(call, False)]
        reason = told(call, reason)
        return [Answer(call, callFailed(call.id, reason, message), reason.value)]

    def expired(self, now: float) -> list[Effect]:
        """Do what is due; `soonest` tells when to call again."""
        effects: list[Effect] = []
        for call in list(self.calls.values()):
            effects += self._expiredCall(call, now)
        for message in self._waiting.takeDue(now):
            effects.append(BoundReached("queued_for", self.record.server))
            effects += self._unheard(message, now)
        for ours in self._questions.overdue(now):
            question = self._questions.find(ours)
            assert question is not None
            effects.append(self._refused(question.id, -32603, "The client did not answer in time"))
            cancelled = notification("notifications/cancelled", requestId=ours, reason=b'"timeout"')
            effects += self._void(ours, cancelled, now)
        self.soonest = min(
            (self._dueOf(call) for call in self.calls.values()),
            default=_NEVER,
        )
        self._due(self._waiting.due)
        self._due(self._questions.due)
        return effects

    def _dueOf(self, call: Call) -> float:
        if call.cancelling is not None:
            return call.cancelling
        return call.cap if self._pausedSince is not None else min(call.deadline, call.cap)

    def _expiredCall(self, call: Call, now: float) -> list[Effect]:
        if self._dueOf(call) > now:
            return []
        del self.calls[call.upstream]
        if call.cancelling is not None:
            return [
                BoundReached("cancel_wait", self.record.server),
                Forget(call),
                *self._failed(call, Reason.CANCELLED, "the call was cancelled"),
            ]
        cancelled = notification(
            "notifications/cancelled", requestId=call.upstream, reason=b'"timeout"'
        )
        return [
            Forward(cancelled, None, call.context),
            Forget(call),
            *self._failed(call, Reason.TIMEOUT, "the server did not answer in time"),
        ]

    def _due(self, when: float) -> None:
        if when < self.soonest:
            self.soonest = when

    def _standing(self, now: float) -> float:
        """The time from which deadlines count: they stand still while the client is asked."""
        return now if self._pausedSince is None else self._pausedSince

    def _resume(self, now: float) -> None:
        """No request of the server is unanswered any more: let the deadlines run again."""
        if self._questions or self._pausedSince is None:
            return
        stood = now - self._pausedSince
        self._pausedSince = None
        for call in self.calls.values():
            call.deadline += stood
            self._due(min(call.deadline, call.cap))

    def _nextID(self) -> bytes:
        self._lastID += 1
        return b"%d" % self._lastID

    def _refused(
        self, id: bytes, code: int, message: str, context: CallContext | None = None
    ) -> Forward:
        return Forward(errorMessage(id, code, message), None, context)

    def _dropped(self, why: str) -> MessageDropped:
        return MessageDropped(self.record.server, why)
