"""
How long the gateway keeps its reactor in one stretch while bodies of 4 MiB go through it.

`python -m benchmarks.stretches` starts a gateway whose poller tells the CPU time from each return
of it to the next call: what is done in one turn, while everybody else waits. From these follows how
long what comes at any moment waits for its turn. In CPU time, what else the machine does is not in
it: on two shared cores latencies tell more of the scheduler. Linux only, for it wraps the poller of
`EPollReactor`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.client import Client
from benchmarks.process import ROOT, Background, freePort
from benchmarks.subjects import ECHO_HTTP, ECHO_STDIO, HTTP, STREAMABLE

__all__ = ["Stretches", "main", "measure", "waits"]

MIB = 1024 * 1024
_SERVE = "serve"


class Stretches:
    """
    A poller that keeps the CPU seconds between its calls.

    seconds: of each turn so far.
    """

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._since = time.thread_time()
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self._since = time.thread_time()

    def poll(self, timeout: float, most: int) -> Any:
        """See select.epoll."""
        self.seconds.append(time.thread_time() - self._since)
        ready = self._poller.poll(timeout, most)
        self._since = time.thread_time()
        return ready


def _serve(report: Path, words: list[str]) -> None:
    """A gateway that writes its stretches down when it ends."""
    from twisted.internet import reactor

    from gateway.tap import main as run

    own: Any = reactor
    stretches = own._poller = Stretches(own._poller)
    # What its start took is nobody's wait.
    own.callWhenRunning(stretches.clear)
    own.addSystemEventTrigger(
        "before", "shutdown", lambda: report.write_text(json.dumps(stretches.seconds))
    )
    run(words)


def waits(turns: list[float], seconds: float, part: float) -> float:
    """
    How long, at most, this part of what comes at random moments waits for the turn that runs.

    turns: CPU seconds of each, of which the gateway does one after the other within `seconds`, on a
    core that it has to itself.
    """
    left, count, total = (1 - part) * seconds, 0, 0.0
    for turn in sorted(turns, reverse=True):
        # So many are longer than the wait that is looked for; they overlap it by what is left.
        if count and total - count * turn >= left:
            break
        count, total = count + 1, total + turn
    return max(0.0, (total - left) / count) if count else 0.0


def measure(
    lane: str, size: int, seconds: float, pace: float, checkout: Path
) -> tuple[list[float], int]:
    """
    CPU seconds of each turn while one session has texts of `size` characters echoed, and how many
    were.

    pace: seconds from one call to the next. checkout: of the gateway.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server: dict[str, Any] = {"command": ECHO_STDIO[0], "args": ECHO_STDIO[1:]}
        if lane == HTTP:
            upstream = freePort()
            behind = Background([*ECHO_HTTP, str(upstream)], upstream)
            stack.callback(behind.close)
            behind.waitUntilItListens()
            server = {"type": "http", "url": f"http://127.0.0.1:{upstream}/mcp"}
        configuration, report = directory / "gateway.json", directory / "stretches.json"
        configuration.write_text(json.dumps({"mcpServers": {"echo": server}}))
        port = freePort()
        listen = f"tcp:{port}:interface=127.0.0.1"
        gateway = ["--config", str(configuration), "--listen", listen]
        argv = [sys.executable, "-P", __file__, _SERVE, str(report), *gateway]
        running = Background(argv, port, environ={"PYTHONPATH": str(checkout)})
        client = stack.enter_context(Client())
        try:
            running.waitUntilItListens()
            opened = {"path": "/servers/echo/mcp", "sse": False, "revision": "2025-06-18"}
            client.do("open", name="one", port=port, sessions=1, streams=False, **opened)
            shape = {"size": size}
            done = client.run("calls", "one", shape=shape, seconds=seconds, pace=pace, patience=30)
        finally:
            running.close()
        if done.errors or not done.done:
            raise SystemExit(f"{done.errors} errors: {done.first} {running.output()}")
        taken: list[float] = json.loads(report.read_text())
        return taken, done.done


def _told(turns: list[float], bodies: int, pace: float) -> str:
    ordered = sorted(turns)
    # Two for each body: it came whole, and its answer did.
    longest = statistics.median(ordered[-2 * bodies :])
    waited = [waits(ordered, bodies * pace, part) for part in (0.99, 0.999)]
    parts = [
        f"{bodies} bodies, {sum(ordered) / bodies * 1e3:.1f} ms each in {len(ordered):,} turns",
        f"the two longest for each {longest * 1e3:.2f} ms in the middle",
        f"the longest {' '.join(f'{one * 1e3:.2f}' for one in ordered[-3:])}",
        f"at {1 / pace:.0f} a second others wait {waited[0] * 1e3:.2f} ms (p99), "
        f"{waited[1] * 1e3:.2f} (p99.9)",
    ]
    return "; ".join(parts)


def main(words: list[str]) -> None:
    """Measure both lanes, or the one that is named."""
    if words[:1] == [_SERVE]:
        _serve(Path(words[1]), words[2:])
        return
    parser = argparse.ArgumentParser(prog="benchmarks.stretches", description=__doc__)
    parser.add_argument("--lanes", default=f"{STREAMABLE},{HTTP}")
    parser.add_argument("--size", type=int, default=4 * MIB - 1024, help="characters of a text")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pace", type=float, default=0.1, help="seconds from call to call")
    parser.add_argument("--before", type=Path, help="another checkout, to measure beside")
    given = parser.parse_args(words)
    checkouts = {"": ROOT} if given.before is None else {"": ROOT, "before, ": given.before}
    for lane in given.lanes.split(","):
        for name, checkout in checkouts.items():
            turns, bodies = measure(lane, given.size, given.seconds, given.pace, checkout)
            print(f"{name}{lane}: {_told(turns, bodies, given.pace)}")


if __name__ == "__main__":
    main(sys.argv[1:])
