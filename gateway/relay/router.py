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
from gateway.observe.observer import BoundReached, MessageDropped
from gateway.relay.calls import Calls
from gateway.relay.deliveries import Deliveries
from gateway.relay.effects import Answer, Call, Changed, Deliver, Effect, Forward, OwnEnded
from gateway.relay.numbered import Numbered
from gateway.relay.recovery import learn
from gateway.relay.replays import NONE, Replays
from gateway.relay.times import NEVER, CallTimes, Due
from gateway.sessions.record import SessionRecord
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message
from gateway.wire.refusals import Reason
from gateway.wire.tool_hints import ToolHints

__all__ = ["Router"]

_NAMING = {
    "notifications/cancelled": "stray_cancel",
    "notifications/progress": "unknown_token",
}
"""What names a request by a small id, and why it is dropped where ids are everybody's."""


@define(eq=False)
class Router:
    """
    The routes of one session. One at a time; its relay drives it and forgets it.

    It tells messages apart and hands them to its two parts: the running calls, which go towards
    the server, and the deliveries, which go to the client.

    record: the session's record; what the traffic teaches is written to it.
    timeout, max_timeout: seconds a call may take without progress, and at all.
    times: the same where tools have times of their own. replays: which calls are sent once more.
    strict: whether a message goes only where the link says it belongs, and nowhere else: the
        streams of client and server are the same ones then.
    common: whether all clients of a server share these routes (`serveAll`). Then what names no call
        of a client's own cannot be told to be that client's: its answers, progress and
        cancellations are dropped, the server's requests are refused, the record learns nothing,
        and the bound on calls is that on connections.
    calls: the running calls, by the ids the server knows them by.
    due: `due.at` tells when `expired` is to be called.
    """

    record: SessionRecord
    limits: Limits
    timeout: float
    max_timeout: float
    strict: bool = False
    times: CallTimes | None = None
    replays: Replays = NONE
    common: bool = field(default=False, init=False)
    calls: dict[bytes, Call] = field(init=False)
    due: Due = field(factory=Due, init=False)
    _calls: Calls = field(init=False)
    _deliveries: Deliveries = field(init=False)
    numbered: Numbered | None = field(default=None, init=False)
    """Which call an event id is of, where streams go straight through."""

    def __attrs_post_init__(self) -> None:
        limits, due = self.limits, self.due
        self._calls = Calls(
            self.record.server,
            limits,
            self.timeout,
            self.max_timeout,
            self.times,
            self.replays,
            due,
        )
        self.calls = self._calls.running
        self._deliveries = Deliveries(
            self.record, limits, self._calls, self.max_timeout, due, self.strict
        )

    @property
    def soonest(self) -> float:
        """When to call `expired`; never, if nothing is due."""
        return self.due.at

    def passes(self, strict: bool) -> None:
        """The first link tells whether its streams are the client's: see `strict`."""
        self.strict = strict
        self._deliveries.passes(strict)

    def greeted(self) -> None:
        """The record's `initialize` is new: another client may be able to do other things."""
        self._deliveries.greeted()

    def serveAll(self) -> None:
        """All clients of a server share these routes, for it keeps no sessions: see `common`."""
        self.common = self._deliveries.common = True
        self._calls.bounded = False

    def shareHints(self, hints: ToolHints) -> None:
        """What is learnt of the server's tools is kept there."""
        if self.replays.learns:
            self.replays.hints = hints

    # From the client.

    def request(
        self, message: Message, target: object, streams: bool, context: CallContext, now: float
    ) -> list[Effect]:
        """A request came; its answer and what belongs to it go to `target`."""
        effects = self._calls.begin(message, target, streams, context, now)
        if streams:
            # What waited goes behind it, to the stream that it is.
            effects += self._deliveries.flushed()
        return effects

    def held(self, effects: list[Effect]) -> Call | None:
        """See Calls."""
        return self._calls.held(effects)

    def isHeld(self, call: Call) -> bool:
        """See Calls."""
        return self._calls.isHeld(call)

    def released(self, call: Call) -> list[Effect]:
        """See Calls."""
        return self._calls.released(call)

    def ownRequest(self, message: Message, context: CallContext, now: float) -> list[Effect]:
        """A request of the gateway itself; `OwnEnded` tells its end. It counts for no bound."""
        effects = self._calls.begin(message, None, False, context, now)
        for effect in effects:
            if isinstance(effect, Forward) and effect.call is not None:
                effect.call.present = False
        return effects

    def notification(self, message: Message, now: float) -> list[Effect]:
        """A notification of the client came."""
        if self.common and message.method in _NAMING:
            return [self._dropped(_NAMING[message.method])]
        if message.method == "notifications/cancelled":
            return [self._calls.cancelled(message, now) or self._dropped("stray_cancel")]
        if message.method == "notifications/progress":
            return [self._deliveries.progressOf(message)]
        if message.method == "notifications/initialized":
            if self.record.initialized:
                return [self._dropped("initialized_twice")]
            self.record.initialized = True
            return [Forward(message, None), Changed(), *self._deliveries.flushed()]
        return [Forward(message, None)]

    def response(self, message: Message, now: float) -> list[Effect]:
        """The client answered a request of the server."""
        return self._deliveries.answered(message, now)

    def notTaken(self, message: Message, now: float) -> None:
        """What was just forwarded was not taken: the client may send it again."""
        if message.method == "notifications/initialized":
            self.record.initialized = False
        else:
            self._deliveries.notTaken(message, now)

    def towardsServer(self, call: Call) -> Message:
        """The call's request under the ids the server gets."""
        return self._calls.towardsServer(call)

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
            return self._deliveries.asked(message, origin, now)
        if message.method == "notifications/progress":
            return [self._progressed(message, origin, now)]
        if message.method == "notifications/cancelled":
            return self._deliveries.cancelled(message, now)
        return self._deliveries.notified(message, origin, now)

    def _answered(self, message: Message, origin: object) -> list[Effect]:
        assert message.id is not None
        call = self.calls.pop(message.id, None)
        if call is None:
            if self.numbered is not None:
                again = self.numbered.again(message, origin)
                if again is not None:
                    return [Deliver(again, origin)]
            late = self._calls.wasOurs(message.id)
            return [self._dropped("late_answer" if late else "unknown_id")]
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
        if not call.present and origin in self.streams:
            # The client vanished from its own stream and resumed it on this one.
            call.target, call.present = origin, True
        effects.append(Answer(call, message.withID(call.id)))
        return effects

    def _progressed(self, message: Message, origin: object, now: float) -> Effect:
        call = self.calls.get(message.param("progressToken") or b"")
        if call is None or call.token is None:
            return self._dropped("unknown_token")
        self._calls.progressed(call, now)
        return self._deliveries.progressed(message, call, origin)

    # The client's streams.

    @property
    def streams(self) -> list[Any]:
        """The attached streams, the newest last."""
        return self._deliveries.streams

    def attached(self, stream: object) -> list[Effect]:
        """The client opened a stream for what belongs to no call."""
        return self._deliveries.attached(stream)

    def detached(self, stream: object) -> None:
        """A stream ended."""
        self._deliveries.detached(stream)

    def told(self, message: Message, now: float) -> list[Effect]:
        """Tell the client something of the gateway's own."""
        return self._deliveries.told(message, now)

    def undeliverable(self, message: Message, now: float) -> list[Effect]:
        """The stream of a `Deliver` did not take it."""
        return self._deliveries.undeliverable(message, now)

    # Ends.

    def settled(
        self, call: Call, reason: Reason, message: str, body: Message | None = None
    ) -> list[Effect]:
        """A call ended without an answer; body: the server's own error, where it gave one."""
        return self._calls.settled(call, reason, message, body)

    def repeated(self, call: Call, reason: Reason, now: float) -> list[Effect]:
        """See Calls."""
        return self._calls.repeated(call, reason, now)

    def linkLost(
        self, reason: Reason, message: str, now: float, link: object = None, final: bool = False
    ) -> list[Effect]:
        """
        The link is gone: what was pending on it, or waited for it, fails at once or is sent once
        more, and the server's requests are void. What runs on another goes on.

        final: whether there will be no other link. Then what waits for its turn fails, too.
        """
        calls = self._calls.on(link, orNone=True, held=final)
        again = [] if final else self._calls.again(calls, reason, now)
        failed = self._calls.fail(calls, reason, message)
        return failed + self._deliveries.forgotten(now) + again

    def retiredLost(self, link: object, reason: Reason, message: str, now: float) -> list[Effect]:
        """A link of a lost session is gone: what was pending on it fails, or is sent once more."""
        calls = self._calls.on(link, orNone=False)
        again = self._calls.again(calls, reason, now)
        return self._calls.fail(calls, reason, message) + again

    def forgotten(self, now: float) -> list[Effect]:
        """The server lost its session, and with it whoever asked: its requests are void."""
        return self._deliveries.forgotten(now)

    def expired(self, now: float) -> list[Effect]:
        """Do what is due; `due` tells when to call again."""
        self.due.at = NEVER
        return self._calls.expired(now) + self._deliveries.expired(now)

    def withdrawn(self) -> list[Call]:
        """Take every running call out: the session is over, its answers come from elsewhere."""
        self._deliveries.withdrawn()
        return self._calls.withdrawn()

    def _dropped(self, why: str) -> MessageDropped:
        return MessageDropped(self.record.server, why)
