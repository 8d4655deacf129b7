"""The SDK's modern client through a gateway to the SDK's modern servers, over stdio and HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from live import Answer, Live, startLive
from modern_support import enveloped, fields
from processes import ROOT, Process, start

from gateway.observe.observer import MessageDropped
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings

CHILD = str(ROOT / "tests" / "modern_child.py")
CLIENT = str(ROOT / "tests" / "modern_client.py")


def child(ledger: Path) -> StdioSettings:
    return StdioSettings(name="one", command=sys.executable, args=(CHILD, "--stdio", str(ledger)))


@pytest_twisted.async_yield_fixture
async def overHTTP(tmp_path: Path) -> AsyncIterator[HTTPSettings]:
    process: Process = start([sys.executable, CHILD, "--http", str(tmp_path / "ledger")])
    url = (await process.line(r"ready (http://\S+)"))[1]
    yield HTTPSettings(name="one", url=url)
    process.kill()
    await process.ended


async def driven(settings: ServerSettings, mode: str, ledger: Path) -> dict[str, Any]:
    """What the client saw of a server behind a gateway."""
    live = await startLive(settings)
    try:
        url = f"{live.base}/servers/one/mcp"
        process = start([sys.executable, CLIENT, url, mode, str(ledger)])
        assert await process.ended == 0, process.err
        assert len(live.service.registry) == 0
        dropped = {event.why for event in live.recorder.of(MessageDropped)}
        assert dropped <= {"late_answer", "modern_notification"}
    finally:
        await live.stop()
    seen: dict[str, Any] = json.loads(process.out)
    return seen


def asItShould(seen: dict[str, Any]) -> None:
    assert seen.pop("cancelled") < 1.0
    assert seen == {
        "revision": "2026-07-28",
        "tools": ["change", "die", "echo", "slow"],
        "text": "hé",
        "progress": [0.5, 1.0, 0.0],
        "together": [str(n) for n in range(20)],
        "refused": "MCPError",
        "honored": True,
        "event": "ToolsListChanged",
        "after": "on",
    }


@pytest.mark.acceptance(30)
@pytest.mark.parametrize("mode", ["auto", "2026-07-28"])
@pytest_twisted.ensureDeferred
async def test_acceptance_30_aModernClientAndAModernChild(tmp_path: Path, mode: str) -> None:
    ledger = tmp_path / "ledger"
    asItShould(await driven(child(ledger), mode, ledger))
    lines = ledger.read_text().splitlines()
    assert "slow cancelled" in lines and "slow ended" not in lines


@pytest.mark.acceptance(30)
@pytest.mark.parametrize("mode", ["auto", "2026-07-28"])
@pytest_twisted.ensureDeferred
async def test_acceptance_30_aModernClientStraightThrough(
    tmp_path: Path, overHTTP: HTTPSettings, mode: str
) -> None:
    ledger = tmp_path / "ledger"
    asItShould(await driven(overHTTP, mode, ledger))
    assert "slow ended" not in ledger.read_text()


def isAlive(pid: str) -> bool:
    return Path("/proc", pid).exists()


async def asked(live: Live, body: bytes) -> Answer:
    """The answer to a modern request."""
    headers = {name.decode(): value.decode() for name, value in fields(body)}
    return await live.post("one", body, **headers)


@pytest.mark.acceptance(46)
@pytest_twisted.ensureDeferred
async def test_acceptance_46_aModernChildThatDies(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    live = await startLive(child(ledger))
    try:
        for _ in range(2):
            answer = await asked(live, enveloped("tools/call", "a", name="die", arguments={}))
            assert answer.status == 502
            assert answer.message["error"]["code"] == -32603
            assert answer.reason == "server_exited"
            assert answer.message["id"] == "a"
        body = enveloped("tools/call", 1.0, name="echo", arguments={"text": "x"})
        answer = await asked(live, body)
        assert answer.status == 200 and b'"id":1.0' in answer.body
        answer = await asked(live, enveloped("nobody/knows"))
        assert (answer.status, answer.message["error"]["code"]) == (404, -32601)
        pids = [line for line in ledger.read_text().splitlines() if line.startswith("began")]
        assert len(pids) == 3, "one child for all, and another after each death"
    finally:
        await live.stop()
    assert not any(isAlive(line.split()[1]) for line in pids)
