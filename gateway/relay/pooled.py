"""One session with a legacy server, of those that a pool has for its modern callers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from attrs import define, field
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gateway.bridge.asmodern import LEVELS
from gateway.links.interfaces import EventMark, ILink
from gateway.relay.relay import Relay
from gateway.sessions.registry import Session
from gateway.wire.context import CallContext
from gateway.wire.envelope import (
    REQUEST,
    Message,
    emptyResult,
    members,
    quote,
    request,
)
from gateway.wire.refusals import FailedCall, errorMessage, lostWithSession

__all__ = ["LIST_CHANGES", "ROOTS", "UPDATED", "IAudience", "Pooled", "PooledCall"]

_log = Logger()

ROOTS = "roots/list"
UPDATED = "notifications/resources/updated"

LIST_CHANGES = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}
"""The notifications of changed lists, and the capability that announces each."""

_WINDOW = 16
"""How many requests of our own run at once in a session."""

_NAMES = list(LEVELS)


class PooledCall(Protocol):
    """A call that has a session, as the session sees it."""

    @property
    def level(self) -> int | None:
        """The rank of the log level it asks for."""

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        """What the server says while it runs."""


class IAudience(Protocol):
    """Who listens to a caller's sessions."""

    def heard(self, message: Message) -> bool:
        """A notification came; returns whether it is one that may be listened to."""

    def linked(self, pooled: Pooled) -> None:
        """A session of the caller's is open."""


