"""
The one stream of changes of a bridged link (MCP 2026-07-28, basic/patterns/subscriptions).

Pure. Theory of operation:

 1. The stream asks for the lists whose changes the server declared, and for the resources the
    client subscribed to. It is opened once the client said `notifications/initialized`, or first
    subscribes, and if there is anything to ask for.
 2. Another set of resources takes another stream: it is opened first, and the one before ends a
    moment after the server acknowledged it. What the old one still tells waits for that moment,
    and is dropped where the new one tells the same: nothing is missed, and nothing comes twice.
 3. `resources/subscribe` is answered when a stream with that resource is acknowledged, so that
    what changes after the answer is told. It is refused where the server would not listen, or
    left the resource out of what it acknowledged. What a later stream is acknowledged without is
    not asked for again, unless the client subscribes again.
 4. A stream that ends by itself is opened again after a back-off. What the client may have missed
    meanwhile it is told then: that the lists changed, and the resources. It is told so at once
    where the next stream is there already.
 5. A server that knows no `subscriptions/listen` (-32601) is asked no more.
 6. At most `most` resources; the oldest goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import define, field
from msgspec import Raw

from gateway.bridge.effects import (
    AwaitAcknowledgement,
    Dropped,
    Effect,
    End,
    Linger,
    Open,
    Reached,
    Rest,
    Round,
    Stream,
    Tell,
)
from gateway.bridge.results import errorAsLegacy, notCarried
from gateway.bridge.spelling import items, spelled
from gateway.wire.envelope import (
    RESPONSE,
    Message,
    emptyResult,
    members,
    notification,
    quote,
    request,
    text,
)
from gateway.wire.modern import LISTEN, SUBSCRIPTION_ID, errorCode, withoutMetas
from gateway.wire.refusals import errorMessage

__all__ = ["Listening", "listsDeclared"]

_ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
_LISTS = ("tools", "prompts", "resources")
_ENDED = "The server's stream of changes could not be opened"


def listsDeclared(capabilities: Mapping[str, Raw]) -> tuple[str, ...]:
    """The lists whose changes a server says it tells."""
    return tuple(
        name
        for name in _LISTS
        if bytes(members(capabilities.get(name)).get("listChanged", b"")) == b"true"
    )


@define(eq=False)
class _Waiter:
    """
    A `resources/subscribe` that is not answered yet.

    fresh: whether nobody but who waits wants the resource.
    """

    call: object
    id: bytes
    uri: str
    fresh: bool


@define(eq=False)
class Listening:
    """
    What one client listens to. Its link drives it and forgets it.

    kinds: the lists whose changes the server declared. takesURIs: whether it declared
    `resources.subscribe`. most: how many resources at most. lasting: seconds after which a stream
    that ended counts as one that worked. nextID: the id of the next request.
    """

    kinds: tuple[str, ...]
    takesURIs: bool
    most: int
    lasting: float
    nextID: Callable[[], bytes]
    _uris: dict[str, None] = field(factory=dict, init=False)
    _waiters: list[_Waiter] = field(factory=list, init=False)
    _started: bool = field(default=False, init=False)
    _refused: bool = field(default=False, init=False)
    _resting: bool = field(default=False, init=False)
    _missed: bool = field(default=False, init=False)
    _failures: int = field(default=0, init=False)
    _opening: Stream | None = field(default=None, init=False)
    _current: Stream | None = field(default=None, init=False)
    _old: Stream | None = field(default=None, init=False)
    _late: dict[tuple[str, str | None], Tell] = field(factory=dict, init=False)
    """What the old stream told since the new one is there."""

    @property
    def streams(self) -> list[Stream]:
        """Those that the server knows of."""
        return [one for one in (self._old, self._current, self._opening) if one is not None]

    def streamOf(self, message: Message, origin: object | None) -> Stream | None:
        """The stream that a message of the server belongs to; origin: as the link says."""
        if isinstance(origin, Stream):
            return origin
        if isinstance(origin, Round):
            return None
        if message.kind is RESPONSE:
            id = message.id
        elif message.method == "notifications/cancelled":
            id = message.param("requestId")
        else:
            id = message.meta(SUBSCRIPTION_ID)
        return next((one for one in self.streams if one.id == id), None)

    # From the client.

    def start(self) -> list[Effect]:
        """The client said `notifications/initialized`."""
        self._started = True
        return self._look()

    def subscribe(self, message: Message, call: object) -> list[Effect]:
        """The client subscribes to a resource; see rule 3."""
        assert message.id is not None
        uri = message.paramText("uri")
        if not self.takesURIs or self._refused:
            return [Tell(errorMessage(message.id, -32601, "Method not found"), call)]
        if uri is None:
            return [Tell(errorMessage(message.id, -32602, "Invalid params: uri"), call)]
        self._started = True
        if uri in self._uris and self._isHeard(uri):
            return [Tell(emptyResult(message.id), call)]
        effects: list[Effect] = []
        fresh = uri not in self._uris
        self._uris[uri] = None
        if len(self._uris) > self.most:
            oldest = next(iter(self._uris))
            del self._uris[oldest]
            effects = [Reached("max_subscriptions"), *self._answer((oldest,))]
        self._waiters.append(_Waiter(call, message.id, uri, fresh))
        return effects + self._look()

    def _isHeard(self, uri: str) -> bool:
        """Whether the stream there is, and the one that follows it, have a resource."""
        following = self._opening or self._current
        return self._current is not None and all(
            uri in stream.uris for stream in (self._current, following) if stream is not None
        )

    def unsubscribe(self, message: Message, call: object) -> list[Effect]:
        """The client wants no more of a resource."""
        assert message.id is not None
        if not self.takesURIs:
            return [Tell(errorMessage(message.id, -32601, "Method not found"), call)]
        uri = message.paramText("uri")
        if uri is None:
            return [Tell(errorMessage(message.id, -32602, "Invalid params: uri"), call)]
        effects: list[Effect] = self._answer((uri,))
        self._uris.pop(uri, None)
        return [*effects, Tell(emptyResult(message.id), call), *self._look()]

    def gaveUp(self, call: object) -> None:
        """
        The relay waits no longer for a call. What nobody else wants is not asked for again: where
        the server refuses it, whatever is asked for with it would be refused, too.
        """
        gone = [waiter for waiter in self._waiters if waiter.call is call]
        self._waiters = [waiter for waiter in self._waiters if waiter.call is not call]
        for one in gone:
            others = [waiter for waiter in self._waiters if waiter.uri == one.uri]
            if others:
                others[0].fresh = others[0].fresh or one.fresh
            elif one.fresh:
                self._uris.pop(one.uri, None)

    def _answer(self, uris: tuple[str, ...], refusal: Message | None = None) -> list[Effect]:
        """Answer who waits for these."""
        due = [waiter for waiter in self._waiters if waiter.uri in uris]
        self._waiters = [waiter for waiter in self._waiters if waiter.uri not in uris]
        effects: list[Effect] = []
        for waiter in due:
            if refusal is None:
                answer = emptyResult(waiter.id)
            else:
                answer = refusal.withID(waiter.id)
                self._uris.pop(waiter.uri, None)
            effects.append(Tell(answer, waiter.call))
        return effects

    def _look(self) -> list[Effect]:
        """Open or end what must be for what is wanted now."""
        if not self._started or self._refused or self._resting or self._opening is not None:
            return []
        wanted = tuple(self._uris)
        if not wanted and not self.kinds:
            self._missed = False
            return self._retire()
        if self._current is not None and set(self._current.uris) == set(wanted):
            return []
        stream = Stream(self.nextID(), self.kinds, wanted)
        self._opening = stream
        chosen: dict[str, object] = {f"{kind}ListChanged": True for kind in self.kinds}
        if wanted:
            chosen["resourceSubscriptions"] = list(wanted)
        message = request(LISTEN, notifications=spelled(chosen)).withID(stream.id)
        return [Open(message, stream), AwaitAcknowledgement(stream)]

    def _retire(self) -> list[Effect]:
        """Nothing is wanted of the stream there is."""
        stream, self._current = self._current, None
        return [] if stream is None else [End(stream)]

    # From the server.

    def heard(self, stream: Stream, message: Message, now: float) -> list[Effect]:
        """A notification on a stream."""
        if stream not in self.streams:
            return [Dropped("late_notification")]
        if message.method == "notifications/cancelled":
            return self.ended(stream, None, now)
        effects: list[Effect] = []
        if stream is self._opening:
            # One that tells at once has acknowledged, too.
            effects = self._acknowledged(stream, message, now)
        if message.method == _ACKNOWLEDGED:
            return effects
        told = Tell(withoutMetas(message, [SUBSCRIPTION_ID]))
        if self._old is None or self._current is None:
            return [*effects, told]
        key = message.method, message.paramText("uri")
        if key[1] not in (None, *stream.uris):
            return [*effects, told]
        if stream is self._current:
            stream.heard.add(key)
            if self._late.pop(key, None) is not None:
                effects.append(Dropped("duplicate"))
            return [*effects, told]
        if key in self._current.heard or key in self._late:
            return [Dropped("duplicate")]
        self._late[key] = told
        return []

    def _acknowledged(self, stream: Stream, message: Message, now: float) -> list[Effect]:
        stream.acknowledgedAt = now
        self._opening = None
        effects: list[Effect] = [] if self._old is None else [End(self._old), *self._ripened()]
        self._old, self._current = self._current, stream
        if self._old is not None:
            effects.append(Linger(self._old))
        granted = members(message.param("notifications")).get("resourceSubscriptions")
        taken = {text(item) for item in items(granted)}
        if message.method == _ACKNOWLEDGED and len(taken) < len(stream.uris):
            left = tuple(uri for uri in stream.uris if uri not in taken)
            refusal = errorMessage(
                None, -32602, "The server takes no subscription to this resource"
            )
            effects += self._answer(left, refusal)
            for uri in left:
                # Also where nobody waits any more: it would be asked for again at once, for ever.
                self._uris.pop(uri, None)
            stream.uris = tuple(uri for uri in stream.uris if uri in taken)
        effects += self._answer(stream.uris)
        if self._missed:
            self._missed = False
            effects += self._mayHaveMissed(stream)
        return effects + self._look()

    def _mayHaveMissed(self, stream: Stream) -> list[Effect]:
        told = [notification(f"notifications/{kind}/list_changed") for kind in stream.kinds]
        told += [
            notification("notifications/resources/updated", uri=quote(uri)) for uri in stream.uris
        ]
        return [Tell(message) for message in told]

    def ended(self, stream: Stream, answer: Message | None, now: float) -> list[Effect]:
        """
        A stream ended by itself.

        answer: the server's response, or the error it refused the request with; None where the
            stream was cut.
        """
        if stream is self._old:
            # Perhaps before the server knew of the new one.
            effects = self._ripened()
            return (
                effects
                if self._current is None
                else [
                    *effects,
                    *self._mayHaveMissed(self._current),
                ]
            )
        if stream is self._current:
            self._current = None
            self._missed = True
            if now - (stream.acknowledgedAt or now) >= self.lasting:
                self._failures = 0
            return [] if self._opening is not None else self._rest()
        if stream is not self._opening:
            return [Dropped("late_answer")]
        self._opening = None
        if answer is not None and answer.isError:
            refusal = errorAsLegacy(request(LISTEN), answer)
        else:
            refusal = notCarried(None, _ENDED)
        self._missed = True
        effects = self._answer(stream.uris, refusal)
        if errorCode(refusal) == -32601:
            self._refused, self._missed = True, False
            effects += self._answer(tuple(self._uris), refusal)
            self._uris.clear()
            return effects + self._retire()
        return effects + self._rest()

    def _rest(self) -> list[Effect]:
        self._failures += 1
        self._resting = True
        return [Rest(self._failures)]

    def rested(self) -> list[Effect]:
        """The back-off of a `Rest` is over."""
        self._resting = False
        return self._look()

    def overdue(self, stream: Stream, now: float) -> list[Effect]:
        """A stream had its time to be acknowledged."""
        if stream is not self._opening:
            return []
        return [
            Reached("upstream_first_byte"),
            End(stream),
            *self.ended(stream, None, now),
        ]

    def lingered(self, stream: Stream) -> list[Effect]:
        """The time of an old stream is over."""
        if stream is not self._old:
            return []
        return [End(stream), *self._ripened()]

    def _ripened(self) -> list[Effect]:
        """The old stream is over: tell what it alone told."""
        late, self._late, self._old = self._late, {}, None
        if self._current is not None:
            self._current.heard.clear()
        return list(late.values())
