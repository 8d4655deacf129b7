"""The SDK's own client of the legacy era before the SDK's own server of the modern era."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_twisted
from attrs import define
from processes import ROOT, Process, start
from raw import Recorder
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway.config import Configuration, GatewaySettings
from gateway.guard.limits import Limits
from gateway.links.bridged import BridgedLink
from gateway.links.interfaces import (
    Health,
    Hello,
    ILink,
    ILinkListener,
    IServer,
    ITwoEraServer,
)
from gateway.observe.observer import MessageDropped
from gateway.service import GatewayService
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings
from gateway.wire.context import CallContext

SERVER = str(ROOT / "tests" / "modern_server.py")
CLIENT = str(ROOT / "tests" / "bridged_client.py")


@implementer(IServer)
@define(eq=False)
class Bridging:
    """A server that is spoken to in the modern era alone."""

    inner: ITwoEraServer
    limits: Limits
    observer: Recorder
    generation: int = 1

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def settings(self) -> ServerSettings:
        return self.inner.settings

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        http = isinstance(self.settings, HTTPSettings)
        bridged = BridgedLink(hello, listener, reactor, self.limits, self.observer, self.name, http)

        def begin(inner: ILink) -> ILink:
            bridged.begin(inner)
            return bridged

        return self.inner.modernLink(bridged, context).addCallback(begin)

    def health(self) -> Health:
        return self.inner.health()

    def drain(self) -> Deferred[None]:
        return self.inner.drain()


@pytest_twisted.async_yield_fixture(scope="module")
async def behind() -> AsyncIterator[str]:
    """The modern server over HTTP."""
    process: Process = start([sys.executable, SERVER, "--http", "0"])
    yield (await process.line(r"ready (http://\S+)"))[1]
    process.kill()
    await process.ended


@pytest_twisted.async_yield_fixture
async def gateway(behind: str) -> AsyncIterator[tuple[str, Recorder]]:
    """A gateway before it, and before it as a child."""
    servers = (
        StdioSettings(name="child", command=sys.executable, args=(SERVER, "--stdio")),
        HTTPSettings(name="behind", url=behind),
        HTTPSettings(name="gathered", url=behind, proxy="streamable"),
    )
    limits = Limits(eof_wait=0.5, term_wait=0.5, drain_grace=0.5)
    settings = GatewaySettings(listen=("tcp:0:interface=127.0.0.1",), limits=limits)
    recorder = Recorder()
    service = GatewayService(
        Configuration(servers=servers, gateway=settings, source="test"), reactor, observer=recorder
    )
    make = service._server
    service._server = lambda settings, reaper: Bridging(make(settings, reaper), limits, recorder)
    service.startService()
    yield f"http://127.0.0.1:{service.ports[0].getHost().port}", recorder
    await service.stopService()


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("http", "child/mcp"),
        ("sse", "child/sse"),
        ("http", "behind/mcp"),
        ("sse", "behind/sse"),
        ("http", "gathered/mcp"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_legacy_client_uses_a_modern_server(
    gateway: tuple[str, Recorder], kind: str, path: str
) -> None:
    base, recorder = gateway
    process = start([sys.executable, CLIENT, kind, f"{base}/servers/{path}", path])
    assert await process.ended == 0, process.err
    assert json.loads(process.out) == {
        "revision": "2025-11-25",
        "server": "modern",
        "tools": 8,
        "echo": "\U0001f600",
        "asked for": "two: [({'who': '\u00e9va'}, 'file:///here')]",
        "read": "seen",
        "prompt": "hello you",
        "together": 19,
        "broken": True,
        "missing": -32002,
        "slow": -32001,
        "cancelled": True,
        "progress": [1, 2, 3],
        "logged": ["heard"],
        "asked": ["elicitation", "roots", "sampling"],
        "changed": ["test://watched", "tools"],
    }
    dropped = {event.why for event in recorder.events if isinstance(event, MessageDropped)}
    assert dropped <= {"duplicate", "client_gone", "late_answer"}
