"""Our own listener in memory: what it lets a connection cost in time and in memory."""

from __future__ import annotations

import tracemalloc

import pytest
from attrs import define, field
from raw import hello, rpc
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from gateway.config import Configuration, GatewaySettings
from gateway.guard.limits import Limits
from gateway.service import GatewayService
from gateway.testing import ScriptedServer

IDLE = 60.0
"""Seconds after which twisted.web hangs up on a client of which it still waits for something."""

PORT = 8080


@define(eq=False)
class Listener:
    """A gateway that listens in memory, and connections to it; time is a Clock's."""

    limits: Limits = field(factory=Limits)
    server: ScriptedServer = field(factory=lambda: ScriptedServer("one"))
    clock: MemoryReactorClock = field(factory=MemoryReactorClock)
    service: GatewayService = field(init=False)
    _connected: list[Protocol] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        listen = (f"tcp:{PORT}:interface=127.0.0.1",)
        self.service = GatewayService(
            Configuration(
                servers=(self.server.settings,),
                gateway=GatewaySettings(listen=listen, limits=self.limits),
                source="memory",
            ),
            self.clock,
            clock=self.clock,
            servers=lambda _: self.server,
        )
        self.service.startService()

    def connect(self) -> tuple[Protocol, StringTransport]:
        ours, theirs = (IPv4Address("TCP", "127.0.0.1", port) for port in (PORT, 50_000))
        transport = StringTransport(ours, theirs)
        protocol = self.clock.tcpServers[-1][1].buildProtocol(theirs)
        protocol.makeConnection(transport)
        self._connected.append(protocol)
        return protocol, transport

    def ask(self, data: bytes) -> StringTransport:
        protocol, transport = self.connect()
        protocol.dataReceived(data)
        return transport

    def stop(self) -> None:
        stopped = self.service.stopService()
        self.clock.pump([0.1] * 10)
        for protocol in self._connected:
            protocol.connectionLost(Failure(ConnectionDone()))
        self.clock.pump([1.0] * 10)
        assert stopped.called
        assert not self.clock.getDelayedCalls()


def request(method: bytes, target: bytes, body: bytes = b"", *lines: bytes) -> bytes:
    head = [b"%b %b HTTP/1.1" % (method, target), b"Host: 127.0.0.1:%d" % PORT, *lines]
    if method == b"POST":
        head.append(b"Content-Type: application/json")
        if body:
            head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + body


WHOLE = request(b"POST", b"/mcp", hello())


@pytest.mark.parametrize("come", [b"", WHOLE[:30], WHOLE[:-1]], ids=["nothing", "head", "body"])
def test_who_sends_nothing_more_is_hung_up_after_a_minute(come: bytes) -> None:
    """A head or a body that only drips is not: its time counts from the last byte."""
    listener = Listener()
    transport = listener.ask(come)
    listener.clock.advance(IDLE - 1)
    assert not transport.disconnecting
    listener.clock.advance(2)
    assert transport.disconnecting or transport.disconnected
    assert transport.value() == b""
    assert listener.server.handshakes == 0
    listener.stop()


def test_a_connection_that_is_kept_alive_is_hung_up_too() -> None:
    listener = Listener()
    transport = listener.ask(request(b"GET", b"/healthz"))
    assert transport.value().startswith(b"HTTP/1.1 200 ")
    listener.clock.advance(IDLE - 1)
    assert not transport.disconnecting
    listener.clock.advance(2)
    assert transport.disconnecting
    listener.stop()


def test_streams_and_running_calls_have_no_such_end() -> None:
    """Nine times as long, without a byte of the client's: a stream of each kind, and a call."""
    listener = Listener(Limits(head_wait=1000.0, heartbeat=15.0))
    opened = listener.ask(WHOLE)
    head = opened.value().partition(b"\r\n\r\n")[0]
    (session,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"mcp-session-")]
    get = listener.ask(request(b"GET", b"/mcp", b"", session))
    sse = listener.ask(request(b"GET", b"/sse"))
    calling = listener.ask(request(b"POST", b"/mcp", rpc("tools/call", 7), session))
    listener.clock.pump([1.0] * int(9 * IDLE))
    for stream in (get, sse):
        assert stream.value().count(b":\n\n") == 9 * IDLE // 15
        assert not stream.disconnecting
    assert calling.value() == b""
    (link,) = listener.server.open
    link.reply(link.last("tools/call"), b'"late"')
    assert calling.value().endswith(b'{"jsonrpc":"2.0","id":7,"result":"late"}')
    listener.stop()


def test_of_a_body_over_the_limit_nothing_more_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("bodies are kept in no file")

    monkeypatch.setattr("tempfile.TemporaryFile", opened)
    listener = Listener(Limits(max_body=1000))
    protocol, transport = listener.connect()
    protocol.dataReceived(request(b"POST", b"/mcp", b"", b"Transfer-Encoding: chunked"))
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(256):
            protocol.dataReceived(chunk)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 256 * 1024, "of 16 MiB"
    protocol.dataReceived(b"0\r\n\r\n")
    assert transport.value().startswith(b"HTTP/1.1 413 ")
    assert b'"code":-32000' in transport.value()
    assert listener.server.handshakes == 0
    listener.stop()
