"""
HTTP+SSE clients that come, call, vanish and come again, many at once: acceptance 78, 81. Prints
its figures.

GATEWAY_SOAK_ROUNDS: how many sessions each of a hundred clients has, one after the other.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest
import pytest_twisted
from live import faulty, startLive
from posting import connected, posted
from raw import RawClient
from twisted.internet.defer import ensureDeferred, gatherResults

pytestmark = pytest.mark.soak

CLIENTS = 100
SSE = "/servers/faulty/sse"
UNKNOWN = "/servers/faulty/messages?session_id=" + "x" * 43


@pytest.mark.acceptance(78, 81)
@pytest_twisted.ensureDeferred
async def test_acceptance_81_a_hundred_clients_that_come_and_go() -> None:
    """
    All with the same ids and tokens, at one shared child. Every other time they vanish amid a call,
    whose answer is then nobody's; they come again, and ask for their old session, too.
    """
    rounds = int(os.environ.get("GATEWAY_SOAK_ROUNDS", 20))
    gateway = await startLive(faulty(isolation="shared"))
    seen: Counter[str] = Counter()

    async def told(path: str, message: object) -> int:
        poster: RawClient = await connected(gateway)
        poster.send(posted(gateway.base, path, "", message))
        answer = await poster.response()
        poster.close()
        await poster.ended
        if answer.status == 404:
            assert answer.json["error"]["code"] == -32001
        else:
            assert (answer.status, answer.body) == (202, b"")
        return answer.status

    async def client(name: str) -> None:
        old = UNKNOWN
        for number in range(rounds):
            stream: RawClient = await connected(gateway)
            stream.send(posted(gateway.base, SSE, "", None, "GET"))
            assert (await stream.head()).status == 200
            event = await stream.event()
            assert event is not None and event.event == b"endpoint" and event.data is not None
            path = event.data.decode()
            # A path on the origin the client came to.
            assert path.startswith("/servers/faulty/messages?session_id=")
            info = {"name": name, "version": "1"}
            params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": info}
            hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
            assert await told(path, hello) == 202
            assert "result" in await stream.message()
            assert (
                await told(path, {"jsonrpc": "2.0", "method": "notifications/initialized"}) == 202
            )
            for id in range(2, 6):
                token = f"{name} {number} {id}"
                call = {"name": "progress", "arguments": {"count": 2, "token": token}}
                call["_meta"] = {"progressToken": 1}
                message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call}
                assert await told(path, message) == 202
                for step in (1, 2):
                    said = await stream.message()
                    assert said["params"] == {"progressToken": 1, "progress": step, "total": 2}
                assert (await stream.message())["id"] == id
                call = {"name": "echo", "arguments": {"token": token}}
                message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call}
                assert await told(path, message) == 202
                said = await stream.message()
                assert (said["id"], said["result"]["structuredContent"]) == (id, {"token": token})
                seen["calls"] += 2
            assert await told(old, hello) == 404
            seen["404"] += 1
            if number % 2:
                call = {"name": "sleep", "arguments": {"seconds": random.random() / 10}}
                message = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": call}
                assert await told(path, message) == 202
                seen["vanished in a call"] += 1
            stream.reset()
            await stream.ended
            seen["sessions"] += 1
            old = path

    began = time.monotonic()
    names = [f"client {number}" for number in range(CLIENTS)]
    await gatherResults([ensureDeferred(client(name)) for name in names], consumeErrors=True)
    took = time.monotonic() - began
    await gateway.stop()
    print(f"\nHTTP+SSE: {CLIENTS} clients, {dict(seen)} in {took:.1f} s; nothing crossed")
