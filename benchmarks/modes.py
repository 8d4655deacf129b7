"""
The modes: what is done with each subject, and what is read off it.

Each has a class that says how; `MODES` is the table of them.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from statistics import median
from typing import Any, ClassVar

from attrs import frozen

from benchmarks.bench import Bench, Sample, cpuOf, residentBytes
from benchmarks.client import Client, Report
from benchmarks.procfs import usage
from benchmarks.subjects import HTTP, LANES, STREAMABLE

__all__ = ["MODES", "Calls", "Churn", "Column", "Fairness", "Idle", "Mode", "Start"]

MIB = 1024 * 1024


@frozen
class Column:
    """A figure of a table: its key in a sample, its heading, its decimals."""

    key: str
    title: str
    digits: int = 0


_TIMES = (Column("p50", "p50 ms", 2), Column("p99", "p99 ms", 2))


def _per(unit: str) -> tuple[Column, ...]:
    return (Column("cpu", f"CPU µs per {unit}"), Column("rate", f"{unit}s/s"), *_TIMES)


@frozen
class Mode(ABC):
    """
    A way to use a gateway.

    shared: whether sessions share a child, where that can be chosen.
    main: whether it is run unless modes are named.
    """

    name: str
    title: str
    lanes: tuple[str, ...] = tuple(LANES)
    shared: bool = False
    main: bool = False

    columns: ClassVar[tuple[Column, ...]] = _per("call")
    """What its samples hold; the first is what subjects are compared by."""
    once: ClassVar[bool] = False
    """Whether one round is enough."""
    selfStarting: ClassVar[bool] = False
    """Whether each round starts a subject of its own."""

    def prepare(self, bench: Bench) -> None:
        """Once, before the rounds. Raises: LoadFailed."""

    @abstractmethod
    def round(self, bench: Bench) -> Sample:
        """A round. Raises: LoadFailed, NotStarted."""


def _sample(report: Report, cpu: float, parts: int = 1) -> Sample:
    done = report.done * parts
    values = {
        "cpu": cpu / done * 1e6 if done else math.nan,
        "rate": report.rate * parts,
        "p50": report.p50,
        "p99": report.p99,
    }
    return Sample(values, report.errors, report.first)


def _ends(bench: Bench) -> dict[str, Any]:
    length = bench.length
    return {"calls": length.calls} if length.calls else {"seconds": length.seconds}


@frozen
class Calls(Mode):
    """
    Calls in a closed loop.

    inflight: at the same time in each session; size: characters of the text that is echoed;
    progress: notifications before each answer.
    """

    sessions: int = 8
    inflight: int = 1
    size: int = 64
    progress: int = 0
    patience: float = 10.0

    def prepare(self, bench: Bench) -> None:
        bench.open(bench.subject.name, min(self.sessions, bench.subject.crowd))

    def round(self, bench: Bench) -> Sample:
        report, cpu = bench.measured(
            "calls",
            bench.subject.name,
            shape={"size": self.size, "progress": self.progress},
            inflight=self.inflight,
            patience=self.patience,
            **_ends(bench),
        )
        return _sample(report, cpu)


@frozen
class PassThrough(Mode):
    """Events of the upstream, one by one as they come, on the streams that its calls opened."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("cpu", "CPU µs per event", 1),
        Column("rate", "events/s"),
    )
    streams: int = 16
    interval: float = 0.005

    def prepare(self, bench: Bench) -> None:
        bench.open(bench.subject.name, self.streams)

    def round(self, bench: Bench) -> Sample:
        length = bench.length
        count = length.calls or max(1, round(length.seconds / self.interval))
        report, cpu = bench.measured(
            "calls",
            bench.subject.name,
            shape={"progress": count, "interval": self.interval},
            calls=self.streams,
            patience=30.0,
        )
        return _sample(report, cpu, count)


@frozen
class Churn(Mode):
    """Sessions that are opened, used for one call, and closed."""

    columns: ClassVar[tuple[Column, ...]] = _per("session")
    inflight: int = 4

    def prepare(self, bench: Bench) -> None:
        # One that stays, so that a shared child is there.
        bench.open(bench.subject.name, 1)

    def round(self, bench: Bench) -> Sample:
        report, cpu = bench.measured(
            "churn", bench.subject.name, shape={}, inflight=self.inflight, **_ends(bench)
        )
        return _sample(report, cpu)


