"""What a load client does in one round: calls in a closed loop, or sessions that come and go."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define, field

from benchmarks.load.calls import Call, Shape
from benchmarks.load.connection import Connection, Gone
from benchmarks.load.group import Group
from benchmarks.load.sessions import Broken, Session

__all__ = ["Churn", "Closed", "Outcome", "Plan", "percentile"]

_MANY_ERRORS = 50
"""A round with so many is over: nothing can be learned from the rest."""


@define
class Plan:
    """
    How long a round is, and what its calls are like.

    seconds: no call begins later; calls: no more than so many begin. 0: no bound.
    inflight: calls at the same time in each session.
    pace: seconds from the beginning of one call to that of the next; 0: at once.
    patience: seconds for the last answers.
    """

    shape: Shape
    seconds: float = 0.0
    calls: int = 0
    inflight: int = 1
    pace: float = 0.0
    patience: float = 10.0

    def __attrs_post_init__(self) -> None:
        if not self.seconds and not self.calls:
            raise ValueError("a round needs an end: seconds or calls")


def percentile(sorted: list[float], part: float) -> float:
    """The value that `part` (0 to 1) of these are not above; NaN of none."""
    if not sorted:
        return math.nan
    return sorted[max(0, math.ceil(part * len(sorted)) - 1)]


@define
class Outcome:
    """
    What came of a round.

    done: calls, or sessions, with the right answers; seconds: until the last answer.
    errors: of those without, also messages that reached the wrong session; first: what it was.
    """

    done: int = 0
    errors: int = 0
    first: str = ""
    seconds: float = 0.0
    times: list[float] = field(factory=list)

    def failed(self, why: str, count: int = 1) -> None:
        """Count an error."""
        self.errors += count
        self.first = self.first or why

    @property
    def hopeless(self) -> bool:
        """Whether to stop."""
        return self.errors >= _MANY_ERRORS and self.errors > self.done

    def report(self) -> dict[str, Any]:
        """As JSON; times in milliseconds."""
        times = sorted(self.times)
        return {
            "done": self.done,
            "errors": self.errors,
            "first": self.first,
            "seconds": self.seconds,
            "p50": percentile(times, 0.5) * 1e3,
            "p99": percentile(times, 0.99) * 1e3,
            "longest": (times[-1] if times else math.nan) * 1e3,
        }


class Closed:
    """A closed loop: each worker sends its next call when the last one was answered."""

    def __init__(self, group: Group, plan: Plan) -> None:
        self.outcome = Outcome()
        self.plan = plan
        self.group = group
        self._loop = asyncio.get_running_loop()
        self._left = plan.calls or math.inf
        self._end = math.inf
        self._workers: list[_Worker] = []
        self._busy = 0
        self._over: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> Outcome:
        """Run it. Raises: Gone."""
        strays = self.group.strays
        for session in self.group.sessions:
            for _ in range(self.plan.inflight):
                self._workers.append(_Worker(self, session, await self.group.pool.take()))
        began = self._loop.time()
        self._end = began + (self.plan.seconds or math.inf)
        self._busy = len(self._workers)
        for number, worker in enumerate(self._workers):
            # A pace is kept one after the other, not by all at the same moment.
            self._loop.call_later(self.plan.pace * number / self._busy, worker.next)
        try:
            await asyncio.wait_for(self._over, (self.plan.seconds or 60) + self.plan.patience)
        except TimeoutError:
            for worker in self._workers:
                if worker.call is not None:
                    self.outcome.failed("no answer")
        self.outcome.seconds = self._loop.time() - began
        if self.group.strays > strays:
            self.outcome.failed("a message of another session", self.group.strays - strays)
        for worker in self._workers:
            if worker.call is None:
                self.group.pool.give(worker.connection)
            else:
                worker.connection.close()
        return self.outcome

    def mayBegin(self) -> bool:
        """Whether another call begins; it counts as begun then."""
        if self._left <= 0 or self._loop.time() >= self._end or self.outcome.hopeless:
            return False
        self._left -= 1
        return True

    def stopped(self) -> None:
        """A worker is through."""
        self._busy -= 1
        if not self._busy and not self._over.done():
            self._over.set_result(None)


class _Worker:
    """One call at a time, over a connection of its own."""

    def __init__(self, closed: Closed, session: Session, connection: Connection) -> None:
        self.call: Call | None = None
        self.connection = connection
        self._closed = closed
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._mending: asyncio.Task[None] | None = None

    def next(self) -> None:
        """Send a call, if there is time for one."""
        if not self._closed.mayBegin():
            self._closed.stopped()
            return
        if not self.connection.open:
            self._mending = self._loop.create_task(self._mend())
            return
        self._send()

    def _send(self) -> None:
        self._due = self._loop.time() + self._closed.plan.pace
        call = self._session.call(self.connection, self._closed.plan.shape, self._ended)
        # It may have ended already, by an error.
        self.call = call if not call.ended else None

    def _ended(self, call: Call) -> None:
        now = self._loop.time()
        outcome = self._closed.outcome
        self.call = None
        if call.wrong:
            outcome.failed(call.wrong)
            # Not from within whatever failed.
            self._loop.call_soon(self.next)
            return
        outcome.done += 1
        outcome.times.append(now - call.began)
        if self._due > now:
            self._loop.call_at(self._due, self.next)
        else:
            self.next()

    async def _mend(self) -> None:
        try:
            self.connection = await Connection.connect(self._closed.group.port)
        except Gone as error:
            self._closed.outcome.failed(str(error))
            self._closed.stopped()
            return
        self._send()


class Churn:
    """Sessions that are opened, used for one call and closed, each over a connection of its own."""

    def __init__(self, group: Group, plan: Plan) -> None:
        self._group = group
        self._plan = plan
        self._outcome = Outcome()
        self._left = plan.calls or math.inf

    async def run(self) -> Outcome:
        """Run it, `inflight` sessions at a time."""
        began = time.perf_counter()
        end = began + (self._plan.seconds or math.inf)

        async def work() -> None:
            while self._left > 0 and time.perf_counter() < end and not self._outcome.hopeless:
                self._left -= 1
                await self._counted(self._one)

        await asyncio.gather(*(work() for _ in range(self._plan.inflight)))
        self._outcome.seconds = time.perf_counter() - began
        return self._outcome

    async def _counted(self, one: Callable[[], Awaitable[None]]) -> None:
        began = time.perf_counter()
        try:
            await one()
        except (Broken, Gone, TimeoutError) as error:
            self._outcome.failed(str(error) or type(error).__name__)
        else:
            self._outcome.done += 1
            self._outcome.times.append(time.perf_counter() - began)

    async def _one(self) -> None:
        session = self._group.session()
        connection = await Connection.connect(self._group.port)
        try:
            await session.open(connection)
            over: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
            session.call(connection, self._plan.shape, over.set_result)
            call = await asyncio.wait_for(over, self._plan.patience)
            if call.wrong:
                raise Broken(call.wrong)
            await session.close(connection)
        finally:
            session.drop()
            connection.close()
