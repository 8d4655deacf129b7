"""
Too many calls, with real processes and the real clock; each run prints its figures. The clients are
a process of their own.

GATEWAY_SOAK_SECONDS: how long each load lasts; acceptance 92 wants 300.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import pytest_twisted
from live import Live, faulty, startLive
from raw import NamedInHeader
from soaking import Gaps, loaded, part, tiny
from twisted.internet.defer import ensureDeferred, gatherResults

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("GATEWAY_SOAK_SECONDS", 20))
PATH = "/servers/faulty/mcp"


async def opened(gateway: Live, who: str) -> str:
    headers = {"X-Who": who}
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "load", "version": "1"},
    }
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    answer = await gateway.post("faulty", message, **headers)
    (session,) = answer.headers["Mcp-Session-Id"]
    said = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await gateway.post("faulty", said, session, **headers)
    return session


async def load(port: int, session: str, clients: int, who: str = "alice", **more: Any) -> Any:
    """Closed loops of calls of 50 ms; who is refused rests for a quarter of a second."""
    told = {"sessions": [session], "clients": clients, "path": PATH, "who": who, "rest": 0.25}
    return await loaded(port, "calls", **{"seconds": SECONDS, **told, **more})


@pytest.mark.acceptance(92)
@pytest_twisted.ensureDeferred
async def test_acceptance_92_twice_the_capacity() -> None:
    """
    What can be run at once is `max_calls_total` here. In three parts, so that what the machine does
    besides falls on both: at capacity, at twice that, at capacity.
    """
    most = 32
    gateway = await startLive(
        faulty(), authenticator=NamedInHeader(), max_calls_total=most, retry_after=1
    )
    port = int(gateway.base.rpartition(":")[2])
    session = await opened(gateway, "alice")
    capacity = min(SECONDS, 60)
    before = await load(port, session, most, seconds=capacity)
    gaps = Gaps()
    over = await load(port, session, 2 * most, health=True)
    stalls = gaps.stop()
    after = await load(port, session, most, seconds=capacity)
    await gateway.stop()
    peak = max(len(before["answered"]), len(after["answered"])) / capacity
    goodput = len(over["answered"]) / SECONDS / peak
    refused, health = over["refused"], over["health"]
    print(
        f"\noverload, {SECONDS:.0f} s: {peak:.0f} calls/s at capacity, "
        f"{len(over['answered']) / SECONDS:.0f} at twice that ({goodput:.1%}); "
        f"{len(refused)} refusals {over['reasons']}, p50 {part(refused, 0.5):.1f} ms, "
        f"p99 {part(refused, 0.99):.1f} ms; /healthz p99 {part(health, 0.99):.1f} ms, longest "
        f"{part(health, 1):.0f} ms of {len(health)}; stalls {stalls}"
    )
    assert set(over["reasons"]) == {"overloaded"} and not before["refused"] + after["refused"]
    assert goodput >= 0.9
    assert part(refused, 0.99) <= 50
    assert part(health, 0.99) <= 100


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_one_principal_floods() -> None:
    """Another's calls before, beside and after it."""
    gateway = await startLive(
        faulty(), authenticator=NamedInHeader(), max_calls_per_principal=32, retry_after=1
    )
    port = int(gateway.base.rpartition(":")[2])
    sessions = {who: await opened(gateway, who) for who in ("alice", "bob")}
    before = await load(port, sessions["bob"], 4, who="bob")
    flood, beside = await gatherResults(
        [
            ensureDeferred(load(port, sessions["alice"], 128)),
            ensureDeferred(load(port, sessions["bob"], 4, who="bob")),
        ]
    )
    after = await load(port, sessions["bob"], 4, who="bob")
    await gateway.stop()
    alone = part(before["answered"] + after["answered"], 0.99)
    p99 = part(beside["answered"], 0.99)
    print(
        f"\nflood, {SECONDS:.0f} s: {len(flood['answered'])} answered and {len(flood['refused'])} "
        f"refused {flood['reasons']}; another's p99 {alone:.1f} ms alone, {p99:.1f} ms beside it, "
        f"{len(beside['refused'])} of its calls refused"
    )
    assert set(flood["reasons"]) == {"rate_limited"} and not beside["refused"]
    assert p99 <= 2 * alone


@pytest.mark.acceptance(97)
@pytest.mark.parametrize(("size", "rate"), [(64 * 1024, 500), (4 * 1024 * 1024 - 1024, 50)])
@pytest_twisted.ensureDeferred
async def test_acceptance_97_large_bodies(size: int, rate: int) -> None:
    """At these rates, whatever the answers take: each is read whole by a child and answered."""
    from gateway.settings import StdioSettings

    server = tiny()
    gateway = await startLive(
        StdioSettings(name="faulty", command=sys.executable, args=tuple(server["args"])),
        max_stdin_bytes=64 * 1024 * 1024,
    )
    session = await gateway.session("faulty")
    port = int(gateway.base.rpartition(":")[2])
    gaps = Gaps()
    told = {"session": session, "path": PATH, "size": size - 200, "rate": rate, "lanes": 16}
    ran = await loaded(port, "paced", seconds=SECONDS, **told)
    stalls = gaps.stop()
    await gateway.stop()
    print(
        f"\n{size // 1024} KiB x {rate}/s for {SECONDS:.0f} s: {len(ran['times'])} answered, "
        f"{len(ran['times']) / ran['seconds']:.0f}/s, p99 {part(ran['times'], 0.99):.0f} ms, "
        f"sent late by {part(ran['late'], 0.99):.0f} ms (p99); stalls {stalls}"
    )
    assert gaps.p999 <= 0.1
