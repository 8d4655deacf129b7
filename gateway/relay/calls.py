"""
The running calls of one session: their ids towards the server, their deadlines, and how each ends
that gets no answer. Pure.

 1. A call ends exactly once. What comes for it later finds its id no more.
 2. Its deadline moves with its progress and stands still while the client is asked (`pause`); its
    cap does not.
 3. What may have run is sent once more where that may be (`gateway.relay.replays`), under a new id.
"""

from __future__ import annotations

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, CallRepeated, CallStarted
from gateway.relay.effects import Answer, Call, Effect, Forget, Forward, OwnEnded
from gateway.relay.replays import Replays, told
from gateway.relay.times import CallTimes, Due
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, notification
from gateway.wire.refusals import Reason, callFailed

__all__ = ["Calls"]


@define(eq=False)
class Calls:
    """
    The calls of one session. Its router begins them and takes out what is answered.

    server: its name. timeout, max_timeout: seconds a call may take without progress, and at all.
    times: the same where tools have times of their own. replays: which calls are sent once more.
    due: told when one of them is due. bounded: whether there may be `max_calls` at most.
    running: by the ids the server knows them by, the oldest first.
    """

    server: str
    limits: Limits
    timeout: float
    max_timeout: float
    times: CallTimes | None
    replays: Replays
    due: Due
    bounded: bool = True
    running: dict[bytes, Call] = field(factory=dict, init=False)
    _pausedSince: float | None = field(default=None, init=False)
    _lastID: int = field(default=0, init=False)

    def begin(
        self, message: Message, target: object, streams: bool, context: CallContext, now: float
    ) -> list[Effect]:
        """A request is to be sent; target: see Call."""
        assert message.id is not None
        timeout, most = self.timeout, self.max_timeout
        if self.times is not None:
            timeout, most = self.times.times(message)
        since = now if self._pausedSince is None else self._pausedSince
        self._lastID += 1
        call = Call(
            id=message.id,
            upstream=b"%d" % self._lastID,
            request=message,
            token=message.meta("progressToken"),
            target=target,
            streams=streams,
            context=context,
            started=now,
            deadline=since + timeout,
            cap=now + most,
            timeout=timeout,
        )
        running = self.running
        if len(running) >= self.limits.max_calls and target is not None and self._isFull():
            answer = callFailed(call.id, Reason.OVERLOADED, "too many calls run in this session")
            return [
                BoundReached("max_calls", self.server),
                Answer(call, answer, Reason.OVERLOADED.value),
            ]
        running[call.upstream] = call
        self.due.by(min(call.deadline, call.cap))
        return [
            CallStarted(self.server, message.method),
            Forward(self.towardsServer(call), call, context),
        ]

    def _isFull(self) -> bool:
        if not self.bounded:
            return False
        theirs = sum(call.target is not None for call in self.running.values())
        return theirs >= self.limits.max_calls

    def towardsServer(self, call: Call) -> Message:
        """The call's request under the ids the server gets."""
        message = call.request
        if call.token is not None:
            message = message.withMeta("progressToken", call.upstream)
        return message.withID(call.upstream)

    def wasOurs(self, id: bytes) -> bool:
        """Whether a call once had this id towards the server."""
        return id.isdigit() and 0 < int(id) <= self._lastID

    def held(self, effects: list[Effect]) -> Call | None:
        """
        What was just begun waits: takes what sends it out of its effects. Returns the call; None
        where it ended at once.
        """
        for effect in effects:
            if isinstance(effect, Forward) and effect.call is not None:
                effects.remove(effect)
                effect.call.held = True
                return effect.call
        return None

    def isHeld(self, call: Call) -> bool:
        """Whether a call waits, and is not over."""
        return call.held and self.running.get(call.upstream) is call

    def released(self, call: Call) -> list[Effect]:
        """A call that waited has its turn."""
        call.held = False
        return [Forward(self.towardsServer(call), call, call.context)]

    def cancelled(self, message: Message, now: float) -> Effect | None:
        """
        The client cancels one of its calls: what the server is told, or the call. None: there is
        no such call.
        """
        id = message.param("requestId")
        for call in reversed(self.running.values()):
            if call.id == id and call.cancelling is None and call.target is not None:
                if call.held:
                    return self.settled(call, Reason.CANCELLED, "the call was cancelled")[0]
                call.cancelling = now + self.limits.cancel_wait
                self.due.by(call.cancelling)
                return Forward(message.withParam("requestId", call.upstream), None)
        return None

    # Deadlines.

    def progressed(self, call: Call, now: float) -> None:
        """There was progress: it has its time anew."""
        since = now if self._pausedSince is None else self._pausedSince
        call.deadline = since + call.timeout

    def pause(self, now: float) -> None:
        """The client is asked something: the deadlines stand still."""
        if self._pausedSince is None:
            self._pausedSince = now

    def resume(self, now: float) -> None:
        """Nothing is asked any more: they run again."""
        if self._pausedSince is None:
            return
        stood = now - self._pausedSince
        self._pausedSince = None
        for call in self.running.values():
            call.deadline += stood
            self.due.by(min(call.deadline, call.cap))

    def expired(self, now: float) -> list[Effect]:
        """End those whose time is over, and tell when the next is due."""
        effects: list[Effect] = []
        for call in list(self.running.values()):
            if self._dueOf(call) <= now:
                effects += self._expired(call)
            else:
                self.due.by(self._dueOf(call))
        return effects

    def _dueOf(self, call: Call) -> float:
        if call.cancelling is not None:
            return call.cancelling
        return call.cap if self._pausedSince is not None else min(call.deadline, call.cap)

    def _expired(self, call: Call) -> list[Effect]:
        del self.running[call.upstream]
        if call.cancelling is not None:
            return [
                BoundReached("cancel_wait", self.server),
                Forget(call),
                *self._failed(call, Reason.CANCELLED, "the call was cancelled"),
            ]
        if call.held:
            return self._failed(call, Reason.TIMEOUT, "the call's turn did not come in time")
        cancelled = notification(
            "notifications/cancelled", requestId=call.upstream, reason=b'"timeout"'
        )
        return [
            Forward(cancelled, None, call.context),
            Forget(call),
            *self._failed(call, Reason.TIMEOUT, "the server did not answer in time"),
        ]

    # Ends without an answer.

    def settled(
        self, call: Call, reason: Reason, message: str, body: Message | None = None
    ) -> list[Effect]:
        """A call ended without an answer; body: the server's own error, where it gave one."""
        if self.running.pop(call.upstream, None) is None:
            return []
        if body is not None and call.target is not None:
            return [Answer(call, body.withID(call.id))]
        return self._failed(call, reason, message)

    def repeated(self, call: Call, reason: Reason, now: float) -> list[Effect]:
        """
        A call that may have run got no answer: send it once more, where that may be; else nothing
        is done. What still comes of its first run finds its id no more.
        """
        if self.running.get(call.upstream) is not call or not self.replays.mayRepeat(
            call, reason, now
        ):
            return []
        del self.running[call.upstream]
        self._lastID += 1
        call.upstream, call.via, call.ran = b"%d" % self._lastID, None, reason
        self.running[call.upstream] = call
        again = CallRepeated(self.server, call.request.method)
        return [again, Forward(self.towardsServer(call), call, call.context)]

    def on(self, link: object, *, orNone: bool, held: bool = False) -> list[Call]:
        """
        Those that were sent on a link.

        orNone: and those that wait for one. held: and those that wait for their turn.
        """
        return [
            call
            for call in self.running.values()
            if call.via is link or (orNone and call.via is None and (held or not call.held))
        ]

    def again(self, calls: list[Call], reason: Reason, now: float) -> list[Effect]:
        """Send once more what may be; of these calls, the others are left."""
        effects: list[Effect] = []
        for call in list(calls):
            # What has no link was not sent on it; what becomes of that is known.
            again = self.repeated(call, reason, now) if call.via is not None else []
            if again:
                calls.remove(call)
                effects += again
        return effects

    def fail(self, calls: list[Call], reason: Reason, message: str) -> list[Effect]:
        """End these."""
        effects: list[Effect] = []
        for call in calls:
            del self.running[call.upstream]
            effects += self._failed(call, reason, message)
        return effects

    def _failed(self, call: Call, reason: Reason, message: str) -> list[Effect]:
        if call.target is None:
            return [OwnEnded(call, False)]
        reason = told(call, reason)
        return [Answer(call, callFailed(call.id, reason, message), reason.value)]

    def withdrawn(self) -> list[Call]:
        """Take all out."""
        calls = list(self.running.values())
        self.running.clear()
        return calls
