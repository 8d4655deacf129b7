"""
Memory that runs short, with real processes and the real clock; each run prints its figures.

GATEWAY_SOAK_SECONDS: how long each load lasts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_twisted
from posting import connected, posted
from processes import ROOT, Gateway, Process, start
from soaking import wait

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("GATEWAY_SOAK_SECONDS", 20))
MIB = 1024 * 1024


class Group:
    """A memory cgroup (v1) below this process's own, with a limit; skips where none can be."""

    def __init__(self, limit: int) -> None:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = [line.split(":", 2)[2] for line in lines if ":memory:" in line]
        if os.geteuid() or not own:
            pytest.skip("a memory cgroup (v1) takes root, and a system that has them")
        self.path = Path("/sys/fs/cgroup/memory", own[0].lstrip("/"), f"gateway-{os.getpid()}")
        try:
            self.path.mkdir()
            (self.path / "memory.limit_in_bytes").write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup could be made: {error}")

    def start(self, words: list[str]) -> Process:
        entering = ["/bin/sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec "$@"', "sh"]
        return start([*entering, *words])

    def told(self, name: str) -> int:
        return int((self.path / f"memory.{name}").read_text())

    def kills(self) -> int:
        text = (self.path / "memory.oom_control").read_text()
        return int(text.partition("oom_kill ")[2])


@pytest.mark.acceptance(95)
@pytest_twisted.ensureDeferred
async def test_acceptance_95_nothing_is_killed_for_memory(tmp_path: Path) -> None:
    """
    The same in a cgroup of which the gateway is told three fifths: its children, and what runs when
    the limit is reached, need some. With the gateway's limit off, the kernel ends it here.
    """
    group = Group(256 * MIB)
    try:
        await _pressed(tmp_path, 160 * MIB, group.start)
        print(
            f"cgroup: limit 256 MiB, {group.told('max_usage_in_bytes') // MIB} MiB at most; "
            f"{group.told('failcnt')} times at the limit, {group.kills()} killed"
        )
        assert group.kills() == 0
    finally:
        for _ in range(50):
            try:
                group.path.rmdir()
                break
            except OSError:
                await wait(0.1)


@pytest.mark.acceptance(95)
@pytest_twisted.ensureDeferred
async def test_acceptance_95_memory_near_its_limit(tmp_path: Path) -> None:
    """Without the limit this takes eight times as much."""
    await _pressed(tmp_path, 160 * MIB, start)


async def _pressed(tmp_path: Path, limit: int, begin: Callable[[list[str]], Process]) -> None:
    """Sessions whose answers wait for clients that went away: each keeps a megabyte."""
    file = tmp_path / "servers.json"
    script = str(ROOT / "tests" / "faulty_server.py")
    server = {"command": "python3", "args": ["-S", script], "isolation": "shared"}
    gateway_ = {"memory_limit": limit, "limits": {"session_unused": 600, "logged_for": 20}}
    file.write_text(json.dumps({"mcpServers": {"faulty": server}, "gateway": gateway_}))
    words = [sys.executable, "-m", "gateway.tap", "--listen", "tcp:0:interface=127.0.0.1"]
    process = begin([*words, "--config", str(file)])
    found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/")
    gateway = Gateway(process, found[1])
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
    # It ends by itself, with nobody calling, when what was kept for resumption is too old.
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
    # Nor does the end take more.
    process.kill()
    ending = returned
    while not process.ended.called:
        with suppress(OSError, IndexError):
            ending = max(ending, used())
        await wait(0.005)
    print(f"memory: {ending // MIB} MiB at most while it ended")
    assert await process.ended == 0
    assert ending < limit * 1.25
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