@frozen
class Idle(Mode):
    """Sessions with an open stream that do nothing, and one event that reaches all of them."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("kib", "KiB per session", 1),
        Column("sessions", "sessions"),
        Column("base", "base MiB", 1),
        Column("announced", "s until all heard an event", 2),
        Column("cpu", "CPU µs per event", 1),
    )
    once: ClassVar[bool] = True
    selfStarting: ClassVar[bool] = True
    sessions: int = 5000
    first: int = 50
    """Sessions whose memory is the base: what is made once is there with them."""
    settle: float = 1.0

    def round(self, bench: Bench) -> Sample:
        count = min(self.sessions, bench.subject.crowd)
        running = bench.launch()
        name = bench.subject.name
        try:
            running.waitUntilItListens()
            bench.openAt(running, name, self.first, True)
            time.sleep(self.settle)
            base = residentBytes(running)
            bench.openAt(running, name, count - self.first, True)
            time.sleep(self.settle)
            more = residentBytes(running) - base
            before = usage(running.own())
            heard = bench.client.do("announce", name=name, wait=5.0)
            cpu = cpuOf(running, before)
        finally:
            bench.client.do("close", name=name)
            running.close()
        values = {
            "kib": more / (count - self.first) / 1024,
            "sessions": count,
            "base": base / MIB,
            "announced": math.nan if heard["missing"] else heard["seconds"],
            "cpu": cpu / count * 1e6,
        }
        missing = f"{heard['missing']} sessions did not hear it" if heard["missing"] else ""
        lost = f"{heard['lost']} streams ended" if heard["lost"] else ""
        return Sample(values, heard["missing"] + heard["lost"], lost or missing)


@frozen
class Start(Mode):
    """From the start of the process to the answer to the first `initialize`."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("start", "s to the first initialize", 2),
        Column("listens", "s until it listens", 2),
        Column("base", "MiB when it listens", 1),
        Column("cpu", "CPU ms"),
    )
    selfStarting: ClassVar[bool] = True

    def round(self, bench: Bench) -> Sample:
        running = bench.launch()
        name = bench.subject.name
        try:
            listens = running.waitUntilItListens()
            base = residentBytes(running)
            # What it took to look at the memory is not the subject's.
            looked = time.perf_counter()
            bench.openAt(running, name, 1)
            took = listens + time.perf_counter() - looked
            cpu = sum(usage(running.own()).cpu.values())
        finally:
            bench.client.do("close", name=name)
            running.close()
        return Sample({"start": took, "listens": listens, "base": base / MIB, "cpu": cpu * 1e3})


@frozen
class Fairness(Mode):
    """
    Small calls at a steady pace while one more session moves large bodies, at a steady pace, too:
    what keeps others waiting is to be seen, not what a machine without a core to spare does.

    The same calls go, at the same time, to another process of the same subject, which moves none:
    whatever else the machine does falls on both. A round has short slices of that and of calls
    without bodies by turns, and tells the middle of their percentiles. Behind the bodies is a
    server of their own: the others do not wait for it.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("moved", "p99 ms beside 4 MiB bodies", 2),
        Column("elsewhere", "p99 ms at another process, meanwhile", 2),
        Column("quiet", "p99 ms without bodies", 2),
        Column("ratio", "to another process", 2),
        Column("whole", "to without", 2),
        Column("longest", "longest ms beside them", 1),
        Column("bodies", "bodies/s", 1),
    )
    sessions: int = 8
    pace: float = 0.02
    size: int = 4 * MIB - 1024
    """A body of less than 4 MiB with what is around it."""
    bodyPace: float = 0.1
    slices: int = 8

    def prepare(self, bench: Bench) -> None:
        bench.open(bench.subject.name, self.sessions)

    def round(self, bench: Bench) -> Sample:
        other = bench.launch()
        here: list[Report] = []
        elsewhere: list[Report] = []
        quiet: list[Report] = []
        bodies: list[Report] = []
        with Client() as mover, Client() as second:
            try:
                other.waitUntilItListens()
                bench.openAt(other, "elsewhere", self.sessions, client=second)
                bench.open("bodies", 1, client=mover, bodies=True)
                for _ in range(self.slices):
                    self._begin(bench, mover, "bodies", self.bodyPace, self.size)
                    self._begin(bench, second, "elsewhere", self.pace)
                    self._begin(bench, bench.client, bench.subject.name, self.pace)
                    here.append(Report(**bench.client.answer()))
                    elsewhere.append(Report(**second.answer()))
                    bodies.append(Report(**mover.answer()))
                    self._begin(bench, bench.client, bench.subject.name, self.pace)
                    quiet.append(Report(**bench.client.answer()))
            finally:
                other.close()
        moved, others, alone = (
            median(report.p99 for report in reports) for reports in (here, elsewhere, quiet)
        )
        values = {
            "moved": moved,
            "elsewhere": others,
            "quiet": alone,
            "ratio": moved / others,
            "whole": moved / alone,
            "longest": max(report.longest for report in here),
            "bodies": median(report.rate for report in bodies),
        }
        every = [*here, *elsewhere, *quiet, *bodies]
        first = next((report.first for report in every if report.first), "")
        return Sample(values, sum(report.errors for report in every), first)

    def _begin(self, bench: Bench, client: Client, name: str, pace: float, size: int = 64) -> None:
        plan = {"shape": {"size": size}, "seconds": bench.length.seconds, "pace": pace}
        client.begin("calls", name=name, plan={**plan, "patience": 30.0})


_POSTED = (STREAMABLE, HTTP)
MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Calls("single", "one call at a time", sessions=1, main=True),
        Calls("eight", "8 sessions, one call at a time each", main=True),
        Calls("hundred", "100 sessions, one call at a time each", sessions=100),
        Calls("pipelined", "one session, 16 calls in flight", sessions=1, inflight=16),
        Calls(
            "events",
            "SSE answers: a progress notification before each answer, 8 sessions",
            _POSTED,
            progress=1,
            main=True,
        ),
        Calls(
            "large",
            "1 MiB payloads, there and back, one call at a time",
            sessions=1,
            size=MIB,
            patience=60.0,
            main=True,
        ),
        Churn("churn", "open, call, close; 4 at a time, a shared child", shared=True, main=True),
        Idle("idle", "idle sessions with an open stream, a shared child", shared=True),
        PassThrough("passthrough", "SSE events passed through, one by one, 16 streams", (HTTP,)),
        Start("start", "from the start to the first initialize", (STREAMABLE,), main=True),
        Fairness("fairness", "8 sessions beside one that moves 4 MiB bodies", _POSTED),
    )
}
