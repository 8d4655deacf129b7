"""
Ids and routes between the modern callers of a server and one link (MCP 2026-07-28): which message
goes where, under which id.

Pure: it takes messages and `now`, returns effects, and calls nothing. There are no sessions, so all
callers of a server share one child; what tells them apart is this:

 1. A request gets an id of the gateway's own, in decimal, and its progress token, if any, becomes
    that id. The answer, its progress and, for `subscriptions/listen`, the subscription id in what
    is said to it get the client's spelling back. So nothing of one caller reaches another.
 2. A notification goes to the call it names: by its progress token, or by its subscription id.
    `notifications/message` names none: it goes to a call only if that is the only one that asked
    for a log level and may run. One that was cancelled may run until its late answer comes, or its
    time is over, for servers may ignore that. All else is dropped and counted: never to a stranger.
 3. A server has no requests, and cancels nothing but a `subscriptions/listen`, whose stream ends.
 4. A client that leaves has cancelled: the server hears so, its answer is dropped and counted.
 5. A call ends exactly once: by its answer, its deadline, its client, the loss of the link or the
    end of the gateway. Progress moves its deadline, but not its cap. A `subscriptions/listen` has
    neither.
"""

from __future__ import annotations

import msgspec
from attrs import define, field
from msgspec import Raw

from gateway.guard.limits import Limits
from gateway.observe.observer import (
    BoundReached,
    CallRepeated,
    CallStarted,
    Event,
    MessageDropped,
)
from gateway.relay.effects import Answer, Call, Deliver, Forget, Forward
from gateway.relay.replays import Replays, told
from gateway.relay.times import CallTimes
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message, members, notification
from gateway.wire.modern import LISTEN, LOG_LEVEL, SUBSCRIPTION_ID, listenCompleted
from gateway.wire.refusals import Reason, callFailed
from gateway.wire.strictjson import withMember

__all__ = ["Ended", "ModernEffect", "ModernRouter", "towardsServer"]

_NEVER = float("inf")


class Ended(msgspec.Struct, frozen=True):
    """The stream of a `subscriptions/listen` ends without an answer."""

    call: Call


ModernEffect = Forward | Deliver | Answer | Forget | Ended | Event
"""An event is to be told to the observer."""


