"""What an adversary found: each of these once crossed, hung, leaked or ended what it must not."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from faulty_upstream import FaultyUpstream
from live import Live, Start, behind, faulty
from live import live as live
from live import upstream as upstream
from processes import startGateway
from raw import RawClient
from stdio_support import CONTEXT, FAULTY, HELLO, Bench, Listener, call
from twisted.internet import reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.process import reapAllProcesses

from gateway.observe.observer import CallAnswered


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    yield one
    await one.end()


# Children.


class _First(FileDescriptor):
    """Is heard before everything that becomes ready after `ring`, in one turn of the reactor."""

    def __init__(self, then: Any) -> None:
        super().__init__(reactor)
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._then = then
        self.startReading()

    def fileno(self) -> int:
        return self._ear.fileno()

    def ring(self) -> None:
        self._bell.send(b"!")

    def doRead(self) -> None:
        self._ear.recv(1)
        self._then()

    def end(self) -> None:
        self.stopReading()
        self._bell.close()
        self._ear.close()


@pytest_twisted.ensureDeferred
async def test_a_child_that_ends_takes_none_with_it_that_starts_meanwhile(bench: Bench) -> None:
    """The end of its pipes, told late, once went to who had their descriptors by then."""
    link, old = await bench.link()
    link.send(call(1, "self"), object(), CONTEXT)
    pid = (await old.structured(1))["pid"]
    young = Listener()
    rung: Deferred[None] = Deferred()
    started: list[Deferred[Any]] = []

    def spawn() -> None:
        reapAllProcesses()
        assert old.losses
        started.append(bench.server.link(HELLO, young, CONTEXT))
        rung.callback(None)

    first = _First(spawn)
    first.ring()
    # Its pipes hang up now; the reactor will be told of it after the bell.
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - milliseconds
    await rung
    first.end()
    other = await started[0]
    other.send(call(1, "echo", a=1), object(), CONTEXT)
    assert await young.structured(1) == {"a": 1}
    assert young.losses == []


# Connections to a server.


def hello(revision: str) -> dict[str, Any]:
    params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "a"}}
    return {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}


async def connected(gateway: Live) -> RawClient:
    port = gateway.service.ports[0].getHost().port
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    return await connectProtocol(endpoint, RawClient())


def ask(
    method: str, base: str, server: str, session: str = "", body: bytes = b"", **headers: str
) -> bytes:
    fields = {"Host": base.removeprefix("http://"), "Accept": "*/*", **headers}
    if session:
        fields["Mcp-Session-Id"] = session
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    path = f"/servers/{server}/mcp" if server else "/mcp"
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest_twisted.ensureDeferred
async def test_a_stream_nobody_waits_for_any_more_is_not_asked_for(
    live: Start, upstream: FaultyUpstream
) -> None:
    """A server that never answered a GET kept one connection for every client that left."""
    upstream.script = lambda request: request.method == b"GET"
    gateway = await live(behind(upstream.url))
    session = await gateway.session("behind")
    client = await connected(gateway)
    client.send(ask("GET", gateway.base, "behind", session))
    while (asked := await upstream.next()).method != b"GET":
        pass
    lost = asked.connection.lost
    client.reset()
    await lost.addTimeout(10, reactor)


@pytest_twisted.ensureDeferred
async def test_a_server_that_never_accepts_what_it_is_told_loses_the_connection(
    live: Start, upstream: FaultyUpstream
) -> None:
    """Each notification held a connection until none was left for anybody."""
    upstream.script = lambda request: request.rpc == "notifications/x"
    gateway = await live(behind(upstream.url, handshake_timeout=0.2), queue_wait=0.1)
    session = await gateway.session("behind")
    told = await gateway.post("behind", {"jsonrpc": "2.0", "method": "notifications/x"}, session)
    assert told.status == 202
    while (asked := await upstream.next()).rpc != "notifications/x":
        pass
    await asked.connection.lost.addTimeout(10, reactor)


@pytest_twisted.ensureDeferred
async def test_nobody_cancels_a_call_of_another_client(
    live: Start, upstream: FaultyUpstream
) -> None:
    """Without sessions all clients share a link, and ids from 1 up are everybody's."""
    upstream.session = None
    upstream.script = lambda request: request.rpc == "tools/call"
    gateway = await live(behind(upstream.url))
    await gateway.initialize("behind")
    calling = ensureDeferred(gateway.call("behind", "", "x"))
    while (held := await upstream.next()).rpc != "tools/call":
        pass
    told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert (await gateway.post("behind", told)).status == 202
    assert "notifications/cancelled" not in [request.rpc for request in upstream.requests]
    held.result({"fine": True})
    assert (await calling).message == {"jsonrpc": "2.0", "id": 1, "result": {"fine": True}}


