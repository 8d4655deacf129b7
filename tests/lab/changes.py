"""What an operator does while clients call: another configuration, and a restart."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from signal import SIGHUP
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, gatherResults

from .book import Book
from .caller import Plan, pause
from .watching import WatchedGateway, descendants, stillThere

__all__ = ["Changes"]

_GONE = 0.2
"""Seconds for which a server is not configured."""
_LOOK = 0.05
"""Seconds between two looks at how many calls ended."""
_LESS = 0.5
"""Seconds by which another `max_timeout` is shorter at most."""


@define(eq=False)
class Changes:
    """
    What befalls one gateway, which is there from `begin` to `end`.

    configuration: what the gateway reads, which a change alters. file: where it is. steady: the
    servers that nobody touches. mark: in the command line of every child. away: seconds that a
    restart took at most.
    """

    configuration: dict[str, Any]
    file: Path
    steady: Sequence[str]
    mark: str
    book: Book
    seed: int
    reloads: int = field(default=0, init=False)
    restarts: int = field(default=0, init=False)
    away: float = field(default=0.0, init=False)
    gateway: WatchedGateway = field(init=False)
    _lock: DeferredLock = field(factory=DeferredLock, init=False)

    async def begin(self) -> None:
        """Start the gateway; it is ready when this returns."""
        self._write()
        self.gateway = await WatchedGateway.started(self.file)

    def _write(self) -> None:
        # The gateway may be about to read the one before: it finds either whole.
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.configuration))
        new.replace(self.file)

    async def held(self) -> dict[str, int]:
        """What the gateway holds; waits for one that is being restarted."""
        await self._lock.acquire()
        try:
            return await self.gateway.held()
        finally:
            self._lock.release()

    async def over(self, doing: Sequence[Deferred[None]]) -> None:
        """What went on beside the calls is to end; a restart that began ends first."""
        await self._lock.acquire()
        # Whoever had the lock is amid its last turn: what runs cannot be cancelled.
        await pause(0)
        for one in doing:
            one.addErrback(lambda failure: failure.trap(CancelledError) and None)
            one.cancel()
        self._lock.release()
        await gatherResults(doing, consumeErrors=True)

    # Reloads.

    async def reloading(self, every: int) -> None:
        """Change a server, or take one out and put it back, whenever so many more calls ended."""
        dice = random.Random(f"{self.seed} reloads")
        while True:
            await self._later(every)
            await self.reload(dice)

    async def _later(self, calls: int) -> None:
        """Wait until so many more calls ended."""
        until = self.book.ended + calls
        while self.book.ended < until:
            await pause(_LOOK)

    async def reload(self, dice: random.Random) -> None:
        """One change."""
        servers = self.configuration["mcpServers"]
        name = dice.choice([one for one in servers if one not in self.steady])
        if dice.random() < 0.5:
            most = 2 * servers[name]["timeout"] - round(_LESS * dice.random(), 3)
            servers[name] = {**servers[name], "max_timeout": most}
            await self._signalled()
        else:
            await self._without(name)

    async def _without(self, name: str) -> None:
        servers = self.configuration["mcpServers"]
        server = servers.pop(name)
        try:
            await self._signalled()
            await pause(_GONE)
        finally:
            servers[name] = server
            self._write()
        await self._signalled()

    async def _signalled(self) -> None:
        """SIGHUP, to a gateway that is not just being restarted."""
        await self._lock.acquire()
        try:
            self._write()
            self.gateway.process.kill(SIGHUP)
            self.reloads += 1
        finally:
            self._lock.release()

    # Restarts.

    async def restarting(self, plan: Plan, every: int) -> None:
        """Drain the gateway and start it anew where it was, whenever so many more calls ended."""
        while True:
            await self._later(every)
            await self._lock.acquire()
            try:
                began = plan.now()
                plan.restarts, plan.away = plan.restarts + 1, True
                await self.end()
                port = int(self.gateway.base.rpartition(":")[2])
                self.gateway = await WatchedGateway.started(self.file, port)
                self.restarts += 1
                self.away = max(self.away, plan.now() - began)
                plan.away = False
            finally:
                self._lock.release()

    async def end(self) -> None:
        """Stop the gateway: it exits with 0, said nothing of note, and leaves nothing."""
        gateway = self.gateway
        family = descendants(gateway.pid)
        code = await gateway.stop()
        if code != 0:
            self.book.blame(f"the gateway exited with {code}")
        for _ in range(50):
            left = stillThere(family, self.mark)
            if not left:
                break
            await pause(0.1)
        else:
            self.book.blame(f"processes left: {left}")
        if gateway.log:
            self.book.blame(f"the gateway's log: {gateway.log}")
