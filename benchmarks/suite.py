"""Runs a plan: every mode in every lane, its subjects in turn, round by round."""

from __future__ import annotations

import math
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import define, field, frozen

from benchmarks.bench import Bench, Length, Sample
from benchmarks.client import Client, LoadFailed
from benchmarks.modes import Mode
from benchmarks.process import Background, NotStarted, freePort
from benchmarks.results import Results, Series
from benchmarks.subjects import ECHO_HTTP, HTTP, Place, Subject

__all__ = ["Part", "Suite", "raiseFileLimit"]

Tell = Callable[[str], None]
_STILL_FALLING = 0.95
"""A round in parts of the best before it: below that the subject is still warming up."""


def raiseFileLimit() -> int:
    """Let us and what we start open as many files as may be. Returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@frozen
class Part:
    """
    One lane in one mode.

    names: the subjects that take part; None: all there are.
    """

    lane: str
    mode: Mode
    names: frozenset[str] | None = None

    def joined(self, other: Part) -> Part:
        """The same with the subjects of both."""
        both = None if self.names is None or other.names is None else self.names | other.names
        return Part(self.lane, self.mode, both)

    def has(self, subject: Subject) -> bool:
        """Whether it takes part."""
        if self.names is not None and subject.name not in self.names:
            return False
        return subject.lane == self.lane and subject.shared in (None, self.mode.shared)


@define(eq=False)
class Suite:
    """
    One run.

    Rounds are interleaved: each subject has its first round, then each its second, so that what
    else the machine does falls on all of them. Before that each is warmed up by rounds that are
    not counted, until they get no cheaper, `warmups` at most.
    tell: gets a line now and then.
    """

    subjects: Sequence[Subject]
    length: Length
    rounds: int = 5
    warmups: int = 12
    revision: str = "2025-06-18"
    tell: Tell = lambda line: None
    results: Results = field(factory=Results)

    def run(self, parts: Sequence[Part]) -> Results:
        """Run these. Whatever was started has ended afterwards."""
        for part in parts:
            self._part(part)
        return self.results

    def _part(self, part: Part) -> None:
        lane, mode = part.lane, part.mode
        self.tell(f"{lane}, {mode.name}: {mode.title}")
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            upstream = stack.enter_context(_upstream(lane))
            bodies = stack.enter_context(_upstream(lane))
            benches: list[tuple[Bench, Series]] = []
            for subject in self.subjects:
                if not part.has(subject):
                    continue
                series = Series(lane, mode.name, subject.name, subject.version)
                self.results.series.append(series)
                client = stack.enter_context(Client())

                def launch(subject: Subject = subject) -> Background:
                    return subject.start(Place(freePort(), upstream, directory, bodies=bodies))

                bench = Bench(subject, launch, client, self.length, self.revision)
                try:
                    if not mode.selfStarting:
                        bench.running = bench.launch()
                        stack.callback(bench.running.close)
                        bench.running.waitUntilItListens()
                    mode.prepare(bench)
                except (NotStarted, LoadFailed) as error:
                    series.skipped = str(error)
                    self.tell(f"  {subject.name}: skipped: {error}")
                    continue
                benches.append((bench, series))
            self._rounds(mode, benches)

    def _rounds(self, mode: Mode, benches: list[tuple[Bench, Series]]) -> None:
        if not mode.selfStarting:
            for bench, series in benches:
                self._warm(mode, bench, series)
        rounds = 1 if mode.once else self.rounds
        for number in range(1, rounds + 1):
            for bench, series in benches:
                sample = self._round(mode, bench, series)
                if sample is not None:
                    series.samples.append(sample)
                    self.tell(f"  {number}/{rounds} {series.subject}: {_brief(mode, sample)}")

    def _warm(self, mode: Mode, bench: Bench, series: Series) -> None:
        # A program whose code is compiled as it runs may cost a third after some seconds.
        best, since = math.inf, 0
        for number in range(1, self.warmups + 1):
            sample = self._round(mode, bench, series)
            if sample is None:
                return
            now = sample.values[mode.columns[0].key]
            self.tell(f"  warming up, {number} {series.subject}: {_brief(mode, sample)}")
            since = 0 if now < best * _STILL_FALLING else since + 1
            if since >= bench.subject.patience:
                return
            best = min(best, now)

    def _round(self, mode: Mode, bench: Bench, series: Series) -> Sample | None:
        """A round; None where the subject is, or has to be, given up."""
        if series.skipped:
            return None
        try:
            return mode.round(bench)
        except (NotStarted, LoadFailed) as error:
            series.samples.clear()
            series.skipped = str(error)
            self.tell(f"  {series.subject}: gave up: {error}")
            return None


def _brief(mode: Mode, sample: Sample) -> str:
    figures = (
        f"{sample.values[column.key]:.{column.digits}f} {column.title}"
        for column in mode.columns
        if not math.isnan(sample.values.get(column.key, math.nan))
    )
    errors = f", {sample.errors} errors ({sample.error})" if sample.errors else ""
    return ", ".join(figures) + errors


@contextmanager
def _upstream(lane: str) -> Iterator[int]:
    """An HTTP server behind the subjects of its lane; its port, or 0 in another one."""
    if lane != HTTP:
        yield 0
        return
    port = freePort()
    server = Background([*ECHO_HTTP, str(port)], port)
    try:
        server.waitUntilItListens()
        yield port
    finally:
        server.close()
