"""The link to a Streamable HTTP server, against a faulty one on loopback sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_twisted
from attrs import define, evolve, field
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from faulty_upstream import FaultyUpstream, Received
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.http1.pool import BEAT, SystemTrust
from gateway.links.http_answer import LINGER
from gateway.links.interfaces import (
    EventMark,
    Health,
    Hello,
    IHTTPLink,
    ILinkListener,
    IServer,
    LinkFailed,
    ListenRefused,
    Outcome,
    Reason,
    Settled,
)
from gateway.observe.observer import BoundReached, Event, IObserver, MessageDropped, NoiseSkipped
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, decode

CONTEXT = CallContext("up", peer="192.0.2.7", host=b"gateway.example")
HELLO = Hello(b'{"protocolVersion": "2025-11-25", "x":1.0}')


@implementer(ILinkListener)
@define(eq=False)
class Listener:
    """Keeps what it hears; `heard` fires with the next of it."""

    queue: DeferredQueue[tuple[Any, ...]] = field(factory=DeferredQueue)
    onReceived: Callable[[Message], None] = lambda message: None

    def received(self, message: Message, origin: object, mark: EventMark | None = None) -> None:
        self.onReceived(message)
        self.queue.put(("received", message, origin, mark))

    def marked(self, origin: object, mark: EventMark) -> None:
        self.queue.put(("marked", origin, mark))

    def ended(self, origin: object) -> None:
        self.queue.put(("ended", origin))

    def accepted(self, call: object) -> None:
        self.queue.put(("accepted", call))

    def settled(self, call: object, settled: Settled) -> None:
        self.queue.put(("settled", call, settled))

    def drained(self) -> None:
        self.queue.put(("drained",))

    def lost(self, reason: Reason, message: str) -> None:
        self.queue.put(("lost", reason))

    def heard(self) -> Deferred[tuple[Any, ...]]:
        # The time-out only spares a broken test the wait for the suite's.
        return self.queue.get().addTimeout(10, reactor)

    @property
    def quiet(self) -> bool:
        return not self.queue.pending


@implementer(IObserver)
@define(eq=False)
class Observer:
    events: list[Event] = field(factory=list)

    def observed(self, event: Event) -> None:
        self.events.append(event)


@define(eq=False)
class Bench:
    """One upstream, one server and its listener."""

    upstream: FaultyUpstream = field(factory=FaultyUpstream)
    listener: Listener = field(factory=Listener)
    observer: Observer = field(factory=Observer)
    clock: Clock = field(factory=Clock)
    limits: Limits = field(factory=Limits)
    policy: IPolicyForHTTPS = field(factory=SystemTrust)
    settings: HTTPSettings = field(init=False)
    _server: HTTPServer | None = None

    def start(self) -> None:
        self.upstream.start(reactor)
        self.settings = HTTPSettings(name="up", url=self.upstream.url, transport="streamable-http")

    @property
    def server(self) -> HTTPServer:
        if self._server is None:
            self._server = HTTPServer(
                self.settings, self.limits, reactor, self.clock, self.observer, self.policy
            )
        return self._server

    async def link(self, context: CallContext = CONTEXT) -> IHTTPLink:
        link = await self.server.link(HELLO, self.listener, context, ownStreams=True)
        await self.upstream.next()
        return link  # type: ignore[return-value]

    async def refused(self) -> LinkFailed:
        with pytest.raises(LinkFailed) as raised:
            await self.server.link(HELLO, self.listener, CONTEXT, ownStreams=True)
        return raised.value

    async def outcome(self, script: Callable[[Received], Any], id: str = "7") -> tuple[Any, ...]:
        """What is heard of one call to which the server answers by a script."""
        link = await self.link()
        self.upstream.script = lambda request: (
            request.rpc == "tools/call" and (script(request) or True)
        )
        assert link.send(call(id), "a call", CONTEXT)
        return await self.listener.heard()

    def pass_(self, seconds: float) -> None:
        """Time passes, and the connections are looked at as often as they should be."""
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until:
            self.clock.advance(min(BEAT, until - self.clock.seconds()))

    async def close(self) -> None:
        if self._server is not None:
            await self._server.drain()
        await self.upstream.close()
        assert self.clock.getDelayedCalls() == []


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.start()
    yield bench
    await bench.close()


def call(id: str = "7", method: str = "tools/call", params: str = '{"a":1.0}') -> Message:
    message = decode(
        f'{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}'.encode()
    )
    assert isinstance(message, Message)
    return message


def note(method: str = "notifications/initialized") -> Message:
    message = decode(f'{{"jsonrpc":"2.0","method":"{method}"}}'.encode())
    assert isinstance(message, Message)
    return message


def answer(id: object = 7, result: object = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": {} if result is None else result}


def progress(number: int = 1) -> dict[str, Any]:
    params = {"progressToken": "t", "progress": number}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


# The handshake.


@pytest_twisted.ensureDeferred
async def test_the_handshake_teaches_session_and_revision(bench: Bench) -> None:
    assert verifyObject(IServer, bench.server)
    assert bench.server.health() is Health.UNKNOWN
    link = await bench.link()
    assert verifyObject(IHTTPLink, link)
    first = bench.upstream.requests[0]
    assert first.body == (
        b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":' + HELLO.params + b"}"
    )
    assert first.header(b"accept") == b"application/json, text/event-stream"
    assert first.header(b"content-type") == b"application/json"
    assert first.header(b"accept-encoding") == b"identity"
    assert first.header(b"mcp-session-id") is None
    assert first.header(b"mcp-protocol-version") is None
    assert not link.sessionless
    assert bytes(link.answer.fields["id"]) == b"0"
    link.send(note(), "n", CONTEXT)
    assert await bench.listener.heard() == ("accepted", "n")
    request = await bench.upstream.next()
    assert request.header(b"mcp-session-id") == b"upstream-session-1"
    assert request.header(b"mcp-protocol-version") == b"2025-11-25"
    assert bench.server.health() is Health.UP
    assert bench.upstream.opened == 1


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18"])
@pytest_twisted.ensureDeferred
async def test_an_older_revision_is_kept_to(bench: Bench, revision: str) -> None:
    bench.upstream.revision = revision
    link = await bench.link()
    link.send(note(), "n", CONTEXT)
    request = await bench.upstream.next()
    assert request.header(b"mcp-protocol-version") == revision.encode()
    await bench.listener.heard()


@pytest_twisted.ensureDeferred
async def test_what_comes_before_the_answer_is_told_after_the_link_is_there(bench: Bench) -> None:
    def script(request: Received) -> bool:
        if request.rpc != "initialize":
            return False
        request.stream(((b"Mcp-Session-Id", b"s"),))
        request.event(None, id="0")
        request.event(progress(1))
        request.event(progress(2))
        request.event(answer(0, {"protocolVersion": "2025-06-18"}))
        request.end()
        return True

    bench.upstream.script = script
    order: list[str] = []
    bench.listener.onReceived = lambda message: order.append("message")
    linking = bench.server.link(HELLO, bench.listener, CONTEXT, ownStreams=True)
    linking.addCallback(lambda link: order.append("link"))
    await linking
    first = await bench.listener.heard()
    assert (first[1].method, first[2], first[3]) == ("notifications/progress", None, None)
    assert (await bench.listener.heard())[1].param("progress") == b"2"
    assert order == ["link", "message", "message"]


@pytest_twisted.ensureDeferred
async def test_what_comes_before_the_answer_is_bounded(bench: Bench) -> None:
    bench.limits = Limits(max_queued_messages=2)

    def script(request: Received) -> bool:
        if request.rpc == "initialize":
            request.stream()
            for number in range(4):
                request.event(progress(number))
            request.event(answer(0, {"protocolVersion": "2025-06-18"}))
            request.end()
        return request.rpc == "initialize"

    bench.upstream.script = script
    await bench.link()
    kept = [(await bench.listener.heard())[1].param("progress") for _ in range(2)]
    assert kept == [b"2", b"3"]
    assert bench.observer.events.count(BoundReached("max_queued_messages", "up")) == 2


@pytest_twisted.ensureDeferred
async def test_a_server_without_sessions(bench: Bench) -> None:
    bench.upstream.session = None
    bench.upstream.script = lambda request: (
        request.rpc == "tools/call"
        and (request.result({}, ((b"Mcp-Session-Id", b"late"),)) or True)
    )
    link = await bench.link()
    assert link.sessionless
    link.send(call(), "c", CONTEXT)
    assert (await bench.listener.heard())[0] == "received"
    link.send(note(), "n", CONTEXT)
    await bench.listener.heard()
    assert all(one.header(b"mcp-session-id") is None for one in bench.upstream.requests)
    await link.close()
    assert bench.upstream.requests[-1].method == b"POST"


INITIALIZED = {"protocolVersion": "2025-11-25"}


@pytest.mark.parametrize(
    ("script", "reason", "status"),
    [
        (lambda r: r.reply(200, b"nonsense"), Reason.BAD_ANSWER, 0),
        (lambda r: r.reply(200, b"{}"), Reason.BAD_ANSWER, 0),
        (lambda r: r.reply(200, b'{"jsonrpc":"2.0","id":0}'), Reason.BAD_ANSWER, 0),
        (lambda r: r.reply(200, b"<html>", b"text/html"), Reason.BAD_ANSWER, 0),
        (lambda r: r.reply(202, type=None), Reason.BAD_ANSWER, 0),
        (lambda r: r.result({}), Reason.BAD_ANSWER, 0),
        (lambda r: r.result({"protocolVersion": 1}), Reason.BAD_ANSWER, 0),
        (lambda r: r.result({"protocolVersion": "a\r\nb"}), Reason.BAD_ANSWER, 0),
        (lambda r: r.result([]), Reason.BAD_ANSWER, 0),
        (lambda r: r.result(INITIALIZED, ((b"Mcp-Session-Id", b"a b"),)), Reason.BAD_ANSWER, 0),
        (lambda r: r.raw(b"SSH-2.0-OpenSSH\r\n\r\n"), Reason.BAD_ANSWER, 0),
        (lambda r: r.cut(), Reason.OUTCOME_UNKNOWN, 0),
        (lambda r: r.finish(), Reason.OUTCOME_UNKNOWN, 0),
        (lambda r: (r.stream(), r.end()), Reason.OUTCOME_UNKNOWN, 0),
        (lambda r: r.reply(404, b"", None), Reason.BAD_ANSWER, 404),
        (lambda r: r.reply(405, b"no", b"text/plain"), Reason.BAD_ANSWER, 405),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_fails(
    bench: Bench, script: Callable[[Received], None], reason: Reason, status: int
) -> None:
    bench.upstream.script = lambda request: script(request) or True
    failed = await bench.refused()
    assert (failed.reason, failed.status, failed.answer) == (reason, status, None)
    assert "127.0.0.1" not in failed.message


@pytest_twisted.ensureDeferred
async def test_the_servers_own_error_comes_with_the_failure(bench: Bench) -> None:
    error = {"jsonrpc": "2.0", "id": 0, "error": {"code": -32602, "message": "no"}}
    body = json.dumps(error).encode()
    bench.upstream.script = lambda request: request.reply(200, body) or True
    failed = await bench.refused()
    assert failed.reason is Reason.BAD_ANSWER
    assert failed.answer is not None
    assert failed.answer.id == b"0"
    # The error of a refusal may have no id, or null.
    for id in (b"", b'"id":null,'):
        body = b'{"jsonrpc":"2.0",%b"error":{"code":-32000,"message":"no"}}' % id
        bench.upstream.script = lambda request, body=body: request.reply(400, body) or True
        failed = await bench.refused()
        assert failed.status == 400
        assert failed.answer is not None
        assert failed.answer.id is None
        assert "id" not in failed.answer.fields


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_there(bench: Bench) -> None:
    bench.server  # noqa: B018 - it is made with the port that is closed next
    await bench.upstream.stopListening()
    assert (await bench.refused()).reason is Reason.UPSTREAM_UNREACHABLE
    assert bench.server.health() is Health.DOWN


@pytest_twisted.ensureDeferred
async def test_a_host_that_has_no_address(bench: Bench) -> None:
    bench.settings = evolve(bench.settings, url="http://gateway.invalid/mcp")
    assert (await bench.refused()).reason is Reason.UPSTREAM_UNREACHABLE


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_takes_too_long(bench: Bench) -> None:
    bench.upstream.script = lambda request: True
    linking = bench.server.link(HELLO, bench.listener, CONTEXT, ownStreams=True)
    request = await bench.upstream.next()
    lost = request.connection.lost
    bench.clock.advance(bench.settings.handshake_timeout)
    with pytest.raises(LinkFailed) as raised:
        await linking
    assert raised.value.reason is Reason.TIMEOUT
    await lost


@pytest_twisted.ensureDeferred
async def test_a_handshake_can_be_given_up(bench: Bench) -> None:
    bench.upstream.script = lambda request: request.rpc == "initialize"
    linking = bench.server.link(HELLO, bench.listener, CONTEXT, ownStreams=True)
    request = await bench.upstream.next()
    lost = request.connection.lost
    linking.cancel()
    with pytest.raises(CancelledError):
        await linking
    await lost


@pytest_twisted.ensureDeferred
async def test_a_failed_handshake_gives_its_session_back(bench: Bench) -> None:
    def script(request: Received) -> bool:
        if request.rpc == "initialize":
            request.result({}, ((b"Mcp-Session-Id", b"s"),))
        return request.rpc == "initialize"

    bench.upstream.script = script
    await bench.refused()
    await bench.upstream.next()
    request = await bench.upstream.next()
    assert (request.method, request.header(b"mcp-session-id")) == (b"DELETE", b"s")


def test_a_connect_that_takes_too_long() -> None:
    clock, memory = Clock(), MemoryReactorClock()
    settings = HTTPSettings(name="up", url="http://127.0.0.1:9/mcp")
    observer = Observer()
    server = HTTPServer(settings, Limits(), memory, clock, observer)
    failures: list[Any] = []
    server.link(HELLO, Listener(), CONTEXT).addErrback(failures.append)
    assert len(memory.tcpClients) == 1
    clock.advance(Limits().connect_timeout)
    assert failures[0].value.reason is Reason.UPSTREAM_UNREACHABLE
    assert BoundReached("connect_timeout", "up") in observer.events
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "/mcp",
        "http:///mcp",
        "http://u:p@a/",
        "http://a:x/",
        "http://a:0/",
        "http://a/#f",
        "http://a/\r\nX: y",
        "http://ä/",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="the URL"):
        HTTPServer(HTTPSettings(name="s", url=url), Limits(), None, Clock(), Observer())


# TLS.

# Twisted 26.10 hands pyOpenSSL its certificates in a way that is deprecated there.
twistedIsLate = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def certificate() -> PrivateCertificate:
    """A certificate for 127.0.0.1 that nobody signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return PrivateCertificate.loadPEM(signed.public_bytes(Encoding.PEM) + pem)


