"""
Our own listener in memory: a gateway or a host's Site behind it, and clients that send exact bytes.

Time is a Clock's; the transport is a buffer whose reader a test may stop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from attrs import define, field
from raw import Recorder, Response
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from gateway.config import Configuration, GatewaySettings
from gateway.doors.listener import Listener
from gateway.guard.limits import Limits
from gateway.service import GatewayService
from gateway.testing import ScriptedServer

PORT = 8080
HOST = b"127.0.0.1:%d" % PORT
MARK = 64 * 1024
"""Unsent bytes above which the transport asks its producer to pause, as Twisted's own does."""


class Wire(StringTransport):
    """
    The server's end of a connection.

    finished: whether it has ended its side. stuck: whether the client reads nothing.
    """

    def __init__(self, client: Caller, clock: MemoryReactorClock) -> None:
        ours, theirs = (IPv4Address("TCP", "127.0.0.1", port) for port in (PORT, 50_000))
        super().__init__(ours, theirs)
        self._client = client
        self._clock = clock
        self.finished = False
        self.stuck = False
        self.unsent = b""

    def write(self, data: bytes) -> None:
        assert not self.disconnecting and not self.finished, data
        if not self.stuck:
            super().write(data)
            return
        self.unsent += data
        if len(self.unsent) > MARK and self.producer is not None:
            self.producer.pauseProducing()

    def take(self) -> None:
        """The client reads what is there, and then nothing more."""
        unsent, self.unsent = self.unsent, b""
        super().write(unsent)
        if self.producer is not None:
            self.producer.resumeProducing()
        if self.disconnecting and not self.unsent:
            self._clock.callLater(0, self._client.leave)

    def loseWriteConnection(self) -> None:
        self.finished = True

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = self.finished = True
            # What was written goes out before.
            if not self.unsent:
                self._clock.callLater(0, self._client.leave)

    def abortConnection(self) -> None:
        if not self.disconnected:
            self.disconnecting = self.finished = self.disconnected = True
            self._clock.callLater(0, self._client.leave)


@define(eq=False)
class Caller:
    """
    A client's connection.

    protocol: the server's. wire: what it writes to.
    """

    clock: MemoryReactorClock
    protocol: Protocol = field(init=False)
    wire: Wire = field(init=False)
    gone: bool = False
    _read: int = 0

    def __attrs_post_init__(self) -> None:
        self.wire = Wire(self, self.clock)

    def send(self, data: bytes) -> None:
        """Send, as one read of the server; nothing after the server has closed."""
        if not self.gone and not self.wire.disconnecting:
            assert self.wire.producerState == "producing", "the server does not read"
            self.protocol.dataReceived(data)

    def drain(self) -> None:
        """Read all that is there, and what follows it."""
        while self.wire.unsent:
            self.wire.take()

    def leave(self) -> None:
        """The connection is over."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def closed(self) -> bool:
        """Whether the server has ended its side, or the whole connection."""
        return self.wire.finished or self.wire.disconnecting

    @property
    def received(self) -> bytes:
        """What came that no answer was made of yet."""
        return bytes(self.wire.value()[self._read :])

    def answers(self, *methods: bytes) -> list[Response]:
        """
        The answers that have come, each whole, with nothing behind them.

        methods: of the requests, in order; POST without.
        """
        answers = []
        for method in itertools.chain(methods, itertools.repeat(b"POST")):
            if not self.received:
                return answers
            answers.append(self.answer(method))
        raise AssertionError

    def answer(self, method: bytes = b"POST") -> Response:
        """The next answer, whole; one without a length takes all there is."""
        response, rest = parse(self.received, method)
        self._read = len(self.wire.value()) - len(rest)
        return response


def parse(data: bytes, method: bytes = b"POST") -> tuple[Response, bytes]:
    """An answer off the front of some bytes, and the rest."""
    head, end, rest = data.partition(b"\r\n\r\n")
    assert end, data
    line, *lines = head.split(b"\r\n")
    version, status, _ = line.split(b" ", 2)
    assert version == b"HTTP/1.1", line
    pairs = [one.partition(b": ") for one in lines]
    assert all(colon for _, colon, _ in pairs), head
    answer = Response(int(status), [(name, value) for name, _, value in pairs])
    length, coding = answer.header(b"content-length"), answer.header(b"transfer-encoding")
    assert length is None or coding is None, head
    if answer.status in (100, 204, 304) or method == b"HEAD":
        return answer, rest
    if coding is not None:
        while True:
            size, _, rest = rest.partition(b"\r\n")
            part, rest = rest[: int(size, 16)], rest[int(size, 16) :]
            assert rest[:2] == b"\r\n", rest
            answer.body, rest = answer.body + part, rest[2:]
            if not part:
                return answer, rest
    if length is None:
        answer.body = rest
        return answer, b""
    assert len(rest) >= int(length), data
    answer.body = rest[: int(length)]
    return answer, rest[int(length) :]


class Heard(Resource):
    """A host's resource: what reached it, and what it does then."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[bytes, bytes, bytes]] = []
        self.serve: Callable[[Request], bytes | int] = lambda request: b"heard"

    def render(self, request: Request) -> bytes | int:
        self.requests.append((request.method, request.uri, request.content.read()))
        request.content.seek(0)
        return self.serve(request)


