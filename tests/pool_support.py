"""What tests of pools share: a pool on a scripted legacy server, and modern clients in memory."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field, frozen
from relay_support import MemoryTarget
from schema_support import RESULTS, conforms, conformsToRequest
from stdio_support import Observed
from twisted.internet.task import Clock

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, IPolicy
from gateway.links.interfaces import IServer
from gateway.observe.observer import BoundReached, MessageDropped
from gateway.relay.pool import LegacyPool
from gateway.relay.relay import Relay
from gateway.servers.shared import SharedServer
from gateway.sessions.registry import Session, SessionRegistry
from gateway.sessions.store import MemoryStore
from gateway.testing.scripted import ScriptedLink, ScriptedServer, Sent, message
from gateway.wire.context import ANONYMOUS, CallContext, HeaderPairs, Principal
from gateway.wire.envelope import Kind, Message

__all__ = ["ALICE", "ALL", "BOB", "FORM", "INFO", "RESULT", "Asked", "PoolBench", "modern"]

RESULT = (
    b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},'
    b'"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},'
    b'"logging":{},"completions":{},"tasks":{"list":{}}},'
    b'"serverInfo":{"name":"s","version":"1.0"},"instructions":"be kind"}'
)
INFO = {"name": "s", "version": "1.0"}
FORM: dict[str, Any] = {"elicitation": {"form": {}}}
ALL: dict[str, Any] = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "roots": {},
}
ALICE = Principal("https://idp", "alice", "gateway")
BOB = Principal("https://idp", "bob", "gateway")

PREFIX = "io.modelcontextprotocol/"


def modern(
    id: object = 1,
    method: str = "tools/call",
    params: dict[str, Any] | None = None,
    *,
    caps: dict[str, Any] | None = None,
    level: str | None = None,
    token: object = None,
    name: str = "c",
) -> Message:
    """A modern request; name: its client's."""
    meta: dict[str, Any] = {
        PREFIX + "protocolVersion": "2026-07-28",
        PREFIX + "clientInfo": {"name": name, "version": "2"},
        PREFIX + "clientCapabilities": caps or {},
    }
    if level is not None:
        meta[PREFIX + "logLevel"] = level
    if token is not None:
        meta["progressToken"] = token
    if params is None:
        params = {"name": "t", "arguments": {}} if method == "tools/call" else {}
    whole = {"jsonrpc": "2.0", "id": id, "method": method, "params": {**params, "_meta": meta}}
    return message(json.dumps(whole).encode())


@frozen
class Asked:
    """A request that was made: what and where to."""

    request: Message
    target: MemoryTarget
    context: CallContext

    @property
    def json(self) -> Any:
        """The one answer."""
        return self.target.json

    @property
    def result(self) -> Any:
        """Its result."""
        return self.json["result"]

    @property
    def error(self) -> Any:
        """Its error."""
        return self.json["error"]

    @property
    def reason(self) -> str:
        return self.target.reason

    @property
    def waits(self) -> bool:
        """Whether there is no answer yet."""
        return not self.target.answers

    @property
    def heard(self) -> list[Any]:
        """What came before the answer."""
        return [json.loads(one.encode()) for one in self.target.delivered]


