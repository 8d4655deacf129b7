"""What tests of modern clients share: their messages, and servers that are found to be modern."""

from __future__ import annotations

import json
from typing import Any

from raw import AnsweringServer, Recorder
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.interfaces import Hello, ILink, ILinkListener, ITwoEraServer
from gateway.servers.eras import EraServer
from gateway.servers.verdicts import Verdicts
from gateway.testing import MemoryGateway
from gateway.testing.memory import Exchanged
from gateway.wire.context import CallContext
from gateway.wire.mcp_headers import METHOD, NAME, NAMED, VERSION, encodeValue

__all__ = [
    "CLAIM",
    "LISTENING",
    "ModernServer",
    "answerOf",
    "enveloped",
    "fields",
    "known",
    "posted",
]

VERSION_NOW = "2026-07-28"
CLAIM = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
LISTENING = {"notifications": {"toolsListChanged": True}}


def enveloped(
    method: str,
    id: object = 7,
    *,
    version: object = VERSION_NOW,
    meta: dict[str, Any] | None = None,
    **params: Any,
) -> bytes:
    """A modern request."""
    told = {CLAIM: version, CAPABILITIES: {}, **(meta or {})}
    message = {"jsonrpc": "2.0", "id": id, "method": method, "params": {**params, "_meta": told}}
    return json.dumps(message, separators=(",", ":")).encode()


def fields(body: bytes, *others: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The fields that go with a modern request; others: further ones."""
    message = json.loads(body)
    method, params = message["method"], message.get("params", {})
    pairs = [
        (b"Accept", b"application/json, text/event-stream"),
        (VERSION.title(), str(params["_meta"][CLAIM]).encode()),
        (METHOD.title(), method.encode()),
    ]
    name = params.get(NAMED.get(method, ""))
    if name is not None:
        pairs.append((NAME.title(), encodeValue(name)))
    return [*pairs, *others]


def posted(gateway: MemoryGateway, body: bytes, server: str = "one") -> Exchanged:
    """A modern request to a server of a gateway in memory."""
    pairs = {name.decode(): value.decode() for name, value in fields(body)}
    return gateway.client(server).send("POST", body, **pairs)


def answerOf(exchanged: Exchanged) -> Any:
    """The answer to a POST of either era, in whatever way it travelled."""
    json = exchanged.header("content-type") == "application/json"
    return exchanged.json() if json else exchanged.events()[-1]


@implementer(ITwoEraServer)
class ModernServer(AnsweringServer):
    """A ScriptedServer of both eras, whose links answer nothing by themselves."""

    answers = False

    def __init__(self, name: str = "one", **options: Any) -> None:
        super().__init__(name, **options)

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        return self.link(Hello(b"{}"), listener, context)


def known(server: Any) -> EraServer:
    """What stands before a server and knows its era, where that is configured."""
    limits, clock, observer = Limits(), Clock(), Recorder()
    return EraServer(server, limits, clock, observer, Verdicts(limits, clock, observer))