@define(eq=False)
class Front:
    """
    A listener in memory. `stop` it.

    kind: "own", the gateway's own; "mounted", a host's Site with the gateway at /tools, behind our
    parser; "plain", such a Site with a resource that knows nothing of us.
    """

    kind: str = "own"
    limits: Limits = field(factory=Limits)
    one: ScriptedServer = field(factory=lambda: ScriptedServer("one", default=True))
    two: ScriptedServer = field(factory=lambda: ScriptedServer("two", http=True))
    clock: MemoryReactorClock = field(factory=MemoryReactorClock)
    observer: Recorder = field(factory=Recorder)
    service: GatewayService | None = None
    resource: Resource = field(factory=Heard)
    _callers: list[Caller] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        own = self.kind == "own"
        if self.kind != "plain":
            self.service = self._service(own)
            self.service.startService()
            if not own:
                self.resource = Resource()
                self.resource.putChild(b"tools", self.service.resource())
        if not own:
            site = Site(self.resource, reactor=self.clock)
            listener = Listener(
                site, self.limits, self.clock, self.observer, maxBody=self.limits.max_body
            )
            listener.noisy = site.noisy = False  # type: ignore[misc]
            endpoint = TCP4ServerEndpoint(self.clock, PORT, interface="127.0.0.1")
            listener.listen(endpoint)  # type: ignore[arg-type]

    def _service(self, own: bool) -> GatewayService:
        servers = {"one": self.one, "two": self.two}
        settings = GatewaySettings(
            listen=(f"tcp:{PORT}:interface=127.0.0.1",),
            limits=self.limits,
            allowed_hosts=() if own else ("127.0.0.1:*",),
        )
        return GatewayService(
            Configuration(
                servers=(self.one.settings, self.two.settings), gateway=settings, source="memory"
            ),
            self.clock,
            listen=own,
            clock=self.clock,
            observer=self.observer,
            servers=lambda settings: servers[settings.name],
        )

    @property
    def targets(self) -> Sequence[bytes]:
        """A path of each of the three proxies; of a plain Site, any."""
        if self.kind == "plain":
            return (b"/a/b",)
        prefix = b"/tools" if self.kind == "mounted" else b""
        paths = (b"one/mcp", b"one/messages?session_id=x", b"two/mcp")
        return tuple(b"%b/servers/%b" % (prefix, path) for path in paths)

    @property
    def heard(self) -> int:
        """How much has reached what is behind."""
        if isinstance(self.resource, Heard) and self.kind == "plain":
            return len(self.resource.requests)
        return sum(
            server.handshakes + sum(len(link.sent) for link in server.links)
            for server in (self.one, self.two)
        )

    def connect(self, stuck: bool = False) -> Caller:
        """A connection; stuck: of a client that reads nothing."""
        caller = Caller(self.clock)
        caller.wire.stuck = stuck
        factory = self.clock.tcpServers[-1][1]
        caller.protocol = factory.buildProtocol(caller.wire.getPeer())
        caller.protocol.makeConnection(caller.wire)
        self._callers.append(caller)
        return caller

    def ask(self, data: bytes) -> Caller:
        """A connection that sends this at once."""
        caller = self.connect()
        caller.send(data)
        return caller

    def pass_(self, seconds: float) -> None:
        """Let time pass, in steps of a quarter of a second."""
        self.clock.pump([0.25] * round(seconds * 4))

    def turn(self) -> None:
        """One turn of the reactor: what is to be called now, and not what that asks for."""
        for call in self.clock.getDelayedCalls():
            if call.active() and call.getTime() <= self.clock.seconds():
                func, args, options = call.func, call.args, call.kw
                call.cancel()
                func(*args, **options)

    @property
    def bounds(self) -> list[str]:
        return self.observer.bounds

    def stop(self) -> None:
        """The end; nothing may be left."""
        if self.service is not None:
            stopped = self.service.stopService()
        self.pass_(1)
        for caller in self._callers:
            caller.leave()
        self.pass_(10)
        if self.service is not None:
            assert stopped.called
        assert not self.clock.getDelayedCalls()


def request(
    method: bytes = b"POST", target: bytes = b"/mcp", body: bytes = b"", *lines: bytes
) -> bytes:
    """A request; a POST is JSON and has a length, unless `lines` say otherwise."""
    head = [b"%b %b HTTP/1.1" % (method, target), b"Host: " + HOST, *lines]
    said = b"\n".join(lines).lower()
    if method == b"POST":
        if b"content-type:" not in said:
            head.append(b"Content-Type: application/json")
        if b"content-length:" not in said and b"transfer-encoding:" not in said:
            head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + body
