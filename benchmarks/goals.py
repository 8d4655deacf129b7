"""
The goals: what the gateway is held to, beside its floor and its peers in the same run.

`--check` prints each as met or missed; the docs tell what they mean (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from attrs import frozen

from benchmarks.figures import middle
from benchmarks.modes import MODES
from benchmarks.peers import NAMES
from benchmarks.results import Results, Series
from benchmarks.subjects import FLOOR, GATEWAY, HTTP, SSE, STREAMABLE
from benchmarks.suite import Part
from benchmarks.tables import aligned, number

__all__ = ["GOALS", "Goal", "Verdict", "judged", "parts", "verdicts"]

Figure = Callable[[Results], float]


@frozen
class Goal:
    """
    A bound on a figure of a run.

    figure: takes it from the results; NaN where they do not tell. most: it may be no more than
    `bound`; else no less. peers: whom it is compared with beside the floor.
    """

    name: str
    lane: str
    mode: str
    figure: Figure
    bound: float
    unit: str = "of the floor"
    most: bool = True
    peers: tuple[str, ...] = ()

    @property
    def part(self) -> Part:
        """What has to be run for it."""
        return Part(self.lane, MODES[self.mode], frozenset((FLOOR, GATEWAY, *self.peers)))


@frozen
class Verdict:
    """A goal and what was measured. met: None where nothing was."""

    goal: Goal
    figure: float

    @property
    def met(self) -> bool | None:
        if math.isnan(self.figure):
            return None
        if self.goal.most:
            return self.figure <= self.goal.bound
        return self.figure >= self.goal.bound


def _value(results: Results, lane: str, mode: str, subject: str, key: str) -> float:
    """
    The median of a figure; NaN where there is none.

    Where some answers were wrong it says nothing: NaN, but of the gateway it is infinite.
    """
    series = results.find(lane, mode, subject)
    if series is None:
        return math.nan
    if series.errors:
        return math.inf if subject == GATEWAY else math.nan
    return middle(series.values(key))


def _own(lane: str, mode: str, key: str) -> Figure:
    return lambda results: _value(results, lane, mode, GATEWAY, key)


def _beside(lane: str, mode: str, other: str = FLOOR) -> Figure:
    """The gateway's CPU, in parts of the other's."""

    def figure(results: Results) -> float:
        ours, theirs = (_value(results, lane, mode, name, "cpu") for name in (GATEWAY, other))
        return ours / theirs

    return figure


def _rightPeers(results: Results, lane: str, mode: str) -> list[Series]:
    return [
        series
        for series in results.of(lane, mode)
        if series.subject in NAMES and series.samples and not series.errors
    ]


def _bestPeer(lane: str, mode: str) -> Figure:
    """How much cheaper the gateway is than the cheapest peer that answered all calls correctly."""

    def figure(results: Results) -> float:
        peers = [middle(each.values("cpu")) for each in _rightPeers(results, lane, mode)]
        ours = _value(results, lane, mode, GATEWAY, "cpu")
        return min(peers) / ours if peers else math.nan

    return figure


def _perCall(name: str, lane: str, mode: str, bound: float) -> Goal:
    return Goal(name, lane, mode, _beside(lane, mode), bound)


def _idle(lane: str) -> list[Goal]:
    kib, announced = _own(lane, "idle", "kib"), _own(lane, "idle", "announced")
    return [
        Goal(f"memory of an idle session, {lane}", lane, "idle", kib, 12.0, "KiB"),
        Goal(f"one event to 5,000 sessions, {lane}", lane, "idle", announced, 1.0, "s"),
    ]


_EIGHT = (STREAMABLE, "eight")
_START = (STREAMABLE, "start")
_PASS = (HTTP, "passthrough")
_FAIR = (STREAMABLE, "fairness")
GOALS: tuple[Goal, ...] = (
    _perCall("a call, streamable → stdio", STREAMABLE, "eight", 0.30),
    _perCall("a call, SSE → stdio", SSE, "eight", 0.35),
    _perCall("a call, transparent → HTTP", HTTP, "eight", 0.35),
    Goal(
        "an SSE event passed through",
        *_PASS,
        _beside(*_PASS, "nginx"),
        2.0,
        "of nginx",
        peers=("nginx",),
    ),
    Goal(
        "the best peer whose answers are all right",
        *_EIGHT,
        _bestPeer(*_EIGHT),
        10.0,
        "times the gateway",
        most=False,
        peers=NAMES,
    ),
    _perCall("open, call, close, a shared child", STREAMABLE, "churn", 0.60),
    Goal("start to the first initialize", *_START, _own(*_START, "start"), 0.6, "s"),
    Goal("memory at the start", *_START, _own(*_START, "base"), 50.0, "MiB"),
    *_idle(STREAMABLE),
    *_idle(SSE),
    _perCall("1 MiB there and back, transparent → HTTP", HTTP, "large", 2.0),
    Goal("p99 of others beside 4 MiB bodies", *_FAIR, _own(*_FAIR, "ratio"), 1.1, "of elsewhere"),
)


def parts() -> list[Part]:
    """What has to be run to judge all of them."""
    merged: dict[tuple[str, str], Part] = {}
    for part in (goal.part for goal in GOALS):
        key = part.lane, part.mode.name
        before = merged.get(key)
        merged[key] = part if before is None else before.joined(part)
    return list(merged.values())


def verdicts(results: Results) -> list[Verdict]:
    """All goals, judged by these results."""
    return [Verdict(goal, goal.figure(results)) for goal in GOALS]


def judged(given: Sequence[Verdict]) -> str:
    """The verdicts as a table."""
    rows = [["goal", "measured", "bound", "", "verdict"]]
    for verdict in given:
        goal = verdict.goal
        sign = "≤" if goal.most else "≥"
        said = {True: "met", False: "missed", None: "not measured"}[verdict.met]
        rows.append(
            [goal.name, number(verdict.figure, 2), f"{sign} {goal.bound:g}", goal.unit, said]
        )
    return "### Goals\n\n" + aligned(rows)
