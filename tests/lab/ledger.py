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
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import react

from .book import Book
from .caller import PRINCIPALS, Caller, Plan, pause
from .callers import KINDS
from .changes import Changes
from .faults import FAULTS
from .held import COUNTED, Sample, drawn
from .servers import SERVERS, configuration
from .watching import WatchedGateway

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
    calls of one lane, on the average. wires: whether connections of clients and to servers are
    harmed at any time, too. reload, restart: calls from one to the next; 0: none. beside: goes
    on beside the calls, with the clients, until all have left. tell: is told every sample.
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
    wires: bool = True
    reload: int = 500
    restart: int = 25_000
    beside: Callable[[list[Caller]], Coroutine[Any, Any, None]] | None = None
    tell: Callable[[Sample], object] = lambda sample: None
    book: Book = field(init=False)
    samples: list[Sample] = field(factory=list, init=False)
    counts: Counter[str] = field(factory=Counter, init=False)
    took: float = field(default=0.0, init=False)
    _began: float = field(init=False)
    _changes: Changes = field(init=False)
    _front: str = field(init=False)

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
            server = await self._other(others, "http_server", str(self.ledger))
            wire = await self._other(others, "wire", server, *self._random)
            about = configuration(self.servers, self.ledger, int(server), int(wire), self.timeout)
            steady = [name for name in self.servers if SERVERS[name][0] == "steady"]
            mark = str(self.ledger)
            file = self.place / "servers.json"
            self._changes = Changes(about, file, steady, mark, self.book, self.seed)
            await self._changes.begin()
            try:
                port = self.gateway.base.rpartition(":")[2]
                self._front = await self._other(others, "wire", port, *self._random, "--blind")
                await self._called()
            finally:
                await self._changes.end()
        finally:
            for process in others:
                process.kill()
                await process.ended
                if "Traceback" in process.err:
                    self.book.blame(f"the laboratory's own: {process.err[-2000:]}")
        shared = [name for name, (_, _, more) in SERVERS.items() if "isolation" in more]
        self.counts = self.book.check(self.ledger, shared)

    @property
    def _random(self) -> list[str]:
        """The option of a proxy on the wire that harms connections by itself."""
        return ["--seed", str(self.seed)] if self.wires else []

    async def _other(self, others: list[Process], module: str, *words: str) -> str:
        """Start a module of the laboratory as a process of its own; returns its port."""
        others.append(start([sys.executable, "-m", f"tests.lab.{module}", *words]))
        return (await others[-1].line(r"ready (\d+)"))[1]

    async def changed(self, dice: random.Random) -> None:
        """Have the gateway read another configuration."""
        await self._changes.reload(dice)

    @property
    def gateway(self) -> WatchedGateway:
        return self._changes.gateway

    def _plan(self, book: Book, calls: int, faults: float) -> Plan:
        base = self.gateway.base
        wired = f"http://127.0.0.1:{self._front}"
        plan = Plan(base, wired, book, self.seed, calls, faults)
        plan.changes = self.reload > 0 or self.beside is not None
        return plan

    async def _called(self) -> None:
        await self._warm()
        before = await self._held()
        self._began = time.monotonic()
        plan = self._plan(self.book, self.calls, self.faults)
        plan.until = plan.now() + self.seconds
        plan.rest = self.rest
        callers = self._callers(plan, self.clients)
        others = [self._sampled()]
        if self.beside is not None:
            others.append(self.beside(callers))
        if self.reload:
            others.append(self._changes.reloading(self.reload))
        if self.restart:
            others.append(self._changes.restarting(plan, self.restart))
        beside = [ensureDeferred(one) for one in others]
        flows = [ensureDeferred(one.run()) for one in callers]
        await gatherResults(flows, consumeErrors=True)
        self.took = time.monotonic() - self._began
        await self._changes.over(beside)
        await self._settled(before)

    def _callers(self, plan: Plan, clients: int) -> list[Caller]:
        """
        The clients: of each kind for each server, each another principal than the last; and where
        wires are harmed, of one kind for each server, over such a wire.
        """
        found: list[Caller] = []
        for place, server in enumerate(self.servers):
            behind = SERVERS[server][0]
            for number in range(clients):
                for kind in KINDS:
                    principal = PRINCIPALS[len(found) % len(PRINCIPALS)]
                    name = f"{kind}:{server}:{number}"
                    found.append(KINDS[kind](plan, name, server, behind, principal))
            if self.wires and behind != "steady":
                kind = list(KINDS)[place % len(KINDS)]
                principal = PRINCIPALS[len(found) % len(PRINCIPALS)]
                name = f"{kind}:{server}:wired"
                found.append(KINDS[kind](plan, name, server, behind, principal, wired=True))
        return found

    async def _warm(self) -> None:
        """Two calls of each kind of client, so that what stays for good is there."""
        plan = self._plan(Book(self.timeout + _BUSY), 1 << 30, 0.0)
        for caller in self._callers(plan, 1):
            if not caller.wired:
                plan.left = 2
                await caller.run()
        self.ledger.write_bytes(b"")

    # What the gateway holds.

    async def _held(self) -> Sample:
        told = await self._changes.held()
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
                kinds = self.gateway.openFiles()
                self.book.blame(f"left behind: {more}; open files: {kinds}")
                return
            await pause(0.25)

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
            f"{self.book.questions:,} questions, {counts['replies']:,} answers; "
            f"{self._changes.reloads} reloads, {self._changes.restarts} restarts "
            f"of at most {self._changes.away:.1f} s; "
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
    parser.add_argument(
        "--reload", type=int, default=500, help="calls from one to the next; 0: none"
    )
    parser.add_argument("--restart", type=int, default=25_000, help="calls; 0: none")
    parser.add_argument("--no-wires", action="store_true", help="harm no wire but at a verb")
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
        wires=not options.no_wires,
        reload=options.reload,
        restart=options.restart,
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
