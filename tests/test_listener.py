"""Our listener on real sockets: plain and over TLS, its own or in front of a host's Site."""

from __future__ import annotations

import os
import resource
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from certificate import selfSigned
from processes import Gateway, startGateway
from raw import RawClient, Recorder, Response, hello, rpc
from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorTime,
)
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

import gateway
from gateway.config import Configuration, GatewaySettings
from gateway.doors.listener import RESERVED_FILES, Listener
from gateway.guard.limits import Limits
from gateway.observe.observer import NullObserver, RequestRefused
from gateway.service import GatewayService
from gateway.testing import ScriptedServer

with warnings.catch_warnings():
    # It makes a resource that Twisted itself deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from twisted.web.static import File

MIB = 1024 * 1024

# Twisted hands certificates to pyOpenSSL in a form that is going out of use.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


async def connect(port: int, tls: bool = False, alpn: tuple[bytes, ...] = ()) -> RawClient:
    endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    if tls:
        options = CertificateOptions(verify=False, acceptableProtocols=list(alpn) or None)
        # Whose the certificate is nobody asks: what is tested is what runs inside.
        endpoint = wrapClientTLS(options, HostnameEndpoint(reactor, "127.0.0.1", port))
    client: RawClient = await connectProtocol(endpoint, RawClient())
    return client


def request(method: bytes, target: bytes, port: int, body: bytes = b"", *lines: bytes) -> bytes:
    head = [b"%b %b HTTP/1.1" % (method, target), b"Host: 127.0.0.1:%d" % port, *lines]
    if method == b"POST":
        head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"", b""]) + body


@define(eq=False)
class Own:
    """A gateway of its own, with a server the test plays."""

    service: GatewayService
    server: ScriptedServer
    observer: Recorder
    tls: bool
    port: int = 0
    clients: list[RawClient] = field(factory=list)

    async def connect(self, alpn: tuple[bytes, ...] = ()) -> RawClient:
        client = await connect(self.port, self.tls, alpn)
        self.clients.append(client)
        return client

    def request(self, method: bytes, target: bytes, body: bytes = b"", *lines: bytes) -> bytes:
        return request(method, target, self.port, body, *lines)

    async def ask(self, *arguments: bytes) -> Response:
        client = await self.connect()
        client.send(self.request(*arguments))
        return await client.response()

    async def session(self) -> bytes:
        opened = await self.ask(b"POST", b"/mcp", hello())
        return b"Mcp-Session-Id: " + (opened.header(b"mcp-session-id") or b"")

    async def stop(self) -> None:
        for client in self.clients:
            if not client.ended.called:
                client.reset()
                await client.ended
        await self.service.stopService()


Start = Callable[..., Awaitable[Own]]


