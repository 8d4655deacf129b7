"""What long runs share: a watched gateway, a small server, clients in a process of their own."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from processes import ROOT, Process, start
from twisted.internet import reactor
from twisted.internet.task import LoopingCall, deferLater

__all__ = [
    "TINY",
    "Gaps",
    "Watched",
    "loaded",
    "more",
    "part",
    "program",
    "tiny",
    "wait",
    "watched",
]

# Starts ten times as fast as the scripted server does, and needs a tenth of its memory.
TINY = (
    "import sys,re\n"
    "find=re.compile(rb'\"id\":(\\d+)').search\n"
    "out=sys.stdout.buffer\n"
    "for l in sys.stdin.buffer:\n"
    " m=find(l)\n"
    ' if m:out.write(b\'{"jsonrpc":"2.0","id":\'+m[1]+b\',"result":{"protocolVersion":"\'+'
    "(b'2025-11-25' if b'2025-11-25' in l[:300] else b'2025-06-18')+"
    'b\'","capabilities":{},"serverInfo":{"name":"t","version":"1"}}}\\n\');out.flush()\n'
)


def tiny(**settings: Any) -> dict[str, Any]:
    """A server that answers everything with the same, as a configuration file has it."""
    return {"command": sys.executable, "args": ["-I", "-S", "-c", TINY], **settings}


def wait(seconds: float) -> Any:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


def part(times: list[float], which: float) -> float:
    """A percentile, in milliseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * which))] * 1000


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def more(files: int = 16_000) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))


class Gaps:
    """The longest stalls of this process's reactor, from a 10 ms LoopingCall."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.p999 = 0.0
        self._last = time.monotonic()
        self._ticking = LoopingCall(self._tick)
        self._ticking.start(0.01)

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds.append(now - self._last)
        self._last = now

    def stop(self) -> str:
        self._ticking.stop()
        self.seconds.sort()
        self.p999 = self.seconds[int(len(self.seconds) * 0.999)]
        return f"p99.9 {self.p999 * 1000:.0f} ms, longest {self.seconds[-1] * 1000:.0f} ms"


async def loaded(port: int, job: str, **told: Any) -> Any:
    """Run a job of loading.py; what it found."""
    script = str(Path(__file__).with_name("loading.py"))
    process = start([sys.executable, script, str(port), job, json.dumps(told)])
    code = await process.ended
    assert code == 0, process.err
    return json.loads(process.out)


@define(eq=False)
class Watched:
    """A gateway as a process of its own that says what it holds."""

    process: Process
    port: int
    _looks: int = field(default=0)

    @property
    def pid(self) -> int:
        return self.process.transport.pid  # type: ignore[no-any-return,union-attr]

    async def held(self) -> dict[str, int]:
        """Sessions, timers, fds, threads, rss (KiB), and children but for the reaper."""
        self._looks += 1
        self.process.out = ""
        told = self.process.line(r"held (\{.*\})\n")
        self.process.kill(signal.SIGUSR2)
        held: dict[str, int] = json.loads((await told)[1])
        return {**held, "children": len(self.children())}

    def children(self) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                line = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parent) == self.pid and b"reaper" not in line:
                found.append(path.name)
        return found

    async def stop(self) -> None:
        self.process.kill()
        assert await self.process.ended == 0, self.process.err[-2000:]
        assert "Traceback" not in self.process.err, self.process.err[-2000:]


async def watched(
    folder: Path, servers: dict[str, Any], before: tuple[str, ...] = (), **gateway: Any
) -> Watched:
    """Start one. before: what stands before its command line. gateway: that section."""
    file = folder / "servers.json"
    file.write_text(json.dumps({"mcpServers": servers, "gateway": gateway}))
    words = ["-m", "tests.lab.watched", "--listen", "tcp:0:interface=127.0.0.1"]
    process = start([*before, sys.executable, *words, "--config", str(file)], cwd=str(ROOT))
    found = await process.line(r"http://127\.0\.0\.1:(\d+)/servers/")
    return Watched(process, int(re.sub(r"\D", "", found[1])))
