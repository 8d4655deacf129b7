"""The SDK's modern client through a gateway to the SDK's modern servers, over stdio and HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from live import startLive
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