@pytest_twisted.ensureDeferred
async def test_a_call_without_session_finishes_while_it_drains(
    live: Start, upstream: FaultyUpstream
) -> None:
    upstream.session = None
    upstream.script = lambda request: request.rpc == "tools/call"
    gateway = await live(behind(upstream.url), drain_grace=10.0)
    await gateway.initialize("behind")
    calling = ensureDeferred(gateway.call("behind", "", "x"))
    while (held := await upstream.next()).rpc != "tools/call":
        pass
    stopping = gateway.service.stopService()
    held.result({"fine": True})
    assert (await calling).message["result"] == {"fine": True}
    await stopping


@pytest_twisted.ensureDeferred
async def test_a_call_without_session_is_told_of_the_shutdown(
    live: Start, upstream: FaultyUpstream
) -> None:
    upstream.session = None
    upstream.script = lambda request: request.rpc == "tools/call"
    gateway = await live(behind(upstream.url), drain_grace=0.1)
    await gateway.initialize("behind")
    calling = ensureDeferred(gateway.call("behind", "", "x"))
    while (await upstream.next()).rpc != "tools/call":
        pass
    await gateway.service.stopService()
    assert (await calling).reason == "shutting_down"


# The end.


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_no_reader_that_does_not_read(live: Start) -> None:
    """An answer in the buffers of a connection kept the whole gateway from ending."""
    gateway = await live(faulty(), hang_up_wait=0.3)
    session = await gateway.session("faulty")
    client = await connected(gateway)
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%b}' % (
        b'{"name":"long","arguments":{"bytes":12000000}}'
    )
    client.pause()
    client.send(ask("POST", gateway.base, "faulty", session, body, Accept="application/json"))
    while not gateway.recorder.of(CallAnswered):
        await gateway.request("GET", "/healthz")
    await gateway.service.stopService().addTimeout(20, reactor)
    assert "hang_up_wait" in gateway.recorder.bounds
    client.reset()
    await client.ended


@pytest_twisted.ensureDeferred
async def test_a_second_signal_ends_the_gateway_at_once() -> None:
    gateway = await startGateway("--", sys.executable, FAULTY)
    process = gateway.process
    try:
        port = int(gateway.base.rpartition(":")[2])
        client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), RawClient())
        client.send(ask("POST", gateway.base, "", body=json.dumps(hello("2025-11-25")).encode()))
        session = (await client.response()).header(b"mcp-session-id")
        assert session is not None
        hang = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hang"}}'
        client.send(ask("POST", gateway.base, "", session.decode(), hang))
        assert (await client.head()).status == 200
        process.kill()
        await process.line(r"TCP Port \d+ Closed")
        process.kill()
        await process.ended.addTimeout(10, reactor)
        await client.ended
    finally:
        if not process.ended.called:
            process.kill(signal.SIGKILL)
            await process.ended
    assert "Traceback" not in process.err


# Resumption.


@pytest_twisted.ensureDeferred
async def test_a_stream_of_which_nothing_is_left_is_not_resumed(live: Start) -> None:
    """An empty stream in answer sent the client in circles."""
    gateway = await live(faulty())
    answer = await gateway.post("faulty", hello("2025-11-25"))
    (session,) = answer.headers["Mcp-Session-Id"]
    called = await gateway.call("faulty", session, "echo", a=1)
    ids = [line[4:].decode() for line in called.body.split(b"\n") if line.startswith(b"id: ")]
    fields = {"Mcp-Session-Id": session, "Accept": "text/event-stream"}
    path = "/servers/faulty/mcp"
    some = await gateway.request("GET", path, None, {**fields, "Last-Event-ID": ids[0]})
    assert (some.status, some.message) == (200, called.message)
    none = await gateway.request("GET", path, None, {**fields, "Last-Event-ID": ids[-1]})
    assert none.status == 405
