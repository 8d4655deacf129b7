"""Legacy clients of servers of every era, through a whole gateway, with real children."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from faulty_upstream import FaultyUpstream, Received
from live import Start, behind
from live import live as live
from live import upstream as upstream
from processes import start as startProcess

from gateway.observe.observer import EraFound
from gateway.settings import StdioSettings

TESTS = Path(__file__).parent
ERA = str(TESTS / "era_server.py")
SDK = str(TESTS / "sdk_server.py")
CLIENT = str(TESTS / "small_client.py")


def child(*flags: str, script: str = ERA, **settings: Any) -> StdioSettings:
    return StdioSettings(name="s", command=sys.executable, args=(script, *flags), **settings)


def found(gateway: Any) -> list[tuple[bool | None, bool | None]]:
    return [(event.modern, event.legacy) for event in gateway.recorder.of(EraFound)]


@pytest.mark.parametrize("isolation", ["session", "shared"])
@pytest_twisted.ensureDeferred
async def test_a_modern_child_serves_legacy_clients(live: Start, isolation: str) -> None:
    gateway = await live(child("modern", isolation=isolation))
    for _ in range(2):
        session = await gateway.session("s")
        answer = await gateway.call("s", session, "echo", x=1)
        assert answer.message["result"]["structuredContent"]["arguments"] == {"x": 1}
    assert found(gateway) == [(True, None), (True, False)]


@pytest_twisted.ensureDeferred
async def test_what_was_found_outlives_a_restart(live: Start, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    gateway = await live(child("modern", "--ledger", str(ledger)))
    await gateway.session("s")
    service = gateway.service
    await service.stopService()
    service.startService()
    gateway.base = f"http://127.0.0.1:{service.ports[0].getHost().port}"
    await gateway.session("s")
    # The child that refused, one that refused the gateway itself, and one for each session.
    asked = ledger.read_text().split()
    assert asked == ["initialize", "server/discover", "initialize", "server/discover"]
    assert str(tmp_path) not in repr(service._verdicts)


@pytest.mark.parametrize("how", ["legacy", "dual", "exits", "silent"])
@pytest_twisted.ensureDeferred
async def test_whoever_knows_initialize_is_asked_for_nothing_else(
    live: Start, tmp_path: Path, how: str
) -> None:
    ledger = tmp_path / "ledger"
    gateway = await live(child(how, "--ledger", str(ledger)))
    session = await gateway.session("s")
    answer = await gateway.call("s", session, "echo")
    assert answer.message["result"]["name"] == "echo"
    assert ledger.read_text().split() == ["initialize"]
    assert found(gateway) == [(None, True)]


@pytest.mark.parametrize("how", ["strict", "exits-always"])
@pytest_twisted.ensureDeferred
async def test_who_gives_no_handshake_is_asked_for_the_other_era_once(
    live: Start, tmp_path: Path, how: str
) -> None:
    ledger = tmp_path / "ledger"
    gateway = await live(child(how, "--ledger", str(ledger)))
    for _ in range(3):
        answer = await gateway.initialize("s")
        assert answer.status == 200 and "error" in answer.message
    assert ledger.read_text().split().count("server/discover") == 1
    assert found(gateway) == [(False, None)]


@pytest_twisted.ensureDeferred
async def test_a_modern_child_of_another_revision_says_which(live: Start) -> None:
    gateway = await live(child("future"))
    answer = await gateway.initialize("s")
    assert "2027-01-01" in answer.message["error"]["message"]


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest_twisted.ensureDeferred
async def test_the_setting_decides(live: Start, tmp_path: Path, era: str) -> None:
    ledger = tmp_path / "ledger"
    how = "modern" if era == "legacy" else "legacy"
    gateway = await live(child(how, "--ledger", str(ledger), era=era))
    answer = await gateway.initialize("s")
    assert "error" in answer.message
    asked = {"legacy": "initialize", "modern": "server/discover"}[era]
    assert set(ledger.read_text().split()) == {asked}
    assert found(gateway) == []


def modern(request: Received) -> bool:
    """A scripted HTTP server of the modern era alone."""
    if request.method != b"POST":
        request.reply(405, type=None)
    elif request.header(b"mcp-protocol-version") != b"2026-07-28":
        body = b'{"jsonrpc":"2.0","error":{"code":-32020,"message":"no"}}'
        request.reply(400, body)
    elif request.rpc == "server/discover":
        request.result(
            {
                "resultType": "complete",
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
            }
        )
    elif request.rpc == "subscriptions/listen":
        request.stream()
    else:
        name = request.message["params"].get("name")
        assert request.header(b"mcp-method") == request.rpc.encode()
        assert request.header(b"mcp-session-id") is None
        request.result({"resultType": "complete", "content": [], "structuredContent": {"n": name}})
    return True


@pytest.mark.parametrize("proxy", ["transparent", "streamable"])
@pytest_twisted.ensureDeferred
async def test_a_modern_http_server_serves_legacy_clients(
    live: Start, upstream: FaultyUpstream, proxy: str
) -> None:
    upstream.script = modern
    gateway = await live(behind(upstream.url, proxy=proxy))
    for _ in range(2):
        session = await gateway.session("behind")
        answer = await gateway.call("behind", session, "t")
        assert answer.message["result"]["structuredContent"] == {"n": "t"}
    refused = [one for one in upstream.requests if one.rpc == "initialize"]
    # The first client's, and the gateway's own.
    assert len(refused) == 2
    assert found(gateway) == [(True, None), (True, False)]


@pytest_twisted.async_yield_fixture(scope="module")
async def sdk() -> AsyncIterator[dict[str, str]]:
    """URLs of SDK servers over HTTP, by era."""
    processes, urls = [], {}
    for how in ("modern", "dual"):
        process = startProcess([sys.executable, SDK, how, "--http"])
        processes.append(process)
        urls[how] = (await process.line(r"ready (http://\S+)"))[1]
    yield urls
    for process in processes:
        process.kill()
        await process.ended


@pytest.mark.parametrize("kind", ["http", "sse"])
@pytest.mark.parametrize("how", ["modern", "dual"])
@pytest.mark.parametrize("transport", ["stdio", "over-http", "gathered"])
@pytest_twisted.ensureDeferred
async def test_a_real_legacy_client(
    live: Start, sdk: dict[str, str], transport: str, how: str, kind: str
) -> None:
    if transport == "stdio":
        gateway = await live(child(how, script=SDK))
    elif transport == "over-http":
        gateway = await live(behind(sdk[how], "s"))
    else:
        gateway = await live(behind(sdk[how], "s", proxy="streamable"))
    path = "mcp" if kind == "http" else "sse"
    process = startProcess([sys.executable, CLIENT, kind, f"{gateway.base}/servers/s/{path}"])
    assert await process.ended == 0, process.err
    assert json.loads(process.out) == {
        "revision": "2025-11-25",
        "tools": ["echo", "routed"],
        "said": "hé",
        "routed": "é",
        "progress": [0.5],
    }
    assert found(gateway)[-1] == ((True, False) if how == "modern" else (None, True))
