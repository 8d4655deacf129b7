"""
Too much for a pipe, a line, a log or a reader, at full size: what the gateway's memory does.

The gateway is a process of its own, so that its memory is not the test's. Sizes in the environment:
GATEWAY_SOAK_FLOOD, notifications (500,000); GATEWAY_SOAK_BYTES, of a line without end (1 GiB) and,
a tenth of it, of stderr; GATEWAY_SOAK_READERS, slow ones at once (100).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from flooding import Asked, Flood, Opened, ask, opened
from memory import MIB, Memory
from processes import ROOT, Gateway, startGateway
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="looks into /proc"),
]

FLOOD = int(os.environ.get("GATEWAY_SOAK_FLOOD", 500_000))
RATE = 50_000
"""Notifications a second, as far as the server comes to write them."""
BYTES = int(os.environ.get("GATEWAY_SOAK_BYTES", 1 << 30))
READERS = int(os.environ.get("GATEWAY_SOAK_READERS", 100))
MOST = 32 * MIB


@define(eq=False)
class Running:
    """A gateway in front of three servers: a flood for each session, a shared one, a bad one."""

    gateway: Gateway
    flood: Flood
    memory: Memory

    async def call(self, who: Opened, server: str, tool: str, **arguments: object) -> Any:
        """A call's answer, when nothing is said before it."""
        asked = await ask(self.gateway, who, server, tool, **arguments)
        asked.resumes()
        answer = json.loads((await asked.client.response()).body)
        await asked.end()
        return answer

    async def stop(self) -> None:
        assert await self.gateway.stop() == 0


async def running(folder: Path, **limits: object) -> Running:
    flood = Flood("legacy", folder / "written")
    command, *args = flood.argv
    server = {"command": command, "args": args, "era": "legacy"}
    faulty = {"command": sys.executable, "args": [str(ROOT / "tests" / "faulty_server.py")]}
    servers = {"own": server, "shared": {**server, "isolation": "shared"}, "faulty": faulty}
    config = folder / "servers.json"
    config.write_text(json.dumps({"mcpServers": servers, "gateway": {"limits": limits}}))
    gateway = await startGateway("--config", str(config))
    it = Running(gateway, flood, Memory(gateway.process.transport.pid))
    for server in servers:
        await it.call(await opened(gateway, "streamable", server), server, "echo")
    it.memory.begin()
    return it


def wait(seconds: float) -> Any:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


