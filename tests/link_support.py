"""A session's side of a link, for tests: it records what it hears."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field
from zope.interface import implementer

from gateway.links.interfaces import EventMark, Hello, ILinkListener, Reason, Settled
from gateway.observe.observer import Event, IObserver, MessageDropped
from gateway.testing.scripted import message
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = ["Observed", "Session", "hello", "message"]

CONTEXT = CallContext("scripted")


def hello(revision: str = "2025-06-18") -> Hello:
    return Hello(b'{"protocolVersion":"%b","capabilities":{"sampling":{}}}' % revision.encode())


@implementer(IObserver)
@define
class Observed:
    events: list[Event] = field(factory=list)

    def observed(self, event: Event) -> None:
        self.events.append(event)

    @property
    def dropped(self) -> list[str]:
        return [event.why for event in self.events if isinstance(event, MessageDropped)]


@implementer(ILinkListener)
@define(eq=False)
class Session:
    """One session's relay, as the shared link sees it."""

    heard: list[dict[str, Any]] = field(factory=list)
    taken: list[object] = field(factory=list)
    ends: list[tuple[object, Settled]] = field(factory=list)
    losses: list[Reason] = field(factory=list)
    drains: int = 0
    link: Any = None

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        self.heard.append(json.loads(message.encode()))

    def marked(self, origin: object | None, mark: EventMark) -> None:
        raise AssertionError("never marked")

    def ended(self, origin: object) -> None:
        raise AssertionError("has no streams")

    def accepted(self, call: object) -> None:
        self.taken.append(call)

    def settled(self, call: object, settled: Settled) -> None:
        self.ends.append((call, settled))

    def drained(self) -> None:
        self.drains += 1

    def lost(self, reason: Reason, message: str) -> None:
        self.losses.append(reason)

    # The test's side.

    def ask(self, id: int, method: str = "tools/call", **params: Any) -> object:
        call = object()
        body = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        self.taken.append(self.link.send(message(json.dumps(body).encode()), call, CONTEXT))
        return call

    def tell(self, method: str, call: object = None, **params: Any) -> bool:
        body = {"jsonrpc": "2.0", "method": method, "params": params}
        return bool(self.link.send(message(json.dumps(body).encode()), call, CONTEXT))

    def take(self) -> list[dict[str, Any]]:
        heard, self.heard = self.heard, []
        return heard