@define(eq=False)
class PoolBench:
    """
    A pool on a scripted server, behind a SharedServer if `shares`; `stop` sees that all is valid
    and nothing is left.
    """

    server: ScriptedServer = field(factory=lambda: ScriptedServer(result=RESULT))
    limits: Limits = field(factory=Limits)
    policy: IPolicy = field(factory=AllowAll)
    shares: bool = False
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    store: MemoryStore = field(factory=MemoryStore)
    pool: LegacyPool = field(init=False)
    relays: list[Relay] = field(factory=list, init=False)
    all: list[Asked] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        front: IServer = self.server
        if self.shares:
            front = SharedServer(self.server, self.limits, self.clock, self.observed)
        registry = SessionRegistry(self.clock, self.limits, self.store, self.observed)

        def makeRelay(session: Session, context: CallContext) -> Relay:
            relay = Relay(
                session,
                front,
                registry,
                self.policy,
                self.limits,
                self.clock,
                self.observed,
                context,
            )
            self.relays.append(relay)
            return relay

        self.pool = LegacyPool(front, self.limits, self.clock, self.observed, makeRelay)

    def ask(
        self,
        id: object = 1,
        method: str = "tools/call",
        params: dict[str, Any] | None = None,
        *,
        who: Principal = ANONYMOUS,
        caller: str = "",
        headers: HeaderPairs = (),
        **options: Any,
    ) -> Asked:
        """Make a request."""
        request = modern(id, method, params, **options)
        context = CallContext("scripted", who, headers, caller=caller)
        asked = Asked(request, MemoryTarget(), context)
        self.all.append(asked)
        self.pool.request(request, asked.target, context)
        assert asked.waits, "answered from within"
        self.turn()
        return asked

    def retry(
        self, before: Asked, responses: Any = None, *, id: object = "retry", **changes: Any
    ) -> Asked:
        """Make a request again, with the state of its answer; changes: options of `ask`."""
        whole = json.loads(before.request.encode())
        params = whole["params"]
        meta = params.pop("_meta")
        params.update(changes.pop("params", {}))
        result = before.result
        if "requestState" in result:
            params["requestState"] = result["requestState"]
        if "state" in changes:
            params["requestState"] = changes.pop("state")
        if responses is not None:
            params["inputResponses"] = responses
        options: dict[str, Any] = {
            "caps": meta[PREFIX + "clientCapabilities"],
            "token": meta.get("progressToken"),
            "level": meta.get(PREFIX + "logLevel"),
            "who": before.context.principal,
            "caller": before.context.caller,
            "headers": before.context.headers,
            "method": whole["method"],
        }
        options.update(changes)
        return self.ask(id, params=params, **options)

    def turn(self, seconds: float = 0.0) -> None:
        """Let so much time pass, or else as much as questions are waited for."""
        self.clock.advance(seconds or self.limits.ask_wait)

    @property
    def links(self) -> list[ScriptedLink]:
        """The links that are there."""
        return self.server.open

    @property
    def link(self) -> ScriptedLink:
        """The only one."""
        (one,) = self.links
        return one

    def calls(self, method: str = "tools/call") -> list[Sent]:
        """All requests of one method that any link was sent."""
        return [sent for link in self.server.links for sent in link.of(method)]

    def bounds(self) -> list[str]:
        """The bounds reached."""
        return [event.limit for event in self.observed.of(BoundReached)]

    def drops(self) -> list[str]:
        """Why messages reached nobody."""
        return [event.why for event in self.observed.of(MessageDropped)]

    def stop(self) -> None:
        """Stop, and see that what was said was valid and nothing is left."""
        done: list[None] = []
        self.pool.stop().addCallback(done.append)
        self.turn()
        assert done == [None]
        assert not self.clock.getDelayedCalls()
        assert not self.server.open
        assert not self.store.records
        assert not self.pool.running
        self.valid()

    def valid(self) -> None:
        """All that was said is valid in the revision of whom it was said to."""
        for asked in self.all:
            method = asked.request.method
            for one in asked.heard:
                conformsToRequest(one, "2026-07-28")
            for answer in asked.target.answers:
                self._validAnswer(json.loads(answer.encode()), method)
        for link in self.server.links:
            conforms(json.loads(link.hello.params), "2025-11-25", "InitializeRequestParams")
            for sent in link.sent:
                one = json.loads(sent.message.encode())
                if sent.message.kind is not Kind.RESPONSE:
                    conformsToRequest(one, "2025-11-25")
                elif "error" in one:
                    conforms(one, "2025-11-25", "JSONRPCErrorResponse")
                else:
                    conforms(one, "2025-11-25", "JSONRPCResultResponse")
                assert PREFIX not in json.dumps(one)

    def _validAnswer(self, answer: Any, method: str) -> None:
        if "error" in answer:
            conforms(answer, "2026-07-28", "JSONRPCErrorResponse")
            code = answer["error"]["code"]
            assert code not in (-32002, -32042)
            if -32099 <= code <= -32020:
                conforms(answer, "2026-07-28", "MissingRequiredClientCapabilityError")
        elif answer["result"]["resultType"] == "input_required":
            conforms(answer["result"], "2026-07-28", "InputRequiredResult")
        elif method == "subscriptions/listen":
            conforms(answer["result"], "2026-07-28", "SubscriptionsListenResult")
        else:
            conforms(answer["result"], "2026-07-28", RESULTS[method])
