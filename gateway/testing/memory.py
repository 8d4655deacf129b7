"""
A gateway in memory, driven by a Clock, and a client that talks to it in real HTTP.

The gateway is the whole service, mounted under a Site as a host would; the client's bytes go
through the Site's own HTTP parser, over a transport that is a buffer.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site

from gateway.config import Configuration, GatewaySettings
from gateway.guard.limits import Limits
from gateway.links.interfaces import IServer
from gateway.service import GatewayService
from gateway.settings import ServerSettings

__all__ = ["Exchanged", "MemoryClient", "MemoryGateway"]

HOST = "gateway.test"


@define(eq=False)
class Exchanged:
    """
    One request's answer, as far as it has come.

    Each request has a connection of its own; `leave` is the client going away.
    """

    _transport: StringTransport
    _channel: Any

    @property
    def started(self) -> bool:
        """Whether the head has come."""
        return b"\r\n\r\n" in self._transport.value()

    @property
    def status(self) -> int:
        """The HTTP status. ValueError before the head has come."""
        if not self.started:
            raise ValueError("nothing was answered yet")
        return int(self._transport.value().split(b" ", 2)[1])

    def header(self, name: str) -> str | None:
        """A field of the head, None where it is missing."""
        head = self._transport.value().partition(b"\r\n\r\n")[0].decode("latin-1")
        for line in head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return str(value.strip())
        return None

    @property
    def body(self) -> bytes:
        """What has come of the body."""
        rest = self._transport.value().partition(b"\r\n\r\n")[2]
        if (self.header("transfer-encoding") or "").lower() != "chunked":
            return bytes(rest)
        body = b""
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    @property
    def ended(self) -> bool:
        """Whether the body is complete, or the connection closed."""
        if self._transport.disconnecting or self._transport.disconnected:
            return True
        if not self.started:
            return False
        length = self.header("content-length")
        if length is not None:
            return len(self.body) >= int(length)
        return self.status == 204 or self._transport.value().endswith(b"0\r\n\r\n")

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The messages of the events that have come; events without data are left out."""
        data = [
            line[len("data:") :].strip()
            for line in self.body.decode().splitlines()
            if line.startswith("data:")
        ]
        return [json.loads(text) for text in data if text]

    def leave(self) -> None:
        """The client's connection is lost."""
        if not self._transport.disconnected:
            self._transport.disconnected = True
            self._channel.connectionLost(Failure(ConnectionDone()))


@define(eq=False)
class MemoryClient:
    """
    An MCP client of one server, over Streamable HTTP.

    path: the server's endpoint. headers: sent with every request, by name.
    session: its session id, once `initialize` was answered.
    """

    gateway: MemoryGateway
    path: str
    headers: dict[str, str] = field(factory=dict)
    session: str | None = None

    def send(self, method: str, body: bytes = b"", **headers: str) -> Exchanged:
        """Send an HTTP request; underscores in the names of headers are dashes."""
        fields = {"Host": HOST, "Accept": "application/json, text/event-stream", **self.headers}
        if self.session is not None:
            fields["Mcp-Session-Id"] = self.session
        if body:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = [f"{method} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        return self.gateway.exchange("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def post(self, message: object) -> Exchanged:
        """POST a message, or a batch; `events` and `json` of the result tell the answer."""
        return self.send("POST", json.dumps(message).encode())

    def get(self, lastEventID: str | None = None) -> Exchanged:
        """Open the stream for what belongs to no request, or resume one."""
        if lastEventID is None:
            return self.send("GET")
        return self.send("GET", Last_Event_ID=lastEventID)

    def delete(self) -> Exchanged:
        """End the session."""
        return self.send("DELETE")

    def initialize(
        self, revision: str = "2025-06-18", capabilities: dict[str, object] | None = None
    ) -> Exchanged:
        """Open a session, and send `notifications/initialized` if the server answered at once."""
        self.session = None
        params = {
            "protocolVersion": revision,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "memory", "version": "1"},
        }
        answer = self.post(self.request(1, "initialize", params))
        if answer.started:
            self.session = answer.header("mcp-session-id")
        if self.session is not None:
            self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    @staticmethod
    def request(id: int | str, method: str, params: object = None) -> dict[str, object]:
        """A request."""
        message: dict[str, object] = {"jsonrpc": "2.0", "id": id, "method": method}
        return message if params is None else {**message, "params": params}


@define(eq=False)
class MemoryGateway:
    """
    A started gateway whose servers are given, without sockets and processes.

    servers: what is behind it, such as ScriptedServers. limits: its bounds. options: further
    arguments of GatewayService: authenticator, policy, observer, store.
    clock: its time; `advance` lets it pass.
    """

    servers: Sequence[IServer]
    limits: Limits = field(factory=Limits)
    options: dict[str, Any] = field(factory=dict)
    clock: MemoryReactorClock = field(factory=MemoryReactorClock, init=False)
    service: GatewayService = field(init=False)
    _site: Site = field(init=False)
    _port: int = field(default=0, init=False)
    _exchanges: list[Exchanged] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.service = GatewayService(
            self._configuration(),
            self.clock,
            listen=False,
            clock=self.clock,
            servers=self._server,
            **self.options,
        )
        root = Resource()
        root.putChild(b"mcp", self.service.resource())
        self._site = Site(root, reactor=self.clock)
        self.service.startService()

    def _configuration(self) -> Configuration:
        settings = [server.settings for server in self.servers]
        if len(settings) == 1:
            settings = [attrs.evolve(settings[0], default=True)]
        gateway = GatewaySettings(allowed_hosts=(HOST,), limits=self.limits)
        return Configuration(servers=tuple(settings), gateway=gateway, source="memory")

    def _server(self, settings: ServerSettings) -> IServer:
        (server,) = (one for one in self.servers if one.name == settings.name)
        return server

    def reload(self, servers: Sequence[IServer], limits: Limits | None = None) -> Deferred[None]:
        """
        Reload it with these servers behind it. One that was there before goes on if its settings
        are what they were; in place of a changed one, give another.
        """
        self.servers = servers
        self.limits = limits or self.limits
        return self.service.reload(self._configuration())

    def client(self, server: str, **headers: str) -> MemoryClient:
        """A client of one server; underscores in the names of headers are dashes."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return MemoryClient(self, f"/mcp/servers/{server}/mcp", fields)

    def exchange(self, request: bytes) -> Exchanged:
        """Send the bytes of a request on a connection of its own."""
        self._port += 1
        peer = IPv4Address("TCP", "127.0.0.1", self._port)
        transport = StringTransport(peerAddress=peer)
        channel = self._site.buildProtocol(peer)
        channel.makeConnection(transport)
        channel.dataReceived(request)
        exchanged = Exchanged(transport, channel)
        self._exchanges.append(exchanged)
        return exchanged

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def stop(self) -> Deferred[None]:
        """
        Stop it; a gateway with running calls waits for them, on its clock. Every connection of
        its clients is closed when it has stopped.
        """
        return self.service.stopService().addCallback(self._stopped)

    def _stopped(self, _: None) -> None:
        for exchanged in self._exchanges:
            exchanged.leave()