@pytest_twisted.async_yield_fixture
async def own(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts gateways that listen, over TLS or not, and stops them after the test."""
    running: list[Own] = []

    async def start(tls: bool = False, clock: IReactorTime | None = None, **limits: Any) -> Own:
        where = "tcp:0:interface=127.0.0.1"
        if tls:
            pem = selfSigned(tmp_path)
            where = f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
        server, observer = ScriptedServer("one"), Recorder()
        service = GatewayService(
            Configuration(
                servers=(server.settings,),
                gateway=GatewaySettings(listen=(where,), limits=Limits(**limits)),
                source="test",
            ),
            reactor,
            observer=observer,
            clock=clock,
            servers=lambda _: server,
        )
        service.startService()
        port = service.ports[0].getHost().port
        running.append(Own(service, server, observer, tls, port))
        return running[-1]

    yield start
    for one in running:
        await one.stop()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await deferLater(reactor, 0)  # type: ignore[arg-type]


# Over TLS.


@pytest_twisted.ensureDeferred
async def test_over_tls_http_1_1_is_negotiated_and_spoken(own: Start) -> None:
    gateway_ = await own(tls=True)
    client = await gateway_.connect(alpn=(b"h2", b"http/1.1"))
    client.send(gateway_.request(b"POST", b"/mcp", hello()) + gateway_.request(b"GET", b"/healthz"))
    opened, health = await client.response(), await client.response()
    assert (opened.status, health.status) == (200, 200)
    assert client.transport.negotiatedProtocol == b"http/1.1"
    # Who offers nothing of the kind is served, too; who offers only what we lack is not.
    client = await gateway_.connect()
    client.send(gateway_.request(b"GET", b"/healthz"))
    assert (await client.response()).status == 200
    client = await gateway_.connect(alpn=(b"h2",))
    client.send(gateway_.request(b"GET", b"/healthz"))
    assert await client.rest() == b""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest_twisted.ensureDeferred
async def test_large_answers_arrive_whole(own: Start, tls: bool) -> None:
    gateway_ = await own(tls=tls)
    id = await gateway_.session()
    link = gateway_.server.newest
    for closing in (b"X: y", b"Connection: close"):
        client = await gateway_.connect()
        client.send(gateway_.request(b"POST", b"/mcp", rpc("tools/call", 1), id, closing))
        while len(link.requests) < 1 + (closing != b"X: y"):
            await turns(1)
        text = os.urandom(4 * MIB).hex().encode()
        # The reader stops now and then.
        client.pause()
        link.reply(link.last("tools/call"), b'"%b"' % text)
        await turns()
        client.resume()
        answer = await client.response()
        assert answer.json["result"] == text.decode()
        if closing != b"X: y":
            await client.ended


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_refusal_reaches_a_client_that_still_sends(own: Start, tls: bool) -> None:
    """A reset for what was not read would take it away."""
    gateway_ = await own(tls=tls)
    for data, status in (
        (b"GET  /mcp HTTP/1.1\r\n\r\n", 400),
        (gateway_.request(b"POST", b"/mcp", b"", b"Content-Length: 5"), 400),
        (
            gateway_.request(b"PUT", b"/mcp", b"", b"Content-Length: 800000"),
            405,
        ),
    ):
        client = await gateway_.connect()
        client.send(data + b"x" * 800_000)
        answer = await client.response()
        assert answer.status == status
        assert answer.header(b"connection") == b"close"
        await client.ended
        assert client.unread == b""
    assert gateway_.server.handshakes == 0


@pytest_twisted.ensureDeferred
async def test_what_is_no_tls_is_dropped_without_a_word(own: Start) -> None:
    gateway_ = await own(tls=True)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x00" * 100):
        client = await connect(gateway_.port)
        client.send(data)
        await client.ended
        assert b"HTTP" not in client.unread
    assert (await gateway_.ask(b"GET", b"/healthz")).status == 200


@pytest_twisted.ensureDeferred
async def test_a_handshake_has_the_time_of_a_head(own: Start) -> None:
    clock = Clock()
    gateway_ = await own(tls=True, clock=clock, head_timeout=10)
    client = await connect(gateway_.port)
    client.send(b"\x16\x03\x01")
    await turns()
    clock.pump([1.0] * 9)
    await turns()
    assert not client.ended.called
    clock.pump([1.0] * 3)
    await client.ended
    assert gateway_.observer.bounds == ["head_timeout"]
    await stopAt(clock, gateway_)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_say_goodbye_is_cut(own: Start, tls: bool) -> None:
    """After a refusal it is waited for, but not for ever."""
    clock = Clock()
    gateway_ = await own(tls=tls, clock=clock, reader_blocked=20)
    client = await gateway_.connect()
    client.send(b"GET  / HTTP/1.1\r\n\r\n")
    assert (await client.response()).status == 400
    await client.ended
    clock.pump([1.0] * 4)
    await turns()
    assert not gateway_.service._run.endpoints.listeners[0]._connections  # type: ignore[union-attr]
    await stopAt(clock, gateway_)


async def stopAt(clock: Clock, gateway_: Own) -> None:
    """Stop a gateway whose clock does not go by itself."""
    stopped = gateway_.service.stopService()
    while not stopped.called:
        clock.advance(0.5)
        await turns(1)


@pytest_twisted.ensureDeferred
async def test_a_slow_reader_is_seen_to_read_behind_what_the_kernel_keeps(own: Start) -> None:
    """Its megabytes of buffer would hide it for longer than a reader that blocks is waited for."""
    clock = Clock()
    gateway_ = await own(clock=clock, reader_blocked=30)
    id = await gateway_.session()
    with socket.create_connection(("127.0.0.1", gateway_.port)) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        reader.setblocking(False)
        reader.sendall(gateway_.request(b"POST", b"/mcp", rpc("tools/call", 1), id))
        link = gateway_.server.newest
        while not link.requests:
            await turns(1)
        link.reply(link.requests[0], b'"%b"' % (b"x" * 8 * MIB))
        for _ in range(12):
            got = 0
            while got < 300_000:
                await turns(1)
                with suppress(BlockingIOError):
                    got += len(reader.recv(300_000 - got))
            clock.pump([1.0] * 25)
        assert "reader_blocked" not in gateway_.observer.bounds
        # It stops.
        clock.pump([1.0] * 62)
        assert gateway_.observer.bounds[-1] == "reader_blocked"
        await turns()
    await stopAt(clock, gateway_)


# In front of a host's Site.


@define(eq=False)
class Hosted:
    port: IListeningPort
    clients: list[RawClient] = field(factory=list)

    @property
    def number(self) -> int:
        number: int = self.port.getHost().port
        return number

    async def connect(self) -> RawClient:
        self.clients.append(await connect(self.number))
        return self.clients[-1]

    async def ask(self, method: bytes, target: bytes, body: bytes = b"", *lines: bytes) -> Response:
        client = await self.connect()
        client.send(request(method, target, self.number, body, *lines))
        return await client.response(bodiless=method == b"HEAD")


Host = Callable[..., Awaitable[Hosted]]


@pytest_twisted.async_yield_fixture
async def hosted() -> AsyncIterator[Host]:
    """Puts Sites behind `gateway.listen`, and ends them after the test."""
    running: list[Hosted] = []

    async def host(root: Resource, **options: Any) -> Hosted:
        site = Site(root)
        site.noisy = False  # type: ignore[misc]
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        running.append(Hosted(await gateway.listen(endpoint, site, **options)))
        return running[-1]

    yield host
    for one in running:
        await one.port.stopListening()
        for client in one.clients:
            if not client.ended.called:
                client.reset()
                await client.ended
        listener = one.port.factory  # type: ignore[attr-defined]
        while listener._connections:
            await turns(1)


@pytest_twisted.ensureDeferred
async def test_host_files_are_served_whole_in_ranges_and_slowly(
    hosted: Host, tmp_path: Path
) -> None:
    data = os.urandom(5 * MIB)
    (tmp_path / "file").write_bytes(data)
    host = await hosted(File(str(tmp_path)))
    assert (await host.ask(b"GET", b"/file")).body == data
    part = await host.ask(b"GET", b"/file", b"", b"Range: bytes=1000-2000999")
    assert (part.status, part.body) == (206, data[1000:2_001_000])
    parts = await host.ask(b"GET", b"/file", b"", b"Range: bytes=0-9,-10")
    assert parts.status == 206
    assert data[:10] in parts.body and data[-10:] in parts.body
    head = await host.ask(b"HEAD", b"/file")
    assert (head.header(b"content-length"), head.body) == (b"%d" % len(data), b"")
    assert (await host.ask(b"GET", b"/other")).status == 404
    # Pipelined, by a reader that stops in between.
    client = await host.connect()
    client.send(request(b"GET", b"/file", host.number) * 3)
    for _ in range(3):
        client.pause()
        await turns()
        client.resume()
        assert (await client.response()).body == data


@pytest_twisted.ensureDeferred
async def test_host_a_client_that_vanishes_ends_the_producer(hosted: Host, tmp_path: Path) -> None:
    ended: list[object] = []

    class Watched(File):
        def render_GET(self, one: Request) -> Any:
            one.notifyFinish().addErrback(ended.append)
            return super().render_GET(one)

    file = tmp_path / "file"
    file.write_bytes(b"x" * 30 * MIB)
    host = await hosted(Watched(str(tmp_path)))
    client = await host.connect()
    client.send(request(b"GET", b"/file", host.number))
    await client.head()
    client.pause()
    await turns()
    client.reset()
    while not ended:
        await turns(1)


@pytest_twisted.ensureDeferred
async def test_host_limits_and_observer_are_the_hosts(hosted: Host) -> None:
    observer = Recorder()
    heard: list[bytes] = []

    class Root(Resource):
        isLeaf = True

        def render(self, one: Request) -> Any:
            heard.append(one.content.read())
            if one.method == b"GET":
                return NOT_DONE_YET
            return b"ok"

    host = await hosted(Root(), limits=Limits(max_body=10, max_head=400), observer=observer)
    assert (await host.ask(b"POST", b"/", b"x" * 10)).body == b"ok"
    assert (await host.ask(b"POST", b"/", b"x" * 11)).status == 413
    assert (await host.ask(b"POST", b"/", b"", b"X: " + b"x" * 400)).status == 431
    assert heard == [b"x" * 10]
    assert observer.bounds == ["max_body", "max_head"]
    assert [event.status for event in observer.of(RequestRefused)] == [413, 431]


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_as_good(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    root = Resource()
    root.putChild(b"a", File(__file__))
    site = Site(root)
    port = await gateway.listen(serverFromString(reactor, f"unix:{path}"), site)
    client: RawClient = await connectProtocol(UNIXClientEndpoint(reactor, str(path)), RawClient())
    client.send(request(b"GET", b"/a", 1) + b"GET  / HTTP/1.1\r\n\r\n")
    assert (await client.response()).body.startswith(b'"""Our listener')
    assert (await client.response()).status == 400
    client.reset()
    await client.ended
    await port.stopListening()
    while port.factory._connections:
        await turns(1)


# How many there may be.


@pytest_twisted.ensureDeferred
async def test_aClientThatIsGoneIsNoticedByTheSystem() -> None:
    listening = await gateway.listen(
        TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), Site(Resource())
    )
    try:
        ours, tcp = listening.socket, socket.IPPROTO_TCP
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert ours.getsockopt(tcp, socket.TCP_KEEPIDLE) == 30
        assert ours.getsockopt(tcp, socket.TCP_KEEPINTVL) == 10
        assert ours.getsockopt(tcp, socket.TCP_KEEPCNT) == 3
        assert ours.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 60_000
        assert ours.getsockopt(tcp, socket.TCP_NODELAY) == 1
    finally:
        await listening.stopListening()


