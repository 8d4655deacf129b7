"""
Clients that reset their connection, wherever that may be: acceptance 47. Prints its figures.

GATEWAY_SOAK_RESETS: how many in each phase, of each proxy. GATEWAY_SOAK_SEED: replays a run.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
import pytest_twisted
from faulty_upstream import FaultyUpstream, Received
from posting import connected, posted
from processes import ROOT, Gateway
from raw import RawClient
from soaking import Watched, loaded, wait, watched
from twisted.internet import reactor

pytestmark = pytest.mark.soak


def acts(request: Received) -> bool:
    """As the scripted child does: `progress` comes in events, `sleep` a moment later."""
    if request.rpc != "tools/call":
        return False
    name = request.message["params"]["name"]
    if name == "progress":
        request.stream()
        for step in range(5):
            params = {"progressToken": 1, "progress": step}
            told = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
            request.event(told, id=str(step))
        request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {}}, id="5")
        request.end()
    else:
        request.result({})
    return True


@pytest.mark.acceptance(47)
@pytest_twisted.ensureDeferred
async def test_acceptance_47_a_thousand_resets_in_each_phase(tmp_path: Path) -> None:
    count = int(os.environ.get("GATEWAY_SOAK_RESETS", 1000))
    seed = int(os.environ.get("GATEWAY_SOAK_SEED", random.randrange(2**32)))
    upstream = FaultyUpstream()
    upstream.script = acts
    upstream.start(reactor)
    child = {"command": sys.executable, "args": [str(ROOT / "tests" / "faulty_server.py")]}
    servers = {"child": {**child, "isolation": "shared"}, "far": {"url": upstream.url}}
    gateway = await watched(tmp_path, servers)
    try:
        for name in servers:
            told = {"path": f"/servers/{name}/mcp", "count": 5, "lanes": 2, "seed": seed}
            await loaded(gateway.port, "resets", **told)
        base = await quiet(gateway)
        for name in servers:
            path = f"/servers/{name}/mcp"
            told = {"path": path, "count": count, "lanes": 8, "seed": seed}
            ran = await loaded(gateway.port, "resets", **told)
            print(f"\nresets, GATEWAY_SOAK_SEED={seed}, {path}: {ran['done']}", end="")
        ended = await sse(gateway, count, random.Random(seed))
        print(f"\nresets, /servers/child/sse: {ended}")
        now = await quiet(gateway)
        print(f"resets: {base} -> {now}")
        assert now["sessions"] == 0 and now["fds"] <= base["fds"] + 4
        assert now["threads"] == base["threads"]
        assert "Unhandled" not in gateway.process.err
        await gateway.stop()
    finally:
        await upstream.close()


async def quiet(gateway: Watched) -> dict[str, int]:
    """What it holds a moment after nobody asks."""
    for _ in range(100):
        now = await gateway.held()
        if not now["sessions"]:
            break
        await wait(0.1)
    await wait(5.0)
    return await gateway.held()


async def sse(watched: Watched, count: int, dice: random.Random) -> dict[str, int]:
    """HTTP+SSE: the stream is reset before, amid and after its endpoint, with a call or without."""
    gateway = Gateway(watched.process, f"http://127.0.0.1:{watched.port}")
    info = {"name": "r", "version": "1"}
    params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": info}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "progress"}}
    done = {"before the endpoint": 0, "after it": 0, "amid a POST": 0, "amid the answers": 0}
    get = posted(gateway.base, "/servers/child/sse", "", None, "GET")
    for number in range(count * len(done)):
        phase = list(done)[number % len(done)]
        stream: RawClient = await connected(gateway)
        if phase == "before the endpoint":
            stream.send(get[: dice.randint(1, len(get))])
        else:
            stream.send(get)
            assert (await stream.head()).status == 200
            event = await stream.event()
            assert event is not None and event.data is not None
            path = event.data.decode()
        if phase in ("amid a POST", "amid the answers"):
            poster: RawClient = await connected(gateway)
            poster.send(posted(gateway.base, path, "", hello))
            assert (await poster.response()).status == 202
            data = posted(gateway.base, path, "", call)
            if phase == "amid a POST":
                poster.send(data[: dice.randint(1, len(data))])
            else:
                poster.send(data)
                assert (await poster.response()).status == 202
                await stream.message()
            poster.reset()
        stream.reset()
        done[phase] += 1
    return done