async def latencies(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Seconds that calls took, one after the other, sorted."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        await call()
        took.append(time.monotonic() - began)
        await wait(0.01)
    return sorted(took)


@pytest.mark.acceptance(52)
@pytest.mark.parametrize("server", ["own", "shared"])
@pytest.mark.parametrize("kind", ["streamable", "sse", "modern"])
@pytest_twisted.ensureDeferred
async def test_acceptance_52_a_flood_to_a_slow_client(
    tmp_path: Path, kind: str, server: str
) -> None:
    it = await running(tmp_path)
    slow = await opened(it.gateway, kind, server)
    base = it.memory.now()
    began = time.monotonic()
    asked = await ask(it.gateway, slow, server, "flood", count=FLOOD, size=20, rate=RATE)
    asked.stops()
    pauses = server == "own" and kind != "modern"
    if pauses:
        await it.flood.stuck()
    else:
        await it.flood.until(FLOOD)
    left = it.flood.written
    took = time.monotonic() - began
    asked.resumes()
    if kind != "sse":
        assert (await asked.client.head()).status == 200
    *steps, answer = await asked.messages()
    assert "result" in answer
    numbers = [step["params"]["progress"] for step in steps]
    assert numbers == sorted(set(numbers))
    most = it.memory.highest() - base
    print(
        f"\nflood to {kind}, {server}: {left:,} of {FLOOD:,} read in {took:.1f} s; "
        f"{len(numbers):,} in order and the answer; RSS {base / MIB:.1f} MiB, "
        f"{most / MIB:+.1f} at most"
    )
    assert (left < FLOOD, len(numbers) == FLOOD) == (pauses, pauses)
    assert most <= MOST
    await asked.end()
    await it.stop()


@pytest.mark.acceptance(51)
@pytest_twisted.ensureDeferred
async def test_acceptance_51_a_line_without_end(tmp_path: Path) -> None:
    it = await running(tmp_path)
    base = it.memory.now()
    for number in range(1, 4):
        who = await opened(it.gateway, "streamable", "faulty")
        began = time.monotonic()
        answer = await it.call(who, "faulty", "flood", bytes=BYTES)
        took = time.monotonic() - began
        most = it.memory.highest() - base
        print(
            f"\n{BYTES / 1e6:,.0f} MB without a newline, time {number}: failed after {took:.2f} s; "
            f"RSS {base / MIB:.1f} MiB, {most / MIB:+.1f} at most"
        )
        assert answer["error"]["data"]["reason"] == "bad_answer"
        assert most <= MOST
    await it.stop()


@pytest.mark.acceptance(53)
@pytest_twisted.ensureDeferred
async def test_acceptance_53_ten_thousand_times_every_kind_of_noise(tmp_path: Path) -> None:
    it = await running(tmp_path)
    who = await opened(it.gateway, "streamable", "faulty")
    kinds = await it.call(who, "faulty", "noise_kinds")
    lines = 10_000 * kinds["result"]["structuredContent"]["count"]
    base = it.memory.now()
    began = time.monotonic()
    pending = [await ask(it.gateway, who, "faulty", "sleep", seconds=1.0) for _ in range(50)]
    answer = await it.call(who, "faulty", "noise", count=10_000)
    took = time.monotonic() - began
    assert "result" in answer
    for asked in pending:
        assert b'"result"' in (await asked.client.response()).body
        await asked.end()
    warnings = it.gateway.process.err.count(": skipped ")
    most = it.memory.highest() - base
    print(
        f"\nnoise: {lines:,} lines in {took:.1f} s; 50 of 50 calls answered, {warnings} warning; "
        f"RSS {most / MIB:+.1f} MiB at most"
    )
    assert warnings == 1
    assert most <= MOST
    await it.stop()


@pytest.mark.acceptance(56)
@pytest_twisted.ensureDeferred
async def test_acceptance_56_a_hundred_megabytes_on_stderr(tmp_path: Path) -> None:
    it = await running(tmp_path)
    who, other = [await opened(it.gateway, "streamable", "faulty") for _ in range(2)]
    base, size = it.memory.now(), BYTES // 10
    began = time.monotonic()
    drained = ensureDeferred(it.call(who, "faulty", "stderr", bytes=size))
    beside = await latencies(lambda: it.call(other, "faulty", "echo"), 20)
    answer = await drained
    took = time.monotonic() - began
    assert "result" in answer
    logged = sum(map(len, re.findall(r"gateway\.server#.*", it.gateway.process.err)))
    most = it.memory.highest() - base
    print(
        f"\nstderr: {size / 1e6:,.0f} MB drained in {took:.1f} s, {logged / 1e6:.2f} MB logged; "
        f"another's slowest call {beside[-1] * 1000:.0f} ms; RSS {most / MIB:+.1f} MiB at most"
    )
    assert logged <= 2**20 * 1.2 * (1 + took // 60)
    assert most <= MOST
    await it.stop()


@pytest.mark.acceptance(50)
@pytest_twisted.ensureDeferred
async def test_acceptance_50_a_child_that_does_not_read(tmp_path: Path) -> None:
    it = await running(tmp_path, max_calls=10_000)
    who, other = [await opened(it.gateway, "streamable", "faulty") for _ in range(2)]
    alone = await latencies(lambda: it.call(other, "faulty", "echo"), 100)
    await it.call(who, "faulty", "deaf")
    base = it.memory.now()
    waiting: list[Asked] = []
    for _ in range(400):
        waiting.append(await ask(it.gateway, who, "faulty", "echo", pad="x" * 3_000))
    beside = await latencies(lambda: it.call(other, "faulty", "echo"), 100)
    began = time.monotonic()
    refused = await it.call(who, "faulty", "echo", pad="x" * 3_000)
    took = time.monotonic() - began
    assert refused["error"]["data"]["reason"] == "overloaded"
    most = it.memory.highest() - base
    print(
        f"\na deaf child: 400 calls of 3 KB to it, refused then in {took * 1000:.1f} ms; another's "
        f"median {alone[50] * 1000:.1f} ms alone, {beside[50] * 1000:.1f} beside it; "
        f"RSS {most / MIB:+.1f} MiB at most, connections included"
    )
    assert took < 1.0 and most <= MOST
    for asked in waiting:
        await asked.end()
    await it.stop()


@pytest.mark.acceptance(77)
@pytest.mark.parametrize(("kind", "window"), [("sse", 0), ("streamable", 1024)])
@pytest_twisted.ensureDeferred
async def test_acceptance_77_many_slow_readers_of_one_child(
    tmp_path: Path, kind: str, window: int
) -> None:
    """window: KiB of a session that may be kept for resumption, beside what waits."""
    it = await running(tmp_path, reader_blocked=10.0)
    other = await opened(it.gateway, "streamable", "shared")
    alone = await latencies(lambda: it.call(other, "shared", "echo"), 200)
    slow = [await opened(it.gateway, kind, "shared") for _ in range(READERS)]
    base = it.memory.now()
    asked = []
    for who in slow:
        asked.append(await ask(it.gateway, who, "shared", "flood", count=600, size=1_000))
        asked[-1].stops()
    await it.call(other, "shared", "echo")
    held = it.memory.highest() - base
    beside = await latencies(lambda: it.call(other, "shared", "echo"), 200)
    began = time.monotonic()

    async def cut(one: Asked) -> None:
        one.resumes()
        await one.client.ended

    await wait(11.0)
    await gatherResults([ensureDeferred(cut(one)) for one in asked])
    took = time.monotonic() - began
    print(
        f"\n{READERS} slow readers ({kind}) of a shared child: {held / READERS:.0f} KiB each "
        f"at most, cut within {took:.1f} s (reader_blocked 10); another's p99 "
        f"{alone[197] * 1000:.1f} ms alone, {beside[197] * 1000:.1f} ms beside them"
    )
    # The outbox, and what the socket did not take of what was given to it.
    assert held / READERS < 256 + 2 * 64 + 100 + window
    await it.stop()
