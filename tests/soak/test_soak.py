"""Long runs, each of which prints its figures: `pytest -m soak -s tests/soak`."""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from live import Live, startLive
from posting import connected, posted
from processes import ROOT, Gateway, start, startGateway
from raw import RawClient
from stdio_support import children
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

from gateway.settings import StdioSettings

pytestmark = pytest.mark.soak

# Starts ten times as fast as the scripted server does, and needs a tenth of its memory.
_TINY = (
    "import sys,re\n"
    "for l in sys.stdin:\n"
    " m=re.search(r'\"id\":(\\d+)',l)\n"
    ' if m:print(\'{"jsonrpc":"2.0","id":\'+m[1]+\',"result":{"protocolVersion":"2025-06-18"\''
    '\',"capabilities":{},"serverInfo":{"name":"t","version":"1"}}}\',flush=True)\n'
    " elif 'notifications/shout' in l:print('{\"jsonrpc\":\"2.0\",'"
    '\'"method":"notifications/message",\''
    '\'"params":{"level":"info","data":"hear"}}\',flush=True)\n'
)


def tiny(name: str = "tiny") -> StdioSettings:
    """A server that answers and, on `notifications/shout`, sends a log message."""
    return StdioSettings(name=name, command=sys.executable, args=("-I", "-S", "-c", _TINY))


def rss() -> float:
    """Resident memory of this process, in KiB."""
    gc.collect()
    text = Path("/proc/self/status").read_text()
    return float(text.partition("VmRSS:")[2].split()[0])


def held(gateway: Live) -> dict[str, int]:
    """What must not grow."""
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "timers": len([c for c in reactor.getDelayedCalls() if c.active()]),  # type: ignore[attr-defined]
        "sessions": len(gateway.service.registry),
        "children": len(children()),
    }


