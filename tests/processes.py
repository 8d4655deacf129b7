"""Real processes for tests, under the test's own reactor."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

ROOT = Path(__file__).resolve().parent.parent


class Process(ProcessProtocol):
    """
    A process whose output is collected.

    `line(pattern)` fires with the match of a pattern in its output; `ended` fires with its exit
    code (a signal's is negative).
    """

    def __init__(self) -> None:
        self.out = ""
        self.err = ""
        self.ended: Deferred[int] = Deferred()
        self._waiting: list[tuple[re.Pattern[str], Deferred[re.Match[str]]]] = []

    def line(self, pattern: str) -> Deferred[re.Match[str]]:
        fires: Deferred[re.Match[str]] = Deferred()
        self._waiting.append((re.compile(pattern), fires))
        self._look()
        return fires

    def _look(self) -> None:
        for waiting in list(self._waiting):
            found = waiting[0].search(self.out) or waiting[0].search(self.err)
            if found:
                self._waiting.remove(waiting)
                waiting[1].callback(found)

    def outReceived(self, data: bytes) -> None:
        self.out += data.decode(errors="replace")
        self._look()

    def errReceived(self, data: bytes) -> None:
        self.err += data.decode(errors="replace")
        self._look()

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        code = value.exitCode if value.exitCode is not None else -value.signal
        for _, fires in self._waiting:
            fires.errback(AssertionError(f"exited with {code}:\n{self.out}\n{self.err}"))
        self._waiting.clear()
        self.ended.callback(code)

    def kill(self, sig: int = signal.SIGTERM) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(sig)


def start(
    argv: Sequence[str],
    environ: dict[str, str] | None = None,
    cwd: str = "",
    process: Process | None = None,
) -> Process:
    """Start a process from the checkout. process: what hears its output."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    env.update(environ or {})
    process = process or Process()
    reactor.spawnProcess(  # type: ignore[attr-defined]
        process, argv[0], list(argv), env=env, path=cwd or str(ROOT)
    )
    return process


@define
class Gateway:
    """A gateway that runs as a process of its own, and where it listens."""

    process: Process
    base: str = field(default="")

    async def stop(self) -> int:
        """SIGTERM; returns its exit code."""
        if not self.process.ended.called:
            self.process.kill()
        return await self.process.ended


async def startGateway(*words: str, listen: str = "tcp:0:interface=127.0.0.1") -> Gateway:
    """Run `python -m gateway.tap` with these words; returns when it is ready."""
    argv = [sys.executable, "-m", "gateway.tap", "--listen", listen, *words]
    process = start(argv)
    found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/")
    return Gateway(process, found[1])
