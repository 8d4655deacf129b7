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
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import define, field
from processes import Gateway, Process, start
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import react

from .book import Book
from .callers import KINDS, Caller, Plan, pause
from .faults import FAULTS

__all__ = ["SERVERS", "Ledger", "Sample"]

TIMEOUT = 2.0
"""Seconds that a call may take, as the gateway is configured."""
PROMPTLY = 5.0
"""Seconds after which a call must have ended: that, and the turns of a busy machine."""
_SETTLE = 20.0
"""Seconds that what is held may take to go once all clients have left."""

LIMITS = {
    "respawn_first": 0.01,
    "respawn_last": 0.05,
    "circuit_failures": 1_000_000,
    "eof_wait": 0.3,
    "term_wait": 0.3,
    "heartbeat": 2.0,
    "pooled_idle": 1.0,
    "session_unused": 10.0,
    "session_idle": 10.0,
    "max_pooled_sessions": 4,
}

SERVERS: dict[str, tuple[str, str, dict[str, object]]] = {
    # name: what is behind, which of it, and its settings.
    "own": ("stdio", "legacy", {"callers": "header:X-Caller"}),
    "both": ("stdio", "both", {}),
    "shared": ("stdio", "legacy", {"isolation": "shared"}),
    "stdio-modern": ("stdio", "modern", {}),
    "http": ("http", "legacy", {"era": "legacy"}),
    "http-own": ("http", "legacy", {"era": "legacy", "proxy": "streamable", "callers": "call"}),
    "http-shared": ("http", "legacy", {"era": "legacy", "isolation": "shared"}),
    "http-both-modern": ("http", "both", {"era": "modern"}),
    "http-modern": ("http", "modern", {"era": "modern"}),
    "sse": ("sse", "sse", {"era": "legacy", "type": "sse", "callers": "header:X-Caller"}),
    "wire": ("wire", "legacy", {"era": "legacy", "proxy": "streamable"}),
    "wire-modern": ("wire", "modern", {"era": "modern"}),
    # Nothing goes wrong here, whatever does beside it.
    "steady": ("steady", "both", {}),
}


@define
class Sample:
    """What the gateway held at one time. at: seconds after the start; rss: in KiB."""

    at: float
    calls: int
    rss: int
    fds: int
    timers: int
    sessions: int
    children: int
    zombies: int


@define(eq=False)
class Ledger:
    """
    One run. `run` does it all; then `wrong` is what was broken.

    seed: of everything that is random. calls: how many in all. seconds: at most so many.
    clients: how many of each kind for each server. faults: how many of a hundred calls go wrong.
    place: a folder for what the run writes. every: seconds between samples.
    """

    seed: int
    calls: int
    place: Path
    clients: int = 1
    faults: float = 12.0
    seconds: float = float("inf")
    every: float = 1.0
    servers: tuple[str, ...] = tuple(SERVERS)
    tell: Any = None
    book: Book = field(init=False)
    samples: list[Sample] = field(factory=list, init=False)
    counts: Counter[str] = field(factory=Counter, init=False)
    took: float = field(default=0.0, init=False)
    _plan: Plan = field(init=False)
    _began: float = field(init=False)
    _gateway: Gateway = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.book = Book(PROMPTLY)

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
            config.write_text(json.dumps(self._configuration(*ports)))
            self._gateway = await _gateway(config)
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

    def _configuration(self, http: int, wire: int) -> dict[str, object]:
        child = str(Path(__file__).with_name("stdio_server.py"))
        servers: dict[str, object] = {}
        for name in self.servers:
            behind, which, settings = SERVERS[name]
            if behind in ("stdio", "steady"):
                args = ["-I", "-S", child, which, str(self.ledger)]
                server = {"command": sys.executable, "args": args}
            else:
                port = wire if behind == "wire" else http
                server = {"url": f"http://127.0.0.1:{port}/{which}"}
            slow = 60.0 if behind == "steady" else TIMEOUT
            times = {"timeout": slow, "max_timeout": 2 * slow}
            servers[name] = {**server, **times, **settings}
        return {"mcpServers": servers, "gateway": {"limits": LIMITS}}

    async def _called(self) -> None:
        await self._warm()
        before = await self._held()
        self._began = time.monotonic()
        self._plan = Plan(self._gateway.base, self.book, self.seed, self.calls, self.faults)
        self._plan.until = self._plan.now() + self.seconds
        sampling = ensureDeferred(self._sampled())
        flows = [ensureDeferred(one.run()) for one in self._callers(self._plan, self.clients)]
        await gatherResults(flows, consumeErrors=True)
        self.took = time.monotonic() - self._began
        sampling.cancel()
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
        plan = Plan(self._gateway.base, Book(PROMPTLY), self.seed, 1 << 30, 0.0)
        for caller in self._callers(plan, 1):
            plan.left = 2
            caller.who += "-warm"
            await caller.run()
        self.ledger.write_bytes(b"")

    # What the gateway holds.

    async def _held(self) -> Sample:
        process = self._gateway.process
        process.out = ""
        process.kill(_USR2)
        told = json.loads((await process.line(r"held (\{.*\})\n"))[1])
        running = descendants(process.transport.pid)
        began = getattr(self, "_began", time.monotonic())
        return Sample(
            time.monotonic() - began,
            self.book.ended,
            told["rss"],
            told["fds"],
            told["timers"],
            told["sessions"],
            len(running),
            sum(state == "Z" for state in running.values()),
        )

    async def _sampled(self) -> None:
        from twisted.internet.defer import CancelledError

        try:
            while True:
                await pause(self.every)
                self.samples.append(await self._held())
                if self.tell is not None:
                    self.tell(self.samples[-1])
        except CancelledError:
            return

    async def _settled(self, before: Sample) -> None:
        """Wait until no more is held than before the first call."""
        until = time.monotonic() + _SETTLE
        while True:
            now = await self._held()
            names = ("fds", "timers", "sessions", "children", "zombies")
            more = {
                name: f"{getattr(before, name)} → {getattr(now, name)}"
                for name in names
                if getattr(now, name) > getattr(before, name)
            }
            self.samples.append(now)
            if not more:
                return
            if time.monotonic() > until:
                kinds = openFiles(self._gateway.process.transport.pid)
                self.book.blame(f"left behind: {more}; open files: {kinds}")
                return
            await pause(0.25)

    async def _stopped(self) -> None:
        process = self._gateway.process
        family = descendants(process.transport.pid)
        code = await self._gateway.stop()
        if code != 0:
            self.book.blame(f"the gateway exited with {code}")
        for _ in range(50):
            left = [pid for pid in family if running(pid, str(self.ledger))]
            if not left:
                break
            await pause(0.1)
        else:
            self.book.blame(f"processes left: {left}")
        if process.err:
            self.book.blame(f"the gateway's log: {process.err}")

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