@pytest.mark.acceptance(44)
@pytest_twisted.ensureDeferred
async def test_acceptance_44_sessions_that_come_and_go_leave_nothing() -> None:
    gateway = await startLive(tiny())

    async def lane(sessions: int) -> None:
        client = await connected(gateway)
        for number in range(sessions):
            session = await _opened(client, gateway, "2025-11-25" if number % 2 else "2025-06-18")
            stream = await connected(gateway)
            stream.send(posted(gateway.base, "/servers/tiny/mcp", session, None, "GET"))
            assert (await stream.head()).status == 200
            ping = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
            client.send(posted(gateway.base, "/servers/tiny/mcp", session, ping))
            assert b'"id":7' in (await client.response()).body
            if number % 3:
                client.send(posted(gateway.base, "/servers/tiny/mcp", session, None, "DELETE"))
                assert (await client.response()).status == 204
                while await stream.event() is not None:
                    pass
                stream.close()
                await stream.ended
            else:
                # The client vanishes with its stream, the session is ended by another.
                stream.reset()
                await stream.ended
                client.send(posted(gateway.base, "/servers/tiny/mcp", session, None, "DELETE"))
                assert (await client.response()).status == 204
        client.close()
        await client.ended

    async def cycle(sessions: int) -> None:
        await gatherResults([ensureDeferred(lane(sessions // 6)) for _ in range(6)])
        # The gateway's side of the connections, the last children and the timers that tick once
        # more take a moment: what is held is what is held for a second.
        until = time.monotonic() + 20
        seen, since = held(gateway), time.monotonic()
        while time.monotonic() - since < 1.0:
            assert time.monotonic() < until, (children(), held(gateway))
            await pause(0.05)
            if held(gateway) != seen or len(children()) > 1:
                seen, since = held(gateway), time.monotonic()

    await cycle(60)
    base, memory = held(gateway), rss()
    print(f"\nchurn: base {base}, {memory:.0f} KiB")
    for number in range(3):
        await cycle(300)
        now = held(gateway)
        print(f"churn {number + 1}: 300 sessions, {now}, {rss() - memory:+.0f} KiB")
        assert now == base
    assert rss() - memory < 4096
    await gateway.stop()


@pytest.mark.acceptance(82)
@pytest_twisted.ensureDeferred
async def test_acceptance_82_idle_sessions_with_a_stream_are_small_and_reached() -> None:
    """Acceptance 82 at a tenth: each session has a stream and a child of its own."""
    count = int(os.environ.get("GATEWAY_SOAK_STREAMS", 500))
    gateway = await startLive(tiny())
    before = rss()
    client = await connected(gateway)
    streams: list[RawClient] = []
    sessions: list[str] = []
    for _ in range(count):
        session = await _opened(client, gateway, "2025-06-18")
        stream = await connected(gateway)
        stream.send(posted(gateway.base, "/servers/tiny/mcp", session, None, "GET"))
        assert (await stream.head()).status == 200
        streams.append(stream)
        sessions.append(session)
    each = (rss() - before) / count
    print(f"\nstreams: {count} sessions with one each: {each:.1f} KiB a session, client included")
    shout = {"jsonrpc": "2.0", "method": "notifications/shout"}
    began = time.monotonic()
    for session in sessions:
        client.send(posted(gateway.base, "/servers/tiny/mcp", session, shout))
        assert (await client.response()).status == 202
    for stream in streams:
        assert (await stream.message())["params"]["data"] == "hear"
    print(f"streams: all heard the broadcast in {time.monotonic() - began:.2f} s")
    assert each < 100
    for stream in streams:
        stream.close()
        await stream.ended
    client.close()
    await client.ended
    began = time.monotonic()
    await gateway.stop()
    print(f"streams: stopped in {time.monotonic() - began:.2f} s")


@pytest.mark.acceptance(36)
@pytest_twisted.ensureDeferred
async def test_acceptance_36_not_found_takes_as_long_for_whatever_is_not_found() -> None:
    """Acceptance 36, time: unknown, deleted and another server's session answer alike."""
    tries = int(os.environ.get("GATEWAY_SOAK_TRIES", 5_000))
    gateway = await startLive(tiny(), tiny("other"))
    client = await connected(gateway)
    deleted = await _opened(client, gateway, "2025-06-18")
    client.send(posted(gateway.base, "/servers/tiny/mcp", deleted, None, "DELETE"))
    assert (await client.response()).status == 204
    foreign = await _opened(client, gateway, "2025-06-18", "other")
    unknown = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=len(foreign)))
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    kinds = {"unknown": unknown, "deleted": deleted, "foreign": foreign}
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    requests = {
        kind: posted(gateway.base, "/servers/tiny/mcp", id, ping) for kind, id in kinds.items()
    }
    order = list(kinds)
    for _ in range(tries):
        random.shuffle(order)
        for kind in order:
            began = time.perf_counter()
            client.send(requests[kind])
            response = await client.response()
            took[kind].append(time.perf_counter() - began)
            assert response.status == 404
    medians = {kind: statistics.median(times) * 1e6 for kind, times in took.items()}
    told = ", ".join(f"{kind} {median:.1f}" for kind, median in medians.items())
    spread = max(medians.values()) / min(medians.values()) - 1
    print(f"\nnot found: medians in µs over {tries}: {told}; spread {spread:.2%}")
    assert spread < 0.05
    client.close()
    await client.ended
    await gateway.stop()


# In a process of its own: what this one does would count as the gateway's.
_POLLER = """
import http.client, sys, time
asked = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
worst, until = 0.0, time.monotonic() + float(sys.argv[2])
print("polling", flush=True)
while time.monotonic() < until:
    began = time.perf_counter()
    asked.request("GET", "/healthz")
    asked.getresponse().read()
    worst = max(worst, time.perf_counter() - began)
    time.sleep(0.01)
print("worst", worst, flush=True)
"""


@pytest.mark.acceptance(55)
@pytest_twisted.ensureDeferred
async def test_acceptance_55_a_line_of_ten_megabytes_holds_nobody_up(tmp_path: Path) -> None:
    config = tmp_path / "servers.json"
    server = {"command": sys.executable, "args": [str(ROOT / "tests" / "faulty_server.py")]}
    config.write_text(json.dumps({"mcpServers": {"tiny": server}}))
    gateway = await startGateway("--config", str(config))
    client = await connected(gateway)
    session = await _opened(client, gateway, "2025-06-18")
    port = gateway.base.rpartition(":")[2]
    took: dict[int, float] = {}
    gap = 0.0
    for size in (1, 10_000_000, 15_000_000):
        poller = start([sys.executable, "-c", _POLLER, port, "4"])
        await poller.line("polling")
        arguments = {"name": "long", "arguments": {"bytes": size}}
        message = {"jsonrpc": "2.0", "id": size, "method": "tools/call", "params": arguments}
        began = time.monotonic()
        client.send(posted(gateway.base, "/servers/tiny/mcp", session, message))
        answer = await client.response()
        took[size] = time.monotonic() - began
        assert answer.status == 200 and len(answer.body) > size
        assert await poller.ended == 0
        gap = max(gap, float(poller.out.rpartition("worst ")[2]))
    told = ", ".join(f"{size / 1e6:.0f} MB in {seconds:.2f} s" for size, seconds in took.items())
    print(f"\nlong lines: {told}; /healthz took {gap * 1000:.0f} ms at most meanwhile")
    assert took[10_000_000] <= 1.0
    assert took[15_000_000] <= 2 * took[10_000_000]
    assert gap <= 0.1
    client.close()
    await client.ended
    assert await gateway.stop() == 0


async def _opened(
    client: RawClient, gateway: Live | Gateway, revision: str, server: str = "tiny"
) -> str:
    params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "s"}}
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    path = f"/servers/{server}/mcp"
    client.send(posted(gateway.base, path, "", message))
    session = (await client.response()).header(b"mcp-session-id")
    assert session is not None
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    client.send(posted(gateway.base, path, session.decode(), told))
    assert (await client.response()).status == 202
    return session.decode()


def pause(seconds: float) -> Any:
    from twisted.internet.task import deferLater

    return deferLater(reactor, seconds)  # type: ignore[arg-type]
