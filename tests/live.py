"""A whole gateway in the test's own process: real children, real sockets, the real clock."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_twisted
import treq
from attrs import define, field
from faulty_upstream import FaultyUpstream
from raw import Recorder
from twisted.internet import reactor

from gateway.config import Configuration, GatewaySettings
from gateway.guard.authentication import IAuthenticator
from gateway.guard.limits import Limits
from gateway.service import GatewayService
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings

PROTOCOL = "2025-06-18"


def faulty(*flags: str, name: str = "faulty", **settings: Any) -> StdioSettings:
    """The scripted stdio server."""
    from processes import ROOT

    script = str(ROOT / "tests" / "faulty_server.py")
    return StdioSettings(name=name, command=sys.executable, args=(script, *flags), **settings)


def behind(url: str, name: str = "behind", **settings: Any) -> HTTPSettings:
    """A server over HTTP."""
    return HTTPSettings(name=name, url=url, **settings)


@define
class Answer:
    status: int
    headers: dict[str, list[str]]
    body: bytes

    @property
    def message(self) -> Any:
        """The JSON-RPC message of a JSON body, or of an event stream's last event."""
        if self.headers.get("Content-Type", [""])[0].startswith("text/event-stream"):
            lines = [line for line in self.body.split(b"\n") if line.startswith(b"data: ")]
            return json.loads(lines[-1][6:])
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return self.message["error"]["data"]["reason"]


@define
class Live:
    """A started gateway and what a client asks it."""

    service: GatewayService
    recorder: Recorder
    base: str
    _ids: int = field(default=0)

    async def post(self, server: str, message: object, session: str = "", **headers: str) -> Answer:
        fields = {"Content-Type": "application/json", **headers}
        if session:
            fields["Mcp-Session-Id"] = session
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.request("POST", f"/servers/{server}/mcp", body, fields)

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: Any = None
    ) -> Answer:
        response = await treq.request(
            method, self.base + path, data=body, headers=headers or {}, persistent=False
        )
        content = await response.content()
        fields = {
            name.decode(): [value.decode() for value in values]
            for name, values in response.headers.getAllRawHeaders()
        }
        return Answer(response.code, fields, content)

    async def initialize(self, server: str, **capabilities: object) -> Answer:
        params = {
            "protocolVersion": PROTOCOL,
            "capabilities": capabilities,
            "clientInfo": {"name": "live", "version": "1"},
        }
        message = {"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": params}
        return await self.post(server, message)

    async def session(self, server: str, **capabilities: object) -> str:
        """A session that is initialized; its id."""
        answer = await self.initialize(server, **capabilities)
        assert answer.status == 200, answer
        (id,) = answer.headers["Mcp-Session-Id"]
        told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await self.post(server, told, id)).status == 202
        return id

    async def ask(self, server: str, session: str, method: str, id: object) -> Answer:
        """A request without params."""
        message = {"jsonrpc": "2.0", "id": id, "method": method, "params": {}}
        return await self.post(server, message, session)

    async def call(self, server: str, session: str, verb: str, **arguments: object) -> Answer:
        self._ids += 1
        params = {"name": verb, "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": self._ids, "method": "tools/call", "params": params}
        return await self.post(server, message, session)

    async def stop(self) -> None:
        await self.service.stopService()


async def startLive(
    *servers: ServerSettings, authenticator: IAuthenticator | None = None, **limits: Any
) -> Live:
    """Start a gateway in front of these servers."""
    quick = {"eof_wait": 0.5, "term_wait": 0.5, "drain_grace": 0.5, **limits}
    settings = GatewaySettings(listen=("tcp:0:interface=127.0.0.1",), limits=Limits(**quick))
    configuration = Configuration(servers=servers, gateway=settings, source="test")
    recorder = Recorder()
    service = GatewayService(configuration, reactor, observer=recorder, authenticator=authenticator)
    service.startService()
    port = service.ports[0].getHost().port
    return Live(service, recorder, f"http://127.0.0.1:{port}")


Start = Callable[..., Awaitable[Live]]


@pytest_twisted.async_yield_fixture
async def live() -> AsyncIterator[Start]:
    """Starts gateways, and stops them after the test."""
    running: list[Live] = []

    async def start(*servers: Any, **limits: Any) -> Live:
        running.append(await startLive(*servers, **limits))
        return running[-1]

    yield start
    for gateway in running:
        await gateway.stop()


@pytest_twisted.async_yield_fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    server = FaultyUpstream()
    server.start(reactor)
    yield server
    await server.close()
