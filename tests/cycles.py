"""Children that come, crash and go, through a whole gateway: nothing of them is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from live import Live, faulty, startLive
from twisted.internet import reactor
from twisted.internet.task import LoopingCall, deferLater

__all__ = ["Cycles", "processes", "settled", "wait"]


def processes() -> list[tuple[str, str]]:
    """Our descendants, zombies included, and their states."""
    parents: dict[str, list[tuple[str, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append((path.parent.name, state))
    found: list[tuple[str, str]] = []
    todo = [str(os.getpid())]
    while todo:
        for pid, state in parents.get(todo.pop(), []):
            found.append((pid, state))
            todo.append(pid)
    return found


def kept(gateway: Live) -> dict[str, int]:
    """What must be flat."""
    running = processes()
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "timers": len([call for call in reactor.getDelayedCalls() if call.active()]),  # type: ignore[attr-defined]
        "processes": len(running),
        "zombies": sum(state == "Z" for _, state in running),
        "sessions": len(gateway.service.registry),
    }


def wait(seconds: float) -> Any:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


async def settled(gateway: Live, right: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """What is kept, once it is right, or after five seconds."""
    now = kept(gateway)
    for _ in range(100):
        if right(now):
            break
        await wait(0.05)
        now = kept(gateway)
    return now


class Cycles:
    """
    Spawns and exits behind one gateway, while another of its servers crashes every 50 ms.

    Children that exit with no call running would open their server's circuit if they died young;
    here every child is old enough as soon as it shook hands.
    """

    def __init__(self, gateway: Live) -> None:
        self.gateway = gateway
        self.crashes = 0
        self.cycles = 0

    @classmethod
    async def started(cls) -> Cycles:
        servers = faulty(name="cycling"), faulty(name="crashing"), faulty(name="steady")
        return cls(
            await startLive(*servers, respawn_first=0.01, respawn_last=0.01, circuit_young=0.0001)
        )

    async def run(self, count: int) -> None:
        """So many spawns and exits of a child, one way after the other."""
        gateway = self.gateway
        crashing = await gateway.session("crashing")
        steady = await gateway.session("steady")

        async def crash() -> None:
            answer = await gateway.call("crashing", crashing, "exit")
            assert answer.reason == "server_exited"
            self.crashes += 1

        looping = LoopingCall(lambda: pytest_twisted.ensureDeferred(crash)())
        crashed = looping.start(0.05)
        until = self.cycles + count
        while self.cycles < until:
            # Two children each: one crashes; one exits after an answer, or is left by its client.
            session = await gateway.session("cycling")
            assert (await gateway.call("cycling", session, "exit")).reason == "server_exited"
            last = "echo" if self.cycles % 4 else "last_words"
            assert "result" in (await gateway.call("cycling", session, last)).message
            named = {"Mcp-Session-Id": session}
            ended = await gateway.request("DELETE", "/servers/cycling/mcp", None, named)
            assert ended.status == 204
            self.cycles += 2
            answer = await gateway.call("steady", steady, "echo", x=self.cycles)
            assert answer.message["result"]["structuredContent"] == {"x": self.cycles}
        looping.stop()
        await crashed
        for server, id in (("crashing", crashing), ("steady", steady)):
            await gateway.request("DELETE", f"/servers/{server}/mcp", None, {"Mcp-Session-Id": id})
