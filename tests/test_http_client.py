"""The client of HTTP servers, against sockets whose every byte the test says."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from faulty_upstream import FaultyUpstream
from test_streamable_http_link import certificate, twistedIsLate
from twisted.internet import reactor
from twisted.internet.error import ConnectionRefusedError, TimeoutError
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS

from gateway.guard.limits import Limits
from gateway.http1.budget import RATE, RetryBudget
from gateway.http1.client import Fault, HTTPClient, Outgoing, ResponseHead
from gateway.http1.pool import BEAT, SystemTrust
from gateway.http1.urls import Target, parseURL
from gateway.observe.observer import BoundReached, Event

FIELDS = b"Accept: */*\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
GOOD = OK + b"Content-Length: 2\r\n\r\nok"
ENDLESS = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@define(eq=False)
class Answer:
    """What is heard of one request."""

    heads: list[ResponseHead] = field(factory=list)
    body: bytes = b""
    ends: list[Fault | None] = field(factory=list)
    onHead: Callable[[], object] = lambda: None
    onData: Callable[[], object] = lambda: None
    onEnd: Callable[[], object] = lambda: None

    def headReceived(self, head: ResponseHead) -> None:
        self.heads.append(head)
        self.onHead()

    def dataReceived(self, data: bytes) -> None:
        self.body += data
        self.onData()

    def bodyEnded(self) -> None:
        self.ends.append(None)
        self.onEnd()

    def failed(self, fault: Fault) -> None:
        self.ends.append(fault)
        self.onEnd()

    @property
    def good(self) -> bool:
        return (len(self.heads), self.body, self.ends) == (1, b"ok", [None])


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(5)
        self.sock = sock
        self.got = b""

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def finish(self) -> None:
        self.sock.close()

    def cut(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@define(eq=False)
class Observed:
    events: list[Event] = field(factory=list)

    def observed(self, event: Event) -> None:
        self.events.append(event)

    @property
    def bounds(self) -> list[str]:
        return [event.limit for event in self.events if isinstance(event, BoundReached)]


@define(eq=False)
class Bench:
    """A client and a server that does nothing by itself."""

    limits: Limits = field(factory=Limits)
    clock: Clock = field(factory=Clock)
    seen: Observed = field(factory=Observed)
    listening: socket.socket = field(init=False)
    peers: list[Peer] = field(factory=list)
    policy: Any = field(factory=SystemTrust)
    _client: HTTPClient | None = None

    def __attrs_post_init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    @property
    def client(self) -> HTTPClient:
        if self._client is None:
            url = parseURL(f"http://127.0.0.1:{self.port}/mcp")
            self._client = HTTPClient(
                url, "up", self.limits, reactor, self.clock, self.seen, self.policy
            )
        return self._client

    def post(self, body: bytes = b"{}", answer: Answer | None = None) -> tuple[Answer, Outgoing]:
        answer = answer or Answer()
        outgoing = self.client.request(b"POST", FIELDS, body, answer)
        assert outgoing is not None
        assert answer.ends == [], "told from within"
        return answer, outgoing

    async def accept(self) -> Peer:
        """The next connection."""
        made: list[socket.socket] = []

        def come() -> bool:
            with suppress(BlockingIOError):
                made.append(self.listening.accept()[0])
            return bool(made)

        await self.until(come)
        peer = Peer(made[0])
        self.peers.append(peer)
        return peer

    async def asked(self, peer: Peer, body: bytes = b"{}") -> bytes:
        """The whole of the next request on a connection."""
        peer.sock.setblocking(False)
        while not (b"\r\n\r\n" in peer.got and peer.got.endswith(body)):
            try:
                peer.got += peer.sock.recv(1 << 20)
            except BlockingIOError:
                await deferLater(reactor, 0)
        peer.sock.settimeout(5)
        got, peer.got = peer.got, b""
        return got

    async def served(self) -> Peer:
        """A connection that served one request and is idle."""
        answer, _ = self.post()
        peer = await self.accept()
        await self.asked(peer)
        peer.say(GOOD)
        await self.until(lambda: answer.good)
        return peer

    async def until(self, holds: Callable[[], object]) -> None:
        for _ in range(5000):
            if holds():
                return
            await deferLater(reactor, 0.001)
        raise AssertionError("it did not come about")

    async def turns(self, count: int = 20) -> None:
        for _ in range(count):
            await deferLater(reactor, 0)

    def pass_(self, seconds: float) -> None:
        """Time passes, and the connections are looked at as often as they should be."""
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until:
            self.clock.advance(min(BEAT, until - self.clock.seconds()))

    async def noMoreConnections(self) -> None:
        await self.turns()
        with pytest.raises(BlockingIOError):
            self.listening.accept()

    async def isClosed(self, peer: Peer) -> None:
        """The client closed a connection, in order or not."""

        def closed() -> bool:
            peer.sock.setblocking(False)
            try:
                return peer.sock.recv(65536) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        await self.until(closed)

    async def close(self) -> None:
        await self.client.close()
        assert self.clock.getDelayedCalls() == []
        for peer in self.peers:
            peer.sock.close()
        self.listening.close()


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


# Requests and answers.


@pytest_twisted.ensureDeferred
async def test_aRequestGoesOutWholeAndItsAnswerComesBack(bench: Bench) -> None:
    answer, _ = bench.post(b'{"a":1}')
    peer = await bench.accept()
    assert await bench.asked(peer, b'{"a":1}') == (
        b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\nContent-Length: 7\r\n\r\n"
        b'{"a":1}' % bench.port
    )
    peer.say(OK + b"Content-Type: a/b\r\nContent-Length: 2\r\n\r\no")
    await bench.until(lambda: answer.body)
    peer.say(b"k")
    await bench.until(lambda: answer.ends)
    assert answer.good
    assert answer.heads[0].mediaType == b"a/b"
    assert bench.client.reached


@pytest_twisted.ensureDeferred
async def test_aRequestWithoutABodyHasNoLength(bench: Bench) -> None:
    answer = Answer()
    bench.client.tell(b"DELETE", FIELDS, None, answer)
    peer = await bench.accept()
    got = await bench.asked(peer, b"\r\n\r\n")
    assert got.startswith(b"DELETE /mcp HTTP/1.1\r\n")
    assert b"ontent-" not in got
    peer.say(b"HTTP/1.1 204 No Content\r\n\r\n")
    await bench.until(lambda: answer.ends == [None])


@pytest_twisted.ensureDeferred
async def test_connectionsAreUsedOneAfterTheOther(bench: Bench) -> None:
    peer = await bench.served()
    for _ in range(3):
        answer, _ = bench.post()
        await bench.asked(peer)
        peer.say(GOOD)
        await bench.until(lambda answer=answer: answer.good)
    both = [bench.post(), bench.post()]
    other = await bench.accept()
    for one in (peer, other):
        await bench.asked(one)
        one.say(GOOD)
    await bench.until(lambda: all(answer.good for answer, _ in both))
    await bench.noMoreConnections()


@pytest.mark.parametrize(
    ("spelled", "path", "host"),
    [
        ("http://Example.com", b"/", b"Example.com"),
        ("http://example.com:80/a%2Fb", b"/a%2Fb", b"example.com"),
        ("http://example.com:8080/?x=1", b"/?x=1", b"example.com:8080"),
        ("https://example.com:443?x", b"/?x", b"example.com"),
        ("https://example.com:80/a;b", b"/a;b", b"example.com:80"),
        ("http://[::1]:80/x", b"/x", b"[::1]"),
        ("http://[::1]/x", b"/x", b"[::1]"),
    ],
)
def test_whereARequestGoes(spelled: str, path: bytes, host: bytes) -> None:
    target = Target.of(parseURL(spelled))
    assert target.line == b" %b HTTP/1.1\r\nHost: %b\r\n" % (path, host)
    assert Target.at(target.url).line == target.line


@pytest_twisted.ensureDeferred
async def test_aRedirectIsFollowedOnTheSameConnection(bench: Bench) -> None:
    answer, _ = bench.post()
    peer = await bench.accept()
    await bench.asked(peer)
    peer.say(b"HTTP/1.1 307 X\r\nLocation: /other?a\r\nContent-Length: 5\r\n\r\nmoved")
    again = await bench.asked(peer)
    assert again.startswith(b"POST /other?a HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % bench.port)
    peer.say(GOOD)
    await bench.until(lambda: answer.good)
    await bench.noMoreConnections()


@pytest_twisted.ensureDeferred
async def test_aRedirectWhoseBodyDoesNotEndCostsItsConnection(bench: Bench) -> None:
    answer, _ = bench.post()
    peer = await bench.accept()
    await bench.asked(peer)
    peer.say(b"HTTP/1.1 308 X\r\nLocation: /other\r\nContent-Length: 500000\r\n\r\nmoved")
    other = await bench.accept()
    await bench.asked(other)
    await bench.isClosed(peer)
    other.say(GOOD)
    await bench.until(lambda: answer.good)


# Stale connections.


@pytest.mark.acceptance(69)
@pytest.mark.parametrize("how", ["finished", "cut", "spoken"])
@pytest.mark.parametrize("noticed", [False, True])
@pytest_twisted.ensureDeferred
async def test_acceptance_69_aConnectionThatIsKnownToBeStaleIsNotUsed(
    bench: Bench, how: str, noticed: bool
) -> None:
    """Nothing is sent on it, so the call takes another connection, and nobody notices."""
    peer = await bench.served()
    if how == "finished":
        peer.finish()
    elif how == "cut":
        peer.cut()
    else:
        peer.say(GOOD)
    if noticed:
        await bench.turns()
    # Without a turn the reactor has not seen it yet.
    answer, _ = bench.post()
    fresh = await bench.accept()
    await bench.asked(fresh)
    fresh.say(GOOD)
    await bench.until(lambda: answer.good)
    if how == "spoken":
        await bench.isClosed(peer)
        assert peer.got == b""


@pytest.mark.acceptance(69)
@pytest.mark.parametrize("how", [Peer.finish, Peer.cut])
@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nConte", OK + b"Content-Length: 9\r\n\r\n{"]
)
@pytest_twisted.ensureDeferred
async def test_acceptance_69_whatWasSentIsNotSentAgain(
    bench: Bench, how: Callable[[Peer], None], said: bytes
) -> None:
    peer = await bench.served()
    answer, _ = bench.post()
    await bench.asked(peer)
    if said:
        peer.say(said)
        await bench.turns()
    how(peer)
    await bench.until(lambda: answer.ends == [Fault.CUT])
    await bench.noMoreConnections()


@pytest_twisted.ensureDeferred
async def test_whatAServerSaysBetweenTwoAnswersIsNoAnswer(bench: Bench) -> None:
    """A 408 before an idle connection is closed must not be taken for the next answer."""
    peer = await bench.served()
    peer.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    await bench.isClosed(peer)
    answer, _ = bench.post()
    fresh = await bench.accept()
    await bench.asked(fresh)
    fresh.say(GOOD)
    await bench.until(lambda: answer.good)


@pytest_twisted.ensureDeferred
async def test_anIdleConnectionIsKeptForAWhile(bench: Bench) -> None:
    bench.limits = Limits(upstream_keep_alive=10)
    peer = await bench.served()
    bench.pass_(9.5)
    answer, _ = bench.post()
    await bench.asked(peer)
    peer.say(GOOD)
    await bench.until(lambda: answer.good)
    bench.pass_(10 + 2 * BEAT)
    await bench.isClosed(peer)
    await bench.until(lambda: bench.clock.getDelayedCalls() == [])


@pytest_twisted.ensureDeferred
async def test_theConnectionThatWasUsedLastIsUsedFirst(bench: Bench) -> None:
    both = [bench.post(), bench.post()]
    first, second = await bench.accept(), await bench.accept()
    for peer in (first, second):
        await bench.asked(peer)
    second.say(GOOD)
    await bench.until(lambda: both[1][0].good)
    first.say(GOOD)
    await bench.until(lambda: both[0][0].good)
    for _ in range(3):
        answer, _ = bench.post()
        await bench.asked(first)
        first.say(GOOD)
        await bench.until(lambda answer=answer: answer.good)
        bench.pass_(1)
    await bench.isClosed(second)
    await bench.asked((bench.post(), first)[1])


# What is bad costs its connection.


@pytest.mark.acceptance(72)
@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{",
        OK + b"X: " + b"x" * (1 << 20),
        OK + b"Content-Length: 2\r\n\r\nok" + GOOD,
        b"HTTP/1.1 204 X\r\n\r\nok",
        ENDLESS + b"zz\r\n",
        ENDLESS + b"1;" + b"x" * (1 << 20),
        b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_72_aBadAnswerCostsItsConnection(bench: Bench, said: bytes) -> None:
    answer, _ = bench.post()
    peer = await bench.accept()
    await bench.asked(peer)
    peer.sock.setblocking(False)
    left = memoryview(said)
    while left and not answer.ends:
        with suppress(OSError):
            left = left[peer.sock.send(left) :]
        await deferLater(reactor, 0)
    await bench.until(lambda: answer.ends == [Fault.BAD])
    await bench.isClosed(peer)
    assert len(answer.body) <= 2
    again, _ = bench.post()
    fresh = await bench.accept()
    await bench.asked(fresh)
    fresh.say(GOOD)
    await bench.until(lambda: again.good)


@pytest_twisted.ensureDeferred
async def test_aBodyWithoutLengthEndsOnlyInOrder(bench: Bench) -> None:
    for how, end in ((Peer.finish, None), (Peer.cut, Fault.CUT)):
        answer, _ = bench.post()
        peer = await bench.accept()
        await bench.asked(peer)
        peer.say(OK + b"\r\nok")
        await bench.until(lambda answer=answer: answer.body)
        how(peer)
        await bench.until(lambda answer=answer: answer.ends)
        assert answer.ends == [end]


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n", OK + b"Connection: CLOSE\r\n"])
@pytest_twisted.ensureDeferred
async def test_aConnectionTheServerWillCloseIsClosed(bench: Bench, head: bytes) -> None:
    answer, _ = bench.post()
    peer = await bench.accept()
    await bench.asked(peer)
    peer.say(head + b"Content-Length: 2\r\n\r\nok")
    await bench.until(lambda: answer.good)
    await bench.isClosed(peer)


@pytest_twisted.ensureDeferred
async def test_aReceiverThatRaisesEndsItsRequest(
    bench: Bench, expectedFailures: list[dict[str, Any]]
) -> None:
    for where in ("onHead", "onData", "onEnd"):
        answer = Answer(**{where: lambda: 1 / 0})
        bench.post(answer=answer)
        peer = await bench.accept()
        await bench.asked(peer)
        peer.say(GOOD)
        await bench.until(lambda answer=answer: answer.ends)
        if where == "onEnd":
            assert answer.ends == [None]
            peer.finish()
            await bench.turns()
        else:
            await bench.isClosed(peer)
            assert answer.ends == [Fault.BAD]


# Back-pressure.


@pytest_twisted.ensureDeferred
async def test_aPausedBodyIsNotRead(bench: Bench) -> None:
    answer, outgoing = bench.post()
    # Already before there is a connection, and the head comes all the same.
    outgoing.pause()
    peer = await bench.accept()
    await bench.asked(peer)
    peer.say(OK + b"Content-Length: 50000000\r\n\r\n")
    await bench.until(lambda: answer.heads)
    peer.sock.setblocking(False)
    sent = 0
    try:
        for _ in range(1000):
            sent += peer.sock.send(b"x" * 50_000)
            await deferLater(reactor, 0)
    except BlockingIOError:
        pass
    assert sent < 50_000_000
    assert answer.body == b""
    outgoing.resume()
    await bench.until(lambda: len(answer.body) == sent)
    # Silence of ours is none of the server's.
    outgoing.bodyWait = bench.limits.upstream_idle
    outgoing.pause()
    bench.pass_(1000)
    assert answer.ends == []
    outgoing.abort()
    await bench.isClosed(peer)


@pytest_twisted.ensureDeferred
async def test_whoPausesAWholeAnswerGetsItAndLeavesTheConnectionGood(bench: Bench) -> None:
    answer = Answer()
    _, outgoing = bench.post(answer=answer)
    answer.onHead = outgoing.pause
    peer = await bench.accept()
    await bench.asked(peer)
    peer.say(GOOD)
    await bench.until(lambda: answer.good)
    outgoing.pause()
    outgoing.resume()
    again, _ = bench.post()
    await bench.asked(peer)
    peer.say(GOOD)
    await bench.until(lambda: again.good)


@pytest_twisted.ensureDeferred
async def test_aBodyTheServerDoesNotReadAtOnceStillGoesOut(bench: Bench) -> None:
    body = b"x" * 9_999_999 + b"y"
    answer, _ = bench.post(body)
    peer = await bench.accept()
    await bench.turns()
    got = await bench.asked(peer, b"y")
    assert got.partition(b"\r\n\r\n")[2] == body
    peer.say(GOOD)
    await bench.until(lambda: answer.good)
    # The connection is as good as any.
    again, _ = bench.post()
    await bench.asked(peer)
    peer.say(GOOD)
    await bench.until(lambda: again.good)


@pytest_twisted.ensureDeferred
async def test_anAnswerBeforeTheRequestWasOutCostsTheConnection(bench: Bench) -> None:
    answer, _ = bench.post(b"x" * 20_000_000)
    peer = await bench.accept()
    await bench.turns()
    peer.say(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nok")
    await bench.until(lambda: answer.good)
    await bench.isClosed(peer)


# Ends.


@pytest.mark.parametrize("when", ["connecting", "sent", "head", "body"])
@pytest_twisted.ensureDeferred
async def test_aRequestCanBeGivenUpAtAnyTime(bench: Bench, when: str) -> None:
    answer, outgoing = bench.post()
    if when != "connecting":
        peer = await bench.accept()
        await bench.asked(peer)
        if when != "sent":
            peer.say(OK + b"Content-Length: 2\r\n" + (b"\r\no" if when == "body" else b""))
        if when == "body":
            await bench.until(lambda: answer.body)
        await bench.turns()
    outgoing.abort()
    outgoing.abort()
    outgoing.pause()
    outgoing.resume()
    if when != "connecting":
        await bench.isClosed(peer)
    await bench.turns()
    assert answer.ends == []


@pytest.mark.parametrize("where", ["onHead", "onData", "onEnd"])
@pytest_twisted.ensureDeferred
async def test_aReceiverMayGiveUpWhereverItIsCalled(bench: Bench, where: str) -> None:
    answer = Answer()
    _, outgoing = bench.post(answer=answer)
    setattr(answer, where, outgoing.abort)
    peer = await bench.accept()
    await bench.asked(peer)
    peer.say(GOOD)
    await bench.until(lambda: answer.heads)
    await bench.turns()
    assert answer.body == (b"" if where == "onHead" else b"ok")
    assert answer.ends == ([None] if where == "onEnd" else [])
    if where != "onEnd":
        # It is cut even where the rest was here already.
        await bench.isClosed(peer)


@pytest_twisted.ensureDeferred
async def test_aReceiverMayAskAgainAtTheEnd(bench: Bench) -> None:
    answer, second = Answer(), Answer()
    answer.onEnd = lambda: bench.post(answer=second)
    bench.post(answer=answer)
    peer = await bench.accept()
    for _ in range(2):
        await bench.asked(peer)
        peer.say(GOOD)
    await bench.until(lambda: second.good)
    await bench.noMoreConnections()


@pytest_twisted.ensureDeferred
async def test_closingLeavesNothing(bench: Bench) -> None:
    bench.limits = Limits(max_upstream_connections=3)
    first = await bench.served()
    # One is sent, two connect, two wait.
    answers = [bench.post()[0] for _ in range(5)]
    await bench.asked(first)
    heard = Answer()
    bench.client.stream(FIELDS, heard)
    await bench.accept()
    await bench.client.close()
    for peer in bench.peers:
        await bench.isClosed(peer)
    assert all(answer.ends == [] for answer in (*answers, heard))
    assert bench.clock.getDelayedCalls() == []


# Silence.


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_aStreamWhoseHeadDoesNotCome(bench: Bench) -> None:
    answer = Answer()
    bench.client.stream(FIELDS, answer)
    peer = await bench.accept()
    await bench.asked(peer, b"\r\n\r\n")
    bench.pass_(59)
    assert answer.ends == []
    bench.pass_(1 + 2 * BEAT)
    assert answer.ends == [Fault.STALLED]
    assert bench.seen.bounds == ["upstream_first_byte"]
    await bench.isClosed(peer)


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_aStreamThatFallsSilent(bench: Bench) -> None:
    answer = Answer()
    bench.client.stream(FIELDS, answer)
    peer = await bench.accept()
    await bench.asked(peer, b"\r\n\r\n")
    peer.say(ENDLESS)
    await bench.until(lambda: answer.heads)
    for n in range(3):
        bench.pass_(299)
        peer.say(b"1\r\n:\r\n")
        await bench.until(lambda n=n: len(answer.body) == n + 1)
    assert answer.ends == []
    bench.pass_(300 + 2 * BEAT)
    assert answer.ends == [Fault.STALLED]
    assert bench.seen.bounds == ["upstream_idle"]
    await bench.isClosed(peer)


@pytest_twisted.ensureDeferred
async def test_aRequestMayTakeAsLongAsItsAskerWaits(bench: Bench) -> None:
    answer, outgoing = bench.post()
    peer = await bench.accept()
    await bench.asked(peer)
    bench.pass_(3000)
    peer.say(OK + b"Content-Length: 2\r\n\r\no")
    await bench.until(lambda: answer.body)
    bench.pass_(3000)
    # Unless it says that nothing but the network holds the body up.
    outgoing.bodyWait = bench.limits.upstream_idle
    bench.pass_(BEAT)
    assert answer.ends == [Fault.STALLED]


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_aPeerThatIsGoneIsNoticedByTheSystem(bench: Bench) -> None:
    bench.limits = Limits(upstream_half_open=30)
    peer = await bench.served()
    port = peer.sock.getpeername()[1]
    (ours,) = (
        reader.socket
        for reader in reactor.getReaders()
        if hasattr(reader, "getPeer") and reader.getHost().port == port
    )
    tcp = socket.IPPROTO_TCP
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    probes = ours.getsockopt(tcp, socket.TCP_KEEPINTVL) * ours.getsockopt(tcp, socket.TCP_KEEPCNT)
    assert ours.getsockopt(tcp, socket.TCP_KEEPIDLE) + probes == 30
    assert ours.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 30_000
    assert ours.getsockopt(tcp, socket.TCP_NODELAY) == 1


@pytest_twisted.ensureDeferred
async def test_thatMayTakeVeryLong(bench: Bench) -> None:
    bench.limits = Limits(upstream_half_open=1e9)
    await bench.served()


# Connecting.


def memory(
    url: str = "http://127.0.0.1:9/mcp", **limits: Any
) -> tuple[HTTPClient, MemoryReactorClock, Clock, Observed]:
    clock, connecting, seen = Clock(), MemoryReactorClock(), Observed()
    client = HTTPClient(parseURL(url), "up", Limits(**limits), connecting, clock, seen)
    return client, connecting, clock, seen


def refuse(connecting: MemoryReactorClock, error: Exception | None = None) -> None:
    """The server refuses the newest connect."""
    connecting.tcpClients[-1][2].clientConnectionFailed(
        connecting.connectors[-1], Failure(error or ConnectionRefusedError())
    )


@pytest.mark.acceptance(68)
def test_acceptance_68_aRefusedConnectIsTriedOnceMore() -> None:
    client, connecting, clock, _ = memory()
    answer = Answer()
    client.request(b"POST", FIELDS, b"{}", answer)
    refuse(connecting)
    assert len(connecting.tcpClients) == 2
    assert answer.ends == []
    refuse(connecting)
    assert answer.ends == [Fault.UNSENT]
    assert client.reached is False
    assert len(connecting.tcpClients) == 2
    assert clock.getDelayedCalls() == []


@pytest.mark.acceptance(68)
def test_acceptance_68_whatIsTriedAgainHasABudget() -> None:
    client, connecting, clock, _ = memory()
    for _ in range(200):
        answer = Answer()
        client.request(b"POST", FIELDS, b"{}", answer)
        while not answer.ends:
            refuse(connecting)
    # Ten at once, and a fifth of all.
    assert 200 + 40 <= len(connecting.tcpClients) <= 200 + 50
    clock.advance(1)
    before = len(connecting.tcpClients)
    for _ in range(50):
        answer = Answer()
        client.request(b"POST", FIELDS, b"{}", answer)
        while not answer.ends:
            refuse(connecting)
    assert 50 + 10 + 9 <= len(connecting.tcpClients) - before <= 50 + 10 + 11


def test_theBudgetIsBounded() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    for _ in range(100_000):
        budget.attempted()
    clock.advance(1000)
    spent = 0
    while budget.spend():
        spent += 1
    assert spent == 100 + RATE


def test_aConnectThatTookTooLongIsNotTriedAgain() -> None:
    client, connecting, clock, seen = memory(connect_timeout=5)
    answer = Answer()
    client.request(b"POST", FIELDS, b"{}", answer)
    clock.advance(4)
    refuse(connecting)
    # Both tries together have the time.
    clock.advance(1)
    assert answer.ends == [Fault.UNSENT]
    assert seen.bounds == ["connect_timeout"]
    assert len(connecting.tcpClients) == 2
    answer = Answer()
    client.request(b"POST", FIELDS, b"{}", answer)
    refuse(connecting, TimeoutError())
    assert answer.ends == [Fault.UNSENT]
    assert len(connecting.tcpClients) == 3
    assert clock.getDelayedCalls() == []


def test_aNameThatCannotBeAskedForFailsInATurnOfItsOwn() -> None:
    client, connecting, clock, _ = memory(f"http://{'a' * 64}.example/")
    answer = Answer()
    outgoing = client.request(b"POST", FIELDS, b"{}", answer)
    assert outgoing is not None
    assert answer.ends == []
    clock.advance(0)
    assert answer.ends == [Fault.UNSENT]
    assert connecting.tcpClients == []
    given = Answer()
    outgoing = client.request(b"POST", FIELDS, b"{}", given)
    assert outgoing is not None
    outgoing.abort()
    clock.advance(0)
    assert given.ends == []
    assert clock.getDelayedCalls() == []


# TLS.


@twistedIsLate
@pytest.mark.parametrize("announced", [True, False])
@pytest_twisted.ensureDeferred
async def test_overTLSABodyWithoutLengthEndsOnlyWhereThatIsAnnounced(announced: bool) -> None:
    """RFC 9112 section 9.8."""
    trusted = certificate()
    upstream = FaultyUpstream()
    upstream.start(reactor, trusted.options())
    asked: list[Any] = []
    upstream.script = lambda request: asked.append(request) or True
    clock = Clock()
    policy = BrowserLikePolicyForHTTPS(trustRoot=trusted)
    client = HTTPClient(parseURL(upstream.url), "up", Limits(), reactor, clock, Observed(), policy)
    answer = Answer()
    client.request(b"POST", FIELDS, b"{}", answer)
    request = await upstream.next()
    request.raw(OK + b"\r\nok")
    for _ in range(2000):
        if answer.body:
            break
        await deferLater(reactor, 0.001)
    request.finish() if announced else request.cut()
    for _ in range(2000):
        if answer.ends:
            break
        await deferLater(reactor, 0.001)
    assert answer.ends == [None if announced else Fault.CUT]
    await client.close()
    await upstream.close()


@twistedIsLate
@pytest_twisted.ensureDeferred
async def test_overTLSALargeBodyGoesOutInPieces() -> None:
    trusted = certificate()
    upstream = FaultyUpstream()
    upstream.start(reactor, trusted.options())
    bodies: list[bytes] = []

    def script(request: Any) -> bool:
        bodies.append(request.body)
        request.reply(200, b"ok", type=b"text/plain")
        return True

    upstream.script = script
    policy = BrowserLikePolicyForHTTPS(trustRoot=trusted)
    clock = Clock()
    client = HTTPClient(parseURL(upstream.url), "up", Limits(), reactor, clock, Observed(), policy)
    body = bytes(range(256)) * 16 * 1024
    # The second one over the connection of the first.
    for _ in range(2):
        answer = Answer()
        client.request(b"POST", FIELDS, body, answer)
        for _ in range(2000):
            if answer.ends:
                break
            await deferLater(reactor, 0.001)
        assert answer.good
    assert bodies == [body, body]
    await client.close()
    await upstream.close()
