"""A bridged link between a scripted modern link and a listener that keeps what it hears."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field
from link_support import Observed
from schema_support import RESULTS, conforms, conformsToRequest
from twisted.internet.task import Clock
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.bridged import BridgedLink
from gateway.links.interfaces import EventMark, Hello, ILinkListener, Reason, Settled
from gateway.observe.observer import BoundReached
from gateway.testing.scripted import ScriptedLink, ScriptedServer, Sent, message
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = ["CONTEXT", "DISCOVERED", "MODERN", "Bridge", "greeting"]

CONTEXT = CallContext("scripted")
MODERN = "2026-07-28"
DISCOVERED: dict[str, Any] = {
    "resultType": "complete",
    "supportedVersions": [MODERN],
    "capabilities": {
        "tools": {"listChanged": True},
        "prompts": {},
        "resources": {"subscribe": True, "listChanged": True},
        "logging": {},
        "completions": {},
        "extensions": {"io.modelcontextprotocol/tasks": {}},
    },
    "instructions": "be good",
    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "m", "version": "1.0"}},
    "ttlMs": 0,
    "cacheScope": "private",
}


def greeting(revision: str = "2025-11-25", **capabilities: Any) -> bytes:
    declared = capabilities or {"roots": {}, "sampling": {}, "elicitation": {}}
    said = {
        "protocolVersion": revision,
        "capabilities": declared,
        "clientInfo": {"name": "c", "version": "1"},
    }
    return json.dumps(said).encode()


@implementer(ILinkListener)
@define(eq=False)
class Bridge:
    """
    Both ends of a bridged link; it is the link's listener.

    Everything that passes is validated: what goes to the server by the modern schema, what the
    listener hears by that of its revision.
    """

    revision: str = "2025-11-25"
    http: bool = False
    capabilities: dict[str, Any] = field(factory=dict)
    discovered: dict[str, Any] = field(factory=lambda: DISCOVERED)
    limits: Limits = field(factory=Limits)
    validated: bool = True
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    heard: list[tuple[dict[str, Any], object]] = field(factory=list)
    taken: list[object] = field(factory=list)
    ends: list[tuple[object, Settled]] = field(factory=list)
    losses: list[tuple[Reason, str]] = field(factory=list)
    drains: int = 0
    link: BridgedLink = field(init=False)
    inner: ScriptedLink = field(init=False)
    methods: dict[int, str] = field(factory=dict)
    within: int = 0
    checked: int = 0

    def __attrs_post_init__(self) -> None:
        hello = Hello(greeting(self.revision, **self.capabilities))
        self.link = BridgedLink(
            hello, self, self.clock, self.limits, self.observed, "scripted", self.http
        )
        answer = {"jsonrpc": "2.0", "id": 0, "result": self.discovered}
        self.inner = ScriptedLink(
            ScriptedServer(), self.link, hello, CONTEXT, message(json.dumps(answer).encode())
        )
        self.inner.multiplexed = not self.http
        self.link.begin(self.inner)

    # ILinkListener.

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        assert not self.within, "told from within send"
        heard = json.loads(message.encode())
        if self.validated:
            self._validate(heard)
        self.heard.append((heard, origin))

    def _validate(self, heard: dict[str, Any]) -> None:
        if "method" in heard:
            conformsToRequest(heard, self.revision)
        elif "result" in heard:
            conforms(heard["result"], self.revision, RESULTS[self.methods[heard["id"]]])
            assert "resultType" not in heard["result"]

    def marked(self, origin: object | None, mark: EventMark) -> None:
        raise AssertionError("never marked")

    def ended(self, origin: object) -> None:
        raise AssertionError("has no streams")

    def accepted(self, call: object) -> None:
        assert not self.within, "told from within send"
        self.taken.append(call)

    def settled(self, call: object, settled: Settled) -> None:
        assert not self.within, "told from within send"
        self.ends.append((call, settled))

    def drained(self) -> None:
        self.drains += 1

    def lost(self, reason: Reason, message: str) -> None:
        self.losses.append((reason, message))

    # The client's side.

    def send(self, body: dict[str, Any], call: object | None = None) -> bool:
        self.within += 1
        taken = self.link.send(message(json.dumps(body).encode()), call, CONTEXT)
        self.within -= 1
        self._check()
        return taken

    def ask(self, id: int, method: str = "tools/call", **params: Any) -> object:
        """A request of the client's; returns its call."""
        if method == "tools/call":
            params.setdefault("name", "t")
        self.methods[id] = method
        call = object()
        assert self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params}, call)
        return call

    def tell(self, method: str, call: object = None, **params: Any) -> None:
        body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params:
            body["params"] = params
        assert self.send(body, call)

    def answer(self, question: dict[str, Any], result: Any = None, error: Any = None) -> None:
        """The client answers a question."""
        outcome = {"result": result} if error is None else {"error": error}
        assert self.send({"jsonrpc": "2.0", "id": question["id"], **outcome})

    def cancel(self, call: object) -> None:
        self.within += 1
        self.link.cancel(call)
        self.within -= 1
        self._check()

    def take(self) -> list[dict[str, Any]]:
        """What the listener heard since the last time."""
        self.clock.advance(0)
        heard, self.heard = self.heard, []
        return [one for one, _ in heard]

    # The server's side.

    def _check(self) -> None:
        """Validate what the server was sent."""
        new = self.inner.sent[self.checked :]
        self.checked = len(self.inner.sent)
        for sent in new if self.validated else []:
            body = json.loads(sent.message.encode())
            if body["method"] != "unknown/method":
                conformsToRequest(body, MODERN)

    @property
    def last(self) -> Sent:
        """The newest request the server got."""
        self._check()
        return self.inner.requests[-1]

    def params(self, sent: Sent | None = None) -> Any:
        return json.loads((sent or self.last).message.encode())["params"]

    def reply(self, sent: Sent | None = None, **result: Any) -> None:
        """The server answers; `resultType` is "complete" where not said."""
        result.setdefault("resultType", "complete")
        self.inner.reply(sent or self.last, json.dumps(result).encode())

    def push(self, method: str, on: Sent | None = None, **params: Any) -> None:
        """The server tells something; on: the request on whose stream, over HTTP."""
        body = {"jsonrpc": "2.0", "method": method, "params": params}
        origin = on.call if on is not None and self.http else None
        self.inner.push(json.dumps(body).encode(), origin)

    def acknowledge(self, sent: Sent | None = None, **changed: Any) -> Sent:
        """The server acknowledges a `subscriptions/listen`."""
        sent = sent or self.inner.last("subscriptions/listen")
        granted = {**self.params(sent)["notifications"], **changed}
        self.pushOn(sent, "notifications/subscriptions/acknowledged", notifications=granted)
        return sent

    def pushOn(self, sent: Sent, method: str, **params: Any) -> None:
        """The server tells something on a stream of changes."""
        meta = {"io.modelcontextprotocol/subscriptionId": json.loads(sent.id)}
        self.push(method, sent, _meta=meta, **params)

    @property
    def reached(self) -> list[str]:
        return [event.limit for event in self.observed.events if isinstance(event, BoundReached)]
