"""
Memory that runs short, with real processes and the real clock; each run prints its figures.

GATEWAY_SOAK_SECONDS: how long each load lasts.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import pytest_twisted
from posting import connected, posted
from processes import ROOT, Gateway, startGateway
from soaking import wait

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("GATEWAY_SOAK_SECONDS", 20))
MIB = 1024 * 1024


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
