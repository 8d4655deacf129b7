"""The SDK's own client drives each proxy, in front of the SDK's own server."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from processes import ROOT, Process, start, startGateway

FIXTURE = str(ROOT / "tests" / "peers" / "conformance_fixture.py")
CLIENT = str(ROOT / "tests" / "real_client.py")


async def client(kind: str, url: str, mode: str) -> dict[str, object]:
    process = start([sys.executable, CLIENT, kind, url, mode])
    assert await process.ended == 0, process.err
    return json.loads(process.out)


def writeConfig(path: Path, url: str, old: str) -> None:
    servers = {
        "child": {"command": sys.executable, "args": [FIXTURE, "--stdio"]},
        "behind": {"url": url},
        "gathered": {"url": url, "proxy": "streamable"},
        "old": {"url": old},
    }
    path.write_text(json.dumps({"mcpServers": servers}))


@pytest_twisted.async_yield_fixture(scope="module")
async def fixture() -> AsyncIterator[str]:
    """The fixture server over Streamable HTTP."""
    async for url in fixtureOver("--http"):
        yield url


@pytest_twisted.async_yield_fixture(scope="module")
async def oldFixture() -> AsyncIterator[str]:
    """The fixture server over HTTP+SSE."""
    async for url in fixtureOver("--sse"):
        yield url


async def fixtureOver(transport: str) -> AsyncIterator[str]:
    process: Process = start([sys.executable, FIXTURE, transport, "0"])
    url = (await process.line(r"ready (http://\S+)"))[1]
    yield url
    process.kill()
    await process.ended


@pytest_twisted.async_yield_fixture(scope="module")
async def gateway(
    fixture: str, oldFixture: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """A gateway in front of it, over every transport."""
    config = tmp_path_factory.mktemp("gateway") / "servers.json"
    writeConfig(config, fixture, oldFixture)
    running = await startGateway("--config", str(config))
    yield running.base
    assert await running.stop() == 0


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("http", "child/mcp"),
        ("http", "gathered/mcp"),
        ("http", "old/mcp"),
        ("http", "behind/mcp"),
        ("sse", "child/sse"),
        ("sse", "behind/sse"),
        ("sse", "old/sse"),
    ],
    ids=[
        "streamable-stdio",
        "streamable-http",
        "streamable-sse",
        "transparent-http",
        "sse-stdio",
        "sse-http",
        "sse-sse",
    ],
)
@pytest_twisted.ensureDeferred
async def test_it_sees_what_it_sees_directly(
    fixture: str, gateway: str, kind: str, path: str, mode: str
) -> None:
    direct = await client("http", fixture, "legacy")
    through = await client(kind, f"{gateway}/servers/{path}", mode)
    if mode == "auto" and kind == "http":
        if path != "old/mcp":
            # The fixture is of both eras, and what it does in the modern one is its own.
            assert through == await client("http", fixture, "auto")
        else:
            # A legacy server asks a modern client all that it asks a legacy one. What it logs goes
            # to who asked for a log level, as this one did not.
            assert through == {**direct, "revision": "2026-07-28", "logged": 0}
        return
    assert through == direct
    assert direct["revision"] == "2025-11-25"
    assert direct["asked"] == ["sampling", "elicitation"]
    assert direct["progress"] == [0, 50, 100]
    assert direct["logged"] == 3
    assert "\U0001f600" in str(direct["sampled"])
    assert direct["together"] == 1
