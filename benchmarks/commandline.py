"""The command line of the suite."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import goals
from benchmarks.bench import Length
from benchmarks.modes import MODES
from benchmarks.peers import NAMES, PLACE, find
from benchmarks.plots import render
from benchmarks.results import Results
from benchmarks.subjects import BEFORE, FLOOR, GATEWAY, LANES, Subject, ourselves
from benchmarks.suite import Part, Suite, raiseFileLimit
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
    add(
        "--before",
        type=Path,
        metavar="DIR",
        help="measure the gateway of another checkout, too, beside this one",
    )
    add("--rounds", type=int, default=5, help="rounds of each subject (5)")
    add(
        "--warmups",
        type=int,
        default=12,
        help="rounds before them, at most: until they get no cheaper (12)",
    )
    add("--seconds", type=float, default=0.6, help="of a round (0.6)")
    add("--calls", type=int, default=0, help="of a round, instead of seconds")
    add("--revision", default="2025-06-18", help="of the protocol (2025-06-18)")
    add("--json", type=Path, metavar="FILE", help="keep every round in this file")
    add(
        "--from",
        type=Path,
        dest="saved",
        metavar="FILE",
        nargs="+",
        help="run nothing, show what was kept in these",
    )
    add("--plots", type=Path, metavar="DIR", help="draw SVG and PNG pictures in this folder")
    add("--check", action="store_true", help="judge the goals; 1 is returned if one is missed")
    add("--quiet", action="store_true", help="say nothing while it runs")
    return parser


def _parts(given: argparse.Namespace) -> list[Part]:
    """What is to be run: what is named, what the goals need, or the main modes."""
    if given.check and not given.modes:
        needed = goals.parts()
        named = given.subjects or given.all
        return [Part(part.lane, part.mode) for part in needed] if named else needed
    modes = given.modes or [mode.name for mode in MODES.values() if mode.main]
    return [
        Part(lane, MODES[mode])
        for mode in modes
        for lane in given.lanes
        if lane in MODES[mode].lanes
    ]


def _subjects(
    names: Sequence[str], place: Path, before: Path | None
) -> tuple[list[Subject], dict[str, str]]:
    """Those with these names, in all lanes; and why some are not there."""
    every = [subject for lane in LANES for subject in ourselves(lane, before)]
    ours = [subject for subject in every if subject.name in (*names, BEFORE)]
    peers = find(names, place)
    return ours + peers.subjects, peers.absent


def _run(given: argparse.Namespace) -> tuple[Results, bool]:
    """Run the suite. Returns what it found, and whether it came to its end."""
    # Either way what was started is ended; also where a shell had Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    raiseFileLimit()

    def tell(line: str) -> None:
        if not given.quiet:
            print(line, file=sys.stderr, flush=True)

    everybody = given.all or given.check
    names = given.subjects or [FLOOR, GATEWAY, *(NAMES if everybody else ())]
    before = None if given.before is None else given.before.resolve()
    subjects, absent = _subjects(names, given.peers, before)
    for name, why in absent.items():
        tell(f"{name}: skipped: {why}")
    results = Results(absent=absent)
    length = Length(given.seconds, given.calls)
    suite = Suite(subjects, length, given.rounds, given.warmups, given.revision, tell, results)
    try:
        suite.run(_parts(given))
    except KeyboardInterrupt:
        print("stopped; what was measured until then:", file=sys.stderr)
        return results, False
    return results, True


def _kept(files: Sequence[Path]) -> Results:
    """What several runs found. Raises: OSError, ValueError."""
    results = Results.load(files[0])
    for file in files[1:]:
        results.add(Results.load(file))
    return results


def main(words: Sequence[str] | None = None) -> int:
    """
    Run it and print what was found.

    Returns: the exit status: 0; 1 where a goal was missed (`--check`); 130 where it was stopped.
    """
    parser = _parser()
    given = parser.parse_args(words)
    try:
        results, whole = (_kept(given.saved), True) if given.saved else _run(given)
        if given.json:
            results.save(given.json)
        print(report(results))
        if given.plots:
            for file in render(results, given.plots):
                print(file, file=sys.stderr)
    except (OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    except ImportError:
        parser.error("--plots needs matplotlib: pip install -e '.[bench]'")
    missed = False
    if given.check:
        found = goals.verdicts(results)
        print("\n" + goals.judged(found))
        missed = any(verdict.met is False for verdict in found)
    return 130 if not whole else int(missed)
