"""
Clients that ask and never read, plain answers: acceptance 13. Prints what they cost.

What streams cost whose clients do not read is in test_backpressure_soak.py.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from posting import connected, posted
from processes import ROOT, Gateway
from raw import RawClient
from soaking import part, wait, watched
from twisted.internet.defer import ensureDeferred

pytestmark = pytest.mark.soak

PATH = "/servers/faulty/mcp"
CLIENTS = 100
SIZE = 200_000


@pytest.mark.acceptance(13)
@pytest_twisted.ensureDeferred
async def test_acceptance_13_a_hundred_clients_that_never_read(tmp_path: Path) -> None:
    """Each has asked for forty answers of 200 KB at once; another one calls all the while."""
    script = str(ROOT / "tests" / "faulty_server.py")
    server = {"command": sys.executable, "args": [script], "isolation": "shared"}
    running = await watched(tmp_path, {"faulty": server})
    gateway = Gateway(running.process, f"http://127.0.0.1:{running.port}")
    times: list[float] = []
    over = False

    async def session(client: RawClient) -> str:
        info = {"name": "reads not", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        client.send(posted(gateway.base, PATH, "", hello))
        return ((await client.response()).header(b"mcp-session-id") or b"").decode()

    def call(named: str, verb: str, **arguments: object) -> bytes:
        params = {"name": verb, "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
        return posted(gateway.base, PATH, named, message)

    async def beside() -> None:
        client: RawClient = await connected(gateway)
        named = await session(client)
        while not over:
            began = time.monotonic()
            client.send(call(named, "echo"))
            assert b'"result"' in (await client.response()).body
            times.append(time.monotonic() - began)
            await wait(0.02)
        client.reset()
        await client.ended

    reading = ensureDeferred(beside())
    await wait(2.0)
    before, alone = await running.held(), part(times, 0.99)
    times.clear()
    clients: list[RawClient] = []
    for _ in range(CLIENTS):
        client: RawClient = await connected(gateway)
        client.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        named = await session(client)
        client.pause()
        client.send(call(named, "long", bytes=SIZE) * 40)
        clients.append(client)
    began = time.monotonic()
    most, first, last = 0, 0.0, 0.0
    while not last and time.monotonic() - began < 60:
        await wait(0.5)
        now, took = await running.held(), time.monotonic() - began
        most = max(most, now["rss"] - before["rss"])
        if now["fds"] < before["fds"] + CLIENTS and not first:
            first = took
        if now["fds"] <= before["fds"]:
            last = took
    over = True
    await reading
    for client in clients:
        client.reset()
        await client.ended
    await running.stop()
    print(
        f"\nnever read: {CLIENTS} clients, {most / CLIENTS:.0f} KiB each at most; cut {first:.0f} "
        f"to {last:.0f} s after the last of them asked; another's p99 {alone:.1f} ms without them, "
        f"{part(times, 0.99):.1f} ms beside them"
    )
    # One answer, and what of it is on its way.
    assert most / CLIENTS <= 256 + SIZE / 1024
    assert 0 < last <= 40