@define(eq=False)
class ModernRouter:
    """
    The routes of one server's modern calls; its relay drives it.

    server: its configured name. timeout, max_timeout: seconds a call may take without progress,
        and at all. times: the same where tools have times of their own.
    replays: which calls are sent once more.
    calls: those that run, by the id that the server knows. listens: how many of them are
        `subscriptions/listen`. soonest: when to call `expired`.
    """

    server: str
    limits: Limits
    timeout: float
    max_timeout: float
    times: CallTimes | None = None
    replays: Replays = field(factory=lambda: Replays("none"))
    calls: dict[bytes, Call] = field(factory=dict, init=False)
    listens: int = field(default=0, init=False)
    soonest: float = field(default=_NEVER, init=False)
    _targets: dict[object, Call] = field(factory=dict, init=False)
    _logging: dict[Call, None] = field(factory=dict, init=False)
    _mayLog: dict[bytes, float] = field(factory=dict, init=False)
    """The calls that were cancelled and asked for a log level: until when they may run."""
    _lastID: int = field(default=0, init=False)

    @property
    def running(self) -> bool:
        """Whether a call runs that is no `subscriptions/listen`."""
        return len(self.calls) > self.listens

    def contextOf(self, target: object) -> CallContext | None:
        """The context of the call whose target this is, while it runs."""
        call = self._targets.get(target)
        return None if call is None else call.context

    # From the client.

    def request(
        self, message: Message, target: object, context: CallContext, now: float
    ) -> list[ModernEffect]:
        """A request came; its answer and what belongs to it go to `target`, which is its own."""
        assert message.id is not None
        listens = message.method == LISTEN
        timeout, most = self.timeout, self.max_timeout
        if self.times is not None:
            timeout, most = self.times.times(message)
        call = Call(
            id=message.id,
            upstream=b"%d" % (self._lastID + 1),
            request=message,
            token=message.meta("progressToken"),
            target=target,
            streams=True,
            context=context,
            started=now,
            deadline=_NEVER if listens else now + timeout,
            cap=_NEVER if listens else now + most,
            timeout=timeout,
        )
        full = self._full(call)
        if full:
            why = "too many streams are open" if listens else "too many calls run at this server"
            his = full == "max_listens_per_principal"
            reason = Reason.RATE_LIMITED if his else Reason.OVERLOADED
            failed = callFailed(call.id, reason, why)
            return [BoundReached(full, self.server), Answer(call, failed, reason.value)]
        self._lastID += 1
        self.calls[call.upstream] = call
        self._targets[target] = call
        self.listens += listens
        if message.meta(LOG_LEVEL) is not None:
            self._logging[call] = None
        self._due(min(call.deadline, call.cap))
        started = CallStarted(self.server, message.method)
        return [started, Forward(towardsServer(call), call, context)]

    def _full(self, call: Call) -> str:
        """The name of the bound that is reached; "" where there is room for one more."""
        limits = self.limits
        if call.request.method != LISTEN:
            running = len(self.calls) - self.listens
            return "max_modern_calls" if running >= limits.max_modern_calls else ""
        if self.listens >= limits.max_listens:
            return "max_listens"
        principal = call.context.principal
        his = sum(
            one.request.method == LISTEN and one.context.principal == principal
            for one in self.calls.values()
        )
        return "max_listens_per_principal" if his >= limits.max_listens_per_principal else ""

    def gone(self, target: object) -> list[ModernEffect]:
        """The client closed the response stream: that cancels its call."""
        call = self._targets.get(target)
        if call is None:
            return []
        self._left(call, call.deadline)
        return [*_cancelled(call), Forget(call)]

    def _left(self, call: Call, until: float) -> None:
        """It ends, but may run on at the server."""
        if call in self._logging and call.via is not None and until < _NEVER:
            self._mayLog[call.upstream] = until
            if len(self._mayLog) > self.limits.max_modern_calls:
                del self._mayLog[next(iter(self._mayLog))]
        self._end(call)

    # From the server.

    def fromServer(self, message: Message, now: float) -> list[ModernEffect]:
        """The server sent a message."""
        if message.kind is RESPONSE:
            return self._answered(message)
        if message.kind is REQUEST:
            return [self._dropped("server_request")]
        if message.method == "notifications/progress":
            return self._progress(message, now)
        if message.method == "notifications/cancelled":
            return self._cancelledByServer(message)
        if message.method == "notifications/message":
            return self._logged(message, now)
        subscription = message.meta(SUBSCRIPTION_ID)
        call = self.calls.get(subscription or b"")
        if call is None or call.request.method != LISTEN:
            return [self._dropped("no_subscription")]
        return [Deliver(message.withMeta(SUBSCRIPTION_ID, call.id), call.target)]

    def _answered(self, message: Message) -> list[ModernEffect]:
        assert message.id is not None
        call = self.calls.get(message.id)
        if call is None:
            self._mayLog.pop(message.id, None)
            known = message.id.isdigit() and 0 < int(message.id) <= self._lastID
            return [self._dropped("late_answer" if known else "unknown_id")]
        self._end(call)
        if call.request.method == LISTEN:
            message = _ofSubscription(message, call.id)
        effects: list[ModernEffect] = []
        if self.replays.learns and not self.replays.learn(call.request, message):
            effects.append(BoundReached("max_tool_hints", self.server))
        return [*effects, Answer(call, message.withID(call.id))]

    def _progress(self, message: Message, now: float) -> list[ModernEffect]:
        call = self.calls.get(message.param("progressToken") or b"")
        if call is None or call.token is None:
            return [self._dropped("unknown_token")]
        if call.deadline < _NEVER:
            call.deadline = now + call.timeout
        return [Deliver(message.withParam("progressToken", call.token), call.target)]

    def _cancelledByServer(self, message: Message) -> list[ModernEffect]:
        call = self.calls.get(message.param("requestId") or b"")
        if call is None or call.request.method != LISTEN:
            return [self._dropped("stray_cancel")]
        self._end(call)
        return [Forget(call), Ended(call)]

    def _logged(self, message: Message, now: float) -> list[ModernEffect]:
        if len(self._logging) != 1 or any(until > now for until in self._mayLog.values()):
            return [self._dropped("unowned_log")]
        self._mayLog.clear()
        (call,) = self._logging
        return [Deliver(message, call.target)]

    def undeliverable(self) -> Event:
        """The target of a `Deliver` did not take it."""
        return self._dropped("undeliverable")

    # Ends.

    def settled(
        self, call: Call, reason: Reason, message: str, body: Message | None = None
    ) -> list[ModernEffect]:
        """A call ended without an answer; body: the server's own error, where it gave one."""
        if self.calls.get(call.upstream) is not call:
            return []
        self._end(call)
        if body is not None:
            return [Answer(call, body.withID(call.id))]
        return [_failed(call, reason, message)]

    def lost(self, reason: Reason, message: str, now: float) -> list[ModernEffect]:
        """
        The link is gone, and what was sent on it: who listened may listen again, and what may be
        is sent once more.
        """
        effects: list[ModernEffect] = []
        again: list[ModernEffect] = []
        self._mayLog.clear()
        for call in [one for one in self.calls.values() if one.via is not None]:
            if self.replays.mayRepeat(call, reason, now):
                again += self._repeat(call, reason)
                continue
            self._end(call)
            listens = call.request.method == LISTEN
            effects.append(Ended(call) if listens else _failed(call, reason, message))
        return effects + again

    def _repeat(self, call: Call, reason: Reason) -> list[ModernEffect]:
        """What still comes of a call's first run finds its id no more."""
        del self.calls[call.upstream]
        self._lastID += 1
        call.upstream, call.via, call.ran = b"%d" % self._lastID, None, reason
        self.calls[call.upstream] = call
        again = CallRepeated(self.server, call.request.method)
        return [again, Forward(towardsServer(call), call, call.context)]

    def stopped(self, reason: Reason, message: str) -> list[ModernEffect]:
        """The gateway ends: so does every call, a `subscriptions/listen` in order."""
        effects: list[ModernEffect] = []
        for call in list(self.calls.values()):
            self._end(call)
            effects += [*_cancelled(call), Forget(call)]
            if call.request.method == LISTEN:
                effects.append(Answer(call, listenCompleted(call.id)))
            else:
                effects.append(_failed(call, reason, message))
        return effects

    def expired(self, now: float) -> list[ModernEffect]:
        """Do what is due; `soonest` tells when to call again."""
        effects: list[ModernEffect] = []
        for call in list(self.calls.values()):
            if min(call.deadline, call.cap) <= now:
                self._left(call, call.cap)
                effects += [*_cancelled(call, b'"timeout"'), Forget(call)]
                why = "the server did not answer in time"
                effects.append(_failed(call, Reason.TIMEOUT, why))
        self.soonest = min(
            (min(call.deadline, call.cap) for call in self.calls.values()), default=_NEVER
        )
        return effects

    def _end(self, call: Call) -> None:
        del self.calls[call.upstream]
        self._targets.pop(call.target, None)
        self._logging.pop(call, None)
        self.listens -= call.request.method == LISTEN

    def _due(self, when: float) -> None:
        if when < self.soonest:
            self.soonest = when

    def _dropped(self, why: str) -> MessageDropped:
        return MessageDropped(self.server, why)


def towardsServer(call: Call) -> Message:
    """A call's request under the ids the server gets."""
    message = call.request
    if call.token is not None:
        message = message.withMeta("progressToken", call.upstream)
    return message.withID(call.upstream)


def _cancelled(call: Call, reason: bytes = b'"cancelled"') -> list[ModernEffect]:
    """Tell the server, where it has heard of the call at all."""
    if call.via is None:
        return []
    said = notification("notifications/cancelled", requestId=call.upstream, reason=reason)
    return [Forward(said, None, call.context)]


def _failed(call: Call, reason: Reason, message: str) -> Answer:
    reason = told(call, reason)
    return Answer(call, callFailed(call.id, reason, message), reason.value)


def _ofSubscription(message: Message, id: bytes) -> Message:
    """The response to a `subscriptions/listen`, with the client's id where it names its stream."""
    result = message.fields.get("result")
    meta = members(result).get("_meta")
    if result is None or SUBSCRIPTION_ID not in members(meta):
        return message
    meta = Raw(withMember(bytes(meta or b"{}"), SUBSCRIPTION_ID, id))
    fields = {**message.fields, "result": Raw(withMember(bytes(result), "_meta", bytes(meta)))}
    return Message(message.kind, fields, message.id)
