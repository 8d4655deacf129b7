"""What tests of relays share: a relay on a scripted server, and targets in memory."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field
from stdio_support import Observed
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, IPolicy
from gateway.links.interfaces import EventMark
from gateway.relay.relay import Relay
from gateway.sessions.registry import Session, SessionRegistry
from gateway.sessions.store import MemoryStore
from gateway.testing.scripted import ScriptedHTTPLink, ScriptedServer, message
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.envelope import Message

__all__ = ["CONTEXT", "HELLO", "Bench", "MemoryTarget", "notify", "request", "response"]

CONTEXT = CallContext("scripted")
HELLO = (
    b'{"protocolVersion":"2025-06-18","capabilities":{"roots":{},"sampling":{}},'
    b'"clientInfo":{"name":"c","version":"1"}}'
)


@define(eq=False)
class MemoryTarget:
    """A relay's target that keeps what it gets. takes: whether it takes what is no answer."""

    takes: bool = True
    delivered: list[Message] = field(factory=list)
    answers: list[Message] = field(factory=list)
    marks: list[EventMark | None] = field(factory=list)
    losses: list[bytes] = field(factory=list)
    closed: bool = False
    retry: int = 0

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        if not self.takes or self.closed:
            return False
        self.delivered.append(message)
        self.marks.append(mark)
        return True

    def marked(self, mark: EventMark) -> None:
        self.marks.append(mark)

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        self.answers.append(message)
        self.marks.append(mark)

    def lost(self, id: bytes) -> None:
        self.losses.append(id)

    def recede(self, retry: int) -> None:
        self.retry = retry

    def close(self) -> None:
        self.closed = True

    @property
    def json(self) -> Any:
        """The one answer."""
        (one,) = self.answers
        return json.loads(one.encode())

    @property
    def reason(self) -> str:
        """`data.reason` of the one answer."""
        reason: str = self.json["error"]["data"]["reason"]
        return reason


@define(eq=False)
class Bench:
    """One session on one scripted server."""

    server: ScriptedServer = field(factory=ScriptedServer)
    limits: Limits = field(factory=Limits)
    policy: IPolicy = field(factory=AllowAll)
    transparent: bool = False
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    store: MemoryStore = field(factory=MemoryStore)
    registry: SessionRegistry = field(init=False)
    session: Session = field(init=False)
    relay: Relay = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.registry = SessionRegistry(self.clock, self.limits, self.store, self.observed)
        made: list[Session] = []
        self.registry.create("scripted", 1, ANONYMOUS, "streamable").addCallback(made.append)
        (self.session,) = made
        self.relay = Relay(
            self.session,
            self.server,
            self.registry,
            self.policy,
            self.limits,
            self.clock,
            self.observed,
            CONTEXT,
            self.transparent,
        )

    def opening(self) -> Deferred[Message]:
        """Begin the handshake."""
        return Deferred.fromCoroutine(self.relay.open(HELLO))

    def opened(self, *, initialized: bool = True) -> Bench:
        """Have the handshake made, and the client say that it is."""
        done: list[Message] = []
        self.opening().addCallback(done.append)
        assert len(done) == 1
        self.session.opened(self.clock.seconds())
        if initialized:
            self.tell(notify("notifications/initialized"))
            link = self.server.newest
            if isinstance(link, ScriptedHTTPLink):
                link.accept(link.last("notifications/initialized"))
        return self

    def ask(
        self,
        id: int = 1,
        method: str = "tools/call",
        params: str = "{}",
        target: MemoryTarget | None = None,
        streams: bool = True,
    ) -> MemoryTarget:
        """Send a request. Returns where its answer goes."""
        target = target or MemoryTarget()
        self.relay.request(request(id, method, params), target, streams, CONTEXT)
        return target

    def tell(self, what: Message) -> list[bool]:
        """Send a notification or response. Returns where it is said whether it was taken."""
        taken: list[bool] = []
        told = self.relay.message(what, CONTEXT)
        if isinstance(told, bool):
            taken.append(told)
        else:
            told.addCallback(taken.append)
        return taken

    def stream(self) -> MemoryTarget:
        """Attach a stream."""
        stream = MemoryTarget()
        self.relay.attach(stream)
        self.relay.readerOpened(stream, stream)
        return stream

    def end(self, reason: str = "deleted") -> None:
        """End the session, and see that nothing is left."""
        self.registry.end(self.session, reason)
        self.left()

    def left(self) -> None:
        """Nothing of an ended session is left."""
        assert not self.clock.getDelayedCalls()
        assert not self.relay.router.calls
        assert not self.server.open
        assert len(self.registry) == 0 and not self.store.records


def request(id: int, method: str = "tools/call", params: str = "{}") -> Message:
    """A request."""
    data = f'{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}'
    return message(data.encode())


def notify(method: str, params: str = "{}") -> Message:
    """A notification."""
    return message(f'{{"jsonrpc":"2.0","method":"{method}","params":{params}}}'.encode())


def response(id: bytes, result: str = "{}") -> Message:
    """A response."""
    return message(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, result.encode()))
