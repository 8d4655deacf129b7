"""
The soak: clients of all proxies and both eras call at a modest rate for an hour, with a fault
every few seconds, and what the gateway holds must not grow.

    python -m tests.lab.soak --hours 1 --seed 7 --plot soak.svg

The calls and faults are the ledger's, judged by its book. The kinds of fault, a reload among them,
come round one after the other, shuffled anew each time. What is held is sampled after a collection
of garbage and a malloc_trim; slopes are by least squares over the last three quarters. Ends with
another status than 0 where a promise broke, or from half an hour on where a slope is over its
bound.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attrs import define, field
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import react

from .caller import LANES, Caller, pause
from .callers import KINDS
from .faults import FAULTS, Fault
from .held import COUNTED, Sample, drawn, slopeOf
from .ledger import Ledger
from .servers import SERVERS

__all__ = ["Soak"]

RSS = 1.0
"""MB an hour by which the resident memory may grow."""
FLAT = 3.0
"""
How much of anything else an hour what grows may at least be said to grow, after two standard
errors: what one kind of fault leaves behind each time is four times as much.
"""
JUDGED = 1800.0
"""Seconds from which on a slope says something."""
_TIMEOUT = 5.0
"""Seconds of a call: on a machine that does other work a turn may last a second."""


@define(eq=False)
class Soak:
    """
    One soak. `run` does it all; then `wrong` is what was broken.

    seed: of everything that is random. seconds: for how long. place: a folder for what it writes.
    each: seconds from one fault to the next. rate: calls a second, about. every: seconds between
    samples.
    """

    seed: int
    seconds: float
    place: Path
    each: float = 5.0
    rate: float = 75.0
    every: float = 10.0
    faults: Counter[str] = field(factory=Counter, init=False)
    ledger: Ledger = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ledger = Ledger(
            seed=self.seed,
            calls=1 << 40,
            place=self.place,
            faults=0.0,
            seconds=self.seconds,
            every=self.every,
            timeout=_TIMEOUT,
            rest=len(SERVERS) * len(KINDS) * LANES / self.rate,
            wires=False,
            reload=0,
            restart=0,
            beside=self._faults,
        )

    async def run(self) -> None:
        """Call, fail and judge until the time is over."""
        await self.ledger.run()

    async def _faults(self, callers: Sequence[Caller]) -> None:
        """One fault at a time: the next call of a client that it suits has it."""
        dice = random.Random(f"{self.seed} faults")
        deck: list[Fault | None] = []
        while True:
            await pause(self.each)
            if not deck:
                # None: another configuration.
                deck = [*FAULTS, None]
                dice.shuffle(deck)
            fault = deck.pop()
            if fault is None:
                self.faults["reload"] += 1
                await self.ledger.changed(dice)
                continue
            suited = [
                one for one in callers if one.behind in fault.behind and one.kind in fault.callers
            ]
            dice.choice(suited).due.append(fault)
            self.faults[fault.verb] += 1

    @property
    def samples(self) -> list[Sample]:
        """Those of the last three quarters, while clients called."""
        return [
            sample
            for sample in self.ledger.samples
            if self.seconds / 4 <= sample.at <= self.seconds
        ]

    @property
    def wrong(self) -> list[str]:
        """The promises that were broken, and the slopes that are over their bounds."""
        found = list(self.ledger.wrong)
        if self.seconds >= JUDGED:
            if (rss := slopeOf(self.samples, "rss")).each >= RSS:
                found.append(f"RSS grows: {rss} MB/h")
            for name in COUNTED:
                slope = slopeOf(self.samples, name)
                if slope.each - 2 * slope.error >= FLAT:
                    found.append(f"{name} grow: {slope} an hour")
        return found

    def __str__(self) -> str:
        samples, book = self.samples, self.ledger.book
        rss = [sample.rss / 1024 for sample in samples]
        counted = ", ".join(f"{name} {slopeOf(samples, name)}" for name in COUNTED)
        return (
            f"soak seed {self.seed}: {self.ledger.took:.0f} s, {book.ended:,} calls, "
            f"{sum(self.faults.values())} faults of {len(self.faults)} kinds, one every "
            f"{self.each:g} s; {self.ledger.counts['executed']:,} executed in "
            f"{self.ledger.counts['processes']:,} processes; {len(self.wrong)} promises broken; "
            f"slopes an hour after the first quarter: RSS {slopeOf(samples, 'rss')} MB "
            f"({rss[0]:.1f} → {rss[-1]:.1f} MiB), {counted}; at the end held: "
            f"{self.ledger.samples[-1]}"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--every", type=float, default=5.0, help="seconds from fault to fault")
    parser.add_argument("--rate", type=float, default=75.0, help="calls a second, about")
    parser.add_argument("--sample", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--plot", type=Path, help="where to draw what was held")
    return parser.parse_args()


async def _main(options: argparse.Namespace, place: Path) -> bool:
    soak = Soak(
        options.seed, options.hours * 3600, place, options.every, options.rate, options.sample
    )
    soak.ledger.tell = lambda sample: print(sample, flush=True)
    print(f"soak: --hours {options.hours:g} --seed {options.seed} --every {options.every:g}")
    await soak.run()
    print(soak.ledger.table())
    if options.plot:
        drawn(soak.ledger.samples, options.plot)
    for text in soak.wrong:
        print("BROKEN", text)
    print(soak, flush=True)
    return not soak.wrong


def main() -> None:
    options = _options()
    right: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:

        def run(_: object) -> Deferred[None]:
            running = ensureDeferred(_main(options, Path(folder)))
            return running.addCallback(right.append)

        try:
            react(run)
        except SystemExit as end:
            sys.exit(end.code or (0 if right == [True] else 1))


if __name__ == "__main__":
    main()
