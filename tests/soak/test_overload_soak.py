"""
Too much of everything, with real processes and the real clock; each run prints its figures.

GATEWAY_SOAK_SECONDS: how long each load lasts.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from live import Live, faulty, startLive
from posting import connected, posted
from processes import ROOT, Gateway, startGateway
from raw import NamedInHeader
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("GATEWAY_SOAK_SECONDS", 20))
MIB = 1024 * 1024


def wait(seconds: float) -> Any:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


def part(times: list[float], which: float) -> float:
    """A percentile, in milliseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * which))] * 1000


@define(eq=False)
class Load:
    """Clients that call as fast as they are answered, and later when they were refused."""

    gateway: Live
    session: str
    verb: str = "sleep"
    who: str = "alice"
    answered: int = field(default=0, init=False)
    times: list[float] = field(factory=list, init=False)
    refusals: list[float] = field(factory=list, init=False)
    reasons: Counter[str] = field(factory=Counter, init=False)
    _until: float = field(default=0.0, init=False)

    async def run(self, clients: int, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        await gatherResults([ensureDeferred(self._client()) for _ in range(clients)])

    async def _client(self) -> None:
        client = await connected(self.gateway)
        params = {"name": self.verb, "arguments": {"seconds": 0.05}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        data = posted(self.gateway.base, "/servers/faulty/mcp", self.session, message)
        data = data.replace(b"\r\nAccept", b"\r\nX-Who: " + self.who.encode() + b"\r\nAccept", 1)
        while (began := time.monotonic()) < self._until:
            client.send(data)
            answer = await client.response()
            took = time.monotonic() - began
            said = answer.json
            if "result" in said:
                self.answered += 1
                self.times.append(took)
            else:
                self.refusals.append(took)
                self.reasons[said["error"]["data"]["reason"]] += 1
                assert said["error"]["data"]["retryAfterMs"] > 0
                await wait(0.25)
        client.close()
        await client.ended


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


@pytest.mark.acceptance(92)
@pytest_twisted.ensureDeferred
async def test_acceptance_92_twice_the_capacity() -> None:
    most = 32
    gateway = await startLive(
        faulty(), authenticator=NamedInHeader(), max_calls_total=most, retry_after=1
    )
    session = await opened(gateway, "alice")
    health: list[float] = []

    async def looking(until: float) -> None:
        while (began := time.monotonic()) < until:
            assert (await gateway.request("GET", "/healthz")).status == 200
            health.append(time.monotonic() - began)
            await wait(0.1)

    peak = Load(gateway, session)
    await peak.run(most, SECONDS)
    over = Load(gateway, session)
    looks = ensureDeferred(looking(time.monotonic() + SECONDS))
    await over.run(2 * most, SECONDS)
    await looks
    await gateway.stop()
    goodput = over.answered / peak.answered
    print(
        f"\noverload: {peak.answered / SECONDS:.0f} calls/s at capacity, "
        f"{over.answered / SECONDS:.0f} at twice that ({goodput:.0%}); "
        f"{len(over.refusals)} refusals {dict(over.reasons)}, "
        f"p99 {part(over.refusals, 0.99):.1f} ms; "
        f"/healthz p99 {part(health, 0.99):.0f} ms, longest {part(health, 1):.0f} ms"
    )
    assert set(over.reasons) == {"overloaded"} and not peak.reasons
    assert goodput >= 0.9
    assert part(over.refusals, 0.99) <= 50
    assert part(health, 0.99) <= 100


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_one_principal_floods() -> None:
    gateway = await startLive(
        faulty(), authenticator=NamedInHeader(), max_calls_per_principal=32, retry_after=1
    )
    sessions = {who: await opened(gateway, who) for who in ("alice", "bob")}
    alone = Load(gateway, sessions["bob"], who="bob")
    await alone.run(4, SECONDS)
    flood = Load(gateway, sessions["alice"])
    beside = Load(gateway, sessions["bob"], who="bob")
    await gatherResults(
        [ensureDeferred(flood.run(128, SECONDS)), ensureDeferred(beside.run(4, SECONDS))]
    )
    await gateway.stop()
    before, after = part(alone.times, 0.99), part(beside.times, 0.99)
    print(
        f"\nflood: {flood.answered} answered and {len(flood.refusals)} refused "
        f"{dict(flood.reasons)}; another's p99 {before:.1f} ms alone, {after:.1f} ms beside it"
    )
    assert set(flood.reasons) == {"rate_limited"} and not beside.reasons
    assert after <= 2 * before


@pytest.mark.acceptance(95)
@pytest_twisted.ensureDeferred
async def test_acceptance_95_memory_near_its_limit(tmp_path: Path) -> None:
    """
    Sessions whose answers wait for clients that went away: each keeps a megabyte. Without the
    limit this takes eight times as much.
    """
    limit = 160 * MIB
    file = tmp_path / "servers.json"
    script = str(ROOT / "tests" / "faulty_server.py")
    server = {"command": "python3", "args": ["-S", script], "isolation": "shared"}
    gateway_ = {"memory_limit": limit, "limits": {"session_unused": 600}}
    file.write_text(json.dumps({"mcpServers": {"faulty": server}, "gateway": gateway_}))
    gateway = await startGateway("--config", str(file))
    pid = gateway.process.transport.pid  # type: ignore[union-attr]
    statm = Path(f"/proc/{pid}/statm")

    def used() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    statuses: Counter[str] = Counter()
    highest = started = used()
    began = time.monotonic()
    opened_ = 0
    while time.monotonic() < began + SECONDS:
        statuses[await _keptAnswer(gateway)] += 1
        opened_ += 1
        highest = max(highest, used())
    stages = [
        line
        for line in gateway.process.err.splitlines() + gateway.process.out.splitlines()
        if "stage" in line
    ]
    # It ends by itself, with nobody calling.
    until = time.monotonic() + 60
    status = "503"
    while status == "503" and time.monotonic() < until:
        await wait(1.0)
        status = await _keptAnswer(gateway)
    returned = used()
    print(
        f"\nmemory: limit {limit // MIB} MiB, {started // MIB} at the start, {highest // MIB} at "
        f"most, {returned // MIB} afterwards; {opened_} tries, {dict(statuses)}, "
        f"{len(stages)} changes of stage"
    )
    assert await gateway.stop() == 0
    assert highest < limit * 1.25, "what runs is still answered"
    assert statuses["503"] and status == "200", "refused, and then not any more"


async def _keptAnswer(gateway: Gateway) -> str:
    """Open a session, ask for much, and go away before it comes. How that went."""
    client = await connected(gateway)
    path = "/servers/faulty/mcp"
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "load", "version": "1"},
    }
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    client.send(posted(gateway.base, path, "", message))
    answer = await client.response()
    result = str(answer.status)
    if answer.status == 200:
        id = answer.header(b"mcp-session-id")
        assert id is not None
        call = {"name": "long", "arguments": {"bytes": 900_000}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        client.send(posted(gateway.base, path, id.decode(), message))
        await client.head()
    client.reset()
    await client.ended
    return result