@twistedIsLate
@pytest_twisted.ensureDeferred
async def test_a_server_whose_certificate_is_not_trusted_is_sent_nothing(bench: Bench) -> None:
    await bench.upstream.stopListening()
    bench.upstream.start(reactor, certificate().options())
    bench.settings = evolve(bench.settings, url=bench.upstream.url)
    assert (await bench.refused()).reason is Reason.UPSTREAM_UNREACHABLE
    assert bench.upstream.requests == []
    assert bench.server.health() is Health.DOWN


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_speak_tls(bench: Bench) -> None:
    bench.settings = evolve(bench.settings, url=bench.upstream.url.replace("http:", "https:"))
    bench.upstream.connected = lambda connection: connection.transport.write(b"HTTP/1.1 400 X\r\n")
    assert (await bench.refused()).reason is Reason.UPSTREAM_UNREACHABLE


@twistedIsLate
@pytest_twisted.ensureDeferred
async def test_calls_over_tls(bench: Bench) -> None:
    trusted = certificate()
    await bench.upstream.stopListening()
    bench.upstream.start(reactor, trusted.options())
    bench.settings = evolve(bench.settings, url=bench.upstream.url)
    bench.policy = BrowserLikePolicyForHTTPS(trustRoot=trusted)
    heard = await bench.outcome(lambda r: r.result({"ok": True}))
    assert heard[0] == "received"
    link = next(iter(bench.server._links))
    bench.upstream.script = lambda r: r.rpc == "tools/call" and (r.finish() or True)
    link.send(call(), "cut", CONTEXT)
    assert (await bench.listener.heard())[2].reason is Reason.OUTCOME_UNKNOWN
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    link.send(call(), "held", CONTEXT)
    while len(bench.upstream.requests) < 4:
        await bench.upstream.next()
    request = bench.upstream.requests[-1]
    request.stream()
    request.event(progress())
    assert (await bench.listener.heard())[0] == "received"
    lost = request.connection.lost
    link.cancel("held")
    await lost
    assert bench.upstream.opened == 2
    await link.close()


