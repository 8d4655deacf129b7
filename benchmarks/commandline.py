"""The command line of the suite."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.bench import Length
from benchmarks.modes import MODES, Mode
from benchmarks.peers import NAMES, PLACE, find
from benchmarks.subjects import FLOOR, GATEWAY, LANES, Subject, ourselves
from benchmarks.suite import Suite, raiseFileLimit
from benchmarks.tables import report

__all__ = ["main"]


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: expected some of {', '.join(known)}")
        return names

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What the gateway costs, beside its floors and its peers.",
    )
    add = parser.add_argument
    add("--modes", type=_names(list(MODES)), help=f"some of {', '.join(MODES)}")
    add(
        "--lanes", type=_names(list(LANES)), default=list(LANES), help=f"some of {', '.join(LANES)}"
    )
    every = [FLOOR, GATEWAY, *NAMES]
    add("--subjects", type=_names(every), help=f"some of {', '.join(every)}")
    add("--all", action="store_true", help="with all peers that are installed")
    add("--peers", type=Path, default=PLACE, metavar="DIR", help="where they are (build/bench)")
    add("--rounds", type=int, default=5, help="rounds of each subject (5)")
    add("--seconds", type=float, default=1.0, help="of a round (1)")
    add("--calls", type=int, default=0, help="of a round, instead of seconds")
    add("--revision", default="2025-06-18", help="of the protocol (2025-06-18)")
    add("--json", type=Path, metavar="FILE", help="keep every round in this file")
    add("--quiet", action="store_true", help="say nothing while it runs")
    return parser


def _parts(lanes: Sequence[str], modes: Sequence[str]) -> list[tuple[str, Mode]]:
    return [(lane, MODES[mode]) for mode in modes for lane in lanes if lane in MODES[mode].lanes]


def _subjects(names: Sequence[str], place: Path) -> tuple[list[Subject], dict[str, str]]:
    """Those with these names, in all lanes; and why some are not there."""
    ours = [subject for lane in LANES for subject in ourselves(lane) if subject.name in names]
    peers = find(names, place)
    return ours + peers.subjects, peers.absent


def main(words: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit status."""
    given = _parser().parse_args(words)
    modes = given.modes or [mode.name for mode in MODES.values() if mode.main]
    # As Ctrl-C does: what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raiseFileLimit()

    def tell(line: str) -> None:
        if not given.quiet:
            print(line, file=sys.stderr, flush=True)

    names = given.subjects or [FLOOR, GATEWAY, *(NAMES if given.all else ())]
    subjects, absent = _subjects(names, given.peers)
    suite = Suite(
        subjects,
        Length(given.seconds, given.calls),
        given.rounds,
        revision=given.revision,
        tell=tell,
    )
    suite.results.absent = absent
    for name, why in absent.items():
        tell(f"{name}: skipped: {why}")
    try:
        suite.run(_parts(given.lanes, modes))
    except KeyboardInterrupt:
        print("stopped; what was measured until then:", file=sys.stderr)
    if given.json:
        suite.results.save(given.json)
    print(report(suite.results))
    return 0