@pytest.mark.acceptance(94)
@pytest_twisted.ensureDeferred
async def test_acceptance_94_sixty_four_descriptors_are_kept_back() -> None:
    """Of 256: clients that take all they get leave enough for children, and for the time after."""
    running: Gateway = await startGateway()
    try:
        await _crowded(running, 256)
        assert await running.stop() == 0
    finally:
        await running.stop()
    assert "Traceback" not in running.process.err + running.process.out
    assert "accept" not in running.process.err.lower()


async def _crowded(running: Gateway, files: int) -> None:
    pid = running.process.transport.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, files))
    port = int(running.base.rpartition(":")[2])
    clients: list[RawClient] = []
    served, refused = [], 0
    for _ in range(files + 100):
        try:
            clients.append(await connect(port))
        except ConnectError:
            refused += 1
    for client in clients:
        client.send(request(b"GET", b"/healthz", port))
    for client in clients:
        try:
            answer = await client.response()
        except ConnectionClosed:
            refused += 1
        else:
            assert answer.status in (200, 503)
            refused += answer.status == 503
            if answer.status == 200:
                served.append(client)
    assert len(served) + refused == files + 100
    assert files - RESERVED_FILES - 50 <= len(served) <= files - RESERVED_FILES
    assert len(os.listdir(f"/proc/{pid}/fd")) <= files - RESERVED_FILES + 20
    # Meanwhile children are started for those who are connected.
    for client in served[:5]:
        client.send(request(b"POST", b"/mcp", port, hello()))
        assert (await client.response()).status == 200
    for client in clients:
        if not client.ended.called:
            client.reset()
            await client.ended
    # It recovers by itself.
    client = await connect(port)
    client.send(request(b"POST", b"/mcp", port, hello()))
    assert (await client.response()).status == 200
    client.reset()
    await client.ended


def test_a_listener_needs_no_socket_of_its_own() -> None:
    """What is handed out by an endpoint may be any port."""

    class Endpoint:
        def listen(self, factory: Any) -> Any:
            return succeed(object())

    site = Site(Resource())
    listener = Listener(site, Limits(), Clock(), NullObserver())
    ports: list[object] = []
    listener.listen(Endpoint()).addCallback(ports.append)  # type: ignore[arg-type]
    assert ports == [listener.port]
