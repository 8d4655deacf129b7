"""What tests of modern clients share: their messages, and servers that are found to be modern."""

from __future__ import annotations

import json
from typing import Any

from attrs import define
from raw import AnsweringServer
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from gateway.links.interfaces import Health, Hello, ILink, ILinkListener, IServer, LinkFailed
from gateway.wire.context import CallContext
from gateway.wire.mcp_headers import METHOD, NAME, NAMED, VERSION, encodeValue

__all__ = ["CLAIM", "LISTENING", "KnownServer", "ModernServer", "enveloped", "fields"]

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


@define
class Verdict:
    """What is known of a server's era."""

    modern: bool | None = None


class ModernServer(AnsweringServer):
    """
    A ScriptedServer of both eras that knows its era by itself, as an EraServer does.

    verdict: what is known. held: whether `findModern` waits for `find`. doubts: how often the
    verdict was doubted.
    """

    answers = False

    def __init__(self, name: str = "one", modern: bool | None = True, **options: Any) -> None:
        super().__init__(name, **options)
        self.inner = self
        self.verdict = Verdict(modern)
        self.held = False
        self.doubts = 0
        self.finding: list[Deferred[bool]] = []
        self.gaveUp = 0
        self.failure: LinkFailed | None = None

    def findModern(self, context: CallContext) -> Deferred[bool]:
        if self.failure is not None:
            return fail(self.failure)
        if not self.held:
            self.verdict.modern = True
            return succeed(True)
        found: Deferred[bool] = Deferred(self._left)
        self.finding.append(found)
        return found

    def _left(self, _: Deferred[bool]) -> None:
        self.gaveUp += 1

    def doubt(self) -> None:
        self.doubts += 1

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        return self.link(Hello(b"{}"), listener, context)


@implementer(IServer)
class KnownServer:
    """Stands before a configured server and knows its era, as an EraServer does."""

    def __init__(self, inner: Any, modern: bool | None = True) -> None:
        self.inner = inner
        self.name, self.settings, self.generation = inner.name, inner.settings, inner.generation
        self.verdict = Verdict(modern)
        self.doubts = 0
        self.failure: LinkFailed | None = None

    def findModern(self, context: CallContext) -> Deferred[bool]:
        return fail(self.failure) if self.failure is not None else succeed(True)

    def doubt(self) -> None:
        self.doubts += 1

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        link: Deferred[ILink] = self.inner.link(hello, listener, context, ownStreams)
        return link

    def health(self) -> Health:
        return Health.UNKNOWN

    def drain(self) -> Deferred[None]:
        drained: Deferred[None] = self.inner.drain()
        return drained
