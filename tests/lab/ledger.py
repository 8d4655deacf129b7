"""
The ledger: many clients of all three proxies and both eras call through one gateway at once, over
servers, wires and clients that fail at random; afterwards what was asked, executed and answered
must agree.

    python -m tests.lab.ledger --calls 100000 --seed 7 --plot ledger.svg

Each call has a token of its own and ends as planned by the seed. Servers write down what they
execute before they do it, and clients judge every message they get. So what is lost, doubled,
crossed or run twice cannot hide. The gateway is a process of its own; what it holds is sampled, and
when all clients have left it must hold what it held at first.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from attrs import define, field
from processes import Process, start
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults
from twisted.internet.task import react
from twisted.python.failure import Failure

from .book import Book
from .callers import KINDS, Caller, Plan, pause
from .faults import FAULTS
from .held import COUNTED, Sample, drawn
from .servers import SERVERS, configuration
from .watching import WatchedGateway, descendants, stillThere

__all__ = ["Ledger"]

_BUSY = 3.0
"""Seconds that a busy machine may need beyond a call's time-out."""
_SETTLE = 20.0
"""Seconds that what is held may take to go once all clients have left."""


@define(eq=False)
class Ledger:
    """
    One run. `run` does it all; then `wrong` is what was broken.

    seed: of everything that is random. calls: how many in all. seconds: at most so many.
    clients: how many of each kind for each server. faults: how many of a hundred calls go wrong.
    place: a folder for what the run writes. every: seconds between samples. timeout: seconds that a
    call may take, as the gateway is configured. rest: seconds for which a client rests between two
    calls of one lane, on the average. beside: goes on beside the calls, with the clients, until all
    have left. tell: is told every sample.
    """

    seed: int
    calls: int
    place: Path
    clients: int = 1
    faults: float = 12.0
    seconds: float = float("inf")
    every: float = 1.0
    servers: tuple[str, ...] = tuple(SERVERS)
    timeout: float = 2.0
    rest: float = 0.0
    beside: Callable[[list[Caller]], Coroutine[Any, Any, None]] | None = None
    tell: Callable[[Sample], object] = lambda sample: None
    book: Book = field(init=False)
    samples: list[Sample] = field(factory=list, init=False)
    counts: Counter[str] = field(factory=Counter, init=False)
    took: float = field(default=0.0, init=False)
    _plan: Plan = field(init=False)
    _began: float = field(init=False)
    _gateway: WatchedGateway = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.book = Book(self.timeout + _BUSY)

    @property
    def ledger(self) -> Path:
        return self.place / "ledger"

    @property
    def wrong(self) -> list[str]:
        return self.book.wrong

    async def run(self) -> None:
        """Start all of it, call, judge, and end all of it."""
        others: list[Process] = []
        try:
            ports = await self._others(others)
            config = self.place / "servers.json"
            config.write_text(
                json.dumps(configuration(self.servers, self.ledger, *ports, self.timeout))
            )
            self._gateway = await WatchedGateway.started(config)
            try:
                await self._called()
            finally:
                await self._stopped()
        finally:
            for process in others:
                process.kill()
                await process.ended
        self.counts = self.book.check(self.ledger)

    async def _others(self, others: list[Process]) -> list[int]:
        """The HTTP server, and the fault proxy in front of it."""
        module = [sys.executable, "-m"]
        others.append(start([*module, "tests.lab.http_server", str(self.ledger)]))
        server = (await others[0].line(r"ready (\d+)"))[1]
        others.append(start([*module, "tests.lab.wire", server]))
        return [int(server), int((await others[1].line(r"ready (\d+)"))[1])]

    async def _called(self) -> None:
        await self._warm()
        before = await self._held()
        self._began = time.monotonic()
        self._plan = Plan(self._gateway.base, self.book, self.seed, self.calls, self.faults)
        self._plan.until = self._plan.now() + self.seconds
        self._plan.rest = self.rest
        callers = self._callers(self._plan, self.clients)
        others = [self._sampled()] + ([self.beside(callers)] if self.beside else [])
        beside = [ensureDeferred(one).addErrback(_cancelled) for one in others]
        flows = [ensureDeferred(one.run()) for one in callers]
        await gatherResults(flows, consumeErrors=True)
        self.took = time.monotonic() - self._began
        for one in beside:
            one.cancel()
        await gatherResults(beside, consumeErrors=True)
        await self._settled(before)

    def _callers(self, plan: Plan, clients: int) -> list[Caller]:
        return [
            kind(plan, f"{name}-{server}-{number}", server, SERVERS[server][0])
            for number in range(clients)
            for server in self.servers
            for name, kind in KINDS.items()
        ]

    async def _warm(self) -> None:
        """Two calls of each kind of client, so that what stays for good is there."""
        plan = Plan(self._gateway.base, Book(self.timeout + _BUSY), self.seed, 1 << 30, 0.0)
        for caller in self._callers(plan, 1):
            plan.left = 2
            caller.who += "-warm"
            await caller.run()
        self.ledger.write_bytes(b"")

    # What the gateway holds.

    async def _held(self) -> Sample:
        told = await self._gateway.held()
        began = getattr(self, "_began", time.monotonic())
        counted = {name: told[name] for name in ("rss", *COUNTED)}
        return Sample(time.monotonic() - began, self.book.ended, **counted)

    async def _sampled(self) -> None:
        while True:
            await pause(self.every)
            self.samples.append(await self._held())
            self.tell(self.samples[-1])

    async def _settled(self, before: Sample) -> None:
        """Wait until no more is held than before the first call."""
        until = time.monotonic() + _SETTLE
        while True:
            now = await self._held()
            more = {
                name: f"{getattr(before, name)} → {getattr(now, name)}"
                for name in COUNTED
                if getattr(now, name) > getattr(before, name)
            }
            self.samples.append(now)
            if not more:
                return
            if time.monotonic() > until:
                kinds = self._gateway.openFiles()
                self.book.blame(f"left behind: {more}; open files: {kinds}")
                return
            await pause(0.25)

    async def _stopped(self) -> None:
        family = descendants(self._gateway.pid)
        code = await self._gateway.stop()
        if code != 0:
            self.book.blame(f"the gateway exited with {code}")
        for _ in range(50):
            left = stillThere(family, str(self.ledger))
            if not left:
                break
            await pause(0.1)
        else:
            self.book.blame(f"processes left: {left}")
        if self._gateway.log:
            self.book.blame(f"the gateway's log: {self._gateway.log}")

    # What came of it.

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.book.ended / self.took if self.took else 0.0

    def table(self) -> str:
        """The outcomes of each kind."""
        lines = ["| kind | calls | slowest | outcomes |", "|---|---|---|---|"]
        for verb, outcomes in sorted(self.book.outcomes.items()):
            told = ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common())
            slowest = f"{self.book.slowest[verb]:.2f} s"
            lines.append(f"| {verb} | {sum(outcomes.values()):,} | {slowest} | {told} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        kinds = len(self.book.outcomes)
        counts = self.counts
        text = (
            f"ledger seed {self.seed}: {self.book.asked:,} calls, {kinds} kinds, "
            f"{len(self.servers)} servers, {len(KINDS)} proxies, {self.clients} clients of each, "
            f"{self.took:.1f} s, {self.rate:.0f} calls/s; {counts['answered']:,} ended, "
            f"{counts['executed']:,} executed in {counts['processes']:,} processes; "
            f"{self.book.broken} promises broken"
        )
        if self.samples:
            first, last = self.samples[0], self.samples[-1]
            most = max(sample.rss for sample in self.samples)
            text += (
                f"; RSS {first.rss // 1024} → {last.rss // 1024} MiB (most {most // 1024}), "
                f"fds {first.fds} → {last.fds}, timers {first.timers} → {last.timers}, "
                f"children {first.children} → {last.children}, "
                f"zombies at most {max(sample.zombies for sample in self.samples)}"
            )
        return text


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


def _options() -> argparse.Namespace:
    about, _, more = (__doc__ or "").strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.ledger", description=about + "\n\n" + more
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--clients", type=int, default=1, help="of each kind, for each server")
    parser.add_argument("--faults", type=float, default=12.0, help="of a hundred calls")
    parser.add_argument("--servers", default=",".join(SERVERS), help="of " + ", ".join(SERVERS))
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--plot", type=Path, help="where to draw what was held")
    parser.add_argument("--tokens", action="store_true", help="tell some of each outcome")
    parser.add_argument("--keep", type=Path, help="a folder for the ledger and the configuration")
    return parser.parse_args()


async def _main(options: argparse.Namespace, place: Path) -> bool:
    def tell(sample: Sample) -> None:
        print(sample, flush=True)

    run = Ledger(
        seed=options.seed,
        calls=options.calls,
        place=place,
        clients=options.clients,
        faults=options.faults,
        seconds=options.seconds,
        every=options.every,
        servers=tuple(options.servers.split(",")),
        tell=tell,
    )
    print(f"ledger: --seed {options.seed} --calls {options.calls}, {len(FAULTS)} kinds of fault")
    await run.run()
    print(run.table())
    if options.tokens:
        for (verb, outcome), tokens in sorted(run.book.tokens.items()):
            print(f"{verb}: {outcome}: {' '.join(tokens)}")
    print(run)
    for text in run.wrong:
        print("BROKEN", text)
    if options.plot:
        drawn(run.samples, options.plot)
    return not run.book.broken


def main() -> None:
    options = _options()
    right: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        place = options.keep or Path(folder)
        place.mkdir(exist_ok=True)

        def run(_: object) -> Deferred[None]:
            running = ensureDeferred(_main(options, place))
            return running.addCallback(right.append)

        try:
            react(run)
        except SystemExit as end:
            raise SystemExit(end.code or (0 if right == [True] else 1)) from None


if __name__ == "__main__":
    main()
