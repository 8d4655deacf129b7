"""
A client that does not read, and a server that floods it, in every combination (docs/overload.md).

Where nobody else waits for the same source that source is not read on: nothing is lost, and memory
is what sockets and pipes hold. Where others wait for it, it is read on, the slow stream is bounded
and loses notifications, which are counted, and never its answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from flooding import Flood, ask, opened
from live import Live, Start, behind
from live import live as live

from gateway.observe.observer import MessageDropped
from gateway.settings import StdioSettings

COUNT, SIZE = 1_500, 8_000
"""More than all the buffers of two connections hold."""

PAUSED, BOUNDED = "paused", "bounded"

CELLS = [
    # the client, what is behind, its settings, what happens
    ("streamable", "legacy stdio", {}, PAUSED),
    ("sse", "legacy stdio", {}, PAUSED),
    ("streamable", "legacy stdio", {"isolation": "shared"}, BOUNDED),
    ("sse", "legacy stdio", {"isolation": "shared"}, BOUNDED),
    ("streamable", "legacy mcp", {}, PAUSED),
    ("streamable", "legacy mcp", {"proxy": "streamable"}, PAUSED),
    ("sse", "legacy mcp", {}, PAUSED),
    ("streamable", "legacy mcp", {"isolation": "shared"}, PAUSED),
    ("sse", "legacy mcp", {"isolation": "shared"}, PAUSED),
    ("streamable", "legacy sse", {}, PAUSED),
    ("sse", "legacy sse", {}, PAUSED),
    ("streamable", "legacy sse", {"isolation": "shared"}, BOUNDED),
    ("sse", "legacy sse", {"isolation": "shared"}, BOUNDED),
    ("streamable", "modern stdio", {}, PAUSED),
    ("sse", "modern stdio", {}, PAUSED),
    ("streamable", "modern mcp", {}, PAUSED),
    ("sse", "modern mcp", {}, PAUSED),
    ("modern", "modern stdio", {}, BOUNDED),
    ("modern", "modern mcp", {}, PAUSED),
    ("modern", "legacy stdio", {}, BOUNDED),
    ("modern", "legacy mcp", {}, PAUSED),
    ("modern", "legacy mcp", {"isolation": "shared"}, PAUSED),
    ("modern", "legacy stdio", {"isolation": "shared"}, BOUNDED),
    ("modern", "legacy sse", {}, BOUNDED),
]


async def started(live: Start, flood: Flood, way: str, settings: dict[str, Any]) -> Live:
    if way == "stdio":
        command, *args = flood.argv
        return await live(
            StdioSettings(name="flood", command=command, args=tuple(args), **settings)
        )
    await flood.serve()
    return await live(
        evolve(behind(f"http://127.0.0.1:{flood.port}/{way}", name="flood"), **settings)
    )


def judge(gateway: Live, got: list[dict[str, Any]], outcome: str) -> None:
    """Whether the slow one got what it shall, in order, and its answer last."""
    *steps, answer = got
    assert "result" in answer
    numbers = [step["params"]["progress"] for step in steps]
    dropped = [event.why for event in gateway.recorder.of(MessageDropped)]
    if outcome == PAUSED:
        assert numbers == list(range(1, COUNT + 1))
        assert dropped == gateway.recorder.bounds == []
    else:
        assert numbers == sorted(set(numbers)) and len(numbers) < COUNT
        assert dropped == ["undeliverable"] * (COUNT - len(numbers))
        assert set(gateway.recorder.bounds) == {"max_stream_bytes"}


@pytest.mark.acceptance(52)
@pytest.mark.parametrize(
    ("kind", "server", "settings", "outcome"),
    CELLS,
    ids=[f"{kind}-{server}-{'-'.join(s.values()) or 'own'}" for kind, server, s, _ in CELLS],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_52_a_flood_to_a_client_that_does_not_read(
    live: Start, tmp_path: Path, kind: str, server: str, settings: dict[str, Any], outcome: str
) -> None:
    era, way = server.split()
    flood = Flood(era, tmp_path / "written")
    settings = {"era": era, **settings}
    gateway = await started(live, flood, way, settings)
    slow, other = [await opened(gateway, kind, "flood") for _ in range(2)]
    asked = await ask(gateway, slow, "flood", "flood", count=COUNT, size=SIZE)
    asked.stops()
    if outcome == PAUSED:
        assert await flood.stuck() < COUNT
    else:
        await flood.until(COUNT)
    # Whoever else calls is answered meanwhile.
    beside = await ask(gateway, other, "flood", "other")
    if kind == "sse":
        assert (await beside.messages())[-1]["id"] == "of other"
    else:
        assert b"of other" in (await beside.client.response()).body
    asked.resumes()
    if kind != "sse":
        assert (await asked.client.head()).status == 200
    judge(gateway, await asked.messages(), outcome)
    await asked.end()
    await beside.end()
    await gateway.stop()
    await flood.end()


@pytest.mark.acceptance(52)
@pytest.mark.parametrize(
    ("server", "settings", "outcome"),
    [
        ("legacy stdio", {}, BOUNDED),
        ("legacy sse", {}, BOUNDED),
        ("modern stdio", {}, BOUNDED),
        ("legacy mcp", {}, PAUSED),
        ("legacy mcp", {"proxy": "streamable"}, PAUSED),
        ("modern mcp", {}, PAUSED),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_52_another_call_of_the_same_session_does_not_wait_for_it(
    live: Start, tmp_path: Path, server: str, settings: dict[str, Any], outcome: str
) -> None:
    era, way = server.split()
    flood = Flood(era, tmp_path / "written")
    gateway = await started(live, flood, way, {"era": era, **settings})
    who = await opened(gateway, "streamable", "flood")
    asked = await ask(gateway, who, "flood", "flood", count=COUNT, size=SIZE)
    asked.stops()
    assert await flood.stuck() < COUNT
    beside = await ask(gateway, who, "flood", "other")
    assert b"of other" in (await beside.client.response()).body
    asked.resumes()
    assert (await asked.client.head()).status == 200
    judge(gateway, await asked.messages(), outcome)
    await asked.end()
    await beside.end()
    await gateway.stop()
    await flood.end()
