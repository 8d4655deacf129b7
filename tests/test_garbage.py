"""
What is left of sessions that are over: nothing that waits for the garbage collector.

Where many come and go it costs more than what it finds is worth (docs/performance.md), and memory
that it alone can free is freed late.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from gateway.config import Configuration, GatewaySettings
from gateway.links.interfaces import Reason
from gateway.service import GatewayService
from gateway.settings import StdioSettings
from gateway.testing.scripted import ScriptedServer

HOST = "127.0.0.1:8000"
INITIALIZE = (
    '{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"%s",'
    '"capabilities":{"sampling":{}},"clientInfo":{"name":"c","version":"1"}}}'
)
INITIALIZED = '{"jsonrpc":"2.0","method":"notifications/initialized"}'
CALL = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"progressToken":1}}}'
PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b}}'


@define(eq=False)
class Talk:
    """One connection to our own listener."""

    factory: Any
    transport: StringTransport = field(factory=StringTransport)
    protocol: Any = None

    def __attrs_post_init__(self) -> None:
        self.protocol = self.factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def send(self, head: str, body: str = "") -> str:
        """Send a request. Returns what came since."""
        self.transport.clear()
        length = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n"
        accept = "application/json, text/event-stream"
        fields = f"Host: {HOST}\r\nAccept: {accept}\r\n{length if body else ''}"
        path, *more = head.split("\r\n")
        data = "\r\n".join([f"{path} HTTP/1.1", *more, fields, body])
        self.protocol.dataReceived(data.encode())
        return self.said

    @property
    def said(self) -> str:
        return self.transport.value().decode()

    def leave(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))
        # As a socket's transport does.
        self.transport.producer = None
        del self.protocol


@define(eq=False)
class Shared:
    """A gateway whose one child all sessions share."""

    server: ScriptedServer
    clock: MemoryReactorClock
    factory: Any

    def talk(self) -> Talk:
        return Talk(self.factory)

    def answer(self, *, progress: bool = False) -> None:
        link = self.server.newest
        sent = link.last("tools/call")
        if progress:
            link.push(PROGRESS % sent.id)
        link.reply(sent)
        link.sent.clear()

    def streamable(self, revision: str = "2025-06-18") -> tuple[Talk, str]:
        """A session. Returns its connection, and the fields by which it is named."""
        talk = self.talk()
        answer = talk.send("POST /servers/one/mcp", INITIALIZE % revision)
        (named,) = (line for line in answer.splitlines() if line.lower().startswith("mcp-session"))
        assert " 202 " in talk.send(f"POST /servers/one/mcp\r\n{named}", INITIALIZED)
        return talk, named


@pytest.fixture
def shared() -> Iterator[Shared]:
    server = ScriptedServer("one")
    settings = StdioSettings(name="one", command="one", isolation="shared")
    server.settings = settings
    clock = MemoryReactorClock()
    gateway = GatewaySettings(listen=("tcp:8000:interface=127.0.0.1",), allowed_hosts=(HOST,))
    configuration = Configuration(servers=(settings,), gateway=gateway, source="test")
    service = GatewayService(configuration, clock, clock=clock, servers=lambda _: server)
    service.startService()
    yield Shared(server, clock, clock.tcpServers[0][1])
    service.stopService()


def ofStreamable(it: Shared) -> None:
    talk, named = it.streamable()
    talk.send(f"POST /servers/one/mcp\r\n{named}", CALL)
    it.answer()
    assert '"result"' in talk.said
    assert " 204 " in talk.send(f"DELETE /servers/one/mcp\r\n{named}")
    talk.leave()


def ofStreams(it: Shared) -> None:
    """Its answer is a numbered stream, beside one for what belongs to no call."""
    talk, named = it.streamable("2025-11-25")
    get = it.talk()
    assert " 200 " in get.send(f"GET /servers/one/mcp\r\n{named}")
    talk.send(f"POST /servers/one/mcp\r\n{named}", CALL)
    it.answer(progress=True)
    assert "event-stream" in talk.said and '"result"' in talk.said
    assert " 204 " in talk.send(f"DELETE /servers/one/mcp\r\n{named}")
    for one in (talk, get):
        one.leave()


def ofOldStream(it: Shared) -> None:
    """HTTP+SSE: the session ends with its stream."""
    stream, talk = it.talk(), it.talk()
    endpoint = stream.send("GET /servers/one/sse").split("data: ")[1].split()[0]
    for body in (INITIALIZE % "2024-11-05", INITIALIZED, CALL):
        assert " 202 " in talk.send(f"POST {endpoint}", body)
    it.answer(progress=True)
    assert '"result"' in stream.said
    stream.leave()
    talk.leave()


def ofRunning(it: Shared) -> None:
    """It ends while a call runs."""
    talk, named = it.streamable()
    asked = it.talk()
    asked.send(f"POST /servers/one/mcp\r\n{named}", CALL)
    assert " 204 " in talk.send(f"DELETE /servers/one/mcp\r\n{named}")
    assert "cancelled" in asked.said
    # What the child still says of the call, it says to nobody.
    it.answer()
    for one in (talk, asked):
        one.leave()


def ofRecovered(it: Shared) -> None:
    """Its link was lost, and made again."""
    talk, named = it.streamable()
    it.server.newest.lose(Reason.SERVER_EXITED)
    talk.send(f"POST /servers/one/mcp\r\n{named}", CALL)
    it.clock.advance(60)
    it.answer()
    assert '"result"' in talk.said
    assert " 204 " in talk.send(f"DELETE /servers/one/mcp\r\n{named}")
    talk.leave()


def left() -> list[object]:
    """What of ours the garbage collector alone finds."""
    before = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        found = list(gc.garbage)
    finally:
        gc.set_debug(before)
        gc.garbage.clear()
    return [
        one
        for one in found
        if (
            one.__module__ if isinstance(one, types.FunctionType) else type(one).__module__
        ).partition(".")[0]
        == "gateway"
    ]


@pytest.mark.parametrize("life", [ofStreamable, ofStreams, ofOldStream, ofRunning, ofRecovered])
def test_nothing_of_a_session_waits_for_the_garbage_collector(
    shared: Shared, life: Callable[[Shared], None]
) -> None:
    # What is made once is not a session's.
    life(shared)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            life(shared)
        assert [type(one).__name__ for one in left()] == []
    finally:
        gc.enable()