_USR2 = 12


class _Watched(Process):
    """A gateway of whose log no more is kept than what is no routine."""

    _rest = ""
    _kept = 0

    def errReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            # What servers write is their own affair.
            if "[gateway.server#" in line:
                continue
            if "Traceback" in line or "Unhandled" in line or "#critical]" in line:
                self._kept = 60
            if self._kept > 0 and len(self.err) < 20_000:
                self._kept -= 1
                self.err += line + "\n"


async def _gateway(config: Path) -> Gateway:
    listen = "tcp:0:interface=127.0.0.1"
    argv = ["-m", "tests.lab.watched", "--listen", listen, "--config", str(config)]
    process = start([sys.executable, *argv], process=_Watched())
    found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/")
    return Gateway(process, found[1])


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


def openFiles(pid: int) -> Counter[str]:
    """What a process has open, by kind; of a socket its state and its peer's port."""
    sockets = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        sockets[f"socket:[{words[9]}]"] = f"tcp {int(words[2][9:], 16)} in state {words[3]}"
    found: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except OSError:
            continue
        found[sockets.get(target, target.partition(":")[0])] += 1
    return found


def running(pid: int, mark: str) -> bool:
    """Whether a process is there, and still the one with that in its command line."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return mark.encode() in line or line.startswith(b"sleep\x00600")


def drawn(samples: list[Sample], file: Path) -> None:
    """Draw what was held; needs the `bench` extra."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5))
    at = [sample.at for sample in samples]
    top.plot(at, [sample.rss / 1024 for sample in samples], label="RSS, MiB")
    top.set_ylim(0, 1.2 * max(sample.rss / 1024 for sample in samples))
    top.legend(loc="lower right")
    for name in ("fds", "timers", "sessions", "children", "zombies"):
        bottom.plot(at, [getattr(sample, name) for sample in samples], label=name)
    bottom.set_ylim(0, 1.3 * max(sample.fds for sample in samples))
    bottom.set_xlabel("seconds")
    bottom.legend(loc="upper right", ncols=5, fontsize="small")
    figure.tight_layout()
    figure.savefig(file)


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
        print(
            f"{sample.at:7.1f} s {sample.calls:9,} calls  RSS {sample.rss / 1024:6.1f} MiB  "
            f"fds {sample.fds}  timers {sample.timers}  sessions {sample.sessions}  "
            f"children {sample.children}  zombies {sample.zombies}",
            flush=True,
        )

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
