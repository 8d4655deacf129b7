"""The gateway of a run, a process of its own (`watched.py`): its start, what it holds, its end."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from signal import SIGUSR2

from attrs import define
from processes import Process, start

from benchmarks.process import freePort

__all__ = ["WatchedGateway", "descendants", "stillThere"]


_NOTABLE = ("Traceback", "Unhandled", "#critical]", "configuration is not taken")
"""What of a log is no routine."""


class _Logged(Process):
    """A gateway of whose log no more is kept than what is no routine."""

    _rest = ""
    _kept = 0

    def errReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            # What servers write is their own affair.
            if "[gateway.server#" in line:
                continue
            if any(one in line for one in _NOTABLE):
                self._kept = 60
            if self._kept > 0 and len(self.err) < 20_000:
                self._kept -= 1
                self.err += line + "\n"


@define(eq=False)
class WatchedGateway:
    """A gateway that was started; whoever started it stops it. base: its URL without a path."""

    process: Process
    base: str

    @classmethod
    async def started(cls, config: Path, port: int = 0) -> WatchedGateway:
        """Start one; it is ready when this returns. port: where it listens; 0: one that lasts."""
        # Not one that the system gives connections: who connects again and again to such a port
        # while nobody listens there meets itself in the end (RFC 9293 section 3.5): it is taken.
        listen = f"tcp:{port or freePort()}:interface=127.0.0.1"
        argv = ["-m", "tests.lab.watched", "--listen", listen, "--config", str(config)]
        process = start([sys.executable, *argv], process=_Logged())
        found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/")
        return cls(process, found[1])

    @property
    def pid(self) -> int:
        pid: int = self.process.transport.pid
        return pid

    @property
    def log(self) -> str:
        """Of its log what is no routine."""
        return self.process.err

    async def held(self) -> dict[str, int]:
        """What it holds: see `watched.held`; with `children` and `zombies`."""
        self.process.out = ""
        self.process.kill(SIGUSR2)
        told: dict[str, int] = json.loads((await self.process.line(r"held (\{.*\})\n"))[1])
        states = descendants(self.pid).values()
        zombies = sum(state == "Z" for state in states)
        return {**told, "children": len(states), "zombies": zombies}

    def openFiles(self) -> Counter[str]:
        """What it has open, by kind; of a socket its state and its peer's port."""
        sockets = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            sockets[f"socket:[{words[9]}]"] = f"tcp {int(words[2][9:], 16)} in state {words[3]}"
        found: Counter[str] = Counter()
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(entry.path)
            except OSError:
                continue
            found[sockets.get(target, target.partition(":")[0])] += 1
        return found

    async def stop(self) -> int:
        """SIGTERM; returns its exit code."""
        if not self.process.ended.called:
            self.process.kill()
        return await self.process.ended


def descendants(root: int) -> dict[int, str]:
    """The descendants of a process, and their states."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                text = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            state, parent = text.rpartition(")")[2].split()[:2]
            parents.setdefault(int(parent), []).append((int(entry.name), state))
    found: dict[int, str] = {}
    todo = [root]
    while todo:
        for pid, state in parents.get(todo.pop(), []):
            found[pid] = state
            todo.append(pid)
    return found


def stillThere(pids: Iterable[int], mark: str) -> list[int]:
    """Which of them run, and are still those with that in their command line."""
    found = []
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in line or line.startswith(b"sleep\x00600"):
            found.append(pid)
    return found
