"""
A server of the modern era as a legacy link: for relays whose client said `initialize`.

Drives the pure `Conversation` (calls, rounds, what the client is asked) and `Listening` (the
stream of changes), and does what they ask. Rules:

 1. The listener hears nothing from within `send`, `cancel` or `close`, but in a turn of its own;
    what came first is heard first.
 2. What the modern era has not is answered here: `ping`, `logging/setLevel`,
    `resources/subscribe`, `resources/unsubscribe`. `notifications/initialized` opens the stream of
    changes and goes no further; `notifications/roots/list_changed` ends here, for a modern server
    asks for the roots each time it needs them. Other notifications but `cancelled` have no modern
    form: dropped and counted.
 3. A notification or response that came with a call object is accepted in the next turn, whatever
    becomes of it: for a modern HTTP server takes none.
 4. The server keeps no session, so none can be lost: a 404 is an answer like others.
 5. A modern server sends no requests; what looks like one is dropped and counted.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable

import attrs
from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from gateway.bridge.capabilities import greetingOf, initialized
from gateway.bridge.conversation import Conversation
from gateway.bridge.effects import (
    AskAgain,
    AwaitAcknowledgement,
    Dropped,
    Effect,
    End,
    Forget,
    Linger,
    Open,
    Reached,
    Rest,
    Round,
    Say,
    Send,
    Stream,
    Tell,
)
from gateway.bridge.listening import Listening, listsDeclared
from gateway.bridge.requests import isLevel, refused, stamped
from gateway.guard.limits import Limits
from gateway.links.afterwards import Afterwards
from gateway.links.backoff import backOff, jittered
from gateway.links.interfaces import (
    EventMark,
    Hello,
    ILink,
    ILinkListener,
    LinkFailed,
    Outcome,
    Reason,
    Settled,
)
from gateway.links.news import Accepted, Item, News, Settlement
from gateway.observe.observer import BoundReached, IObserver, MessageDropped
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message, emptyResult, members, notification
from gateway.wire.modern import SUBSCRIPTION_ID
from gateway.wire.refusals import errorMessage

__all__ = ["LINGER", "BridgedLink"]

LINGER = 1.0
"""Seconds an old stream of changes is read on beside the new one."""

_BUSY = Settled(Outcome.NOT_SENT, Reason.OVERLOADED, "the server does not keep up")


@implementer(ILink, ILinkListener)
@define(eq=False, repr=False)
class BridgedLink:
    """
    One legacy client's link to a modern server.

    Made for a handshake → heard by it, the modern link is made → `begin` → used as any link →
    `close`, which closes the modern one, or lost with it.

    hello: the client's `initialize`. http: whether the server is reached over HTTP, where only
    requests are sent. answer: the response to `initialize`, made from that to `server/discover`.
    """

    hello: Hello
    listener: ILinkListener
    clock: IReactorTime
    limits: Limits
    observer: IObserver
    name: str
    http: bool
    answer: Message = field(init=False)
    inner: ILink = field(init=False)
    _conversation: Conversation = field(init=False)
    _listening: Listening = field(init=False)
    _newest: CallContext | None = field(default=None, init=False)
    """Of the last request, where its credentials go with the stream of changes."""
    _news: News[Item] = field(init=False)
    _afterwards: Afterwards = field(init=False)
    _failure: LinkFailed | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._news = News(self.clock, self._tellOne)
        self._afterwards = Afterwards(self.clock)

    def begin(self, inner: ILink) -> None:
        """
        The modern link, whose listener this is, has made its handshake.

        Raises: LinkFailed, where it is of no use.
        """
        self.inner = inner
        if self._failure is not None:
            raise self._failure
        if inner.answer.isError:
            self._end()
            why = "the server refused the handshake"
            raise LinkFailed(Reason.BAD_ANSWER, why, inner.answer)
        greeting = greetingOf(self.hello.params)
        self.answer = initialized(inner.answer, greeting.revision, self.name)
        result = members(inner.answer.fields["result"])
        declared = members(result.get("capabilities"))
        self._conversation = Conversation(
            greeting, self.limits.max_input_rounds, not self.http, lambda: str(uuid.uuid4())
        )
        self._listening = Listening(
            listsDeclared(declared),
            bytes(members(declared.get("resources")).get("subscribe", b"")) == b"true",
            self.limits.max_subscriptions,
            self.limits.respawn_last,
            self._conversation.nextID,
        )

    @property
    def sessionless(self) -> bool:
        """See ILink."""
        return True

    @property
    def multiplexed(self) -> bool:
        """See ILink."""
        return self.inner.multiplexed

    # ILink.

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink. Also False once the link is over."""
        if self._over:
            return False
        if message.kind is not REQUEST:
            self._note(message, context)
            if call is not None:
                self._news.add(Accepted(call))
            self._news.soon()
            return True
        self._newest = context
        here = self._answeredHere(message, call)
        if here is not None:
            self._do(here, soon=True)
            return True
        (effect,) = self._conversation.request(message, call, context)
        assert isinstance(effect, Send)
        if not self.inner.send(effect.message, effect.round, context):
            self._conversation.settled(effect.round, None)
            return False
        return True

    def _answeredHere(self, message: Message, call: object | None) -> list[Effect] | None:
        """What is done for a request that does not go to the server; rule 2."""
        assert message.id is not None
        method = message.method
        if method == "ping":
            return [Tell(emptyResult(message.id), call)]
        if method == "resources/subscribe":
            return self._listening.subscribe(message, call)
        if method == "resources/unsubscribe":
            return self._listening.unsubscribe(message, call)
        if method == "logging/setLevel":
            return [Tell(self._leveled(message), call)]
        refusal = refused(message)
        return None if refusal is None else [Tell(refusal, call)]

    def _leveled(self, message: Message) -> Message:
        """The answer to `logging/setLevel`; servers log that declared no `logging`, too."""
        assert message.id is not None
        level = message.param("level")
        if not isLevel(level):
            return errorMessage(message.id, -32602, "Invalid params: no such log level")
        self._conversation.level = level
        return emptyResult(message.id)

    def _note(self, message: Message, context: CallContext) -> None:
        """A notification or response of the client."""
        effects: list[Effect] = []
        if message.kind is RESPONSE:
            effects = self._conversation.response(message)
        elif message.method == "notifications/cancelled":
            effects = self._conversation.cancelled(message)
        elif message.method == "notifications/initialized":
            self._newest = self._newest or context
            effects = self._listening.start()
        elif message.method != "notifications/roots/list_changed":
            effects = [Dropped("not_modern")]
        self._do(effects, soon=True)

    def cancel(self, call: object) -> None:
        """See ILink; but the server, which goes on otherwise, is told where it was not."""
        if not self._over:
            self._listening.gaveUp(call)
            self._do(self._conversation.gaveUp(call), soon=True)

    def hold(self, origin: object | None) -> None:
        """See ILink."""
        self._weigh(origin, hold=True)

    def release(self, origin: object | None) -> None:
        """See ILink."""
        self._weigh(origin, hold=False)

    def _weigh(self, origin: object | None, *, hold: bool) -> None:
        if self._over:
            return
        weigh = self.inner.hold if hold else self.inner.release
        if origin is None:
            weigh(None)
            return
        errand = self._conversation.errandOf(origin)
        if errand is not None:
            errand.held = hold
            if errand.round is not None:
                weigh(errand.round)

    def close(self) -> Deferred[None]:
        """See ILink."""
        self._end()
        return self.inner.close() if hasattr(self, "inner") else succeed(None)

    def _end(self) -> None:
        self._over = True
        self._news.forget()
        self._afterwards.forget()

    # ILinkListener, of the modern link.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if self._over or not hasattr(self, "inner"):
            self._dropped("before_answer")
            return
        now = self.clock.seconds()
        stream = self._listening.streamOf(message, origin)
        if message.kind is REQUEST:
            effects: list[Effect] = [Dropped("unexpected_request")]
        elif message.kind is RESPONSE:
            if stream is not None:
                effects = self._listening.ended(stream, message, now)
            else:
                effects = self._conversation.answered(message)
        elif stream is not None:
            effects = self._listening.heard(stream, message, now)
        elif message.method == "notifications/cancelled" or message.meta(SUBSCRIPTION_ID):
            effects = [Dropped("late_notification")]
        else:
            call = origin.errand.call if isinstance(origin, Round) else None
            effects = [Tell(message, call)]
        self._do(effects)

    def marked(self, origin: object | None, mark: EventMark) -> None:
        """Streams of the modern era are not resumed."""

    def ended(self, origin: object) -> None:
        """No GET stream was opened."""

    def accepted(self, call: object) -> None:
        """Nothing that is accepted was sent with a call object."""

    def settled(self, call: object, settled: Settled) -> None:
        if self._over:
            return
        if isinstance(call, Stream):
            self._do(self._listening.ended(call, settled.body, self.clock.seconds()))
        elif isinstance(call, Round):
            found = self._conversation.settled(call, settled.body)
            if found is not None:
                errand, body = found
                self._news.add(Settlement(errand.call, attrs.evolve(settled, body=body)))
            self._news.now()

    def drained(self) -> None:
        if not self._over and hasattr(self, "inner"):
            self.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        if self._over:
            return
        self._end()
        if hasattr(self, "answer"):
            self.listener.lost(reason, message)
        else:
            self._failure = LinkFailed(reason, message)

    # Effects.

    def _do(self, effects: list[Effect], *, soon: bool = False) -> None:
        """Do all. soon: the listener hears of it in a turn of its own."""
        queue = deque(effects)
        while queue and not self._over:
            queue.extend(self._doOne(queue.popleft()))
        if soon:
            self._news.soon()
        else:
            self._news.now()

    def _doOne(self, effect: Effect) -> list[Effect]:
        """Do one; returns what follows from it."""
        if isinstance(effect, Tell):
            self._news.add(effect)
        elif isinstance(effect, Send):
            self._sendNext(effect)
        elif isinstance(effect, Open):
            return self._open(effect)
        elif isinstance(effect, Say):
            self._say(effect.message)
        elif isinstance(effect, Forget):
            self.inner.cancel(effect.round)
        elif isinstance(effect, End):
            self._endStream(effect.stream)
        elif isinstance(effect, Dropped):
            self._dropped(effect.why)
        elif isinstance(effect, Reached):
            self.observer.observed(BoundReached(effect.limit, self.name))
        else:
            self._later(effect)
        return []

    def _later(self, effect: AskAgain | Rest | AwaitAcknowledgement | Linger) -> None:
        """Have a core go on after a while."""
        if isinstance(effect, AskAgain):
            delay = jittered(backOff(self.limits, effect.failures))
            self._after(delay, lambda: self._conversation.again(effect.errand))
        elif isinstance(effect, Rest):
            delay = jittered(backOff(self.limits, effect.failures))
            self._after(delay, self._listening.rested)
        elif isinstance(effect, AwaitAcknowledgement):
            self._after(
                self.limits.upstream_first_byte,
                lambda: self._listening.overdue(effect.stream, self.clock.seconds()),
            )
        else:
            self._after(LINGER, lambda: self._listening.lingered(effect.stream))

    def _after(self, delay: float, goesOn: Callable[[], list[Effect]]) -> None:
        self._afterwards.do(delay, lambda: self._do(goesOn()))

    def _sendNext(self, effect: Send) -> None:
        """A further request of a call."""
        errand = effect.round.errand
        if not self.inner.send(effect.message, effect.round, errand.context):
            self._conversation.settled(effect.round, None)
            self._news.add(Settlement(errand.call, _BUSY))
        elif errand.held:
            self.inner.hold(effect.round)

    def _open(self, effect: Open) -> list[Effect]:
        context = self._newest
        assert context is not None
        message = stamped(effect.message, self._conversation.greeting, None)
        if self.inner.send(message, effect.stream, context):
            return []
        return self._listening.ended(effect.stream, None, self.clock.seconds())

    def _endStream(self, stream: Stream) -> None:
        if not self.http:
            self._say(notification("notifications/cancelled", requestId=stream.id))
        self.inner.cancel(stream)

    def _say(self, message: Message) -> None:
        context = self._newest
        if context is None or not self.inner.send(message, None, context):
            self._dropped("undeliverable")

    # What the listener hears.

    def _tellOne(self, news: Item) -> None:
        if isinstance(news, Accepted):
            self.listener.accepted(news.call)
        elif isinstance(news, Settlement):
            self.listener.settled(news.call, news.settled)
        elif news.message.kind is not REQUEST or self._conversation.asks(news.message):
            self.listener.received(news.message, news.call)

    def _dropped(self, why: str) -> None:
        self.observer.observed(MessageDropped(self.name, why))