# Calls.


@pytest_twisted.ensureDeferred
async def test_an_answer_as_json(bench: Bench) -> None:
    heard = await bench.outcome(lambda r: r.reply(200, b'{"jsonrpc":"2.0","id":7,"result":1.0}'))
    what, message, origin, mark = heard
    assert (what, origin, mark) == ("received", "a call", None)
    assert bytes(message.fields["result"]) == b"1.0"
    assert bench.upstream.requests[-1].body == call().encode()
    assert bench.upstream.opened == 1


@pytest_twisted.ensureDeferred
async def test_an_answer_as_an_event_stream(bench: Bench) -> None:
    def script(request: Received) -> None:
        request.stream()
        request.event(None, id="e0", retry=500)
        request.chunk(b": a comment\n\nevent: ping\ndata: {}\n\n")
        request.event(progress(), id="e1")
        request.event({"jsonrpc": "2.0", "id": "s", "method": "ping"})
        request.event(answer(), id="e2")
        request.end()

    listener = bench.listener
    assert await bench.outcome(script) == ("marked", "a call", EventMark(b"e0", b"500"))
    heard = [await listener.heard() for _ in range(3)]
    assert [one[1].kind for one in heard] == [Kind.NOTIFICATION, Kind.REQUEST, Kind.RESPONSE]
    assert [one[3] for one in heard] == [EventMark(b"e1"), None, EventMark(b"e2")]
    assert {one[2] for one in heard} == {"a call"}


@pytest_twisted.ensureDeferred
async def test_connections_are_used_again_and_not_kept_for_long(bench: Bench) -> None:
    link = await bench.link()
    for turn in range(3):
        link.send(call(), turn, CONTEXT)
        assert (await bench.listener.heard())[2] == turn
    assert bench.upstream.opened == 1
    lost = bench.upstream.connections[0].lost
    bench.pass_(2.4)
    assert bench.upstream.connections
    bench.pass_(2 * BEAT)
    await lost
    link.send(call(), "c", CONTEXT)
    assert (await bench.listener.heard())[2] == "c"


@pytest.mark.parametrize("how", ["HTTP/1.0", "Close"])
@pytest_twisted.ensureDeferred
async def test_a_connection_the_server_will_close_is_not_used_again(bench: Bench, how: str) -> None:
    body = json.dumps(answer()).encode()
    version, field = (how, b"") if "/" in how else ("HTTP/1.1", b"Connection: Close\r\n")

    def script(request: Received) -> bool:
        if request.rpc != "tools/call":
            return False
        head = b"%b 200 OK\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        request.raw(head % (version.encode(), field, len(body)) + body)
        return True

    bench.upstream.script = script
    link = await bench.link()
    for turn in range(2):
        link.send(call(), turn, CONTEXT)
        assert (await bench.listener.heard())[0] == "received"
    assert bench.upstream.requests[-1].connection is not bench.upstream.requests[-2].connection


@pytest_twisted.ensureDeferred
async def test_a_body_without_length_ends_with_its_connection(bench: Bench) -> None:
    def script(request: Received) -> None:
        body = json.dumps(answer()).encode()
        request.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)
        request.finish()

    assert (await bench.outcome(script))[0] == "received"


