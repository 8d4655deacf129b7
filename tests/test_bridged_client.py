"""The SDK's own client of the legacy era before the SDK's own server of the modern era."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_twisted
from live import Start
from live import live as live
from processes import ROOT, Process, start

from gateway.observe.observer import MessageDropped, SessionRecovered
from gateway.settings import HTTPSettings, StdioSettings

SERVER = str(ROOT / "tests" / "modern_server.py")
CLIENT = str(ROOT / "tests" / "bridged_client.py")


@pytest_twisted.async_yield_fixture(scope="module")
async def behind() -> AsyncIterator[str]:
    """The modern server over HTTP."""
    process: Process = start([sys.executable, SERVER, "--http", "0"])
    yield (await process.line(r"ready (http://\S+)"))[1]
    process.kill()
    await process.ended


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("http", "child/mcp"),
        ("sse", "child/sse"),
        ("http", "behind/mcp"),
        ("sse", "behind/sse"),
        ("http", "gathered/mcp"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_legacy_client_uses_a_modern_server(
    live: Start, behind: str, kind: str, path: str
) -> None:
    gateway = await live(
        StdioSettings(name="child", command=sys.executable, args=(SERVER, "--stdio")),
        HTTPSettings(name="behind", url=behind),
        HTTPSettings(name="gathered", url=behind, proxy="streamable"),
    )
    process = start([sys.executable, CLIENT, kind, f"{gateway.base}/servers/{path}", path])
    assert await process.ended == 0, process.err
    assert json.loads(process.out) == {
        "revision": "2025-11-25",
        "server": "modern",
        "tools": 9,
        "echo": "\U0001f600",
        "asked for": "two: [({'who': '\u00e9va'}, 'file:///here')]",
        "read": "seen",
        "prompt": "hello you",
        "together": 19,
        "broken": True,
        "missing": -32002,
        "slow": -32001,
        "cancelled": True,
        "progress": [1, 2, 3],
        "logged": ["heard"],
        "asked": ["elicitation", "roots", "sampling"],
        "changed": ["test://watched", "tools"],
    }
    dropped = {event.why for event in gateway.recorder.events if isinstance(event, MessageDropped)}
    assert dropped <= {"duplicate", "client_gone", "late_answer"}


@pytest_twisted.ensureDeferred
async def test_a_child_that_dies_is_started_again(live: Start) -> None:
    gateway = await live(StdioSettings(name="s", command=sys.executable, args=(SERVER, "--stdio")))
    session = await gateway.session("s")
    for _ in range(2):
        assert (await gateway.call("s", session, "die")).reason == "server_exited"
        answer = await gateway.call("s", session, "echo", said="x")
        assert answer.message["result"]["content"][0]["text"] == "x"
    assert len(gateway.recorder.of(SessionRecovered)) == 2


@pytest_twisted.ensureDeferred
async def test_what_the_client_does_not_offer_fails_the_call(live: Start, behind: str) -> None:
    gateway = await live(HTTPSettings(name="s", url=behind))
    session = await gateway.session("s", roots={})
    answer = await gateway.call("s", session, "ask")
    assert "elicitation" in answer.message["error"]["message"]
    assert answer.message["error"]["code"] in (-32600, -32603)
