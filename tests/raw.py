"""
A gateway's front on a loopback port, and a client that sends exact bytes to it.

What is behind are servers a test brings; time is a Clock, so a test says how it passes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest_twisted
from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.web.server import Site
from zope.interface import implementer

from gateway.app import GatewayApp, Mount
from gateway.doors.listener import Listener
from gateway.doors.resource import Door
from gateway.doors.site import GatewaySite
from gateway.guard.authentication import AnonymousAuthenticator, IAuthenticator, NotAuthenticated
from gateway.guard.hosts import HostGuard
from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, IPolicy
from gateway.links.interfaces import Hello, IServer
from gateway.observe.observer import BoundReached, Event, IObserver
from gateway.proxies.ladder import Ladder
from gateway.proxies.shared import Shared
from gateway.proxies.sse import SSEProxy
from gateway.proxies.streamable import StreamableProxy
from gateway.proxies.transparent import TransparentProxy
from gateway.sessions.registry import SessionRegistry
from gateway.sessions.store import MemoryStore
from gateway.settings import HTTPSettings
from gateway.testing.scripted import ScriptedHTTPLink, ScriptedLink, ScriptedServer, Sent
from gateway.wire.context import CallContext, Principal
from gateway.wire.envelope import Kind, Message
from gateway.wire.exchange import RequestHead
from gateway.wire.sse import ServerSentEvent, SSEParser

PATIENCE = 10.0
"""Seconds of real time after which a test that waits for bytes gives up."""

Headers = Sequence[tuple[bytes, bytes]]


@define
class Response:
    """An answer, or its head alone."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: bytes) -> bytes | None:
        values = self.values(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None

    @property
    def fixed(self) -> list[tuple[bytes, bytes]]:
        """The fields that are the same at any time and for any length of body."""
        changing = (b"date", b"content-length")
        return [(key, value) for key, value in self.headers if key.lower() not in changing]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient(Protocol):
    """One connection: exact bytes out, answers and events in."""

    def __init__(self) -> None:
        self.received = b""
        self.ended: Deferred[None] = Deferred()
        self._buffer = bytearray()
        self._lost = False
        self._waiting: Deferred[None] | None = None
        self._events: list[ServerSentEvent] = []
        self._parser = SSEParser(64 * 1024 * 1024)

    # Protocol

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._wake()
        self.ended.callback(None)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    # Sending.

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def pause(self) -> None:
        """Read no more."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        self.transport.resumeProducing()

    def close(self) -> None:
        self.transport.loseConnection()

    def reset(self) -> None:
        """Drop the connection with whatever is on it."""
        self.transport.abortConnection()

    # Receiving.

    async def _more(self) -> None:
        if self._lost:
            raise ConnectionClosed(f"with {bytes(self._buffer[:200])!r} unread")
        self._waiting = Deferred()
        await self._waiting.addTimeout(PATIENCE, reactor)

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def head(self) -> Response:
        """The next answer's head."""
        status = int((await self._line()).split(b" ", 2)[1])
        headers: list[tuple[bytes, bytes]] = []
        while line := await self._line():
            name, _, value = line.partition(b":")
            headers.append((name, value.strip()))
        return Response(status, headers)

    async def response(self, bodiless: bool = False) -> Response:
        """The next answer, whole; bodiless: it answers HEAD."""
        answer = await self.head()
        if bodiless or answer.status in (204, 304):
            return answer
        return await self.body(answer)

    async def body(self, answer: Response) -> Response:
        """The rest of an answer that has a body and of which only the head was read."""
        length = answer.header(b"content-length")
        if length is not None:
            answer.body = await self._exactly(int(length))
        elif answer.header(b"transfer-encoding") == b"chunked":
            while (data := await self.chunk()) is not None:
                answer.body += data
        else:
            answer.body = await self.rest()
        return answer

    async def chunk(self) -> bytes | None:
        """The next chunk of a chunked body; None at its end."""
        size = int(await self._line(), 16)
        data = await self._exactly(size)
        assert await self._line() == b""
        return data if size else None

    async def event(self) -> ServerSentEvent | None:
        """The next event of an event stream; None at its end."""
        while not self._events:
            data = await self.chunk()
            if data is None:
                return None
            self._events += self._parser.feed(data)
        return self._events.pop(0)

    async def message(self) -> Any:
        """The next event's message, decoded."""
        event = await self.event()
        assert event is not None, "the stream ended"
        assert event.event == b"message", event
        assert event.data is not None, event
        return json.loads(event.data)

    async def rest(self) -> bytes:
        """Everything up to the connection's end."""
        while not self._lost:
            await self._more()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    @property
    def unread(self) -> bytes:
        return bytes(self._buffer)


@implementer(IObserver)
@define(eq=False)
class Recorder:
    """Every event."""

    events: list[Event] = field(factory=list)

    def observed(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def bounds(self) -> list[str]:
        """The names of the bounds that were reached."""
        return [event.limit for event in self.of(BoundReached)]


@implementer(IAuthenticator)
class NamedInHeader:
    """Believes a header: `X-Who: mallory` is mallory; without it nobody comes in."""

    def authenticate(self, head: RequestHead) -> Principal:
        who = head.header(b"x-who")
        if who is None:
            raise NotAuthenticated(b'Bearer realm="test"')
        return Principal("test", who.decode(), "gateway")


def rpc(method: str, id: object = None, **params: object) -> bytes:
    """A request, or without id a notification, as compact JSON."""
    fields: dict[str, object] = {"jsonrpc": "2.0"}
    if id is not None:
        fields["id"] = id
    fields["method"] = method
    if params:
        fields["params"] = params
    return json.dumps(fields, separators=(",", ":")).encode()


def hello(revision: str = "2025-06-18", id: object = 1, **capabilities: object) -> bytes:
    """An `initialize`."""
    return rpc(
        "initialize",
        id,
        protocolVersion=revision,
        capabilities=capabilities,
        clientInfo={"name": "t", "version": "1"},
    )


class AnsweringLink(ScriptedLink):
    """Answers each request with its params, a moment later."""

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        taken = super().send(message, call, context)
        server = self.server
        if taken and isinstance(server, AnsweringServer) and server.answers:
            reactor.callFromThread(self._answered, self.sent[-1])  # type: ignore[attr-defined]
        return taken

    def _answered(self, sent: Sent) -> None:
        if not self.alive:
            return
        if sent.message.kind is Kind.REQUEST:
            self.reply(sent, bytes(sent.message.fields.get("params", b"{}")))
        elif sent.call is not None:
            self.accept(sent)


class AnsweringHTTPLink(AnsweringLink, ScriptedHTTPLink):
    """The same over HTTP."""


class AnsweringServer(ScriptedServer):
    """
    A ScriptedServer that answers by itself.

    revision: what it negotiates; the client's own without. answers: whether it does; if not, the
    test says what it does.
    """

    kinds = (AnsweringLink, AnsweringHTTPLink)
    revision: str | None = None
    answers = True

    @property
    def heard(self) -> int:
        """How many handshakes and messages reached it."""
        return self.handshakes + sum(len(link.sent) for link in self.links)

    def resultFor(self, hello: Hello) -> bytes:
        asked = json.loads(hello.params).get("protocolVersion")
        result = json.loads(self.result)
        result["protocolVersion"] = self.revision or asked
        return json.dumps(result).encode()


@define(eq=False)
class Stack:
    """
    Door, ladder and proxies in front of servers of a test, on a loopback port.

    clock: the gateway's; `pass_` lets its time pass.
    """

    clock: Clock
    observer: Recorder
    shared: Shared
    port: int
    mounts: dict[str, Mount]
    ladder: Ladder
    door: str
    listener: Listener | WrappingFactory
    _app: GatewayApp
    _listening: IListeningPort
    _clients: list[RawClient] = field(factory=list)

    def mount(self, name: str, server: IServer) -> None:
        """
        Put a server behind the stack: one over HTTP gets the transparent proxy unless it is
        configured otherwise, any other the streamable one, each the SSE proxy beside it.
        """
        settings = server.settings
        transparent = isinstance(settings, HTTPSettings) and settings.proxy == "transparent"
        proxy = TransparentProxy if transparent else StreamableProxy
        self.mounts[name] = Mount(
            proxy(server, self.shared, self.ladder), SSEProxy(server, self.shared, self.ladder)
        )
        if isinstance(self.listener, Listener):
            self.listener.routes = self._app.routes()

    @property
    def connections(self) -> int:
        """How many are open at the gateway's side."""
        listener = self.listener
        return len(listener) if isinstance(listener, Listener) else len(listener.protocols)

    # The client's side.

    async def connect(self) -> RawClient:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        client: RawClient = await connectProtocol(endpoint, RawClient())
        self._clients.append(client)
        return client

    def request(
        self,
        method: bytes,
        target: bytes,
        body: bytes | None = None,
        headers: Headers = (),
        host: bytes | None = None,
    ) -> bytes:
        """The bytes of a request."""
        fields = [(b"Host", host or b"127.0.0.1:%d" % self.port), *headers]
        if body is not None:
            names = {name.lower() for name, _ in fields}
            if b"content-type" not in names:
                fields.append((b"Content-Type", b"application/json"))
            if b"content-length" not in names and b"transfer-encoding" not in names:
                fields.append((b"Content-Length", b"%d" % len(body)))
        head = b"".join(b"%b: %b\r\n" % pair for pair in fields)
        return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, head, body or b"")

    async def ask(
        self,
        method: bytes,
        target: bytes,
        body: bytes | None = None,
        headers: Headers = (),
        host: bytes | None = None,
    ) -> Response:
        """One request on a connection of its own, and its whole answer."""
        client = await self.connect()
        client.send(self.request(method, target, body, headers, host))
        answer = await client.response(bodiless=method == b"HEAD")
        client.close()
        await client.ended
        self._clients.remove(client)
        return answer

    async def send(
        self,
        method: bytes,
        target: bytes,
        body: bytes | None = None,
        headers: Headers = (),
    ) -> RawClient:
        """One request on a connection of its own, left open."""
        client = await self.connect()
        client.send(self.request(method, target, body, headers))
        return client

    async def exact(self, data: bytes) -> Response:
        """Exact bytes on a connection of their own, and the first answer."""
        client = await self.connect()
        client.send(data)
        answer = await client.response()
        client.close()
        await client.ended
        self._clients.remove(client)
        return answer

    async def open(
        self,
        target: bytes = b"/mcp",
        revision: str = "2025-06-18",
        headers: Headers = (),
        **capabilities: object,
    ) -> bytes:
        """A session over Streamable HTTP; returns its id."""
        answer = await self.ask(b"POST", target, hello(revision, **capabilities), headers)
        assert answer.status == 200, answer
        id = answer.header(b"mcp-session-id")
        assert id is not None, answer
        said = rpc("notifications/initialized")
        told = await self.ask(b"POST", target, said, [(b"Mcp-Session-Id", id), *headers])
        assert told.status == 202, told
        return id

    async def openSSE(
        self, target: bytes = b"/sse", headers: Headers = ()
    ) -> tuple[RawClient, bytes]:
        """An HTTP+SSE stream; returns it and the endpoint it named."""
        client = await self.send(b"GET", target, None, headers)
        head = await client.head()
        assert head.status == 200, head
        event = await client.event()
        assert event is not None and event.event == b"endpoint", event
        assert event.data is not None
        return client, event.data

    # Time and turns.

    def pass_(self, seconds: float) -> None:
        """Let the gateway's time pass, as smoothly as its pulse beats."""
        while seconds > 0:
            step = min(0.5, seconds)
            self.clock.advance(step)
            seconds -= step

    async def until(self, true: Callable[[], object]) -> None:
        """Let the reactor turn until something is so."""
        give_up = reactor.seconds() + PATIENCE  # type: ignore[attr-defined]
        while not true():
            assert reactor.seconds() < give_up, "it never came about"  # type: ignore[attr-defined]
            await deferLater(reactor, 0)  # type: ignore[arg-type]

    async def turns(self, count: int = 5) -> None:
        """Let the reactor turn a few times."""
        for _ in range(count):
            await deferLater(reactor, 0)  # type: ignore[arg-type]

    # The end.

    async def stop(self) -> None:
        """End everything, as a gateway that stops."""
        await self._listening.stopListening()
        for session in self.shared.registry:
            await self.shared.registry.end(session, "shutdown")
        for client in self._clients:
            if not client.ended.called:
                client.reset()
                await client.ended
        if isinstance(self.listener, Listener):
            await self.listener.hangUp(5.0)
        else:
            for connection in list(self.listener.protocols):
                connection.loseConnection()
            await self.until(lambda: not self.connections)
        self.shared.pulse.stop()


async def startStack(
    servers: dict[str, IServer],
    *,
    default: str | None = None,
    limits: Limits | None = None,
    authenticator: IAuthenticator | None = None,
    policy: IPolicy | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    ready: Callable[[], bool] = lambda: True,
    door: str = "llhttp",
) -> Stack:
    """
    Start a stack; whoever started it stops it.

    servers: by name. default: the server of the short paths; the first without. door: our own
    listener's, or the resource's under a "site" as hosts have it.
    """
    limits = limits or Limits()
    clock, observer = Clock(), Recorder()
    shared = Shared(
        registry=SessionRegistry(clock, limits, MemoryStore(), observer),
        guard=HostGuard(hosts, origins),
        authenticator=authenticator or AnonymousAuthenticator(),
        policy=policy or AllowAll(),
        limits=limits,
        clock=clock,
        observer=observer,
    )
    ladder = Ladder(shared)
    mounts: dict[str, Mount] = {}
    app = GatewayApp(ladder, mounts, default or next(iter(servers)), ready)
    root = Door(ladder, app.app.resource(), mounted=False)
    listener: Listener | WrappingFactory
    if door == "llhttp":
        listener = Listener(GatewaySite(root, reactor), limits, clock, observer)
    else:
        listener = WrappingFactory(Site(root, parsePOSTFormSubmission=False))
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    listening = await (
        listener.listen(endpoint) if isinstance(listener, Listener) else endpoint.listen(listener)
    )
    port = listening.getHost().port
    stack = Stack(clock, observer, shared, port, mounts, ladder, door, listener, app, listening)
    for name, server in servers.items():
        stack.mount(name, server)
    return stack


Start = Callable[..., Awaitable[Stack]]


@pytest_twisted.async_yield_fixture(params=["llhttp", "site"])
async def start(request):  # type: ignore[no-untyped-def]
    """`startStack` at each door, whose stacks are stopped after the test."""
    stacks: list[Stack] = []

    async def started(*arguments: Any, **options: Any) -> Stack:
        stack = await startStack(*arguments, door=request.param, **options)
        stacks.append(stack)
        return stack

    yield started
    for stack in stacks:
        await stack.stop()