@pytest_twisted.ensureDeferred
async def test_an_interim_answer_is_passed_over(bench: Bench) -> None:
    def script(request: Received) -> None:
        request.raw(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n")
        request.result({})

    assert (await bench.outcome(script))[0] == "received"


def batch(*messages: object) -> bytes:
    return json.dumps(messages).encode()


@pytest_twisted.ensureDeferred
async def test_a_batch_with_the_answer(bench: Bench) -> None:
    heard = await bench.outcome(lambda r: r.reply(200, batch(answer(), progress())))
    assert heard[1].method == "notifications/progress"
    assert (await bench.listener.heard())[1].kind is Kind.RESPONSE


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GZIP = ((b"Content-Encoding", b"gzip"),)


@pytest.mark.parametrize(
    ("script", "outcome", "reason", "status"),
    [
        (lambda r: r.cut(), "may have run", "outcome_unknown", 0),
        (lambda r: r.finish(), "may have run", "outcome_unknown", 0),
        (lambda r: (r.raw(HEAD[:20]), r.finish()), "may have run", "outcome_unknown", 0),
        (
            lambda r: (r.raw(HEAD + b"Content-Length: 9\r\n\r\n{"), r.finish()),
            "may have run",
            "outcome_unknown",
            0,
        ),
        (lambda r: (r.stream(), r.end()), "may have run", "outcome_unknown", 0),
        (lambda r: (r.stream(), r.finish()), "may have run", "outcome_unknown", 0),
        (lambda r: r.reply(404, type=None), "not sent", "", 404),
        (lambda r: r.reply(404, b"x" * 100_000), "not sent", "", 404),
        (lambda r: r.reply(500, b"Traceback", b"text/plain"), "", "", 500),
        (lambda r: r.reply(503, b"x", headers=GZIP), "", "", 503),
        (lambda r: r.reply(202, type=None), "may have run", "bad_answer", 0),
        (lambda r: r.reply(204, type=None), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b"{}", b"text/html"), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b"{}", None), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b"\x1f\x8b", headers=GZIP), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b""), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b'{"jsonrpc":'), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b'{"\xff":1}'), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, batch(answer(8))[1:-1]), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, batch(answer("7"))[1:-1]), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, batch(answer(8))), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, batch(progress())[1:-1]), None, None, None),
        (lambda r: (r.stream(), r.chunk(b"data: {\n\n")), "may have run", "bad_answer", 0),
        (lambda r: (r.stream(), r.chunk(b"data: \xff\n\n")), "may have run", "bad_answer", 0),
        (lambda r: (r.stream(), r.event(answer(8)), r.end()), "may have run", "bad_answer", 0),
        (lambda r: (r.stream(), r.raw(b"zz\r\n")), "may have run", "bad_answer", 0),
        (lambda r: r.reply(200, b" " * 5000), "may have run", "bad_answer", 0),
        (lambda r: (r.stream(), r.chunk(b"data: " + b" " * 5000)), "may have run", "bad_answer", 0),
        (lambda r: r.raw(b"nonsense\r\n\r\n"), "may have run", "bad_answer", 0),
        (lambda r: r.raw(HEAD.replace(b"\r", b"") + b"\n"), "may have run", "bad_answer", 0),
        (lambda r: r.raw(HEAD + b" folded: 1\r\n\r\n"), "may have run", "bad_answer", 0),
        (lambda r: r.raw(HEAD + b"A: \x00\r\n\r\n"), "may have run", "bad_answer", 0),
        (
            lambda r: r.raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n12"),
            "may have run",
            "bad_answer",
            0,
        ),
        (lambda r: r.raw(HEAD + b"Content-Length: +1\r\n\r\n1"), "may have run", "bad_answer", 0),
        (
            lambda r: r.raw(HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "may have run",
            "bad_answer",
            0,
        ),
        (
            lambda r: r.raw(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
            "may have run",
            "bad_answer",
            0,
        ),
        (lambda r: r.raw(b"HTTP/1.1 101 X\r\n\r\n"), "may have run", "bad_answer", 0),
        (
            lambda r: r.raw(HEAD + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n"),
            "may have run",
            "bad_answer",
            0,
        ),
        (lambda r: r.raw(b"HTTP/1.1 204 X\r\n\r\n{}"), "may have run", "bad_answer", 0),
        (lambda r: r.raw(HEAD + b"X: " + b"y" * 70_000), "may have run", "bad_answer", 0),
        (lambda r: r.raw(HEAD + b"X: y\r\n" * 20_000), "may have run", "bad_answer", 0),
        (
            lambda r: r.raw(HEAD + b"X: %b\r\n\r\n" % (b"y" * 17_000)),
            "may have run",
            "bad_answer",
            0,
        ),
        (
            lambda r: r.raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000),
            "may have run",
            "bad_answer",
            0,
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_call_that_gets_no_answer(
    bench: Bench, script: Callable[[Received], None], outcome: str, reason: str, status: int
) -> None:
    bench.limits = Limits(max_answer=4096)
    what, *rest = await bench.outcome(script)
    if outcome is None:
        # A notification may come before nothing else does.
        assert what == "received"
        what, *rest = await bench.listener.heard()
        outcome, reason, status = "may have run", "bad_answer", 0
    origin, settled = rest
    assert (what, origin, settled.status) == ("settled", "a call", status)
    if status:
        assert settled.outcome is (Outcome.REFUSED if status < 500 else Outcome.MAYBE_RAN)
        assert settled.reason is Reason.BAD_ANSWER
        assert settled.body is None
        # Whatever it said; but 503 says that nobody serves there.
        assert bench.server.health() is (Health.DOWN if status == 503 else Health.UP)
    else:
        assert (settled.outcome.value, settled.reason.value) == (outcome, reason)
    assert "127.0.0.1" not in settled.message
    # The next one is not hurt by it, and nothing more is told of this one.
    bench.upstream.script = lambda request: False
    link = next(iter(bench.server._links))
    assert link.send(call("9"), "next", CONTEXT)
    heard = await bench.listener.heard()
    assert (heard[0], heard[2]) == ("received", "next")


@pytest_twisted.ensureDeferred
async def test_a_bad_answer_costs_its_connection(bench: Bench) -> None:
    heard = await bench.outcome(lambda r: (r.stream(), r.chunk(b"data: {\n\n")))
    assert heard[2].reason is Reason.BAD_ANSWER
    request = bench.upstream.requests[-1]
    if request.connection in bench.upstream.connections:
        await request.connection.lost


@pytest_twisted.ensureDeferred
async def test_a_refusal_brings_its_error(bench: Bench) -> None:
    body = b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"busy"},"id":null}'
    heard = await bench.outcome(lambda r: r.reply(429, body))
    settled = heard[2]
    assert (settled.outcome, settled.status) == (Outcome.REFUSED, 429)
    assert bytes(settled.body.fields["error"]) == b'{"code":-32000,"message":"busy"}'


@pytest_twisted.ensureDeferred
async def test_a_refusal_whose_body_does_not_end(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: (
        r.raw(b"HTTP/1.1 404 X\r\nContent-Length: 9\r\n\r\n{") or r.method == b"POST"
    )
    link.send(call(), "c", CONTEXT)
    request = await bench.upstream.next()
    lost = request.connection.lost
    # The timer is there when the head arrived.
    while all(one.getTime() != LINGER for one in bench.clock.calls):
        await deferLater(reactor, 0)
    bench.clock.advance(LINGER)
    assert (await bench.listener.heard())[2].status == 404
    await lost


@pytest_twisted.ensureDeferred
async def test_nothing_was_sent_to_a_server_that_went_away(bench: Bench) -> None:
    link = await bench.link()
    await bench.upstream.stopListening()
    lost = bench.upstream.connections[0].lost
    bench.pass_(bench.limits.upstream_keep_alive + 2 * BEAT)
    await lost
    link.send(call(), "c", CONTEXT)
    settled = (await bench.listener.heard())[2]
    assert (settled.outcome, settled.reason) == (Outcome.NOT_SENT, Reason.UPSTREAM_UNREACHABLE)
    assert bench.server.health() is Health.DOWN


@pytest.mark.acceptance(69)
@pytest_twisted.ensureDeferred
async def test_acceptance_69_a_cut_on_a_used_connection_is_not_tried_again(bench: Bench) -> None:
    """Acceptance 69, the link's part."""
    settled = (await bench.outcome(lambda r: r.cut()))[2]
    assert (settled.outcome, settled.reason) == (Outcome.MAYBE_RAN, Reason.OUTCOME_UNKNOWN)
    assert [r.rpc for r in bench.upstream.requests] == ["initialize", "tools/call"]
    assert bench.upstream.opened == 1


@pytest.mark.acceptance(65)
@pytest_twisted.ensureDeferred
async def test_acceptance_65_a_lost_session_is_told_once_and_makes_no_loop(bench: Bench) -> None:
    """Acceptance 65, the link's part."""
    link = await bench.link()
    bench.upstream.script = lambda r: r.reply(404, type=None) or True
    for turn in range(2):
        link.send(call(), turn, CONTEXT)
        what, origin, settled = await bench.listener.heard()
        assert (what, origin) == ("settled", turn)
        assert (settled.outcome, settled.status) == (Outcome.REFUSED, 404)
    link.send(note(), "n", CONTEXT)
    assert (await bench.listener.heard())[2].status == 404
    await link.close()
    # No second initialize, and no DELETE of what is lost.
    assert [r.method for r in bench.upstream.requests] == [b"POST"] * 4
    assert [r.rpc for r in bench.upstream.requests].count("initialize") == 1
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_calls_run_side_by_side(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    for turn in ("1", "2", "3"):
        link.send(call(turn), turn, CONTEXT)
    requests = [await bench.upstream.next() for _ in range(3)]
    for request in reversed(requests):
        request.result({})
        heard = await bench.listener.heard()
        assert heard[1].id == heard[2].encode() == str(request.message["id"]).encode()


# After the answer.


@pytest_twisted.ensureDeferred
async def test_a_stream_that_does_not_end_after_its_answer_is_cut(bench: Bench) -> None:
    heard = await bench.outcome(lambda r: (r.stream(), r.event(answer()), r.event(progress())))
    assert heard[1].kind is Kind.RESPONSE
    lost = bench.upstream.requests[-1].connection.lost
    bench.clock.advance(LINGER)
    await lost
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_what_comes_after_the_answer_is_dropped_and_counted(bench: Bench) -> None:
    data = b"".join(
        b"data: %b\n\n" % json.dumps(one).encode() for one in (answer(), progress(), answer())
    )
    await bench.outcome(lambda r: (r.stream(), r.chunk(data), r.end()))
    # What was heard came in the middle of the chunk.
    await deferLater(reactor, 0)
    assert bench.observer.events.count(MessageDropped("up", "after_answer")) == 2
    assert bench.listener.quiet


# Notifications and responses.


@pytest_twisted.ensureDeferred
async def test_notifications_and_responses_are_accepted_or_not(bench: Bench) -> None:
    link = await bench.link()
    assert link.send(note(), "first", CONTEXT)
    assert await bench.listener.heard() == ("accepted", "first")
    response = decode(b'{"jsonrpc":"2.0","id":"s","result":{}}')
    assert isinstance(response, Message)
    bench.upstream.script = lambda r: r.reply(200, b"{}") or True
    assert link.send(response, "second", CONTEXT)
    assert await bench.listener.heard() == ("accepted", "second")
    bench.upstream.script = lambda r: r.reply(404, type=None) or True
    assert link.send(note(), "third", CONTEXT)
    what, origin, settled = await bench.listener.heard()
    assert (what, origin, settled.status) == ("settled", "third", 404)
    assert MessageDropped("up", "undeliverable") not in bench.observer.events


@pytest_twisted.ensureDeferred
async def test_a_notification_nobody_asks_after_is_counted_when_it_fails(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: (
        r.rpc == "notifications/initialized" and (r.reply(500, type=None) or True)
    )
    link.send(note(), None, CONTEXT)
    await bench.upstream.next()
    link.send(call(), "c", CONTEXT)
    assert (await bench.listener.heard())[2] == "c"
    while MessageDropped("up", "undeliverable") not in bench.observer.events:
        await deferLater(reactor, 0)
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_a_stream_in_answer_to_a_notification_is_not_kept(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"POST" and (r.stream() or True)
    link.send(note(), "n", CONTEXT)
    assert await bench.listener.heard() == ("accepted", "n")
    lost = bench.upstream.requests[-1].connection.lost
    bench.clock.advance(LINGER)
    await lost


# Where requests go.


@pytest.mark.acceptance(66)
@pytest_twisted.ensureDeferred
async def test_acceptance_66_the_target_comes_from_the_configuration_alone(bench: Bench) -> None:
    """Acceptance 66."""
    bench.settings = evolve(
        bench.settings,
        url=bench.upstream.origin + "/a/../mcp%2F?k=v",
        headers={"X-Mine": "1", "X-Empty": ""},
    )
    hostile = evolve(
        CONTEXT,
        headers=(
            (b"host", b"evil.example"),
            (b"x-forwarded-host", b"evil.example"),
            (b"forwarded", b"host=evil.example"),
            (b"x-original-url", b"http://evil.example/"),
            (b"x-rewrite-url", b"/admin?x=1"),
            (b"mcp-init-host", b"evil.example"),
            (b"x-mine", b"2"),
            (b"x_mine", b"3"),
            (b"x-split", b"a\r\nHost: evil.example"),
            (b"x-tenant", b"t"),
        ),
    )
    link = await bench.link(hostile)
    link.send(call(), "c", hostile)
    await bench.listener.heard()
    with pytest.raises(ListenRefused):
        await link.listen("g", b"e\r\nHost: evil.example"[:1], hostile)
    await link.close()
    host = bench.upstream.origin.removeprefix("http://").encode()
    assert {r.method for r in bench.upstream.requests} == {b"POST", b"GET", b"DELETE"}
    for request in bench.upstream.requests:
        assert request.target == b"/a/../mcp%2F?k=v"
        assert request.header(b"host") == host
        assert request.header(b"x-mine") == b"1"
        assert request.header(b"x-empty") == b""
        assert request.header(b"x-tenant") == b"t"
        assert request.header(b"x-forwarded-host") == b"gateway.example"
        assert b"evil" not in b"".join(name + value for name, value in request.headers)


@pytest.mark.acceptance(73)
@pytest_twisted.ensureDeferred
async def test_acceptance_73_only_end_to_end_fields_pass(bench: Bench) -> None:
    """Acceptance 73, the link's part; what comes back shows none of the server's fields."""
    context = evolve(
        CONTEXT,
        tls=True,
        headers=(
            (b"connection", b"keep-alive, x-hop"),
            (b"keep-alive", b"timeout=5"),
            (b"x-hop", b"1"),
            (b"proxy-authorization", b"Basic x"),
            (b"te", b"trailers"),
            (b"trailer", b"x"),
            (b"upgrade", b"websocket"),
            (b"transfer-encoding", b"chunked"),
            (b"content-length", b"999"),
            (b"expect", b"100-continue"),
            (b"mcp-session-id", b"the-gateways-own"),
            (b"mcp-protocol-version", b"1999-01-01"),
            (b"accept", b"*/*"),
            (b"accept-encoding", b"gzip"),
            (b"content-type", b"text/plain"),
            (b"origin", b"https://page.example"),
            (b"x-forwarded-for", b"10.0.0.1"),
            (b"traceparent", b"00-a-b-01"),
        ),
    )
    link = await bench.link(context)
    link.send(call(), "c", context)
    await bench.listener.heard()
    request = await bench.upstream.next()
    body = call().encode()
    assert sorted(request.headers) == sorted(
        [
            (b"host", bench.upstream.origin.removeprefix("http://").encode()),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
            (b"accept-encoding", b"identity"),
            (b"mcp-session-id", b"upstream-session-1"),
            (b"mcp-protocol-version", b"2025-11-25"),
            (b"traceparent", b"00-a-b-01"),
            (b"x-forwarded-for", b"192.0.2.7"),
            (b"x-forwarded-proto", b"https"),
            (b"x-forwarded-host", b"gateway.example"),
        ]
    )
    assert request.body == body


@pytest.mark.acceptance(100)
@pytest.mark.parametrize("forward", [False, True])
@pytest_twisted.ensureDeferred
async def test_acceptance_100_credentials_go_on_only_by_configuration(
    bench: Bench, forward: bool
) -> None:
    """Acceptance 100, the link's part."""
    bench.settings = evolve(bench.settings, forward_authorization=forward)
    headers = ((b"authorization", b"Bearer secret"), (b"cookie", b"a=b"))
    context = evolve(CONTEXT, headers=headers)
    link = await bench.link(context)
    link.send(call(), "c", context)
    await bench.listener.heard()
    await link.close()
    for request in bench.upstream.requests:
        assert request.header(b"authorization") == (b"Bearer secret" if forward else None)
        assert request.header(b"cookie") == (b"a=b" if forward else None)


@pytest_twisted.ensureDeferred
async def test_a_configured_credential_wins(bench: Bench) -> None:
    bench.settings = evolve(
        bench.settings, forward_authorization=True, headers={"Authorization": "Bearer ours"}
    )
    await bench.link(evolve(CONTEXT, headers=((b"authorization", b"Bearer theirs"),)))
    assert bench.upstream.requests[0].header(b"authorization") == b"Bearer ours"


@pytest.mark.acceptance(67)
@pytest.mark.parametrize("status", [307, 308])
@pytest_twisted.ensureDeferred
async def test_acceptance_67_a_redirect_to_the_same_origin_is_followed(
    bench: Bench, status: int
) -> None:
    """Acceptance 67."""
    places = [b"/1", bench.upstream.origin.encode() + b"/2?x=1#f", b"3", b"/4", b"/5"]

    def script(request: Received) -> bool:
        if request.rpc != "tools/call" or not places:
            return False
        request.reply(status, b"moved", b"text/plain", ((b"Location", places.pop(0)),))
        return True

    link = await bench.link()
    bench.upstream.script = script
    link.send(call(), "c", CONTEXT)
    assert (await bench.listener.heard())[0] == "received"
    followed = bench.upstream.requests[1:]
    assert [r.target for r in followed] == [b"/mcp", b"/1", b"/2?x=1", b"/3", b"/4", b"/5"]
    assert {(r.method, r.body) for r in followed} == {(b"POST", call().encode())}
    assert {r.header(b"mcp-session-id") for r in followed} == {b"upstream-session-1"}


@pytest.mark.acceptance(67)
@pytest.mark.parametrize(
    ("status", "location"),
    [
        (301, "/other"),
        (302, "/other"),
        (303, "/other"),
        (300, "/other"),
        (307, None),
        (307, "{elsewhere}/mcp"),
        (308, "//{netloc}/mcp"),
        (307, "https://127.0.0.1:1/mcp"),
        (307, "ftp://127.0.0.1/"),
        (307, "{origin}@{netloc}/mcp"),
        (307, "/a b"),
        (307, "{origin}:1/mcp"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_67_any_other_redirect_is_a_bad_answer(
    bench: Bench, status: int, location: str | None
) -> None:
    """Acceptance 67: nothing is sent where it points."""
    elsewhere = FaultyUpstream()
    elsewhere.start(reactor)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if location is not None:
        spelled = location.format(
            elsewhere=elsewhere.origin,
            netloc=elsewhere.origin.removeprefix("http://"),
            origin=bench.upstream.origin,
        )
        headers = ((b"Location", spelled.encode()),)
    _, _, settled = await bench.outcome(lambda r: r.reply(status, headers=headers))
    assert (settled.outcome, settled.reason) == (Outcome.REFUSED, Reason.BAD_ANSWER)
    assert settled.status == status
    assert len(bench.upstream.requests) == 2
    assert elsewhere.opened == 0
    await elsewhere.close()


@pytest.mark.acceptance(67)
@pytest_twisted.ensureDeferred
async def test_acceptance_67_at_most_five_redirects(bench: Bench) -> None:
    """Acceptance 67."""
    loop = ((b"Location", b"/mcp"),)
    _, _, settled = await bench.outcome(lambda r: r.reply(307, type=None, headers=loop))
    assert settled.status == 307
    assert [r.rpc for r in bench.upstream.requests].count("tools/call") == 6


# Back-pressure.


@pytest_twisted.ensureDeferred
async def test_a_held_call_is_not_read(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call" and r.message["id"] == 7
    link.send(call(), "slow", CONTEXT)
    request = await bench.upstream.next()
    request.stream()
    request.event(progress(1))
    assert (await bench.listener.heard())[1].param("progress") == b"1"
    link.hold("slow")
    request.event(progress(2))
    request.event(answer())
    request.end()
    port = request.connection.transport.getPeer().port
    read = [r for r in reactor.getReaders() if getattr(r, "getHost", None) and _port(r) == port]
    assert read == []
    link.send(call("8"), "other", CONTEXT)
    assert (await bench.listener.heard())[2] == "other"
    assert bench.listener.quiet
    link.release("slow")
    assert (await bench.listener.heard())[1].param("progress") == b"2"
    assert (await bench.listener.heard())[1].kind is Kind.RESPONSE


def _port(reader: Any) -> int:
    return getattr(reader.getHost(), "port", 0)


@pytest_twisted.ensureDeferred
async def test_holding_stops_between_two_events_of_one_chunk(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    bench.listener.onReceived = lambda message: link.hold("c")
    link.send(call(), "c", CONTEXT)
    request = await bench.upstream.next()
    request.stream()
    events = [progress(1), progress(2), answer()]
    request.chunk(b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events))
    request.end()
    for expected in (Kind.NOTIFICATION, Kind.NOTIFICATION, Kind.RESPONSE):
        assert (await bench.listener.heard())[1].kind is expected
        assert bench.listener.quiet
        link.release("c")
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_holding_everything(bench: Bench) -> None:
    link = await bench.link()
    link.hold(None)
    link.send(call(), "c", CONTEXT)
    await bench.upstream.next()
    await bench.link()
    # An answer as JSON holds nothing back: it is told whole when it is whole.
    link.release(None)
    assert (await bench.listener.heard())[2] == "c"


@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_costs_its_connection_and_is_not_told(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call" and r.message["id"] == 7
    for answers in (False, True):
        link.send(call(), "c", CONTEXT)
        request = await bench.upstream.next()
        if answers:
            request.stream()
            request.event(progress())
            assert (await bench.listener.heard())[2] == "c"
        lost = request.connection.lost
        link.cancel("c")
        link.cancel("c")
        await lost
    link.send(call("8"), "d", CONTEXT)
    assert (await bench.listener.heard())[2] == "d"
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_a_listener_may_cancel_in_the_middle_of_a_chunk(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    bench.listener.onReceived = lambda message: link.cancel("c")
    link.send(call(), "c", CONTEXT)
    request = await bench.upstream.next()
    lost = request.connection.lost
    request.stream()
    request.chunk(b"data: %b\n\n" % json.dumps(progress()).encode() * 3)
    await bench.listener.heard()
    await lost
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_at_the_bound_on_connections_a_call_waits_for_its_turn(bench: Bench) -> None:
    bench.limits = Limits(max_upstream_connections=1)
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    for id in ("7", "8", "9"):
        assert link.send(call(id), id, CONTEXT)
    assert bench.observer.events.count(BoundReached("max_upstream_connections", "up")) == 2
    link.cancel("8")
    request = await bench.upstream.next()
    # What a call may be waiting for does not wait behind it.
    assert link.send(note(), "n", CONTEXT)
    assert await bench.listener.heard() == ("accepted", "n")
    assert [r.rpc for r in bench.upstream.requests].count("tools/call") == 1
    request.result({})
    assert (await bench.listener.heard())[2] == "7"
    while (request := await bench.upstream.next()).rpc != "tools/call":
        pass
    assert request.message["id"] == 9
    request.result({})
    assert (await bench.listener.heard())[2] == "9"


@pytest.mark.parametrize("bound", ["max_upstream_queue", "max_upstream_queue_bytes"])
@pytest_twisted.ensureDeferred
async def test_when_the_queue_is_full_nothing_is_taken(bench: Bench, bound: str) -> None:
    value = {"max_upstream_queue": 1, "max_upstream_queue_bytes": 100}[bound]
    bench.limits = Limits(max_upstream_connections=1, **{bound: value})
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call" and r.message["id"] == 7
    assert link.send(call(), "first", CONTEXT)
    assert link.send(call("8"), "second", CONTEXT)
    assert not link.send(call("9"), "third", CONTEXT)
    assert (await bench.refused()).reason is Reason.OVERLOADED
    assert bench.observer.events.count(BoundReached(bound, "up")) == 2
    (await bench.upstream.next()).result({})
    assert (await bench.listener.heard())[2] == "first"
    bench.clock.advance(0)
    assert {(await bench.listener.heard())[0] for _ in range(2)} == {"received", "drained"}
    assert link.send(call("9"), "third", CONTEXT)
    assert (await bench.listener.heard())[2] == "third"


@pytest_twisted.ensureDeferred
async def test_streams_that_are_open_take_no_room_from_calls(bench: Bench) -> None:
    bench.limits = Limits(max_upstream_connections=1, max_upstream_streams=2)
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET" and (r.stream() or True)
    for origin in ("g", "h"):
        await link.listen(origin, None, CONTEXT)
        await bench.upstream.next()
    with pytest.raises(ListenRefused) as raised:
        await link.listen("i", None, CONTEXT)
    assert raised.value.status == 405
    reached = [event for event in bench.observer.events if isinstance(event, BoundReached)]
    assert reached == [BoundReached("max_upstream_streams", "up")]
    assert link.send(call(), "c", CONTEXT)
    assert (await bench.listener.heard())[2] == "c"
    other = await bench.server.link(HELLO, bench.listener, CONTEXT, ownStreams=True)
    link.cancel("g")
    await other.listen("i", None, CONTEXT)  # type: ignore[attr-defined]
    assert bench.listener.quiet


# The server's own stream.


@pytest_twisted.ensureDeferred
async def test_the_servers_own_stream(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET" and (r.stream() or True)
    await link.listen("g", None, CONTEXT)
    request = await bench.upstream.next()
    assert request.header(b"accept") == b"text/event-stream"
    assert request.header(b"last-event-id") is None
    assert request.header(b"mcp-session-id") == b"upstream-session-1"
    request.event(None, id="e0")
    request.event(progress(), id="e1")
    request.chunk(b"data: nonsense\n\n")
    request.event(answer("resumed"))
    request.end()
    assert await bench.listener.heard() == ("marked", "g", EventMark(b"e0"))
    heard = await bench.listener.heard()
    assert heard[2:] == ("g", EventMark(b"e1"))
    assert (await bench.listener.heard())[1].kind is Kind.RESPONSE
    assert await bench.listener.heard() == ("ended", "g")
    assert NoiseSkipped("up", 8) in bench.observer.events


@pytest_twisted.ensureDeferred
async def test_a_stream_is_resumed_where_it_was_cut(bench: Bench) -> None:
    def script(request: Received) -> None:
        request.stream()
        request.event(progress(), id="e1")
        request.finish()

    assert (await bench.outcome(script))[3] == EventMark(b"e1")
    assert (await bench.listener.heard())[2].outcome is Outcome.MAYBE_RAN
    link = next(iter(bench.server._links))
    bench.upstream.script = lambda r: r.method == b"GET" and (r.stream() or True)
    await link.listen("a call", b"e1", CONTEXT)
    request = bench.upstream.requests[-1]
    assert request.header(b"last-event-id") == b"e1"
    request.event(answer())
    assert (await bench.listener.heard())[2] == "a call"
    request.cut()
    assert await bench.listener.heard() == ("ended", "a call")


@pytest.mark.acceptance(66)
@pytest.mark.parametrize("last", [b"a\x01b", b"a\r\nHost: b", b"a\x00"])
@pytest_twisted.ensureDeferred
async def test_acceptance_66_an_event_id_that_is_no_field_value_stays_here(
    bench: Bench, last: bytes
) -> None:
    """Acceptance 66."""
    link = await bench.link()
    with pytest.raises(ListenRefused) as raised:
        await link.listen("g", last, CONTEXT)
    assert raised.value.status == 405
    assert [r.method for r in bench.upstream.requests] == [b"POST"]


@pytest.mark.parametrize("status", [405, 404, 400, 500])
@pytest_twisted.ensureDeferred
async def test_a_server_without_a_stream_of_its_own(bench: Bench, status: int) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET" and (r.reply(status) or True)
    with pytest.raises(ListenRefused) as raised:
        await link.listen("g", None, CONTEXT)
    assert raised.value.status == status
    assert bench.listener.quiet


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda r: r.reply(200, b"{}"), Reason.BAD_ANSWER),
        (lambda r: r.raw(b"x\r\n\r\n"), Reason.BAD_ANSWER),
        (lambda r: r.stream(((b"Content-Encoding", b"br"),)), Reason.BAD_ANSWER),
        (lambda r: r.cut(), Reason.UPSTREAM_UNREACHABLE),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_stream_that_cannot_be_opened(
    bench: Bench, script: Callable[[Received], None], reason: Reason
) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET" and (script(r) or True)
    with pytest.raises(LinkFailed) as raised:
        await link.listen("g", None, CONTEXT)
    assert raised.value.reason is reason
    assert bench.listener.quiet


@pytest.mark.parametrize("way", ["cancel", "deferred", "close"])
@pytest_twisted.ensureDeferred
async def test_listening_can_be_given_up(bench: Bench, way: str) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET"
    listening = link.listen("g", None, CONTEXT)
    request = await bench.upstream.next()
    lost = request.connection.lost
    if way == "cancel":
        link.cancel("g")
    elif way == "deferred":
        listening.cancel()
    else:
        await link.close()
    with pytest.raises(LinkFailed) as raised:
        await listening
    assert raised.value.reason is Reason.CANCELLED
    await lost
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_an_open_stream_is_closed_by_cancel(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET" and (r.stream() or True)
    await link.listen("g", None, CONTEXT)
    lost = bench.upstream.requests[-1].connection.lost
    link.cancel("g")
    await lost
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_an_event_over_the_limit_ends_the_servers_stream(bench: Bench) -> None:
    bench.limits = Limits(max_answer=1024)
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"GET" and (r.stream() or True)
    await link.listen("g", None, CONTEXT)
    request = bench.upstream.requests[-1]
    request.event(progress())
    request.chunk(b"data: " + b" " * 2000)
    assert (await bench.listener.heard())[0] == "received"
    assert await bench.listener.heard() == ("ended", "g")
    assert BoundReached("max_answer", "up") in bench.observer.events


# The end.


@pytest_twisted.ensureDeferred
async def test_closing_deletes_the_session_and_cuts_what_is_open(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    link.send(call(), "c", CONTEXT)
    request = await bench.upstream.next()
    lost = request.connection.lost
    first, second = link.close(), link.close()
    await first
    await second
    await link.close()
    await lost
    deletion = bench.upstream.requests[-1]
    assert deletion.method == b"DELETE"
    assert deletion.header(b"mcp-session-id") == b"upstream-session-1"
    assert deletion.header(b"mcp-protocol-version") == b"2025-11-25"
    assert [r.method for r in bench.upstream.requests].count(b"DELETE") == 1
    assert not link.send(call(), "late", CONTEXT)
    assert bench.listener.quiet


@pytest.mark.parametrize(
    "script",
    [
        lambda r: r.reply(405, b"x"),
        lambda r: r.reply(500, b"x"),
        lambda r: r.cut(),
        lambda r: r.stream(),
    ],
)
@pytest_twisted.ensureDeferred
async def test_closing_does_not_depend_on_the_server(
    bench: Bench, script: Callable[[Received], None]
) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"DELETE" and (script(r) or True)
    await link.close()


@pytest_twisted.ensureDeferred
async def test_closing_waits_only_so_long(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.method == b"DELETE"
    closing = link.close()
    request = await bench.upstream.next()
    lost = request.connection.lost
    assert not closing.called
    bench.clock.advance(5.0)
    await closing
    await lost


@pytest_twisted.ensureDeferred
async def test_draining_tells_who_uses_a_link_and_leaves_no_connection(bench: Bench) -> None:
    link = await bench.link()
    bench.upstream.script = lambda r: r.rpc == "tools/call"
    link.send(call(), "c", CONTEXT)
    await bench.upstream.next()
    lost = [connection.lost for connection in bench.upstream.connections]
    await bench.server.drain()
    assert await bench.listener.heard() == ("lost", Reason.SHUTTING_DOWN)
    for one in lost:
        await one
    while bench.upstream.connections:
        await bench.upstream.connections[0].lost
    assert (await bench.refused()).reason is Reason.SHUTTING_DOWN
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_draining_ends_a_handshake(bench: Bench) -> None:
    bench.upstream.script = lambda r: r.rpc == "initialize"
    linking = bench.server.link(HELLO, bench.listener, CONTEXT, ownStreams=True)
    await bench.upstream.next()
    draining = bench.server.drain()
    with pytest.raises(LinkFailed) as raised:
        await linking
    assert raised.value.reason is Reason.SHUTTING_DOWN
    await draining
    assert bench.listener.quiet


@pytest_twisted.ensureDeferred
async def test_a_server_that_speaks_unasked_loses_its_connection(bench: Bench) -> None:
    bench.upstream.connected = lambda connection: connection.transport.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    )
    bench.upstream.script = lambda r: r.rpc == "initialize" or r.method == b"GET"
    failed = await bench.refused()
    assert failed.reason in (Reason.BAD_ANSWER, Reason.OUTCOME_UNKNOWN)
