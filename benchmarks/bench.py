"""One subject on the bench: it, the load client that drives it, and the CPU that it uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, frozen

from benchmarks.client import Client, Report
from benchmarks.process import Background
from benchmarks.procfs import Usage, memory, usage
from benchmarks.subjects import SSE, Subject

__all__ = ["Bench", "Length", "Sample", "cpuOf", "residentBytes"]


@frozen
class Length:
    """How long a round is: seconds, or so many calls where `calls` is not 0."""

    seconds: float = 1.0
    calls: int = 0


@frozen
class Sample:
    """
    What one round of one subject gave.

    values: by the keys of the mode's columns. error: the text of the first one.
    """

    values: dict[str, float]
    errors: int = 0
    error: str = ""


@define(eq=False)
class Bench:
    """
    One subject in one mode.

    launch: starts the subject, once more at each call; whoever calls it closes what it returns.
    running: it, where the mode wants it to run through all rounds.
    revision: the protocol's, that sessions ask for.
    """

    subject: Subject
    launch: Callable[[], Background]
    client: Client
    length: Length
    revision: str
    running: Background | None = None

    @property
    def own(self) -> Background:
        """It, while it runs."""
        assert self.running is not None
        return self.running

    def open(
        self,
        name: str,
        sessions: int,
        streams: bool = False,
        client: Client | None = None,
        bodies: bool = False,
    ) -> None:
        """Open sessions (more, where the name has some). Raises: LoadFailed."""
        self.openAt(self.own, name, sessions, streams, client, bodies)

    def openAt(
        self,
        at: Background,
        name: str,
        sessions: int,
        streams: bool = False,
        client: Client | None = None,
        bodies: bool = False,
    ) -> None:
        """
        The same, with another one than `running`.

        bodies: with the server that is there for large bodies, where it has one.
        Raises: LoadFailed.
        """
        (client or self.client).do(
            "open",
            name=name,
            port=at.port,
            path=(bodies and self.subject.bodies) or self.subject.path,
            sse=self.subject.lane == SSE,
            revision=self.revision,
            sessions=sessions,
            streams=streams,
        )

    def measured(self, do: str, name: str, **plan: Any) -> tuple[Report, float]:
        """A round, and the CPU seconds that it cost the subject. Raises: LoadFailed."""
        before = usage(self.own.own())
        report = self.client.run(do, name, **plan)
        return report, cpuOf(self.own, before)


def cpuOf(running: Background, before: Usage) -> float:
    """CPU seconds of its own processes since then."""
    return usage(running.own()).since(before)


def residentBytes(running: Background) -> int:
    """Resident bytes of its own processes together; what they share counts in each."""
    total = 0
    for pid in running.own():
        try:
            total += memory(pid)[0]
        except OSError:
            continue  # it has ended
    return total