@define(eq=False)
class Pooled:
    """
    A session that no registry knows. It is its relay's target for what belongs to no call.

    Life: made by the pool → taken and given back by calls → ended by the pool, or by itself where
    its server was lost for good (`session.ended`).

    audience: who hears what belongs to no call. exclusive: whether one call at a time has it.
    newID: gives ids that nothing else in the pool has. dropped: told why something reached nobody.
    bound: told of a bound that was reached. onHeld: told when to call `expire` at the latest.
    result: the members of the server's answer to `initialize`; {} until there was one.
    calls: those that have it. idleSince: when the last one gave it back.
    """

    session: Session
    relay: Relay
    audience: IAudience
    exclusive: bool
    newID: Callable[[], bytes]
    dropped: Callable[[str], None]
    bound: Callable[[str], None]
    onHeld: Callable[[float], None]
    idleSince: float
    result: dict[str, Raw] = field(factory=dict, init=False)
    calls: dict[PooledCall, None] = field(factory=dict, init=False)
    _level: int | None = field(default=None, init=False)
    _held: dict[bytes, tuple[Message, float]] = field(factory=dict, init=False)
    _subscribed: dict[str, bool] = field(factory=dict, init=False)
    """What the server was asked to tell of, and whether it refused."""
    _subscribing: int = field(default=0, init=False)
    _whenSubscribed: list[Callable[[], None]] = field(factory=list, init=False)
    _errands: deque[tuple[Message, CallContext, Callable[[Message], None]]] = field(
        factory=deque, init=False
    )
    _running: int = field(default=0, init=False)
    _levelling: int = field(default=0, init=False)
    _levelled: list[Callable[[], None]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.relay.attach(self)

    # The handshake.

    @property
    def isOpen(self) -> bool:
        """Whether its handshake is made, and its link there."""
        return self.relay.link is not None

    def acquire(self, context: CallContext) -> Deferred[None]:
        """
        Make the handshake where it is not made. Fails with LinkFailed or SessionOver.
        """
        return self.relay.acquire(context).addCallback(self._linked)

    def _linked(self, link: ILink) -> None:
        self.result = members(link.answer.fields.get("result"))

    @property
    def serverInfo(self) -> bytes | None:
        """Who the server says it is, as spelled."""
        info = self.result.get("serverInfo")
        return None if info is None or bytes(info)[:1] != b"{" else bytes(info)

    def declares(self, name: str, part: str = "") -> bool:
        """Whether the server declared a capability, or a part of it as true."""
        value = members(self.result.get("capabilities")).get(name)
        if not part:
            return value is not None and bytes(value)[:1] == b"{"
        return bytes(members(value).get(part, b"")) == b"true"

    # Target: what belongs to no call, as far as the relay can tell.

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        method = message.method
        if message.kind is REQUEST:
            return self._asked(message)
        if method == "notifications/message":
            self._logged(message)
        elif method == "notifications/cancelled":
            if self._held.pop(message.param("requestId") or b"", None) is not None:
                return True
            if len(self.calls) == 1 and self.exclusive:
                return next(iter(self.calls)).deliver(message)
            self.dropped("stray_cancel")
        elif not self.audience.heard(message):
            self.dropped("no_stream")
        return True

    def _asked(self, message: Message) -> bool:
        assert message.id is not None
        if message.method == "ping":
            self.tell(emptyResult(message.id))
        elif self.exclusive and len(self.calls) == 1:
            # A request of our own runs beside the call.
            return next(iter(self.calls)).deliver(message)
        elif message.method == ROOTS:
            self.hold(message)
        else:
            why = "No call of the client runs that could carry this"
            self.dropped("no_call")
            self.tell(errorMessage(message.id, -32601, why))
        return True

    # Roots: legacy servers ask for them as soon as they are initialized, whatever is called.

    def hold(self, question: Message) -> None:
        """Keep a question after the client's roots for the next call that may ask."""
        assert question.id is not None
        until = self.relay.clock.seconds() + self.relay.limits.parked_for
        self._held[question.id] = question, until
        self.onHeld(until)

    def takeHeld(self) -> list[Message]:
        """What was kept, for a call that may ask."""
        held, self._held = self._held, {}
        return [question for question, _ in held.values()]

    def expire(self, now: float) -> float:
        """Refuse what was kept for too long. Returns when to look again; never without any."""
        for id, (_, until) in list(self._held.items()):
            if until <= now:
                del self._held[id]
                self.bound("parked_for")
                self.tell(errorMessage(id, -32603, "No call of the client came to carry this"))
        return min((until for _, until in self._held.values()), default=float("inf"))

    def _logged(self, message: Message) -> None:
        """To the only call that asked for log messages; of several, nobody knows whose it is."""
        asked = [call for call in self.calls if call.level is not None]
        if len(asked) == 1:
            asked[0].deliver(message)
        else:
            self.dropped("no_log_asked" if not asked else "log_of_no_call")

    def marked(self, mark: EventMark) -> None:
        pass

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        pass

    def lost(self, id: bytes) -> None:
        pass

    def close(self) -> None:
        pass

    # Towards the server.

    def tell(self, message: Message, context: CallContext | None = None) -> None:
        """Send a notification or a response."""
        if self.session.ended:
            self.dropped("undeliverable")
            return
        told = self.relay.message(message, context or self.relay.context)
        if told is False:
            self.dropped("undeliverable")
        elif told is not True:
            told.addErrback(lambda failure: _log.failure("while a pooled session spoke", failure))

    def levelled(self, call: PooledCall, context: CallContext, then: Callable[[], None]) -> None:
        """
        Call `then` once the server logs at the lowest level that a call here asks for, and at once
        for a call that asks for none.
        """
        ranks = [call.level for call in self.calls if call.level is not None]
        if ranks and self.declares("logging"):
            lowest = min(ranks)
            if lowest != self._level:
                self._level = lowest
                self._levelling += 1
                message = request("logging/setLevel", level=quote(_NAMES[lowest]))
                self._errand(message, context, self._levelSet)
            if self._levelling and call.level is not None:
                self._levelled.append(then)
                return
        then()

    def _levelSet(self, answer: Message) -> None:
        # Refused by the server, nothing better can be had.
        if isinstance(answer, FailedCall):
            self._level = None
        self._levelling -= 1
        if self._levelling == 0:
            waiting, self._levelled = self._levelled, []
            for then in waiting:
                then()

    def subscribe(self, uris: Iterable[str], context: CallContext) -> None:
        """Subscribe to what is not subscribed yet."""
        if not self.declares("resources", "subscribe"):
            return
        for uri in uris:
            if uri not in self._subscribed:
                self._subscribed[uri] = False
                self._subscribing += 1
                message = request("resources/subscribe", uri=quote(uri))
                self._errand(message, context, partial(self._heldBy, uri))

    def _heldBy(self, uri: str, answer: Message) -> None:
        if isinstance(answer, FailedCall):
            # It is asked for again when there is a link.
            self._subscribed.pop(uri, None)
        elif answer.isError and uri in self._subscribed:
            self._subscribed[uri] = True
            self.dropped("subscription_refused")
        self._subscribing -= 1
        self.whenSubscribed(None)

    def whenSubscribed(self, then: Callable[[], None] | None) -> None:
        """Call `then` once the server answered all that it was asked to tell of."""
        if then is not None:
            self._whenSubscribed.append(then)
        if not self._subscribing:
            waiting, self._whenSubscribed = self._whenSubscribed, []
            for one in waiting:
                one()

    def refused(self, uri: str) -> bool:
        """Whether the server refused to tell of a resource."""
        return self._subscribed.get(uri, False)

    def unsubscribe(self, uri: str, context: CallContext) -> None:
        """Give a subscription back; with no link, there is nobody to tell."""
        if self._subscribed.pop(uri, True):
            return
        if self.isOpen:
            message = request("resources/unsubscribe", uri=quote(uri))
            self._errand(message, context, lambda _: None)
        elif uri in self.session.record.subscriptions:
            self.session.record.subscriptions.remove(uri)

    def _errand(
        self, message: Message, context: CallContext, done: Callable[[Message], None]
    ) -> None:
        """A request of our own; a few run at once, so that calls find room beside them."""
        self._errands.append((message, context, done))
        self._more()

    def _more(self) -> None:
        while self._errands and self._running < _WINDOW:
            message, context, done = self._errands.popleft()
            if self.session.ended:
                done(lostWithSession(b"0"))
                continue
            self._running += 1
            errand = _Errand(self._errandDone, done)
            self.relay.request(message.withID(self.newID()), errand, False, context)

    def _errandDone(self) -> None:
        self._running -= 1
        self._more()


@define(eq=False)
class _Errand:
    """Waits for the answer to a request of our own."""

    over: Callable[[], None]
    done: Callable[[Message], None]

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        return False

    def marked(self, mark: EventMark) -> None:
        pass

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        self.done(message)
        self.over()

    def lost(self, id: bytes) -> None:
        self.answer(lostWithSession(id))

    def close(self) -> None:
        pass
